"""Redis: Django's cache backend, whose connections wait on the loop in a bridge.

redis-py's synchronous client does all its I/O by three methods of a socket. Those of
`WaitingSocket` give the loop the descriptor to watch in a bridge; elsewhere they block, as
always. So the client, its pool, parsers and pipelines, and Django's backend are unchanged, and a
connection can be used from the loop and from threads.

Rule 1: **a socket on which a wait was interrupted is closed**, here, whatever redis-py does about
it (it disconnects after any error, cancellations among them). A reply that nobody read would be
taken for that of the next command: it may be somebody else's session.

Rule 2: **nothing is waited for under a lock of redis-py's.** Its `ConnectionPool` connects after
it has released its own. `BlockingConnectionPool` waits in a `queue.Queue`, and credentials that
are renewed are sent beneath the lock: such caches are on threads.

Rule 3: **connections are made on a thread**, once for each: names are resolved there.

Rule 4: **the tasks of a loop use a bounded number of connections at a time**. Others wait for one
in order, for as long as an answer may take.

`why_not` says what holds a cache on threads. Read: redis-py 5.0 to 8.1, with and without hiredis;
Django 5.2 to 6.1.

Private, and relied on: of redis-py `Connection._connect`, `UnixDomainSocketConnection._connect`,
and that it disconnects after a `BaseException`; `_HiredisParser`, `_RESP2Parser`, `_RESP3Parser`;
of Django `RedisCache._cache`, `._options`, `._servers`,
`RedisCacheClient._get_connection_pool`, `._client`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from django.core.cache.backends import redis as backend
from django.core.cache.backends.base import default_key_func
from django.utils.functional import cached_property
from django.utils.module_loading import import_string
from redis import connection as library
from redis.exceptions import TimeoutError as RedisTimeoutError

from .. import bridge
from ..off_loop import off_loop

# Connections to one server that the tasks of a loop use at a time, where OPTIONS have no
# "max_connections". A server that answers in a millisecond does 32,000 commands a second by them.
CONNECTIONS = 32

# Of OPTIONS and of the query in LOCATION: what changes nothing about how redis-py waits.
KNOWN_OPTIONS = frozenset(
    {
        "client_name",
        "db",
        "decode_responses",
        "driver_info",
        "encoding",
        "encoding_errors",
        "health_check_interval",
        "host",
        "legacy_responses",
        "lib_name",
        "lib_version",
        "max_connections",
        "parser_class",
        "password",
        "path",
        "port",
        "protocol",
        "retry_on_error",
        "retry_on_timeout",
        "serializer",
        "socket_connect_timeout",
        "socket_keepalive",
        "socket_keepalive_options",
        "socket_read_size",
        "socket_timeout",
        "socket_type",
        "username",
    }
)


def why_not(cache: Any, why_unsafe: Callable[[Any], str | None]) -> str | None:
    """Why a client of Django's can't be one of the loop; None if it can.

    `why_unsafe` judges code of the project's, as `greenroom.placement` does.
    """
    if type(cache) is not backend.RedisCache:
        return "is of a class that is not known to wait on the loop"
    if "_cache" in vars(cache):
        return "was used before"
    options = dict(cache._options)  # type: ignore[attr-defined]
    for server in cache._servers:  # type: ignore[attr-defined]
        try:
            found = library.parse_url(server)
        except ValueError as exc:
            return f"has a LOCATION that redis-py refuses: {exc}"
        kind = found.pop("connection_class", library.Connection)
        if kind not in _CONNECTIONS:
            return f"connects by {kind.__name__}, which is not known to wait on the loop"
        options.update(found)
    unknown = sorted(options.keys() - KNOWN_OPTIONS)
    if unknown:
        return f"has the option {unknown[0]!r}, with which it is not known to wait on the loop"
    parser = options.get("parser_class")
    if parser is not None and _imported(parser) not in _PARSERS:
        return "has a parser_class that is not known to wait on the loop"
    called = [] if cache.key_func is default_key_func else [cache.key_func]
    serializer = options.get("serializer")
    if serializer is not None and _imported(serializer) is not backend.RedisSerializer:
        called.append(_imported(serializer))
    for code in called:
        reason = why_unsafe(code)
        if reason is not None:
            return f"calls {getattr(code, '__qualname__', type(code).__qualname__)}, which {reason}"
    return None


def _imported(named: Any) -> Any:
    return import_string(named) if isinstance(named, str) else named


def waiting(cache: Any) -> Any:
    """Make a client that `why_not` says nothing against one of the loop."""
    cache.__class__ = WaitingCache
    return cache


class WaitingCache(backend.RedisCache):
    """Django's, for the tasks of a loop. Its coroutines call the plain methods where they are."""

    @cached_property
    def _cache(self) -> Any:
        options: Any = {**self._options, "pool_class": WaitingPool}  # type: ignore[attr-defined]
        return _Client(self._servers, **options)  # type: ignore[attr-defined]

    def get_or_set(self, key: Any, default: Any, *args: Any, **kwargs: Any) -> Any:
        if callable(default):
            # It is called to save time another time: it takes some.
            default = partial(off_loop, default)
        return super().get_or_set(key, default, *args, **kwargs)


def _coroutine(name: str) -> Any:
    async def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = getattr(self, name)
        if bridge.in_bridge():
            return call(*args, **kwargs)
        return await bridge.run(call, *args, **kwargs)

    method.__name__ = f"a{name}"
    method.__qualname__ = f"WaitingCache.a{name}"
    return method


for _name in (
    "add",
    "clear",
    "decr",
    "decr_version",
    "delete",
    "delete_many",
    "get",
    "get_many",
    "get_or_set",
    "has_key",
    "incr",
    "incr_version",
    "set",
    "set_many",
    "touch",
):
    setattr(WaitingCache, f"a{_name}", _coroutine(_name))


class _Client(backend.RedisCacheClient):
    """Django's, with one client of redis-py's for each pool: making one costs half a command."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._clients: dict[Any, Any] = {}

    def get_client(self, key: Any = None, *, write: bool = False) -> Any:
        pool = self._get_connection_pool(write)  # type: ignore[attr-defined]
        client = self._clients.get(pool)
        if client is None:
            client = self._clients[pool] = self._client(connection_pool=pool)  # type: ignore[attr-defined]
        return client


class WaitingPool(library.ConnectionPool):  # type: ignore[misc]
    """redis-py's pool, of which tasks wait for a connection where there is none."""

    def __init__(
        self,
        connection_class: Any = library.Connection,
        max_connections: int | None = None,
        **kwargs: Any,
    ) -> None:
        if _DRIVER_INFO is not None and not kwargs.keys() & _DRIVER_OPTIONS:
            # Each connection would make one, and look redis-py's version up in files.
            kwargs["driver_info"] = _DRIVER_INFO
        super().__init__(
            connection_class=_CONNECTIONS[connection_class],
            max_connections=max_connections,
            **kwargs,
        )
        self._limit = max_connections or CONNECTIONS
        self._timeout = kwargs.get("socket_timeout", _DEFAULT_TIMEOUT)
        self._slots: asyncio.Semaphore | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        if not bridge.in_bridge():
            return super().get_connection(*args, **kwargs)
        loop = asyncio.get_running_loop()
        if self._slots is None or self._loop is not loop:
            self._slots, self._loop = asyncio.Semaphore(self._limit), loop
        slots = self._slots
        bridge.await_(self._turn(slots) if slots.locked() else slots.acquire())
        try:
            connection = super().get_connection(*args, **kwargs)
        except BaseException:
            slots.release()
            raise
        connection.slot = loop, slots
        return connection

    async def _turn(self, slots: asyncio.Semaphore) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await slots.acquire()
        except TimeoutError:
            raise RedisTimeoutError(
                f"All {self._limit} connections to Redis were in use for {self._timeout} seconds: "
                f'see what it is doing, or set "max_connections" in OPTIONS of the cache.'
            ) from None

    def release(self, connection: Any) -> None:
        slot, connection.slot = connection.slot, None
        try:
            super().release(connection)
        finally:
            if slot is not None:
                loop, slots = slot
                if asyncio._get_running_loop() is loop:
                    slots.release()
                else:
                    # What was begun in a task was given to a thread.
                    with suppress(RuntimeError):
                        loop.call_soon_threadsafe(slots.release)


class _Waiting:
    """What is put before redis-py's connections."""

    # Of the loop's, while it is used from there.
    slot: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None = None

    def _connect(self) -> Any:
        connect: Callable[[], Any] = super()._connect  # type: ignore[misc]
        made: list[WaitingSocket] = []
        try:
            off_loop(lambda: made.append(WaitingSocket.of(connect())))
        except BaseException:
            # It was cancelled meanwhile.
            for sock in made:
                sock.close()
            raise
        return made[0]


class WaitingConnection(_Waiting, library.Connection):  # type: ignore[misc]
    pass


class WaitingUnixConnection(_Waiting, library.UnixDomainSocketConnection):  # type: ignore[misc]
    pass


_CONNECTIONS: dict[Any, Any] = {
    library.Connection: WaitingConnection,
    library.UnixDomainSocketConnection: WaitingUnixConnection,
}
_PARSERS = (library._HiredisParser, library._RESP2Parser, library._RESP3Parser)
_DRIVER_OPTIONS = frozenset({"driver_info", "lib_name", "lib_version"})
# Since redis-py 7; what a connection says of itself where nothing is given.
_DRIVER_INFO: Any = library.DriverInfo() if hasattr(library, "DriverInfo") else None
# Since redis-py 8.
_DEFAULT_TIMEOUT: float | None = getattr(library, "DEFAULT_SOCKET_TIMEOUT", None)


class WaitingSocket(socket.socket):
    """A socket that waits on the loop where it can. To the system it never blocks.

    `settimeout` costs no call of the system: redis-py calls it twice for each command.
    """

    __slots__ = ("_limit", "_watch")

    _limit: float | None
    # The wait that is under way on a loop.
    _watch: _Watch | None

    @classmethod
    def of(cls, sock: socket.socket) -> WaitingSocket:
        """In the place of `sock`, which is detached."""
        limit = sock.gettimeout()
        made = cls(sock.family, sock.type, sock.proto, fileno=sock.detach())
        made._limit, made._watch = limit, None
        super().settimeout(made, 0)
        return made

    def settimeout(self, value: float | None) -> None:
        self._limit = value

    def gettimeout(self) -> float | None:
        return self._limit

    def sendall(self, data: Any, flags: int = 0) -> None:
        limit = self._limit
        deadline = None if limit is None else time.monotonic() + limit
        rest = memoryview(data).cast("B")
        while True:
            try:
                rest = rest[self.send(rest, flags) :]
            except BlockingIOError:
                if limit == 0:
                    raise
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                self._wait(True, left)
            if not rest:
                return

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        while True:
            if not flags and self._limit != 0:
                # (A reply is never there at once.)
                self._wait(False, self._limit)
            try:
                return super().recv(bufsize, flags)
            except BlockingIOError:
                if flags or self._limit == 0:
                    raise

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        while True:
            if not flags and self._limit != 0:
                self._wait(False, self._limit)
            try:
                return super().recv_into(buffer, nbytes, flags)
            except BlockingIOError:
                if flags or self._limit == 0:
                    raise

    def close(self) -> None:
        """Close it. Whoever waits for it on the loop gets an error."""
        watch = self._watch
        if watch is not None:
            if asyncio._get_running_loop() is not watch.loop:
                # Until then its number must not be another file's. (redis-py has shut it down.)
                with suppress(RuntimeError):
                    watch.loop.call_soon_threadsafe(self.close)
                    return
            watch.stop()
        super().close()

    def _wait(self, writes: bool, limit: float | None) -> None:
        fileno = self.fileno()
        if fileno < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if self._watch is not None:
            raise OSError(errno.EBUSY, "another task waits for an answer on this connection")
        if bridge.in_bridge():
            watch = self._watch = _Watch(fileno, writes)
            try:
                ready = watch.wait(limit)
            except BaseException:
                self.close()
                raise
            finally:
                watch.stop()
                self._watch = None
        else:
            poll = select.poll()
            poll.register(fileno, select.POLLOUT if writes else select.POLLIN)
            ready = bool(poll.poll(None if limit is None else limit * 1000))
        if not ready:
            raise TimeoutError("timed out")


class _Watch:
    """One wait for a socket, on the loop."""

    __slots__ = ("fileno", "future", "loop", "writes")

    def __init__(self, fileno: int, writes: bool) -> None:
        self.loop = loop = asyncio.get_running_loop()
        self.fileno = fileno
        self.writes = writes
        self.future: asyncio.Future[bool] = loop.create_future()

    def wait(self, limit: float | None) -> bool:
        """Whether it was ready in time."""
        add = self.loop.add_writer if self.writes else self.loop.add_reader
        add(self.fileno, _set, self.future, True)
        timer = None if limit is None else self.loop.call_later(limit, _set, self.future, False)
        try:
            return bridge.pause(self.future, hooked=True)
        finally:
            if timer is not None:
                timer.cancel()

    def stop(self) -> None:
        """Before the descriptor is closed: its number may be used again at once."""
        if self.fileno >= 0:
            remove = self.loop.remove_writer if self.writes else self.loop.remove_reader
            remove(self.fileno)
            self.fileno = -1
            _set(self.future, True)


def _set(future: asyncio.Future[bool], ready: bool) -> None:
    if not future.done():
        future.set_result(ready)
