"""What still refers to a connection that is no longer its own: an error, never another's rows."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction

import greenroom
from orm import Ask
from project.shop.models import Customer

# With one connection, whatever is stale refers to what the other request uses.
ONE = {"DB_MAX_CONNECTIONS": 1, "DB_TIMEOUT": 2}


def driver_errors() -> tuple[type[Exception], ...]:
    import sqlite3

    import psycopg

    return (psycopg.InterfaceError, psycopg.OperationalError, sqlite3.ProgrammingError)


def raw() -> Any:
    connection.ensure_connection()
    return connection.connection


def use(raw: Any) -> Any:
    cursor = raw.cursor()
    try:
        return cursor.execute("SELECT 1").fetchone()
    finally:
        cursor.close()


def test_a_raw_connection_over_a_suspension(database: Any) -> None:
    async def view(request: Any) -> None:
        kept = raw()
        assert use(kept)[0] == 1
        await asyncio.sleep(0)
        with pytest.raises(driver_errors(), match="given back"):
            use(kept)
        # The request itself goes on.
        assert Customer.objects.count() == 0

    database.request(view)


def test_a_raw_connection_in_a_transaction_is_ours(database: Any, placement: str) -> None:
    async def view(request: Any) -> None:
        async with greenroom.atomic():
            kept = raw()
            await asyncio.sleep(0)
            assert use(kept)[0] == 1

    database.request(view, placement)


def test_a_raw_cursor_over_a_suspension(database: Any) -> None:
    async def view(request: Any) -> None:
        kept = raw().cursor()
        kept.execute("SELECT 1")
        kept.fetchall()
        await asyncio.sleep(0)
        with pytest.raises(driver_errors(), match="given back"):
            kept.execute("SELECT 1")
        kept.close()

    database.request(view)


@pytest.mark.parametrize("what", ["connection", "cursor"])
def test_raw_in_another_request(database: Any, what: str) -> None:
    shelf: list[Any] = []

    async def keeps(request: Any) -> None:
        shelf.append(raw() if what == "connection" else raw().cursor())

    async def meanwhile(request: Any) -> None:
        # While another request has it.
        inside, gate = asyncio.Event(), asyncio.Event()

        async def holds(request: Any) -> None:
            async with greenroom.atomic():
                await Customer.objects.acount()
                inside.set()
                await gate.wait()

        task = asyncio.create_task(ask_(holds))
        await inside.wait()
        with pytest.raises(driver_errors(), match="given back"):
            if what == "connection":
                use(shelf[0])
            else:
                shelf[0].execute("SELECT 1")
        gate.set()
        await task

    async def main(ask: Ask) -> None:
        nonlocal ask_
        ask_ = ask
        await ask(keeps)
        await ask(meanwhile)
        if what == "cursor":
            shelf[0].close()

    ask_: Ask
    database.run(main, GREENROOM=ONE)


def test_a_cursor_wrapper_works_again(database: Any, placement: str) -> None:
    """In its own request: it finds itself a connection."""

    async def view(request: Any) -> None:
        with connection.cursor() as cursor:
            for index in range(4):
                cursor.execute("SELECT %s", [f"{index}"])
                assert cursor.fetchone()[0] == f"{index}"
                await asyncio.sleep(0.001)
            cursor.executemany(
                "INSERT INTO shop_customer (name, tenant) VALUES (%s, %s)",
                [("a", ""), ("b", "")],
            )
        assert await Customer.objects.acount() == 2

    async def other(request: Any) -> None:
        for _ in range(4):
            await Customer.objects.acount()
            await asyncio.sleep(0.001)

    async def main(ask: Ask) -> None:
        await asyncio.gather(ask(view), ask(other), ask(other))

    database.run(main, placement, GREENROOM=ONE)


def test_rows_that_were_not_fetched_keep_the_connection(database: Any) -> None:
    """psycopg has them all; SQLite has the first hundred ahead."""

    async def view(request: Any) -> list[int]:
        with connection.cursor() as cursor:
            cursor.execute(
                "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 300)"
                " SELECT n FROM t ORDER BY n"
            )
            found = []
            while (row := cursor.fetchone()) is not None:
                found.append(row[0])
                if row[0] % 50 == 0:
                    await asyncio.sleep(0.001)
            return found

    assert database.request(view) == list(range(1, 301))


def test_a_cursor_wrapper_after_its_request(database: Any) -> None:
    shelf: list[Any] = []

    async def keeps(request: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        cursor.fetchall()
        shelf.append(cursor)

    async def takes(request: Any) -> None:
        async with greenroom.atomic():
            await Customer.objects.acreate(name="a")
            with pytest.raises((DatabaseError, *driver_errors())):
                shelf[0].execute("DELETE FROM shop_customer")
            await Customer.objects.acreate(name="b")

    async def main(ask: Ask) -> None:
        await ask(keeps)
        await ask(takes)
        shelf.pop().close()

    database.run(main, GREENROOM=ONE)
    assert Customer.objects.count() == 2


def test_a_wrapper_after_its_request(database: Any) -> None:
    shelf: list[Any] = []

    async def keeps(request: Any) -> None:
        await Customer.objects.acount()
        from django.db import connections

        shelf.append(connections["default"])

    async def takes(request: Any) -> None:
        with pytest.raises(DatabaseError, match="which has ended"):
            shelf[0].cursor()
        with pytest.raises(DatabaseError, match="which has ended"), transaction.atomic():
            shelf[0].cursor()
        with pytest.raises(DatabaseError, match="which has ended"):
            shelf[0].commit()
        await Customer.objects.acreate(name="a")

    async def main(ask: Ask) -> None:
        await ask(keeps)
        await ask(takes)

    database.run(main, GREENROOM=ONE)


def test_a_wrapper_of_a_request_under_way(database: Any, placement: str) -> None:
    """Handed over, as by a module's variable, while its own request is in a transaction."""
    shelf: list[Any] = []

    async def lends(request: Any) -> None:
        from django.db import connections

        async with greenroom.atomic():
            await Customer.objects.acreate(name="a")
            shelf.append(connections["default"])
            held.set()
            await gate.wait()

    async def takes(request: Any) -> None:
        await held.wait()
        try:
            with pytest.raises(DatabaseError, match="belongs to GET '/call/lends"):
                shelf[0].cursor()
        finally:
            gate.set()

    async def main(ask: Ask) -> None:
        nonlocal held, gate
        held, gate = asyncio.Event(), asyncio.Event()
        await asyncio.gather(ask(lends), ask(takes))

    held: asyncio.Event
    gate: asyncio.Event
    database.run(main, placement)
    assert Customer.objects.count() == 1


def test_a_queryset_may_be_handed_on(database: Any) -> None:
    """It has no connection: whoever evaluates it uses his own."""
    shelf: list[Any] = []

    async def makes(request: Any) -> None:
        shelf.append(Customer.objects.filter(name="a"))
        assert not shelf[0].exists()

    async def evaluates(request: Any) -> None:
        async with greenroom.atomic():
            await Customer.objects.acreate(name="a")
            assert shelf[0].count() == 1
            assert [each.name async for each in shelf[0]] == ["a"]

    async def main(ask: Ask) -> None:
        await ask(makes)
        await ask(evaluates)

    database.run(main, GREENROOM=ONE)
