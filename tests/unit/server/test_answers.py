"""Framing, what an application may return, what it must not, and closing exactly once."""

from __future__ import annotations

import asyncio
import gzip
import io
import random
import tempfile
import types
from typing import Any

import pytest
from asgiref.sync import markcoroutinefunction

from greenroom import bridge
from greenroom.errors import Overloaded
from greenroom.server.app import runs_on_loop
from greenroom.server.protocol import Connection
from greenroom.server.response import FileWrapper

LAST = b"GET /%b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
GET = LAST % b""


class Body:
    """An iterable without a length, that counts how often it is closed."""

    def __init__(self, *items: bytes, error: BaseException | None = None) -> None:
        self.items = iter(items)
        self.error = error
        self.closed = 0

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> bytes:
        for item in self.items:
            return item
        if self.error is not None:
            raise self.error
        raise StopIteration

    def close(self) -> None:
        self.closed += 1


class AsyncBody(Body):
    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> bytes:
        await asyncio.sleep(0)
        try:
            return Body.__next__(self)
        except StopIteration:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        await asyncio.sleep(0)
        self.closed += 1

    __iter__ = None  # type: ignore[assignment]
    __next__ = None  # type: ignore[assignment]


class Pushed(AsyncBody):
    """Pushes its items in a bridge of the request's task."""

    async def coroutine_wsgi_push(self, offer: Any) -> bool:
        return await bridge.run(self.push, offer)

    def push(self, offer: Any) -> bool:
        while True:
            try:
                item = Body.__next__(self)
            except StopIteration:
                return False
            if not offer(item):
                return True


class PushedByThread(Pushed):
    async def coroutine_wsgi_push(self, offer: Any) -> bool:
        return await asyncio.to_thread(self.push, offer)


ONE_BY_ONE = [Body, AsyncBody, Pushed, PushedByThread]


def make(result: Any, headers: Any = (), status: str = "200 OK", kind: str = "async") -> Any:
    """An application of either kind that returns `result`."""

    def app(environ: Any, start_response: Any) -> Any:
        start_response(status, list(headers))
        if isinstance(result, BaseException):
            raise result
        return result

    async def async_app(environ: Any, start_response: Any) -> Any:
        return app(environ, start_response)

    async def later() -> Any:
        return result

    def awaitable_app(environ: Any, start_response: Any) -> Any:
        app(environ, start_response)
        return later()

    return {"sync": app, "async": async_app, "awaitable": awaitable_app}[kind]


@pytest.fixture(params=["sync", "async", "awaitable"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_list(drive: Any, kind: str) -> None:
    driven = drive(make([b"a", b"b"], kind=kind), GET)
    assert driven.answers[0].body == b"ab"
    assert driven.answers[0].headers["content-length"] == "2"
    assert driven.transport.writes == 1


@pytest.mark.parametrize("make_body", ONE_BY_ONE)
def test_items_become_chunks(drive: Any, kind: str, make_body: Any) -> None:
    body = make_body(b"a", b"", b"bc")
    driven = drive(make(body, kind=kind), GET)
    assert driven.raw.endswith(b"\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n")
    assert driven.answers[0].body == b"abc"
    assert body.closed == 1


@pytest.mark.parametrize("make_body", ONE_BY_ONE)
@pytest.mark.parametrize("declared", [True, False])
def test_items_of_any_size_keep_their_order(
    drive: Any, kind: str, make_body: Any, declared: bool
) -> None:
    rand = random.Random(7)
    sizes = [20_000, 3, 100_000, 0, *[65_536] * 30, 1, 16_384, 400_000, 16_383, 70_000]
    items = [rand.randbytes(size) for size in sizes]
    whole = b"".join(items)
    body = make_body(*items)
    headers = [("Content-Length", str(len(whole)))] if declared else []
    driven = drive(make(body, headers, kind=kind), GET)
    assert driven.answers[0].body == whole
    assert body.closed == 1


def test_what_is_offered_goes_out_several_at_a_time(
    drive: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real = Connection.writelines

    def writelines(connection: Connection, data: list[bytes]) -> None:
        calls.append(sum(map(len, data)))
        real(connection, data)

    monkeypatch.setattr(Connection, "writelines", writelines)
    drive(make(Pushed(*[b"x" * 65_536] * 40)), GET)
    assert len(calls) <= 20
    assert max(calls) < 400_000


@pytest.mark.parametrize("size", [10, 20_000, 65_536])
@pytest.mark.parametrize("make_body", [Pushed, PushedByThread])
def test_what_is_offered_is_sent_before_the_next_wait(
    harness: Any, make_body: Any, size: int
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        goes_on = asyncio.Event()

        class Waits(make_body):  # type: ignore[misc]
            def push(self, offer: Any) -> bool:
                offer(b"x" * size)
                offer(b"y")
                if make_body is Pushed:
                    bridge.await_(goes_on.wait())
                else:
                    asyncio.run_coroutine_threadsafe(goes_on.wait(), loop).result()
                offer(b"z")
                return False

        at = harness(make(Waits()))
        connection, transport = at.connect()
        connection.data_received(GET)
        async with asyncio.timeout(10):
            while not transport.written.endswith(b"x\r\n1\r\ny\r\n"):
                await asyncio.sleep(0.001)
            goes_on.set()
            while not transport.written.endswith(b"\r\n1\r\nz\r\n0\r\n\r\n"):
                await asyncio.sleep(0.001)
        transport.abort()
        await at.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("make_body", [Pushed, PushedByThread])
def test_a_push_waits_for_a_slow_client(harness: Any, make_body: Any, gone: bool) -> None:
    block = b"x" * 65_536

    async def main() -> None:
        body = make_body(*[block] * 100)
        at = harness(make(body))
        connection, transport = at.connect()
        connection.data_received(GET)
        connection.pause_writing()
        for _ in range(50):
            await asyncio.sleep(0.001)
        # What was under way, and no more.
        held = len(transport.written)
        assert held < 8 * len(block)
        assert body.closed == 0
        if gone:
            transport.abort()
        else:
            connection.resume_writing()
        async with asyncio.timeout(10):
            while not body.closed or at.server.exchanges:
                await asyncio.sleep(0.001)
        if gone:
            assert len(transport.written) == held
        else:
            assert transport.written.count(b"x") == 100 * len(block)
            assert transport.written.endswith(b"0\r\n\r\n")
            transport.abort()
        await at.aclose()
        assert body.closed == 1

    asyncio.run(main())


@pytest.mark.parametrize("make_body", ONE_BY_ONE)
def test_items_for_http_1_0_end_with_the_connection(drive: Any, kind: str, make_body: Any) -> None:
    driven = drive(
        make(make_body(b"a", b"b"), kind=kind), b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    )
    assert driven.answers[0].body == b"ab"
    assert driven.answers[0].headers["connection"] == "close"
    assert "transfer-encoding" not in driven.answers[0].headers


@pytest.mark.parametrize("make_body", [list, *ONE_BY_ONE])
@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", "200 OK"), ("GET", "204 No Content"), ("GET", "304 x")]
)
def test_no_body(drive: Any, kind: str, make_body: Any, method: str, status: str) -> None:
    body = [b"x"] if make_body is list else make_body(b"x", b"y")
    app = make(body, status=status, kind=kind)
    first = f"{method} / HTTP/1.1\r\nHost: h\r\n\r\n".encode()
    last = LAST % b"" if method == "GET" else (LAST % b"").replace(b"GET", b"HEAD")
    driven = drive(app, first + last, methods=[method, method])
    assert driven.raw.count(b"\r\n\r\n") == 2
    assert driven.raw.endswith(b"\r\n\r\n")
    if method == "GET":
        assert "content-length" not in driven.answers[0].headers
        assert "transfer-encoding" not in driven.answers[0].headers


def test_head_keeps_the_length_that_get_would_have(drive: Any, kind: str) -> None:
    app = make([], [("Content-Length", "42")], kind=kind)
    driven = drive(app, GET.replace(b"GET", b"HEAD"), methods=["HEAD"])
    assert driven.answers[0].headers["content-length"] == "42"
    driven = drive(make([], kind=kind), GET.replace(b"GET", b"HEAD"), methods=["HEAD"])
    assert "content-length" not in driven.answers[0].headers


@pytest.mark.parametrize("make_body", [lambda *items: list(items), *ONE_BY_ONE])
def test_long_body_is_cut(drive: Any, kind: str, make_body: Any) -> None:
    app = make(make_body(b"abc", b"def"), [("Content-Length", "4")], kind=kind)
    driven = drive(app, GET)
    assert driven.answers[0].body == b"abcd"
    assert driven.raw.endswith(b"abcd")


@pytest.mark.parametrize("make_body", [lambda *items: list(items), *ONE_BY_ONE])
def test_short_body_ends_the_connection(drive: Any, kind: str, make_body: Any) -> None:
    app = make(make_body(b"abc"), [("Content-Length", "4")], kind=kind)
    with pytest.raises(AssertionError, match="a short body"):
        drive(app, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")


@pytest.mark.parametrize("make_body", ONE_BY_ONE)
def test_error_after_the_head_has_no_well_formed_end(
    drive: Any, kind: str, make_body: Any, caplog: pytest.LogCaptureFixture
) -> None:
    body = make_body(b"abc", error=RuntimeError("Boom"))
    with pytest.raises(ValueError, match="invalid literal"):
        drive(make(body, kind=kind), b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert body.closed == 1
    assert "Boom" in caplog.text


def test_error_after_the_head_of_1_0_resets(drive: Any, kind: str) -> None:
    driven = drive(make(Body(b"abc", error=RuntimeError()), kind=kind), b"GET / HTTP/1.0\r\n\r\n")
    assert driven.aborted


@pytest.mark.parametrize(
    "result",
    [RuntimeError("Boom"), Body(error=RuntimeError("Boom")), AsyncBody(error=KeyError("Boom"))],
    ids=["call", "iteration", "async iteration"],
)
def test_error_before_the_head(
    drive: Any, kind: str, result: Any, caplog: pytest.LogCaptureFixture
) -> None:
    driven = drive(make(result, [("X-Secret", "s")], kind=kind), GET)
    assert driven.statuses == [500]
    assert "x-secret" not in driven.answers[0].headers
    assert "Boom" in caplog.text
    assert "Traceback" in caplog.text


def test_overloaded(drive: Any, kind: str) -> None:
    driven = drive(make(Overloaded("full", retry_after=7), kind=kind), GET)
    assert driven.statuses == [503]
    assert driven.answers[0].headers["retry-after"] == "7"


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        ("200 OK\r\nX: y", [], "Invalid status"),
        ("2000 OK", [], "Invalid status"),
        ("101 Switching", [], "Invalid status"),
        (200, [], "must be a str"),
        ("200 OK", [("X\r\nY", "z")], "Invalid name"),
        ("200 OK", [("X", "y\r\nZ: 1")], "Invalid characters in the value of X"),
        ("200 OK", [("X", "y\n")], "Invalid characters"),
        ("200 OK", [("X", "\u20ac")], "Invalid characters"),
        ("200 OK", [("X", b"y")], "must be a str"),
        ("200 OK", [(b"X", "y")], "must be a str"),
        ("200 OK", [("Content-Length", "-1")], "Invalid Content-Length"),
        ("200 OK", [("Content-Length", "1"), ("content-length", "2")], "Invalid Content-Length"),
    ],
)
def test_bad_head(
    drive: Any,
    kind: str,
    status: Any,
    headers: Any,
    message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    driven = drive(make([b""], headers, status, kind=kind), GET)
    assert driven.statuses == [500]
    assert message in caplog.text


@pytest.mark.parametrize("result", [None, 7, b"bytes", "text", ["text"], iter])
def test_bad_body(drive: Any, kind: str, result: Any, caplog: pytest.LogCaptureFixture) -> None:
    driven = drive(make(iter(["text"]) if result is iter else result, kind=kind), GET)
    assert driven.statuses == [500]
    assert "ApplicationError" in caplog.text


def test_start_response_not_called(drive: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def app(environ: Any, start_response: Any) -> Any:
        return [b"x"]

    assert drive(app, GET).statuses == [500]
    assert "before start_response() was called" in caplog.text


def test_start_response_twice_needs_exc_info(drive: Any, kind: str) -> None:
    def replace(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("X-A", "1")])
        try:
            raise RuntimeError
        except RuntimeError as exc:
            start_response("500 Oh", [("X-B", "2")], (type(exc), exc, exc.__traceback__))
        return [b"x"]

    driven = drive(replace, GET)
    assert driven.statuses == [500]
    assert "x-b" in driven.answers[0].headers
    assert "x-a" not in driven.answers[0].headers

    def twice(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        start_response("201 OK", [])
        return [b"x"]

    assert drive(twice, GET).statuses == [500]


def test_hop_by_hop_fields_are_dropped(drive: Any, kind: str) -> None:
    fields = [
        ("Transfer-Encoding", "chunked"),
        ("Keep-Alive", "9"),
        ("Upgrade", "x"),
        ("Connection", "Close"),
        ("Server", "mine"),
    ]
    driven = drive(make([b"x"], fields, kind=kind), b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" * 2)
    assert driven.statuses == [200]
    headers = driven.answers[0].headers
    assert headers.keys() == {"content-length", "connection", "server", "date"}
    assert headers["connection"] == "close"
    assert headers["server"] == "mine"


def test_write_callable(drive: Any) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        write = start_response("200 OK", [])
        write(b"a")
        write(b"b")
        return [b"c"]

    assert drive(app, GET).answers[0].body == b"abc"


def test_generator_based_coroutine_is_awaited(drive: Any) -> None:
    @types.coroutine
    def result() -> Any:
        yield
        return [b"done"]

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return result()

    assert drive(app, GET).answers[0].body == b"done"
    assert drive(markcoroutinefunction(app), GET).answers[0].body == b"done"


def test_what_runs_on_the_loop() -> None:
    class Async:
        async def __call__(self, environ: Any, start_response: Any) -> Any: ...

    class Sync:
        def __call__(self, environ: Any, start_response: Any) -> Any: ...

    class Marked:
        def __init__(self) -> None:
            markcoroutinefunction(self)

        def __call__(self, environ: Any, start_response: Any) -> Any: ...

    assert runs_on_loop(make([], kind="async"))
    assert runs_on_loop(Async())
    assert runs_on_loop(Marked())
    assert not runs_on_loop(Sync())
    assert not runs_on_loop(make([], kind="sync"))


@pytest.mark.parametrize("opened", ["plain", "unbuffered", "wrapped", "memory", "gzip"])
@pytest.mark.parametrize("declared", [None, 5, 20])
def test_file_wrapper(drive: Any, tmp_path: Any, kind: str, opened: str, declared: Any) -> None:
    path = tmp_path / "file"
    data = b"0123456789"
    path.write_bytes(gzip.compress(data) if opened == "gzip" else data)
    if opened == "wrapped":
        file: Any = tempfile.NamedTemporaryFile(dir=tmp_path)  # noqa: SIM115
        file.write(data)
        file.flush()
    elif opened == "memory":
        file = io.BytesIO(data)
    elif opened == "gzip":
        file = gzip.open(path)  # noqa: SIM115
    else:
        file = path.open("rb", buffering=0 if opened == "unbuffered" else -1)
    file.seek(2)
    headers = [] if declared is None else [("Content-Length", str(declared))]
    app = make(FileWrapper(file), headers, kind=kind)
    if declared == 20:
        with pytest.raises(AssertionError, match="a short body"):
            drive(app, GET, sendfile=False)
    else:
        driven = drive(app, GET, sendfile=False)
        assert driven.answers[0].body == data[2:][:declared]
    assert file.closed


def test_hooks_and_access_log_on_every_way_out(drive: Any, kind: str) -> None:
    driven = drive(make([b"abc"], [("X-A", "b")], kind=kind), GET)
    ((response, request, environ, elapsed),) = driven.log.accesses
    assert response.status == "200 OK"
    assert response.sent == 3
    assert ("X-A", "b") in response.headers
    assert ("HOST", "h") in request.headers
    assert environ["RAW_URI"] == "/"
    assert elapsed.total_seconds() >= 0
    driven = drive(make(RuntimeError(), kind=kind), GET)
    assert driven.log.accesses[0][0].status.startswith("500 ")
