"""Backends of third parties, and databases that can't be waited for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, connections
from django.db.backends.signals import connection_created

from driver import Site
from greenroom.db import borrow
from orm import Database, forget_wrapper
from project.own_backend import base
from project.shop.models import Customer


@pytest.fixture
def own(database: Database) -> Database:
    if database.vendor != "postgresql":
        pytest.skip("it is a subclass of the one for PostgreSQL")
    database.change(ENGINE="project.own_backend")
    base.made.clear()
    return database


def test_a_subclass_of_django_s_backend_keeps_its_ways(own: Database, placement: str) -> None:
    seen: list[Any] = []

    def created(sender: Any, connection: Any, **kwargs: Any) -> None:
        seen.append((sender, isinstance(connection, base.DatabaseWrapper)))

    async def view(request: Any) -> list[Any]:
        await Customer.objects.acreate(name="one")
        await asyncio.sleep(0.01)
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            pid = cursor.fetchone()[0]
        wrapper: Any = connections["default"]
        return [pid == wrapper.prepared, wrapper.display_name, wrapper.__class__]

    connection_created.connect(created, sender=base.DatabaseWrapper)
    try:
        assert own.request(view, placement) == [True, "Our PostgreSQL", base.DatabaseWrapper]
    finally:
        connection_created.disconnect(created, sender=base.DatabaseWrapper)
    # On the loop it was given back while the view slept, through its own `_close`.
    assert len(base.made) >= (2 if placement == "loop" else 1)
    assert seen
    assert set(seen) == {(base.DatabaseWrapper, True)}


def test_a_tool_that_makes_cursors_of_the_class_of_one(database: Database, placement: str) -> None:
    """As debug-toolbar does: it puts methods of its own before those of the class."""

    async def view(request: Any) -> list[Any]:
        with connection.cursor() as cursor:
            kind = type("Traced", (type(cursor),), {})
            traced = kind(cursor.cursor, cursor.db)
            traced.execute("SELECT 1")
            first = traced.fetchone()[0]
            # On the loop its connection is given back meanwhile.
            await asyncio.sleep(0.01)
            traced.execute("SELECT 2")
            return [first, traced.fetchone()[0]]

    assert database.request(view, placement) == [1, 2]


def test_a_project_that_has_no_database(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Django has a wrapper for it all the same, which somebody may look at."""
    dummy = {**connections.settings["default"], "ENGINE": "django.db.backends.dummy"}
    monkeypatch.setitem(connections.settings, "none", dummy)

    async def main(site: Site) -> bool:
        scope = borrow.begin("a test")
        assert connections["none"].alias == "none"
        held = scope.suspend()
        scope.close()
        return held

    with Site("loop") as site:
        assert site.run(main) is False
    assert not caplog.records


def test_a_database_in_memory_stays_on_threads(database: Database) -> None:
    if database.vendor != "sqlite":
        pytest.skip("PostgreSQL has none")
    database.change(NAME="file:stays?mode=memory&cache=shared")

    def plain() -> str:
        try:
            return str(Customer.objects.count())
        except SynchronousOnlyOperation as exc:
            return str(exc)

    async def view(request: Any) -> tuple[str, int]:
        return plain(), await connection_answers()

    async def connection_answers() -> int:
        from asgiref.sync import sync_to_async

        def ask() -> int:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
                answer = int(cursor.fetchone()[0])
            # Django never closes one in memory.
            connections["default"].connection.close()
            return answer

        return await sync_to_async(ask)()

    refused, answer = database.request(view, "auto")
    assert refused.startswith("The database 'default' is in memory, where connections don't")
    assert "use the a… calls of the ORM, or sync_to_async" in refused
    assert answer == 1
    forget_wrapper()
