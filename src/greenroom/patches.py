"""Every name of another package that is replaced, or private and relied on.

Replaced by `apply()`, once per process, by ``AppConfig.ready()`` or by the
application. Each but the last is inert outside of a bridge and of a thread that
serves a request: there the original runs.

=====================================  ==========================================
replaced                               why
=====================================  ==========================================
`asgiref.sync.AsyncToSync.__call__`    in a bridge it raises "You cannot use
                                       AsyncToSync in the same thread as an async
                                       event loop"; on a thread that serves a
                                       request it would block it in its place
                                       among the running ones
`django.urls.URLResolver               a coroutine handler404 … handler500 would
.resolve_error_handler`                return a coroutine in the place of a
                                       response
`django.core.cache.CacheHandler        it keeps clients in a context variable:
._connections`, `.__getitem__`         every request, having a context of its
                                       own, would make a new client; on the loop
                                       those that do I/O hand it to a thread
`django.db.connections._connections`,  the wrappers of a request are found by a
`ConnectionHandler.create_connection`  context variable, and made of our classes
`django.utils.asyncio                  `async_unsafe` asks it, and refuses the ORM
.get_running_loop`                     on a loop; in a bridge there is none
`sync_to_async`                        of three modules of Django's, for the ORM's
                                       ``a…`` calls (`greenroom.db.route`)
`Atomic.__enter__`, `.__exit__`        blocks of tasks that share a connection, and
                                       the shield (`greenroom.db.transaction`)
`Signal.connect`                       receivers are the project's code, which may
                                       block: signals that have any get another
                                       `send` and `send_robust`
                                       (`greenroom.user_code`)
`FieldFile.save`, `.delete`, `.open`,  storages do I/O
`.size`, `ImageFile
._get_image_dimensions`
`SessionStore.load`, `.save`,          of `django.contrib.sessions.backends.file`
`.delete`, `.exists`
`hashers.get_hashers`                  hashing a password takes a tenth of a second
`psycopg.waiting.wait_conn`            connecting and cancelling wait in it
`LazySettings.__getattribute__`        Django's is for objects that stand for another:
                                       it hides their own special methods where they
                                       are read by name (``settings.__len__``). It
                                       takes 0.25 µs, and Django reads some 25
                                       settings a request; Python's own takes 0.02
=====================================  ==========================================

Of `django.test`, when it is imported (`greenroom.clients`, `greenroom.test`):

=====================================  ==========================================
replaced                               why
=====================================  ==========================================
`ClientHandler.__call__`,              a test's requests go through our request
`.load_middleware`, `.get_response`,   cycle, in the test's transaction
`AsyncClientHandler.load_middleware`,
`.get_response_async`
`SimpleTestCase._setup_and_call`       async tests run as coroutine views do
`testcases.LiveServerThread`,          they are served by our server
`LiveServerTestCase
.server_thread_class`
`utils.teardown_databases`             what tasks left in pools is closed before
`rest_framework.test.WSGIHandler`      its RequestsClient calls our application
=====================================  ==========================================

=====================================  ==========================================
private, relied on                     for
=====================================  ==========================================
`asgiref.sync._restore_context`        the one function that re-homes `Local`
                                       storage, which is tagged with its thread
                                       since asgiref 3.13
`SyncToAsync.threadlocal`              its `main_event_loop`, `main_event_loop_pid`
                                       and `task_context`
`AsyncToSync.loop_thread_executors`    where thread-sensitive calls are sent to us
`AsyncToSync.executors`,               where else they would be sent: to a thread that
`SyncToAsync.thread_sensitive_context` waits for who makes them
`asyncio._get_running_loop`            the running loop or None, with no exception
`Signal._live_receivers`,              which receivers the request signals have
`Signal.receivers`
`StreamingHttpResponse._iterator`      to close a coroutine view's generator
`HttpResponseBase._resource_closers`   as Django's own handlers do
`ResponseHeaders._store`               the fields of a response: `items()` makes three
                                       calls for each
`RoutePattern._route`,                 whether a pattern is translated
`RegexPattern._regex`
`BaseHandler._view_middleware` …       as Django's own handlers do
`SyncToAsync.thread_handler`           how the function that asgiref submits is found
`_ThreadCriticalLocal._storage`        the wrappers of a thread, to use them from
                                       the loop
`BaseDatabaseWrapper._cursor`,         what `greenroom.db` puts before a project's
`._close`, `._set_autocommit`,         wrapper overrides them
`.needs_rollback`,
`CursorWrapper._execute`,
`._executemany`
`BaseDatabaseWrapper.run_on_commit`,   what Django notes of a transaction, where its
`.savepoint_ids`, `.atomic_blocks`,    blocks end in another order, or another task's
`.in_atomic_block`, `.errors_occurred`
`BaseDatabaseWrapper._thread_ident`    a thread's wrapper that the loop asked for first
`BaseDatabaseWrapper.make_cursor`      what it makes is made of our class at once
`BaseDatabaseWrapper.cursor`,          a cursor is made as they do, with fewer calls,
`._cursor`, `._prepare_cursor`,        where nobody has replaced them
`.ensure_connection`,
`DatabaseWrapper.create_cursor
.__wrapped__`
`CursorWrapper.__getattr__`            cursors have what it makes as methods
`BaseDatabaseWrapper                   to close it though another has the turn
.close.__wrapped__`
`hashers.get_hashers.__wrapped__`      to make the hashers as Django does
`DatabaseWrapper.pool`,                of Django's PostgreSQL backend: connections
`._configure_connection`               are taken and returned as from psycopg's pool
`Connection.wait`, `.lock`,            of psycopg: where it waits, and what it holds
`._try_cancel`, `._exec_command`,      meanwhile
`._check_connection_ok`                whether it may make a cursor
`._pipeline`, `._autocommit`,
`._prepared`, `._isolation_level`,     what is set on a connection and not in its
`._read_only`, `._deferrable`,         session, and must not reach the next request
`._begin_statement`,
`._notice_handlers`,
`._notify_handlers`, `._adapters`,
`._notifies_backlog`, `Cursor._conn`,
`errors._WaitTimeout`
`Cursor._execute_gen` …                of psycopg: the names of the generators that
                                       send statements, to see those of other cursors
`django.test.utils._TestState`         whether tests run in this process
`testcases._MediaFilesHandler`         what Django's live server serves too
`LiveServerThread._create_server`      whether the project makes a server itself
`StaticFilesHandler._should_handle`    whether a path is that of a file
`ServerCursorMixin._described`,        whether a server-side cursor exists in the
`._withhold`, `._name`                 server
=====================================  ==========================================

Those of Django REST framework are in `greenroom.integrations.rest_framework`, two of
Django's mixins in `greenroom.integrations.auth_mixins`, those of tools that trace in
`greenroom.integrations.sentry` and `.opentelemetry`. What is private in redis-py, and in Django's
cache that calls it, is named in `greenroom.integrations.redis`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from asgiref.sync import AsyncToSync, iscoroutinefunction
from django.conf import LazySettings
from django.db import connections
from django.db.models import base as models_base
from django.db.models import query as models_query
from django.db.models.fields import related_descriptors
from django.db.transaction import Atomic
from django.db.utils import ConnectionHandler
from django.urls import URLResolver
from django.utils import asyncio as django_asyncio
from django.utils.functional import LazyObject

from . import bridge, user_code
from .crossing import Calls
from .db import borrow, route, transaction
from .integrations import when_imported

# Whose coroutine functions are ``await sync_to_async(self.…)(…)``.
WITH_A_CALLS = (models_base, models_query, related_descriptors)

_applied = False


def apply() -> None:
    """Replace what the table above names. Calling it again does nothing."""
    global _applied
    if _applied:
        return
    _applied = True
    AsyncToSync.__call__ = _async_to_sync  # type: ignore[method-assign]
    URLResolver.resolve_error_handler = _resolve_error_handler  # type: ignore[method-assign]
    _apply_database()
    user_code.apply()
    if LazySettings.__getattribute__ is LazyObject.__getattribute__:
        # Not where a tool has its own.
        LazySettings.__getattribute__ = object.__getattribute__  # type: ignore[method-assign]


def _apply_database() -> None:
    connections._connections = borrow.Wrappers(connections._connections)  # type: ignore[attr-defined]
    create = ConnectionHandler.create_connection

    @wraps(create)
    def create_connection(self: ConnectionHandler, alias: str) -> Any:
        return borrow.create_connection(create, self, alias)

    ConnectionHandler.create_connection = create_connection  # type: ignore[method-assign]
    django_asyncio.get_running_loop = borrow.guard  # type: ignore[attr-defined]
    Atomic.__enter__ = transaction.enter  # type: ignore[method-assign]
    Atomic.__exit__ = transaction.leave  # type: ignore[method-assign]
    Calls.route = staticmethod(route.route)
    for module in WITH_A_CALLS:
        module.sync_to_async = route.sync_to_async  # type: ignore[attr-defined]
    bridge.set_fallback(borrow.wait)
    # Not before: with another engine psycopg may be missing, or would take 10 MB for nothing.
    when_imported("psycopg", _apply_psycopg)


def _apply_psycopg(psycopg: Any) -> None:
    psycopg.waiting.wait_conn = partial(_wait_conn, psycopg.waiting.wait_conn)


def _wait_conn(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not bridge.in_bridge():
        return original(*args, **kwargs)
    # It imports Django's backend, which may be what imports psycopg.
    from .db import postgresql

    return postgresql.wait_conn(original, *args, **kwargs)


def can_await() -> bool:
    """Whether `await_` here waits within a request, on the loop or on a thread."""
    if asyncio._get_running_loop() is None:
        return bridge.thread_wait() is not None
    return bridge.in_bridge()


_async_to_sync_call = AsyncToSync.__call__


@wraps(_async_to_sync_call)  # type: ignore[arg-type]
def _async_to_sync(self: AsyncToSync[Any, Any], *args: Any, **kwargs: Any) -> Any:
    if self.force_new_loop or not can_await():
        return _async_to_sync_call(self, *args, **kwargs)
    if asyncio._get_running_loop() is not None:
        return bridge.await_(self.awaitable(*args, **kwargs))
    return bridge.await_(_as_asgiref(self.awaitable, sys.exc_info()[1], args, kwargs))


async def _as_asgiref(
    fn: Callable[..., Any], error: BaseException | None, args: Any, kwargs: Any
) -> Any:
    """Call `fn` on the loop, in the `except` block, if any, that its caller is in."""
    if error is None:
        return await fn(*args, **kwargs)
    try:
        raise error
    except BaseException:
        del error
        return await fn(*args, **kwargs)


_resolver_error_handler = URLResolver.resolve_error_handler


@wraps(_resolver_error_handler)
def _resolve_error_handler(self: URLResolver, view_type: int) -> Any:
    handler = _resolver_error_handler(self, view_type)
    if not iscoroutinefunction(handler) or not can_await():
        return handler

    @wraps(handler)
    def plain(*args: Any, **kwargs: Any) -> Any:
        return bridge.await_(handler(*args, **kwargs))

    return plain
