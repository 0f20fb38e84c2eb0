"""How an application is called: coroutine WSGI, an extension of PEP 3333.

The specification, version (1, 0). What PEP 3333 says holds, with these additions.

**Calling.** A `def` application is called on a thread; an `async def` one, or one
marked with asgiref's `markcoroutinefunction` (itself or its `__call__`), on the
event loop, within a task of this request's own. Either returns an iterable, or an
async iterable, or an awaitable of one of these. A generator-based coroutine
(`types.coroutine`) is an awaitable, never a body.

**start_response** must have been called before the first non-empty item. Its
`write()` may be called on threads (and in a bridge), not in a coroutine.

**A `def` application** has everything done on one thread: the call, the iteration,
`close()`. A list or tuple (or what has a length) is joined, and the answer is
written while `close()` runs; any other iterable is sent item by item, the thread
waiting while the client is slow. An error in sending is raised at the next item.
What is awaitable or async runs on the loop in the request's task, while the thread
waits for it.

**A coroutine application**'s iterable is iterated on the loop in the request's
task. That a synchronous one doesn't block is the application's promise.

**A body may push** instead of being iterated, if it has ``coroutine_wsgi_push``, which
is awaited in the request's task with a function `offer`. It calls that with each item,
in a bridge of the task or on a thread that it waits for, until it returns False: then
no more is wanted now. It returns whether there may be more, and is awaited again then,
once the client has caught up. Between the items nothing changes greenlet or thread.

**Closing.** On every way out, exactly once: `aclose()` is awaited if there is one,
else `close()` is called, and awaited if it returns an awaitable (on the loop). The
server doesn't cancel the task while this runs; it does so afterwards.

**The environ** has also:

``wsgi.async``                              True
``coroutine_wsgi.version``                  (1, 0)
``coroutine_wsgi.cancel_on_disconnect``     absent; see below
``wsgi.input_terminated``                   True: the body is complete, reading it never waits
``CONTENT_LENGTH``                          the true length also of a chunked body
``wsgi.early_hints``                        called with a list of header fields, it sends them
                                            ahead of the answer (103, RFC 8297)
``wsgi.file_wrapper``, ``RAW_URI``, ``REMOTE_PORT``, ``gunicorn.socket``

**Disconnect.** When the client goes away the request's task is cancelled, unless
``environ.get("coroutine_wsgi.cancel_on_disconnect", True)`` is False at that moment.
A thread can't be cancelled; a coroutine that it waits for can.

**Errors.** An exception before the head was sent is answered with 500; later it ends
the connection without a well-formed end of the body. `Overloaded` is answered with
503 and Retry-After. `SystemExit` closes this connection; the others are answered,
then the process exits with its code.

**Attributes of the application object** that the worker reads, all optional:

``coroutine_wsgi_options``   a mapping with `max_parked`, `queue_timeout` (seconds),
                             `max_body` (bytes of a request's body; None: any number),
                             `spool_quota` (bytes of request bodies on disk; None: likewise),
                             `stall_threshold` (seconds that the loop may not turn until
                             that is logged; None: it isn't watched) and `probes` (which of
                             the binds is for probes; see `greenroom.server.probes`)
``coroutine_wsgi_startup``   an async callable, awaited on the loop before the first
                             connection is accepted; a str that it returns is logged
"""

from __future__ import annotations

import asyncio
import inspect
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from asgiref.sync import iscoroutinefunction

from ..bridge import await_
from ..crossing import Then
from ..errors import ApplicationError, Overloaded
from .head import Environ, Request
from .pump import Pump
from .response import EarlyHints, FileWrapper, PeerGone, Response

if TYPE_CHECKING:
    from .body import Spool
    from .protocol import Connection

VERSION = (1, 0)


def runs_on_loop(app: Any) -> bool:
    """Whether an application is a coroutine function, or is marked as one."""
    return bool(
        iscoroutinefunction(app)
        or iscoroutinefunction(getattr(app, "__call__", None))  # noqa: B004
        or iscoroutinefunction(getattr(type(app), "__call__", None))  # noqa: B004
    )


class Exchange:
    """One request and its answer: the task that calls the application."""

    __slots__ = (
        "_cancel_later",
        "_closing",
        "_hints",
        "_pump",
        "_spool",
        "_started",
        "_task",
        "cancelled",
        "connection",
        "environ",
        "request",
        "response",
        "started",
    )

    def __init__(
        self,
        connection: Connection,
        request: Request,
        environ: Environ,
        spool: Spool | None,
    ) -> None:
        self.connection = connection
        self.request = request
        self.environ = environ
        self.response = response = Response(connection, request)
        environ["wsgi.early_hints"] = self._hints = EarlyHints(response)
        self.started = connection.server.loop.time()
        self._spool = spool
        self._closing = False
        self._cancel_later = False
        self.cancelled = False
        self._pump: Pump | None = None
        self._started = False
        # Not by loop.create_task: a factory of the application's may begin tasks at
        # once, while their connection is still busy with the bytes. Not in the current
        # context: where requests are pipelined that is the one of the request before.
        self._task = asyncio.Task(
            self._run(), loop=connection.server.loop, context=connection.server.context.copy()
        )
        connection.server.exchanges.add(self)

    def disconnected(self) -> None:
        """The client has gone: cancel, unless the application wants to finish."""
        if self.environ.get("coroutine_wsgi.cancel_on_disconnect", True) is not False:
            self.cancel()

    def cancel(self) -> None:
        """Cancel the task; while the body is being closed, as soon as that is done."""
        self.cancelled = True
        if not self._started:
            # A task that is cancelled before its first step never takes it.
            return
        if self._closing:
            self._cancel_later = True
        else:
            self._task.cancel()

    @property
    def task(self) -> asyncio.Task[None]:
        return self._task

    async def _run(self) -> None:
        response = self.response
        server = self.connection.server
        self._started = True
        try:
            if self.cancelled:
                raise asyncio.CancelledError
            server.hooks.before(self.request)
            if server.app_on_loop:
                await self._call()
            else:
                await self._call_on_thread()
            await response.end()
        except asyncio.CancelledError as exc:
            if self.cancelled:
                response.abort()
            else:
                # The application's own: it awaited something that was cancelled.
                self._fail(500, exc)
        except PeerGone:
            response.keep_alive = False
        except (SystemExit, KeyboardInterrupt) as exc:
            response.abort()
            server.exit(exc.code if isinstance(exc, SystemExit) else 1)
        except Overloaded as exc:
            self._fail(503, exc)
        except Exception as exc:
            self._fail(500, exc)
        finally:
            self._done()

    # On the loop.

    async def _call(self) -> None:
        server = self.connection.server
        body = server.app(self.environ, self.response.start_response)
        if type(body) is CoroutineType or _is_awaitable(body):
            body = await body
        try:
            if hasattr(body, "__len__"):
                self.response.complete(_join(body))
                if self.connection.write_paused:
                    await self.connection.drained()
            elif not (isinstance(body, FileWrapper) and await self.response.send_file(body)):
                await self._send_items(body)
        finally:
            await self._close(body)

    async def _send_items(self, body: Any) -> None:
        send = self.response.send
        push = getattr(body, "coroutine_wsgi_push", None)
        if push is not None:
            pump = Pump(self)
            more = True
            while more:
                more = await push(pump.offer)
                more = await pump.catch_up() and more
        elif hasattr(body, "__aiter__"):
            async for item in body:
                if not await send(item):
                    break
        elif isinstance(body, FileWrapper):
            # Reading may block, so it is done elsewhere.
            run = self.connection.server.run_blocking
            while (item := await run(next, iter(body), b"")) and await send(item):
                pass
        else:
            for item in _iterable(body):
                if not await send(item):
                    break

    async def _close(self, body: Any) -> None:
        self._closing = True
        absorbed = False
        if self.cancelled:
            # On a thread, it may not have been delivered yet: not to `aclose()`.
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                absorbed = True
        try:
            aclose = getattr(body, "aclose", None)
            if aclose is not None:
                await aclose()
            elif (close := getattr(body, "close", None)) is not None:
                result = close()
                if _is_awaitable(result):
                    await result
        finally:
            self._closing = False
            if self._cancel_later:
                self._cancel_later = False
                self._task.cancel()
        if absorbed:
            raise asyncio.CancelledError

    # On a thread.

    async def _call_on_thread(self) -> None:
        whole = await self.connection.server.threads.run(self._on_thread)
        if self._pump is not None:
            self._pump.finish()
        if isinstance(whole, SystemExit):
            raise whole
        if whole is not None:
            self.response.complete(whole)

    def _on_thread(self) -> bytes | Then | SystemExit | None:
        """Call, iterate, close. Returns a whole body, or None if all was sent."""
        try:
            body = self.connection.server.app(self.environ, self.response.start_response)
            if _is_awaitable(body):
                body = await_(body)
            whole: bytes | None = None
            try:
                whole = self._iterate_on_thread(body)
            finally:
                # What a whole body has to close is closed once it is on its way.
                if whole is None:
                    self._close_on_thread(body)
        except SystemExit as exc:
            # Raised in the request's task instead of ending this thread.
            return exc
        if hasattr(body, "close") or hasattr(body, "aclose"):
            return whole if whole is None else Then(whole, lambda: self._close_late(body))
        return whole

    def _iterate_on_thread(self, body: Any) -> bytes | None:
        response = self.response
        if hasattr(body, "__len__"):
            return _join(body)
        if isinstance(body, FileWrapper) and await_(response.send_file(body)):
            return None
        if hasattr(body, "__aiter__"):
            await_(self._send_items(body))
            return None
        put = None
        for item in _iterable(body):
            if not item:
                continue
            if put is None:
                if isinstance(item, bytes) and response.satisfied_by(item):
                    return item
                self._pump = pump = Pump(self)
                put = pump.put
            if not put(item):
                break
        return None

    def _close_on_thread(self, body: Any) -> None:
        if hasattr(body, "aclose"):
            await_(self._close(body))
            return
        close = getattr(body, "close", None)
        if close is None:
            return
        # As in `_close`. Each side sets its own flag before it looks at the other's, so
        # that a cancellation is either seen here or waits.
        self._closing = True
        absorbed = False
        if self.cancelled:
            try:
                await_(asyncio.sleep(0))
            except asyncio.CancelledError:
                absorbed = True
        try:
            result = close()
            if _is_awaitable(result):
                await_(result)
        finally:
            self._closing = False
            if self._cancel_later:
                self.connection.server.loop.call_soon_threadsafe(self._task.cancel)
        if absorbed:
            raise asyncio.CancelledError

    def _close_late(self, body: Any) -> None:
        server = self.connection.server
        try:
            self._close_on_thread(body)
        except SystemExit as exc:
            server.loop.call_soon_threadsafe(server.exit, exc.code)
        except Exception:
            server.log.exception("Error in close() of the answer to %s", self.request.uri)

    # The end.

    def _fail(self, status: int, exc: BaseException) -> None:
        response = self.response
        server = self.connection.server
        if isinstance(exc, Overloaded):
            server.log.warning("%s %s: %s", self.request.method, self.request.path, exc)
        else:
            server.log.error(
                "Error handling request %s %s",
                self.request.method,
                self.request.uri,
                exc_info=exc,
            )
        if response.headers_sent:
            response.abort()
            return
        headers = [("Content-Type", "text/plain")]
        if isinstance(exc, Overloaded):
            headers.append(("Retry-After", str(exc.retry_after)))
        response.status = ""
        text = "Service Unavailable" if status == 503 else "Internal Server Error"
        response.start_response(f"{status} {text}", headers)
        response.complete(text.encode() + b"\n")

    def _done(self) -> None:
        response = self.response
        connection = self.connection
        server = connection.server
        spool, self._spool = self._spool, None
        server.exchanges.discard(self)
        response.over = True
        self._hints.response = None
        if spool is not None:
            server.close_later(spool.close())
        connection.answered(response.keep_alive)
        server.finished(self.request, self.environ, response, self.started)


def _is_awaitable(value: Any) -> bool:
    # The common cases first: a check with an abstract class takes half a microsecond.
    if value is None or type(value) is list:
        return False
    return type(value) is CoroutineType or inspect.isawaitable(value)


def _join(body: Any) -> bytes:
    """All of a body that has a length."""
    if isinstance(body, (bytes, str)):
        # Iterated, it would come byte by byte, as numbers.
        raise ApplicationError(
            f"The application returned {type(body).__name__}: return a list of bytes."
        )
    try:
        return body[0] if len(body) == 1 and type(body[0]) is bytes else b"".join(body)
    except (TypeError, LookupError):
        items = list(body)
        if all(isinstance(item, bytes) for item in items):
            return b"".join(items)
        raise ApplicationError("A body's items must be bytes.") from None


def _iterable(body: Any) -> Any:
    if body is None or not hasattr(body, "__iter__"):
        raise ApplicationError(
            f"The application returned {type(body).__name__}: return an iterable of bytes."
        )
    return body
