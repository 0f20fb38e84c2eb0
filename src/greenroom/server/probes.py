"""Liveness and readiness, on a listening socket of their own.

=====================  ======================================================
``GET`` (or ``HEAD``)  answer
=====================  ======================================================
``/livez``             200: the loop turns; nothing answers where it doesn't
``/readyz``            200: requests are answered; 503: none will be any more
others                 404; 405 for other methods
=====================  ======================================================

It is a second `Server` on the same loop, with limits of its own, no keep-alive, and
neither hooks nor an access log: so it answers when the connections of the first are
used up, and counts for nothing.

The socket is shared by all workers of a gunicorn, so any of them may be the one
that answers for all. A worker that drains

- looks at the socket only every `LOOK` seconds: whoever serves takes a probe first;
- says 503 only if **no other worker serves or boots**: a reload, or the end of one
  of several workers, isn't the end of the service. A probe that comes while the
  new workers of a reload boot waits for one of them if the old ones have ended, as
  requests do.

Who serves or boots is known by a lock that each worker holds on a file which was
made before they were forked (`Group`): the kernel gives it up for a process that
dies. It is one of POSIX's (`fcntl.lockf`), which belong to a process and aren't
inherited, unlike those of `flock`, which live as long as any copy of a descriptor.
Between the fork and its first steps a worker has no lock yet; on a busy machine that
took more than `LOOK` (gunicorn ends the old ones at once when it has forked). So the
master marks those that it is about to fork, in memory that all share.
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import socket
import struct
import tempfile
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..loops import Home
from .config import Config
from .head import Environ
from .lifecycle import Server

if TYPE_CHECKING:
    from .lifecycle import Log

# Seconds between two looks at the socket, while draining.
LOOK = 0.25
# Connections at a time.
CONNECTIONS = 32
# Seconds for a whole request; and, at the end, for those that were accepted.
_REQUEST = 5.0
_LAST = 0.3
# What was forked and hasn't joined in so many seconds has died.
_UNBORN = 10.0
_MARKS = 256
_TIME = struct.Struct("d")


class Group:
    """The workers of one gunicorn that serve or boot. To be made before they are forked."""

    def __init__(self, directory: str | None = None) -> None:
        # A bare descriptor, which lives as long as the process.
        self._descriptor, path = tempfile.mkstemp(prefix="greenroom-", dir=directory)
        os.unlink(path)
        # A byte for each that was forked and has not joined; when the last one was.
        self._forked = mmap.mmap(-1, _MARKS + _TIME.size)

    def expect(self, number: int) -> None:
        """A process is about to be forked. `number` tells it from others of its time."""
        self._forked[number % _MARKS] = 1
        _TIME.pack_into(self._forked, _MARKS, time.monotonic())

    def join(self, number: int) -> None:
        """This process serves, or will."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_SH)
        self._forked[number % _MARKS] = 0

    def leave(self) -> None:
        """This process drains."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def others(self) -> bool:
        """Whether another process serves or boots. To be asked after `leave`."""
        if any(self._forked[:_MARKS]):
            (last,) = _TIME.unpack_from(self._forked, _MARKS)
            if time.monotonic() - last < _UNBORN:
                return True
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN)
        return False


class Probes:
    """Answers probes from `listen` to `aclose`. Belongs to the loop's thread."""

    def __init__(
        self, home: Home, log: Log, others: Callable[[], bool], server_software: str
    ) -> None:
        self._loop = home.loop
        self._others = others
        self._draining = False
        self._timer: asyncio.TimerHandle | None = None
        config = Config(
            limit_request_line=1024,
            limit_request_fields=32,
            limit_request_field_size=2048,
            keepalive=0,
            connections=CONNECTIONS,
            head_timeout=_REQUEST,
            body_timeout=_REQUEST,
            write_timeout=_REQUEST,
            linger_timeout=1.0,
            linger_total=_REQUEST,
            drain_grace=_LAST,
            # No bodies to speak of.
            max_body=1024,
            accept_batch=CONNECTIONS,
            trusted=(),
            server_software=server_software,
        )
        self._server = Server(self._answer, config, home, _WithoutAccess(log))

    def listen(self, sock: socket.socket) -> None:
        self._server.listen([sock])

    def drain(self) -> None:
        """No further request will be answered by this process. Probes still are."""
        self._draining = True
        self._server.pause()
        self._timer = self._loop.call_later(LOOK, self._look)

    async def aclose(self) -> None:
        """Leave the socket to others; answer what was taken from it."""
        if self._timer is not None:
            self._timer.cancel()
        await self._server.drain(_LAST, clean_up=0.1, backlog=False)

    def _look(self) -> None:
        self._timer = self._loop.call_later(LOOK, self._look)
        self._server.look()

    async def _answer(self, environ: Environ, start_response: Any) -> list[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        headers = [("Content-Type", "text/plain"), ("Cache-Control", "no-store")]
        if path not in ("/livez", "/readyz"):
            status, said = "404 Not Found", "not found"
        elif method not in ("GET", "HEAD"):
            status, said = "405 Method Not Allowed", "method not allowed"
            headers.append(("Allow", "GET, HEAD"))
        elif path == "/readyz" and self._draining and not self._others():
            status, said = "503 Service Unavailable", "draining"
        else:
            status, said = "200 OK", "ok"
        start_response(status, headers)
        return [f"{said}\n".encode()]


class _WithoutAccess:
    """The worker's log, where probes leave no line each."""

    def __init__(self, log: Log) -> None:
        self.debug = log.debug
        self.info = log.info
        self.warning = log.warning
        self.error = log.error
        self.exception = log.exception

    def access(self, *args: Any) -> None:
        pass
