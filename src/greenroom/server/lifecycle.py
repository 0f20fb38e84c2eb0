"""The server of one process: accept, deadlines, drain.

``Server.listen → (sweep once a second) → drain``; `stopping` is set by whoever
wants it to end, and then no further connection is accepted.

- **Accepting** is done here, in batches: uvloop accepts one connection per
  iteration of the loop, which under load keeps new ones waiting for half a second.
  At `Config.connections` the listening sockets aren't looked at any more: later
  clients wait in the backlog, and nobody is reset.
- **One sweep** a second compares all deadlines with the clock, and calls the
  worker's `tick`.
- **Draining**: what is in the backlog is accepted first (when the last process
  closes a listening socket, the kernel resets what it had accepted for it), then
  the sockets are closed. Idle connections are closed, each request that arrived is
  answered with ``Connection: close``. What is left when the time is over is
  cancelled.
- `SystemExit` of an application means: drain, then exit with its code.
"""

from __future__ import annotations

import asyncio
import errno
import io
import socket
import ssl
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from datetime import timedelta
from email.utils import formatdate
from http import HTTPStatus
from typing import IO, Any, Protocol, TypeVar

from ..errors import PeerError
from ..loops import Home
from . import stacks
from .app import VERSION, Exchange, runs_on_loop
from .body import Quota
from .config import Config
from .head import Environ, Request
from .protocol import Connection
from .proxy import Header, receive
from .response import FileWrapper, Response

T = TypeVar("T")

# While draining, deadlines are looked at so often.
_DRAIN_SWEEP = 0.1
# The process or the system has no descriptor or memory left for a connection.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# What the kernel takes of an answer that its client doesn't: otherwise as much as the
# socket's buffer holds, up to 4 MB. 500 clients that read a kilobyte at a time kept all
# others waiting for 3 s until they were full; with this for 15 ms. Less makes one fast
# download slower. Linux and macOS have it.
_UNSENT = getattr(socket, "TCP_NOTSENT_LOWAT", None)
_UNSENT_BYTES = 1 << 19


class Log(Protocol):
    """What is used of gunicorn's logger."""

    def debug(self, msg: str, *args: Any, **kwargs: Any) -> None: ...
    def info(self, msg: str, *args: Any, **kwargs: Any) -> None: ...
    def warning(self, msg: str, *args: Any, **kwargs: Any) -> None: ...
    def error(self, msg: str, *args: Any, **kwargs: Any) -> None: ...
    def exception(self, msg: str, *args: Any, **kwargs: Any) -> None: ...
    def access(self, resp: Any, req: Any, environ: Any, request_time: timedelta) -> None: ...


def _nothing(*args: Any) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the worker wants to be told; `accesses`: whether its log wants each request."""

    before: Callable[[Request], object] = _nothing
    after: Callable[[Request, Environ, Response], object] = _nothing
    tick: Callable[[], object] = _nothing
    accesses: bool = True


class Server:
    """Serves one application from one loop. All of it belongs to the loop's thread."""

    def __init__(
        self,
        app: Any,
        config: Config,
        home: Home,
        log: Log,
        hooks: Hooks | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.app = app
        self.app_on_loop = runs_on_loop(app)
        self.config = config
        self.loop = home.loop
        # Each request's is a copy of it.
        self.context = copy_context()
        self.on_uvloop = type(home.loop).__module__.partition(".")[0] == "uvloop"
        self.threads = home.threads
        self.log = log
        self.hooks = hooks or Hooks()
        self.ssl = ssl_context
        # Whether a transport gives no more at once than its protocol has room for: Windows'
        # proactor hands on what it has read already, and TLS what it has decrypted.
        self.receives_into = ssl_context is None and (
            self.on_uvloop or isinstance(home.loop, asyncio.SelectorEventLoop)
        )
        self.quota = Quota(config.spool_quota)
        # For what may wait for a disk: never the threads of requests.
        self.disk = ThreadPoolExecutor(2, thread_name_prefix="greenroom-disk")
        self.connections: set[Connection] = set()
        self.exchanges: set[Exchange] = set()
        self.stopping = asyncio.Event()
        self.draining = False
        # Set to end a drain before its time.
        self.hurry = False
        self.exit_code: int | None = None
        self.standard_fields: dict[str, str] = {}
        self._sockets: dict[socket.socket, Environ] = {}
        self._accepting = False
        self._open = 0
        self._connecting: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._tell_time()

    def listen(self, sockets: Iterable[socket.socket]) -> None:
        """Begin to accept from these sockets, which listen already."""
        for sock in sockets:
            sock.setblocking(False)
            self._sockets[sock] = self._base_environ(sock)
        self._accept_more()
        self._sweep()

    def stop(self) -> None:
        """Ask for the end: whoever waits for `stopping` is to call `drain`."""
        self.stopping.set()

    def exit(self, code: Any) -> None:
        """An application raised SystemExit: drain, then exit with this status."""
        if self.exit_code is None:
            if code is None:
                self.exit_code = 0
            elif isinstance(code, int):
                self.exit_code = code & 0xFF
            else:
                self.log.error("%s", code)
                self.exit_code = 1
            self.log.warning("The application raised SystemExit(%r): draining.", code)
        self.stop()

    def pause(self) -> None:
        """Accept no more, but when `look` is called."""
        self.stopping.set()
        self._accept_less()

    def look(self) -> None:
        """Accept what waits, up to the bound of connections."""
        for sock in self._sockets:
            self._on_readable(sock)

    async def drain(self, timeout: float, clean_up: float = 1.0, *, backlog: bool = True) -> None:
        """Answer what has arrived, accept no more; cancel the rest after `timeout`.

        What was cancelled has `clean_up` seconds to end. Without `backlog`, what was
        not accepted yet is left to other processes.
        """
        deadline = self.loop.time() + timeout
        self.pause()
        for sock in self._sockets:
            # Also past the bound of connections: the kernel resets what is left.
            while backlog and not self.hurry and self._accept(sock):
                pass
            sock.close()
        self.draining = True
        for connection in list(self.connections):
            connection.drain(self.loop.time())
        # Handshakes have the grace of a connection that is new.
        self.loop.call_later(self.config.drain_grace, self._end_handshakes)
        while (self._open or self.exchanges) and not self.hurry:
            now = self.loop.time()
            if now >= deadline:
                break
            await asyncio.sleep(min(_DRAIN_SWEEP, deadline - now))
            self._look_at_deadlines()
        await self._cut(clean_up)

    async def _cut(self, clean_up: float) -> None:
        """Cancel all that is left."""
        if self.exchanges:
            number = len(self.exchanges)
            noun = "request" if number == 1 else "requests"
            names = stacks.names(sorted(map(stacks.name, self.exchanges)))
            self.log.warning("Cancelling %d %s that did not end: %s", number, noun, names)
        tasks = [exchange.task for exchange in self.exchanges]
        for exchange in list(self.exchanges):
            exchange.cancel()
        for connection in list(self.connections):
            connection.end()
        self._end_handshakes()
        if tasks:
            await asyncio.wait(tasks, timeout=clean_up)
        # One turn of the loop, for connections to be closed.
        await asyncio.sleep(0)
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.disk.shutdown(wait=False)

    def _end_handshakes(self) -> None:
        for task in list(self._connecting):
            task.cancel()

    # What connections and exchanges call.

    @property
    def is_shared(self) -> bool:
        """Whether there is more than one connection."""
        return self._open > 1

    def connected(self, connection: Connection) -> None:
        """A connection is there; over TLS, after its handshake."""
        self.connections.add(connection)
        if self.draining:
            connection.drain(self.loop.time())

    def lost(self, connection: Connection) -> None:
        """A connection has ended."""
        self.connections.discard(connection)
        self._closed()

    def _closed(self) -> None:
        self._open -= 1
        if not self._accepting and not self.stopping.is_set():
            self._accept_more()

    def current(self) -> str:
        """What the loop runs, in words. May be asked by any thread."""
        return stacks.current(self.loop, self.exchanges)

    def close_later(self, file: IO[bytes] | None) -> None:
        """Close the file of a body, which may wait for the disk."""
        if file is not None:
            try:
                self.disk.submit(file.close)
            except RuntimeError:
                # The server has ended.
                file.close()

    def no_body(self) -> io.BytesIO:
        return io.BytesIO()

    async def run_blocking(self, fn: Callable[..., T], *args: Any) -> T:
        """Run what may wait for a disk."""
        return await self.loop.run_in_executor(self.disk, fn, *args)

    def finished(
        self, request: Request, environ: Environ, response: Response, started: float
    ) -> None:
        """A request is over, whether it was answered or not."""
        if not response.headers_sent:
            # The client has gone, or the server was stopped. nginx logs this status.
            response.status, response.status_code = "499 Client Closed Request", 499
        try:
            self.hooks.after(request, environ, response)
        except Exception:
            self.log.exception("Exception in post_request hook")
        self._access(response, request, environ, started)

    def refused(self, error: PeerError, base: Environ, request: Request) -> bytes:
        """A request was refused before it reached the application: log it, and answer.

        The connection is closed afterwards. `request` may be empty, or known in part.
        """
        address = base.get("REMOTE_ADDR", "")
        self.log.warning("Invalid request from ip=%s: %s", address, error)
        response = Response(None, request)  # type: ignore[arg-type]
        response.status = _status(error.status)
        response.status_code = error.status
        body = response.status.partition(" ")[2] + "\n"
        lines = [f"HTTP/1.1 {response.status}\r\n", *self.standard_fields.values()]
        lines.append("Content-Type: text/plain\r\nConnection: close\r\n")
        if error.status == 503:
            lines.append("Retry-After: 5\r\n")
        lines.append(f"Content-Length: {len(body)}\r\n\r\n")
        if request.method != "HEAD":
            lines.append(body)
            response.sent = len(body)
        environ = {
            **base,
            "REQUEST_METHOD": request.method or "-",
            "RAW_URI": request.uri or "-",
            "PATH_INFO": request.path or "-",
            "QUERY_STRING": request.query,
            "SERVER_PROTOCOL": f"HTTP/1.{request.version[1]}",
        }
        self._access(response, request, environ, self.loop.time())
        return "".join(lines).encode("latin-1")

    def _access(
        self, response: Response, request: Request, environ: Environ, started: float
    ) -> None:
        if not self.hooks.accesses:
            return
        try:
            self.log.access(
                response, request, environ, timedelta(seconds=self.loop.time() - started)
            )
        except Exception:
            self.log.exception("The access log failed")

    # Accepting.

    def _accept_more(self) -> None:
        self._accepting = True
        for sock in self._sockets:
            self.loop.add_reader(sock.fileno(), self._on_readable, sock)

    def _accept_less(self) -> None:
        if self._accepting:
            self._accepting = False
            for sock in self._sockets:
                self.loop.remove_reader(sock.fileno())

    def _on_readable(self, sock: socket.socket) -> None:
        for _ in range(self.config.accept_batch):
            if self._open >= self.config.connections:
                self._accept_less()
                return
            if not self._accept(sock):
                return

    def _accept(self, listening: socket.socket) -> bool:
        """Accept one connection; False if there is none, or no room for it."""
        try:
            sock, address = listening.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionAbortedError:
            return True
        except OSError as exc:
            self.log.error("A connection can't be accepted: %s", exc)
            if exc.errno in _EXHAUSTED:
                # The sweep, or the end of a connection, tries again.
                self._accept_less()
            return False
        sock.setblocking(False)
        if isinstance(address, tuple) and _UNSENT is not None:
            sock.setsockopt(socket.IPPROTO_TCP, _UNSENT, _UNSENT_BYTES)
        self._open += 1
        task = self.loop.create_task(self._connect(sock, address, self._sockets[listening]))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return True

    async def _connect(self, sock: socket.socket, address: Any, listener: Environ) -> None:
        base = listener.copy()
        if isinstance(address, tuple):
            base["REMOTE_ADDR"] = address[0]
            base["REMOTE_PORT"] = str(address[1])
            trusted = self.config.trusts(address[0])
        else:
            # A Unix socket's peer has no name; file permissions say who may connect.
            base["REMOTE_ADDR"] = ""
            trusted = True
        base["gunicorn.socket"] = sock
        connection = Connection(self, sock, base, trusted)
        timeout = None if self.ssl is None else self.config.head_timeout
        try:
            if self.config.proxy_protocol:
                await self._proxy_header(connection, address)
            await self.loop.connect_accepted_socket(
                lambda: connection, sock, ssl=self.ssl, ssl_handshake_timeout=timeout
            )
        except BaseException as exc:
            # A failed handshake, for one. Those that had begun are `lost`.
            if not connection.made:
                self._closed()
            sock.close()
            if not isinstance(exc, Exception):
                raise
            self.log.debug("A connection failed before its first request: %s", exc)

    async def _proxy_header(self, connection: Connection, address: Any) -> None:
        """Read the header of the PROXY protocol, and tell the connection of it."""
        config = self.config
        allowed = not isinstance(address, tuple) or config.takes_proxy_from(address[0])
        header = Header(config.proxy_protocol, allowed)
        error: PeerError | None = None
        try:
            async with asyncio.timeout(config.head_timeout):
                await receive(connection.sock, header)
            if header.rest and self.ssl is not None:
                error = PeerError(400, "neither a PROXY header nor TLS")
        except TimeoutError:
            error = PeerError(408, "the head took too long")
        except PeerError as exc:
            error = exc
        if error is not None and error.status == 408 and not header.rest:
            # Nothing came: nothing is answered.
            raise ConnectionAbortedError(str(error))
        if error is not None and self.ssl is not None:
            # There is nothing yet to answer it by.
            self.log.warning("Invalid request from ip=%s: %s", connection.peer, error)
            raise ConnectionAbortedError(str(error))
        connection.begin(header.environ, header.rest, error)

    def _base_environ(self, sock: socket.socket) -> Environ:
        name = sock.getsockname()
        tcp = isinstance(name, tuple)
        return {
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "https" if self.ssl is not None else "http",
            "wsgi.errors": self.config.errors,
            # While a thread waits, another may call the application, whatever their number.
            "wsgi.multithread": True,
            "wsgi.multiprocess": self.config.multiprocess,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
            "wsgi.input_terminated": True,
            "wsgi.async": True,
            "coroutine_wsgi.version": VERSION,
            "SERVER_SOFTWARE": self.config.server_software,
            "SERVER_NAME": name[0] if tcp else "",
            "SERVER_PORT": str(name[1]) if tcp else "",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "SCRIPT_NAME": "",
        }

    # Once a second.

    def _sweep(self) -> None:
        self._sweeper = self.loop.call_later(1.0, self._sweep)
        self._tell_time()
        self.hooks.tick()
        self._look_at_deadlines()
        if not self._accepting and not self.stopping.is_set():
            self._accept_more()

    def _look_at_deadlines(self) -> None:
        now = self.loop.time()
        late = [connection for connection in self.connections if connection.deadline <= now]
        for connection in late:
            connection.on_deadline(now)

    def _tell_time(self) -> None:
        self.standard_fields = {
            "server": f"Server: {self.config.server_software}\r\n",
            "date": f"Date: {formatdate(usegmt=True)}\r\n",
        }


def _status(code: int) -> str:
    return f"{code} {HTTPStatus(code).phrase}"
