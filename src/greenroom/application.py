"""The WSGI application: a Django project with coroutine views, under any WSGI server.

Called on the loop of a server that speaks coroutine WSGI (see
`greenroom.server.app` for that contract) it returns an awaitable; called on a
thread, by any other server or by a plain WSGI wrapper, it parks that thread where
a coroutine runs, and returns a plain iterable.

On the loop the placement is decided first, then one of these runs:

loop      the whole request cycle in a bridge of the request's task. The response
          is closed after the server has written it: in a bridge too, unless that
          runs code of the project's, which gets a thread. A synchronous stream is
          given a thread for all its items.
thread    the whole cycle on a thread. A complete body is handed to the loop at
          once, and the thread goes on to close the response, so that
          `request_finished` is sent where the connections are. A synchronous
          stream keeps its thread, item by item. A coroutine stream or a file
          doesn't: connections are given back before it starts, and it is closed
          on a free thread.

Whatever happens, a request that was begun (`request_started`) is closed exactly
once, which sends `request_finished`: an `_Exchange` knows whose task that is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from asyncio import CancelledError
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
)
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

from . import bridge, conf, handler, integrations, logs, loops, patches, warm
from .bodies import Parts, Pulled, Stream, nothing, parts_of, stream
from .bridge import await_, run
from .crossing import Held, Hold, Then, new_lane
from .db import borrow, selftest
from .errors import Overloaded
from .placement import PLAIN, UNRESOLVED, Placement, views
from .threads import Threads

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
        integrations.apply()
        self.settings = conf.settings()
        borrow.check_settings()
        self.handler = handler.Handler(type(self))
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
            "max_body": self.settings.max_body,
            "stall_threshold": self.settings.stall_threshold,
            "probes": self.settings.probes,
        }

    async def coroutine_wsgi_startup(self) -> str:
        """Prepare the running loop: lifespan, logging. Awaited by the server once.

        Returns a line for the server's log: where coroutine views run, and why.
        """
        home = loops.current()
        assert home is not None, "coroutine_wsgi_startup() wants a registered loop"
        await self._state(home)
        listener = logs.take_off_loop()
        if listener is not None:
            home.stack.push_async_callback(asyncio.to_thread, listener.stop)
        await selftest.run()
        judge = self.handler.judge
        found = [judge.place(view) for *_, view in views()]
        places = [placement.on_loop for placement in found if placement.coroutine]
        counts = [(places.count(True), "on the loop"), (places.count(False), "on threads")]
        said = ", ".join(f"{count} {where}" for count, where in counts if count) or "none"
        held = "; ".join(judge.surroundings())
        return (
            f"coroutine views: {said}{f' (held there by: {held})' if held else ''}; "
            f"at most {home.threads.most} connections per database of threads, "
            f"and {_shared_connections()} of the loop"
        )

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
        answer = None
        try:
            if placement.on_loop:
                answer = exchange.body_on_loop(home.threads, await run(exchange.respond))
            else:
                made = await home.threads.run(exchange.on_thread, parks=placement.coroutine)
                answer = exchange.body_from_thread(made)
            start_response(exchange.status, exchange.headers)
        except GeneratorExit:
            # The task is thrown away: nothing can be awaited. A thread ends by itself.
            if placement.on_loop:
                exchange.throw_away()
            raise
        except BaseException:
            await shielded(getattr(answer, "aclose", exchange.aclose)())
            raise
        return answer

    # On a thread of somebody else.

    def _plainly(self, environ: Environ, start_response: StartResponse) -> Any:
        home = loops.of_thread()
        state = home.state.get(self, _UNSET)
        if state is _UNSET:
            state = await_(self._state(home))
        exchange = _Exchange(self, environ, state)
        try:
            response = exchange.respond()
            start_response(exchange.status, exchange.headers)
        except BaseException:
            exchange.close()
            raise
        # The server closes it, when it has sent it: then the thread's wrappers are the next
        # request's.
        response._resource_closers.append(exchange.leave)  # type: ignore[attr-defined]
        file = exchange.file_of(response)
        if file is not None:
            # Servers close the wrapper, which closes what it wraps.
            file.close = response.close
            return environ["wsgi.file_wrapper"](file, response.block_size)  # type: ignore[attr-defined]
        if getattr(response, "is_async", False):
            return Pulled(home, stream(response, exchange.source, nothing), response.close)
        return response

    # The lifespan.

    async def _state(self, home: loops.Home) -> Any:
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
        home.threads.after_call = _tidy_connections
        home.stack.callback(borrow.drain)
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
                    await leave.wait()
            except BaseException as exc:
                if entered.done():
                    raise
                # The next one to ask tries again.
                del home.state[self, "entered"]
                entered.set_exception(exc)

        task = home.loop.create_task(live())

        async def end() -> None:
            leave.set()
            await task

        return entered


_UNSET = object()


class _Exchange:
    """One request and its response."""

    def __init__(self, application: AsyncDjangoApplication, environ: Environ, state: Any) -> None:
        self.application = application
        self.environ = environ
        self.state = state
        self.request: WSGIRequest | None = None
        self.response: HttpResponseBase | None = None
        self.match: ResolverMatch | None = None
        self.path_info = ""
        self.on_loop = False
        self.status = ""
        self.headers: list[tuple[str, str]] = []
        # A coroutine view's own iterator, which a middleware may have wrapped.
        self.source: Any = None
        # Whose database wrappers are used.
        self.scope: borrow.Scope | None = None
        # Whether `request_started` was sent, and whether somebody sees to the end.
        self._begun = False
        self._claimed = False

    def place(self) -> Placement:
        """Look the view up, and decide where the request runs."""
        judge = self.application.handler.judge
        if not judge.may_resolve():
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
        placement = judge.place(self.match.func, self.environ["REQUEST_METHOD"])
        self.on_loop = placement.on_loop
        return placement

    def respond(self) -> HttpResponseBase:
        """The request cycle, in a bridge or on a thread."""
        application = self.application
        self._begun = True
        name = f"{self.environ['REQUEST_METHOD']} {self.environ.get('PATH_INFO', '')!r}"
        self.scope = borrow.begin(name, own=not self.on_loop)
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
            self.source = handler.forget(request)
        self.response = response
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

    def file_of(self, response: HttpResponseBase) -> Any:
        """The open file that the server is to send itself, if it can."""
        file = getattr(response, "file_to_stream", None)
        return file if file is not None and self.environ.get("wsgi.file_wrapper") else None

    # The end: exactly once.

    def claim(self) -> Callable[[], None]:
        """What ends the request. It is the caller's to see that it is called."""
        self._claimed = True
        return self._end

    def close(self) -> None:
        """End the request, unless it was never begun or that is somebody else's."""
        if self._begun and not self._claimed:
            self.claim()()

    def throw_away(self) -> None:
        """As `close`, where nothing can wait."""
        self.leave()
        self.close()

    def leave(self) -> None:
        """Nothing more is done for this request with its database wrappers."""
        if self.scope is not None:
            borrow.leave(self.scope)

    async def aclose(self) -> None:
        """As `close`, on the loop; on a thread if it runs code of the project's."""
        if not self._begun or self._claimed:
            return
        end = self.claim()
        if self.on_loop and handler.closes_at_once(self.request, self.response):
            await run(end)
            return
        try:
            await sync_to_async(end)()
        except Overloaded:
            # No thread came free: better late, and here, than never.
            await run(end)

    def _end(self) -> None:
        try:
            if self.response is not None:
                self.response.close()
            else:
                handler.close_unanswered(self.request, type(self.application))
        finally:
            self.leave()

    def _end_on_thread(self) -> None:
        """On a thread of the worker, whose next user is another request."""
        try:
            self._end()
        finally:
            _tidy_connections()

    # Placement loop.

    def body_on_loop(self, threads: Threads, response: Any) -> Any:
        if not response.streaming:
            return Parts(response, self.aclose)
        file = self.file_of(response)
        if file is not None:
            return self._wrapped(response, file)
        if getattr(response, "is_async", False):
            return stream(response, self.source, self.aclose)
        return self._stream_on_a_thread(threads)

    def _stream_on_a_thread(self, threads: Threads) -> Any:
        """A synchronous stream of a coroutine view on the loop: it gets one thread.

        One for all its items: a cursor that it reads from belongs to its thread.
        """
        held: Held | None = None

        async def parts() -> AsyncIterator[bytes]:
            nonlocal held
            held = await threads.run(self._hold)
            async for part in parts_of(held):
                yield part

        async def close() -> None:
            await (self.aclose() if held is None else held.release())

        return Stream(parts(), None, close)

    def _hold(self) -> Hold:
        response: Any = self.response
        iterator = iter(response)
        self.claim()
        assert self.scope is not None
        return Hold(iterator if self.scope.own else _giving_back(iterator), self._end_on_thread)

    # Placement thread.

    def on_thread(self) -> Any:
        try:
            response: Any = self.respond()
            if not response.streaming:
                parts = Parts(response)
                self.claim()
                return Then(parts, self._end_on_thread)
            if getattr(response, "is_async", False) or self.file_of(response) is not None:
                # The thread's next request has its connections.
                self.leave()
                return Then(response, _give_back_connections)
            return self._hold()
        except BaseException:
            try:
                self.close()
            finally:
                _tidy_connections()
            raise

    def body_from_thread(self, made: Any) -> Any:
        if isinstance(made, Parts):
            return made
        if isinstance(made, Held):
            return Stream(parts_of(made), None, made.release)
        file = self.file_of(made)
        if file is not None:
            return self._wrapped(made, file)
        return stream(made, self.source, self.aclose)

    def _wrapped(self, response: Any, file: Any) -> Any:
        wrapper = self.environ["wsgi.file_wrapper"](file, response.block_size)
        wrapper.aclose = self.aclose
        return wrapper


def _giving_back(iterator: Iterator[bytes]) -> Iterator[bytes]:
    """The items of a stream of the loop, with no connection held between them."""
    for item in iterator:
        scope = borrow.current()
        if scope is not None:
            scope.suspend()
        yield item


def _shared_connections() -> int:
    return max((borrow.limits_of(alias).limit for alias in connections), default=0)


def _give_back_connections() -> None:
    """Before a stream: its view's connections, as at the end of a request."""
    close_old_connections()
    _tidy_connections()


def _tidy_connections() -> None:
    """After work on a thread of the worker, whose next user is another request."""
    for connection in connections.all(initialized_only=True):
        if connection.connection is None:
            continue
        if connection.in_atomic_block or not connection.get_autocommit():
            connection.close()
            del connections[connection.alias]
            logger.error(
                "A request left a transaction open on the database %r; it was rolled back. "
                "Leave it where it was begun: with `with transaction.atomic()`.",
                connection.alias,
            )
        else:
            connection.close_if_unusable_or_obsolete()


async def shielded(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Await to the end, whatever is cancelled; then let the cancellation go on.

    For what is done while another error is on its way: its own is logged.
    """
    task = asyncio.create_task(_logged(coroutine))
    cancelled: CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except CancelledError as exc:
            cancelled = exc
    if cancelled is not None:
        raise cancelled


async def _logged(coroutine: Coroutine[Any, Any, Any]) -> None:
    try:
        await coroutine
    except BaseException:
        # SystemExit too, which would end the loop if it came out of a task.
        logger.exception("An error when a request was closed")


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
