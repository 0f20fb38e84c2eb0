"""Random programs of concurrent requests: what they leave is what they would leave one by one.

Every transaction writes rows of its own and registers hooks of its own. So its rows are
there, all of them, and its hooks were called once each, or neither; nobody ever saw some.
Every statement of its own is there if it came to its end. A request sees the session state
that it made, and no other's. And in the end every connection is back in its pool.

The order in which tasks go on is drawn, and where they are cancelled: a request, or one task
of it, at any of its awaits, while it connects, or waits for a connection or its turn; and, as
these are few among many, in a BEGIN, a COMMIT, a ROLLBACK or a savepoint, by name. A second
cancellation may come while the first is dealt with.

``GREENROOM_ISOLATION=2000`` runs so many programs on each database, and makes one that fails
as short as it can.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import types
from collections import Counter as Tally
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, connection, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import greenroom
from greenroom import bridge, loops
from greenroom.crossing import new_lane
from greenroom.db import borrow
from project.shop.models import Counter, Customer

PROGRAMS = int(os.environ.get("GREENROOM_ISOLATION", "0"))

# Seconds after which a program is said to hang: far above every limit within.
PATIENCE = 20.0


class Shuffled(asyncio.SelectorEventLoop):
    """A loop on which the tasks that are ready go on in an order that is drawn.

    Callbacks that are no task's stay where they are: their order is a promise.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)

    def _run_once(self) -> None:
        ready: Any = self._ready  # type: ignore[attr-defined]
        handles = list(ready)
        places = [
            place
            for place, handle in enumerate(handles)
            if isinstance(getattr(handle._callback, "__self__", None), asyncio.Task)
        ]
        if len(places) > 1:
            steps = [handles[place] for place in places]
            self._random.shuffle(steps)
            for place, step in zip(places, steps, strict=True):
                handles[place] = step
            ready.clear()
            ready.extend(handles)
        super()._run_once()  # type: ignore[misc]


class Undo(Exception):
    """Rolls a block back."""


@dataclass(eq=False)
class Block:
    """A block that a program opened; the outermost is a transaction."""

    outer: Block | None
    rows: list[str] = field(default_factory=list)
    hooks: list[str] = field(default_factory=list)
    bumps: int = 0
    # Of the outermost: open, then leaving, then committed or lost; or unknown, since it was
    # cancelled while it was left.
    state: str = "open"
    label: str = ""

    @property
    def transaction(self) -> Block:
        return self if self.outer is None else self.outer.transaction


inside: ContextVar[Block | None] = ContextVar("inside", default=None)
asks: ContextVar[Request | None] = ContextVar("asks", default=None)


class Request:
    """`cancels`: of what, the how-manieth time, and whether the whole request is cancelled."""

    def __init__(self, world: World, name: str, cancels: Any) -> None:
        self.world = world
        self.name = name
        self.task = asyncio.current_task()
        self._cancels = cancels
        self._passed: Tally[str] = Tally()
        # Whether its session state is surely, or perhaps, what it made.
        self.made = self.making = False

    # Cancelling.

    async def stepped(self, fn: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
        """Run a task of it, whose awaits are counted."""
        # Now: of a task that is cancelled before it begins, nobody would await it.
        coroutine = fn(*args)

        @types.coroutine
        def run() -> Any:
            send, value = coroutine.send, None
            while True:
                try:
                    value = send(value)
                except StopIteration as stop:
                    return stop.value
                self.passes("await")
                try:
                    value = yield value
                except BaseException as exc:
                    send, value = coroutine.throw, exc
                else:
                    send = coroutine.send

        asks.set(self)
        try:
            return await run()
        finally:
            coroutine.close()

    def passes(self, kind: str) -> None:
        """A task of it is about to wait, or to begin what it waits for."""
        self._passed[kind] += 1
        for each, number, whole in self._cancels:
            if (each, number) == (kind, self._passed[kind]):
                task = self.task if whole else asyncio.current_task()
                assert task is not None
                # When it waits, and before what it waits for can have come.
                asyncio.get_running_loop().call_soon(task.cancel)

    # The steps of a program.

    async def do(self, steps: Any, bridged: bool) -> None:
        for kind, *args in steps:
            if kind in ("block", "group"):
                await getattr(self, kind)(bridged, *args)
            else:
                await getattr(self, kind)(*args)

    async def call(self, how: str, fn: Callable[[], Any]) -> Any:
        """Synchronous code on the loop, or on a thread."""
        if how == "thread":
            return await sync_to_async(fn)()
        if how == "plain" and bridge.in_bridge():
            return fn()
        return await bridge.run(fn)

    async def sleep(self, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    async def insert(self, how: str) -> None:
        block = inside.get()
        name = self.world.name()
        label = block.transaction.label if block is not None else ""

        def create() -> None:
            Customer.objects.create(name=name, tenant=label)

        try:
            if how == "async":
                await Customer.objects.acreate(name=name, tenant=label)
            else:
                await self.call(how, create)
        except BaseException:
            self.world.perhaps.add(name)
            raise
        if block is None:
            self.world.surely.add(name)
        else:
            block.rows.append(name)

    async def bump(self, how: str) -> None:
        block = inside.get()

        def bump() -> None:
            changed = Counter.objects.filter(name="all").update(value=F("value") + 1)
            assert changed == 1

        try:
            if how == "async":
                await Counter.objects.filter(name="all").aupdate(value=F("value") + 1)
            else:
                await self.call(how, bump)
        except BaseException:
            self.world.perhaps_bumped += 1
            raise
        if block is None:
            self.world.bumped += 1
        else:
            block.bumps += 1

    async def take(self, turns: int) -> None:
        """Read, then write. Nobody comes between: it has the block for itself."""
        block = inside.get()
        assert block is not None
        counters = Counter.objects.filter(name="all")
        row = await counters.select_for_update().aget()
        await self.sleep(turns)
        try:
            await counters.aupdate(value=row.value + 1)
        except BaseException:
            self.world.perhaps_bumped += 1
            raise
        block.bumps += 1

    async def read(self, how: str) -> None:
        block = inside.get()
        surely = set(self.world.surely)
        mine = set(block_rows(block))
        for each in self.world.transactions:
            if each.state == "committed":
                surely.update(each.rows)

        def rows() -> list[tuple[str, str]]:
            return list(Customer.objects.values_list("name", "tenant"))

        if how == "async":
            found = [row async for row in Customer.objects.values_list("name", "tenant")]
        else:
            found = await self.call(how, rows)
        names = {name for name, _ in found}
        assert len(names) == len(found)
        own = block.transaction if block is not None else None
        if own is None:
            assert surely <= names, "what was committed is not seen"
        for each in self.world.transactions:
            if each is own:
                assert mine <= names
                continue
            seen = {name for name, label in found if label == each.label} - self.world.perhaps
            if seen:
                assert each.state not in ("open", "lost"), f"rows of {each.label} are seen"
                assert seen == set(each.rows) - self.world.perhaps, f"some of {each.label} is seen"

    async def hook(self, safe: bool) -> None:
        block = inside.get()
        name = self.world.name()
        ran = self.world.ran

        def hook() -> None:
            ran.append(name)

        if safe:
            greenroom.loop_safe(hook)
        if block is None:
            self.world.perhaps.add(name)
        await self.call("plain", lambda: transaction.on_commit(hook))
        if block is None:
            self.world.perhaps.discard(name)
            self.world.ran_at_once.append(name)
        else:
            block.hooks.append(name)

    async def make_state(self, how: str) -> None:
        if connection.vendor != "postgresql" or inside.get() is not None:
            return
        self.making = True

        def make() -> None:
            with connection.cursor() as cursor:
                cursor.execute("SET app.tenant = %s", [self.name])

        await self.call(how, make)
        self.made = True

    async def see_state(self, how: str) -> None:
        if connection.vendor != "postgresql":
            return
        made = self.made

        def see() -> Any:
            with connection.cursor() as cursor:
                cursor.execute("SELECT current_setting('app.tenant', true)")
                return cursor.fetchone()[0]

        seen = await self.call(how, see)
        if made:
            assert seen == self.name
        elif self.making:
            assert seen in (None, "", self.name)
        else:
            assert seen in (None, "")

    async def group(self, bridged: bool, bodies: Any) -> None:
        async with asyncio.TaskGroup() as group:
            for with_bridge, body in bodies:
                fn = bridge.bridged(self.do) if with_bridge else self.do
                group.create_task(self.stepped(fn, body, with_bridge))

    async def block(
        self, bridged: bool, how: str, raises: bool, takes: int | None, body: Any
    ) -> None:
        outer = inside.get()
        block = Block(outer)
        if outer is None:
            block.label = self.world.name()
        entered = inside.set(block)
        try:
            if how == "plain" and bridged:
                with transaction.atomic():
                    await self.within(block, bridged, body, raises, takes)
            else:
                async with greenroom.atomic(durable=how == "durable" and outer is None):
                    await self.within(block, bridged, body, raises, takes)
        except Undo:
            block.state = "lost"
        except BaseException as exc:
            if block.state == "leaving" and isinstance(exc, asyncio.CancelledError):
                block.state = "unknown"
                if outer is not None:
                    self.world.parts.append(block)
            else:
                block.state = "lost"
            raise
        else:
            # As Django has it: a block in which a call of the ORM failed is rolled back in silence.
            block.state = "lost" if block.state == "broken" else "committed"
            if outer is not None and block.state == "committed":
                outer.rows += block.rows
                outer.hooks += block.hooks
                outer.bumps += block.bumps
        finally:
            inside.reset(entered)

    async def within(
        self, block: Block, bridged: bool, body: Any, raises: bool, takes: int | None
    ) -> None:
        if block.outer is None:
            self.world.transactions.append(block)
        await self.insert("plain")
        await self.hook(safe=takes is None)
        if takes is not None:
            await self.take(takes)
        await self.do(body, bridged)
        if raises:
            raise Undo
        block.state = "broken" if transaction.get_rollback() else "leaving"


def block_rows(block: Block | None) -> Iterator[str]:
    while block is not None:
        yield from block.rows
        block = block.outer


class World:
    """All requests of one program, and what they did."""

    def __init__(self) -> None:
        self.transactions: list[Block] = []
        # Blocks within one that was committed, which may have been rolled back.
        self.parts: list[Block] = []
        # Rows of no transaction that are there for certain; and of any, those that may be.
        self.surely: set[str] = set()
        self.perhaps: set[str] = set()
        # Increments likewise.
        self.bumped = self.perhaps_bumped = 0
        self.ran: list[str] = []
        self.ran_at_once: list[str] = []
        self._numbers = itertools.count(1)

    def name(self) -> str:
        return f"n{next(self._numbers)}"

    async def request(self, number: int, cancels: Any, steps: Any) -> None:
        request = Request(self, f"request{number}", cancels)
        home = loops.current()
        assert home is not None
        new_lane(home.threads)
        scope = borrow.begin(request.name)
        try:
            await request.stepped(bridge.bridged(request.do), steps, True)
        finally:
            borrow.leave(scope)

    async def run(self, programs: Any) -> None:
        """Run them all at once."""
        tasks = [
            asyncio.create_task(self.request(number, *program), name=f"r{number}")
            for number, program in enumerate(programs)
        ]
        try:
            async with asyncio.timeout(PATIENCE):
                results = await asyncio.gather(*tasks, return_exceptions=True)
                await self.settled()
        except TimeoutError:
            hang = [task for task in tasks if not task.done()]
            raise AssertionError(
                f"hangs: {hang}, {[vars(each) for each in borrow.pools()]}"
            ) from None
        for result in results:
            self.check_error(result)

    def check_error(self, error: Any) -> None:
        """A program may end by a cancellation or a time limit, and by nothing else."""
        if isinstance(error, BaseExceptionGroup):
            for each in error.exceptions:
                self.check_error(each)
        elif error is not None and not isinstance(error, asyncio.CancelledError | DatabaseError):
            raise error

    @staticmethod
    async def settled() -> None:
        """Wait for threads that go on, and cleaning; a connection that is lost hangs here."""
        while any(
            pool._loans or pool._tasks or pool._waiting or pool.size != len(pool._idle)
            for pool in borrow.pools()
        ):
            await asyncio.sleep(0.001)
        assert all(pool.size <= pool.limits.limit for pool in borrow.pools())

    def check(self, database: Any) -> None:
        """What is there, as seen by somebody else."""
        found = database.execute("SELECT name, tenant FROM shop_customer")
        names = [row[0] for row in found]
        assert len(set(names)) == len(names)
        rows, hooks = set(self.surely), list(self.ran_at_once)
        least, most = self.bumped, self.bumped + self.perhaps_bumped
        for each in (*self.transactions, *self.parts):
            there = set(each.rows) & set(names)
            assert there in (set(each.rows), set()), f"some of {each.label} is there"
            assert each.state != "committed" or there
            assert each.state != "lost" or not there, f"{each.label} was rolled back"
            if there:
                rows |= set(each.rows)
                hooks += each.hooks
                least += each.bumps
                most += each.bumps
        assert rows <= set(names) <= rows | self.perhaps
        assert sorted(name for name in self.ran if name not in self.perhaps) == sorted(hooks)
        ((value,),) = database.execute("SELECT value FROM shop_counter WHERE name = 'all'")
        assert least <= value <= most


hows = st.sampled_from(["plain", "plain", "async", "thread"])
places = st.sampled_from(["plain", "thread"])
leaves = st.one_of(
    st.tuples(st.just("sleep"), st.integers(1, 6)),
    st.tuples(st.just("insert"), hows),
    st.tuples(st.just("bump"), hows),
    st.tuples(st.just("read"), hows),
    st.tuples(st.just("hook"), st.booleans()),
    st.tuples(st.just("make_state"), places),
    st.tuples(st.just("see_state"), places),
)


def block_of(step: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.tuples(
        st.just("block"),
        st.sampled_from(["plain", "async", "durable"]),
        st.sampled_from([False, False, True]),
        # Whether it reads and then writes, and the turns of the loop between.
        st.sampled_from([None, None, 0, 3]),
        st.lists(step, max_size=4),
    )


def group_of(step: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    child = st.tuples(st.booleans(), st.lists(step, min_size=1, max_size=3))
    return st.tuples(st.just("group"), st.lists(child, min_size=1, max_size=3))


steps = st.recursive(leaves, lambda step: st.one_of(block_of(step), group_of(step)), max_leaves=12)
# Django's methods that wait in the midst of something, of which there are few in a program.
CONTROL = (
    "_commit",
    "_rollback",
    "_savepoint",
    "_savepoint_commit",
    "_savepoint_rollback",
    "set_autocommit",
)
often = st.sampled_from(["_commit", "set_autocommit"])
cancels = st.one_of(
    st.tuples(st.just("await"), st.integers(1, 60), st.booleans()),
    st.tuples(often, st.sampled_from([1, 1, 2]), st.booleans()),
    st.tuples(st.sampled_from(CONTROL), st.sampled_from([1, 1, 2]), st.booleans()),
)
programs = st.lists(
    st.tuples(
        st.lists(cancels, max_size=2),
        st.lists(st.one_of(steps, block_of(steps)), min_size=1, max_size=5),
    ),
    min_size=1,
    max_size=5,
)


@pytest.fixture(autouse=True)
def _control(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are told when one of those is called for them."""

    def told_of(name: str) -> Callable[..., Any]:
        original = getattr(BaseDatabaseWrapper, name)

        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            request = asks.get()
            if request is not None and asyncio._get_running_loop() is not None:
                request.passes(name)
            return original(self, *args, **kwargs)

        return method

    for name in CONTROL:
        monkeypatch.setattr(BaseDatabaseWrapper, name, told_of(name))


@pytest.fixture
def play(database: Any, caplog: pytest.LogCaptureFixture) -> Callable[..., None]:
    caplog.set_level(logging.ERROR, "greenroom")

    def play(programs: Any, seed: int, limit: int, timeout: float, mode: str | None) -> None:
        database.execute("DELETE FROM shop_customer")
        database.execute("DELETE FROM shop_counter")
        database.execute("INSERT INTO shop_counter (name, value) VALUES ('all', 0)")
        if database.vendor == "sqlite":
            database.change(OPTIONS={"timeout": 2, **({"transaction_mode": mode} if mode else {})})
        world = World()

        async def main(_: Any) -> None:
            try:
                await world.run(programs)
            finally:
                borrow.drain()

        limits = {"DB_MAX_CONNECTIONS": limit, "DB_TIMEOUT": timeout}
        with database.site(GREENROOM=limits, loop_factory=lambda: Shuffled(seed)) as site:
            site.run(main)
        world.check(database)
        # Such as that a request left a transaction open.
        said = [each.getMessage() for each in caplog.records if each.name.startswith("greenroom")]
        assert said == []

    return play


def examples(vendor: str) -> int:
    return PROGRAMS or {"sqlite": 50, "postgresql": 30}[vendor]


@pytest.mark.timeout(7200 if PROGRAMS else 120)
def test_requests_leave_what_they_would_leave_one_by_one(
    play: Callable[..., None], vendor: str
) -> None:
    @settings(
        max_examples=examples(vendor),
        deadline=None,
        database=None,
        phases=[Phase.generate, *([Phase.shrink] if PROGRAMS else [])],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        programs=programs,
        seed=st.integers(0, 2**16),
        limit=st.integers(1, 4),
        timeout=st.sampled_from([0.05, 3.0, 3.0, 3.0]),
        mode=st.sampled_from([None, "IMMEDIATE"]),
    )
    def example(programs: Any, seed: int, limit: int, timeout: float, mode: str | None) -> None:
        play(programs, seed, limit, timeout, mode)

    example()
