"""Each operation is cancelled, or loses its connection, at each of its awaits in turn.

After each, what it wrote is there as a whole or not at all, and its callbacks of `on_commit`
ran in the first case only; every connection is back in its pool; and the next request finds
one as if new: in no transaction, with no session state, no cursor and no notification.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import types
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, InterfaceError, connection, transaction

import greenroom
from greenroom import bridge, loops
from greenroom.crossing import new_lane
from greenroom.db import borrow
from project.shop.models import Counter, Customer

hooks: list[str] = []


class Undo(Exception):
    """Rolls a block back."""


def create(name: str) -> None:
    Customer.objects.create(name=name)


def fill(cursor: Any, number: int) -> None:
    cursor.execute("INSERT INTO shop_customer (name, tenant) VALUES (%s, '')", [f"{number}"])


# What is done. In a transaction three rows are written, and a hook is registered.


async def a_block() -> None:
    async with greenroom.atomic():
        await Customer.objects.acreate(name="1")
        transaction.on_commit(partial(hooks.append, "1"))
        with contextlib.suppress(Undo):
            async with greenroom.atomic():
                create("undone")
                raise Undo
        async with greenroom.atomic():
            create("2")
            await asyncio.sleep(0)
            with transaction.atomic(savepoint=False):
                create("3")


@greenroom.atomic
async def a_decorated_function() -> None:
    transaction.on_commit(greenroom.loop_safe(lambda: hooks.append("1")))
    await Customer.objects.abulk_create(Customer(name=f"{number}") for number in range(3))


async def calls_on_threads() -> None:
    async with greenroom.atomic():
        transaction.on_commit(partial(hooks.append, "1"))
        for number in range(3):
            await sync_to_async(create)(f"{number}")


async def children() -> None:
    async def child(number: int) -> None:
        async with greenroom.atomic():
            await Customer.objects.acreate(name=f"{number}")
            await asyncio.sleep(0)

    async with greenroom.atomic():
        transaction.on_commit(partial(hooks.append, "1"))
        async with asyncio.TaskGroup() as group:
            for number in range(3):
                make = greenroom.bridged(child) if number else child
                group.create_task(make(number))


async def two_requests_in_one() -> None:
    """What it does in autocommit, then a block, then autocommit."""
    await Counter.objects.acount()
    await asyncio.sleep(0)
    await a_block()
    await Counter.objects.acount()


async def without_autocommit() -> None:
    def sync() -> None:
        transaction.set_autocommit(False)
        try:
            for number in range(3):
                create(f"{number}")
            transaction.commit()
            hooks.append("1")
        finally:
            transaction.rollback()
            transaction.set_autocommit(True)

    await bridge.run(sync)


async def an_iterator() -> None:
    async with greenroom.atomic():
        await Customer.objects.abulk_create(Customer(name=f"{number}") for number in range(3))
        transaction.on_commit(partial(hooks.append, "1"))
        async for _ in Customer.objects.aiterator(chunk_size=1):
            await asyncio.sleep(0)
    for _ in Customer.objects.iterator(chunk_size=1):
        await asyncio.sleep(0)
        break


BOTH = [
    a_block,
    a_decorated_function,
    calls_on_threads,
    children,
    two_requests_in_one,
    without_autocommit,
    an_iterator,
]


async def copies() -> None:
    async with greenroom.atomic():
        transaction.on_commit(partial(hooks.append, "1"))
        with connection.cursor() as cursor:
            with cursor.copy("COPY shop_customer (name, tenant) FROM STDIN") as copy:
                for number in range(3):
                    copy.write_row((f"{number}", ""))
                    await asyncio.sleep(0)
            with cursor.copy("COPY (SELECT generate_series(1, 3000)) TO STDOUT") as copy:
                for count, _ in enumerate(copy):
                    if count % 1000 == 0:
                        await asyncio.sleep(0)


async def copies_in_autocommit() -> None:
    with connection.cursor() as cursor:
        with cursor.copy("COPY (SELECT generate_series(1, 3000)) TO STDOUT") as copy:
            for count, _ in enumerate(copy):
                if count % 1000 == 0:
                    await asyncio.sleep(0)
        with cursor.copy("COPY shop_customer (name, tenant) FROM STDIN") as copy:
            for number in range(3):
                copy.write_row((f"{number}", ""))
                await asyncio.sleep(0)
    hooks.append("1")


async def a_stream() -> None:
    with connection.cursor() as cursor:
        for count, _ in enumerate(cursor.stream("SELECT generate_series(1, 300)")):
            if count % 100 == 0:
                await asyncio.sleep(0)
            if count == 250:
                break


async def notifications() -> None:
    with connection.cursor() as cursor:
        cursor.execute("LISTEN news")
        cursor.execute("NOTIFY news, 'a'")
        found = list(connection.connection.notifies(timeout=0.02, stop_after=1))
        assert len(found) <= 1
        await asyncio.sleep(0)
        cursor.execute("NOTIFY news, 'b'")


async def a_session() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET app.tenant = 'mine'")
        cursor.execute("CREATE TEMP TABLE mine (a int)")
        cursor.execute("SELECT pg_advisory_lock(7)")
        cursor.execute("SET statement_timeout = '5s'")
        await asyncio.sleep(0)
        cursor.execute("SELECT current_setting('app.tenant')")
        assert cursor.fetchone() == ("mine",)


async def the_driver_s_transaction() -> None:
    connection.ensure_connection()
    with connection.connection.transaction(), connection.cursor() as cursor:
        for number in range(3):
            fill(cursor, number)
            await asyncio.sleep(0)
    hooks.append("1")


async def many_at_once() -> None:
    with connection.cursor() as cursor:
        async with greenroom.atomic():
            transaction.on_commit(partial(hooks.append, "1"))
            cursor.executemany(
                "INSERT INTO shop_customer (name, tenant) VALUES (%s, '')", [["1"], ["2"], ["3"]]
            )


POSTGRESQL = [
    copies,
    copies_in_autocommit,
    a_stream,
    notifications,
    a_session,
    the_driver_s_transaction,
    many_at_once,
]

CASES = [("sqlite", each) for each in BOTH] + [("postgresql", each) for each in BOTH + POSTGRESQL]


# Where.


def interrupted(
    coroutine: Coroutine[Any, Any, Any], number: int, then: Callable[[], object], times: int
) -> Coroutine[Any, Any, bool]:
    """Run it, and call `then` while it waits for the `number`-th time, and so many after that.

    Returns whether it came so far.
    """
    count = 0

    @types.coroutine
    def run() -> Any:
        nonlocal count
        send, value = coroutine.send, None
        while True:
            try:
                value = send(value)
            except StopIteration:
                return
            count += 1
            if number <= count < number + times:
                asyncio.get_running_loop().call_soon(then)
            try:
                value = yield value
            except BaseException as exc:
                send, value = coroutine.throw, exc
            else:
                send = coroutine.send

    async def whole() -> bool:
        try:
            await run()
        finally:
            coroutine.close()
        return count >= number

    return whole()


async def request(coroutine: Awaitable[Any]) -> Any:
    home = loops.current()
    assert home is not None
    new_lane(home.threads)
    scope = borrow.begin("a request")
    try:
        return await coroutine
    finally:
        borrow.leave(scope)


async def settled() -> None:
    async with asyncio.timeout(10):
        while any(
            pool._loans or pool._waiting or pool._tasks or pool.size != len(pool._idle)
            for pool in borrow.pools()
        ):
            await asyncio.sleep(0.001)


async def finds_it_as_new() -> None:
    """Another request, on the only connection."""
    assert not connection.in_atomic_block
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT current_setting('app.tenant', true), (SELECT count(*) FROM pg_cursors),"
                " (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'),"
                " (SELECT count(*) FROM pg_listening_channels()),"
                " (SELECT count(*) FROM pg_class WHERE relname = 'mine'),"
                " current_setting('statement_timeout')"
            )
            found = cursor.fetchone()
        assert found[0] in (None, "")
        assert found[1:] == (0, 0, 0, 0, "0")
        assert list(connection.connection.notifies(timeout=0)) == []
    ran = len(hooks)
    async with greenroom.atomic():
        await Counter.objects.acreate(name="after")
        transaction.on_commit(partial(hooks.append, "after"))
    assert hooks[ran:] == ["after"]
    hooks.pop()
    assert await Counter.objects.filter(name="after").adelete() == (1, {"shop.Counter": 1})


@pytest.mark.once
@pytest.mark.parametrize(("vendor", "what"), CASES)
@pytest.mark.parametrize(
    ("how", "lease"),
    [
        ("cancelled", "auto"),
        ("cancelled", "request"),
        ("cancelled twice", "auto"),
        ("terminated", "auto"),
    ],
)
def test_at_each_await(
    database: Any, what: Any, how: str, lease: str, caplog: pytest.LogCaptureFixture
) -> None:
    if how == "terminated" and (database.vendor == "sqlite" or what is many_at_once):
        pytest.skip("it has no server; psycopg's pipeline complains in a finaliser")
    raw = database.raw()
    ends: list[str] = []

    def terminate() -> None:
        raw.execute(
            "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    async def once(number: int) -> bool:
        hooks.clear()
        raw.execute("DELETE FROM shop_customer")
        times = 2 if how == "cancelled twice" else 1
        then = partial(lambda: task.cancel())
        body = bridge.bridged(what)()
        task = asyncio.create_task(
            request(interrupted(body, number, terminate if how == "terminated" else then, times))
        )
        await asyncio.wait([task], timeout=20)
        assert task.done(), f"hangs: {task!r}"
        more = True
        if task.cancelled():
            ends.append("cancelled")
        elif task.exception() is None:
            more = task.result()
            ends.append("done")
        else:
            errors: Any = task.exception()
            while isinstance(errors, BaseExceptionGroup):
                errors = errors.exceptions[0]
            ends.append(repr(errors))
            # The driver's own, where it is used without Django's cursor.
            expected = isinstance(errors, DatabaseError | InterfaceError | psycopg.Error)
            if how != "terminated" or not expected:
                raise errors
        await settled()
        rows = raw.execute("SELECT count(*) FROM shop_customer").fetchall()[0][0]
        unknown = how == "terminated" or "autocommit" in what.__name__ or "driver" in what.__name__
        assert rows in (0, 3), f"at {number}: {ends[-1]}"
        if hooks or not unknown:
            assert len(hooks) == (rows == 3), f"at {number}: {ends[-1]}"
        await request(bridge.bridged(finds_it_as_new)())
        await settled()
        return more

    async def main(_: Any) -> None:
        try:
            number = 1
            while await once(number):
                number += 1
                assert number < 500
        finally:
            borrow.drain()

    limits = {"DB_MAX_CONNECTIONS": 1, "DB_TIMEOUT": 3, "DB_LEASE": lease}
    with (
        caplog.at_level(logging.ERROR, "greenroom"),
        contextlib.closing(raw),
        database.site(GREENROOM=limits) as site,
    ):
        site.run(main)
    assert "done" in ends
    assert len(ends) > 3
    said = [each.getMessage() for each in caplog.records if each.name.startswith("greenroom")]
    if how != "terminated" and what is not without_autocommit:
        assert said == []
