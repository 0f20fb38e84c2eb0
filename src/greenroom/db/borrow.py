"""Which database wrapper code sees, and how long it has a connection beneath it.

A `Scope` is a request, or a task outside of any request. What code sees as
``connections["default"]`` is the scope's own wrapper, found by a context variable:
in its tasks, and in the threads that work for it. In placement `thread` the
scope's wrappers are those of the thread that serves the request, so that the
coroutine and the code around it share them, their transaction and what a
middleware set on them.

On the loop the driver's connection beneath a wrapper is borrowed from the pool at
the first query, and given back, through the wrapper's own `close`, as soon as the
request suspends on anything but the database, unless

- it is in a transaction, or not in autocommit,
- a cursor on it has rows to give, a COPY or a pipeline is under way,
- a statement made session state on it: then it stays to the end of the request,
- ``GREENROOM["DB_LEASE"]`` is ``"request"``.

Rule 1: a borrowed connection knows its scope and refuses all others: what still
refers to it after it was given back gets an error and never another's rows.
A cursor of Django's finds itself a connection again.

Rule 2: at the end of the request the scope is dead. A task that outlives it gets a
scope of its own, until that task ends.

Rule 3: connect, BEGIN, COMMIT, ROLLBACK, savepoints and closing are shielded.

Only wrappers made here are used on the loop. Others raise Django's
`SynchronousOnlyOperation` there.

The module is long because a scope, its wrappers and their cursors decide together
how long a connection is held: each refers to the two others.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, partial, update_wrapper
from typing import Any, TypeVar

from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.db import DatabaseError, OperationalError, connections
from django.db.backends import utils
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import load_backend
from django.utils.asyncio import async_unsafe

from greenroom import bridge, conf, loops
from greenroom.off_loop import off_loop
from greenroom.turns import Turns

from .pool import Driver, Limits, Pool
from .pool import user as _scope

T = TypeVar("T")

logger = logging.getLogger("greenroom.db")

# The `atomic` blocks that the code here is in, each with the wrapper that it was entered on.
entered_blocks: ContextVar[tuple[tuple[Any, Any], ...]] = ContextVar(
    "greenroom.db.entered", default=()
)


class Scope:
    """The wrappers of one request, or of one task. `name` is for messages.

    `own`: the wrappers of the thread that serves the request, by alias.
    """

    __slots__ = ("blocks", "closed", "name", "own", "shared", "thread", "wrappers")

    def __init__(self, name: str, own: dict[str, Any] | None = None) -> None:
        self.name = name
        self.own = own is not None
        self.thread = threading.get_ident()
        # Whether somebody said that one of its connections may be used elsewhere too.
        self.shared = False
        self.wrappers: dict[str, Any] = {} if own is None else own
        self.closed = False
        # How many blocks were open on each of its own when it began: those of a test case.
        self.blocks: dict[str, int] = {}

    def is_ours(self) -> bool:
        """Whether all wrappers that it has can be used on the loop."""
        # asgiref keeps something else among those of a thread that has run a loop.
        return not self.own or all(
            isinstance(each, Wrapper) for alias, each in self.wrappers.items() if alias != "cvar"
        )

    def is_in_block(self) -> bool:
        """Whether the code here is in a transaction, or uses the connection just now."""
        return any(
            isinstance(each, Wrapper) and (each.turns.is_in_block() or each.turns.is_mine())
            for each in list(self.wrappers.values())
        )

    def suspend(self) -> bool:
        """Give back what isn't needed at the moment; says whether more is held. Never waits."""
        if self.own or self.closed:
            return False
        held = False
        for wrapper in list(self.wrappers.values()):
            # Not the one of a project that has no database, nor one that is lent.
            if (
                isinstance(wrapper, Wrapper)
                and wrapper.scope is self
                and wrapper.connection is not None
            ):
                wrapper.give_back_if_idle()
                held = held or wrapper.connection is not None
        return held

    def close(self) -> None:
        """End it, and give back all. Never waits: what is left open ends elsewhere."""
        if self.closed:
            return
        self.closed = True
        if self.own:
            # They are the thread's, whose next request will have them.
            for alias, wrapper in list(self.wrappers.items()):
                if isinstance(wrapper, Wrapper) and wrapper.scope is self:
                    if len(wrapper.blocks) > self.blocks.get(alias, 0):
                        # A child task has one open: the wrapper is of no use to others.
                        del self.wrappers[alias]
                        wrapper.ended = True
                        wrapper.end()
                    else:
                        wrapper.scope = None
            return
        if not self.wrappers:
            return
        wrappers, self.wrappers = self.wrappers, {}
        with _unguarded():
            for wrapper in wrappers.values():
                if not isinstance(wrapper, Wrapper):
                    continue
                try:
                    if wrapper.scope is self:
                        wrapper.end()
                except Exception:
                    logger.exception("An error when a connection was given back")


def begin(name: str, *, own: bool = False) -> Scope:
    """Give the current context a scope. `own`: that of this thread's wrappers."""
    scope = Scope(name, _wrappers_of_thread() if own else None)
    for alias, wrapper in scope.wrappers.items():
        if isinstance(wrapper, Wrapper):
            wrapper.scope = scope
            scope.blocks[alias] = len(wrapper.blocks)
    if lent:
        _use_lent(scope)
    _scope.set(scope)
    return scope


# Tests. Replaced by `greenroom.clients`: whether they run in this process. If so, the
# wrappers of all threads are ours, so that a request can use those of the test that makes it.
in_tests: Callable[[], bool] = lambda: False  # noqa: E731

# Wrappers that all scopes have: those in memory that a test shares with a live server. They
# are nobody's, and have turns.
lent: dict[str, Wrapper] = {}


def again(scope: Scope) -> None:
    """Go on in a scope that was never left: another may have had its wrappers meanwhile."""
    for alias, wrapper in scope.wrappers.items():
        if isinstance(wrapper, Wrapper) and wrapper.scope is None and alias not in lent:
            wrapper.scope = scope


def _use_lent(scope: Scope) -> None:
    for alias, wrapper in lent.items():
        if wrapper.allow_thread_sharing:
            wrapper.scope = None
            scope.wrappers[alias] = wrapper


def leave(scope: Scope) -> None:
    """End a scope, and that which took its place in this context."""
    scope.close()
    after = _scope.get()
    if after is not None and after is not scope:
        after.close()


def wait(awaitable: Awaitable[T]) -> T:
    """As `loops.wait`, on a thread that serves no request of ours: a test, a command.

    A thread that is in a transaction has what it waits for in it, by the ``a…`` calls of
    the ORM; others go on with the wrappers that they had.
    """
    before = _scope.get()
    scope = None
    served = before is not None and not before.closed
    if not served and any(each.in_atomic_block for each in _there().values()):
        scope = begin("a thread in a transaction", own=True)
    try:
        return loops.wait(awaitable)
    finally:
        if scope is not None:
            leave(scope)
        _scope.set(before)


def is_unused(scope: Scope | None) -> bool:
    """Whether the current scope is this one, and no wrapper was ever made for it."""
    return scope is not None and _scope.get() is scope and not scope.wrappers


def forget() -> None:
    """Let what runs in this context from now on have the wrappers of its thread."""
    _scope.set(None)


def current() -> Scope | None:
    """The scope of the code that runs here; on the loop there is always one."""
    scope: Scope | None = _scope.get()
    if scope is not None and not scope.closed:
        return scope
    home = loops.current()
    if home is None:
        return None
    return _scope_of_task()


def waits_on_loop() -> bool:
    """Whether all of the project's databases can be waited for on the loop."""
    return not any(map(_why_not_with, connections.settings.values()))


def why_not(alias: str) -> str | None:
    """Why a database can't be waited for on the loop; None if it can."""
    return _why_not_with(connections.settings[alias])


def _why_not_with(settings: dict[str, Any]) -> str | None:
    name = str(settings["NAME"])
    if "mode=memory" in name and "cache=shared" in name and in_tests():
        # As Django names it in tests; what is shared is not the pool's but the test's wrapper.
        name = ""
    return _why_not(settings["ENGINE"], name)


@lru_cache(maxsize=64)
def _why_not(engine: str, name: str) -> str | None:
    if engine == "django.db.backends.dummy":
        return None
    made = _class_of(engine)
    if made is None:
        return f"has the engine {engine}, which can't wait on the loop"
    reason: str | None = made.why_not(name)
    return reason


class Wrappers:
    """Stands in the place of ``django.db.connections._connections``."""

    def __init__(self, original: Any) -> None:
        self.__dict__["_original"] = original

    def __getattr__(self, alias: str) -> Any:
        if entered := entered_blocks.get():
            _refuse_beneath_a_dead_block(alias, entered)
        scope = _scope.get()
        if scope is None or scope.closed:
            scope = current()
        if scope is None:
            wrapper = getattr(self.__dict__["_original"], alias)
            if in_tests() and not isinstance(wrapper, Wrapper) and _may_replace(wrapper):
                # It was made before the tests began, by the import of a model: make another.
                raise AttributeError(alias)
            return wrapper
        wrapper = scope.wrappers.get(alias)
        if wrapper is None:
            raise AttributeError(alias)
        if scope.own and not isinstance(wrapper, Wrapper) and asyncio._get_running_loop():
            raise _refused(alias)
        return wrapper

    def __setattr__(self, alias: str, wrapper: Any) -> None:
        scope = current()
        if scope is None:
            setattr(self.__dict__["_original"], alias, wrapper)
        else:
            scope.wrappers[alias] = wrapper

    def __delattr__(self, alias: str) -> None:
        scope = current()
        if scope is None:
            delattr(self.__dict__["_original"], alias)
        elif scope.wrappers.pop(alias, None) is None:
            raise AttributeError(alias)


def _may_replace(wrapper: Any) -> bool:
    return wrapper.connection is None and _class_of(wrapper.settings_dict["ENGINE"]) is not None


def create_connection(original: Callable[..., Any], handler: Any, alias: str) -> Any:
    """What ``ConnectionHandler.create_connection`` is replaced by."""
    scope = current() if handler is connections else None
    settings = handler.settings[alias]
    if scope is None:
        made = _class_of(settings["ENGINE"]) if handler is connections and in_tests() else None
        return original(handler, alias) if made is None else made(settings, alias)
    reason = _why_not_with(settings)
    made = _class_of(settings["ENGINE"]) if reason is None else None
    if made is None:
        if reason is not None and asyncio._get_running_loop() is not None:
            raise _refused(alias)
        return original(handler, alias)
    wrapper = made(settings, alias)
    wrapper.scope = scope
    if scope.own:
        # It may be the coroutine that asks for it first: it is the thread's all the same.
        wrapper._thread_ident = scope.thread
    return wrapper


def _refuse_beneath_a_dead_block(alias: str, blocks: tuple[tuple[Any, Any], ...]) -> None:
    """Where a block was rolled back with its request, what follows in it must not be committed.

    On a thread that was given up, too, which goes on.
    """
    for _, entered in blocks:
        if (
            entered.alias == alias
            and isinstance(entered, Wrapper)
            and entered.has_ended()
            and entered.turns.was_left_open()
        ):
            raise entered.turns.aborted()


def _refused(alias: str) -> Exception:
    reason = why_not(alias) or "is used by a thread that can't share its connection"
    return SynchronousOnlyOperation(
        f"The database {alias!r} {reason}: in a coroutine, use the a… calls of the ORM, or "
        "sync_to_async."
    )


@lru_cache(maxsize=64)
def _class_of(engine: str) -> Any:
    return _class_for(load_backend(engine).DatabaseWrapper)


@lru_cache(maxsize=64)
def _class_for(backend: type) -> Any:
    """The project's wrapper class with ours before it; None for an unknown engine."""
    for mixin in _mixins():
        base = mixin.base()
        if base is not None and issubclass(backend, base):
            # Asked for its class, as for the sender of a signal, it names the project's.
            named = {
                "__module__": backend.__module__,
                "__class__": property(lambda _: backend),
                "plain_cursors": _makes_plain_cursors(backend, base),
            }
            return type(backend.__name__, (mixin, backend), named)
    return None


def _makes_plain_cursors(backend: Any, base: Any) -> bool:
    """Whether a backend has those methods of Django's that `Wrapper._cursor` does without."""
    own = ("_cursor", "_prepare_cursor", "cursor", "ensure_connection", "make_cursor")
    return (
        _untouched
        and all(getattr(backend, name) is getattr(BaseDatabaseWrapper, name) for name in own)
        and all(
            getattr(backend, name) is getattr(base, name)
            for name in ("close_if_health_check_failed", "create_cursor")
        )
    )


def _mixins() -> Iterator[type[Wrapper]]:
    from .sqlite import SQLite

    yield SQLite
    try:
        from .postgresql import PostgreSQL
    except ImportError:
        return
    yield PostgreSQL


class Wrapper:
    """What is put before the project's `DatabaseWrapper` class."""

    # Of the class that this is mixed into.
    alias: str
    settings_dict: dict[str, Any]
    connection: Any
    autocommit: bool
    allow_thread_sharing: bool
    in_atomic_block: bool
    errors_occurred: bool
    health_check_enabled: bool
    health_check_done: bool
    run_on_commit: list[Any]
    queries_logged: bool
    wrap_database_errors: Any

    # Whether its class makes cursors as Django's does, set by `_class_for`.
    plain_cursors = False

    # What is known of the engine.

    @classmethod
    def base(cls) -> type | None:
        """The wrapper class whose subclasses this fits."""
        raise NotImplementedError

    @classmethod
    def why_not(cls, name: str) -> str | None:
        """Why a database of that name can't be waited for on the loop."""
        raise NotImplementedError

    def driver(self) -> Driver:
        """How connections like this wrapper's are made."""
        raise NotImplementedError

    # The borrow.

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scope: Scope | None = None
        # Counts the connections that it had, so that a cursor knows whether its is gone.
        self.lease = 0
        self._lender: Pool | None = None
        # With nothing that refers to this wrapper: one is made for each request.
        self.turns = Turns(
            partial(_patience, self.alias),
            partial(_turn_expired, self.alias),
            partial(_aborted, self.alias),
        )
        # Whether its connection was put beneath it without Django's `connect`.
        self.attached = False
        # Whether its thread goes on without it.
        self.ended = False
        # A connection that was borrowed and isn't `connection` yet.
        self._lent: Any = None
        # The blocks that `atomic` opened, outermost first.
        self.blocks: list[Any] = []
        # Whether hooks of a commit wait for the end of its block, and are due.
        self.hooks_held = self.hooks_due = False

    @property
    def borrows(self) -> bool:
        """Whether its connections are the pool's."""
        return self.scope is not None and (
            not self.scope.own or (bool(self._pool_options()) and not in_tests())
        )

    def borrow(self) -> Any:
        """The connection for Django's `connect`, lent by the pool."""
        lent, self._lent = self._lent, None
        return self._borrow() if lent is None else lent

    def _borrow(self) -> Any:
        """A connection of the pool. It is this scope's until it is given back."""
        scope = self.scope
        assert scope is not None
        if scope.closed:
            raise self._not_ours()
        if self._lender is None or self._lender.closed:
            self._lender = pool_of(self)
        connection = self._lender.lend(scope.name)
        if scope.closed:
            # A child task that outlives the request: nobody would give it back.
            self._lender.give_back(connection)
            raise self._not_ours()
        connection.holder = scope
        return connection

    def give_back_if_idle(self) -> None:
        """Never waits."""
        if not self.turns.try_take():
            return
        # Looked at in our turn: a thread may work for the request meanwhile.
        try:
            connection = self.connection
            if (
                connection is not None
                and self.autocommit
                and not self.in_atomic_block
                and conf.settings().db_lease_of(self.alias) != "request"
                and connection.is_idle()
            ):
                if self.attached:
                    self._detach()
                else:
                    with _unguarded():
                        self._close_in_turn()
        finally:
            self.turns.release()

    def attach(self, connection: Any) -> bool:
        """Do what Django's `connect` does, with a connection at which there is nothing to do.

        False, with nothing changed, where there may be.
        """
        return False

    def _detach(self) -> None:
        """Do what Django's `close` does, for one that was attached."""
        connection, self.connection = self.connection, None
        self.attached = False
        self.run_on_commit = []
        if self.errors_occurred:
            connection.suspect = True
            self.errors_occurred = False
        connection._pool.give_back(connection)

    def has_ended(self) -> bool:
        return self.ended or (self.scope is not None and not self.scope.own and self.scope.closed)

    def end(self) -> None:
        """The scope ends: give back the connection, in whatever state it is.

        Where another task or thread is in the middle of a statement, that ends first.
        """
        self.turns.when_free(self._end)

    def _end(self) -> None:
        connection, self.connection = self.connection, None
        self.turns.abort()
        self.blocks.clear()
        if connection is None:
            return
        if self.in_atomic_block or not self.autocommit:
            logger.error(
                "A request left a transaction open on the database %r; it was rolled back. "
                "Leave it where it was begun: with `with transaction.atomic()`.",
                self.alias,
            )
        if self.borrows:
            connection._pool.give_back(connection)
        else:
            connection.close()

    def after_interruption(self) -> None:
        """A statement was cancelled while it ran."""

    def is_lost(self) -> bool:
        """Whether a cancelled statement has ended the transaction: it can't be committed."""
        return False

    def _not_ours(self) -> DatabaseError:
        scope = self.scope
        assert scope is not None
        return DatabaseError(
            f"This connection to the database {self.alias!r} belongs to {scope.name}"
            f"{', which has ended' if scope.closed else ''}. Take it from "
            "django.db.connections where it is used, and don't keep it."
        )

    def _pool_options(self) -> Any:
        return self.settings_dict["OPTIONS"].get("pool")

    # Django's methods.

    def validate_thread_sharing(self) -> None:
        """In the place of Django's rule, one thread a wrapper: one scope a wrapper."""
        if self.scope is None:
            super().validate_thread_sharing()  # type: ignore[misc]
        elif self.scope.closed or (
            self.scope is not _scope.get() and not self.allow_thread_sharing
        ):
            raise self._not_ours()

    def inc_thread_sharing(self) -> None:
        """Also as Django has it: code that says so may use it wherever it is."""
        super().inc_thread_sharing()  # type: ignore[misc]
        if self.scope is not None:
            self.scope.shared = True

    @property
    def needs_rollback(self) -> bool:
        return self._needs_rollback

    @needs_rollback.setter
    def needs_rollback(self, value: bool) -> None:
        # Django says so for each error while a block is open: here it may be another task's.
        if not value or self.turns.is_inside():
            self._needs_rollback = value

    def ensure_connection(self) -> None:
        # (Also where there is one: pytest-django forbids the database by what Django's does.)
        if self.connection is not None:
            super().ensure_connection()  # type: ignore[misc]
            return
        # In our turn: another task may be connecting.
        with self.turns:
            super().ensure_connection()  # type: ignore[misc]

    def connect(self) -> None:
        with self.turns:
            lent = None
            if self.borrows:
                if self.connection is not None:
                    # Django would forget that it has one.
                    bridge.shielded(self._close_in_turn)
                # Not shielded: it may have to wait for a free one.
                lent = self._borrow()
                self.attached = self.attach(lent)
                if self.attached:
                    self.lease += 1
                    self._remember()
                    return
                self._lent = lent
            self.lease += 1
            # Receivers of `connection_created`.
            self.turns.calls_out = True
            try:
                bridge.shielded(super().connect)  # type: ignore[misc]
            finally:
                self.turns.calls_out = False
                self._lent = None
                if lent is not None and self.connection is None:
                    lent._pool.give_back(lent)
                # Now: what was called meanwhile may have waited for something else.
                self._remember()

    def close(self) -> None:
        with self.turns:
            bridge.shielded(self._close_in_turn)

    def _close_in_turn(self) -> None:
        if self.borrows and self.connection is not None and self.errors_occurred:
            self.connection.suspect = True
            self.errors_occurred = False
        super().close()  # type: ignore[misc]

    def close_if_unusable_or_obsolete(self) -> None:
        """A borrowed connection is given back: its age and health are the pool's affair."""
        if not self.borrows:
            if self.in_atomic_block and in_tests():
                # Of a test, which has closed a response itself.
                return
            super().close_if_unusable_or_obsolete()  # type: ignore[misc]
        elif self.connection is not None and not self.in_atomic_block:
            if not self.autocommit:
                self.end()
            elif self.scope.own or not self.connection.session_state:  # type: ignore[union-attr]
                # Otherwise the request goes on with what it has set in its session.
                self.close()

    def commit(self) -> None:
        with self.turns:
            bridge.shielded(super().commit)  # type: ignore[misc]

    def rollback(self) -> None:
        with self.turns:
            bridge.shielded(super().rollback)  # type: ignore[misc]

    def savepoint(self) -> Any:
        with self.turns:
            return bridge.shielded(super().savepoint)  # type: ignore[misc]

    def savepoint_rollback(self, sid: str) -> None:
        with self.turns:
            bridge.shielded(super().savepoint_rollback, sid)  # type: ignore[misc]

    def savepoint_commit(self, sid: str) -> None:
        with self.turns:
            bridge.shielded(super().savepoint_commit, sid)  # type: ignore[misc]

    def set_autocommit(self, *args: Any, **kwargs: Any) -> None:
        with self.turns:
            bridge.shielded(super().set_autocommit, *args, **kwargs)  # type: ignore[misc]

    def cursor(self, *args: Any) -> Any:
        if (
            self.plain_cursors
            and BaseDatabaseWrapper.cursor is _get_cursor
            and (asyncio._get_running_loop() is None or bridge.in_bridge())
        ):
            # Where `async_unsafe` would find that out by an exception.
            return self._cursor()
        return super().cursor(*args)  # type: ignore[misc]

    def _cursor(self, name: str | None = None) -> Any:
        # Before it waits for its turn on what is another request's.
        scope = self.scope
        if scope is None or scope.closed or scope is not _scope.get():
            self.validate_thread_sharing()
        turns = self.turns
        turns.take()
        try:
            if (
                not self.plain_cursors
                or self.connection is None
                or (self.health_check_enabled and not self.health_check_done)
                # pytest-django forbids the database by what it is.
                or BaseDatabaseWrapper.ensure_connection is not _ensure_connection
                or "ensure_connection" in self.__dict__
                or BaseDatabaseWrapper._cursor is not _make_and_prepare  # type: ignore[attr-defined]
                or BaseDatabaseWrapper._prepare_cursor is not _prepare  # type: ignore[attr-defined]
            ):
                return super()._cursor(name)  # type: ignore[misc]
            # As that does, where there is a connection.
            try:
                cursor = self._create_cursor(name)
            except Exception:
                with self.wrap_database_errors:
                    raise
            return (
                self.make_debug_cursor(cursor) if self.queries_logged else self.make_cursor(cursor)
            )
        finally:
            turns.release()

    def _create_cursor(self, name: str | None) -> Any:
        return self.create_cursor(name)  # type: ignore[attr-defined]

    def close_if_health_check_failed(self) -> None:
        # Looked at first, as Django does after it has asked for the pool.
        if self.health_check_enabled and not self.health_check_done:
            super().close_if_health_check_failed()  # type: ignore[misc]

    def chunked_cursor(self) -> Any:
        # Django's names are made of the ids of thread and task, which come again.
        return self._cursor(f"_django_curs_{next(_cursor_names)}")

    def make_cursor(self, cursor: Any) -> Any:
        if self.plain_cursors and BaseDatabaseWrapper.make_cursor is _make_cursor:
            # As that does, but of our class from the start: Python is slow with an object
            # whose class was changed.
            return _cursor_class(utils.CursorWrapper)(cursor, self)
        return self._bound(super().make_cursor(cursor))  # type: ignore[misc]

    def make_debug_cursor(self, cursor: Any) -> Any:
        return self._bound(super().make_debug_cursor(cursor))  # type: ignore[misc]

    def on_commit(self, func: Any, robust: bool = False) -> None:
        func = _Hook(func) if callable(func) else func
        with self.turns:
            # In our turn: else the block is another task's.
            if self.in_atomic_block:
                super().on_commit(func, robust)  # type: ignore[misc]
                return
        super().on_commit(func, robust)  # type: ignore[misc]

    def run_and_clear_commit_hooks(self) -> None:
        if self.hooks_held:
            self.hooks_due = True
        else:
            super().run_and_clear_commit_hooks()  # type: ignore[misc]

    def _remember(self) -> None:
        """Give the connection back when what runs here next suspends."""
        if self.scope is not None and not self.scope.own:
            bridge.when_suspended(self.scope.suspend)

    def after_work(self) -> None:
        """On a thread of whoever (`asyncio.to_thread`), nobody says when it has ended."""
        if (
            self.scope is not None
            and not self.scope.own
            and asyncio._get_running_loop() is None
            and bridge.thread_wait() is None
        ):
            self.scope.suspend()

    def _bound(self, cursor: Any) -> Any:
        kind: Any = type(cursor)
        cursor.__class__ = _cursor_class(kind)
        cursor.lease = self.lease
        return cursor


def _aborted(alias: str) -> Exception:
    return DatabaseError(
        f"The transaction on the database {alias!r} was rolled back before this atomic block "
        "ended, since the block around it did, or its request. Let a task wait in its block, and "
        "a view before it returns, for the tasks that they started there."
    )


def _patience(alias: str) -> float:
    return limits_of(alias).timeout


def _turn_expired(alias: str, holder: str) -> Exception:
    return OperationalError(
        f"The connection to the database {alias!r} was not free within {_patience(alias):g} s: it "
        f"is used by {holder}. The tasks of a request share its connection, one statement at a "
        "time, and one block at a time in a transaction: don't wait for a task that needs it while "
        "you hold it."
    )


class _Cursor:
    """What is put before Django's cursor classes."""

    db: Any
    cursor: Any
    lease: int

    def __init__(self, cursor: Any, db: Any) -> None:
        # (debug-toolbar, too, makes one of the class of one.)
        super().__init__(cursor, db)  # type: ignore[call-arg]
        self.lease = db.lease

    def _execute(self, sql: Any, params: Any, *more: Any) -> Any:
        # `_in_turn`, without the calls: this is done for each query.
        db = self.db
        scope = db.scope
        if scope is None or scope.closed or scope is not _scope.get():
            db.validate_thread_sharing()
        lent = scope is not None and not scope.own
        turns = db.turns
        try:
            turns.take()
            try:
                if lent:
                    bridge.when_suspended(scope.suspend)
                if self.lease != db.lease or db.connection is None:
                    self._renew()
                try:
                    return super()._execute(sql, params, *more)  # type: ignore[misc]
                except Exception:
                    raise
                except BaseException:
                    db.after_interruption()
                    raise
            finally:
                turns.release()
        finally:
            if lent and asyncio._get_running_loop() is None:
                db.after_work()

    def _executemany(self, *args: Any) -> Any:
        return self._in_turn(super()._executemany, args)  # type: ignore[misc]

    def callproc(self, *args: Any, **kwargs: Any) -> Any:
        return self._in_turn(partial(super().callproc, **kwargs), args)  # type: ignore[misc]

    def _in_turn(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        db = self.db
        db.validate_thread_sharing()
        scope = db.scope
        # What a thread has to itself is never given back between its statements.
        lent = scope is not None and not scope.own
        try:
            with db.turns:
                if lent:
                    bridge.when_suspended(scope.suspend)
                if self.lease != db.lease or db.connection is None:
                    self._renew()
                try:
                    return fn(*args)
                except Exception:
                    raise
                except BaseException:
                    db.after_interruption()
                    raise
        finally:
            if lent:
                db.after_work()

    def _renew(self) -> None:
        """Its connection was given back meanwhile."""
        db = self.db
        db.ensure_connection()
        with db.wrap_database_errors:
            self.cursor = db.create_cursor()
        self.lease = db.lease


# Django's, by which one sees whether somebody replaced them.
_get_cursor: Any = BaseDatabaseWrapper.cursor
_ensure_connection = BaseDatabaseWrapper.ensure_connection
_make_and_prepare = BaseDatabaseWrapper._cursor  # type: ignore[attr-defined]
_prepare = BaseDatabaseWrapper._prepare_cursor  # type: ignore[attr-defined]
_make_cursor = BaseDatabaseWrapper.make_cursor
# Somebody may have done so before.
_untouched = {
    each.__code__.co_filename
    for each in (_get_cursor, _ensure_connection, _make_and_prepare, _prepare, _make_cursor)
} <= {BaseDatabaseWrapper.__init__.__code__.co_filename, async_unsafe.__code__.co_filename}


class _Fetches:
    """The methods that `CursorWrapper.__getattr__` would make anew for each call."""

    db: Any
    cursor: Any

    def fetchone(self) -> Any:
        try:
            return self.cursor.fetchone()
        except Exception:
            with self.db.wrap_database_errors:
                raise

    def fetchmany(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.cursor.fetchmany(*args, **kwargs)
        except Exception:
            with self.db.wrap_database_errors:
                raise

    def fetchall(self) -> Any:
        try:
            return self.cursor.fetchall()
        except Exception:
            with self.db.wrap_database_errors:
                raise

    def close(self) -> None:
        self.cursor.close()


_getattr = utils.CursorWrapper.__getattr__


@lru_cache(maxsize=64)
def _cursor_class(kind: Any) -> type:
    # Last: what a class has of its own is before it.
    last = (_Fetches,) if kind.__getattr__ is _getattr else ()
    return type(kind.__name__, (_Cursor, kind, *last), {"__module__": kind.__module__})


class _Hook:
    """A callback of `on_commit`: code that nobody read, for a thread."""

    def __init__(self, func: Callable[[], object]) -> None:
        self.func = func
        update_wrapper(self, func)

    def __call__(self) -> None:
        _user_code(self.func)

    def __repr__(self) -> str:
        return repr(self.func)


def _user_code(func: Callable[[], object]) -> object:
    return func() if is_loop_safe(func) else off_loop(func)


# Replaced by `greenroom.user_code`, which knows the placement's tables.
is_loop_safe: Callable[[Any], bool] = lambda code: False  # noqa: E731

_cursor_names = itertools.count(1)


# The pools.

_pools: dict[Any, Pool] = {}
_making = threading.Lock()


def pool_of(wrapper: Wrapper) -> Pool:
    """The pool of connections with a wrapper's settings, in this process."""
    settings = wrapper.settings_dict
    key = (
        wrapper.alias,
        *(str(settings[name]) for name in ("NAME", "HOST", "PORT", "USER", "PASSWORD")),
        repr(settings["OPTIONS"]),
        str(settings["TIME_ZONE"]),
        type(wrapper),
    )
    pool = _pools.get(key)
    if pool is None or pool.closed:
        template = type(wrapper)(settings, wrapper.alias)
        made = Pool(wrapper.alias, template.driver(), limits_of(wrapper.alias))
        with _making:
            pool = _pools.get(key)
            if pool is None or pool.closed:
                pool = _pools[key] = made
    return pool


def pools() -> list[Pool]:
    return list(_pools.values())


def drain() -> None:
    """Close the idle connections of this process."""
    for pool in _pools.values():
        pool.close()
    _pools.clear()


def limits_of(alias: str) -> Limits:
    """The limits of an alias: GREENROOM's, or those of ``OPTIONS["pool"]``.

    Raises `ImproperlyConfigured` for what the pool here doesn't know.
    """
    settings = connections.settings.get(alias, {})
    given = conf.settings()
    options = settings.get("OPTIONS", {}).get("pool") or {}
    options = conf.pool_options(alias, {} if options is True else options)
    return Limits(
        limit=options.get("max_size") or given.db_max_connections_of(alias),
        timeout=options.get("timeout") or given.db_timeout_of(alias),
        max_age=settings.get("CONN_MAX_AGE", 0),
        keep=options.get("min_size", 0),
    )


def check_settings() -> None:
    """Raises `ImproperlyConfigured` for limits that make no sense, of any database."""
    for alias in connections:
        limits_of(alias)
    for key in ("db_max_connections", "db_timeout", "db_lease"):
        value = getattr(conf.settings(), key)
        for alias in dict(value) if isinstance(value, tuple) else ():
            if alias not in connections.settings:
                raise ImproperlyConfigured(
                    f"GREENROOM[{key.upper()!r}] names {alias!r}, which is not in DATABASES "
                    f"({', '.join(connections.settings)})."
                )


def is_lent_elsewhere(holder: Any) -> bool:
    """Whether a connection with that holder is not for the code that runs here."""
    return (
        holder is not None and holder is not _scope.get() and not getattr(holder, "shared", False)
    )


# The scopes of tasks.


def _scope_of_task() -> Scope | None:
    task = asyncio.current_task()
    if task is None:
        return None
    scope = Scope(f"the task {task.get_name()}")
    _use_lent(scope)
    _scope.set(scope)
    task.add_done_callback(lambda _: scope.close())
    return scope


def _wrappers_of_thread() -> dict[str, Any]:
    """Those of this thread, which must be of our classes to be used from the loop."""
    own = _there()
    for alias, wrapper in list(own.items()):
        known = alias in connections.settings and why_not(alias) is None
        if known and not isinstance(wrapper, Wrapper) and not wrapper.in_atomic_block:
            wrapper.close()
            del own[alias]
    return own


def _there() -> dict[str, Any]:
    place = connections._connections  # type: ignore[attr-defined]
    original = place.__dict__["_original"] if isinstance(place, Wrappers) else place
    own: dict[str, Any] = original._storage.__dict__
    return own


# Django's guard: `django.utils.asyncio.get_running_loop`.

_open_guards = 0


def guard() -> Any:
    """What `async_unsafe` asks for the running loop; in a bridge there is none."""
    # On a thread this raises: first, since it is asked three times a query.
    loop = asyncio.get_running_loop()
    if _open_guards or bridge.in_bridge():
        raise RuntimeError("no running event loop")
    return loop


@contextmanager
def _unguarded() -> Iterator[None]:
    """Call what never waits from a coroutine."""
    global _open_guards
    if asyncio._get_running_loop() is None:
        yield
        return
    _open_guards += 1
    try:
        yield
    finally:
        _open_guards -= 1
