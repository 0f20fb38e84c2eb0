"""Cursors are made, and rows fetched, by a shorter way than Django's: nobody is passed over."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import Error, connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper
from django.db.models import F
from django.db.utils import load_backend

import greenroom
from greenroom import bridge
from greenroom.db import borrow
from orm import Database
from project.shop.models import Counter, Customer


def query() -> Any:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        return cursor.fetchone()[0]


def in_view(database: Database, placement: str, fn: Callable[[], Any]) -> Any:
    """What it returns in a request that has a connection."""

    async def view(request: Any) -> Any:
        assert query() == 1
        return fn()

    return database.request(view, placement)


# What somebody puts in the place of Django's methods, or of a backend's.

REPLACED = ["cursor", "_cursor", "_prepare_cursor", "ensure_connection", "make_cursor"]


@pytest.mark.parametrize("name", REPLACED)
@pytest.mark.parametrize("where", ["Django's class", "the wrapper"])
def test_a_method_that_a_tool_replaced_is_called(
    database: Database, placement: str, name: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "the wrapper" and name == "_prepare_cursor":
        pytest.skip("private")
    calls: list[str] = []

    def replace() -> None:
        wrapper: Any = connections["default"]
        original = getattr(BaseDatabaseWrapper if where == "Django's class" else wrapper, name)

        def replacement(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return original(*args, **kwargs)

        target = BaseDatabaseWrapper if where == "Django's class" else wrapper
        monkeypatch.setattr(target, name, replacement)

    def fn() -> None:
        replace()
        try:
            assert query() == 1
        finally:
            monkeypatch.undo()
        assert calls
        calls.clear()
        assert query() == 1
        assert not calls

    in_view(database, placement, fn)


def test_a_database_that_is_forbidden(
    database: Database, placement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pytest-django forbids it."""

    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("Database access not allowed")

    def fn() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(BaseDatabaseWrapper, "ensure_connection", forbidden)
            with pytest.raises(RuntimeError, match="not allowed"):
                Customer.objects.count()
        assert Customer.objects.count() == 0

    in_view(database, placement, fn)


@pytest.fixture
def backend(database: Database) -> Any:
    """A class like the backend's, of a third party."""
    original = load_backend(database.settings["ENGINE"]).DatabaseWrapper

    class DatabaseWrapper(original):
        pass

    return DatabaseWrapper


def calls_of(backend: Any, database: Database, fn: Callable[[], Any]) -> Any:
    """Call it on a thread with a wrapper of that class, as one serves a request."""
    borrow.begin("a test", own=True)
    try:
        wrapper = borrow._class_for(backend)(connections.settings["default"], "default")
        wrapper.scope = borrow.current()
        connections["default"] = wrapper
        try:
            query()
            return fn()
        finally:
            wrapper.close()
            del connections["default"]
    finally:
        borrow.forget()


@pytest.mark.parametrize("name", [*REPLACED, "create_cursor"])
def test_a_method_of_a_backend_is_called(backend: Any, database: Database, name: str) -> None:
    """One sets a search path whenever a cursor is made."""
    if name == "create_cursor" and database.vendor == "sqlite":
        pytest.skip("ours makes another one")
    calls: list[str] = []
    original = getattr(backend, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return original(self, *args, **kwargs)

    setattr(backend, name, method)

    def fn() -> int:
        calls.clear()
        query()
        return len(calls)

    assert calls_of(backend, database, fn) >= 1


@pytest.mark.parametrize("how", ["__getattr__", "fetchone", "_execute", "close"])
def test_a_cursor_class_of_a_backend(backend: Any, database: Database, how: str) -> None:
    calls: list[str] = []

    class Cursor(CursorWrapper):
        pass

    def noted(self: Any, *args: Any) -> Any:
        calls.append(how)
        if how == "__getattr__":
            return getattr(self.cursor, *args)
        if how == "_execute":
            # All that Django gives it.
            sql, params, many, context = args
            assert context["cursor"] is self
            return CursorWrapper._execute(self, sql, params, many, context)  # type: ignore[attr-defined]
        return getattr(self.cursor, how)(*args)

    setattr(Cursor, how, noted)
    backend.make_cursor = lambda self, cursor: Cursor(cursor, self)
    calls_of(backend, database, query)
    assert calls


def test_on_the_loop_outside_of_a_bridge_no_cursor_is_made(database: Database) -> None:
    async def main(ask: Any) -> None:
        wrapper: list[Any] = []

        async def view(request: Any) -> None:
            query()
            wrapper.append(connections["default"])

            async def bare() -> None:
                with pytest.raises(SynchronousOnlyOperation):
                    wrapper[0].cursor()

            await asyncio.create_task(bare())

        await ask(view)

    database.run(main, "loop")


# Rows.


def test_rows_are_fetched_as_ever(database: Database, placement: str) -> None:
    def fn() -> list[Any]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 UNION SELECT 2 UNION SELECT 3 UNION SELECT 4 ORDER BY 1")
            found = [cursor.fetchone(), cursor.fetchmany(2), cursor.fetchall(), cursor.fetchone()]
            cursor.execute("SELECT 5")
            found.append(cursor.fetchmany(size=3))
            cursor.execute("SELECT 6")
            found.append(list(cursor))
            return [*found, cursor.description is None]

    rows = in_view(database, placement, fn)
    assert rows == [(1,), [(2,), (3,)], [(4,)], None, [(5,)], [(6,)], False]


@pytest.mark.parametrize("vendor", ["postgresql"])
@pytest.mark.parametrize("fetch", ["fetchone", "fetchmany", "fetchall"])
def test_an_error_where_rows_are_fetched_is_django_s(
    database: Database, placement: str, fetch: str
) -> None:
    def fn() -> tuple[type, type]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.close()
            with pytest.raises(Error) as closed:
                cursor.execute("SELECT 1")
        with connection.cursor() as cursor, pytest.raises(Error) as nothing:
            getattr(cursor, fetch)()
        assert nothing.value.__cause__ is not None
        return type(closed.value), type(nothing.value)

    for error in in_view(database, placement, fn):
        assert error.__module__ == "django.db.utils"


@pytest.mark.parametrize("vendor", ["postgresql"])
def test_a_cursor_on_a_connection_that_is_broken_is_django_s_error(
    database: Database, placement: str
) -> None:
    def fn() -> None:
        connections["default"].connection.pgconn.finish()
        with pytest.raises(Error) as error:
            connection.cursor()
        assert type(error.value).__module__ == "django.db.utils"
        assert connections["default"].errors_occurred
        connections["default"].close()

    in_view(database, placement, fn)


# Many at a time, on the loop and on threads at once.


async def on_loop(fn: Callable[..., Any], *args: Any) -> Any:
    return await bridge.run(fn, *args)


@pytest.fixture
def _often(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Threads change places at every moment."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_often")
def test_tasks_and_threads_of_a_request_mix_no_statements(database: Database) -> None:
    """Those in a block that is rolled back are undone, and no others."""
    count = 6

    def increments(name: str) -> None:
        for _ in range(count):
            Counter.objects.filter(name=name).update(value=F("value") + 1)
            assert Counter.objects.get(name=name).value >= 0
            assert len(list(Counter.objects.iterator(chunk_size=2))) == 5

    async def in_blocks(name: str) -> None:
        for number in range(count):
            try:
                async with greenroom.atomic():
                    await Counter.objects.filter(name=name).aupdate(value=F("value") + 1)
                    await asyncio.sleep(0)
                    with transaction.atomic():
                        assert await Counter.objects.acount() == 5
                    if number % 2:
                        raise ZeroDivisionError
            except ZeroDivisionError:
                pass

    async def cancelled(name: str) -> None:
        for number in range(count):
            update = Counter.objects.filter(name=name).aupdate
            task = asyncio.create_task(
                bridge.bridged(lambda update=update: update(value=F("value") + 1))()  # type: ignore[misc]
            )
            for _ in range(number):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])

    async def view(request: Any) -> list[int]:
        names = ["thread", "another", "task", "block", "cancelled"]
        await Counter.objects.abulk_create(Counter(name=name) for name in names)
        on_thread = sync_to_async(increments, thread_sensitive=False)
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            group.create_task(on_thread("thread"))
            group.create_task(on_thread("another"))
            group.create_task(on_loop(increments, "task"))
            group.create_task(bridge.bridged(in_blocks)("block"))
            group.create_task(bridge.bridged(cancelled)("cancelled"))
        found = dict(Counter.objects.values_list("name", "value"))
        assert found.pop("cancelled") <= count
        return sorted(found.values())

    found = database.request(view, "loop", GREENROOM={"DB_TIMEOUT": 20})
    assert found == [count // 2, count, count, count]


@pytest.mark.usefixtures("_often")
@pytest.mark.parametrize("vendor", ["postgresql"])
def test_a_connection_of_the_driver_is_used_beside_the_wrapper(database: Database) -> None:
    """By the driver's own cursors, of threads and tasks, with pipelines and COPY.

    (Not with rows of a cursor in the server: psycopg looks for a pipeline of others unlocked.)
    """
    if not hasattr(psycopg.Connection, "_pipeline_nolock"):
        pytest.skip("this psycopg does COPY and begins a pipeline without its lock")

    def in_driver(number: int) -> None:
        raw = connections["default"].connection
        for _ in range(4):
            with raw.cursor() as cursor:
                cursor.execute("SELECT %s", (number,))
                assert cursor.fetchone() == (number,)
                cursor.executemany("SELECT %s", [(number,)] * 3, returning=True)
                assert cursor.fetchone() == (number,)
                with cursor.copy(f"COPY (SELECT {number}) TO STDOUT") as copy:
                    assert b"".join(copy).strip() == str(number).encode()

    def in_django(number: int) -> None:
        for _ in range(4):
            with connection.cursor() as cursor:
                cursor.execute("SELECT %s", (number,))
                assert cursor.fetchall() == [(number,)]
                cursor.executemany("SELECT %s", [(number,)] * 3)

    async def view(request: Any) -> None:
        connection.ensure_connection()
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            group.create_task(asyncio.to_thread(in_driver, 0))
            group.create_task(asyncio.to_thread(in_django, 1))
            group.create_task(on_loop(in_driver, 2))
            group.create_task(on_loop(in_django, 3))

    database.request(view, "loop", GREENROOM={"DB_TIMEOUT": 20, "DB_LEASE": "request"})


def test_a_cursor_that_is_made_while_its_connection_is_given_back(database: Database) -> None:
    """By a thread, while a task of the request suspends."""
    asked, made = threading.Event(), threading.Event()

    def on_thread() -> list[Any]:
        found = [query() for _ in range(50)]
        asked.set()
        assert made.wait(10)
        return found

    async def view(request: Any) -> list[Any]:
        task = asyncio.create_task(asyncio.to_thread(on_thread))
        while not asked.is_set():
            assert await bridge.run(query) == 1
            await asyncio.sleep(0)
        made.set()
        return await task

    assert database.request(view, "loop") == [1] * 50
