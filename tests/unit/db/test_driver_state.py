"""What a request sets on the driver's connection, or leaves there, is not seen by the next.

With one connection, the next request has the same.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.db import DatabaseError, close_old_connections, connection

from greenroom.db.postgresql import LASTING, makes_session_state
from orm import Ask, Database, turns
from project.shop.models import Customer

postgresql = pytest.mark.parametrize("vendor", ["postgresql"], indirect=True)
sqlite = pytest.mark.parametrize("vendor", ["sqlite"], indirect=True)

ONE = {"DB_MAX_CONNECTIONS": 1, "DB_TIMEOUT": 2}


def value(sql: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        row = cursor.fetchone()
        return row[0] if row else None


def raw() -> Any:
    connection.ensure_connection()
    return connection.connection


def seen(database: Database, sees: Callable[[], Any], does: Callable[[], Any], **more: Any) -> Any:
    """What is seen by a request before, and by one after, a request that does something."""

    async def before(request: Any) -> Any:
        return sees()

    async def view(request: Any) -> None:
        does()

    async def main(ask: Ask) -> Any:
        first = await ask(before)
        await ask(view)
        return first, await ask(before)

    return database.run(main, GREENROOM={**ONE, **more})


# PostgreSQL.


def psycopg_settings() -> dict[str, Callable[[Any], object]]:
    import psycopg
    from psycopg.rows import dict_row
    from psycopg.types.string import TextLoader

    class Loader(TextLoader):
        def load(self, data: Any) -> str:
            return "another"

    class Cursor(psycopg.Cursor[Any]):
        def fetchone(self) -> Any:
            return ("another",)

    def set_on(name: str, to: Any) -> Callable[[Any], object]:
        return lambda raw: setattr(raw, name, to)

    return {
        "row_factory": set_on("row_factory", dict_row),
        "cursor_factory": set_on("cursor_factory", Cursor),
        "cursor_factory, a function": set_on("cursor_factory", lambda *a, **k: Cursor(*a, **k)),
        "server_cursor_factory": set_on("server_cursor_factory", psycopg.RawServerCursor),
        "prepare_threshold": set_on("prepare_threshold", 0),
        "prepared_max": set_on("prepared_max", 1),
        "isolation_level": set_on("isolation_level", psycopg.IsolationLevel.SERIALIZABLE),
        "read_only": set_on("read_only", True),
        "loader": lambda raw: raw.adapters.register_loader("text", Loader),
        "notices": lambda raw: raw.add_notice_handler(print),
        "notifies": lambda raw: raw.add_notify_handler(print),
    }


@postgresql
@pytest.mark.parametrize("name", psycopg_settings())
def test_what_is_set_on_a_connection_of_psycopg(database: Database, name: str) -> None:
    def sees() -> Any:
        it = raw()
        named = ("row_factory", "cursor_factory", "server_cursor_factory", "prepare_threshold")
        named = (*named, "prepared_max", "isolation_level", "read_only")
        handlers = list(it._notice_handlers), list(it._notify_handlers)
        return value("SELECT 'a'::text"), handlers, [getattr(it, each) for each in named]

    before, after = seen(database, sees, lambda: psycopg_settings()[name](raw()))
    assert before == after
    assert before[0] == "a"


@postgresql
@pytest.mark.parametrize("name", ["cursor_factory", "cursor_factory, a function"])
def test_cursors_that_a_project_makes_are_watched(database: Database, name: str) -> None:
    def does() -> None:
        psycopg_settings()[name](raw())
        with raw().cursor() as cursor:
            cursor.execute("SELECT 1")
            assert cursor.fetchone() == ("another",)
            assert not raw().session_state
            cursor.execute("SET app.tenant = 'mine'")
        assert raw().session_state

    def sees() -> Any:
        return value("SELECT current_setting('app.tenant', true)") or ""

    before, after = seen(database, sees, does)
    assert before == after == ""


@postgresql
@pytest.mark.parametrize("how", ["ClientCursor", "Cursor", "a named cursor", "a function"])
def test_state_that_is_made_in_another_way(database: Database, how: str) -> None:
    """By a cursor that the connection's `cursor` didn't make; or, leased, in the server."""
    database.execute(
        "CREATE OR REPLACE FUNCTION become(name text) RETURNS void LANGUAGE sql AS"
        " $$ SELECT set_config('app.tenant', name, false) $$"
    )
    lease = "request" if how == "a function" else "auto"

    def does() -> None:
        import psycopg

        if how == "a function":
            value("SELECT become('mine')")
        elif how == "a named cursor":
            with raw().cursor("mine", withhold=True) as cursor:
                cursor.execute("SELECT generate_series(1, 5)")
                # It closes nothing, since that would wait where it is collected.
        else:
            getattr(psycopg, how)(raw()).execute("SET app.tenant = 'mine'")
            assert value("SELECT current_setting('app.tenant', true)") == "mine"

    def sees() -> Any:
        tenant = value("SELECT current_setting('app.tenant', true)")
        return tenant or "", value("SELECT name FROM pg_cursors")

    assert seen(database, sees, does, DB_LEASE=lease) == (("", None), ("", None))


@postgresql
def test_a_cursor_of_the_driver_with_rows_to_give_keeps_the_connection(database: Database) -> None:
    async def view(request: Any) -> list[Any]:
        with raw().cursor("mine", withhold=True) as cursor:
            cursor.execute("SELECT generate_series(1, 5)")
            await asyncio.sleep(0.001)
            return [row[0] for row in cursor.fetchall()]

    assert database.request(view, GREENROOM=ONE) == [1, 2, 3, 4, 5]


@postgresql
@pytest.mark.parametrize("statement", ["LOAD 'auto_explain'", "SELECT setseed(0.5)"])
def test_what_no_reset_undoes_ends_the_session(database: Database, statement: str) -> None:
    def sees() -> Any:
        return value("SELECT pg_backend_pid()")

    def does() -> None:
        with connection.cursor() as cursor:
            cursor.execute(statement)

    before, after = seen(database, sees, does)
    assert before != after


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE pg_catalog.pg_settings SET setting = 'a' WHERE name = 'search_path'", 1),
        ("SELECT set_config('a.b', 'x, true)', false)", 1),
        ("SELECT set_config('a.b', $$x, true)$$, false)", 1),
        ("SELECT set_config('a.b', E'\\', \\', true)', false)", 1),
        ("SELECT set_config('a.b', 'it''s', true)", 1),
        ("SELECT set_config('a.b', %s::text, true)", 0),
        ("SELECT set_config(%(name)s, $2, true)", 0),
        ("SELECT set_limit(0.3)", 1),
        ("/* a */ /* b */ -- c\n SET a.b = 1", 1),
        ("/* a /* b */ c */ SET a.b = 1", 1),
        ("-- */\nSET a.b = 1", 1),
        ("CREATE TABLE pg_temp_3.t (x int)", 1),
        ('SELECT "readings"."temp" FROM "readings"', 0),
        ("SELECT seed FROM t", 0),
        ("SET seed TO 0.5", LASTING),
        ("SELECT 1; load 'age'", LASTING),
        ("SELECT dblink_connect('a', '')", LASTING),
    ],
)
def test_what_is_found_in_a_statement(statement: str, expected: int) -> None:
    assert makes_session_state(statement) == expected


@pytest.mark.parametrize(
    "statement",
    [
        "/*a*/ " * 2_000 + "SELECT 1",
        "SELECT 1;\n" * 20_000,
        "INSERT INTO t VALUES " + "(%s, %s, %s), " * 20_000,
        "pg_settings " * 20_000,
        "set_config('a, " * 5_000,
    ],
    ids=["comments", "statements", "rows", "settings", "calls"],
)
def test_a_long_statement_is_looked_at_fast(statement: str) -> None:
    took = []
    for _ in range(3):
        began = time.perf_counter()
        makes_session_state(statement)
        took.append(time.perf_counter() - began)
    assert min(took) < 0.5


@postgresql
def test_close_old_connections_leaves_the_session(database: Database) -> None:
    database.change(CONN_MAX_AGE=None)

    async def view(request: Any) -> Any:
        value("SELECT set_config('app.tenant', 'mine', false)")
        close_old_connections()
        return value("SELECT current_setting('app.tenant', true)")

    try:
        assert database.request(view) == "mine"
    finally:
        database.change(CONN_MAX_AGE=0)


@postgresql
@pytest.mark.parametrize("state", [False, True])
def test_a_connection_that_is_lost_in_a_statement(database: Database, state: bool) -> None:
    """The next statement has another, unless the session had a state that would be missed."""

    async def task() -> list[str]:
        outcomes = []
        for number in range(4):
            try:
                with connection.cursor() as cursor:
                    if state and not number:
                        cursor.execute("SET app.tenant = 'mine'")
                    ends = "pg_terminate_backend(pg_backend_pid())" if number == 1 else "1"
                    cursor.execute(f"SELECT {ends}")
                outcomes.append("done")
            except DatabaseError:
                outcomes.append("lost")
            await asyncio.sleep(0)
        return outcomes

    async def main(ask: Ask) -> list[str]:
        from greenroom import bridged

        return await asyncio.create_task(bridged(task)())

    expected = ["done", "lost", "lost", "lost"] if state else ["done", "lost", "done", "done"]
    assert database.run(main, GREENROOM=ONE) == expected


@postgresql
def test_a_statement_is_cancelled_though_another_was_when_it_was_sent(database: Database) -> None:
    """psycopg sends BEGIN before it: it may be that which the server cancels, or nothing."""
    import psycopg

    def two(connection: Any) -> Any:
        for _ in range(2):
            try:
                yield from connection._exec_command(b"SELECT pg_sleep(30)")
            except psycopg.errors.QueryCanceled:
                continue

    async def view(request: Any) -> None:
        raw().wait(two(raw()))

    async def pid(request: Any) -> Any:
        return value("SELECT pg_backend_pid()")

    async def main(ask: Ask) -> None:
        before = await ask(pid)
        task = asyncio.create_task(ask(view))
        while not any("pg_sleep" in row.query for row in database.sessions()):
            await asyncio.sleep(0.01)
        began = time.monotonic()
        task.cancel()
        await asyncio.wait([task])
        assert time.monotonic() - began < 3
        assert await ask(pid) == before

    database.run(main, GREENROOM=ONE)


# SQLite.

SQLITE: dict[str, Callable[[Any], object]] = {
    "row_factory": lambda raw: setattr(raw, "row_factory", lambda cursor, row: {"a": row[0]}),
    "text_factory": lambda raw: setattr(raw, "text_factory", bytes),
    "function": lambda raw: raw.create_function("mine", 0, lambda: "mine"),
    "collation": lambda raw: raw.create_collation("mine", lambda one, other: 0),
    "authorizer": lambda raw: raw.set_authorizer(lambda *args: sqlite3.SQLITE_DENY),
}


@sqlite
@pytest.mark.parametrize("name", SQLITE)
def test_what_is_set_on_a_connection_of_sqlite(database: Database, name: str) -> None:
    def sees() -> Any:
        found = []
        for sql in ("SELECT 'a'", "SELECT mine()", "SELECT 'a' < 'b' COLLATE mine"):
            try:
                found.append(value(sql))
            except DatabaseError as exc:
                found.append(str(exc))
        return found

    before, after = seen(database, sees, lambda: SQLITE[name](raw()))
    assert before == after
    assert before[0] == "a"


@sqlite
def test_a_statement_of_sqlite_is_interrupted_whenever_it_is_cancelled(database: Database) -> None:
    """Also when its thread has not come to it yet: SQLite forgets what comes before."""

    async def view(request: Any) -> None:
        value(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000000)"
            " SELECT count(*) FROM n"
        )

    async def main(ask: Ask) -> None:
        async with asyncio.timeout(30):
            for count in range(0, 60, 4):
                task = asyncio.create_task(ask(view))
                await turns(count)
                task.cancel()
                await asyncio.wait([task])

    database.run(main, GREENROOM=ONE)


@sqlite
def test_a_common_table_expression_that_reads_is_no_writer(database: Database) -> None:
    async def main(ask: Ask) -> None:
        inside, gate = asyncio.Event(), asyncio.Event()

        async def writes(request: Any) -> None:
            from greenroom import atomic

            async with atomic():
                await Customer.objects.acreate(name="a")
                inside.set()
                await gate.wait()

        async def reads(request: Any) -> Any:
            return value("WITH t AS (SELECT 1 AS x) SELECT x FROM t")

        task = asyncio.create_task(ask(writes))
        await inside.wait()
        assert await ask(reads) == 1
        gate.set()
        await task

    database.run(main, GREENROOM={"DB_TIMEOUT": 1})
