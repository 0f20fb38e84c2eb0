"""SQLite: a thread for each connection, on which its calls run while greenlets wait.

The driver blocks, for a disk or for another writer. In a bridge its calls are
sent to the connection's own thread, one at a time; elsewhere they are made where
they are. (Not to threads that connections share: those that wait for the write
lock would take the place of the one that must commit.) The first rows of a result
come with its statement, so that a small query is one call.

Cancelled while a statement runs, it is interrupted, and its end is always waited
for. SQLite may roll a transaction back when it interrupts it: nothing more is
then run in that `atomic` block.

Writers of this process form a queue before they ask SQLite, which is not fair to
those that wait: a transaction that begins with ``BEGIN IMMEDIATE`` or writes
first, and each write outside of transactions. A deferred transaction that has
read isn't queued: SQLite refuses it at once where it must. Other processes are
waited for by SQLite itself, for its `timeout`.

What is in memory is not shared by connections: such a database stays on threads.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from functools import lru_cache
from queue import SimpleQueue
from typing import Any, TypeVar

from django.db import DEFAULT_DB_ALIAS
from django.db.backends.sqlite3.base import DatabaseWrapper, SQLiteCursorWrapper

from greenroom import bridge, conf
from greenroom.errors import BridgeError
from greenroom.turns import Turn

from . import borrow
from .pool import Driver

T = TypeVar("T")

logger = logging.getLogger("greenroom.db")

# Seconds after which a statement is interrupted again: SQLite forgets it where none has begun.
AGAIN = 0.02

# Rows that are fetched with a statement: one more than Django takes at a time, so
# that the end of a small result is known.
AHEAD = 101


def _makes_state(name: str) -> Any:
    """A method after which the connection is not as another request would want it."""

    def method(self: WaitingConnection, *args: Any, **kwargs: Any) -> Any:
        self.session_state = True
        return getattr(super(WaitingConnection, self), name)(*args, **kwargs)

    return method


class WaitingConnection(sqlite3.Connection):
    """A connection whose calls run on its own thread, and are waited for on the loop."""

    def __init__(self, database: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(database, *args, **kwargs)
        self.holder: Any = None
        self.made_at = time.monotonic()
        self._pool: Any = None
        self.suspect = False
        self.session_state = False
        # Cursors with rows that were not fetched yet.
        self.unread: set[int] = set()
        self.writers = _writers_of(str(database))
        self._writes = False
        # In a deferred transaction that has done nothing yet.
        self._fresh = False
        self._closed = False
        self._driver: _Driver | None = None

    def call(self, fn: Callable[..., T], *args: Any) -> T:
        """Run `fn(*args)`, which uses this connection, where it blocks nobody."""
        self._refuse_others()
        if self._closed:
            # By then, or soon, on its thread, which takes no more calls.
            raise sqlite3.ProgrammingError("Cannot operate on a closed database.")
        if not bridge.in_bridge():
            return fn(*args)
        if self._driver is None:
            self._driver = _Driver()
        return self._driver.call(self, fn, args)

    def _refuse_others(self) -> None:
        if borrow.is_lent_elsewhere(self.holder):
            raise sqlite3.ProgrammingError(
                "This connection was given back, and is another request's: take it from "
                "django.db.connection where it is used, and don't keep it."
            )

    def run(self, statement: str, fn: Callable[..., T], *args: Any) -> T:
        """`call`, for a statement: in its turn, if it writes."""
        self._refuse_others()
        kind = _kind(statement)
        if kind is not _READS and not self._writes and self._queues(kind):
            self.writers.take()
            self._writes = True
        try:
            result = self.call(fn, *args)
        finally:
            self._fresh = kind is _BEGINS
            self._after()
        if kind is _STATE:
            self.session_state = True
        return result

    def _queues(self, kind: str) -> bool:
        if not self.in_transaction:
            return kind in (_WRITES, _BEGINS_WRITING)
        return kind is _WRITES and self._fresh

    def _after(self) -> None:
        if self._writes and not self.in_transaction:
            self._writes = False
            self.writers.release()

    def as_made(self) -> None:
        """Forget what was set on the object."""
        self.row_factory, self.text_factory = None, str

    # What the driver does.

    def cursor(self, factory: Any = None) -> Any:
        return super().cursor(factory or _PlainCursor)

    def execute(self, *args: Any) -> Any:
        return self.cursor().execute(*args)

    def executemany(self, *args: Any) -> Any:
        return self.cursor().executemany(*args)

    def executescript(self, script: str) -> Any:
        return self.cursor().executescript(script)

    def commit(self) -> None:
        try:
            self.call(super().commit)
        finally:
            self._after()

    def rollback(self) -> None:
        try:
            self.call(super().rollback)
        finally:
            self._after()

    create_aggregate = _makes_state("create_aggregate")
    create_collation = _makes_state("create_collation")
    create_function = _makes_state("create_function")
    create_window_function = _makes_state("create_window_function")
    enable_load_extension = _makes_state("enable_load_extension")
    set_authorizer = _makes_state("set_authorizer")
    set_progress_handler = _makes_state("set_progress_handler")
    set_trace_callback = _makes_state("set_trace_callback")

    def backup(self, *args: Any, **kwargs: Any) -> None:
        parent = super().backup
        self.call(lambda: parent(*args, **kwargs))

    def close(self) -> None:
        """Close it; on its thread and without waiting, if it has one."""
        if self._closed:
            return
        self._closed = True
        if self._writes:
            self._writes = False
            self.writers.release()
        if self._driver is not None:
            # Whoever is still waiting for a statement gets an error.
            self.interrupt()
            self._driver.end(super().close)
        else:
            super().close()

    # For the pool.

    def is_open(self) -> bool:
        return not self._closed

    is_alive = is_open

    def is_clean(self) -> bool:
        return self.is_idle() and not self.suspect

    def is_idle(self) -> bool:
        return not self.session_state and (self._closed or not (self.in_transaction or self.unread))


class _Cursor(sqlite3.Cursor):
    """A cursor with the rows ahead."""

    connection: WaitingConnection

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._ahead: deque[Any] = deque()
        # Whether SQLite may have more rows than those.
        self._more = False

    def _fill(self, execute: Callable[..., Any], *args: Any) -> None:
        """On the connection's thread."""
        execute(*args)
        if self.description is not None:
            rows = super().fetchmany(AHEAD)
            self._more = len(rows) == AHEAD
            self._ahead.extend(rows)

    def _run(self, statement: str, execute: Callable[..., Any], *args: Any) -> Any:
        self._drop()
        self.connection.run(statement, self._fill, execute, *args)
        if self._more:
            self.connection.unread.add(id(self))
        return self

    def _exhausted(self) -> None:
        self._more = False
        self.connection.unread.discard(id(self))

    def _drop(self) -> None:
        self._ahead.clear()
        if self._more:
            self._exhausted()

    def fetchone(self) -> Any:
        if not self._ahead and self._more:
            self._read(AHEAD)
        return self._ahead.popleft() if self._ahead else None

    def fetchmany(self, size: int | None = None) -> list[Any]:
        size = self.arraysize if size is None else size
        if self._more and len(self._ahead) < size:
            self._read(size - len(self._ahead))
        return [self._ahead.popleft() for _ in range(min(size, len(self._ahead)))]

    def fetchall(self) -> list[Any]:
        if self._more:
            self._ahead.extend(self.connection.call(super().fetchall))
            self._exhausted()
        rows = list(self._ahead)
        self._ahead.clear()
        return rows

    def _read(self, size: int) -> None:
        rows = self.connection.call(super().fetchmany, size)
        self._ahead.extend(rows)
        if len(rows) < size:
            self._exhausted()

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> Any:
        row = self.fetchone()
        if row is None:
            raise StopIteration
        return row

    def close(self) -> None:
        """Never waits: generators close theirs whenever they are collected."""
        self._drop()
        if self.connection._closed:
            return
        driver = self.connection._driver
        if driver is not None and asyncio._get_running_loop() is not None:
            driver.later(super().close)
        else:
            super().close()


class _PlainCursor(_Cursor):
    """For what uses the driver's connection itself."""

    def execute(self, *args: Any) -> Any:
        return self._run(args[0], super().execute, *args)

    def executemany(self, *args: Any) -> Any:
        return self._run(args[0], super().executemany, *args)

    def executescript(self, script: str) -> Any:
        self.connection.session_state = True
        return self._run(script, super().executescript, script)


class _DjangoCursor(_Cursor, SQLiteCursorWrapper):
    """Django's, with its style of parameters."""

    def execute(self, query: str, params: Any = None) -> Any:
        return self._run(query, self._execute, query, params)

    def executemany(self, query: str, param_list: Any) -> Any:
        return self._run(query, self._executemany, query, param_list)

    def _execute(self, query: str, params: Any) -> None:
        SQLiteCursorWrapper.execute(self, query, params)

    def _executemany(self, query: str, param_list: Any) -> None:
        SQLiteCursorWrapper.executemany(self, query, param_list)


class _Job:
    """One call on a connection's thread."""

    __slots__ = ("args", "done", "error", "fn", "future", "loop", "result")

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self.loop.create_future()
        self.fn = fn
        self.args = args
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None

    def finish(self) -> None:
        self.done = True
        if not self.future.done():
            self.future.set_result(None)

    def interrupt(self, connection: Any) -> None:
        """Until it is done: the thread may not have come to it yet."""
        if not self.done:
            connection.interrupt()
            self.loop.call_later(AGAIN, self.interrupt, connection)

    def wait(self) -> None:
        while not self.done:
            self.future = self.loop.create_future()
            bridge.pause(self.future)


class _Driver:
    """The thread of one connection."""

    def __init__(self) -> None:
        self._inbox: SimpleQueue[_Job | Callable[[], object] | None] = SimpleQueue()
        thread = threading.Thread(target=self._main, name="greenroom-sqlite", daemon=True)
        # In no request's context: see `greenroom.threads`.
        Context().run(thread.start)

    def call(self, connection: Any, fn: Callable[..., T], args: Any) -> T:
        job = _Job(fn, args)
        self._inbox.put(job)
        try:
            bridge.pause(job.future)
        except BaseException:
            if not job.done:
                connection.suspect = True
                job.interrupt(connection)
                # Thrown away, nothing can be waited for: what follows on its thread comes after.
                with suppress(BridgeError):
                    bridge.shielded(job.wait)
            raise
        if job.error is not None:
            try:
                raise job.error
            finally:
                # The traceback refers to this frame.
                job.error = None
        return job.result  # type: ignore[no-any-return]

    def later(self, fn: Callable[[], object]) -> None:
        """Call `fn` on the thread, and don't wait."""
        self._inbox.put(fn)

    def end(self, fn: Callable[[], object]) -> None:
        """Call `fn` on the thread, and let the thread end."""
        self._inbox.put(fn)
        self._inbox.put(None)

    def _main(self) -> None:
        while (job := self._inbox.get()) is not None:
            if isinstance(job, _Job):
                try:
                    job.result = job.fn(*job.args)
                except BaseException as exc:
                    job.error = exc
                try:
                    job.loop.call_soon_threadsafe(job.finish)
                except RuntimeError:
                    logger.debug("A call on SQLite ended after its loop.")
            else:
                try:
                    job()
                except Exception:
                    logger.exception("An error when SQLite closed what was left")
            del job


# The queue of writers: one for each file of this process.

_writers: dict[str, Turn] = {}

# Those who write in the parent never tell a child that they are done.
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_writers.clear)


def _writers_of(name: str) -> Turn:
    turn = _writers.get(name)
    if turn is None:
        seconds = conf.settings().db_timeout_of(DEFAULT_DB_ALIAS)
        turn = _writers.setdefault(name, Turn(seconds, _locked))
    return turn


def _locked(holder: str) -> Exception:
    return sqlite3.OperationalError(f"database is locked by a writer of this process: {holder}")


_READS, _WRITES, _BEGINS, _BEGINS_WRITING, _STATE, _ENDS = (
    "reads",
    "writes",
    "begins",
    "begins writing",
    "makes state",
    "ends",
)

# Characters of a statement up to which its kind is kept.
_KEPT = 4096

_COMMENTS = re.compile(r"^(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/|;)*", re.DOTALL)
_CHANGES = re.compile(r"\b(?:INSERT|UPDATE|DELETE|REPLACE)\b", re.IGNORECASE)
_TEMPORARY = re.compile(r"\btemp(?:orary)?\b", re.IGNORECASE)


def _kind(statement: str) -> str:
    """What a statement does, by its first words."""
    return (_kind_of if len(statement) <= _KEPT else _kind_of.__wrapped__)(statement)


@lru_cache(maxsize=4096)
def _kind_of(statement: str) -> str:
    words = _COMMENTS.sub("", statement).split(None, 2)
    first = words[0].upper().rstrip(";") if words else ""
    match first:
        case "SELECT" | "EXPLAIN" | "VALUES":
            return _READS
        case "WITH" if not _CHANGES.search(statement):
            return _READS
        case "SAVEPOINT" | "RELEASE" | "ROLLBACK" | "COMMIT" | "END" | "":
            return _ENDS
        case "BEGIN":
            mode = words[1].upper().rstrip(";") if len(words) > 1 else ""
            return _BEGINS_WRITING if mode in ("IMMEDIATE", "EXCLUSIVE") else _BEGINS
        case "PRAGMA" | "ATTACH" | "DETACH":
            return _STATE
        case "CREATE" | "DROP" | "ALTER" if _TEMPORARY.search(statement):
            return _STATE
    return _WRITES


class SQLite(borrow.Wrapper):
    """What is put before Django's SQLite wrapper, or a subclass of it."""

    @classmethod
    def base(cls) -> type:
        return DatabaseWrapper

    @classmethod
    def why_not(cls, name: str) -> str | None:
        if ":memory:" in name or "mode=memory" in name:
            return "is in memory, where connections don't share it"
        return None

    def get_connection_params(self) -> dict[str, Any]:
        params = super().get_connection_params()  # type: ignore[misc]
        params["factory"] = _connection_class(params.get("factory", sqlite3.Connection))
        return params  # type: ignore[no-any-return]

    def driver(self) -> Driver:
        params = self.get_connection_params()

        def make() -> Any:
            open_one = super(SQLite, self).get_new_connection  # type: ignore[misc]
            if not bridge.in_bridge():
                connection = open_one(params)
            else:
                # On its thread from the first: it reads files.
                driver = _Driver()
                made: list[Any] = []

                def close_it() -> None:
                    for each in made:
                        sqlite3.Connection.close(each)

                try:
                    driver.call(_NotYet(), lambda: made.append(open_one(params)), ())
                except BaseException:
                    # Nobody may be waiting for it by the time that it is open.
                    driver.end(close_it)
                    raise
                (connection,) = made
                connection._driver = driver
            connection.session_state = False
            return connection

        def clean(connection: Any) -> None:
            if connection.in_transaction:
                connection.rollback()
            connection.suspect = False

        return Driver(make, None, clean)

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        if not self.borrows:
            return super().get_new_connection(conn_params)  # type: ignore[misc]
        connection = self.borrow()
        connection.as_made()
        return connection

    def create_cursor(self, name: str | None = None) -> Any:
        return self.connection.cursor(factory=_DjangoCursor)

    def _set_autocommit(self, autocommit: bool) -> None:
        connection = self.connection
        level = None if autocommit else ""
        if connection.isolation_level == level and not connection.in_transaction:
            return
        with self.wrap_database_errors:
            try:
                # Setting it to None commits.
                connection.call(setattr, connection, "isolation_level", level)
            finally:
                connection._after()

    def after_interruption(self) -> None:
        """SQLite may have rolled back: what follows must not run outside of the block."""
        if self.in_atomic_block and not self.connection.in_transaction:
            self.needs_rollback = True

    def is_lost(self) -> bool:
        connection = self.connection
        return self.needs_rollback and connection is not None and not connection.in_transaction

    def _close(self) -> Any:
        if self.borrows and self.connection is not None:
            self.connection._pool.give_back(self.connection)
            self.connection = None
            return None
        return super()._close()  # type: ignore[misc]


class _NotYet:
    """In the place of a connection that is being made: nothing can be interrupted."""

    suspect = False

    def interrupt(self) -> None:
        pass


@lru_cache(maxsize=16)
def _connection_class(factory: type) -> Any:
    if issubclass(factory, WaitingConnection):
        return factory
    if factory is sqlite3.Connection:
        return WaitingConnection
    return type(factory.__name__, (WaitingConnection, factory), {})
