"""What each query after an `await` costs less: a connection put beneath its wrapper again."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from asgiref.sync import SyncToAsync
from django.contrib.auth.models import Group
from django.db import connection, connections, transaction
from django.db.backends.signals import connection_created

from greenroom.db import borrow
from orm import Database
from project.shop.models import Customer

postgresql = pytest.mark.parametrize("vendor", ["postgresql"], indirect=True)


def wrapper() -> Any:
    return connections["default"]


async def connected() -> Any:
    """The wrapper, with a connection beneath it that an earlier one of it had."""
    Customer.objects.count()
    await asyncio.sleep(0)
    assert wrapper().connection is None
    wrapper().ensure_connection()
    return wrapper()


@postgresql
def test_a_wrapper_is_as_django_s_connect_leaves_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def view(request: Any) -> dict[str, Any]:
        found = await connected()
        assert found.attached is (not slowly)
        # Its parts refer to it, and clocks go on.
        return {
            name: value
            for name, value in vars(found).items()
            if type(value) in (bool, int, str, list, type(None)) and name != "lease"
        }

    slowly = False
    quick = database.request(view)
    slowly = True
    kind = borrow._class_of(database.settings["ENGINE"])
    monkeypatch.setattr(kind, "attach", lambda self, connection: False)
    slow = database.request(view)
    assert quick.pop("attached")
    assert not slow.pop("attached")
    assert quick == slow
    assert {"in_atomic_block", "closed_in_transaction", "run_on_commit", "autocommit"} <= set(quick)


@postgresql
@pytest.mark.parametrize("why", ["receivers", "OPTIONS", "TIME_ZONE", "AUTOCOMMIT", "DB_LEASE"])
def test_where_django_s_connect_does_more_it_is_called(database: Database, why: str) -> None:
    pytest.importorskip("psycopg")
    seen: list[Any] = []
    more: dict[str, Any] = {}

    def created(sender: Any, connection: Any, **kwargs: Any) -> None:
        seen.append(connection.alias)

    if why == "OPTIONS":
        from psycopg import IsolationLevel

        options = {**database.settings["OPTIONS"], "isolation_level": IsolationLevel.SERIALIZABLE}
        database.change(OPTIONS=options)
    elif why == "TIME_ZONE":
        database.change(TIME_ZONE="Asia/Tokyo")
    elif why == "AUTOCOMMIT":
        database.change(AUTOCOMMIT=False)
    elif why == "DB_LEASE":
        more["GREENROOM"] = {"DB_LEASE": "request"}
    else:
        connection_created.connect(created)

    async def view(request: Any) -> Any:
        wrapper().ensure_connection()
        assert not wrapper().attached
        if why == "receivers":
            await asyncio.sleep(0)
            wrapper().ensure_connection()
            return seen.count("default")
        if why == "OPTIONS":
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SHOW transaction_isolation")
                return cursor.fetchone()[0]
        if why == "TIME_ZONE":
            with connection.cursor() as cursor:
                cursor.execute("SHOW timezone")
                return cursor.fetchone()[0]
        return None

    try:
        for _ in range(2):
            seen.clear()
            found = database.request(view, **more)
            # (Off the loop, the receiver has been waited for.)
            expected = {"receivers": 2, "OPTIONS": "serializable", "TIME_ZONE": "Asia/Tokyo"}
            assert found == expected.get(why)
    finally:
        connection_created.disconnect(created)


@postgresql
def test_what_errors_left_is_looked_at_when_it_is_given_back(database: Database) -> None:
    async def view(request: Any) -> list[bool]:
        found = await connected()
        lent = found.connection
        found.errors_occurred = True
        await asyncio.sleep(0)
        assert found.connection is None
        return [lent.suspect, found.errors_occurred]

    assert database.request(view) == [True, False]


def test_django_s_a_calls_need_nothing_of_asgiref(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    init = SyncToAsync.__init__

    def noted(self: Any, func: Any, *args: Any, **kwargs: Any) -> None:
        made.append(func)
        init(self, func, *args, **kwargs)

    monkeypatch.setattr(SyncToAsync, "__init__", noted)

    async def view(request: Any) -> list[Any]:
        made.clear()
        group = await Group.objects.acreate(name="one")
        assert (await Group.objects.aget(pk=group.pk)).name == "one"
        assert [each async for each in Group.objects.all()] == [group]
        await group.permissions.aset([])
        await group.arefresh_from_db()
        await group.asave()
        await group.adelete()
        return made

    assert database.request(view) == []


def test_an_error_of_an_a_call_is_raised_as_it_is(database: Database) -> None:
    async def view(request: Any) -> list[bool]:
        try:
            raise LookupError("first")
        except LookupError as first:
            with pytest.raises(Group.DoesNotExist) as caught:
                await Group.objects.aget(name="none")
            return [caught.value.__context__ is first, sys.exc_info()[1] is first]

    assert database.request(view) == [True, True]
