"""The ASGI face: a request, its body, its end; the lifespan; loops that are the server's."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import httpx
import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import RequestDataTooBig
from django.core.handlers.asgi import ASGIHandler, ASGIRequest
from django.core.signals import request_finished, request_started
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import path, reverse
from django.utils import translation
from django.views.decorators.csrf import csrf_exempt

import driver
from driver import Site
from greenroom import loop_safe, loops
from greenroom.asgi import AsyncDjangoASGIApplication
from greenroom.errors import ApplicationError
from greenroom.server.body import Spool
from over_asgi import Exchange, Lifespan, ask
from project import lifespans, urls, views

MIB = 1 << 20
reached: list[str] = []


async def stream(request: Any) -> StreamingHttpResponse:
    async def parts() -> Any:
        try:
            for index in range(10_000):
                reached.append(str(index))
                yield f"{index},"
        finally:
            reached.append("closed")

    return StreamingHttpResponse(parts())


async def where(request: Any) -> HttpResponse:
    return HttpResponse(f"{request.path} {request.path_info} {reverse('where')}")


@csrf_exempt
async def length(request: Any) -> HttpResponse:
    kind = type(request._stream).__name__
    return HttpResponse(f"{len(request.body)} {kind}")


async def bare(request: Any, code: int) -> HttpResponse:
    return HttpResponse(b"a body", status=code, headers={"Content-Length": "6"})


async def cancels(request: Any) -> HttpResponse:
    asked = asyncio.get_running_loop().create_future()
    asked.cancel()
    await asked
    return HttpResponse()


async def sets(request: Any) -> HttpResponse:
    translation.activate("de")
    variable.set("of a request")
    return HttpResponse()


class File(io.BytesIO):
    threads: set[int]

    def read(self, size: int | None = -1) -> bytes:
        self.threads.add(threading.get_ident())
        return super().read(size)


files: list[File] = []


async def file(request: Any) -> FileResponse:
    opened = File(bytes(range(256)) * 1024)
    opened.threads = set()
    files.append(opened)
    return FileResponse(opened)


variable: ContextVar[str] = ContextVar("variable", default="unset")

urlpatterns = [
    *urls.urlpatterns,
    path("long-stream/", stream),
    path("where-am-i/", where, name="where"),
    path("length/", length),
    path("bare/<int:code>/", bare),
    path("cancels/", cancels),
    path("sets/", sets),
    path("big-file/", file),
]


class ASGISite(Site):
    """The project over ASGI, under a loop of somebody else's, which no test prepares."""

    def __init__(self, placement: str, **settings: Any) -> None:
        settings = {
            "ROOT_URLCONF": __name__,
            "DATA_UPLOAD_MAX_MEMORY_SIZE": None,
            **settings,
        }
        super().__init__(placement, **settings)

    @property
    def asgi(self) -> AsyncDjangoASGIApplication:
        if self._app is None:
            self._app = AsyncDjangoASGIApplication()  # type: ignore[assignment]
        return self._app  # type: ignore[return-value]

    def serve(self, main: Any) -> Any:
        async def whole() -> Any:
            try:
                return await main(self)
            finally:
                self.home = loops.current()  # type: ignore[assignment]
                if self.home is not None:
                    await self.idle()

        with asyncio.Runner(loop_factory=self._loop_factory) as runner:
            return runner.run(whole())

    def over_asgi(self, path: str, method: str = "GET", **more: Any) -> driver.Answer:
        async def main(site: Any) -> driver.Answer:
            return await ask(site.asgi, path, method, **more)

        answer: driver.Answer = self.serve(main)
        return answer


@pytest.fixture
def asgi(placement: str) -> Iterator[ASGISite]:
    with ASGISite(placement) as site:
        yield site


class Ends:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        # Kept, so that no id is used twice.
        self.closed: list[Any] = []

    def check(self, count: int | None = None) -> None:
        assert self.counts["started"] == self.counts["finished"]
        assert count is None or self.counts["started"] == count
        assert len(self.closed) == len({id(each) for each in self.closed})
        self.counts.clear()
        self.closed.clear()


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    ends = Ends()

    @loop_safe
    def started(sender: Any, scope: Any, **kwargs: Any) -> None:
        assert sender is AsyncDjangoASGIApplication
        assert scope["type"] == "http"
        ends.counts["started"] += 1

    @loop_safe
    def finished(sender: Any, **kwargs: Any) -> None:
        assert sender is AsyncDjangoASGIApplication
        ends.counts["finished"] += 1

    close = HttpResponseBase.close

    def counted(self: Any) -> None:
        ends.closed.append(self)
        close(self)

    monkeypatch.setattr(HttpResponseBase, "close", counted)
    request_started.connect(started)
    request_finished.connect(finished)
    yield ends
    request_started.disconnect(started)
    request_finished.disconnect(finished)


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


# Requests.

SAME = [
    "/hello/",
    "/plain/",
    "/generator/",
    "/future/",
    "/class/",
    "/callable/",
    "/template/",
    "/stream/",
    "/sync-stream/",
    "/file/",
    "/async-to-sync/",
    "/plain-async-to-sync/",
    "/raise/404/",
    "/raise/403/",
    "/raise/400/",
    "/raise/error/",
    "/nowhere/",
    "/keep/",
    "/on-thread/",
    "/where/?a=%C3%A9",
    "/status/204/",
    "/bare/304/",
]


@pytest.mark.parametrize("path", SAME)
def test_the_same_answers_as_over_wsgi(asgi: ASGISite, path: str, ends: Ends) -> None:
    over_asgi = asgi.over_asgi(path)
    ends.check(1)
    with Site(asgi.placement, ROOT_URLCONF=__name__) as site:
        request_started.receivers, kept = [], request_started.receivers
        request_finished.receivers, also_kept = [], request_finished.receivers
        request_started.sender_receivers_cache.clear()
        try:
            over_wsgi = site.get(path)
        finally:
            request_started.receivers, request_finished.receivers = kept, also_kept
            request_started.sender_receivers_cache.clear()
    assert over_asgi.code == over_wsgi.code
    bare = over_asgi.code in (204, 304)
    assert over_asgi.body == (b"" if bare else over_wsgi.body)
    left_out = {"Content-Length"} if bare else set()
    assert [each for each in over_wsgi.headers if each[0] not in left_out] == over_asgi.headers


def test_every_header_as_django_s_own_handler_sends_it() -> None:
    with ASGISite("loop", middleware=("django.middleware.common.CommonMiddleware",)) as site:
        ours = site.over_asgi("/hello/")
        theirs = asyncio.run(ask(ASGIHandler(), "/hello/"))
    assert (ours.status, ours.headers, ours.body) == (theirs.status, theirs.headers, theirs.body)


@pytest.mark.parametrize("stated", [True, False])
def test_uploads(asgi: ASGISite, stated: bool) -> None:
    """A body in chunks has no length, without which Django takes it for empty."""
    body = (
        b'--x\r\nContent-Disposition: form-data; name="a"; filename="a.txt"\r\n'
        b"Content-Type: text/plain\r\n\r\nletter\r\n--x--\r\n"
    )
    headers = [
        (b"host", b"testserver"),
        (b"content-type", b"multipart/form-data; boundary=x"),
    ]
    if stated:
        headers.append((b"content-length", str(len(body)).encode()))
    items = [body[:50], b"", body[50:]]
    answer = asgi.over_asgi("/upload/", "POST", body=items, headers=headers)
    assert json.loads(answer.text) == {"a": "letter"}


def test_the_root_path(asgi: ASGISite) -> None:
    answer = asgi.over_asgi("/below/where-am-i/", root_path="/below")
    assert answer.text == "/below/where-am-i/ /where-am-i/ /below/where-am-i/"
    assert asgi.over_asgi("/belowwhere-am-i/", root_path="/below").code == 404


def test_a_query_that_is_no_utf_8(asgi: ASGISite, ends: Ends) -> None:
    assert asgi.over_asgi("/hello/", query_string=b"\xff").code == 400
    ends.check(1)


def test_a_request_class_that_refuses_the_body(asgi: ASGISite, ends: Ends) -> None:
    class Refusing(ASGIRequest):
        def __init__(self, *args: Any) -> None:
            raise RequestDataTooBig

    asgi.asgi.request_class = Refusing
    answer = asgi.over_asgi("/hello/")
    assert answer.code == 413
    ends.check(1)


def test_other_scopes_are_refused(asgi: ASGISite) -> None:
    with pytest.raises(ValueError, match="not websocket"):
        asyncio.run(asgi.asgi({"type": "websocket"}, None, None))  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["/hello/", "/long-stream/", "/file/", "/plain/"])
def test_head_sends_no_body(asgi: ASGISite, path: str, ends: Ends) -> None:
    reached.clear()
    answer = asgi.over_asgi(path, "HEAD")
    assert (answer.code, answer.body) == (200, b"")
    assert "0" not in reached
    ends.check(1)


@pytest.mark.parametrize("code", [204, 304])
def test_no_body_where_none_may_be(asgi: ASGISite, code: int) -> None:
    answer = asgi.over_asgi(f"/bare/{code}/")
    assert (answer.code, answer.body, answer.header("Content-Length")) == (code, b"", None)


def test_a_file_is_read_off_the_loop_in_blocks(asgi: ASGISite) -> None:
    answer = asgi.over_asgi("/big-file/")
    assert [len(part) for part in answer.parts] == [1 << 16] * 4
    (opened,) = files
    files.clear()
    assert answer.body == bytes(range(256)) * 1024
    assert threading.get_ident() not in opened.threads
    assert opened.closed


def test_what_a_request_sets_is_not_its_caller_s(asgi: ASGISite) -> None:
    """As in tests, which await the application in their own task."""

    async def main(site: ASGISite) -> tuple[Any, ...]:
        transport = httpx.ASGITransport(site.asgi)
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as client:
            answer = await client.get("/sets/")
        return answer.status_code, translation.get_language(), variable.get()

    assert asgi.serve(main) == (200, "en", "unset")


def test_many_wait_and_no_thread_more() -> None:
    async def main(site: ASGISite) -> list[int]:
        gate = views.gates["many"] = asyncio.Event()
        views.gate_waiters = 0
        exchanges = [Exchange(site.asgi, "/gate/many/") for _ in range(200)]
        await until(lambda: views.gate_waiters == 200)
        home = loops.current()
        assert home is not None
        made = home.threads.made
        gate.set()
        answers = [await exchange.answer() for exchange in exchanges]
        assert made <= 1
        return [answer.code for answer in answers]

    with ASGISite("loop") as site:
        assert site.serve(main) == [200] * 200


# Streams.


def test_a_stream_waits_for_a_slow_client(asgi: ASGISite, ends: Ends) -> None:
    async def main(site: ASGISite) -> None:
        reached.clear()
        gate = asyncio.Semaphore(3)

        async def on_send(message: Any) -> None:
            await gate.acquire()

        exchange = Exchange(site.asgi, "/long-stream/", on_send=on_send)
        await until(lambda: len(exchange.sent) == 3)
        await asyncio.sleep(0.01)
        # The head and two items were taken; the third waits.
        assert reached == ["0", "1", "2"]
        gate.release()
        await until(lambda: exchange.parts == [b"0,", b"1,", b"2,"])
        exchange.leave()
        await exchange.task
        assert reached == ["0", "1", "2", "3", "closed"]

    asgi.serve(main)
    ends.check(1)


def test_a_stream_leaves_others_their_turn(asgi: ASGISite) -> None:
    async def main(site: ASGISite) -> None:
        exchange = Exchange(site.asgi, "/long-stream/")
        turns = 0
        while not exchange.task.done():
            turns += 1
            await asyncio.sleep(0)
        # 10,000 items count as 40 MiB.
        assert turns > 30

    asgi.serve(main)


@pytest.mark.parametrize("path", ["/stream/", "/sync-stream/", "/file/", "/hello/"])
@pytest.mark.parametrize("after", [0, 1])
def test_a_server_that_raises_when_the_client_has_left(
    asgi: ASGISite, ends: Ends, path: str, after: int
) -> None:
    async def main(site: ASGISite) -> None:
        async def on_send(message: Any) -> None:
            if len(exchange.sent) == after:
                raise OSError("gone")

        exchange = Exchange(site.asgi, path, on_send=on_send)
        await exchange.task
        assert len(exchange.sent) == after

    asgi.serve(main)
    ends.check(1)


def test_an_error_in_a_stream_is_the_server_s_to_show(asgi: ASGISite, ends: Ends) -> None:
    async def main(site: ASGISite) -> None:
        exchange = Exchange(site.asgi, "/stream-error/")
        with pytest.raises(ValueError, match="in the stream"):
            await exchange.task
        assert exchange.parts == [b"first"]
        assert exchange.sent[-1]["more_body"]

    asgi.serve(main)
    ends.check(1)


# The client leaves.


def test_the_view_is_cancelled(asgi: ASGISite, ends: Ends) -> None:
    async def main(site: ASGISite) -> None:
        views.waiting.clear()
        views.events.clear()
        exchange = Exchange(site.asgi, "/wait/")
        await until(lambda: views.waiting)
        exchange.leave()
        await exchange.task
        assert exchange.sent == []

    asgi.serve(main)
    assert views.events == ["cancelled", "finally"]
    ends.check(1)


def test_synchronous_code_that_the_view_waited_for_has_its_request_to_the_end(
    placement: str, ends: Ends
) -> None:
    """It can't be interrupted, and its view is cancelled: the body is there as before."""
    begun, read = threading.Event(), []

    def reads(request: Any) -> HttpResponse:
        begun.set()
        time.sleep(0.1)
        try:
            read.append(request.body)
        except ValueError as exc:
            read.append(exc)
        return HttpResponse()

    @csrf_exempt
    async def view(request: Any) -> HttpResponse:
        return await sync_to_async(reads)(request)

    async def main(site: ASGISite) -> None:
        exchange = Exchange(site.asgi, "/reads/", "POST", b"a body")
        await until(begun.is_set)
        exchange.leave()
        await exchange.task
        assert exchange.sent == []
        ends.check(1)
        assert read == [b"a body"]

    urlpatterns.append(path("reads/", view))
    try:
        with ASGISite(placement) as site:
            site.serve(main)
    finally:
        urlpatterns.pop()


@pytest.mark.parametrize("settings", [{}, {"CANCEL_ON_DISCONNECT": False}])
def test_a_view_that_is_to_finish(placement: str, ends: Ends, settings: Any) -> None:
    done: list[str] = []

    async def pay(request: Any) -> HttpResponse:
        await asyncio.sleep(0)
        done.append("begun")
        await asyncio.sleep(0.05)
        done.append("done")
        return HttpResponse("paid")

    if not settings:
        pay._greenroom_keep = True  # type: ignore[attr-defined]
    urlpatterns.append(path("pay/", pay))

    async def main(site: ASGISite) -> None:
        exchange = Exchange(site.asgi, "/pay/")
        await until(lambda: done)
        exchange.leave()
        await exchange.task
        # There is nobody to send it to.
        assert exchange.sent == []

    try:
        with ASGISite(placement, GREENROOM=settings) as site:
            site.serve(main)
    finally:
        urlpatterns.pop()
    assert done == ["begun", "done"]
    ends.check(1)


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
    "/wait/",
    "/sync-to-async/",
    "/nowhere/",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("who", ["client", "server"])
def test_left_or_cancelled_at_any_turn_of_the_loop(
    placement: str, ends: Ends, path: str, who: str
) -> None:
    """The server's task ends as the server wants it to, and each request ends once."""

    async def main(site: ASGISite) -> None:
        # Makes the loop a home.
        await ask(site.asgi, "/hello/")
        site.home = loops.current()  # type: ignore[assignment]
        for turns in range(14):
            exchange = Exchange(site.asgi, path)
            for _ in range(turns):
                await asyncio.sleep(0.0001 if turns % 3 == 2 else 0)
            done = exchange.task.done()
            if who == "client":
                exchange.leave()
                with contextlib.suppress(ValueError):
                    await exchange.task
            else:
                exchange.task.cancel()
                with contextlib.suppress(asyncio.CancelledError, ValueError):
                    await exchange.task
                assert done or exchange.task.cancelled()
            await site.idle()
            ends.check()

    middleware = ("project.middleware.Mixin", "project.middleware.Coroutine")
    with ASGISite(placement, middleware=middleware) as site:
        site.serve(main)


def test_the_server_cancels(asgi: ASGISite, ends: Ends) -> None:
    async def main(site: ASGISite) -> None:
        views.waiting.clear()
        exchange = Exchange(site.asgi, "/wait/")
        await until(lambda: views.waiting)
        exchange.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await exchange.task

    asgi.serve(main)
    ends.check(1)


# Errors.


def test_a_view_that_awaits_what_was_cancelled(asgi: ASGISite, ends: Ends) -> None:
    """To a server it is an error as any other, not a request that was cancelled."""

    async def main(site: ASGISite) -> None:
        exchange = Exchange(site.asgi, "/cancels/")
        with pytest.raises(ApplicationError, match="awaited something that was cancelled"):
            await exchange.task

    asgi.serve(main)
    ends.check(1)


def test_system_exit_ends_no_loop(asgi: ASGISite, ends: Ends) -> None:
    async def main(site: ASGISite) -> None:
        exchange = Exchange(site.asgi, "/raise/exit/")
        with pytest.raises(ApplicationError, match=r"SystemExit\(3\).*send it SIGTERM"):
            await exchange.task
        assert (await ask(site.asgi, "/hello/")).code == 200

    asgi.serve(main)
    ends.check(2)


def test_no_place_is_answered_503() -> None:
    async def main(site: ASGISite) -> None:
        gate = views.gates["hold"] = asyncio.Event()
        views.gate_waiters = 0
        held = Exchange(site.asgi, "/gate/hold/")
        await until(lambda: views.gate_waiters == 1)
        answer = await ask(site.asgi, "/hello/")
        assert (answer.code, answer.header("Retry-After")) == (503, "1")
        gate.set()
        assert (await held.answer()).code == 200

    with ASGISite("thread", GREENROOM={"MAX_PARKED": 1, "QUEUE_TIMEOUT": 0.1}) as site:
        site.serve(main)


# The body of a request.


@pytest.mark.parametrize("items", [[b"x" * 3 * MIB], [b"x" * 1000] * 3200, [b"", b"abc", b""]])
def test_bodies(asgi: ASGISite, items: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[int] = set()
    flush = Spool.flush

    def noted(self: Spool) -> None:
        threads.add(threading.get_ident())
        flush(self)

    monkeypatch.setattr(Spool, "flush", noted)
    answer = asgi.over_asgi("/length/", "POST", body=items)
    on_disk = sum(map(len, items)) > 2.5 * MIB and len(items) > 1
    size, kind = answer.text.split()
    assert int(size) == sum(map(len, items))
    assert kind == ("BufferedReader" if on_disk else "BytesIO")
    assert bool(threads) is on_disk
    assert threading.get_ident() not in threads
    assert asgi.asgi.quota.used == 0


def test_a_client_that_leaves_while_it_sends(asgi: ASGISite, ends: Ends) -> None:
    async def main(site: ASGISite) -> None:
        exchange = Exchange(site.asgi, "/length/", "POST", body=None)
        for _ in range(4):
            exchange.give({"type": "http.request", "body": b"x" * MIB, "more_body": True})
        exchange.leave()
        await exchange.task
        assert exchange.sent == []

    asgi.serve(main)
    assert asgi.asgi.quota.used == 0
    ends.check(0)


def test_the_quota_of_bodies() -> None:
    async def main(site: ASGISite) -> None:
        announced = [(b"host", b"testserver"), (b"content-length", b"%d" % (5 * MIB))]
        exchange = Exchange(site.asgi, "/length/", "POST", body=None, headers=announced)
        exchange.give({"type": "http.request", "body": b"x", "more_body": True})
        refused = await exchange.answer()
        late = await ask(site.asgi, "/length/", "POST", body=[b"x" * MIB] * 5)
        assert (refused.code, late.code) == (503, 503)
        assert (await ask(site.asgi, "/length/", "POST", body=[b"x" * MIB] * 2)).code == 200
        assert site.asgi.quota.used == 0

    with ASGISite("loop", GREENROOM={"SPOOL_QUOTA": 4 * MIB}) as site:
        site.serve(main)


def test_the_largest_body() -> None:
    async def main(site: ASGISite) -> None:
        for items in ([b"x" * 1001], [b"x" * 1000, b"x"]):
            assert (await ask(site.asgi, "/length/", "POST", body=items)).code == 413
        announced = [(b"host", b"testserver"), (b"content-length", b"1001")]
        exchange = Exchange(site.asgi, "/length/", "POST", body=None, headers=announced)
        # Refused before it is sent.
        exchange.give({"type": "http.request", "body": b"x", "more_body": True})
        assert (await exchange.answer()).code == 413
        assert (await ask(site.asgi, "/length/", "POST", body=[b"x" * 999, b"x"])).code == 200

    with ASGISite("loop", GREENROOM={"MAX_BODY": 1000}) as site:
        site.serve(main)


# The lifespan, and loops.


def test_the_lifespan(placement: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main(site: ASGISite) -> None:
        async with Lifespan(site.asgi):
            assert lifespans.log == ["entered"]
            answers = [await ask(site.asgi, "/lifespan/") for _ in range(3)]
            assert [answer.text for answer in answers] == ["a client"] * 3
        assert lifespans.log == ["entered", "left"]
        assert loops.current() is None

    lifespans.log.clear()
    with (
        caplog.at_level(logging.INFO, "greenroom"),
        ASGISite(placement, GREENROOM={"LIFESPAN": "project.lifespans.lifespan"}) as site,
    ):
        site.serve(main)
    assert [r.getMessage().split(":")[0] for r in caplog.records] == ["coroutine views"]
    assert lifespans.log == ["entered", "left"]


def test_a_lifespan_that_fails_stops_the_start(caplog: pytest.LogCaptureFixture) -> None:
    async def main(site: ASGISite) -> None:
        lifespan = Lifespan(site.asgi)
        answer = await lifespan.tell("startup")
        assert answer["type"] == "lifespan.startup.failed"
        assert "no upstream" in answer["message"]
        await lifespan.task

    with ASGISite("loop", GREENROOM={"LIFESPAN": "project.lifespans.fails"}) as site:
        site.serve(main)
    assert "can't start" in caplog.text


def test_an_end_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    async def main(site: ASGISite) -> None:
        lifespan = Lifespan(site.asgi)
        await lifespan.tell("startup")
        home = loops.current()
        assert home is not None

        async def fails() -> None:
            raise LookupError("at the end")

        home.stack.push_async_callback(fails)
        answer = await lifespan.tell("shutdown")
        assert (answer["type"], answer["message"]) == (
            "lifespan.shutdown.failed",
            "LookupError('at the end')",
        )
        await lifespan.task

    with ASGISite("loop") as site:
        site.serve(main)
    assert "when the application ended" in caplog.text


def test_each_loop_has_its_own(placement: str, loop_factory: Any) -> None:
    """A server with no lifespan scope, or tests: each loop is prepared by its first request."""
    lifespans.log.clear()
    settings = {"LIFESPAN": "project.lifespans.lifespan"}
    with ASGISite(placement, GREENROOM=settings, loop_factory=loop_factory) as site:
        before = len(loops._homes)
        for turn in (1, 2, 3):
            assert site.over_asgi("/lifespan/").text == "a client"
            assert lifespans.log == ["entered", "left"] * turn
            assert len(loops._homes) == before


def test_two_loops_at_a_time(placement: str) -> None:
    """Each in a thread of its own, with requests that wait for each other."""
    barrier = threading.Barrier(2)
    answers: list[str] = []

    async def main(site: ASGISite) -> None:
        await ask(site.asgi, "/hello/")
        await asyncio.to_thread(barrier.wait, 10)
        paths = ("/async-to-sync/", "/plain/", "/stream/") * 5
        answers.extend([(await ask(site.asgi, each)).text for each in paths])

    with ASGISite(placement) as site:
        _ = site.asgi
        threads = [threading.Thread(target=lambda: asyncio.run(main(site))) for _ in range(2)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(30)
    assert len(answers) == 30
    assert len(set(answers)) == 3


def python(script: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": ":".join(sys.path), "DJANGO_SETTINGS_MODULE": "project.settings", **env},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_loop_that_is_only_stopped() -> None:
    """As Twisted's is: what lasts is left at exit."""
    out = python("""
import asyncio, atexit
loop = asyncio.new_event_loop()
# Called after what is registered later.
atexit.register(lambda: (print(lifespans.log), loop.close()))
from django.conf import settings
settings.GREENROOM = {"LIFESPAN": "project.lifespans.lifespan"}
from greenroom import get_asgi_application
from over_asgi import ask
from project import lifespans
app = get_asgi_application()
print(loop.run_until_complete(ask(app, "/lifespan/")).text)
""")
    assert out.splitlines() == ["a client", "['entered', 'left']"]


def test_a_server_that_loads_the_application_on_its_loop(tmp_path: Any) -> None:
    """As uvicorn does; a URLconf may query all the same."""
    (tmp_path / "slow_urls.py").write_text(
        "from django.db import connection\n"
        "with connection.cursor() as cursor:\n"
        "    cursor.execute('SELECT 1')\n"
        "from project.urls import urlpatterns\n"
    )
    out = python(
        f"""
import asyncio, sys
sys.path.insert(0, {str(tmp_path)!r})
from django.conf import settings
settings.ROOT_URLCONF = "slow_urls"
from greenroom import get_asgi_application
from over_asgi import ask

async def main():
    app = get_asgi_application()
    print((await ask(app, "/hello/")).text)

asyncio.run(main())
""",
        GREENROOM_TEST_DATABASE=":memory:",
    )
    assert out.split() == ["Hello", "world!"]


def test_loops_that_were_closed_without_a_word() -> None:
    async def make() -> Any:
        return await loops.here(limit=1)

    loop = asyncio.new_event_loop()
    home = loop.run_until_complete(make())
    loop.close()
    assert home in loops._homes.values()

    async def main() -> None:
        assert await make() is loops.current()

    asyncio.run(main())
    assert home not in loops._homes.values()


def test_settings_of_its_threads() -> None:
    async def main(site: ASGISite) -> tuple[int, int, float]:
        await ask(site.asgi, "/hello/")
        home = loops.current()
        assert home is not None
        return home.threads.limit, home.threads.max_parked, home.threads.queue_timeout

    given = {"THREADS": 3, "MAX_PARKED": 5, "QUEUE_TIMEOUT": 7}
    with ASGISite("loop", GREENROOM=given) as site:
        assert site.serve(main) == (3, 5, 7)


def test_a_request_is_finished_when_the_application_returns(asgi: ASGISite) -> None:
    """Also what a thread does after the answer, which tests look at."""
    sent: list[str] = []

    def slow(**kwargs: Any) -> None:
        time.sleep(0.05)
        sent.append(views.place_now())

    async def main(site: ASGISite) -> None:
        for each in ("/hello/", "/plain/", "/sync-stream/", "/stream/", "/file/"):
            sent.clear()
            await ask(site.asgi, each)
            assert sent == ["thread"], each

    # No code that is known: it is run on a thread.
    request_finished.connect(slow)
    try:
        asgi.serve(main)
    finally:
        request_finished.disconnect(slow)


def test_no_context_per_request_of_asgiref_s(asgi: ASGISite, monkeypatch: Any) -> None:
    from asgiref.sync import ThreadSensitiveContext

    async def refuse(self: Any) -> None:
        raise AssertionError("a ThreadSensitiveContext was entered")

    monkeypatch.setattr(ThreadSensitiveContext, "__aenter__", refuse)
    assert asgi.over_asgi("/sync-to-async/").code == 200
