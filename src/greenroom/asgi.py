"""The ASGI application: a Django project with coroutine views, under any ASGI server.

The loop is the server's. What is made once for it (threads, the lifespan, log
handlers) is made by the ``lifespan`` scope, or where a server has none by the first
request, and ends with that scope, or with the loop.

A request runs in a task of its own (see `greenroom.exchange`), so that what it sets in
its context is seen by no later request, and a cancellation of it is never one of the
server's task, which waits for it meanwhile. A third task is told when the client
leaves. While the answer is being closed the request isn't cancelled.

The body is received whole before the request begins: in memory up to Django's
``FILE_UPLOAD_MAX_MEMORY_SIZE``, then in a temporary file, written off the loop,
within ``GREENROOM["MAX_BODY"]`` and ``["SPOOL_QUOTA"]``.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
from asyncio import CancelledError
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any, BinaryIO

from django.conf import settings as django_settings
from django.core import signals
from django.core.handlers.asgi import ASGIRequest, get_script_prefix
from django.http import HttpRequest
from django.urls import set_script_prefix

from . import loops
from .application import Application
from .bodies import FileParts
from .errors import ApplicationError, Overloaded, PeerError
from .exchange import Exchange
from .server.body import Quota, Spool

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

logger = logging.getLogger("greenroom")

# Seconds that the end of a process waits for what threads do after the answers.
GRACE = 5.0

# Sent by a body that never suspends, to a client as fast as we are, until others get
# their turn. An item counts as this much besides its bytes.
_BURST = 1 << 20
_ITEM = 1 << 12


def get_asgi_application() -> AsyncDjangoASGIApplication:
    """The project's application, in the place of Django's function of this name."""
    return AsyncDjangoASGIApplication()


class AsyncDjangoASGIApplication(Application):
    """A Django project as an ASGI application that awaits coroutine views."""

    request_class = ASGIRequest

    def __init__(self) -> None:
        super().__init__()
        self.quota = Quota(self.settings.spool_quota)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            raise ValueError(
                f"Django can only handle ASGI/HTTP connections, not {scope['type']}. Give such a "
                "scope to another application, as Channels' ProtocolTypeRouter does."
            )

    async def _home(self) -> loops.Home:
        return await loops.here(
            limit=self.settings.threads,
            max_parked=self.settings.max_parked,
            queue_timeout=self.settings.queue_timeout,
        )

    # The lifespan.

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        home = await self._home()
        try:
            said = await self.start(home)
        except Exception as exc:
            logger.exception("The application can't start")
            await send({"type": "lifespan.startup.failed", "message": f"{exc!r}"})
            return
        logger.info("%s", said)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await _threads_end(home)
        try:
            await home.aclose()
        except Exception as exc:
            logger.exception("An error when the application ended")
            await send({"type": "lifespan.shutdown.failed", "message": f"{exc!r}"})
        else:
            await send({"type": "lifespan.shutdown.complete"})

    # A request.

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        home = await self._home()
        state = await self.state_of(home)
        body = _Body(self.quota, self.settings.max_body)
        try:
            try:
                stream = await body.receive(scope, receive)
            except PeerError as exc:
                await _refuse(send, exc.status)
                return
            if stream is not None:
                exchange = _ASGIExchange(self, scope, stream, body.size, state)
                await _Request(home, exchange, send).serve(receive)
        finally:
            body.close(home.loop)


async def _threads_end(home: loops.Home) -> None:
    """Wait for what threads do after the answers: `close()`, mostly."""
    ends = home.loop.time() + GRACE
    while home.threads.busy:
        left = ends - home.loop.time()
        if left <= 0:
            logger.warning("Abandoned: synchronous code that still runs on threads.")
            return
        await asyncio.sleep(min(0.02, left))


class _Body:
    """The body of a request, while it lasts."""

    def __init__(self, quota: Quota, limit: int | None) -> None:
        self._limit = limit
        self._spool = Spool(
            django_settings.FILE_UPLOAD_MAX_MEMORY_SIZE,
            django_settings.FILE_UPLOAD_TEMP_DIR,
            quota,
        )
        self.size = 0

    async def receive(self, scope: Message, receive: Receive) -> BinaryIO | None:
        """The complete body; None if the client left before. Raises `PeerError`."""
        spool = self._spool
        message = await receive()
        if message["type"] == "http.request" and not message.get("more_body"):
            # As a rule; there is nothing to spare any more.
            whole = message.get("body", b"")
            self.size = len(whole)
            self._look(self.size)
            return io.BytesIO(whole)
        length = _length(scope)
        if length is not None:
            self._look(length)
            spool.expect(length)
        while True:
            if message["type"] == "http.disconnect":
                return None
            spool.add(message.get("body", b""))
            self._look(spool.size)
            if spool.due:
                await _to_its_end(spool.flush)
            if not message.get("more_body"):
                break
            message = await receive()
        self.size = spool.size
        if spool.on_disk:
            await _to_its_end(spool.rewind)
        return spool.open()

    def _look(self, size: int) -> None:
        if self._limit is not None and size > self._limit:
            raise PeerError(413, "a body over the limit")

    def close(self, loop: asyncio.AbstractEventLoop) -> None:
        file = self._spool.close()
        if file is not None:
            try:
                loop.run_in_executor(None, file.close)
            except RuntimeError:
                # The loop ends.
                file.close()


async def _to_its_end(fn: Callable[[], object]) -> None:
    """Run what waits for the disk; a cancellation meanwhile is raised after it."""
    done = asyncio.get_running_loop().run_in_executor(None, fn)
    cancelled: CancelledError | None = None
    while not done.done():
        try:
            await asyncio.wait([done])
        except CancelledError as exc:
            cancelled = exc
    if cancelled is not None:
        raise cancelled
    done.result()


def _length(scope: Message) -> int | None:
    for name, value in scope.get("headers", ()):
        if name == b"content-length" and value.isdigit():
            return int(value)
    return None


async def _refuse(send: Send, status: int, *headers: tuple[bytes, bytes]) -> None:
    """Answer what didn't reach the request cycle, or found no place in it."""
    text = f"{HTTPStatus(status).phrase}\n".encode()
    fields = [(b"Content-Type", b"text/plain"), (b"Content-Length", b"%d" % len(text)), *headers]
    with contextlib.suppress(OSError):  # the client has left
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": text})


class _Gone(Exception):
    """The client is no longer there to be sent to."""


class _Request:
    """One request: its task, and what may cancel it."""

    def __init__(
        self,
        home: loops.Home,
        exchange: _ASGIExchange,
        send: Send,
    ) -> None:
        self._home = home
        self._exchange = exchange
        self._send_message = send
        self._cancelled = False
        self._closing = False
        # Whether the client has left.
        self._gone = False
        self._head: Message = {}

    async def serve(self, receive: Receive) -> None:
        """Answer; return when that is done, or the client has left."""
        loop = self._home.loop
        # Not by loop.create_task: a factory of the server's may begin tasks at once.
        task = self._task = asyncio.Task(self._run(), loop=loop)
        watcher = asyncio.Task(self._watch(receive), loop=loop)
        cancelled: CancelledError | None = None
        try:
            while not task.done():
                try:
                    await asyncio.wait([task])
                except CancelledError as exc:
                    # The server's own: our task ends first.
                    cancelled = exc
                    self._cancel()
        finally:
            watcher.cancel()
        error = None if task.cancelled() else task.exception()
        if cancelled is not None:
            if error is not None:
                logger.error("An error in a request that was cancelled", exc_info=error)
            raise cancelled
        if error is not None:
            raise error

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        if self._exchange.is_cancelled_on_disconnect():
            self._cancel()

    def _cancel(self) -> None:
        self._cancelled = True
        if not self._closing:
            self._task.cancel()

    async def _run(self) -> None:
        exchange = self._exchange
        try:
            body = await exchange.answer(self._home, self._start_response)
            try:
                await self._send(body)
            finally:
                self._closing = True
                await self._close(body)
        except CancelledError as exc:
            if self._cancelled:
                raise
            raise ApplicationError(
                f"{exchange.name} awaited something that was cancelled: catch CancelledError there."
            ) from exc
        except SystemExit as exc:
            # It would end the loop beneath all other requests.
            raise ApplicationError(
                f"{exchange.name} raised SystemExit({exc.code!r}), which ends that request only, "
                "under an ASGI server. To end the process, send it SIGTERM."
            ) from exc
        except Overloaded as exc:
            logger.warning("%s: %s", exchange.name, exc)
            await _refuse(self._send_message, 503, (b"Retry-After", b"%d" % exc.retry_after))
        except _Gone:
            pass

    def _start_response(self, status: str, headers: list[tuple[str, str]]) -> None:
        self._head = {
            "type": "http.response.start",
            "status": int(status[:3]),
            "headers": [
                (name.encode("ascii"), value.encode("latin-1"))
                for name, value in self._exchange.fields()
            ],
        }

    async def _send(self, body: Any) -> None:
        await self._post(self._head)
        if self._exchange.omits_body:
            await self._post({"type": "http.response.body", "body": b""})
        elif isinstance(body, list):
            await self._post({"type": "http.response.body", "body": b"".join(body)})
        else:
            burst = 0
            async for part in body:
                if not part:
                    continue
                await self._post({"type": "http.response.body", "body": part, "more_body": True})
                burst += len(part) + _ITEM
                if burst > _BURST:
                    burst = 0
                    await asyncio.sleep(0)
            await self._post({"type": "http.response.body", "body": b""})

    async def _post(self, message: Message) -> None:
        if self._gone:
            raise _Gone
        try:
            await self._send_message(message)
        except OSError as exc:
            raise _Gone from exc

    async def _close(self, body: Any) -> None:
        absorbed = False
        if self._cancelled:
            # It may not have been delivered yet: not to `aclose()`.
            try:
                await asyncio.sleep(0)
            except CancelledError:
                absorbed = True
        aclose = getattr(body, "aclose", None)
        if aclose is not None:
            await aclose()
        if absorbed:
            raise CancelledError


class _ASGIExchange(Exchange):
    """A request as ASGI gives it."""

    application: AsyncDjangoASGIApplication
    waits_for_thread = True

    def __init__(
        self,
        application: AsyncDjangoASGIApplication,
        scope: Message,
        stream: BinaryIO,
        size: int,
        state: Any,
    ) -> None:
        super().__init__(application, scope["method"].upper(), state)
        self._asgi_scope = scope
        self._stream = stream
        self._size = size

    @property
    def name(self) -> str:
        return f"{self.method} {self._asgi_scope['path']!r}"

    def find_path(self) -> str:
        path: str = self._asgi_scope["path"]
        prefix = get_script_prefix(self._asgi_scope).rstrip("/")
        return path[len(prefix) :] if path == prefix or path.startswith(f"{prefix}/") else path

    def begin(self) -> None:
        set_script_prefix(get_script_prefix(self._asgi_scope))
        signals.request_started.send(sender=type(self.application), scope=self._asgi_scope)

    def make_request(self) -> HttpRequest:
        request = self.application.request_class(self._asgi_scope, self._stream)
        if self._size:
            # A chunked body has none, and Django would take it for empty.
            request.META.setdefault("CONTENT_LENGTH", str(self._size))
        return request

    @property
    def file_wrapper(self) -> Any:
        return FileParts

    def is_cancelled_on_disconnect(self) -> bool:
        request = self.request
        return request is None or bool(
            request.META.get("coroutine_wsgi.cancel_on_disconnect", True)
        )
