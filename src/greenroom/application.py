"""The WSGI application: a Django project with coroutine views, under any WSGI server.

Called on the loop of a server that speaks coroutine WSGI (see
`greenroom.server.app` for that contract) it returns an awaitable; called on a
thread, by any other server or by a plain WSGI wrapper, it parks that thread where
a coroutine runs, and returns a plain iterable.

On the loop the placement is decided first, then one of these runs:

loop      the whole request cycle in a bridge of the request's task. The response
          is closed after the server has written it.
thread    the whole cycle on a thread. A complete body is handed to the loop at
          once, and the thread goes on to close the response, so that
          `request_finished` is sent where the connections are. A synchronous
          stream keeps its thread, item by item. A coroutine stream or a file
          doesn't: connections are given back before it starts, and it is closed
          on a free thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from functools import partial
from queue import SimpleQueue
from typing import Any

import django
from asgiref.sync import markcoroutinefunction, sync_to_async
from django.apps import apps
from django.core import signals
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.wsgi import WSGIRequest, get_path_info, get_script_name
from django.db import close_old_connections, connections
from django.http import HttpResponseBadRequest
from django.http.response import HttpResponseBase
from django.urls import Resolver404, ResolverMatch, set_script_prefix
from django.utils.module_loading import import_string

from . import bridge, conf, handler, logs, loops, patches, warm
from .bridge import await_, run
from .placement import PLAIN, UNRESOLVED, Placement
from .threads import Held, Hold, Then, new_lane

Environ = dict[str, Any]
StartResponse = Callable[..., Any]

logger = logging.getLogger("greenroom")


def get_wsgi_application() -> AsyncDjangoApplication:
    """The project's application, in the place of Django's function of this name."""
    return AsyncDjangoApplication()


class AsyncDjangoApplication:
    """A Django project as a WSGI application that awaits coroutine views.

    Sets Django up if that was not done. Loads all that is loaded lazily (see
    `greenroom.warm`), so that what is broken shows here and not in a request.
    """

    request_class = WSGIRequest

    def __init__(self) -> None:
        if not apps.ready:
            django.setup(set_prefix=False)
        patches.apply()
        self.settings = conf.settings()
        self.handler = handler.Handler()
        self.handler.load_middleware()
        if self.settings.lifespan is not None:
            self._lifespan = _import_lifespan(self.settings.lifespan)
        warm.up()
        markcoroutinefunction(self)

    @property
    def coroutine_wsgi_options(self) -> Mapping[str, Any]:
        """What the server is to know of the ``GREENROOM`` setting."""
        return {
            "max_parked": self.settings.max_parked,
            "queue_timeout": self.settings.queue_timeout,
            "spool_quota": self.settings.spool_quota,
        }

    async def coroutine_wsgi_startup(self) -> None:
        """Prepare the running loop: lifespan, logging. Awaited by the server once."""
        home = loops.current()
        assert home is not None, "coroutine_wsgi_startup() wants a registered loop"
        await self._state(home)
        listener = logs.take_off_loop()
        if listener is not None:
            home.stack.push_async_callback(asyncio.to_thread, listener.stop)
        self._say_placement(home)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Any:
        if environ.get("wsgi.async"):
            home = loops.current()
            if home is not None:
                return self._on_loop(home, environ, start_response)
        if bridge.thread_wait() is not None:
            # A plain WSGI wrapper was called on a thread of the worker.
            return self._plainly(environ, start_response)
        return loops.background().threads.adopt(self._plainly, environ, start_response)

    # On the loop.

    async def _on_loop(
        self, home: loops.Home, environ: Environ, start_response: StartResponse
    ) -> Any:
        state = await self._state(home)
        new_lane(home.threads)
        exchange = _Exchange(self, environ, state)
        placement = exchange.place()
        if not placement.on_loop:
            answer = await home.threads.run(exchange.on_thread, parks=placement.coroutine)
            start_response(exchange.status, exchange.headers)
            return answer if isinstance(answer, _Parts) else exchange.stream_from_thread(answer)
        try:
            response = await run(exchange.respond)
        except BaseException:
            await shielded(run(exchange.close_unanswered))
            raise
        start_response(exchange.status, exchange.headers)
        return exchange.body_on_loop(response)

    def _say_placement(self, home: loops.Home) -> None:
        from .placement import is_coroutine_view, views

        coroutines = [view for _, _, view in views() if is_coroutine_view(view)]
        held = self.handler.judge.surroundings()
        logger.info(
            "%d coroutine views %s; at most %d connections per database%s",
            len(coroutines),
            "on threads" if held else "on the loop",
            home.threads.most,
            f" (held on threads by: {'; '.join(held)})" if held else "",
        )

    # On a thread of somebody else.

    def _plainly(self, environ: Environ, start_response: StartResponse) -> Any:
        home = loops.of_thread()
        state = home.state.get(self, _UNSET)
        if state is _UNSET:
            state = await_(self._state(home))
        exchange = _Exchange(self, environ, state)
        response = exchange.respond_or_close()
        start_response(exchange.status, exchange.headers)
        file = exchange.file_of(response)
        if file is not None:
            # Servers close the wrapper, which closes what it wraps.
            file.close = response.close
            return environ["wsgi.file_wrapper"](file, response.block_size)  # type: ignore[attr-defined]
        if getattr(response, "is_async", False):
            return _Pulled(home, response)
        return response

    # The lifespan.

    async def _state(self, home: loops.Home) -> Any:
        """What the project's lifespan yielded on this loop; entered when first asked."""
        state = home.state.get(self, _UNSET)
        if state is _UNSET:
            lock = home.state.setdefault((self, "lock"), asyncio.Lock())
            async with lock:
                state = home.state.get(self, _UNSET)
                if state is _UNSET:
                    home.threads.after_call = _tidy_connections
                    state = await self._enter_lifespan(home)
                    home.state[self] = state
        return state

    async def _enter_lifespan(self, home: loops.Home) -> Any:
        if self.settings.lifespan is None:
            return None
        entered: asyncio.Future[Any] = home.loop.create_future()
        leave = asyncio.Event()

        async def live() -> None:
            # One task enters and leaves: task groups and timeouts insist on it.
            try:
                async with self._lifespan() as state:
                    entered.set_result(state)
                    await leave.wait()
            except BaseException as exc:
                if entered.done():
                    raise
                entered.set_exception(exc)

        task = home.loop.create_task(live())

        async def end() -> None:
            leave.set()
            await task

        state = await entered
        home.stack.push_async_callback(end)
        return state


_UNSET = object()


class _Exchange:
    """One request and its response."""

    def __init__(self, application: AsyncDjangoApplication, environ: Environ, state: Any) -> None:
        self.application = application
        self.environ = environ
        self.state = state
        self.request: WSGIRequest | None = None
        self.match: ResolverMatch | None = None
        self.path_info = ""
        self.on_loop = False
        self.status = ""
        self.headers: list[tuple[str, str]] = []

    def place(self) -> Placement:
        """Look the view up, and decide where the request runs."""
        judge = self.application.handler.judge
        if any("path converter" in reason for reason in judge.surroundings()):
            # A look-up runs the project's code, which may block: none on the loop.
            return Placement(on_loop=False, coroutine=True, reason="a path converter")
        try:
            self.path_info = get_path_info(self.environ) or "/"
            self.match = handler.find(self.path_info)
        except (Resolver404, UnicodeDecodeError):
            return UNRESOLVED
        except Exception:
            # The request cycle will raise it again, and answer it.
            return PLAIN
        placement = judge.place(self.match.func)
        self.on_loop = placement.on_loop
        return placement

    def respond(self) -> HttpResponseBase:
        """The request cycle, in a bridge or on a thread."""
        application = self.application
        with contextlib.suppress(UnicodeDecodeError):  # which the request raises again
            set_script_prefix(get_script_name(self.environ))
        signals.request_started.send(sender=type(application), environ=self.environ)
        try:
            self.request = request = application.request_class(self.environ)
        except UnicodeDecodeError:
            # The script name or the path is no UTF-8.
            logging.getLogger("django.request").warning(
                "Bad Request (UnicodeDecodeError)", exc_info=True, extra={"status_code": 400}
            )
            response: HttpResponseBase = HttpResponseBadRequest()
        else:
            request.lifespan = self.state  # type: ignore[attr-defined]
            if self.on_loop:
                setattr(request, handler.ON_LOOP, True)
            handler.set_hint(request, self.path_info, self.match)
            response = application.handler.get_response(request)
        response._handler_class = type(application)  # type: ignore[attr-defined]
        self.status = f"{response.status_code} {response.reason_phrase}"
        self.headers = [
            *response.items(),
            *(
                ("Set-Cookie", cookie.output(header="").strip())
                for cookie in response.cookies.values()
            ),
        ]
        return response

    def close_unanswered(self) -> None:
        handler.close_unanswered(self.request, type(self.application))

    def respond_or_close(self) -> HttpResponseBase:
        try:
            return self.respond()
        except BaseException:
            self.close_unanswered()
            raise

    def file_of(self, response: HttpResponseBase) -> Any:
        """The open file that the server is to send itself, if it can."""
        file = getattr(response, "file_to_stream", None)
        return file if file is not None and "wsgi.file_wrapper" in self.environ else None

    # Placement loop.

    def body_on_loop(self, response: Any) -> Any:
        close = partial(run, response.close)
        if not response.streaming:
            return _Parts(response, close)
        file = self.file_of(response)
        if file is not None:
            return self._wrapped(response, file, close)
        if response.is_async:
            return _stream(response, close)
        return _stream_in_calls(response, close)

    # Placement thread.

    def on_thread(self) -> Any:
        response: Any = self.respond_or_close()
        try:
            if not response.streaming:
                return Then(_Parts(response), response.close)
            if response.is_async or self.file_of(response) is not None:
                return Then(response, _give_back_connections)
            return Hold((response, iter(response)), response.close)
        except BaseException:
            response.close()
            raise

    def stream_from_thread(self, answer: Any) -> Any:
        if isinstance(answer, Held):
            return _stream_from(answer)
        close = sync_to_async(answer.close)
        file = self.file_of(answer)
        return self._wrapped(answer, file, close) if file is not None else _stream(answer, close)

    def _wrapped(self, response: Any, file: Any, close: Callable[[], Awaitable[Any]]) -> Any:
        wrapper = self.environ["wsgi.file_wrapper"](file, response.block_size)
        wrapper.aclose = close
        return wrapper


def _give_back_connections() -> None:
    """Before a stream: its view's connections, as at the end of a request."""
    close_old_connections()


def _tidy_connections() -> None:
    """After a call on a free thread, whose next user is another request."""
    for connection in connections.all(initialized_only=True):
        if connection.connection is None:
            continue
        if connection.in_atomic_block or not connection.get_autocommit():
            connection.close()
            del connections[connection.alias]
            logger.error(
                "A sync_to_async call left a transaction open on the database %r; it was rolled "
                "back. Make the whole transaction one synchronous function, or mark the view "
                "@greenroom.on_thread.",
                connection.alias,
            )
        else:
            connection.close_if_unusable_or_obsolete()


class _Parts(list[bytes]):
    """A complete body, and how its response is closed once it is written."""

    __slots__ = ("aclose",)

    def __init__(
        self, parts: Iterable[bytes], close: Callable[[], Awaitable[Any]] | None = None
    ) -> None:
        super().__init__(parts)
        if close is not None:
            self.aclose = close


class _Stream:
    """An async iterator over a body, closed exactly once by the server."""

    __slots__ = ("_close", "_iterator")

    def __init__(self, iterator: AsyncIterator[bytes], close: Callable[[], Awaitable[Any]]) -> None:
        self._iterator = iterator
        self._close = close

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._iterator

    async def aclose(self) -> None:
        try:
            aclose = getattr(self._iterator, "aclose", None)
            if aclose is not None:
                await aclose()
        finally:
            await self._close()


def _stream(response: Any, close: Callable[[], Awaitable[Any]]) -> Any:
    """A coroutine view's stream: its generator's steps run in the request's task."""

    async def parts() -> AsyncIterator[bytes]:
        source = response._iterator
        try:
            async for part in source:
                yield response.make_bytes(part)
        finally:
            # Closed here, not whenever it is collected: its finally runs now.
            if inspect.isasyncgen(source):
                await source.aclose()

    return _Stream(parts(), close)


def _stream_in_calls(response: Any, close: Callable[[], Awaitable[Any]]) -> Any:
    """A synchronous stream of a coroutine view on the loop: each item on a thread."""

    async def parts() -> AsyncIterator[bytes]:
        following = sync_to_async(partial(next, iter(response), None))
        while (part := await following()) is not None:
            yield part

    return _Stream(parts(), close)


def _stream_from(held: Held) -> Any:
    """A synchronous stream, item by item on the thread that it was made on."""

    async def parts() -> AsyncIterator[bytes]:
        _, iterator = held.value
        while (part := await held.call(next, iterator, None)) is not None:
            yield part

    return _Stream(parts(), held.release)


class _Pulled:
    """A coroutine stream as a plain iterator, for a server that knows no others.

    One task on the loop pulls it, item by item as they are asked for: cancel
    scopes inside of a generator insist on one task.
    """

    def __init__(self, home: loops.Home, response: Any) -> None:
        self._home = home
        self._response = response
        self._items: SimpleQueue[Any] = SimpleQueue()
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ended = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._ended:
            raise StopIteration
        self._home.loop.call_soon_threadsafe(self._want)
        item = self._items.get()
        if isinstance(item, bytes):
            return item
        self._ended = True
        if item is None:
            raise StopIteration
        raise item

    def close(self) -> None:
        if not self._ended:
            self._ended = True
            self._home.loop.call_soon_threadsafe(self._cancel)
            while isinstance(self._items.get(), bytes):
                pass
        self._response.close()

    def _want(self) -> None:
        self._wanted.set()
        if self._task is None:
            self._task = self._home.loop.create_task(self._pull())

    def _cancel(self) -> None:
        if self._task is None:
            self._items.put(None)
        else:
            self._task.cancel()

    async def _pull(self) -> None:
        body = _stream(self._response, _nothing)
        end: BaseException | None = None
        try:
            parts = aiter(body)
            while True:
                await self._wanted.wait()
                self._wanted.clear()
                self._items.put(await anext(parts))
        except StopAsyncIteration:
            end = None
        except BaseException as exc:
            end = exc
        try:
            await body.aclose()
        finally:
            self._items.put(end)


async def _nothing() -> None:
    """The response of a pulled stream is closed on the thread that pulls."""


async def shielded(awaitable: Awaitable[Any]) -> None:
    """Await to the end, whatever is cancelled; then let the cancellation go on."""
    task = asyncio.ensure_future(_await(awaitable))
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is not None:
        raise cancelled
    task.result()


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


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
