"""Every way out of a request: `request_finished` and `response.close()` exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
import time
import types
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.signals import request_finished, request_started
from django.db import connection
from django.http import HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.test import override_settings
from django.urls import path

import driver
from driver import Cancellable, Site
from greenroom import await_, bridge, loop_safe
from greenroom import placement as judgement
from project import middleware, urls, views

PATHS = [
    "/hello/",
    "/plain/",
    "/template/",
    "/template-error/",
    "/stream/",
    "/sync-stream/",
    "/stream-error/",
    "/file/",
    "/raise/error/",
    "/raise/404/",
    "/wait/",
    "/async-to-sync/",
    "/sync-to-async/",
    "/nowhere/",
]


class Ends:
    def __init__(self) -> None:
        self.started = 0
        self.finished = 0
        self.closed: Counter[int] = Counter()
        # Kept, so that no id is used twice.
        self.responses: list[Any] = []
        # Of `request_finished`, and whether each was sent in a bridge.
        self.receiver: Any = None
        self.bridged: list[bool] = []

    def check(self, count: int | None = None) -> None:
        assert self.started == self.finished
        if count is not None:
            assert self.started == count
        assert set(self.closed.values()) <= {1}
        self.started = self.finished = 0
        self.closed.clear()
        self.responses.clear()


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    ends = Ends()

    @loop_safe
    def started(**kwargs: Any) -> None:
        ends.started += 1

    @loop_safe
    def finished(**kwargs: Any) -> None:
        ends.finished += 1
        ends.bridged.append(bridge.in_bridge())

    ends.receiver = finished
    close = HttpResponseBase.close

    def counted(self: Any) -> None:
        ends.responses.append(self)
        ends.closed[id(self)] += 1
        close(self)

    monkeypatch.setattr(HttpResponseBase, "close", counted)
    request_started.connect(started)
    request_finished.connect(finished)
    yield ends
    request_started.disconnect(started)
    request_finished.disconnect(finished)


SETS = [
    (),
    ("project.middleware.Mixin", "project.middleware.Coroutine"),
    ("project.middleware.Coroutine", "project.middleware.function"),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("names", "urlconf"),
    [
        ((), "project.urls_errors"),
        (SETS[1], "project.urls"),
        (SETS[2], "project.urls_errors"),
    ],
    ids=["bare", "coroutine inside", "coroutine outside"],
)
def test_cancelled_at_any_turn_of_the_loop(
    placement: str, ends: Ends, path: str, names: tuple[str, ...], urlconf: str
) -> None:
    async def main(site: Site) -> None:
        for turns in range(16):
            exchange = Cancellable(site.app, path)
            for _ in range(turns):
                if turns % 2 and exchange.task.done():
                    break
                await asyncio.sleep(0.0001 if turns % 3 == 2 else 0)
            exchange.cancel()
            with contextlib.suppress(asyncio.CancelledError, ValueError):
                await exchange.task
            await site.idle()
            ends.check()

    began = time.monotonic()
    with Site(placement, middleware=names, ROOT_URLCONF=urlconf) as site:
        site.run(main)
    # The view waits for 30 s: a cancellation that gets lost lets it.
    assert time.monotonic() - began < 25


@pytest.fixture
def quiet_ends(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> Ends:
    """Where `request_finished` has no receivers but those that wait for nothing."""
    monkeypatch.setattr(judgement, "_QUIET", (*judgement._QUIET, ends.receiver))
    return ends


@pytest.mark.parametrize("path", PATHS)
def test_cancelled_where_the_end_takes_no_bridge(quiet_ends: Ends, path: str) -> None:
    test_cancelled_at_any_turn_of_the_loop("auto", quiet_ends, path, (), "project.urls_errors")


def test_the_end_takes_a_bridge_where_it_may_wait(quiet_ends: Ends) -> None:
    waited = []

    @loop_safe
    def waits(**kwargs: Any) -> None:
        await_(asyncio.sleep(0))
        waited.append(True)

    async def hello(request: Any) -> HttpResponse:
        if request.GET:
            request_finished.connect(waits)
        return HttpResponse("Hello")

    async def query(request: Any) -> HttpResponse:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        return HttpResponse("Hello")

    async def main(site: Site) -> None:
        urls = types.ModuleType("urls")
        urls.urlpatterns = [path("hello/", hello), path("query/", query)]  # type: ignore[attr-defined]
        with override_settings(ROOT_URLCONF=urls):
            for target in ("/hello/", "/query/", "/hello/?late", "/hello/"):
                assert (await site.ask(target)).status.startswith("200")

    try:
        with Site("auto") as site:
            site.run(main)
    finally:
        request_finished.disconnect(waits)
    assert quiet_ends.bridged == [False, True, True, True]
    assert waited == [True, True]
    quiet_ends.check(4)


@pytest.mark.parametrize("path", [p for p in PATHS if p != "/wait/"])
def test_a_start_response_that_fails(placement: str, ends: Ends, path: str) -> None:
    async def main(site: Site) -> None:
        def fails(*args: Any) -> None:
            raise OSError("gone")

        with pytest.raises(OSError, match="gone"):
            await site.app(driver.environ_of(path), fails)

    with Site(placement) as site:
        site.run(main)
    ends.check(1)


@pytest.mark.parametrize("path", [p for p in PATHS if p not in ("/wait/", "/stream-error/")])
def test_never_iterated(placement: str, ends: Ends, path: str) -> None:
    async def main(site: Site) -> None:
        result = await site.app(driver.environ_of(path), lambda *args: None)
        if hasattr(result, "aclose"):
            await result.aclose()

    with Site(placement) as site:
        site.run(main)
    ends.check(1)


def test_start_response_fails_on_another_server_s_thread(ends: Ends) -> None:
    def fails(*args: Any) -> None:
        raise OSError("gone")

    with Site("auto") as site:
        for path in ("/hello/", "/stream/", "/plain/"):
            environ = driver.environ_of(path)
            del environ["wsgi.async"]
            with pytest.raises(OSError, match="gone"):
                site.app(environ, fails)
            ends.check(1)


@pytest.mark.parametrize("path", ["/stream/", "/file/", "/sync-stream/", "/hello/"])
def test_cancelled_while_a_thread_finishes(ends: Ends, path: str) -> None:
    """The answer is made by a thread for a task that was cancelled meanwhile."""
    reached, go = threading.Event(), threading.Event()

    def slow(get_response: Any) -> Any:
        def inner(request: Any) -> Any:
            response = get_response(request)
            reached.set()
            assert go.wait(5)
            return response

        return inner

    middleware.slow = slow

    async def main(site: Site) -> None:
        exchange = Cancellable(site.app, path, **{"wsgi.file_wrapper": lambda file, size: file})
        await asyncio.to_thread(reached.wait)
        exchange.cancel()
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await exchange.task

    with Site("thread", middleware=("project.middleware.slow",)) as site:
        site.run(main)
    ends.check(1)


def test_refused_before_it_began(ends: Ends) -> None:
    async def main(site: Site) -> None:
        views.gates["held"] = gate = asyncio.Event()
        views.gate_waiters = 0
        held = asyncio.create_task(site.ask("/gate/held/"))
        while not views.gate_waiters:
            await asyncio.sleep(0.001)
        with pytest.raises(Exception, match="No place came free"):
            await site.ask("/hello/")
        gate.set()
        await held

    with Site("thread", max_parked=1, queue_timeout=0.1) as site:
        site.run(main)
    ends.check(1)


def test_thrown_away(ends: Ends) -> None:
    """The task is closed, not cancelled: with its loop. (A thread ends by itself.)"""

    async def main(site: Site) -> None:
        coroutine = site.app(driver.environ_of("/wait/"), lambda *args: None)

        @types.coroutine
        def drive() -> Any:
            yield from _first_step(coroutine)

        await asyncio.create_task(_as_task(drive()))
        coroutine.close()

    with Site("loop") as site:
        site.run(main)
    ends.check(1)


def _first_step(coroutine: Any) -> Any:
    coroutine.send(None)
    yield


async def _as_task(awaitable: Any) -> None:
    await awaitable


class _Broken(HttpResponse):
    def close(self) -> None:
        super().close()
        raise ValueError("in close")


async def broken_close(request: Any) -> HttpResponse:
    return _Broken("content")


async def text(request: Any) -> str:
    return "no response"


async def broken_finally(request: Any) -> StreamingHttpResponse:
    async def parts() -> Any:
        try:
            yield "a"
        finally:
            raise ValueError("in finally")

    return StreamingHttpResponse(parts())


async def broken_sync_finally(request: Any) -> StreamingHttpResponse:
    def parts() -> Any:
        try:
            yield "a"
        finally:
            raise ValueError("in finally")

    return StreamingHttpResponse(parts())


closers: list[str] = []


async def closes_on(request: Any) -> HttpResponse:
    response = HttpResponse("content")
    response._resource_closers.append(lambda: closers.append(views.place_now()))
    return response


async def stream_closes_on(request: Any) -> StreamingHttpResponse:
    def parts() -> Any:
        ids = set()
        try:
            for _ in range(5):
                ids.add(threading.get_ident())
                time.sleep(0.002)
                yield "x"
        finally:
            ids.add(threading.get_ident())
            closers.append(f"{views.place_now()} {len(ids)}")

    return StreamingHttpResponse(parts())


SHARED = HttpResponse("shared")


async def shared(request: Any) -> HttpResponse:
    await asyncio.sleep(0)
    return SHARED


urlpatterns = [
    *urls.urlpatterns,
    path("broken-close/", broken_close),
    path("text/", text),
    path("broken-finally/", broken_finally),
    path("broken-sync-finally/", broken_sync_finally),
    path("closes-on/", closes_on),
    path("stream-closes-on/", stream_closes_on),
    path("shared/", shared),
]


@pytest.fixture
def own_site(placement: str) -> Iterator[Site]:
    with Site(placement, ROOT_URLCONF=__name__) as site:
        yield site


def test_close_that_fails(own_site: Site, ends: Ends, caplog: pytest.LogCaptureFixture) -> None:
    if own_site.placement == "loop":
        with pytest.raises(ValueError, match="in close"):
            own_site.get("/broken-close/")
    else:
        assert own_site.get("/broken-close/").text == "content"
        assert "An error after the answer" in caplog.text
    ends.check(1)


@pytest.mark.parametrize("path", ["/broken-finally/", "/broken-sync-finally/"])
def test_finally_that_fails(own_site: Site, ends: Ends, path: str) -> None:
    with pytest.raises(ValueError, match="in finally"):
        own_site.get(path)
    ends.check(1)


def test_a_view_that_returns_text(own_site: Site, ends: Ends) -> None:
    """As with Django the server gets the error; and the request is ended."""
    with pytest.raises(AttributeError):
        own_site.get("/text/")
    ends.check(1)


def test_closers_of_the_project_run_on_a_thread(own_site: Site, ends: Ends) -> None:
    closers.clear()
    own_site.get("/closes-on/")
    ends.check(1)
    # All items and the close of a synchronous stream are on one thread.
    own_site.get("/stream-closes-on/")
    ends.check(1)
    assert closers == ["thread", "thread 1"]


def test_a_stream_keeps_its_thread_among_others(own_site: Site) -> None:
    closers.clear()

    async def main(site: Site) -> None:
        await asyncio.gather(*(site.ask("/stream-closes-on/") for _ in range(6)))

    own_site.run(main)
    assert closers == ["thread 1"] * 6


def test_a_response_that_requests_share(own_site: Site) -> None:
    async def main(site: Site) -> list[str]:
        return [a.text for a in await asyncio.gather(*(site.ask("/shared/") for _ in range(8)))]

    assert own_site.run(main) == ["shared"] * 8
    assert SHARED._resource_closers == []


@pytest.mark.parametrize("path", [p for p in PATHS if p not in ("/wait/", "/stream-error/")])
@pytest.mark.parametrize("names", [(), ("project.middleware.Mixin",), SETS[1], "replaces"])
def test_nothing_keeps_a_request(placement: str, path: str, names: Any) -> None:
    """After the answer, with no collection of cycles. (Django's own error pages make some.)"""
    references: list[weakref.ref[Any]] = []

    def noted(get_response: Any) -> Any:
        def inner(request: Any) -> Any:
            references.append(weakref.ref(request))
            response = get_response(request)
            return HttpResponse("other") if names == "replaces" else response

        return inner

    middleware.noted = noted

    async def main(site: Site) -> list[bool]:
        gc.disable()
        try:
            for _ in range(3):
                await site.ask(path)
            await site.idle()
            await asyncio.sleep(0.01)
            return [reference() is None for reference in references]
        finally:
            gc.enable()

    used = names if isinstance(names, tuple) else ()
    logging.disable(logging.CRITICAL)
    try:
        with Site(
            placement,
            middleware=("project.middleware.noted", *used),
            ROOT_URLCONF="project.urls_errors",
        ) as site:
            _ = site.app
            gone = site.run(main)
    finally:
        logging.disable(logging.NOTSET)
    assert gone == [True] * 3


def test_system_exit_while_a_request_is_closed(
    own_site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Raised by a receiver, in the wake of another error: it must not end the loop."""

    @loop_safe
    def leaves(**kwargs: Any) -> None:
        raise SystemExit(1)

    async def main(site: Site) -> str:
        _ = site.app
        request_finished.connect(leaves)
        try:
            with pytest.raises(AttributeError):
                await driver.ask(site.app, "/text/")
        except SystemExit:
            assert site.placement == "thread"
        finally:
            request_finished.disconnect(leaves)
        return (await site.ask("/hello/")).text

    assert own_site.run(main) == "Hello world!"
