"""Transactions of coroutine views: who is in them, and how they end."""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import (
    DatabaseError,
    IntegrityError,
    OperationalError,
    connection,
    connections,
    transaction,
)

import greenroom
from orm import Ask, Database, forget_wrapper, turns
from project.shop.models import Counter, Customer


def names() -> list[str]:
    return list(Customer.objects.order_by("pk").values_list("name", flat=True))


class Cancel:
    """Cancels the current task after so many turns of the loop."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.task = asyncio.current_task()

    def start(self) -> None:
        asyncio.get_running_loop().call_soon(self._turn)

    def stop(self) -> None:
        self.task = None

    def _turn(self) -> None:
        if self.task is not None and self.left == 0:
            self.task.cancel()
        elif self.task is not None:
            self.left -= 1
            self.start()


class Undo(Exception):
    """Rolls a block back."""


# Blocks.


def test_with_atomic_commits_and_rolls_back(database: Any, placement: str) -> None:
    async def view(request: Any) -> None:
        with transaction.atomic():
            Customer.objects.create(name="kept")
            await asyncio.sleep(0)
            await Customer.objects.acreate(name="kept too")
        with pytest.raises(Undo), transaction.atomic():
            Customer.objects.create(name="lost")
            await asyncio.sleep(0)
            await Customer.objects.acreate(name="lost too")
            raise Undo

    database.request(view, placement)
    assert names() == ["kept", "kept too"]


def test_async_with_atomic(database: Any, placement: str) -> None:
    async def view(request: Any) -> None:
        async with greenroom.atomic():
            Customer.objects.create(name="kept")
            await asyncio.sleep(0)
            assert connection.in_atomic_block
            with pytest.raises(Undo):
                async with greenroom.atomic():
                    await Customer.objects.acreate(name="lost")
                    raise Undo
            await Customer.objects.acreate(name="kept too")
        assert not connection.in_atomic_block

    database.request(view, placement)
    assert names() == ["kept", "kept too"]


def test_atomic_in_a_bare_child_task(database: Any, placement: str) -> None:
    async def child() -> None:
        async with greenroom.atomic():
            await Customer.objects.acreate(name="kept")
        with pytest.raises(Undo):
            async with greenroom.atomic():
                await Customer.objects.acreate(name="lost")
                raise Undo

    async def view(request: Any) -> None:
        await asyncio.create_task(child())

    database.request(view, placement)
    assert names() == ["kept"]


def test_atomic_as_a_decorator(database: Any, placement: str) -> None:
    @greenroom.atomic
    async def of_coroutine(name: str, undo: bool) -> str:
        await Customer.objects.acreate(name=name)
        assert connection.in_atomic_block
        if undo:
            raise Undo
        return name

    @greenroom.atomic(durable=True)
    def of_plain(name: str, undo: bool) -> str:
        Customer.objects.create(name=name)
        assert connection.in_atomic_block
        if undo:
            raise Undo
        return name

    async def view(request: Any) -> None:
        assert await of_coroutine("a", False) == "a"
        assert of_plain("b", False) == "b"
        with pytest.raises(Undo):
            await of_coroutine("c", True)
        with pytest.raises(Undo):
            of_plain("d", True)
        # The same decorated function in two tasks at once.
        await asyncio.gather(of_coroutine("e", False), of_coroutine("f", False))

    database.request(view, placement)
    assert sorted(names()) == ["a", "b", "e", "f"]


def test_atomic_on_a_loop_of_somebody_else(database: Any) -> None:
    """As in a test, or a script with `asyncio.run`: Django's calls are in the block there too."""

    async def main() -> None:
        # That thread is the process's, and may know the database of another test.
        await sync_to_async(forget_wrapper)()
        async with greenroom.atomic():
            await Customer.objects.acreate(name="kept")
        with pytest.raises(Undo):
            async with greenroom.atomic():
                await Customer.objects.acreate(name="lost")
                raise Undo
        for count in range(30):
            task = asyncio.create_task(block())
            await turns(count)
            task.cancel()
            await asyncio.wait([task])
        await sync_to_async(forget_wrapper)()

    async def block() -> None:
        async with greenroom.atomic():
            await Customer.objects.acreate(name="cancelled")
            await asyncio.sleep(1)

    asyncio.run(main())
    assert names() == ["kept"]


def test_durable_within_another_block_is_refused(database: Any, placement: str) -> None:
    async def view(request: Any) -> None:
        async with greenroom.atomic():
            with pytest.raises(RuntimeError, match="durable"):
                async with greenroom.atomic(durable=True):
                    pass
            await Customer.objects.acreate(name="goes on")

    database.request(view, placement)
    assert names() == ["goes on"]


def test_without_a_savepoint_the_outer_block_is_broken(database: Any, placement: str) -> None:
    async def view(request: Any) -> None:
        async with greenroom.atomic():
            await Customer.objects.acreate(name="lost")
            with pytest.raises(Undo):
                async with greenroom.atomic(savepoint=False):
                    raise Undo
            with pytest.raises(transaction.TransactionManagementError):
                await Customer.objects.acount()

    database.request(view, placement)
    assert names() == []


def test_nested_savepoints(database: Any, placement: str) -> None:
    async def view(request: Any) -> None:
        async with greenroom.atomic():
            for depth in range(4):
                await Customer.objects.acreate(name=f"{depth}")
                with pytest.raises(IntegrityError):
                    async with greenroom.atomic():
                        Customer.objects.create(name=f"lost {depth}")
                        async with greenroom.atomic():
                            await Counter.objects.acreate(name="once")
                            await asyncio.sleep(0)
                        Counter.objects.create(name="once")

    database.request(view, placement)
    assert names() == ["0", "1", "2", "3"]
    assert not Counter.objects.exists()


def test_atomic_requests(database: Any, placement: str) -> None:
    database.change(ATOMIC_REQUESTS=True)

    async def keeps(request: Any) -> None:
        await Customer.objects.acreate(name="kept")
        await asyncio.sleep(0)
        assert connection.in_atomic_block

    async def loses(request: Any) -> None:
        Customer.objects.create(name="lost")
        await asyncio.sleep(0)
        raise Undo

    async def main(ask: Ask) -> None:
        await ask(keeps)
        with pytest.raises(Undo):
            await ask(loses)

    database.run(main, placement)
    assert names() == ["kept"]


# Hooks.


def test_hooks_run_after_the_commit_in_order(database: Any, placement: str) -> None:
    ran: list[Any] = []

    def hook(name: str) -> Any:
        def call() -> None:
            # Of another connection: what is committed.
            rows = database.execute("SELECT count(*) FROM shop_customer")[0][0]
            ran.append((name, rows, connection.in_atomic_block))

        return call

    def broken() -> None:
        ran.append("broken")
        raise ValueError("robust")

    async def view(request: Any) -> Any:
        async with greenroom.atomic():
            Customer.objects.create(name="a")
            transaction.on_commit(hook("first"))
            await asyncio.sleep(0)
            transaction.on_commit(broken, robust=True)
            with pytest.raises(Undo):
                async with greenroom.atomic():
                    transaction.on_commit(hook("of a savepoint that was undone"))
                    raise Undo
            async with greenroom.atomic():
                transaction.on_commit(hook("second"))
            assert ran == []
        now = list(ran)
        with pytest.raises(Undo):
            async with greenroom.atomic():
                transaction.on_commit(hook("of a block that was undone"))
                raise Undo
        async with greenroom.atomic():
            pass
        transaction.on_commit(hook("at once"))
        return now

    assert database.request(view, placement) == [
        ("first", 1, False),
        "broken",
        ("second", 1, False),
    ]
    assert [each[0] for each in ran] == ["first", "b", "second", "at once"]


def test_a_hook_that_raises_is_raised_after_the_commit(database: Any, placement: str) -> None:
    def broken() -> None:
        raise LookupError("in the hook")

    async def view(request: Any) -> None:
        with pytest.raises(LookupError):
            async with greenroom.atomic():
                await Customer.objects.acreate(name="kept")
                transaction.on_commit(broken)
        # Nothing is left of it.
        async with greenroom.atomic():
            await Customer.objects.acreate(name="next")

    database.request(view, placement)
    assert names() == ["kept", "next"]


def test_a_hook_may_open_a_transaction(database: Any, placement: str) -> None:
    def hook() -> None:
        with transaction.atomic():
            Customer.objects.create(name="by the hook")
            transaction.on_commit(lambda: Customer.objects.create(name="by its hook"))

    async def view(request: Any) -> None:
        async with greenroom.atomic():
            await Customer.objects.acreate(name="a")
            transaction.on_commit(hook)

    database.request(view, placement)
    assert names() == ["a", "by the hook", "by its hook"]


# Rows that are locked.


@pytest.mark.parametrize("vendor", ["postgresql"], indirect=True)
def test_select_for_update_waits_on_the_loop(database: Any, placement: str) -> None:
    Counter.objects.create(name="a")

    async def view(request: Any) -> None:
        async with greenroom.atomic():
            row = Counter.objects.select_for_update().get(name="a")
            await asyncio.sleep(0.001)
            row.value += 1
            row.save()

    async def main(ask: Ask) -> None:
        await asyncio.gather(*(ask(view) for _ in range(20)))

    database.run(main, placement, GREENROOM={"DB_MAX_CONNECTIONS": 8})
    assert Counter.objects.get().value == 20


# Threads and child tasks of the request.


def test_code_on_a_thread_is_in_the_transaction(database: Any, placement: str) -> None:
    def on_thread() -> Any:
        Customer.objects.create(name="of the thread")
        return names(), connection.in_atomic_block, threading.current_thread().name

    async def view(request: Any) -> None:
        with pytest.raises(Undo):
            async with greenroom.atomic():
                Customer.objects.create(name="uncommitted")
                seen, in_block, thread = await sync_to_async(on_thread)()
                assert seen == ["uncommitted", "of the thread"]
                assert in_block
                assert thread.startswith("greenroom-")
                assert await Customer.objects.acount() == 2
                raise Undo

    database.request(view, placement)
    assert names() == []


def test_children_of_a_block_may_query_in_it(database: Any, placement: str) -> None:
    async def child(index: int) -> int:
        await Customer.objects.acreate(name=f"{index}")
        await asyncio.sleep(0)
        return await Customer.objects.acount()

    def plain(index: int) -> None:
        Customer.objects.create(name=f"{index}")

    async def bridged(index: int) -> None:
        plain(index)
        await asyncio.sleep(0)

    async def view(request: Any) -> None:
        with pytest.raises(Undo):
            async with greenroom.atomic():
                counts = await asyncio.gather(*(child(index) for index in range(5)))
                assert max(counts) == 5
                async with asyncio.TaskGroup() as group:
                    for index in range(5):
                        group.create_task(greenroom.bridged(bridged)(index))
                        group.create_task(sync_to_async(plain)(index))
                assert Customer.objects.count() == 15
                raise Undo

    database.request(view, placement)
    assert names() == []


def test_blocks_of_children_never_interleave(database: Any, placement: str) -> None:
    log: list[str] = []

    async def child(index: int, undo: bool) -> None:
        try:
            async with greenroom.atomic():
                log.append(f"in {index}")
                await Customer.objects.acreate(name=f"{index}a")
                await turns(index % 3)
                await Customer.objects.acreate(name=f"{index}b")
                log.append(f"out {index}")
                if undo:
                    raise Undo
        except Undo:
            pass

    async def view(request: Any) -> None:
        async with greenroom.atomic():
            await asyncio.gather(*(child(index, index % 2 == 1) for index in range(6)))

    database.request(view, placement)
    assert len(log) == 12
    for begin, end in zip(log[::2], log[1::2], strict=True):
        assert begin.split()[1] == end.split()[1]
    assert sorted(names()) == ["0a", "0b", "2a", "2b", "4a", "4b"]


def test_a_task_from_before_the_block_waits_for_its_end(database: Any, placement: str) -> None:
    async def view(request: Any) -> Any:
        gate = asyncio.Event()

        async def child() -> Any:
            await gate.wait()
            await Customer.objects.acreate(name="outside")
            return connection.in_atomic_block

        task = asyncio.create_task(child())
        await asyncio.sleep(0)
        with pytest.raises(Undo):
            async with greenroom.atomic():
                gate.set()
                await turns(5)
                await Customer.objects.acreate(name="lost")
                await turns(20)
                assert not task.done()
                raise Undo
        return await task

    assert database.request(view, placement) is False
    assert names() == ["outside"]


def test_the_end_of_a_block_waits_for_the_blocks_of_children(database: Any, placement: str) -> None:
    async def view(request: Any) -> None:
        inside, gate = asyncio.Event(), asyncio.Event()

        async def child() -> None:
            async with greenroom.atomic():
                await Customer.objects.acreate(name="child")
                inside.set()
                await gate.wait()
                await Customer.objects.acreate(name="child too")

        async with greenroom.atomic():
            await Customer.objects.acreate(name="parent")
            task = asyncio.create_task(child())
            await inside.wait()
            asyncio.get_running_loop().call_later(0.02, gate.set)
        assert task.done() or connection.in_atomic_block is False
        await task
        # The connection is in order.
        async with greenroom.atomic():
            await Customer.objects.acreate(name="after")

    database.request(view, placement)
    assert names() == ["parent", "child", "child too", "after"]


def test_a_block_of_a_child_that_does_not_end_is_named(database: Any, placement: str) -> None:
    async def view(request: Any) -> None:
        inside, gate = asyncio.Event(), asyncio.Event()

        async def child() -> None:
            async with greenroom.atomic():
                inside.set()
                await gate.wait()

        with pytest.raises(OperationalError, match="the task the-child"):
            async with greenroom.atomic():
                await Customer.objects.acreate(name="lost")
                task = asyncio.create_task(child(), name="the-child")
                await inside.wait()
        gate.set()
        with pytest.raises(DatabaseError):
            await task
        async with greenroom.atomic():
            await Customer.objects.acreate(name="after")

    database.request(view, placement, GREENROOM={"DB_TIMEOUT": 0.1})
    assert names() == ["after"]


def test_waiting_for_a_child_that_waits_for_the_block(database: Any, placement: str) -> None:
    """An error within the time limit, which names the holder, in the place of a deadlock."""

    async def view(request: Any) -> None:
        gate = asyncio.Event()

        async def child() -> None:
            await gate.wait()
            await Customer.objects.acount()

        task = asyncio.create_task(child())
        await asyncio.sleep(0)
        asyncio.current_task().set_name("the-parent")  # type: ignore[union-attr]
        began = time.monotonic()
        async with greenroom.atomic():
            await Customer.objects.acreate(name="a")
            gate.set()
            with pytest.raises(OperationalError) as caught:
                await task
        assert "the task the-parent" in str(caught.value)
        assert "in an atomic block for" in str(caught.value)
        assert time.monotonic() - began < 1

    database.request(view, placement, GREENROOM={"DB_TIMEOUT": 0.1})
    assert names() == ["a"]


@pytest.mark.parametrize("vendor", ["postgresql"], indirect=True)
def test_a_child_waits_while_the_statement_of_its_parent_does(
    database: Any, placement: str
) -> None:
    """Outside of a block: one statement at a time, and the wait has a limit."""

    async def view(request: Any) -> None:
        async def slow() -> None:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_sleep(0.4)")

        task = asyncio.create_task(greenroom.bridged(slow)(), name="the-slow-one")
        await asyncio.sleep(0.05)
        with pytest.raises(OperationalError, match="the-slow-one"):
            await Customer.objects.acount()
        await task
        assert await Customer.objects.acount() == 0

    database.request(view, placement, GREENROOM={"DB_TIMEOUT": 0.1})


# Cancellation.


def test_cancelled_at_every_turn(database: Any, placement: str, loop_factory: Any) -> None:
    """Whenever it comes: all of the block or nothing; its hook runs if it was committed."""
    hooks: list[str] = []

    def view_of(name: str) -> Any:
        async def view(request: Any) -> None:
            async with greenroom.atomic():
                Customer.objects.create(name=f"{name}a")
                transaction.on_commit(lambda: hooks.append(name))
                await asyncio.sleep(0)
                async with greenroom.atomic():
                    await Customer.objects.acreate(name=f"{name}b")
                await sync_to_async(Customer.objects.create)(name=f"{name}c")

        return view

    async def other(request: Any) -> None:
        async with greenroom.atomic():
            await Customer.objects.acreate(name="other")

    async def main(ask: Ask) -> int:
        cancelled = 0
        # Each of the first turns, and then fewer.
        count = 0
        while True:
            count += 1 + count // 20
            task = asyncio.create_task(ask(view_of(f"{count}")))
            for _ in range(count):
                if task.done():
                    break
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            cancelled += task.cancelled()
            if not task.cancelled():
                assert task.exception() is None
                break
        await ask(other)
        return cancelled

    limits = {"DB_MAX_CONNECTIONS": 2}
    cancelled = database.run(main, placement, loop_factory=loop_factory, GREENROOM=limits)
    assert cancelled > 5
    found = names()
    assert found[-1] == "other"
    whole = {each[:-1] for each in found[:-1]}
    assert sorted(found[:-1]) == sorted(f"{name}{part}" for name in whole for part in "abc")
    assert sorted(hooks) == sorted(whole)


def test_cancelled_in_commit_no_hook_is_left_for_the_next(database: Any, placement: str) -> None:
    """The dead hook of a cancelled COMMIT, run by an unrelated transaction after it."""
    hooks: list[Any] = []

    async def view(request: Any) -> Any:
        outcomes = []
        for index in range(60):
            hooks.clear()
            name = f"{index}"
            cancel = Cancel(index)
            committed = False
            try:
                async with greenroom.atomic():
                    await Customer.objects.acreate(name=name)
                    transaction.on_commit(partial(hooks.append, name))
                    cancel.start()
                committed = True
            except asyncio.CancelledError:
                asyncio.current_task().uncancel()
            cancel.stop()
            ran_before = list(hooks)
            # An unrelated transaction.
            async with greenroom.atomic():
                await Counter.objects.acount()
            assert hooks == ran_before
            exists = await Customer.objects.filter(name=name).aexists()
            assert hooks == ([name] if exists else [])
            outcomes.append((committed, exists))
        return outcomes

    outcomes = database.request(view, placement)
    # Somewhere the cancellation came during the COMMIT, which went on.
    assert (False, True) in outcomes


def test_timeout_in_commit(database: Any) -> None:
    """`asyncio.timeout` that fires in COMMIT: committed, hook once, TimeoutError raised."""
    hooks: list[str] = []

    async def view(request: Any) -> Any:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as limit:  # noqa: ASYNC100
                with transaction.atomic():
                    Customer.objects.create(name="a")
                    transaction.on_commit(lambda: hooks.append("a"))
                    limit.reschedule(asyncio.get_running_loop().time())
        with transaction.atomic():
            Customer.objects.create(name="b")
        return list(hooks)

    assert database.request(view) == ["a"]
    assert names() == ["a", "b"]
    assert hooks == ["a"]


@pytest.mark.parametrize("vendor", ["sqlite"], indirect=True)
def test_cancelled_while_begin_immediate_waits(database: Any, placement: str) -> None:
    database.change(OPTIONS={"transaction_mode": "IMMEDIATE", "timeout": 5})
    blocker = database.raw()
    try:
        blocker.execute("BEGIN IMMEDIATE")

        async def view(request: Any) -> None:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_later(0.05, task.cancel)
            asyncio.get_running_loop().call_later(0.1, blocker.rollback)
            with pytest.raises(asyncio.CancelledError):
                async with greenroom.atomic():
                    Customer.objects.create(name="never")
                    raise AssertionError("the block began")
            task.uncancel()
            assert not connection.in_atomic_block
            # Later writes stay.
            Customer.objects.create(name="kept")
            await Customer.objects.acreate(name="kept too")

        database.request(view, placement)
    finally:
        blocker.close()
    assert names() == ["kept", "kept too"]


@pytest.mark.parametrize("vendor", ["postgresql"], indirect=True)
def test_a_cancelled_statement_is_cancelled_in_the_server(database: Any) -> None:
    async def view(request: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(30)")

    async def main(ask: Ask) -> None:
        task = asyncio.create_task(ask(view))
        while not any("pg_sleep" in row.query for row in database.sessions()):
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task], timeout=3)
        assert task.cancelled()
        assert not any(row.state == "active" for row in database.sessions())

    database.run(main)


@pytest.mark.parametrize("vendor", ["sqlite"], indirect=True)
def test_a_cancelled_statement_of_sqlite_is_interrupted(database: Any) -> None:
    """SQLite may roll back what it interrupts: the rest of the block does nothing."""

    async def view(request: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        with pytest.raises(transaction.TransactionManagementError):
            async with greenroom.atomic():
                Customer.objects.create(name="lost")
                asyncio.get_running_loop().call_later(0.05, task.cancel)
                began = time.monotonic()
                with pytest.raises(asyncio.CancelledError), connection.cursor() as cursor:
                    cursor.execute(
                        "INSERT INTO shop_customer (name, tenant) WITH RECURSIVE t(n) AS"
                        " (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 100000000)"
                        " SELECT n, '' FROM t"
                    )
                task.uncancel()
                assert time.monotonic() - began < 5
                Customer.objects.create(name="lost too")
        await Customer.objects.acreate(name="kept")

    database.request(view)
    assert names() == ["kept"]


@pytest.mark.parametrize("vendor", ["postgresql"], indirect=True)
def test_a_cancelled_statement_breaks_the_block(database: Any) -> None:
    async def view(request: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        async with greenroom.atomic():
            Customer.objects.create(name="kept")
            with pytest.raises(asyncio.CancelledError):
                async with greenroom.atomic():
                    Customer.objects.create(name="lost")
                    asyncio.get_running_loop().call_later(0.02, task.cancel)
                    with connection.cursor() as cursor:
                        cursor.execute("SELECT pg_sleep(30)")
            task.uncancel()
            # Its savepoint was rolled back, and the block around it goes on.
            Customer.objects.create(name="kept too")

    database.request(view)
    assert names() == ["kept", "kept too"]


@pytest.mark.parametrize("how", ["a statement", "rows of a cursor"])
def test_a_cancellation_that_a_block_swallows_is_no_commit(
    database: Any, placement: str, how: str
) -> None:
    """What it ended in the server is told at the end of the block, and no hook runs."""
    if how == "rows of a cursor" and database.vendor == "sqlite":
        pytest.skip("what reads ends no transaction of SQLite")
    hooks: list[str] = []
    slow = (
        "SELECT pg_sleep(30)"
        if database.vendor == "postgresql"
        else "INSERT INTO shop_customer (name, tenant) WITH RECURSIVE t(n) AS"
        " (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 100000000) SELECT n, '' FROM t"
    )

    async def view(request: Any) -> None:
        with pytest.raises(transaction.TransactionManagementError, match="around the atomic block"):
            async with greenroom.atomic():
                Customer.objects.create(name="lost")
                transaction.on_commit(partial(hooks.append, "lost"))
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):  # noqa: ASYNC100
                        if how == "a statement":
                            connection.cursor().execute(slow)
                        else:
                            with connection.chunked_cursor() as rows:
                                rows.execute("SELECT 1 UNION ALL SELECT length(pg_sleep(30)::text)")
                                rows.fetchmany(2)
        async with greenroom.atomic():
            Customer.objects.create(name="kept")
            transaction.on_commit(partial(hooks.append, "kept"))

    database.request(view, placement)
    assert names() == hooks == ["kept"]


@pytest.mark.parametrize("vendor", ["postgresql"], indirect=True)
@pytest.mark.parametrize("lease", ["auto", "request"])
def test_what_was_cancelled_before_a_block_is_not_held_against_it(
    database: Any, lease: str
) -> None:
    """An error that a block swallows stays what it is in plain Django."""

    async def view(request: Any) -> None:
        with connection.cursor() as cursor, pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):  # noqa: ASYNC100
                cursor.execute("SELECT pg_sleep(30)")
        async with greenroom.atomic():
            with connection.cursor() as cursor, pytest.raises(DatabaseError):
                cursor.execute("SELECT 1 / 0")

    database.request(view, GREENROOM={"DB_LEASE": lease})


# Limits.


@pytest.mark.parametrize("vendor", ["postgresql"], indirect=True)
def test_no_connection_in_time_names_who_holds_them(database: Any) -> None:
    async def holder(request: Any) -> None:
        async with greenroom.atomic():
            Customer.objects.count()
            await asyncio.sleep(0.5)

    async def late(request: Any) -> None:
        with pytest.raises(OperationalError) as caught:
            Customer.objects.count()
        assert "All 2 are in use, by: GET '/call/holder-" in str(caught.value)
        assert "GREENROOM['DB_MAX_CONNECTIONS']" in str(caught.value)

    async def main(ask: Ask) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(ask(holder))
            group.create_task(ask(holder))
            await asyncio.sleep(0.1)
            group.create_task(ask(late))

    database.run(main, GREENROOM={"DB_MAX_CONNECTIONS": 2, "DB_TIMEOUT": 0.2})


@pytest.mark.parametrize("vendor", ["postgresql"], indirect=True)
def test_options_pool_is_honoured(database: Any) -> None:
    database.change(OPTIONS={"pool": {"min_size": 1, "max_size": 3, "timeout": 7}})

    async def view(request: Any) -> int:
        async with greenroom.atomic():
            Customer.objects.count()
            await asyncio.sleep(0.02)
            return len(database.sessions())

    async def main(ask: Ask) -> int:
        counts = await asyncio.gather(*(ask(view) for _ in range(9)))
        return max(counts)

    assert database.run(main) == 3


@pytest.mark.parametrize("vendor", ["postgresql"], indirect=True)
@pytest.mark.parametrize("key", ["max_idle", "kwargs", "open"])
def test_keys_of_options_pool_that_are_not_known_are_refused(database: Any, key: str) -> None:
    from django.core.exceptions import ImproperlyConfigured

    async def view(request: Any) -> None:
        Customer.objects.count()

    database.change(OPTIONS={"pool": {key: 1}})
    with pytest.raises(ImproperlyConfigured, match=key):
        database.request(view)
    database.settings["OPTIONS"] = {}


@pytest.mark.parametrize("vendor", ["postgresql"], indirect=True)
def test_cancelled_while_it_waits_for_a_connection(database: Any) -> None:
    """It goes at once, and takes no connection."""

    async def holder(request: Any) -> None:
        async with greenroom.atomic():
            Customer.objects.count()
            await asyncio.sleep(0.4)

    async def late(request: Any) -> None:
        Customer.objects.count()

    async def late_block(request: Any) -> None:
        async with greenroom.atomic():
            Customer.objects.count()

    async def main(ask: Ask) -> float:
        first = asyncio.create_task(ask(holder))
        await asyncio.sleep(0.05)
        tasks = [asyncio.create_task(ask(late)), asyncio.create_task(ask(late_block))]
        await asyncio.sleep(0.05)
        began = time.monotonic()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        took = time.monotonic() - began
        await first
        await ask(late)
        return took

    assert database.run(main, GREENROOM={"DB_MAX_CONNECTIONS": 1}) < 0.2


def test_a_connection_is_given_back_after_a_block_with_an_await(database: Any) -> None:
    """Not at the end of the request: here the other one needs it."""

    async def view(request: Any) -> None:
        async with greenroom.atomic():
            await Customer.objects.acreate(name="a")
            await asyncio.sleep(0)
        with transaction.atomic():
            Customer.objects.create(name="b")
            await asyncio.sleep(0)
        await asyncio.sleep(0.5)

    async def child(request: Any) -> None:
        async def inner() -> None:
            async with greenroom.atomic():
                await Customer.objects.acreate(name="c")
                await asyncio.sleep(0)
            await asyncio.sleep(0.5)

        await asyncio.create_task(inner())

    async def other(request: Any) -> None:
        await Customer.objects.acount()

    async def main(ask: Ask) -> None:
        for each in (view, child):
            task = asyncio.create_task(ask(each))
            await asyncio.sleep(0.1)
            await ask(other)
            assert not task.done()
            await task

    database.run(main, GREENROOM={"DB_MAX_CONNECTIONS": 1, "DB_TIMEOUT": 0.2})


def test_a_second_database(database: Any, placement: str) -> None:
    """`using`: each database has its own transaction."""
    connections.settings["other"] = {**database.settings}
    try:

        async def view(request: Any) -> None:
            async with greenroom.atomic(using="other"):
                await Customer.objects.using("other").acreate(name="kept")
                assert not connection.in_atomic_block
                assert connections["other"].in_atomic_block
            with pytest.raises(Undo):
                async with greenroom.atomic("other"):
                    await Customer.objects.using("other").acreate(name="lost")
                    assert await Customer.objects.acount() == 1
                    raise Undo

        database.request(view, placement)
    finally:
        connections["other"].close()
        del connections["other"]
        del connections.settings["other"]
    assert names() == ["kept"]


def test_a_cancelled_call_of_a_block_writes_nothing_after_the_rollback(
    database: Database, placement: str
) -> None:
    """It is on a thread, which can't be interrupted: the block waits for its end."""
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        Customer.objects.create(name="before")
        begun.set()
        assert go_on.wait(10)
        Customer.objects.create(name="after")

    async def view(request: Any) -> str:
        async def block() -> None:
            async with greenroom.atomic():
                await sync_to_async(slow)()

        task = asyncio.create_task(block())
        while not begun.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        asyncio.get_running_loop().call_later(0.05, go_on.set)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert go_on.is_set()
        return "cancelled"

    assert database.request(view, placement) == "cancelled"
    assert database.execute("SELECT name FROM shop_customer") == []


def test_a_call_of_a_block_that_was_not_begun_is_cancelled_at_once(database: Database) -> None:
    begun, go_on = threading.Event(), threading.Event()
    ran: list[str] = []

    def holds_the_thread() -> None:
        begun.set()
        assert go_on.wait(10)

    async def view(request: Any) -> None:
        async with greenroom.atomic():
            await Customer.objects.acreate(name="rolled back")
            first = asyncio.create_task(sync_to_async(holds_the_thread)())
            while not begun.is_set():
                await asyncio.sleep(0.001)
            second = asyncio.create_task(sync_to_async(ran.append)("second"))
            await asyncio.sleep(0.01)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            assert not go_on.is_set()
            go_on.set()
            await first

    database.request(view, "loop")
    assert ran == []
