"""One request and its answer, whatever server asked for it.

The placement is decided first, then one of these runs:

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
once, which sends `request_finished`: an `Exchange` knows whose task that is.

What depends on the protocol (the request's class, its path, how a file is sent) is in
the faces' subclasses.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from asyncio import CancelledError
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from typing import Any, Protocol

from asgiref.sync import sync_to_async
from django.core.exceptions import RequestDataTooBig
from django.db import close_old_connections, connections
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest
from django.http.response import HttpResponseBase, ResponseHeaders
from django.urls import Resolver404, ResolverMatch

from . import handler, loops
from .bodies import Offer, Parts, Stream, parts_of, push_of, stream
from .bridge import run
from .crossing import Held, Hold, Lane, Then, new_lane
from .db import borrow
from .errors import Overloaded
from .placement import PLAIN, UNRESOLVED, Placement
from .threads import Threads

StartResponse = Callable[..., Any]

logger = logging.getLogger("greenroom")


class Application(Protocol):
    """What is used of the application; its class is the sender of the request signals."""

    handler: handler.Handler


class Exchange(ABC):
    """One request and its response."""

    # Whether the answer ends after what its thread does: `request_finished`, mostly. The
    # worker has a drain that waits for threads; others are told by our return.
    waits_for_thread = False

    def __init__(self, application: Application, method: str, state: Any) -> None:
        self.application = application
        self.method = method
        self.state = state
        self.request: HttpRequest | None = None
        self.response: HttpResponseBase | None = None
        self.match: ResolverMatch | None = None
        self.path_info = ""
        self.on_loop = False
        self.status = ""
        self.headers: list[tuple[str, str]] = []
        # Whether the answer has none that may be sent: to HEAD, 204, 304.
        self.omits_body = False
        # A coroutine view's own iterator, which a middleware may have wrapped.
        self.source: Any = None
        # Whose database wrappers are used.
        self.scope: borrow.Scope | None = None
        # Done when the thread of the request is, if that is waited for.
        self._thread_ended: asyncio.Future[None] | None = None
        # Whether `request_started` was sent, and whether somebody sees to the end.
        self._begun = False
        self._claimed = False
        # Where the calls of the request go, if a server that calls us on a loop asks.
        self._lane: Lane | None = None

    # What depends on the protocol.

    @property
    @abstractmethod
    def name(self) -> str:
        """The request, for messages."""

    @abstractmethod
    def find_path(self) -> str:
        """The path below the script name. Raises `UnicodeDecodeError`."""

    @abstractmethod
    def begin(self) -> None:
        """Set the script prefix, and send `request_started`."""

    @abstractmethod
    def make_request(self) -> HttpRequest:
        """Django's request. Raises `UnicodeDecodeError`, and the project's class more."""

    @property
    @abstractmethod
    def file_wrapper(self) -> Callable[[Any, int], Any] | None:
        """What an open file is given to, if the server sends it itself."""

    # The answer, for a server that calls us on a loop.

    async def answer(self, home: loops.Home, start_response: StartResponse) -> Any:
        """The body, after `start_response` was called. Whoever gets it closes it."""
        self._lane = new_lane(home.threads)
        placement = self.place()
        answer = None
        try:
            if placement.on_loop:
                answer = self._body_on_loop(home.threads, await run(self.respond))
            else:
                if self.waits_for_thread:
                    self._thread_ended = home.loop.create_future()
                made = await home.threads.run(self._on_thread, parks=placement.coroutine)
                answer = self._body_from_thread(made)
            start_response(self.status, self.headers)
        except GeneratorExit:
            # The task is thrown away: nothing can be awaited. A thread ends by itself.
            if placement.on_loop:
                self._throw_away()
            raise
        except BaseException:
            await shielded(getattr(answer, "aclose", self.aclose)())
            raise
        return answer

    def place(self) -> Placement:
        """Look the view up, and decide where the request runs."""
        judge = self.application.handler.judge
        if not judge.may_resolve():
            # A look-up runs the project's code, which may block: none on the loop.
            return Placement(on_loop=False, coroutine=True, reason="a path converter")
        try:
            self.path_info = self.find_path()
            self.match = handler.find(self.path_info)
        except (Resolver404, UnicodeDecodeError):
            return UNRESOLVED
        except Exception:
            # The request cycle will raise it again, and answer it.
            return PLAIN
        placement = judge.place(self.match.func, self.method, looked=True)
        self.on_loop = placement.on_loop
        return placement

    def respond(self) -> HttpResponseBase:
        """The request cycle, in a bridge or on a thread."""
        application = self.application
        self._begun = True
        self.scope = borrow.begin(self.name, own=not self.on_loop)
        self.begin()
        try:
            self.request = request = self.make_request()
        except UnicodeDecodeError:
            # The script name, the path or, over ASGI, the query string is no UTF-8.
            logging.getLogger("django.request").warning(
                "Bad Request (UnicodeDecodeError)", exc_info=True, extra={"status_code": 400}
            )
            response: HttpResponseBase = HttpResponseBadRequest()
        except RequestDataTooBig:
            # Raised by a request class of the project's: Django's is checked as it is read.
            response = HttpResponse("413 Payload too large", status=413)
        else:
            request.lifespan = self.state  # type: ignore[attr-defined]
            if self.on_loop:
                view = None if self.match is None else self.match.func
                setattr(request, handler.ON_LOOP, (view, self.method))
            application.handler.set_hint(request, self.path_info, self.match)
            response = application.handler.get_response(request)
            self.source = handler.forget(request)
        self.response = response
        response._handler_class = type(application)  # type: ignore[attr-defined]
        self.status = f"{response.status_code} {response.reason_phrase}"
        code = response.status_code
        self.omits_body = self.method == "HEAD" or code in (204, 304)
        self.headers = _fields_of(response)
        for cookie in response.cookies.values():
            self.headers.append(("Set-Cookie", cookie.output(header="").strip()))
        return response

    def fields(self) -> list[tuple[str, str]]:
        """The header fields, for a server that sends what it is given.

        Without a length where there is no body (RFC 9110, 8.6): with 304 it may stand for
        that of another answer, which servers take for this one's.
        """
        code = self.status[:3]
        if code not in ("204", "304"):
            return self.headers
        return [
            (name, value)
            for name, value in self.headers
            if name.lower() != "content-length" or (code == "304" and value == "0")
        ]

    def file_of(self, response: HttpResponseBase) -> Any:
        """The open file that the server is to send itself, if it can."""
        file = getattr(response, "file_to_stream", None)
        return file if file is not None and self.file_wrapper is not None else None

    # The end: exactly once.

    def claim(self) -> Callable[[], None]:
        """What ends the request. It is the caller's to see that it is called."""
        self._claimed = True
        return self._end

    def close(self) -> None:
        """End the request, unless it was never begun or that is somebody else's."""
        if self._begun and not self._claimed:
            self.claim()()

    def _throw_away(self) -> None:
        """As `close`, where nothing can wait."""
        self.leave()
        self.close()

    def leave(self) -> None:
        """Nothing more is done for this request with its database wrappers."""
        if self.scope is not None:
            borrow.leave(self.scope)

    async def aclose(self) -> None:
        """As `close`, on the loop; on a thread if it runs code of the project's.

        There it waits for the call that a cancelled view had sent to a thread, where it
        goes on and may read the body: Django does too, which sends `request_finished` there.
        """
        if not self._begun or self._claimed:
            return
        end = self.claim()
        given_up = self.response is None and self._lane is not None and self._lane.given_up
        if self.on_loop and not given_up and handler.closes_at_once(self.request, self.response):
            judge = self.application.handler.judge
            if judge.ends_quietly() and borrow.is_unused(self.scope):
                # Nothing of it can wait: a bridge would be for nothing.
                end()
            else:
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
            try:
                self._end()
            finally:
                scope = self.scope
                # Most have used no database: then there is nothing to look for.
                if scope is None or not scope.own or scope.wrappers:
                    tidy_connections()
        finally:
            ended = self._thread_ended
            if ended is not None:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    ended.get_loop().call_soon_threadsafe(_resolve, ended)

    # Placement loop.

    def _body_on_loop(self, threads: Threads, response: Any) -> Any:
        if not response.streaming:
            parts = Parts(response)
            parts.aclose = self.aclose
            return parts
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

        async def push(offer: Offer) -> bool:
            nonlocal held
            if held is None:
                held = await threads.run(self._hold)
            return await held.call(push_of, held.value, offer)

        async def close() -> None:
            await (self.aclose() if held is None else held.release())

        return Stream(parts(), None, close, push)

    def _hold(self) -> Hold:
        response: Any = self.response
        iterator = iter(response)
        self.claim()
        assert self.scope is not None
        return Hold(iterator if self.scope.own else _giving_back(iterator), self._end_on_thread)

    # Placement thread.

    def _on_thread(self) -> Any:
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
                tidy_connections()
            raise

    def _body_from_thread(self, made: Any) -> Any:
        if isinstance(made, Parts):
            if self._thread_ended is not None:
                made.aclose = self._wait_for_thread
            return made
        if isinstance(made, Held):
            push = partial(made.call, push_of, made.value)
            return Stream(parts_of(made), None, made.release, push)
        file = self.file_of(made)
        if file is not None:
            return self._wrapped(made, file)
        return stream(made, self.source, self.aclose)

    async def _wait_for_thread(self) -> None:
        assert self._thread_ended is not None
        await self._thread_ended

    def _wrapped(self, response: Any, file: Any) -> Any:
        assert self.file_wrapper is not None
        wrapper = self.file_wrapper(file, response.block_size)
        wrapper.aclose = self.aclose
        return wrapper


def _fields_of(response: HttpResponseBase) -> list[tuple[str, str]]:
    """What `items()` gives, which makes three calls for each field."""
    headers = response.headers
    if type(headers) is ResponseHeaders and type(response).items is HttpResponseBase.items:
        return list(headers._store.values())
    return list(response.items())


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _giving_back(iterator: Iterator[bytes]) -> Iterator[bytes]:
    """The items of a stream of the loop, with no connection held between them."""
    for item in iterator:
        scope = borrow.current()
        if scope is not None:
            scope.suspend()
        yield item


def _give_back_connections() -> None:
    """Before a stream: its view's connections, as at the end of a request."""
    close_old_connections()
    tidy_connections()


def tidy_connections() -> None:
    """After work on a thread of the worker, whose next user is another request."""
    for connection in connections.all(initialized_only=True):
        if connection.connection is None or connection.alias in borrow.lent:
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
