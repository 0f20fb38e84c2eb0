"""What a request sets in its session of the database is seen by it alone, and to its end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connection

import greenroom
from greenroom.db.postgresql import makes_session_state
from orm import Ask
from project.shop.models import Customer

postgresql = pytest.mark.parametrize("vendor", ["postgresql"], indirect=True)
sqlite = pytest.mark.parametrize("vendor", ["sqlite"], indirect=True)


def value(sql: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        row = cursor.fetchone()
        return row[0] if row else None


def run(sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


# What makes it, what reads it, what it is where nobody made it.
STATE = {
    "set": ("SET app.tenant = 'a'", "SELECT current_setting('app.tenant', true)", ("", None)),
    "set session": (
        "/* a comment */ SET SESSION app.tenant = 'a'",
        "SELECT current_setting('app.tenant', true)",
        ("", None),
    ),
    "set_config": (
        "SELECT set_config('app.tenant', 'a', false)",
        "SELECT current_setting('app.tenant', true)",
        ("", None),
    ),
    "search_path": (
        "SET search_path TO pg_catalog",
        "SHOW search_path",
        ('"$user", public',),
    ),
    "role": ("SET ROLE pg_monitor", "SELECT current_user", ("postgres",)),
    "listen": ("LISTEN news", "SELECT pg_listening_channels()", (None,)),
    "temporary table": (
        "CREATE TEMP TABLE t AS SELECT 1 AS x",
        "SELECT to_regclass('t')::text",
        (None,),
    ),
    "select into temp": (
        "SELECT 1 AS x INTO TEMP t",
        "SELECT to_regclass('t')::text",
        (None,),
    ),
    "prepare": (
        "PREPARE p AS SELECT 1",
        "SELECT name FROM pg_prepared_statements WHERE name = 'p'",
        (None,),
    ),
    "advisory lock": (
        "SELECT pg_advisory_lock(7)",
        "SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        (None,),
    ),
    "in a block of code": (
        "DO $$ BEGIN PERFORM set_config('app.tenant', 'a', false); END $$",
        "SELECT current_setting('app.tenant', true)",
        ("", None),
    ),
    "after another statement": (
        "SELECT 1; SET app.tenant = 'a'",
        "SELECT current_setting('app.tenant', true)",
        ("", None),
    ),
    "in a transaction": (
        "BEGIN; SET app.tenant = 'a'; COMMIT",
        "SELECT current_setting('app.tenant', true)",
        ("", None),
    ),
    "holdable cursor": (
        "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
        "SELECT name FROM pg_cursors",
        (None,),
    ),
}


@postgresql
@pytest.mark.parametrize("name", STATE)
def test_state_stays_with_its_request_and_is_reset(database: Any, name: str) -> None:
    make, read, clean = STATE[name]

    async def makes(request: Any) -> Any:
        before = value(read), value("SELECT pg_backend_pid()")
        assert before[0] in clean
        run(make)
        made = value(read)
        assert made not in clean
        for _ in range(5):
            await asyncio.sleep(0.001)
            assert value(read) == made
            assert await sync_to_async(value)(read) == made
            assert value("SELECT pg_backend_pid()") == before[1]
        return before[1]

    async def reads(request: Any) -> Any:
        assert value(read) in clean
        return value("SELECT pg_backend_pid()")

    async def main(ask: Ask) -> None:
        pid = await ask(makes)
        # It is in a background task that it is reset; who comes meanwhile waits.
        assert await ask(reads) == pid
        # Beside it: another connection.
        first, second = await asyncio.gather(ask(makes), ask(makes))
        assert first == second

    database.run(main, GREENROOM={"DB_MAX_CONNECTIONS": 1, "DB_TIMEOUT": 3})


@postgresql
def test_set_local_pins_nothing(database: Any) -> None:
    async def view(request: Any) -> None:
        async with greenroom.atomic():
            run("SET LOCAL app.tenant = 'a'")
            await asyncio.sleep(0)
            assert value("SELECT current_setting('app.tenant')") == "a"
            run("SELECT set_config('app.tenant', 'b', true)")
            run("SELECT pg_advisory_xact_lock(1)")
        # The connection is free: with one, the other request gets it at once.
        done.set()
        await asyncio.sleep(0.3)

    async def main(ask: Ask) -> None:
        nonlocal done
        done = asyncio.Event()
        task = asyncio.create_task(ask(view))
        await done.wait()
        await ask(reads)
        assert not task.done()
        await task

    async def reads(request: Any) -> None:
        assert value("SELECT current_setting('app.tenant', true)") in ("", None)

    done: asyncio.Event
    database.run(main, GREENROOM={"DB_MAX_CONNECTIONS": 1, "DB_TIMEOUT": 0.2})


@pytest.mark.parametrize(
    "statement",
    [
        "select 1",
        "SET LOCAL a.b = 1",
        "set transaction isolation level serializable",
        "SET CONSTRAINTS ALL DEFERRED",
        "UPDATE settings SET value = 1",
        "SELECT set_config('a.b', %s, true)",
        "SELECT pg_advisory_xact_lock(1)",
        "PREPARE TRANSACTION 'x'",
        'INSERT INTO "template" ("set") VALUES (1)',
    ],
)
def test_what_makes_no_state(statement: str) -> None:
    assert not makes_session_state(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "set a.b = 1",
        "  -- a comment\n SET a.b = 1",
        "/* a */ /* b */\nset session a.b = 1",
        "SELECT 1;set a.b = 1",
        "(SELECT 1); RESET ALL",
        "SELECT set_config('a.b', %s, %s)",
        "SELECT pg_catalog.set_config('a.b', 'x', false)",
        "SELECT set_config(%s, %s, true), set_config(%s, %s, false)",
        "select pg_try_advisory_lock_shared(1)",
        "create local temporary table t (x int)",
        "CREATE TABLE pg_temp.t (x int)",
        "DISCARD PLANS",
        "CALL procedure()",
    ],
)
def test_what_makes_state(statement: str) -> None:
    assert makes_session_state(statement)


@postgresql
def test_a_lease_for_the_whole_request(database: Any) -> None:
    """For what can't be seen in the statement: a function of the server sets it."""
    database.execute(
        "CREATE OR REPLACE FUNCTION become(name text) RETURNS void LANGUAGE sql AS"
        " $$ SELECT set_config('app.tenant', name, false) $$"
    )

    def view_of(name: str) -> Any:
        async def view(request: Any) -> None:
            run(f"SELECT become('{name}')")
            for _ in range(5):
                await asyncio.sleep(0.001)
                assert value("SELECT current_setting('app.tenant')") == name

        return view

    async def main(ask: Ask) -> None:
        await asyncio.gather(*(ask(view_of(f"{index}")) for index in range(8)))

    database.run(main, GREENROOM={"DB_LEASE": "request", "DB_MAX_CONNECTIONS": 3})


@postgresql
def test_two_tenants_at_every_await(database: Any, placement: str) -> None:
    """By SET, each row belongs to the tenant of its session: never the other's."""
    schemas = [f"tenant_{index}" for index in range(2)]
    for schema in schemas:
        database.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
        database.execute(f"CREATE SCHEMA {schema}")
        database.execute(
            f"CREATE TABLE {schema}.shop_customer (LIKE public.shop_customer INCLUDING ALL)"
        )

    def view_of(index: int) -> Any:
        tenant = schemas[index % 2]

        async def view(request: Any) -> None:
            run(f"SET search_path TO {tenant}")
            for step in range(4):
                await asyncio.sleep(0)
                Customer.objects.create(name=f"{index}.{step}", tenant=tenant)
                await asyncio.sleep(0.001 * (index % 3))
                await Customer.objects.acreate(name=f"{index}.{step}a", tenant=tenant)
                found = await sync_to_async(list)(
                    Customer.objects.values_list("tenant", flat=True).distinct()
                )
                assert found == [tenant]
                assert (await Customer.objects.alatest("pk")).tenant == tenant

        return view

    async def main(ask: Ask) -> None:
        await asyncio.gather(*(ask(view_of(index)) for index in range(12)))

    try:
        database.run(main, placement, GREENROOM={"DB_MAX_CONNECTIONS": 3, "DB_TIMEOUT": 5})
        assert database.execute("SELECT count(*) FROM public.shop_customer")[0][0] == 0
        for schema in schemas:
            rows = database.execute(
                f"SELECT DISTINCT tenant, count(*) FROM {schema}.shop_customer GROUP BY 1"
            )
            assert [tuple(row) for row in rows] == [(schema, 48)]
    finally:
        for schema in schemas:
            database.execute(f"DROP SCHEMA {schema} CASCADE")


class TenantMiddleware:
    """As django-tenants: an attribute on the wrapper, and a SET in its session."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        tenant = request.META["HTTP_X_TENANT"]
        connection.tenant = tenant  # type: ignore[attr-defined]
        run(f"SELECT set_config('app.tenant', '{tenant}', false)")
        response = self.get_response(request)
        assert connection.tenant == tenant  # type: ignore[attr-defined]
        assert value("SELECT current_setting('app.tenant')") == tenant
        return response


@postgresql
def test_a_middleware_that_sets_a_tenant_on_the_connection(database: Any, placement: str) -> None:
    def seen() -> tuple[Any, Any]:
        return connection.tenant, value("SELECT current_setting('app.tenant')")  # type: ignore[attr-defined]

    def create(name: str) -> None:
        Customer.objects.create(name=name, tenant=connection.tenant)  # type: ignore[attr-defined]

    async def view(request: Any) -> None:
        tenant = request.META["HTTP_X_TENANT"]
        both = tenant, tenant
        for _ in range(4):
            assert seen() == both
            create(tenant)
            await asyncio.sleep(0)
            assert await sync_to_async(seen)() == both
            await sync_to_async(create)(tenant)
            await Customer.objects.acreate(name=tenant, tenant=connection.tenant)  # type: ignore[attr-defined]
            await asyncio.sleep(0.001)
            results = await asyncio.gather(child(), greenroom.bridged(child)())
            assert results == [both[0]] * 2

    async def child() -> Any:
        await Customer.objects.acount()
        return connection.tenant  # type: ignore[attr-defined]

    async def main(ask: Ask) -> None:
        await asyncio.gather(*(ask(view, HTTP_X_TENANT=f"t{index}") for index in range(8)))

    name = f"{TenantMiddleware.__module__}.TenantMiddleware"
    database.run(
        main,
        placement,
        middleware=(name,),
        GREENROOM={"LOOP_SAFE": [name], "DB_MAX_CONNECTIONS": 3},
    )
    assert Customer.objects.count() == 8 * 12
    assert all(each.name == each.tenant for each in Customer.objects.all())


@sqlite
def test_state_of_sqlite(database: Any) -> None:
    async def makes(request: Any) -> None:
        run("PRAGMA user_version")
        run("PRAGMA cache_size = 77")
        run("CREATE TEMP TABLE t (x)")
        await asyncio.sleep(0.001)
        assert value("PRAGMA cache_size") == 77
        assert value("SELECT count(*) FROM t") == 0

    async def reads(request: Any) -> None:
        assert value("PRAGMA cache_size") != 77
        assert value("SELECT count(*) FROM sqlite_temp_master") == 0

    async def main(ask: Ask) -> None:
        await ask(makes)
        await ask(reads)

    database.run(main, GREENROOM={"DB_MAX_CONNECTIONS": 1})
