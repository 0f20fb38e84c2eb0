"""What is replaced, or private and relied on, is still what it was upstream.

The suite runs with the oldest and the newest supported versions: a release that
changes one of these fails here, by name, and not in somebody's request.
"""

from __future__ import annotations

import dis
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from asgiref import local, sync
from asgiref.sync import AsyncToSync, SyncToAsync
from django.conf import LazySettings, settings
from django.contrib.auth import hashers
from django.contrib.sessions.backends.file import SessionStore
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.core.files.images import ImageFile
from django.core.handlers.base import BaseHandler
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.sqlite3.base import DatabaseWrapper as SQLiteWrapper
from django.db.backends.sqlite3.base import SQLiteCursorWrapper
from django.db.backends.utils import CursorWrapper
from django.db.models.fields.files import FieldFile
from django.db.transaction import Atomic
from django.db.utils import ConnectionHandler
from django.dispatch import Signal
from django.test import override_settings
from django.urls import URLResolver
from django.utils import asyncio as django_asyncio
from django.utils.functional import LazyObject

from greenroom import patches


def original(function: Any) -> Any:
    """What stood there before it was replaced."""
    return inspect.unwrap(function)


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(original(function)).parameters)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (AsyncToSync.__call__, ["self", "args", "kwargs"]),
        (SyncToAsync.thread_handler, ["self", "loop", "exc_info", "task_context", "func", "args"]),
        (URLResolver.resolve_error_handler, ["self", "view_type"]),
        (ConnectionHandler.create_connection, ["self", "alias"]),
        (Atomic.__init__, ["self", "using", "savepoint", "durable"]),
        (Atomic.__enter__, ["self"]),
        (Atomic.__exit__, ["self", "exc_type", "exc_value", "traceback"]),
        (Signal.connect, ["self", "receiver", "sender", "weak", "dispatch_uid"]),
        (Signal.send, ["self", "sender", "named"]),
        (Signal.send_robust, ["self", "sender", "named"]),
        (Signal._live_receivers, ["self", "sender"]),
        (FieldFile.save, ["self", "name", "content", "save"]),
        (FieldFile.delete, ["self", "save"]),
        (FieldFile.open, ["self", "mode"]),
        (ImageFile._get_image_dimensions, ["self"]),
        (SessionStore.load, ["self"]),
        (SessionStore.save, ["self", "must_create"]),
        (SessionStore.delete, ["self", "session_key"]),
        (SessionStore.exists, ["self", "session_key"]),
        (hashers.get_hashers, []),
        (BaseDatabaseWrapper.connect, ["self"]),
        (BaseDatabaseWrapper.close, ["self"]),
        (BaseDatabaseWrapper._close, ["self"]),
        (BaseDatabaseWrapper._cursor, ["self", "name"]),
        (BaseDatabaseWrapper.make_cursor, ["self", "cursor"]),
        (BaseDatabaseWrapper.make_debug_cursor, ["self", "cursor"]),
        (BaseDatabaseWrapper.on_commit, ["self", "func", "robust"]),
        (BaseDatabaseWrapper.run_and_clear_commit_hooks, ["self"]),
        (BaseDatabaseWrapper.validate_thread_sharing, ["self"]),
        (BaseDatabaseWrapper.chunked_cursor, ["self"]),
        (CursorWrapper._execute, ["self", "sql", "params", "ignored_wrapper_args"]),
        (CursorWrapper._executemany, ["self", "sql", "param_list", "ignored_wrapper_args"]),
        (SQLiteWrapper.get_connection_params, ["self"]),
        (SQLiteWrapper.get_new_connection, ["self", "conn_params"]),
        (SQLiteWrapper._set_autocommit, ["self", "autocommit"]),
        (SQLiteCursorWrapper.execute, ["self", "query", "params"]),
        (BaseHandler.resolve_request, ["self", "request"]),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_signatures(function: Any, expected: list[str]) -> None:
    assert parameters(function)[: len(expected)] == expected


def test_what_django_does_for_a_cursor() -> None:
    """`Wrapper._cursor` does no more where it doesn't call it."""
    from greenroom.db import borrow

    assert borrow._untouched
    for function, names in (
        (
            BaseDatabaseWrapper._cursor,
            (
                "close_if_health_check_failed ensure_connection wrap_database_errors "
                "_prepare_cursor create_cursor"
            ),
        ),
        (
            BaseDatabaseWrapper._prepare_cursor,
            "validate_thread_sharing queries_logged make_debug_cursor make_cursor",
        ),
        (inspect.unwrap(BaseDatabaseWrapper.cursor), "_cursor"),
        (BaseDatabaseWrapper.make_cursor, "utils CursorWrapper"),
        (
            CursorWrapper.__getattr__,
            "getattr cursor CursorWrapper WRAP_ERROR_ATTRS db wrap_database_errors",
        ),
    ):
        assert " ".join(function.__code__.co_names) == names
    assert {"fetchone", "fetchmany", "fetchall", "nextset"} == CursorWrapper.WRAP_ERROR_ATTRS


def test_what_is_replaced_is_ours() -> None:
    for function in (AsyncToSync.__call__, URLResolver.resolve_error_handler, Atomic.__enter__):
        assert original(function) is not function
    assert type(connections._connections).__module__ == "greenroom.db.borrow"
    assert type(caches._connections).__module__ == "greenroom.user_code"
    assert django_asyncio.get_running_loop.__module__ == "greenroom.db.borrow"


def test_the_table_names_all_that_apply_replaces() -> None:
    """Each assignment to something of another package stands in the docstring."""
    source = "".join(
        inspect.getsource(function)
        for function in (patches.apply, patches._apply_database, patches.user_code.apply)
    )
    table = re.sub(r"\s+", "", str(patches.__doc__))
    # (Calls and the names in loops are ours, or checked above.)
    replaced = re.findall(r"^    ([A-Za-z_]+(?:\.\w+)+) = ", source, flags=re.MULTILINE)
    assert len(replaced) >= 12
    for name in replaced:
        if name.startswith("Calls."):
            continue
        assert f".{name.rpartition('.')[2]}" in table, name


def test_settings_are_read_as_before() -> None:
    # All that is left out: what is hidden, and the way past it.
    names = LazyObject.__getattribute__.__code__.co_names
    assert set(names) <= {"super", "__getattribute__", "getattr", "AttributeError"}
    assert "_mask_wrapped" in LazyObject.__getattribute__.__code__.co_consts
    assert LazySettings.__getattribute__ is object.__getattribute__
    before = settings.APPEND_SLASH
    with override_settings(APPEND_SLASH=not before, GREENROOM_TEST=1):
        assert settings.APPEND_SLASH is not before
        assert settings.GREENROOM_TEST == 1
        del settings.APPEND_SLASH
        assert not hasattr(settings, "APPEND_SLASH")
    assert settings.APPEND_SLASH is before
    assert not hasattr(settings, "GREENROOM_TEST")
    assert "APPEND_SLASH" in dir(settings)
    assert settings.is_overridden("ROOT_URLCONF")
    assert settings.__class__ is type(settings._wrapped)
    assert settings.__bool__()
    unset = LazySettings()
    with mock.patch.dict(os.environ):
        os.environ.pop("DJANGO_SETTINGS_MODULE", None)
        with pytest.raises(ImproperlyConfigured, match="Requested setting DEBUG"):
            unset.DEBUG  # noqa: B018


def test_settings_of_a_tool_are_left_alone() -> None:
    code = """
from django.conf import LazySettings, settings
read = []
def getattribute(self, name):
    read.append(name)
    return object.__getattribute__(self, name)
LazySettings.__getattribute__ = getattribute
settings.configure(INSTALLED_APPS=["greenroom"], ROOT_URLCONF="project.urls_i18n")
import django
django.setup()
del read[:]
settings.ROOT_URLCONF
assert read[0] == "ROOT_URLCONF"
"""
    root = __file__.rpartition("/unit/")[0]
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=root, check=True, timeout=60)


def test_async_unsafe_asks_by_the_name_that_is_replaced() -> None:
    code = django_asyncio.async_unsafe(lambda: None).__code__
    assert "get_running_loop" in code.co_names
    assert code.co_names.count("get_running_loop") == 1


def test_where_asgiref_keeps_what_is_local() -> None:
    critical = local.Local(thread_critical=True)
    critical.name = "value"
    assert critical._storage.__dict__ == {"name": "value"}
    assert callable(sync._restore_context)
    assert isinstance(AsyncToSync.loop_thread_executors, dict)


def test_how_asgiref_submits_a_call() -> None:
    """`greenroom.db.route` finds the function within."""
    import asyncio

    from greenroom.db.route import _target

    submitted: list[Callable[[], Any]] = []

    class Executor:
        def submit(self, fn: Callable[[], Any]) -> Any:
            submitted.append(fn)
            future = asyncio.get_running_loop().create_future()
            future.set_result(fn())
            return future

    async def main() -> int:
        loop = asyncio.get_running_loop()
        AsyncToSync.loop_thread_executors[loop] = Executor()
        try:
            return await sync.sync_to_async("text".count)("t")
        finally:
            del AsyncToSync.loop_thread_executors[loop]

    assert asyncio.run(main()) == 2
    assert _target(submitted[0]) == "text".count
    assert _target(lambda: None) is None


def test_atomic_reads_and_writes_what_it_did() -> None:
    """The blocks stand around these; a new one would have to be understood first."""
    names = set(original(Atomic.__enter__).__code__.co_names)
    names |= set(original(Atomic.__exit__).__code__.co_names)
    assert {"in_atomic_block", "savepoint_ids", "set_autocommit", "closed_in_transaction"} <= names
    hooks = inspect.getsource(BaseDatabaseWrapper.set_autocommit)
    assert "run_and_clear_commit_hooks" in hooks


def stored(function: Any) -> set[str]:
    """The attributes that a function sets."""
    code = original(function).__code__
    return {each.argval for each in dis.get_instructions(code) if each.opname == "STORE_ATTR"}


def test_what_connecting_sets() -> None:
    """`attach` does the same, for a connection that is lent again."""
    postgresql = pytest.importorskip("greenroom.db.postgresql")
    from django.db.backends.postgresql.base import DatabaseWrapper

    connects = stored(BaseDatabaseWrapper.connect) | stored(DatabaseWrapper.get_new_connection)
    connects |= stored(BaseDatabaseWrapper.set_autocommit)
    connects |= stored(BaseDatabaseWrapper.init_connection_state)
    connects |= stored(DatabaseWrapper.init_connection_state)
    # Where there are hooks to run, Django's is called.
    assert "self.run_commit_hooks_on_set_autocommit_on" in inspect.getsource(
        postgresql.PostgreSQL.attach
    )
    connects.discard("run_commit_hooks_on_set_autocommit_on")
    assert connects == stored(postgresql.PostgreSQL.attach)
    called = {"check_settings", "get_connection_params", "get_new_connection", "set_autocommit"}
    called |= {"init_connection_state", "connection_created"}
    assert called <= set(original(BaseDatabaseWrapper.connect).__code__.co_names)
    # And closing.
    assert stored(BaseDatabaseWrapper.close) == {
        "closed_in_transaction",
        "connection",
        "needs_rollback",
        "run_on_commit",
    }


@pytest.mark.parametrize("module", patches.WITH_A_CALLS, ids=lambda module: module.__name__)
def test_where_django_s_a_calls_find_sync_to_async(module: Any) -> None:
    assert "from asgiref.sync import sync_to_async" in inspect.getsource(module)
    assert "await sync_to_async(self." in inspect.getsource(module)
    assert module.sync_to_async.__module__ == "greenroom.db.route"


def test_psycopg() -> None:
    psycopg = pytest.importorskip("psycopg")
    from django.db.backends.postgresql.base import DatabaseWrapper
    from psycopg import _connection_base, connection, waiting

    assert list(inspect.signature(psycopg.Connection.wait).parameters)[:3] == [
        "self",
        "gen",
        "interval",
    ]
    # All its I/O goes through the two.
    source = inspect.getsource(connection)
    assert "waiting.wait_conn(" in source
    outside = source.replace(inspect.getsource(psycopg.Connection.wait), "")
    assert "waiting.wait(" not in outside
    assert list(inspect.signature(original(waiting.wait_conn.args[0])).parameters)[:1] == ["gen"]
    for owner, names in (
        (
            psycopg.Connection,
            ("_check_connection_ok", "_try_cancel", "_exec_command", "commit", "rollback"),
        ),
        (DatabaseWrapper, ("pool", "close_pool", "_configure_connection", "create_cursor")),
    ):
        for name in names:
            assert hasattr(owner, name), name
    base = inspect.getsource(_connection_base)
    for name in ("_isolation_level", "_read_only", "_deferrable", "_begin_statement", "_pipeline"):
        assert f"self.{name}" in base, name
    for name in ("_notice_handlers", "_notify_handlers", "_prepared", "_adapters"):
        assert f"self.{name}" in base, name
    server = inspect.getsource(inspect.getmodule(psycopg.ServerCursor.__mro__[1]))  # type: ignore[arg-type]
    for name in ("_described", "_withhold", "_name"):
        assert f"self.{name}" in server, name
    assert "self.lock = Lock()" in source
    assert "self.cursor_factory(self, row_factory=row_factory)" in source
    # Statements are sent by these.
    from greenroom.db.postgresql import _STATEMENTS

    methods = psycopg.Cursor.execute, psycopg.ServerCursor.execute
    files = {inspect.unwrap(each).__code__.co_filename for each in methods}
    sent = "".join(Path(file).read_text().partition("class Async")[0] for file in files)
    called = set(re.findall(r"self\.(_\w+_gen(?:_\w+)?)\(", sent))
    fetching = {"_close_gen", "_describe_gen", "_fetch_gen", "_scroll_gen", "_stream_fetchone_gen"}
    assert called - fetching == _STATEMENTS
    returns = inspect.getsource(DatabaseWrapper._close)
    assert "self.connection._pool.putconn(self.connection)" in returns


def test_inert_outside_of_requests() -> None:
    """A command, a shell: Django's own wrappers, cursors, clients and behaviour."""
    code = """
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "project.settings"
import django
django.setup()
from django.core.cache import caches
from django.db import connection, connections, transaction
from django.core.exceptions import SynchronousOnlyOperation
import asyncio
wrapper = connections["default"]
assert type(wrapper).__module__ == "django.db.backends.sqlite3.base", type(wrapper)
with transaction.atomic():
    with connection.cursor() as cursor:
        assert type(cursor).__module__ == "django.db.backends.utils", type(cursor)
        cursor.execute("SELECT 1")
assert type(wrapper.connection).__module__ == "sqlite3", type(wrapper.connection)
assert type(caches["default"]).__module__.startswith("django.")
async def main():
    try:
        connection.ensure_connection()
        connection.cursor()
    except SynchronousOnlyOperation:
        return "refused"
assert asyncio.run(main()) == "refused"
connection.close()
"""
    root = __file__.rpartition("/unit/")[0]
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=root, check=True, timeout=60)


def test_psycopg_is_not_loaded_for_another_engine() -> None:
    pytest.importorskip("psycopg")
    code = """
import sys
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["greenroom"],
    ROOT_URLCONF="project.urls_i18n",
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "none.sqlite3"}},
)
import greenroom
greenroom.get_wsgi_application()
assert "psycopg" not in sys.modules
# It imports psycopg while it is being imported itself.
import django.db.backends.postgresql.base
assert sys.modules["psycopg"].waiting.wait_conn.func.__module__ == "greenroom.patches"
"""
    root = __file__.rpartition("/unit/")[0]
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=root, check=True, timeout=60)
