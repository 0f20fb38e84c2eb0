"""The driver's connections of one database, shared by the requests of a process.

Rule 1: at most `limit` connections exist. Who finds none free waits in order, on
the loop or on a thread, for at most `timeout` seconds; the error names who holds
what.

Rule 2: **only what is known to be clean is pooled.** A connection that comes back
in any other state is handed to `clean`, in the background, and closed if that
fails. Giving back never waits.

Rule 3: age and health belong to the driver's connection. `max_age` (Django's
CONN_MAX_AGE) counts from its making; 0 closes what was idle for `IDLE` seconds,
since a pool that closed at every request would be none. What the server has hung
up is noticed without asking it; with `check` (CONN_HEALTH_CHECKS) the server is
asked each time that a connection is lent.

A process that was forked starts with an empty pool: the parent's connections are
left alone, and never closed, which would end them for the parent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context, ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol
from weakref import WeakSet

from django.db import OperationalError

from greenroom.bridge import run, shielded
from greenroom.turns import Parking

logger = logging.getLogger("greenroom.db")

# Who runs here, by which a connection knows whether it is lent to them: a scope of `borrow`.
user: ContextVar[Any] = ContextVar("greenroom.db.scope", default=None)

# Seconds until an idle connection is closed where CONN_MAX_AGE is 0.
IDLE = 10.0


class Connection(Protocol):
    """What the pool must know of a driver's connection."""

    made_at: float
    # The scope that has it on loan. See `borrow`.
    holder: Any
    # The pool it belongs to.
    _pool: Any
    # Set by who had an error on it: it is then cleaned, which shows whether it works.
    suspect: bool

    def is_clean(self) -> bool:
        """Whether the next request would find it as if new. Does no I/O."""

    def is_idle(self) -> bool:
        """Whether it may be given back while its request goes on.

        It may want cleaning, or be broken.
        """

    def is_open(self) -> bool:
        """Whether it is connected, as far as it knows itself. Does no I/O."""

    def is_alive(self) -> bool:
        """Whether it is still connected, as far as is known without asking."""

    def close(self) -> None:
        """Close it, without waiting."""


@dataclass(frozen=True)
class Driver:
    """How the connections of one database are made, checked and cleaned.

    All three may wait, in a bridge or by blocking a thread.
    """

    make: Callable[[], Connection]
    check: Callable[[Connection], bool] | None
    clean: Callable[[Connection], None]


@dataclass(frozen=True)
class Limits:
    limit: int
    timeout: float
    max_age: float | None
    keep: int = 0


class Pool:
    """Connections to one database. Its methods are for the loop and for threads."""

    def __init__(self, alias: str, driver: Driver, limits: Limits) -> None:
        self.alias = alias
        self.limits = limits
        self.closed = False
        self._driver = driver
        self._lock = threading.Lock()
        self._idle: list[tuple[Connection, float]] = []
        self._waiting: deque[Parking] = deque()
        # Who has which, and since when.
        self._loans: dict[int, tuple[str, float]] = {}
        # All that exist, those that are being made or cleaned included.
        self._size = 0
        self._tasks: set[asyncio.Task[None]] = set()
        # Of the loop that was running when it was set.
        self._timer: tuple[asyncio.AbstractEventLoop, asyncio.TimerHandle] | None = None
        _pools.add(self)

    @property
    def size(self) -> int:
        """How many connections exist."""
        return self._size

    def lend(self, holder: str) -> Connection:
        """A connection that is free, or a new one.

        Raises `OperationalError` if none came free in time, what the driver
        raises if none can be made, and `CancelledError`.
        """
        place = self._take()
        while True:
            try:
                if place is None:
                    connection = self._make()
                else:
                    connection = place
                    if not self._is_good(connection):
                        self._close(connection)
                        place = None
                        continue
            except BaseException:
                if place is not None:
                    self._close(place)
                self._vacate()
                raise
            self._loans[id(connection)] = holder, time.monotonic()
            return connection

    def give_back(self, connection: Connection) -> None:
        """Take a connection back, in whatever state it is. Never waits."""
        self._loans.pop(id(connection), None)
        connection.holder = self
        # Whether the server has hung up is looked at when it is lent.
        if self.closed or not connection.is_open():
            self._close(connection)
            self._vacate()
        elif connection.is_clean():
            self._free(connection)
        elif asyncio._get_running_loop() is None:
            Context().run(self._clean, connection, _Cleaning())
        else:
            cleaning = _Cleaning()
            # Not in the context of the request, which it must not keep alive.
            task = asyncio.get_running_loop().create_task(
                self._clean_later(connection, cleaning),
                name="greenroom-clean",
                context=Context(),
            )
            self._tasks.add(task)
            task.add_done_callback(partial(self._cleaned, connection, cleaning))

    # So Django's backend calls it.
    putconn = give_back

    def close(self) -> None:
        """Close what is idle now, and all else when it comes back."""
        with self._lock:
            self.closed = True
            idle, self._idle = self._idle, []
            self._size -= len(idle)
        for connection, _ in idle:
            connection.close()
        if self._timer is not None:
            self._timer[1].cancel()
            self._timer = None

    def _take(self) -> Connection | None:
        """An idle connection; None for the right to make one."""
        with self._lock:
            if not self._waiting or all(parking.is_lost() for parking in self._waiting):
                if self._idle:
                    return self._idle.pop()[0]
                if self._size < self.limits.limit:
                    self._size += 1
                    return None
            parking = Parking()
            self._waiting.append(parking)
        try:
            woken = parking.wait(self.limits.timeout)
        except BaseException:
            if not self._withdraw(parking):
                self._pass_on(parking.value)
            raise
        if not woken and self._withdraw(parking):
            raise OperationalError(self._exhausted())
        return None if parking.value is _RIGHT else parking.value

    def _make(self) -> Connection:
        made: list[Connection] = []

        def make() -> None:
            connection = self._driver.make()
            connection.made_at = time.monotonic()
            connection._pool = self
            made.append(connection)

        try:
            shielded(make)
        except BaseException:
            # Cancelled meanwhile.
            for connection in made:
                connection.close()
            raise
        return made[0]

    def _is_good(self, connection: Connection) -> bool:
        age = time.monotonic() - connection.made_at
        if self.limits.max_age and age >= self.limits.max_age:
            return False
        connection.holder = user.get()
        return connection.is_alive() and (
            self._driver.check is None or self._driver.check(connection)
        )

    def _free(self, connection: Connection) -> None:
        """Hand a clean connection to the first who waits, or keep it."""
        with self._lock:
            if self._hand(connection):
                return
            closed = self.closed
            if not closed:
                self._idle.append((connection, time.monotonic()))
            else:
                self._size -= 1
        if closed:
            connection.close()
        else:
            self._arm()

    def _vacate(self) -> None:
        """A connection is gone: the first who waits may make another."""
        with self._lock:
            if not self._hand(_RIGHT):
                self._size -= 1

    def _pass_on(self, value: Any) -> None:
        if value is _RIGHT:
            self._vacate()
        else:
            self._free(value)

    def _hand(self, value: Any) -> bool:
        """Give it to the first who waits, if anybody does. Needs the lock."""
        for parking in self._waiting:
            if not parking.is_lost():
                self._waiting.remove(parking)
                parking.value = value
                parking.wake()
                return True
        return False

    def _withdraw(self, parking: Parking) -> bool:
        with self._lock:
            if parking.value is None:
                self._waiting.remove(parking)
                return True
            return False

    async def _clean_later(self, connection: Connection, cleaning: _Cleaning) -> None:
        await run(self._clean, connection, cleaning)

    def _clean(self, connection: Connection, cleaning: _Cleaning) -> None:
        """In a context of its own: nobody else may use the connection meanwhile."""
        cleaning.begun = True
        connection.holder = cleaning
        user.set(cleaning)
        clean = False
        try:
            self._driver.clean(connection)
            clean = connection.is_alive() and connection.is_clean() and not self.closed
        except Exception as exc:
            logger.debug("A connection to %r could not be cleaned: %s", self.alias, exc)
        finally:
            # What was interrupted is closed, never pooled.
            connection.holder = self
            if clean:
                self._free(connection)
            else:
                self._close(connection)
                self._vacate()

    def _close(self, connection: Connection) -> None:
        """However that goes, its place is free."""
        try:
            connection.close()
        except Exception as exc:
            logger.debug("A connection to %r could not be closed: %s", self.alias, exc)

    def _cleaned(
        self, connection: Connection, cleaning: _Cleaning, task: asyncio.Task[None]
    ) -> None:
        self._tasks.discard(task)
        if not cleaning.begun:
            # It was cancelled before: the loop ends.
            self._close(connection)
            self._vacate()

    # Idle connections.

    def _arm(self) -> None:
        loop = asyncio._get_running_loop()
        if loop is None:
            # No timer here: what threads gave back is looked at now.
            self._sweep()
        elif self._timer is None or self._timer[0].is_closed():
            # In an empty context, since it outlives the request.
            self._timer = loop, loop.call_later(IDLE, self._on_timer, context=Context())

    def _on_timer(self) -> None:
        self._timer = None
        self._sweep()
        if self._idle:
            self._arm()

    def _sweep(self) -> None:
        """Close what was idle, or lived, for too long; the least recently used first."""
        now = time.monotonic()
        max_age = self.limits.max_age
        old: list[Connection] = []
        with self._lock:
            kept = []
            spare = len(self._idle) - self.limits.keep
            for connection, since in self._idle:
                too_old = max_age and now - connection.made_at >= max_age
                too_idle = max_age == 0 and now - since >= IDLE and len(old) < spare
                if too_old or too_idle:
                    old.append(connection)
                else:
                    kept.append((connection, since))
            self._idle = kept
            self._size -= len(old)
        for connection in old:
            connection.close()

    def _exhausted(self) -> str:
        now = time.monotonic()
        loans = sorted(self._loans.values(), key=lambda loan: loan[1])
        held = ", ".join(f"{holder} for {now - since:.1f} s" for holder, since in loans[:5])
        more = f" and {len(loans) - 5} more" if len(loans) > 5 else ""
        return (
            f"No connection to the database {self.alias!r} came free within "
            f"{self.limits.timeout:g} s. All {self.limits.limit} are in use, by: {held or 'nobody'}"
            f"{more}. Hold transactions and cursors for less time, or raise "
            "GREENROOM['DB_MAX_CONNECTIONS']."
        )


class _Cleaning:
    """Who holds a connection that is being cleaned."""

    begun = False
    closed = False
    shared = False


class _Right:
    """Handed over in the place of a connection: make one."""


_RIGHT = _Right()
_pools: WeakSet[Pool] = WeakSet()
_abandoned: list[Any] = []


def _after_fork() -> None:
    for pool in list(_pools):
        _abandoned.append((pool._idle, pool._loans))
        pool._idle, pool._loans = [], {}
        pool._size = 0
        pool._lock = threading.Lock()
        pool._waiting = deque()
        pool._timer = None


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
