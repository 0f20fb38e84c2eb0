"""Attempts to lend one connection to two, to lose one, and to hang those that wait.

`request(fn)` is a request without Django's cycle: a task with a scope and a bridge.
After each test every connection is back in its pool, and nobody waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, OperationalError, connection, connections, transaction
from django.db.models.signals import post_save
from django.db.utils import load_backend

import greenroom
from greenroom import bridge, loops
from greenroom.crossing import new_lane
from greenroom.db import borrow, sqlite
from greenroom.errors import BridgeError
from orm import turns
from project.shop.models import Customer

Main = Callable[[], Coroutine[Any, Any, Any]]


def start(fn: Callable[[], Awaitable[Any]], name: str = "a request") -> asyncio.Task[Any]:
    async def whole() -> Any:
        home = loops.current()
        assert home is not None
        new_lane(home.threads)
        scope = borrow.begin(name)
        try:
            return await bridge.bridged(fn)()
        finally:
            borrow.leave(scope)

    return asyncio.create_task(whole(), name=name)


async def request(fn: Callable[[], Awaitable[Any]], name: str = "a request") -> Any:
    return await start(fn, name)


@pytest.fixture
def run(database: Any) -> Iterator[Callable[..., Any]]:
    """Runs a coroutine function on a loop, with the given limits."""

    def run(main: Main, loop_factory: Any = asyncio.new_event_loop, **greenroom: Any) -> Any:
        async def whole(_: Any) -> Any:
            borrow.drain()
            try:
                result = await main()
                await settled()
            finally:
                borrow.drain()
            return result

        limits = {"DB_TIMEOUT": 3, **greenroom}
        with database.site(GREENROOM=limits, loop_factory=loop_factory) as site:
            return site.run(whole)

    return run


async def settled() -> None:
    """Every connection is idle or gone."""
    for _ in range(200):
        if all(pool.size == len(pool._idle) for pool in borrow.pools()):
            break
        await asyncio.sleep(0.01)
    for pool in borrow.pools():
        assert not pool._loans
        assert not pool._waiting
        assert pool.size == len(pool._idle)


def names() -> list[str]:
    return list(Customer.objects.order_by("pk").values_list("name", flat=True))


def wrapper() -> Any:
    return connections["default"]


SLOW = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000) "
    "SELECT count(*) FROM n",
    "postgresql": "SELECT pg_sleep(0.4)",
}


# Blocks of tasks.


def test_a_block_waits_for_the_block_of_a_child(run: Any) -> None:
    async def view() -> None:
        inside = asyncio.Event()

        async def child() -> None:
            with transaction.atomic():
                Customer.objects.create(name="child")
                inside.set()
                await asyncio.sleep(0.05)
                Customer.objects.create(name="child again")

        async with greenroom.atomic():
            task = asyncio.create_task(bridge.bridged(child)())
            await inside.wait()
        await task
        assert not wrapper().blocks
        assert names() == ["child", "child again"]

    run(lambda: request(view))
    assert names() == ["child", "child again"]


def test_a_block_whose_child_never_ends_is_rolled_back(run: Any) -> None:
    """And what the child does later touches no other block."""

    async def view() -> None:
        inside, go = asyncio.Event(), asyncio.Event()

        async def child() -> None:
            with pytest.raises(DatabaseError), transaction.atomic():
                Customer.objects.create(name="child")
                inside.set()
                await go.wait()

        with pytest.raises(OperationalError, match="in an atomic block for"):
            async with greenroom.atomic():
                Customer.objects.create(name="lost")
                task = asyncio.create_task(bridge.bridged(child)())
                await inside.wait()
        async with greenroom.atomic():
            Customer.objects.create(name="kept")
            go.set()
            await task
            await asyncio.sleep(0)
            Customer.objects.create(name="kept too")
        assert names() == ["kept", "kept too"]

    run(lambda: request(view), DB_TIMEOUT=0.3)
    assert names() == ["kept", "kept too"]


def test_a_nested_block_whose_child_never_ends(run: Any) -> None:
    async def view() -> None:
        inside, go = asyncio.Event(), asyncio.Event()

        async def child() -> None:
            with transaction.atomic():
                inside.set()
                await go.wait()

        with pytest.raises(OperationalError):
            async with greenroom.atomic():
                Customer.objects.create(name="lost")
                async with greenroom.atomic():
                    task = asyncio.create_task(bridge.bridged(child)())
                    await inside.wait()
        go.set()
        with pytest.raises(DatabaseError):
            await task
        Customer.objects.create(name="kept")
        assert not wrapper().in_atomic_block

    run(lambda: request(view), DB_TIMEOUT=0.3)
    assert names() == ["kept"]


def test_a_block_that_outlives_its_request_is_not_said_to_be_committed(
    run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        inside, go, ran = asyncio.Event(), asyncio.Event(), []

        async def child() -> None:
            with transaction.atomic():
                Customer.objects.create(name="lost")
                transaction.on_commit(lambda: ran.append(1))
                inside.set()
                await go.wait()

        async def view() -> Any:
            task = asyncio.create_task(bridge.bridged(child)())
            await inside.wait()
            return task

        with caplog.at_level(logging.ERROR, "greenroom.db"):
            task = await request(view)
        assert "left a transaction open" in caplog.text
        go.set()
        with pytest.raises(DatabaseError, match="was rolled back before"):
            await task
        assert not ran

    run(main)
    assert names() == []


def test_a_hook_of_a_sibling_is_not_the_block_s(run: Any) -> None:
    """`on_commit` out of a block runs at once, whoever has a block open."""

    async def view() -> list[str]:
        ran: list[str] = []
        inside, go = asyncio.Event(), asyncio.Event()

        async def sibling() -> None:
            await inside.wait()
            transaction.on_commit(lambda: ran.append("sibling"))

        task = asyncio.create_task(bridge.bridged(sibling)())
        with contextlib.suppress(ZeroDivisionError):
            async with greenroom.atomic():
                Customer.objects.create(name="lost")
                inside.set()
                await turns(10)
                assert ran == []
                go.set()
                raise ZeroDivisionError
        await task
        return ran

    assert run(lambda: request(view)) == ["sibling"]


def test_a_cursor_from_before_waits_for_the_block_of_a_sibling(run: Any) -> None:
    """It has its connection already: each statement takes its turn."""

    async def view() -> None:
        ready, inside = asyncio.Event(), asyncio.Event()

        async def sibling() -> None:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
                ready.set()
                await inside.wait()
                cursor.execute("INSERT INTO shop_customer (name, tenant) VALUES ('kept', '')")

        task = asyncio.create_task(bridge.bridged(sibling)())
        await ready.wait()
        with contextlib.suppress(ZeroDivisionError):
            async with greenroom.atomic():
                Customer.objects.create(name="lost")
                inside.set()
                await turns(10)
                raise ZeroDivisionError
        await task

    run(lambda: request(view), DB_LEASE="request")
    assert names() == ["kept"]


def test_a_hook_runs_when_the_connection_is_free_for_others(run: Any) -> None:
    async def view() -> None:
        committed, done = threading.Event(), threading.Event()

        def hook() -> None:
            committed.set()
            assert done.wait(2), "a sibling could not query"

        async def sibling() -> None:
            while not committed.is_set():
                await asyncio.sleep(0.001)
            Customer.objects.count()
            done.set()

        task = asyncio.create_task(bridge.bridged(sibling)())
        async with greenroom.atomic():
            Customer.objects.create(name="a")
            transaction.on_commit(hook)
        await task

    run(lambda: request(view))


def test_an_error_of_a_sibling_does_not_break_the_block(run: Any) -> None:
    async def view() -> None:
        async def sibling() -> None:
            await inside.wait()
            with pytest.raises(OperationalError, match="in an atomic block for"):
                Customer.objects.create(name="sibling")

        inside = asyncio.Event()
        task = asyncio.create_task(bridge.bridged(sibling)())
        async with greenroom.atomic():
            Customer.objects.create(name="kept")
            inside.set()
            await task
            Customer.objects.create(name="kept too")

    run(lambda: request(view), DB_TIMEOUT=0.2)
    assert names() == ["kept", "kept too"]


# The end of a request.


@pytest.mark.parametrize("statement", ["reads", "writes"])
def test_a_statement_that_outlives_its_request_ends_before_its_connection_is_lent(
    run: Any, database: Any, statement: str
) -> None:
    if statement == "writes":
        query = {
            "sqlite": "INSERT INTO shop_customer (name, tenant) "
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000) "
            "SELECT 'late', '' FROM n WHERE i = 1000000",
            "postgresql": "INSERT INTO shop_customer (name, tenant) "
            "SELECT 'late', '' FROM pg_sleep(0.4)",
        }[database.vendor]
    else:
        query = SLOW[database.vendor]

    async def main() -> None:
        async def child() -> None:
            with connection.cursor() as cursor:
                cursor.execute(query)
                if statement == "reads":
                    assert len(cursor.fetchall()) == 1

        async def view() -> Any:
            Customer.objects.count()
            task = asyncio.create_task(bridge.bridged(child)())
            await turns(5)
            assert not task.done()
            assert wrapper().turns.holder is not None
            return task

        async def other() -> None:
            Customer.objects.create(name="other")

        task = await request(view)
        assert not task.done()
        (pool,) = borrow.pools()
        assert not pool._idle
        await request(other)
        assert task.done()
        await task

    run(main, DB_MAX_CONNECTIONS=1, DB_TIMEOUT=20)
    assert names() == (["late", "other"] if statement == "writes" else ["other"])


def test_a_request_that_ends_while_its_child_connects(run: Any) -> None:
    async def main() -> None:
        for count in range(12):

            async def child() -> None:
                with contextlib.suppress(DatabaseError):
                    Customer.objects.count()

            async def view(count: int = count) -> Any:
                tasks = [asyncio.create_task(bridge.bridged(child)()) for _ in range(3)]
                await turns(count)
                return tasks

            for task in await request(view):
                await task
            await settled()
            borrow.drain()

    run(main)


def test_a_child_that_waits_for_the_pool_when_its_request_ends(run: Any) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def holder() -> None:
            async with greenroom.atomic():
                Customer.objects.count()
                await go.wait()

        async def child() -> None:
            Customer.objects.count()

        async def view() -> Any:
            task = asyncio.create_task(bridge.bridged(child)())
            await turns(5)
            return task

        first = asyncio.create_task(request(holder))
        await asyncio.sleep(0.1)
        task = await request(view)
        go.set()
        await first
        with pytest.raises(DatabaseError, match="has ended"):
            await task

    run(main, DB_MAX_CONNECTIONS=1)


def test_what_refers_to_a_connection_that_is_being_cleaned_is_refused(
    run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Not only when it is another request's."""

    async def main() -> None:
        go = asyncio.Event()
        inside = asyncio.Event()

        async def child() -> str:
            raw = connection.connection
            inside.set()
            await go.wait()
            done = []
            for _ in range(30):
                try:
                    raw.cursor().execute("INSERT INTO shop_customer (name, tenant) VALUES ('x','')")
                    done.append("inserted")
                except Exception:
                    done.append("refused")
                await asyncio.sleep(0)
            return "".join(set(done))

        async def view() -> Any:
            with connection.cursor() as cursor:
                cursor.execute("BEGIN")
                cursor.execute("SELECT 1")
            task = asyncio.create_task(bridge.bridged(child)())
            await inside.wait()
            return task

        task = await request(view)
        go.set()
        assert await task == "refused"

    run(main)
    assert names() == []


@pytest.mark.skipif(sys.version_info < (3, 12), reason="a task tells its context from 3.12 on")
def test_cleaning_does_not_keep_the_request_s_context(run: Any) -> None:
    async def main() -> None:
        async def view() -> None:
            connection.cursor().execute("BEGIN")

        await request(view)
        (pool,) = borrow.pools()
        (task,) = pool._tasks
        assert not isinstance(task.get_context().get(borrow._scope), borrow.Scope)

    run(main)


def test_a_cleaning_that_is_cancelled_before_it_begins_loses_no_connection(run: Any) -> None:
    async def main() -> None:
        async def view() -> None:
            connection.cursor().execute("BEGIN")

        await request(view)
        (pool,) = borrow.pools()
        for task in list(pool._tasks):
            task.cancel()
        await turns(3)
        await settled()
        assert pool.size == 0

    run(main)


# Giving back.


def idle() -> int:
    return sum(len(pool._idle) for pool in borrow.pools())


def lent() -> int:
    return sum(len(pool._loans) for pool in borrow.pools())


def test_after_a_block_that_waited_the_connection_is_given_back(run: Any) -> None:
    async def view() -> None:
        async with greenroom.atomic():
            Customer.objects.create(name="a")
            await asyncio.sleep(0)
            assert lent() == 1
        await asyncio.sleep(0)
        assert lent() == 0
        with transaction.atomic():
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert lent() == 0

    run(lambda: request(view))


def test_after_a_block_in_a_bare_task_the_connection_is_given_back(run: Any) -> None:
    async def view() -> None:
        async def bare() -> None:
            async with greenroom.atomic():
                await Customer.objects.acreate(name="a")
                await asyncio.sleep(0)
                assert lent() == 1
            assert lent() == 0

        await asyncio.create_task(bare())

    run(lambda: request(view))


def test_after_a_long_result_the_connection_is_given_back(run: Any) -> None:
    async def view() -> None:
        Customer.objects.bulk_create(Customer(name=str(n)) for n in range(500))
        await asyncio.sleep(0)
        for number, _ in enumerate(Customer.objects.iterator(chunk_size=50)):
            if number == 150:
                await asyncio.sleep(0)
                assert lent() == 1
        await asyncio.sleep(0)
        assert lent() == 0

    run(lambda: request(view))


def test_two_tasks_that_connect_at_once_have_one_connection(run: Any) -> None:
    async def view() -> None:
        async def child() -> None:
            connection.ensure_connection()

        await asyncio.gather(*(bridge.bridged(child)() for _ in range(3)))
        assert lent() <= 1
        assert sum(pool.size for pool in borrow.pools()) == 1

    run(lambda: request(view))


def test_connecting_again_loses_no_connection(run: Any) -> None:
    """Django's `connect` takes for granted that there is none."""

    async def view() -> None:
        for _ in range(3):
            connection.connect()
        assert Customer.objects.count() == 0
        assert lent() == 1

    run(lambda: request(view), DB_MAX_CONNECTIONS=1)


def test_a_backend_that_fails_when_it_has_a_connection_loses_none(
    run: Any, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend: Any = load_backend(database.settings["ENGINE"]).DatabaseWrapper
    plain = borrow._class_for(backend).get_new_connection

    def fails(self: Any, params: Any) -> Any:
        plain(self, params)
        raise LookupError("what a backend does with a new connection")

    async def view() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(borrow._class_for(backend), "get_new_connection", fails)
            # As for a backend that has a method of its own.
            patch.setattr(borrow._class_for(backend), "attach", lambda self, connection: False)
            with pytest.raises(LookupError):
                connection.ensure_connection()
        assert lent() == 0
        assert Customer.objects.count() == 0

    run(lambda: request(view), DB_MAX_CONNECTIONS=1)


@pytest.mark.parametrize("how", ["to_thread", "not thread-sensitive"])
@pytest.mark.parametrize("in_block", [False, True])
def test_a_thread_of_whoever_gives_the_connection_back(run: Any, how: str, in_block: bool) -> None:
    def query() -> None:
        if in_block:
            with transaction.atomic():
                Customer.objects.count()
                assert lent() == 1
        assert Customer.objects.count() == 0

    async def view() -> None:
        if how == "to_thread":
            await asyncio.to_thread(query)
        else:
            await sync_to_async(query, thread_sensitive=False)()
        assert lent() == 0

    run(lambda: request(view))


# Waiting where nothing can wait.


def test_a_bare_task_never_blocks_the_loop(run: Any) -> None:
    async def view() -> None:
        inside = asyncio.Event()

        async def bare() -> None:
            await inside.wait()
            with pytest.raises(BridgeError, match="bridged"):
                transaction.atomic().__enter__()
            with pytest.raises(BridgeError, match="bridged"):
                transaction.on_commit(print)

        task = asyncio.create_task(bare())
        async with greenroom.atomic():
            Customer.objects.count()
            inside.set()
            before = asyncio.get_running_loop().time()
            await task
            assert asyncio.get_running_loop().time() - before < 1

    run(lambda: request(view))


def test_waiting_for_the_pool_is_cancelled_at_once(run: Any) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def holder() -> None:
            async with greenroom.atomic():
                Customer.objects.count()
                await go.wait()

        async def reads() -> None:
            Customer.objects.count()

        async def begins() -> None:
            with transaction.atomic():
                Customer.objects.create(name="never")

        first = asyncio.create_task(request(holder))
        await asyncio.sleep(0.1)
        for view in (reads, begins):
            task = start(view)
            await turns(5)
            (pool,) = borrow.pools()
            assert len(pool._waiting) == 1
            task.cancel()
            await turns(3)
            assert not pool._waiting
            with pytest.raises(asyncio.CancelledError):
                await task
        go.set()
        await first

    run(main, DB_MAX_CONNECTIONS=1)


def test_waiting_for_a_block_of_another_task_is_cancelled_at_once(run: Any) -> None:
    async def view() -> None:
        async def sibling() -> None:
            await inside.wait()
            with transaction.atomic():
                Customer.objects.create(name="never")

        inside = asyncio.Event()
        task = asyncio.create_task(bridge.bridged(sibling)())
        async with greenroom.atomic():
            Customer.objects.create(name="kept")
            inside.set()
            await turns(3)
            task.cancel()
            await turns(3)
            assert task.done()

    run(lambda: request(view))
    assert names() == ["kept"]


def test_a_cursor_after_a_connect_that_was_cancelled(run: Any) -> None:
    """It belongs to an earlier connection."""

    async def view() -> None:
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        await asyncio.sleep(0)
        for pool in borrow.pools():
            pool.close()

        async def child() -> None:
            connection.ensure_connection()

        task = asyncio.create_task(bridge.bridged(child)())
        await turns(2)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        cursor.execute("SELECT 2")
        assert cursor.fetchone() == (2,)

    run(lambda: request(view))


# Connections that end.


def test_a_connection_that_the_project_closed_itself_is_replaced(run: Any) -> None:
    async def view() -> None:
        Customer.objects.count()
        raw = connection.connection
        cursor = raw.cursor()
        raw.close()
        with pytest.raises(Exception, match="closed"):
            cursor.execute("SELECT 1")

    async def other() -> int:
        return Customer.objects.count()

    async def main() -> None:
        for _ in range(3):
            await request(view)
            await settled()
            assert await request(other) == 0

    run(main, DB_MAX_CONNECTIONS=1)


@pytest.mark.parametrize("vendor", ["postgresql"])
def test_a_connection_that_the_server_ended_is_not_lent(run: Any, database: Any) -> None:
    async def view() -> int:
        return Customer.objects.count()

    async def main() -> None:
        for _ in range(3):
            assert await request(view) == 0
            database.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s "
                "AND pid <> pg_backend_pid()",
                (database.settings["NAME"],),
            )
            await asyncio.sleep(0.1)

    run(main, DB_MAX_CONNECTIONS=1)


@pytest.mark.parametrize("connected", [True, False])
def test_a_task_that_is_thrown_away_in_a_statement(
    run: Any, database: Any, connected: bool
) -> None:
    """Its coroutine is closed, which must neither wait nor raise; nor lose a connection."""

    async def view() -> None:
        if connected:
            Customer.objects.count()

        def statement() -> None:
            with connection.cursor() as cursor:
                cursor.execute(SLOW[database.vendor])

        coroutine: Any = bridge.run(statement)
        coroutine.send(None)
        coroutine.close()

    async def other() -> int:
        return Customer.objects.count()

    async def main() -> None:
        await request(view)
        # A connection that is open and refers to nothing any more is a warning.
        gc.collect()
        assert await request(other) == 0

    run(main, DB_MAX_CONNECTIONS=1)


def test_a_block_of_a_child_is_not_left_to_the_thread_s_next_request(
    database: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """In placement thread the wrapper is the thread's: it ends with the block."""

    async def main(ask: Any) -> None:
        inside, go, tasks = asyncio.Event(), asyncio.Event(), []

        async def child() -> None:
            with transaction.atomic():
                Customer.objects.create(name="lost")
                inside.set()
                await go.wait()
                with pytest.raises(DatabaseError):
                    Customer.objects.create(name="lost too")

        async def leaves(request: Any) -> None:
            tasks.append(asyncio.create_task(bridge.bridged(child)()))
            await inside.wait()

        async def other(request: Any) -> None:
            assert not connection.in_atomic_block
            Customer.objects.create(name="kept")

        await ask(leaves)
        await ask(other)
        go.set()
        with pytest.raises(DatabaseError, match="was rolled back before"):
            await tasks[0]
        await ask(other)

    with caplog.at_level(logging.ERROR, "greenroom.db"):
        database.run(main, "thread", threads=1, GREENROOM={"DB_TIMEOUT": 2})
    assert "left a transaction open" in caplog.text
    assert names() == ["kept", "kept"]


@pytest.mark.parametrize("vendor", ["sqlite"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_process_does_not_wait_for_a_writer_of_its_parent(database: Any) -> None:
    turn = sqlite._writers_of(database.settings["NAME"])
    with turn:
        pid = os.fork()
        if not pid:
            os._exit(0 if sqlite._writers_of(database.settings["NAME"]).holder is None else 1)
        assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("vendor", ["postgresql"])
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT \"set_config\"('app.tenant', 'mine', false)",
        "SELECT pg_catalog.\"set_config\"('app.tenant', 'mine', false)",
        "SELECT set_config/* true */('app.tenant', 'mine', false)",
        "SELECT set_config('app.tenant', concat('mine', ''), false)",
        "SELECT set_config('app.other', '', true), set_config('app.tenant', 'mine', false)",
        "/* a /* b */ c */ SET app.tenant = 'mine'",
    ],
)
def test_session_state_however_it_is_written(run: Any, statement: str) -> None:
    async def makes() -> None:
        connection.cursor().execute(statement)
        await asyncio.sleep(0)
        assert current() == "mine"

    def current() -> Any:
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('app.tenant', true)")
            return cursor.fetchone()[0]

    async def other() -> Any:
        return current()

    async def main() -> None:
        await request(makes)
        assert await request(other) in ("", None)

    run(main, DB_MAX_CONNECTIONS=1)


# Threads, loops and eager tasks.


def create(name: str = "a") -> None:
    Customer.objects.create(name=name)


def test_a_call_on_a_thread_within_a_block_is_not_behind_one_that_waits_for_it(
    database: Any, placement: str
) -> None:
    """A request's calls run one at a time, in order; but not behind what waits for them."""
    running = 0

    def guarded(name: str) -> None:
        nonlocal running
        create(name)
        running += 1
        assert running == 1
        time.sleep(0.01)
        running -= 1

    async def view(request: Any) -> None:
        inside = asyncio.Event()

        async def sibling(name: str) -> None:
            await inside.wait()
            await sync_to_async(guarded)(name)

        tasks = [asyncio.create_task(sibling(f"sibling {number}")) for number in range(2)]
        async with greenroom.atomic():
            Customer.objects.count()
            inside.set()
            await asyncio.sleep(0.05)
            for name in ("first", "second"):
                await sync_to_async(guarded)(name)
        await asyncio.gather(*tasks)

    database.request(view, placement, threads=1, GREENROOM={"DB_TIMEOUT": 3})
    assert names() == ["first", "second", "sibling 0", "sibling 1"]


def test_a_receiver_within_a_block_is_not_behind_a_call_that_waits_for_it(
    database: Any, placement: str
) -> None:
    def receiver(**named: Any) -> None:
        Customer.objects.count()

    async def view(request: Any) -> None:
        inside = asyncio.Event()

        async def block() -> None:
            async with greenroom.atomic():
                await Customer.objects.acreate(name="in the block")
                inside.set()
                await asyncio.sleep(0.02)
                await Customer.objects.acreate(name="in the block")

        async def call() -> None:
            await inside.wait()
            await sync_to_async(create)("by the call")

        await asyncio.gather(block(), call())

    post_save.connect(receiver, sender=Customer, weak=False)
    try:
        database.request(view, placement, GREENROOM={"DB_TIMEOUT": 3})
    finally:
        post_save.disconnect(receiver, sender=Customer)
    assert names() == ["in the block"] * 2 + ["by the call"]


@pytest.mark.parametrize("holds", ["a block", "its session"])
def test_who_holds_a_connection_gets_a_thread_whoever_waits_for_one(
    database: Any, holds: str
) -> None:
    """All threads wait for the connection, and it for a thread."""
    if holds == "its session" and database.vendor == "sqlite":
        pytest.skip("one kind is enough")

    async def main(ask: Any) -> float:
        inside, went = asyncio.Event(), 0.0

        async def holder(request: Any) -> None:
            nonlocal went
            if holds == "its session":
                connection.cursor().execute("SET app.tenant = 'a'")
                await hold()
            else:
                async with greenroom.atomic():
                    create()
                    await hold()

        async def hold() -> None:
            nonlocal went
            inside.set()
            await asyncio.sleep(0.1)
            before = asyncio.get_running_loop().time()
            await sync_to_async(create)()
            went = asyncio.get_running_loop().time() - before

        async def waits(request: Any) -> None:
            await sync_to_async(create)()

        async with asyncio.TaskGroup() as group:
            group.create_task(ask(holder))
            await inside.wait()
            for _ in range(6):
                group.create_task(ask(waits))
        return went

    limits = {"DB_MAX_CONNECTIONS": 1, "DB_TIMEOUT": 5}
    assert database.run(main, threads=1, max_parked=2, GREENROOM=limits) < 2


@pytest.mark.parametrize("factory", ["eager", "lazy"])
def test_tasks_of_a_request_share_its_connection(
    run: Any, loop_factory: Callable[[], Any], factory: str
) -> None:
    """On both loops; an eager task begins in the greenlet of who made it."""
    if factory == "eager" and not hasattr(asyncio, "eager_task_factory"):
        pytest.skip("Python 3.12 has eager tasks")
    if factory == "eager" and loop_factory is not asyncio.new_event_loop:
        pytest.skip("uvloop has none")

    async def view() -> None:
        async def child(number: int) -> None:
            with transaction.atomic():
                made = Customer.objects.create(name=f"{number}")
                await asyncio.sleep(0)
                assert Customer.objects.filter(pk=made.pk).exists()
                if number % 2:
                    transaction.set_rollback(True)

        async def bare(number: int) -> None:
            async with greenroom.atomic():
                await Customer.objects.acreate(name=f"bare {number}")

        await asyncio.gather(
            *(bridge.bridged(child)(number) for number in range(6)), *map(bare, range(2))
        )

    async def main() -> None:
        if factory == "eager":
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        await asyncio.gather(request(view), request(view, "another"))
        asyncio.get_running_loop().set_task_factory(None)

    run(main, loop_factory=loop_factory, DB_MAX_CONNECTIONS=2)
    assert sorted(names()) == sorted(["0", "2", "4", "bare 0", "bare 1"] * 2)


def test_threads_that_ask_for_the_pool_at_once_have_the_same(database: Any) -> None:
    async def main() -> None:
        borrow.drain()
        made = []

        def ask_for() -> None:
            barrier.wait()
            made.append(borrow.pool_of(connection_of_a_scope))

        scope = borrow.begin("a request")
        connection_of_a_scope = wrapper()
        barrier = threading.Barrier(8)
        threads = [threading.Thread(target=ask_for) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        borrow.leave(scope)
        assert len({id(pool) for pool in made}) == 1
        borrow.drain()

    with database.site() as site:
        site.run(lambda site: main())
