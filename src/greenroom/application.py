"""The application: a Django project with coroutine views, and its WSGI face.

`Application` is what every face shares: the project's handler, its settings, and
what is made once for each loop (its lifespan, its log handlers). How a request is
answered is in `greenroom.exchange`; the ASGI face in `greenroom.asgi`.

`AsyncDjangoApplication`, called on the loop of a server that speaks coroutine WSGI
(see `greenroom.server.app` for that contract), returns an awaitable; called on a
thread, by any other server or by a plain WSGI wrapper, it parks that thread where
a coroutine runs, and returns a plain iterable.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from tempfile import SpooledTemporaryFile
from typing import IO, Any

import django
from asgiref.sync import markcoroutinefunction
from django.apps import apps
from django.conf import settings
from django.core import signals
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.wsgi import WSGIRequest, get_path_info, get_script_name
from django.db import connections
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.urls import set_script_prefix
from django.utils.module_loading import import_string

from . import bridge, conf, exchange, handler, integrations, logs, loops, patches, warm
from .bodies import Nothing, Pulled, nothing, once, stream
from .bridge import await_
from .db import borrow, selftest
from .errors import PeerError
from .exchange import Exchange, StartResponse
from .integrations import sentry
from .placement import views

Environ = dict[str, Any]

# A body is read in pieces of this size.
_BLOCK = 1 << 16


def get_wsgi_application() -> AsyncDjangoApplication:
    """The project's application, in the place of Django's function of this name."""
    return AsyncDjangoApplication()


class Application:
    """A Django project that awaits coroutine views; its class sends the request signals.

    Sets Django up if that was not done. Loads all that is loaded lazily (see
    `greenroom.warm`), so that what is broken shows here and not in a request.
    """

    def __init__(self) -> None:
        if not apps.ready:
            django.setup(set_prefix=False)
        patches.apply()
        integrations.apply()
        self.settings = conf.settings()
        borrow.check_settings()
        self.handler = handler.Handler(type(self))
        self.handler.load_middleware()
        if self.settings.lifespan is not None:
            self._lifespan = _import_lifespan(self.settings.lifespan)
        _off_any_loop(warm.up)

    async def start(self, home: loops.Home) -> str:
        """Prepare a loop before it serves: lifespan, logging, databases.

        Returns a line for a log: where coroutine views run, and why.
        """
        await self.state_of(home)
        await selftest.run()
        return (
            f"{self.placements()}; "
            f"at most {home.threads.most} connections per database of threads, "
            f"and {_shared_connections()} of the loop"
        )

    def placements(self) -> str:
        """In one line: how many coroutine views are placed where, and what holds them there."""
        judge = self.handler.judge
        found = [judge.place(view) for *_, view in views()]
        places = [placement.on_loop for placement in found if placement.coroutine]
        counts = [(places.count(True), "on the loop"), (places.count(False), "on threads")]
        said = ", ".join(f"{count} {where}" for count, where in counts if count) or "none"
        held = "; ".join(judge.surroundings())
        return f"coroutine views: {said}{f' (held there by: {held})' if held else ''}"

    async def state_of(self, home: loops.Home) -> Any:
        """What the project's lifespan yielded on this loop; entered when first asked."""
        state = home.state.get(self, _UNSET)
        if state is _UNSET:
            entered = home.state.get((self, "entered"))
            if entered is None:
                entered = home.state[self, "entered"] = self._enter_lifespan(home)
            # Others wait for it too: a cancelled request must not take it away.
            state = await asyncio.shield(entered)
        return state

    def _enter_lifespan(self, home: loops.Home) -> asyncio.Future[Any]:
        home.threads.after_call = exchange.tidy_connections
        home.threads.at_end = connections.close_all
        home.stack.callback(borrow.drain)
        # Those of tests come and go.
        listener = None if borrow.in_tests() else logs.take_off_loop()
        if listener is not None:
            home.stack.push_async_callback(_stop_listening, listener.stop)
        entered: asyncio.Future[Any] = home.loop.create_future()
        if self.settings.lifespan is None:
            home.state[self] = None
            entered.set_result(None)
            return entered
        leave = asyncio.Event()

        async def live() -> None:
            # One task enters and leaves: task groups and timeouts insist on it.
            try:
                async with self._lifespan() as state:
                    home.state[self] = state
                    home.stack.push_async_callback(end)
                    entered.set_result(state)
                    try:
                        await leave.wait()
                    except asyncio.CancelledError:
                        # By who ends the loop, as `asyncio.run` does: it is left in order.
                        task.uncancel()
            except BaseException as exc:
                if entered.done():
                    raise
                # The next one to ask tries again.
                del home.state[self, "entered"]
                entered.set_exception(exc)

        task = home.loop.create_task(live())
        home.lasting.add(task)

        async def end() -> None:
            leave.set()
            await task
            home.lasting.discard(task)

        return entered


_UNSET = object()


class AsyncDjangoApplication(Application):
    """A Django project as a WSGI application that awaits coroutine views."""

    request_class = WSGIRequest

    def __init__(self) -> None:
        super().__init__()
        markcoroutinefunction(self)

    @property
    def coroutine_wsgi_options(self) -> Mapping[str, Any]:
        """What the server is to know of the ``GREENROOM`` setting."""
        return {
            "max_parked": self.settings.max_parked,
            "queue_timeout": self.settings.queue_timeout,
            "spool_quota": self.settings.spool_quota,
            "max_body": self.settings.max_body,
            "stall_threshold": self.settings.stall_threshold,
            "probes": self.settings.probes,
        }

    async def coroutine_wsgi_startup(self) -> str:
        """Prepare the running loop. Awaited by the server once, which logs what it returns."""
        home = loops.current()
        assert home is not None, "coroutine_wsgi_startup() wants a registered loop"
        return await self.start(home)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Any:
        if environ.get("wsgi.async"):
            home = loops.current()
            if home is not None:
                state = home.state.get(self, _UNSET)
                if state is _UNSET:
                    return self._begin_on_loop(home, environ, start_response)
                return _WSGIExchange(self, environ, state).answer(home, start_response)
        if bridge.thread_wait() is not None:
            # A plain WSGI wrapper was called on a thread of the worker.
            return self._plainly(environ, start_response)
        # What the server's thread iterates over and closes later has the scope, too.
        plainly = sentry.wrapped(self._plainly)
        return loops.background().threads.adopt(plainly, environ, start_response)

    async def _begin_on_loop(
        self, home: loops.Home, environ: Environ, start_response: StartResponse
    ) -> Any:
        state = await self.state_of(home)
        return await _WSGIExchange(self, environ, state).answer(home, start_response)

    # On a thread of somebody else.

    def _plainly(self, environ: Environ, start_response: StartResponse) -> Any:
        home = loops.of_thread()
        state = home.state.get(self, _UNSET)
        if state is _UNSET:
            state = await_(self.state_of(home))
        made = _WSGIExchange(self, environ, state)
        try:
            body = _chunked_body(environ, self.settings.max_body)
        except PeerError as exc:
            text = HTTPStatus(exc.status).phrase
            start_response(f"{exc.status} {text}", [("Content-Type", "text/plain")])
            return [f"{text}\n".encode()]
        try:
            response = made.respond()
            start_response(made.status, made.fields())
        except BaseException:
            try:
                made.close()
            finally:
                if body is not None:
                    body.close()
            raise
        if body is not None:
            response._resource_closers.append(body.close)  # type: ignore[attr-defined]
        # The server closes it, when it has sent it: then the thread's wrappers are the next
        # request's.
        response._resource_closers.append(made.leave)  # type: ignore[attr-defined]
        if made.omits_body:
            # waitress, for one, would send it.
            return Nothing(response.close)
        file = made.file_of(response)
        if file is not None:
            # Servers close the wrapper, which closes what it wraps.
            file.close = once(response.close)
            return environ["wsgi.file_wrapper"](file, response.block_size)  # type: ignore[attr-defined]
        if getattr(response, "is_async", False):
            return Pulled(home, stream(response, made.source, nothing), once(response.close))
        return response


class _WSGIExchange(Exchange):
    """A request as WSGI gives it."""

    application: AsyncDjangoApplication

    def __init__(self, application: AsyncDjangoApplication, environ: Environ, state: Any) -> None:
        super().__init__(application, environ["REQUEST_METHOD"], state)
        self.environ = environ

    @property
    def name(self) -> str:
        return f"{self.method} {self.environ.get('PATH_INFO', '')!r}"

    def respond(self) -> HttpResponseBase:
        if not sentry.is_loaded():
            return super().respond()
        return sentry.traced(super().respond, self.environ, lambda: (self.status, self.headers))

    def find_path(self) -> str:
        return get_path_info(self.environ) or "/"

    def begin(self) -> None:
        try:  # noqa: SIM105 - suppress() takes a microsecond
            set_script_prefix(get_script_name(self.environ))
        except UnicodeDecodeError:
            pass  # The request raises it again.
        signals.request_started.send(sender=type(self.application), environ=self.environ)

    def make_request(self) -> HttpRequest:
        return self.application.request_class(self.environ)

    @property
    def file_wrapper(self) -> Any:
        return self.environ.get("wsgi.file_wrapper")


def _chunked_body(environ: Environ, limit: int | None) -> IO[bytes] | None:
    """Receive a body without a length, which Django would take for empty.

    That is for servers that say where it ends, as gunicorn's workers do. Raises `PeerError`
    if it is longer than `limit`.
    """
    if environ.get("CONTENT_LENGTH") or not environ.get("wsgi.input_terminated"):
        return None
    if "chunked" not in environ.get("HTTP_TRANSFER_ENCODING", "").lower():
        return None
    body = SpooledTemporaryFile(  # noqa: SIM115 - closed with the response
        settings.FILE_UPLOAD_MAX_MEMORY_SIZE, dir=settings.FILE_UPLOAD_TEMP_DIR
    )
    try:
        while data := environ["wsgi.input"].read(_BLOCK):
            body.write(data)
            if limit is not None and body.tell() > limit:
                raise PeerError(413, "a body over the limit")
        environ["CONTENT_LENGTH"] = str(body.tell())
        body.seek(0)
    except BaseException:
        body.close()
        raise
    environ["wsgi.input"] = body
    return body


def _shared_connections() -> int:
    return max((borrow.limits_of(alias).limit for alias in connections), default=0)


async def _stop_listening(stop: Callable[[], None]) -> None:
    """Let log handlers write what is queued: on a thread, they may be slow."""
    try:
        await asyncio.to_thread(stop)
    except RuntimeError:
        # At exit no thread is started any more, and nothing else waits for the loop.
        stop()


def _off_any_loop(fn: Callable[[], object]) -> None:
    """Call `fn` where code may block, and query, though a server loads us on its loop."""
    if asyncio._get_running_loop() is None:
        fn()
        return
    # On a thread; nobody else's work is on the loop yet.
    failed: list[BaseException] = []

    def run() -> None:
        try:
            fn()
        except BaseException as exc:
            failed.append(exc)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run, name="greenroom-warm")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _import_lifespan(name: str) -> Callable[[], contextlib.AbstractAsyncContextManager[Any]]:
    try:
        lifespan = import_string(name)
    except ImportError as exc:
        raise ImproperlyConfigured(
            f"GREENROOM['LIFESPAN'] names {name!r}, which can't be imported: {exc}"
        ) from exc
    if not callable(lifespan):
        raise ImproperlyConfigured(
            f"GREENROOM['LIFESPAN'] names {name!r}, which is no function: decorate one with "
            "contextlib.asynccontextmanager."
        )
    return lifespan  # type: ignore[no-any-return]
