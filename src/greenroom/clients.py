"""Django's test tools, so that a test's requests are answered as those of production are.

Each function of `HOOKS` is called when its module of `django.test` is imported: a process
that tests nothing is not touched.

`Client` (and what extends it, as DRF's `APIClient` does): the request cycle is ours, on the
test's thread, which is parked while a coroutine view runs on the background loop. So
the view has the test's connection and its transaction.

Async tests of `SimpleTestCase` and its subclasses are coroutines on a loop of their own, in a
bridge, while the test's thread is parked: as a coroutine view is. They may use the ORM as
such a view may, and so may a view that they call themselves. `AsyncClient` serves on that
loop; what is placed on threads runs on the test's. On a loop of somebody else's
(pytest-asyncio) its requests run on the thread of `sync_to_async`, and their coroutines on
the background loop.

DRF's `RequestsClient` calls our application. `LiveServerTestCase` is served by the project's
own server: see `greenroom.test`.

What is replaced is named in `greenroom.patches`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.db import DEFAULT_DB_ALIAS, connections

from . import bridge, conf, handler, loops
from .application import AsyncDjangoApplication, get_wsgi_application
from .bodies import _KNOWN_STREAMS, Pulled, nothing, stream
from .db import borrow
from .decorators import MARKS
from .loops import Home
from .patches import can_await
from .threads import Threads

P = ParamSpec("P")
T = TypeVar("T")

# Seconds that the tasks which an async test left behind have to end when they are cancelled.
CLEAN_UP = 5.0


def in_tests() -> bool:
    """Whether `setup_test_environment` was called in this process."""
    state = getattr(sys.modules.get("django.test.utils"), "_TestState", None)
    return hasattr(state, "saved_data")


def run_async(fn: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Make a plain function of an async test: a decorator.

    It runs as async tests of Django's test cases do: on a loop of its own, which ends with
    it, with the database connections of the thread that calls it.
    """

    @wraps(fn)
    def plain(*args: P.args, **kwargs: P.kwargs) -> T:
        if can_await():
            # The tests themselves run beneath a coroutine.
            return bridge.await_(fn(*args, **kwargs))
        with _own_scope("an async test"), _loop() as home:
            result: T = home.threads.adopt(bridge.await_, fn(*args, **kwargs))
            return result

    for mark in MARKS:
        plain.__dict__.pop(mark, None)
    return plain


# The database: that of the thread.


@contextlib.contextmanager
def _own_scope(name: str) -> Iterator[None]:
    """The wrappers of this thread, unless the code here has some already."""
    if (outer := borrow.current()) is not None:
        borrow.again(outer)
        yield
        return
    scope = borrow.begin(name, own=True)
    try:
        yield
    finally:
        borrow.leave(scope)
        borrow.forget()


def _wait(awaitable: Awaitable[T]) -> T:
    """What `await_` does on a thread that serves nobody: a test's has its transaction."""
    if not in_tests():
        return borrow.wait(awaitable)
    with _own_scope("await_() in a test"):
        return loops.wait(awaitable)


def _utils(module: Any) -> None:
    borrow.in_tests = in_tests
    bridge.set_fallback(_wait)
    teardown = module.teardown_databases

    @wraps(teardown)
    def teardown_databases(*args: Any, **kwargs: Any) -> Any:
        # What a task left there: the server drops no database that somebody is connected to.
        borrow.drain()
        return teardown(*args, **kwargs)

    module.teardown_databases = teardown_databases


# The loop of an async test.


@contextlib.contextmanager
def _loop() -> Iterator[Home]:
    loop = asyncio.new_event_loop()
    threads = Threads(loop, limit=loops.BACKGROUND_THREADS)
    threads.at_end = connections.close_all
    home = Home(loop, threads)
    home.register()
    thread = threading.Thread(target=loops._serve, args=(loop,), name="greenroom-test", daemon=True)
    thread.start()
    try:
        yield home
    finally:
        try:
            asyncio.run_coroutine_threadsafe(_end(home), loop).result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


async def _end(home: Home) -> None:
    """As `asyncio.run` ends: cancel what the test left."""
    tasks = asyncio.all_tasks() - home.lasting - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=CLEAN_UP)
    await home.aclose()
    await home.loop.shutdown_asyncgens()


# The clients.


def _clients(module: Any) -> None:
    if module.ClientHandler.__module__ != module.__name__:
        # Somebody has replaced them before Django was set up.
        return
    call = module.ClientHandler.__call__

    @wraps(call)
    def answer(self: Any, environ: dict[str, Any]) -> Any:
        if asyncio._get_running_loop() is not None:
            return call(self, environ)
        if bridge.thread_wait() is not None:
            return _in_scope(call, self, environ)
        return loops.background().threads.adopt(_in_scope, call, self, environ)

    module.ClientHandler.__call__ = answer
    module.ClientHandler.get_response = _get_response
    module.AsyncClientHandler.get_response_async = _get_response_async
    for kind in (module.ClientHandler, module.AsyncClientHandler):
        kind.load_middleware = _load_middleware


def _load_middleware(self: Any, is_async: bool = False) -> None:
    """The chain of a client's handler is that of ours."""
    self._greenroom = made = handler.Handler(type(self))
    made.load_middleware()
    self._middleware_chain = made._middleware_chain


def _in_scope(call: Callable[..., Any], client_handler: Any, environ: dict[str, Any]) -> Any:
    if (outer := borrow.current()) is not None:
        # Of a request that makes one, or of one whose stream nobody closed.
        borrow.again(outer)
        return call(client_handler, environ)
    scope = borrow.begin("a request of a test", own=True)

    def leave() -> None:
        _wait_for_blocks(scope)
        borrow.leave(scope)
        borrow.forget()

    try:
        response = call(client_handler, environ)
    except BaseException:
        leave()
        raise
    if response.streaming and not response.closed:
        # The test reads it, and then closes it.
        response._resource_closers.append(leave)
    else:
        leave()
    return response


def _wait_for_blocks(scope: borrow.Scope) -> None:
    """Wait for the transactions that tasks of the request have open.

    The end of the request would end them, and the test's connection with them.
    """
    ends = time.monotonic() + conf.settings().db_timeout_of(DEFAULT_DB_ALIAS)
    while time.monotonic() < ends and any(
        len(wrapper.blocks) > scope.blocks.get(alias, 0)
        for alias, wrapper in scope.wrappers.items()
        if isinstance(wrapper, borrow.Wrapper) and wrapper.scope is scope
    ):
        time.sleep(0.002)


def _get_response(self: Any, request: Any) -> Any:
    home = loops.current() or loops.of_thread()
    request.lifespan = bridge.await_(_state(home)) if conf.settings().lifespan else None
    if bridge.in_bridge():
        setattr(request, handler.ON_LOOP, True)
    response: Any = self._greenroom.get_response(request)
    source = handler.forget(request)
    if _is_stream(response):
        # Read by a server of WSGI.
        response.streaming_content = Pulled(home, stream(response, source, nothing), _do_nothing)
    return response


async def _get_response_async(self: Any, request: Any) -> Any:
    home = loops.current()
    if home is None:
        return await _elsewhere(self._greenroom, request)
    return await asyncio.create_task(_on_loop(self._greenroom, request, home))


async def _on_loop(ours: handler.Handler, request: Any, home: Home) -> Any:
    """On the loop of an async test."""
    request.lifespan = await _state(home)
    if _fits_loop(ours, request):
        setattr(request, handler.ON_LOOP, True)
        response: Any = await bridge.run(ours.get_response, request)
    else:
        response = await sync_to_async(ours.get_response)(request)
    source = handler.forget(request)
    if _is_stream(response):
        parts = stream(response, source, nothing)
        response.streaming_content = _closing(parts)
    return response


def _fits_loop(ours: handler.Handler, request: Any) -> bool:
    if not ours.judge.may_resolve():
        return False
    try:
        match = handler.find(request.path_info)
    except Exception:
        # The request cycle will raise it again, and answer it.
        return False
    return ours.judge.place(match.func, request.method).on_loop


async def _elsewhere(ours: handler.Handler, request: Any) -> Any:
    """On a loop of somebody else's."""
    home = loops.background()

    def on_thread() -> Any:
        with _own_scope("a request of a test"):
            return home.threads.adopt(answer)

    def answer() -> Any:
        request.lifespan = bridge.await_(_state(home))
        response: Any = ours.get_response(request)
        source = handler.forget(request)
        if _is_stream(response):
            parts = Pulled(home, stream(response, source, nothing), _do_nothing)
            response.streaming_content = _pulled(parts)
        return response

    return await sync_to_async(on_thread)()


async def _state(home: Home) -> Any:
    """What the project's lifespan yields, entered on that loop."""
    name = conf.settings().lifespan
    return None if name is None else await _application(name).state_of(home)


@lru_cache(maxsize=8)
def _application(lifespan: str) -> AsyncDjangoApplication:
    return AsyncDjangoApplication()


# Streams.


def _is_stream(response: Any) -> bool:
    """Whether it is a coroutine's, of a kind whose iterator can be replaced."""
    return getattr(response, "is_async", False) and type(response) in _KNOWN_STREAMS


async def _closing(parts: Any) -> AsyncIterator[bytes]:
    async with contextlib.aclosing(parts):
        async for part in parts:
            yield part


async def _pulled(parts: Pulled) -> AsyncIterator[bytes]:
    read: Any = sync_to_async(next, thread_sensitive=False)
    try:
        while (part := await read(parts, None)) is not None:
            yield part
    finally:
        await sync_to_async(parts.close, thread_sensitive=False)()


def _do_nothing() -> None:
    """The test client closes the response."""


# The test cases.


def _testcases(module: Any) -> None:
    original = module.SimpleTestCase._setup_and_call

    @wraps(original)
    def setup_and_call(self: Any, result: Any, debug: bool = False) -> Any:
        method = getattr(self, self._testMethodName)
        if iscoroutinefunction(method):
            setattr(self, self._testMethodName, run_async(method))
        return original(self, result, debug)

    module.SimpleTestCase._setup_and_call = setup_and_call


def _of_rest_framework(module: Any) -> None:
    # What its RequestsClient calls, where `requests` is installed. It may have been replaced.
    handler = getattr(module, "WSGIHandler", None)
    if getattr(handler, "__module__", None) == "django.core.handlers.wsgi":
        module.WSGIHandler = _closing_application


def _closing_application() -> Callable[..., list[bytes]]:
    """Our application, for who closes no response."""
    application = get_wsgi_application()

    def answer(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        response = application(environ, start_response)
        try:
            return list(response)
        finally:
            response.close()

    return answer


HOOKS: dict[str, Callable[[Any], None]] = {
    "django.test.utils": _utils,
    "django.test.client": _clients,
    "django.test.testcases": _testcases,
    "rest_framework.test": _of_rest_framework,
}
