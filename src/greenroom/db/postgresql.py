"""PostgreSQL: psycopg 3's synchronous connection, which waits on the loop in a bridge.

psycopg sends all its I/O through `Connection.wait(generator)`, and connecting and
cancelling through `psycopg.waiting.wait_conn`. `WaitingConnection` overrides the
first; `greenroom.patches` replaces the second. In a bridge both give the loop the
socket to watch; elsewhere they block, as always. So Django's backend and ORM, and
whatever else is written for psycopg, are unchanged, and one connection can be used
from the loop and from threads.

Cancelled while a statement runs, the statement is cancelled in the server, and
what it still answers is read, for up to `CANCEL` seconds; after that the
connection is closed. It is cancelled again and again: psycopg may go on to the
statement, when it was the BEGIN before it that was cancelled.

Closing a server-side cursor never waits: generators close theirs when they are
collected, at any moment. Its CLOSE is sent before the next statement.

A statement that makes state of the session (a `SET`, a `LISTEN`, a temporary
table…) is found in its text, generously: what is held for one only looks like it
costs a reset, at the end of the request. A cursor that was not made by the
connection's `cursor` is taken to make some. The state that a function of the server
makes is not seen, nor what is sent by the connection's `pgconn`: that wants
``DB_LEASE = "request"``, by which each request ends with a reset. What can be set
on the connection object is as it was made when it is lent.

The module is long because a connection, its waits and its cursors share what a
cancellation may find half done.
"""

from __future__ import annotations

import asyncio
import logging
import re
import select
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

import psycopg
from django.db.backends.base.base import RAN_DB_VERSION_CHECK
from django.db.backends.postgresql.base import DatabaseWrapper, psycopg_version
from django.db.backends.postgresql.psycopg_any import IsolationLevel, is_psycopg3
from django.db.backends.signals import connection_created
from psycopg import capabilities, errors, pq, waiting
from psycopg.adapt import AdaptersMap
from psycopg.conninfo import conninfo_attempts_async, conninfo_to_dict
from psycopg.sql import Composable

from greenroom import bridge, conf
from greenroom.errors import BridgeError
from greenroom.turns import Turn

from . import borrow
from .pool import Driver, user

T = TypeVar("T")

logger = logging.getLogger("greenroom.db")

# Seconds that the server gets to cancel a statement, and after which it is asked again.
CANCEL = 5.0
AGAIN = 0.2

# What a statement makes: state that DISCARD ALL resets, or that lasts as long as the session.
RESETTABLE, LASTING = 1, 2

IDLE, INTRANS, INERROR, ACTIVE = (
    pq.TransactionStatus.IDLE,
    pq.TransactionStatus.INTRANS,
    pq.TransactionStatus.INERROR,
    pq.TransactionStatus.ACTIVE,
)


class WaitingConnection(psycopg.Connection[Any]):
    """A connection that waits on the loop where it can."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.holder: Any = None
        self.made_at = time.monotonic()
        self.session_state = 0
        # How many cursors are running statements that were looked at.
        self.watched = 0
        self._as_made: tuple[Any, ...] = ()
        # What ends the waits for its socket that are under way, on the loop.
        self._watches: _Watches = {}
        # An error on it may mean that it is broken.
        self.suspect = False
        # Whether something was cancelled on it while it ran.
        self.interrupted = False
        # Server-side cursors that were closed, and those that are open, by name. One that
        # is closed when its connection is another request's is in neither.
        self.closed_cursors: list[str] = []
        self.open_cursors: set[str] = set()
        # psycopg's is a threading.Lock, held while it waits.
        self.lock = Turn(CANCEL, _busy)  # type: ignore[assignment]

    @classmethod
    def connect(cls, conninfo: str = "", **kwargs: Any) -> Any:
        """As psycopg's; in a bridge, names are resolved without blocking the loop."""
        if not bridge.in_bridge():
            return super().connect(conninfo, **kwargs)
        known = {name: kwargs.pop(name) for name in _OF_PSYCOPG if name in kwargs}
        params: Any = conninfo_to_dict(conninfo, **kwargs)
        attempts: list[Any] = bridge.await_(conninfo_attempts_async(params))
        for attempt in attempts[:-1]:
            try:
                return super().connect(**known, **attempt)
            except psycopg.OperationalError as exc:
                logger.debug("A host could not be reached: %s", exc)
        return super().connect(**known, **attempts[-1])

    def cursor(self, name: str = "", **kwargs: Any) -> Any:
        factory: Any = self.cursor_factory
        if name or kwargs or not isinstance(factory, type):
            cursor: Any = super().cursor(name, **kwargs)
            factory = type(cursor)
            cursor.__class__ = _watched(factory)
            return cursor
        # As psycopg does, but of our class from the start: Python is slow with an object whose
        # class was changed.
        self._check_connection_ok()
        return _watched(factory)(self, row_factory=self.row_factory)

    def remember_as_made(self) -> None:
        """Note what `as_made` is to set again."""
        self._as_made = (
            self.row_factory,
            self.cursor_factory,
            self.server_cursor_factory,
            self.prepare_threshold,
            self.prepared_max,
            self._adapters,
        )

    def as_made(self) -> None:
        """Forget what was set on the object, and not in its session."""
        *plain, adapters = self._as_made
        (
            self.row_factory,
            self.cursor_factory,
            self.server_cursor_factory,
            self.prepare_threshold,
            self.prepared_max,
        ) = plain
        self._adapters = AdaptersMap(adapters)
        self.interrupted = False
        self._isolation_level = self._read_only = self._deferrable = None
        self._begin_statement = b""
        self._notice_handlers.clear()
        self._notify_handlers.clear()
        # Since psycopg 3.2.4.
        backlog = getattr(self, "_notifies_backlog", None)
        if backlog:
            backlog.clear()

    def wait(
        self, gen: Generator[Any, Any, T], interval: float = 0.1, timeout: float | None = None
    ) -> T:
        holder = self.holder
        if holder is not None and holder is not user.get() and borrow.is_lent_elsewhere(holder):
            gen.close()
            raise psycopg.InterfaceError(
                "This connection was given back, and is another request's: take it from "
                "django.db.connection where it is used, and don't keep it."
            )
        if not self.watched and getattr(gen, "__name__", "") in _STATEMENTS:
            self.session_state = max(self.session_state, RESETTABLE)
        if asyncio._get_running_loop() is None or not bridge.in_bridge():
            if timeout is None:
                return super().wait(gen, interval)
            return super().wait(gen, interval, timeout)
        try:
            return _wait(gen, self._place, timeout, self._watches, interval)  # type: ignore[no-any-return]
        except Exception:
            raise
        except BaseException:
            self.interrupted = True
            if self.pgconn.transaction_status == ACTIVE:
                try:
                    bridge.shielded(self._cancel, gen)
                except BridgeError:
                    # Thrown away: nothing can be waited for.
                    self.pgconn.finish()
            raise

    def _place(self, state: int) -> tuple[int, int]:
        return self.pgconn.socket, state

    def close(self) -> None:
        """Close it. Whoever waits for it on the loop gets an error."""
        for each in list(self._watches):
            _stop(each, self._watches)
        super().close()

    def _cancel(self, gen: Generator[Any, Any, Any]) -> None:
        late = time.monotonic() + CANCEL
        while True:
            if capabilities.has_cancel_safe():
                self._try_cancel(timeout=CANCEL)
            else:
                # That of libpq before 17 blocks.
                bridge.await_(asyncio.to_thread(self._try_cancel, timeout=CANCEL))
            try:
                _wait(_resumed(gen), self._place, AGAIN, self._watches, None)
            except errors.QueryCanceled:
                pass
            except psycopg.Error as exc:
                if isinstance(exc, _WaitTimeout) and time.monotonic() < late:
                    continue
                logger.warning(
                    "A statement could not be cancelled, its connection is closed: %s", exc
                )
                self.pgconn.finish()
            return

    # For the pool.

    def is_alive(self) -> bool:
        """Whether the server has not hung up, as far as its socket tells."""
        if not self.is_open():
            return False
        if self.pgconn.transaction_status == ACTIVE:
            return True
        try:
            while _is_readable(self.pgconn.socket):
                # A notification, or the server's last words, and then the end.
                self.pgconn.consume_input()
        except (OSError, ValueError, psycopg.Error):
            return False
        return self.is_open()

    def is_open(self) -> bool:
        return bool(self.pgconn.status == pq.ConnStatus.OK)

    def is_clean(self) -> bool:
        return self.is_idle() and not self.suspect and not self.closed_cursors

    def is_idle(self) -> bool:
        if self.session_state:
            # Also when it is lost: the request must not go on without.
            return False
        return self.pgconn.status != pq.ConnStatus.OK or (
            self.pgconn.transaction_status == IDLE
            and self._autocommit
            and not self.open_cursors
            and self._pipeline is None
            and self.lock.holder is None  # type: ignore[attr-defined]
        )

    def is_in_autocommit(self) -> bool:
        """Whether `autocommit` is on, and nothing is under way."""
        return (
            self._autocommit and self.pgconn.transaction_status == IDLE and self._pipeline is None
        )

    # For its cursors.

    def watch(self, query: Any) -> None:
        """Look at a statement before it is sent, and close what was closed."""
        if self.closed_cursors:
            self.close_cursors()
        if self.session_state != LASTING:
            if isinstance(query, bytes):
                query = query.decode("utf-8", "replace")
            elif not isinstance(query, str) and isinstance(query, Composable):
                query = query.as_string(self)
            state = makes_session_state(query) if isinstance(query, str) else RESETTABLE
            if state > self.session_state:
                self.session_state = state

    def close_cursors(self) -> None:
        """Send the CLOSE of those that still exist: some end with their transaction."""
        status = self.pgconn.transaction_status
        if status not in (IDLE, INTRANS):
            return
        names, self.closed_cursors = self.closed_cursors, []
        quoted = ", ".join(f"'{name}'" for name in names)
        try:
            with self.lock:
                # One without hold may have ended with its transaction, since it was closed.
                found = self.wait(
                    self._exec_command(
                        f"SELECT name FROM pg_catalog.pg_cursors WHERE name IN ({quoted})".encode()
                    )
                )
                assert found is not None
                for row in range(found.ntuples):
                    name = (found.get_value(row, 0) or b"").decode()
                    self.wait(self._exec_command(f'CLOSE "{name}"'.encode()))
        except BaseException:
            # Some may be open: it is cleaned.
            self.suspect = True
            raise


_OF_PSYCOPG = (
    "autocommit",
    "context",
    "cursor_factory",
    "prepare_threshold",
    "row_factory",
)


def _busy(holder: str) -> Exception:
    return psycopg.OperationalError(f"the connection is in use by {holder}")


def _limits(interval: float, timeout: float | None) -> dict[str, float]:
    return {"interval": interval} if timeout is None else {"interval": interval, "timeout": timeout}


def _is_readable(fileno: int) -> bool:
    poll = select.poll()
    poll.register(fileno, select.POLLIN)
    return bool(poll.poll(0))


def wait_conn(
    original: Callable[..., Any], gen: Any, interval: float = 0.0, timeout: float | None = None
) -> Any:
    """What `psycopg.waiting.wait_conn` is replaced by."""
    if not bridge.in_bridge():
        return original(gen, **_limits(interval, timeout))
    return _wait(gen, lambda wanted: wanted, timeout, {}, interval)


def _wait(
    gen: Any,
    place: Callable[[Any], tuple[int, int]],
    timeout: float | None,
    watches: _Watches,
    interval: float | None,
) -> Any:
    """Run one of psycopg's generators to its end, on the loop.

    It yields what it waits for and is sent what is ready; see
    `psycopg.generators`. Raises what it raises, and psycopg's `_WaitTimeout`.
    """
    loop = asyncio.get_running_loop()
    deadline = None if timeout is None else loop.time() + timeout
    try:
        wanted = next(gen)
        while True:
            until = deadline
            if until is None and _COUNT_THEMSELVES and interval:
                until = loop.time() + interval
            fileno, state = place(wanted)
            wanted = gen.send(_watch(loop, fileno, state, watches, until))
            if deadline is not None and loop.time() >= deadline:
                raise _WaitTimeout("wait timeout expired")
    except StopIteration as stop:
        return stop.value


def _resumed(gen: Any) -> Generator[Any, Any, Any]:
    """A generator that was left where it waits: those that send take no None there."""
    ready = 0
    while True:
        try:
            wanted = gen.send(ready)
        except StopIteration as stop:
            return stop.value
        ready = yield wanted


# The generators of psycopg 3.2 have no time limit from outside: they look at the clock
# themselves, whenever nothing is ready after an interval.
_COUNT_THEMSELVES = not hasattr(errors, "_WaitTimeout")
_WaitTimeout: type[psycopg.Error] = getattr(errors, "_WaitTimeout", psycopg.OperationalError)


# The waits for a socket that are under way, each with its loop, descriptor and `waiting.WAIT_…`.
_Watches = dict["asyncio.Future[int]", tuple[Any, int, int]]


def _watch(loop: Any, fileno: int, wanted: int, watches: _Watches, deadline: float | None) -> int:
    """Wait for a socket, on the loop. What is ready, as psycopg has it; 0 if time is over."""
    future: asyncio.Future[int] = loop.create_future()
    if wanted & waiting.WAIT_R:
        loop.add_reader(fileno, _set, future, waiting.READY_R)
    if wanted & waiting.WAIT_W:
        loop.add_writer(fileno, _set, future, waiting.READY_W)
    watches[future] = loop, fileno, wanted
    timer = None if deadline is None else loop.call_at(deadline, _set, future, 0)
    try:
        return bridge.pause(future)
    finally:
        if future in watches:
            _stop(future, watches)
        if timer is not None:
            timer.cancel()


def _stop(future: asyncio.Future[int], watches: _Watches) -> None:
    """Before the descriptor is closed: its number may be used again at once."""
    loop, fileno, wanted = watches.pop(future)
    if wanted & waiting.WAIT_R:
        loop.remove_reader(fileno)
    if wanted & waiting.WAIT_W:
        loop.remove_writer(fileno)
    _set(future, waiting.READY_RW)


def _set(future: asyncio.Future[int], state: int) -> None:
    if not future.done():
        future.set_result(state)


# Cursors.


class _Watched:
    """What is put before a project's cursor class."""

    __slots__ = ()

    _conn: Any

    def execute(self, query: Any, params: Any = None, **kwargs: Any) -> Any:
        # (`_watching` and `watch`, without the calls: this is done for each query.)
        connection = self._conn
        if query.__class__ is str and len(query) <= _KEPT and not connection.closed_cursors:
            state = _found(query)
            if state > connection.session_state:
                connection.session_state = state
        else:
            connection.watch(query)
        connection.watched += 1
        try:
            if kwargs:
                return super().execute(query, params, **kwargs)  # type: ignore[misc]
            return super().execute(query, params)  # type: ignore[misc]
        finally:
            connection.watched -= 1

    def executemany(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        with self._watching(query):
            return super().executemany(query, *args, **kwargs)  # type: ignore[misc]

    @contextmanager
    def copy(self, statement: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with self._watching(statement), super().copy(statement, *args, **kwargs) as copy:  # type: ignore[misc]
            yield copy

    def stream(self, query: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with self._watching(query):
            rows = super().stream(query, *args, **kwargs)  # type: ignore[misc]
            try:
                # By `yield from` it would be closed without our shield.
                for row in rows:  # noqa: UP028
                    yield row
            finally:
                _close_stream(rows)

    @contextmanager
    def _watching(self, query: Any) -> Iterator[None]:
        self._conn.watch(query)
        self._conn.watched += 1
        try:
            yield
        finally:
            self._conn.watched -= 1


def _close_stream(rows: Any) -> None:
    """psycopg cancels one that is left before its end, and waits for that.

    It is left by a generator that is dropped, from which nothing can be raised.
    """
    try:
        bridge.shielded(rows.close)
    except asyncio.CancelledError as exc:
        # Again, and counted once: where the task next waits.
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        task.cancel(*exc.args)


class _ServerSide(_Watched):
    """A server-side cursor whose `close` never waits."""

    __slots__ = ()

    def execute(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        described = self._described  # type: ignore[attr-defined]
        try:
            result = super().execute(query, *args, **kwargs)
        except Exception:
            raise
        except BaseException:
            # It may exist, whatever psycopg knows of it. Django closes it for an
            # `Exception` only.
            self._conn.suspect = True
            self._close()  # type: ignore[attr-defined]
            raise
        if not described:
            self._conn.open_cursors.add(self._name)  # type: ignore[attr-defined]
        return result

    def close(self) -> None:
        connection: WaitingConnection = self._conn
        if self.closed:  # type: ignore[attr-defined]
            return
        name: str = self._name  # type: ignore[attr-defined]
        if name in connection.open_cursors:
            connection.open_cursors.discard(name)
            # Those without hold end with their transaction, by themselves.
            holds = self._withhold  # type: ignore[attr-defined]
            if not connection.closed and (holds or connection.pgconn.transaction_status == INTRANS):
                connection.closed_cursors.append(name)
        self._close()  # type: ignore[attr-defined]


@lru_cache(maxsize=64)
def _watched(factory: type) -> Any:
    if issubclass(factory, _Watched):
        return factory
    first = _ServerSide if issubclass(factory, psycopg.ServerCursor) else _Watched
    return type(factory.__name__, (first, factory), {"__slots__": ()})


# State of the session.

# psycopg's generators that send a statement of somebody's.
_STATEMENTS = frozenset(
    {
        "_declare_gen",
        "_execute_gen",
        "_executemany_gen_no_pipeline",
        "_executemany_gen_pipeline",
        "_start_copy_gen",
        "_stream_send_gen",
    }
)

# How a statement begins. It may be one of several, and stand after comments, some within others.
_BEGINS = re.compile(
    r"""
    (?>(?:\s|--[^\n]*(?:\n|$))*)(?:
        (?P<lasting> load\b | set\s+(?:session\s+)?seed\b)
        | set\b(?!\s+(?:local|transaction|constraints)\b)
        | reset\b | listen\b | unlisten\b | prepare\b(?!\s+transaction\b) | discard\b
        | declare\b | do\b | call\b | deallocate\b
    )
    """,
    re.VERBOSE,
)
_ARGUMENT = r"\s*(?:%s|%\(\w+\)s|\$\d+|\w[\w.]*|'[^'\\]*')(?:::\w+)?\s*"
# What may stand anywhere in it. (What is quoted is the name of a column.)
_HAS = re.compile(
    rf"""
    (?P<lasting> dblink_connect | \bsetseed\b)
    | \bset_config\b(?!\s*\({_ARGUMENT},{_ARGUMENT},\s*true\s*\))
    | \bset_limit\b | \bpg_settings\b
    | \bpg_(?:try_)?advisory_(?:lock|unlock)
    | (?<!")\b(?:temp|temporary)\b(?!") | \bpg_temp
    | \blo_open\b
    """,
    re.VERBOSE,
)
_WORDS = (
    "advisory_",
    "dblink_connect",
    "lo_open",
    "pg_settings",
    "set_config",
    "set_limit",
    "setseed",
    "temp",
)

# Characters of a statement up to which what was found is kept.
_KEPT = 4096


def makes_session_state(statement: str) -> int:
    """Whether what follows a statement on its connection may depend on it, and how long."""
    return _found(statement) if len(statement) <= _KEPT else _found.__wrapped__(statement)


@lru_cache(maxsize=4096)
def _found(statement: str) -> int:
    text = statement.lower()
    # This is fast where there is nothing: a statement may be long.
    found = [_BEGINS.match(each) for each in text.replace("*/", ";").split(";")]
    if any(word in text for word in _WORDS):
        found += _HAS.finditer(text)
    return max((LASTING if each["lasting"] else RESETTABLE for each in found if each), default=0)


# The wrapper.


@lru_cache(maxsize=64)
def _is_plain(kind: type) -> bool:
    """Whether a class of `borrow` connects and closes as Django's backend does."""
    backend: Any = kind.__bases__[1]
    return all(
        getattr(backend, name) is getattr(DatabaseWrapper, name)
        for name in (
            "_close",
            "check_settings",
            "close",
            "connect",
            "get_new_connection",
            "init_connection_state",
            "set_autocommit",
        )
    )


class _Database:
    """psycopg's module, with another `connect`."""

    connect = WaitingConnection.connect

    def __getattr__(self, name: str) -> Any:
        return getattr(psycopg, name)


class PostgreSQL(borrow.Wrapper):
    """What is put before Django's PostgreSQL wrapper, or a subclass of it."""

    Database = _Database()

    @classmethod
    def base(cls) -> type:
        return DatabaseWrapper

    @classmethod
    def why_not(cls, name: str) -> str | None:
        if not is_psycopg3:
            return "has the driver psycopg2, which can't wait on the loop (install psycopg 3)"
        if psycopg_version() < (3, 2):
            return f"has psycopg {psycopg.__version__}, and 3.2 is the first that is known"
        return None

    def driver(self) -> Driver:
        """As Django configures the connections of psycopg's pool."""

        def make() -> Any:
            params = {**self.get_connection_params(), "autocommit": True}  # type: ignore[attr-defined]
            connection = WaitingConnection.connect(**params)
            try:
                configure(connection)
            except BaseException:
                connection.close()
                raise
            connection.remember_as_made()
            return connection

        def configure(connection: Any) -> None:
            self._configure_connection(connection)  # type: ignore[attr-defined]
            connection.session_state = 0

        def check(connection: Any) -> bool:
            try:
                connection.execute("SELECT 1")
            except psycopg.Error:
                return False
            return True

        def clean(connection: Any) -> None:
            if (
                connection.pgconn.transaction_status == ACTIVE
                or connection.session_state == LASTING
            ):
                # Nobody knows what it is doing, or all that it would do differently.
                connection.close()
                return
            # Those that somebody still refers to close nothing from here on.
            connection.closed_cursors.clear()
            connection.open_cursors.clear()
            connection.rollback()
            if not connection.autocommit:
                connection.autocommit = True
            connection.execute("CLOSE ALL")
            if connection.session_state:
                connection.execute("DISCARD ALL")
                connection._prepared.clear()
                configure(connection)
            connection.suspect = False

        healthy = check if self.settings_dict["CONN_HEALTH_CHECKS"] else None
        return Driver(make, healthy, clean)

    # Django's backend gets and returns its connections as from psycopg's pool.

    @property
    def pool(self) -> Any:
        return _Lender(self) if self.borrows else None

    def close_pool(self) -> None:
        """The time zone changes: connections that are lent from now on have the new one."""
        if self._lender is not None:
            self._lender.close()

    def attach(self, connection: WaitingConnection) -> bool:
        """Django's `connect`, which each query after an `await` would come to.

        What that does with a connection of a pool changes nothing but this object. Where it
        does more, it is called: for receivers of `connection_created`, settings that are
        applied there, and backends with methods of their own.
        """
        settings = self.settings_dict
        if (
            not settings["AUTOCOMMIT"]
            or settings["TIME_ZONE"] is not None
            or connection_created.receivers
            or self.alias not in RAN_DB_VERSION_CHECK
            or self.run_commit_hooks_on_set_autocommit_on  # type: ignore[attr-defined]
            or "isolation_level" in settings["OPTIONS"]
            or not _is_plain(type(self))  # type: ignore[arg-type]
            or not connection.is_in_autocommit()
            or conf.settings().db_lease_of(self.alias) == "request"
        ):
            return False
        connection.as_made()
        self.in_atomic_block = self.needs_rollback = False
        self.closed_in_transaction = self.errors_occurred = False
        self.savepoint_ids: list[str] = []
        self.atomic_blocks: list[Any] = []
        self.run_on_commit = []
        self.health_check_enabled = settings["CONN_HEALTH_CHECKS"]
        self.health_check_done = self.autocommit = True
        max_age = settings["CONN_MAX_AGE"]
        self.close_at = None if max_age is None else time.monotonic() + max_age
        self.isolation_level = IsolationLevel.READ_COMMITTED
        self.connection = connection
        return True

    def _set_autocommit(self, autocommit: bool) -> None:
        if autocommit and self.connection.is_in_autocommit():
            # As it is each time that one is lent.
            return
        # What was cancelled before a transaction has not ended it.
        self.connection.interrupted = False
        super()._set_autocommit(autocommit)  # type: ignore[misc]

    def is_lost(self) -> bool:
        """The server would answer the COMMIT by a ROLLBACK, which is no error to it."""
        connection = self.connection
        return (
            connection is not None
            and connection.interrupted
            and connection.pgconn.transaction_status == INERROR
        )

    def _create_cursor(self, name: str | None) -> Any:
        if name is None and DatabaseWrapper.create_cursor is _guarded:
            return _create_cursor(self)
        return self.create_cursor(name)

    def create_cursor(self, name: str | None = None) -> Any:
        cursor = super().create_cursor(name)  # type: ignore[misc]
        if name is not None:
            # It is made without `WaitingConnection.cursor`.
            kind: Any = type(cursor)
            cursor.__class__ = _watched(kind)
        return cursor


_guarded: Any = DatabaseWrapper.create_cursor
_create_cursor: Callable[[Any], Any] = _guarded.__wrapped__


class _Lender:
    """What Django's backend takes for its pool."""

    def __init__(self, wrapper: PostgreSQL) -> None:
        self._wrapper = wrapper

    def open(self) -> None:
        """Nothing: connections are made when they are first asked for."""

    def close(self) -> None:
        self._wrapper.close_pool()

    def getconn(self) -> Any:
        connection = self._wrapper.borrow()
        # What the last one may have set.
        connection.as_made()
        if conf.settings().db_lease_of(self._wrapper.alias) == "request":
            connection.session_state = RESETTABLE
        return connection
