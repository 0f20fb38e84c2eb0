"""Random programs of concurrent requests: what they leave is what they would leave one by one.

Every transaction writes rows of its own and registers hooks of its own. So its rows are
there, all of them, and its hooks were called once each, or neither; nobody ever saw some.
Every statement of its own is there if it came to its end. A request sees the session state
that it made, and no other's. And in the end every connection is back in its pool.

The order in which tasks go on is drawn, and each request may be cancelled after any number
of turns of the loop: in a statement, BEGIN, COMMIT, a savepoint, while it connects, or
waits for a connection or its turn.

``GREENROOM_ISOLATION=2000`` runs so many programs on each database.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, connection, transaction
from django.db.models import F
from hypothesis import HealthCheck, given, settings
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


class Request:
    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        # Whether its session state is surely, or perhaps, what it made.
        self.made = self.making = False

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

        if block is None or how == "thread":
            # A thread goes on when its task is cancelled, beyond the end of the block too.
            self.world.perhaps.add(name)
        if how == "async":
            await Customer.objects.acreate(name=name, tenant=label)
        else:
            await self.call(how, create)
        if block is None:
            self.world.surely.add(name)
        else:
            block.rows.append(name)

    async def bump(self, how: str) -> None:
        block = inside.get()
        if block is None or how == "thread":
            self.world.most += 1

        def bump() -> None:
            changed = Counter.objects.filter(name="all").update(value=F("value") + 1)
            assert changed == 1

        if how == "async":
            await Counter.objects.filter(name="all").aupdate(value=F("value") + 1)
        else:
            await self.call(how, bump)
        if block is None:
            self.world.least += 1
        else:
            block.bumps += 1
            if how == "thread":
                self.world.most -= 1

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
                group.create_task(fn(body, with_bridge))

    async def block(self, bridged: bool, how: str, raises: bool, body: Any) -> None:
        outer = inside.get()
        block = Block(outer)
        if outer is None:
            block.label = self.world.name()
        entered = inside.set(block)
        try:
            if how == "plain" and bridged:
                with transaction.atomic():
                    await self.within(block, bridged, body, raises)
            else:
                async with greenroom.atomic(durable=how == "durable" and outer is None):
                    await self.within(block, bridged, body, raises)
        except Undo:
            block.state = "lost"
        except BaseException as exc:
            if block.state == "leaving" and only_cancelled(exc):
                block.state = "unknown"
            else:
                block.state = "lost"
            raise
        else:
            block.state = "committed"
            if outer is not None:
                outer.rows += block.rows
                outer.hooks += block.hooks
                outer.bumps += block.bumps
        finally:
            inside.reset(entered)

    async def within(self, block: Block, bridged: bool, body: Any, raises: bool) -> None:
        if block.outer is None:
            self.world.transactions.append(block)
        await self.insert("plain")
        await self.do(body, bridged)
        if raises:
            raise Undo
        block.state = "leaving"


def block_rows(block: Block | None) -> Iterator[str]:
    while block is not None:
        yield from block.rows
        block = block.outer


def only_cancelled(exc: BaseException) -> bool:
    return isinstance(exc, asyncio.CancelledError)


class World:
    """All requests of one program, and what they did."""

    def __init__(self) -> None:
        self.transactions: list[Block] = []
        # Rows of no transaction: those that are there for certain, and those that may be.
        self.surely: set[str] = set()
        self.perhaps: set[str] = set()
        # Increments out of transactions.
        self.least = self.most = 0
        self.ran: list[str] = []
        self.ran_at_once: list[str] = []
        self._numbers = itertools.count(1)

    def name(self) -> str:
        return f"n{next(self._numbers)}"

    async def request(self, number: int, steps: Any) -> None:
        request = Request(self, f"request{number}")
        home = loops.current()
        assert home is not None
        new_lane(home.threads)
        scope = borrow.begin(request.name)
        try:
            await bridge.bridged(request.do)(steps, True)
        finally:
            borrow.leave(scope)

    async def run(self, programs: Any) -> None:
        """Run them all at once; cancel those that are to be."""
        tasks = []
        for number, (_, steps) in enumerate(programs):
            tasks.append(asyncio.create_task(self.request(number, steps), name=f"r{number}"))
        cancels = [
            asyncio.create_task(self.cancel(task, after))
            for task, (after, _) in zip(tasks, programs, strict=True)
            if after is not None
        ]
        try:
            async with asyncio.timeout(PATIENCE):
                results = await asyncio.gather(*tasks, return_exceptions=True)
                await asyncio.gather(*cancels)
                await self.settled()
        except TimeoutError:
            hang = [task for task in tasks if not task.done()]
            raise AssertionError(
                f"hangs: {hang}, {[vars(each) for each in borrow.pools()]}"
            ) from None
        for result in results:
            self.check_error(result)

    @staticmethod
    async def cancel(task: asyncio.Task[None], after: int) -> None:
        for _ in range(after):
            await asyncio.sleep(0)
        task.cancel()

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
        least, most = self.least, self.most
        for each in self.transactions:
            own = set(each.rows) - self.perhaps
            there = own & set(names)
            assert there in (own, set()), f"some of {each.label} is there"
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
steps = st.recursive(
    leaves,
    lambda step: st.one_of(
        st.tuples(
            st.just("block"),
            st.sampled_from(["plain", "async", "durable"]),
            st.sampled_from([False, False, True]),
            st.lists(step, max_size=4),
        ),
        st.tuples(
            st.just("group"),
            st.lists(
                st.tuples(st.booleans(), st.lists(step, min_size=1, max_size=3)),
                min_size=1,
                max_size=3,
            ),
        ),
    ),
    max_leaves=12,
)
programs = st.lists(
    st.tuples(
        # The turns of the loop until it is cancelled.
        st.one_of(st.none(), st.integers(0, 80)),
        st.lists(steps, min_size=1, max_size=5),
    ),
    min_size=1,
    max_size=5,
)


@pytest.fixture
def play(database: Any) -> Callable[..., None]:
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
