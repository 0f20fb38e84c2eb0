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
from dataclasses import dataclass
from datetime import timedelta
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Protocol, TypeVar

from ..errors import PeerError
from ..loops import Home
from .app import VERSION, Exchange, runs_on_loop
from .body import Quota
from .config import Config
from .head import Environ, Request
from .protocol import Connection
from .response import FileWrapper, Response

T = TypeVar("T")

# While draining, deadlines are looked at so often.
_DRAIN_SWEEP = 0.1
# The process or the system has no descriptor or memory left for a connection.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


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
    """What the worker wants to be told."""

    before: Callable[[Request], object] = _nothing
    after: Callable[[Request, Environ, Response], object] = _nothing
    tick: Callable[[], object] = _nothing


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
        self.on_uvloop = type(home.loop).__module__.partition(".")[0] == "uvloop"
        self.threads = home.threads
        self.log = log
        self.hooks = hooks or Hooks()
        self.ssl = ssl_context
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

    async def drain(self, timeout: float, clean_up: float = 1.0) -> None:
        """Answer what has arrived, accept no more; cancel the rest after `timeout`.

        What was cancelled has `clean_up` seconds to end.
        """
        self.stopping.set()
        self._accept_less()
        if not self.hurry:
            for sock in self._sockets:
                while self._open < self.config.connections and self._accept(sock):
                    pass
        for sock in self._sockets:
            sock.close()
        if self._connecting:
            await asyncio.wait(self._connecting, timeout=1)
        self.draining = True
        deadline = self.loop.time() + timeout
        for connection in list(self.connections):
            connection.drain(self.loop.time())
        while (self.connections or self.exchanges) and not self.hurry:
            now = self.loop.time()
            if now >= deadline:
                break
            await asyncio.sleep(min(_DRAIN_SWEEP, deadline - now))
            self._look_at_deadlines()
        await self._cut(clean_up)

    async def _cut(self, clean_up: float) -> None:
        """Cancel all that is left."""
        if self.exchanges:
            self.log.warning("Cancelling %d requests that did not end.", len(self.exchanges))
        tasks = [exchange.task for exchange in self.exchanges]
        for exchange in list(self.exchanges):
            exchange.cancel()
        for connection in list(self.connections):
            connection.end()
        if tasks:
            await asyncio.wait(tasks, timeout=clean_up)
        # One turn of the loop, for connections to be closed.
        await asyncio.sleep(0)
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.disk.shutdown(wait=False)

    # What connections and exchanges call.

    def lost(self, connection: Connection) -> None:
        """A connection has ended."""
        self.connections.discard(connection)
        self._open -= 1
        if not self._accepting and not self.stopping.is_set():
            self._accept_more()

    def no_body(self) -> io.BytesIO:
        return io.BytesIO()

    async def run_blocking(self, fn: Callable[..., T], *args: Any) -> T:
        """Run what may wait for a disk."""
        return await self.loop.run_in_executor(self.disk, fn, *args)

    def finished(
        self, request: Request, environ: Environ, response: Response, started: float
    ) -> None:
        """A request is over, whether it was answered or not."""
        try:
            self.hooks.after(request, environ, response)
        except Exception:
            self.log.exception("Exception in post_request hook")
        self._access(response, request, environ, started)

    def refused(self, error: PeerError, base: Environ, request: Request | None) -> None:
        """A request was refused before it reached the application."""
        address = base.get("REMOTE_ADDR", "")
        self.log.warning("Invalid request from ip=%s: %s", address, error)
        if request is None:
            request = Request()
            request.method = "-"
            request.uri = "-"
        environ = {
            **base,
            "REQUEST_METHOD": request.method,
            "RAW_URI": request.uri,
            "PATH_INFO": request.path or "-",
            "QUERY_STRING": request.query,
        }
        response = Response(None, request)  # type: ignore[arg-type]
        response.status = _status(error.status)
        response.status_code = error.status
        self._access(response, request, environ, self.loop.time())

    def refusal(self, status: int) -> bytes:
        """The answer to what is refused, after which the connection is closed."""
        text = _status(status)
        body = text.partition(" ")[2] + "\n"
        lines = [f"HTTP/1.1 {text}\r\n", *self.standard_fields.values()]
        lines.append("Content-Type: text/plain\r\nConnection: close\r\n")
        if status == 503:
            lines.append("Retry-After: 5\r\n")
        lines.append(f"Content-Length: {len(body)}\r\n\r\n{body}")
        return "".join(lines).encode("latin-1")

    def _access(
        self, response: Response, request: Request, environ: Environ, started: float
    ) -> None:
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
            if exc.errno in _EXHAUSTED and not self.stopping.is_set():
                # The sweep, or the end of a connection, tries again.
                self.log.error("A connection can't be accepted: %s", exc)
                self._accept_less()
                return False
            raise
        sock.setblocking(False)
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
        self.connections.add(connection)
        try:
            await self.loop.connect_accepted_socket(lambda: connection, sock, ssl=self.ssl)
        except (OSError, ssl.SSLError) as exc:
            # A failed handshake, for one.
            self.log.debug("A connection failed before its first request: %s", exc)
            if connection in self.connections:
                self.lost(connection)
            sock.close()

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
