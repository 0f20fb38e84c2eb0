"""The server in a thread of this process: for ``runserver``, and for tests that want one.

`ServerThread` serves a WSGI application from sockets that listen already, on a loop of
its own in a thread of its own: whoever started it stays free to watch files, to be
interrupted, or to run a test. It knows nothing of gunicorn.

- `start()` returns when connections are accepted, and raises what prevents it.
- `stop()` ends it now: running requests are cancelled, the lifespan is left, threads
  end. All of it is bounded: a thread that doesn't end is abandoned, being a daemon.
- `SystemExit` raised by an application is logged. There is nobody to start another
  process.

`Log` writes what Django's own development server writes, to the logger ``django.server``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from http.server import BaseHTTPRequestHandler
from typing import Any

from asgiref.sync import markcoroutinefunction
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.exceptions import SuspiciousFileOperation
from django.core.handlers.wsgi import get_path_info
from django.db import connections
from django.utils._os import safe_join

from . import loops
from .errors import PeerError
from .loops import Home
from .server import Config, Server
from .server.app import runs_on_loop
from .server.protocol import TLS_HANDSHAKE
from .threads import Threads

# As many plain views at a time as ask for it, as under Django's server: a page may call
# its own site. Threads are made for work that waits only.
THREADS = 64
# Browsers keep connections, and open some ahead.
KEEPALIVE = 60.0

# Of the application's options. The others are for production.
_OF_THREADS = ("max_parked", "queue_timeout")
_OF_SERVER = ("spool_quota", "max_body")


class ServerThread:
    """Serves `app` from `sockets`. `started` is called when its startup is done."""

    def __init__(
        self,
        app: Any,
        sockets: Iterable[socket.socket],
        *,
        threads: int = THREADS,
        log: Log | None = None,
        started: Callable[[], object] | None = None,
    ) -> None:
        self.app = app
        self.log = log or Log()
        self.home: Home | None = None
        self._sockets = list(sockets)
        self._threads = threads
        self._started = started
        self._loop = _new_loop()
        # Ours, to let its threads end with the loop.
        self._executor = ThreadPoolExecutor(thread_name_prefix="greenroom-executor")
        self._loop.set_default_executor(self._executor)
        self._server: _Server | None = None
        self._main_task: asyncio.Task[None] | None = None
        self._ready = threading.Event()
        # Not by the thread: up to Python 3.12 one whose join() is interrupted passes for ended.
        self._ended = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="greenroom-server", daemon=True)

    def start(self) -> None:
        """Serve. Raises what the application or its lifespan raised when it started."""
        running.add(self)
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            running.discard(self)
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error

    def wait(self) -> None:
        """Wait until somebody stops it. On the main thread, a signal is obeyed at once."""
        while not self._ended.wait(1.0):
            pass  # Windows interrupts no wait that has no end
        if self._error is not None:
            raise self._error

    def stop(self, timeout: float = 2.0) -> bool:
        """End it, from any other thread; whether it ended within `timeout` seconds."""
        running.discard(self)
        self.log.quiet = True
        if self._ended.is_set():
            return True
        with contextlib.suppress(RuntimeError):  # its loop was closed just now
            self._loop.call_soon_threadsafe(self._stop, timeout)
        ends = time.monotonic() + timeout
        self._ended.wait(timeout)
        # They end with it, but for those that are stuck.
        while self.home is not None and self.home.threads.made:
            if time.monotonic() > ends:
                return False
            time.sleep(0.001)
        return self._ended.is_set()

    # On its thread.

    def _stop(self, timeout: float) -> None:
        # Some of the time is the loop's own, to end.
        self._ends = self._loop.time() + 0.9 * timeout
        if self._server is not None:
            self._server.stop()
        elif self._main_task is not None:
            self._main_task.cancel()

    def _run(self) -> None:
        loop = self._loop
        asyncio.set_event_loop(loop)
        main = self._main_task = loop.create_task(self._main())
        main.add_done_callback(lambda _: loop.stop())
        try:
            while not main.done():
                try:
                    loop.run_forever()
                except (SystemExit, KeyboardInterrupt) as exc:
                    # Of a task that an application made.
                    self.log.error("A task raised %r.", exc)
            if not main.cancelled() and (error := main.exception()) is not None:
                self._error = error
        finally:
            self._executor.shutdown(wait=False, cancel_futures=True)
            _close_loop(loop)
            self._ended.set()
            self._ready.set()

    async def _main(self) -> None:
        app = self.app
        options = getattr(app, "coroutine_wsgi_options", None) or {}
        of_threads = {name: options[name] for name in _OF_THREADS if name in options}
        of_server = {name: options[name] for name in _OF_SERVER if name in options}
        threads = Threads(self._loop, limit=self._threads, **of_threads)
        threads.at_end = connections.close_all
        self.home = home = Home(self._loop, threads)
        home.register()
        self._ends = self._loop.time() + 2.0
        try:
            startup = getattr(app, "coroutine_wsgi_startup", None)
            if startup is not None:
                await startup()
            if self._started is not None:
                self._started()
            config = Config(
                keepalive=KEEPALIVE,
                **of_server,
                # There is no proxy in front.
                trusted=(),
                sendfile=hasattr(os, "sendfile"),
            )
            server = self._server = _Server(app, config, home, self.log)
            server.listen(self._sockets)
            self._ready.set()
            await server.stopping.wait()
            server.hurry = True
            await server.drain(0.0, 0.3 * max(0.0, self._ends - self._loop.time()))
        finally:
            await self._threads_end(threads, self._ends - 0.5)
            closing = self._loop.create_task(home.aclose())
            await asyncio.wait([closing], timeout=max(0.1, self._ends - self._loop.time()))
            if closing.done() and not closing.cancelled() and (error := closing.exception()):
                self.log.error(
                    "Error while closing what lasts as long as the process", exc_info=error
                )

    async def _threads_end(self, threads: Threads, ends: float) -> None:
        """What runs on threads may need what lasts as long as the process."""
        while threads.busy:
            left = ends - self._loop.time()
            if left <= 0:
                return
            await asyncio.sleep(min(0.01, left))


# Those that were started and not stopped.
running: set[ServerThread] = set()


def stop_all() -> None:
    """Stop what runs in this process, which is about to end."""
    for each in list(running):
        each.stop()


class _Server(Server):
    def exit(self, code: Any) -> None:
        self.log.error("The application raised SystemExit(%r).", code)


def _new_loop() -> asyncio.AbstractEventLoop:
    if sys.platform == "win32":
        # The one on which listening sockets can be watched.
        return asyncio.SelectorEventLoop()
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _close_loop(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    try:
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks, timeout=0.1))
        loop.run_until_complete(loop.shutdown_asyncgens())
    except (SystemExit, KeyboardInterrupt):
        pass
    finally:
        loop.close()


class Log:
    """Django's lines for requests; for the rest, the same logger.

    With `quiet`, nothing is said of requests: they are being cancelled.
    """

    logger = logging.getLogger("django.server")

    def __init__(self) -> None:
        self.quiet = False

    def debug(self, msg: str, *args: Any, **kwargs: Any) -> None:
        self.logger.debug(msg, *args, **kwargs)

    def info(self, msg: str, *args: Any, **kwargs: Any) -> None:
        self.logger.info(msg, *args, **kwargs)

    def warning(self, msg: str, *args: Any, **kwargs: Any) -> None:
        if self.quiet:
            return
        if any(isinstance(each, PeerError) and str(each) == TLS_HANDSHAKE for each in args):
            self._write(
                logging.ERROR,
                "You're accessing the development server over HTTPS, but it only supports HTTP.",
                500,
            )
            return
        self._write(logging.WARNING, msg, None, *args, **kwargs)

    def error(self, msg: str, *args: Any, **kwargs: Any) -> None:
        self._write(logging.ERROR, msg, None, *args, **kwargs)

    def exception(self, msg: str, *args: Any, **kwargs: Any) -> None:
        self._write(logging.ERROR, msg, None, *args, exc_info=True, **kwargs)

    def access(self, resp: Any, req: Any, environ: Any, request_time: timedelta) -> None:
        """One line per request, in the words of `http.server`."""
        if self.quiet or req.method in ("", "-"):
            return
        sock = environ.get("gunicorn.socket")
        if resp.over and not resp.headers_sent:
            peer = (environ.get("REMOTE_ADDR"), environ.get("REMOTE_PORT"))
            self._write(logging.INFO, "- Broken pipe from %s", None, peer, request=sock)
            return
        major, minor = req.version
        line = f"{req.method} {req.uri} HTTP/{major}.{minor}"
        level = logging.INFO
        if resp.status_code >= 400:
            level = logging.WARNING if resp.status_code < 500 else logging.ERROR
        # As Django has it, since it was told of forged lines.
        line = line.encode("unicode_escape").decode("ascii")
        self._write(
            level,
            '"%s" %s %s',
            resp.status_code,
            line,
            str(resp.status_code),
            str(resp.sent),
            request=sock,
        )

    def _write(
        self,
        level: int,
        msg: str,
        status_code: int | None,
        *args: Any,
        request: Any = None,
        **kwargs: Any,
    ) -> None:
        extra = {"request": request, "server_time": _now()}
        if status_code is not None:
            extra["status_code"] = status_code
        self.logger.log(level, msg, *args, extra=extra, **kwargs)


def _now() -> str:
    year, month, day, hour, minute, second, *_ = time.localtime()
    name = BaseHTTPRequestHandler.monthname[month]
    return f"{day:02}/{name}/{year:04} {hour:02}:{minute:02}:{second:02}"


class Files:
    """Django's `StaticFilesHandler`, or one like it, around an application of the loop.

    Files are served on threads; all else goes to the application as it came. (Django's own
    handlers for tests answer what is no file themselves, by plain Django's request cycle.)
    """

    def __init__(self, handler: Any) -> None:
        self._handler = handler
        self.application = handler.application
        # What a server reads of an application.
        for name in ("coroutine_wsgi_options", "coroutine_wsgi_startup"):
            if hasattr(self.application, name):
                setattr(self, name, getattr(self.application, name))
        markcoroutinefunction(self)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        path = get_path_info(environ)
        if self._handler._should_handle(path) and self._has(path):
            return self._serve(environ, start_response)
        return self.application(environ, start_response)

    def _has(self, path: str) -> bool:
        if not hasattr(self._handler, "get_base_dir"):
            return True
        folder = self._handler.get_base_dir()
        if not folder:
            return False
        try:
            return os.path.isfile(safe_join(folder, self._handler.file_path(path).lstrip("/")))
        except (SuspiciousFileOperation, ValueError):
            return False

    async def _serve(self, environ: dict[str, Any], start_response: Any) -> Any:
        home = loops.current()
        assert home is not None
        threads = home.threads
        body: Any = await threads.run(self._on_thread, environ, start_response)
        if not isinstance(body, list):

            async def aclose() -> None:
                await threads.run(body.close)

            body.aclose = aclose
        return body

    def _on_thread(self, environ: dict[str, Any], start_response: Any) -> Any:
        body = self._handler(environ, start_response)
        if isinstance(body, environ["wsgi.file_wrapper"]):
            return body
        try:
            return list(body)
        finally:
            body.close()


def with_files(application: Any, wrapper: Any = StaticFilesHandler) -> Any:
    """What `StaticFilesHandler`, or one like it, is to a `def` application, for any kind."""
    handler = wrapper(application)
    return Files(handler) if runs_on_loop(application) else handler
