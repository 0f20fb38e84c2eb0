"""What hostile clients, and applications in error, must not achieve."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import itertools
import os
import re
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from greenroom.bridge import await_
from greenroom.errors import ApplicationError
from greenroom.loops import Home
from greenroom.server import Config, Server
from greenroom.server.response import Response
from greenroom.threads import Threads

PROFILE = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100
)
GET = b"GET / HTTP/1.1\r\nHost: h\r\n"
LAST = GET + b"Connection: close\r\n\r\n"


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def echo(environ: Any, start_response: Any) -> list[bytes]:
    """Says which request it answers."""
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("X-Path", environ["PATH_INFO"])])
    return [environ["REQUEST_METHOD"].encode() + b" " + body]


# The bytes of requests.


@pytest.mark.parametrize("zeros", [1, 20, 5000])
def test_zeros_before_a_length(drive: Any, zeros: int) -> None:
    data = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: " + b"0" * zeros + b"5\r\n\r\nhello"
    driven = drive(echo, data + LAST)
    assert [answer.body for answer in driven.answers] == [b"POST hello", b"GET "]


def test_a_length_past_all_sizes(drive: Any) -> None:
    data = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 18446744073709551615\r\n\r\nhello"
    assert drive(echo, data).statuses == [400]


@pytest.mark.parametrize("empty", [b"", b"\r\n"])
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_too_many_fields_are_refused_before_their_end(drive: Any, step: int, empty: bytes) -> None:
    few = empty + GET + b"X: y\r\n" * 9 + b"\r\n" + LAST
    pieces = [few[i : i + step] for i in range(0, len(few), step)]
    assert drive(echo, *pieces, limit_request_fields=10).statuses == [200, 200]
    many = empty + GET + b"X: y\r\n" * 10 + b"Y"
    pieces = [many[i : i + step] for i in range(0, len(many), step)]
    assert drive(echo, *pieces, limit_request_fields=10).statuses == [431]


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_large_field_is_refused_before_its_end(drive: Any, step: int) -> None:
    """Its line is what counts, as in gunicorn, with the spaces before its value."""
    long_target = b"GET /" + b"a" * 60 + b" HTTP/1.1\r\nHost: h\r\n"
    fits = long_target + b"X:" + b" " * 20 + b"y" * 16 + b"\r\nConnection: close\r\n\r\n"
    pieces = [fits[i : i + step] for i in range(0, len(fits), step)]
    assert drive(echo, *pieces, limit_request_field_size=40).statuses == [200]
    for end in (b"", b"\r\n\r\n"):
        large = long_target + b"X:" + b" " * 20 + b"y" * 17 + b"zz"[: 2 - len(end)] + end
        pieces = [large[i : i + step] for i in range(0, len(large), step)]
        assert drive(echo, *pieces, limit_request_field_size=40).statuses == [431]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (b"SCRIPT_NAME: /app\r\n", "/app"),
        (b"Script-Name: /app\r\n", ""),
        (b"Script-Name: /app/x\r\nSCRIPT_NAME: /app\r\n", "/app"),
    ],
)
def test_only_a_proxy_sets_script_name(drive: Any, fields: bytes, expected: str) -> None:
    seen = []

    async def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.append(environ["SCRIPT_NAME"])
        return await echo(environ, start_response)

    head = b"GET /app/x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
    assert drive(app, head + fields + b"\r\n").statuses == [200]
    assert seen == [expected]


def request_bytes(draw: Any) -> tuple[bytes, str, bytes]:
    method = draw(st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS"]))
    body = draw(st.binary(max_size=40) | st.just(b"0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n"))
    fields = draw(
        st.lists(
            st.sampled_from(
                [
                    b"X-Empty:\r\n",
                    b"X-Long: " + b"v" * 200 + b"\r\n",
                    b"Connection: keep-alive\r\n",
                    b"Connection: upgrade\r\nUpgrade: websocket\r\n",
                    b"Expect: 100-continue\r\n",
                    b"Cookie: a=b\r\nCookie: c=d\r\n",
                ]
            ),
            max_size=3,
            unique=True,
        )
    )
    head = b"".join(fields)
    if draw(st.booleans()):
        framed, rest = b"Transfer-Encoding: chunked\r\n", body
        sent = b""
        while rest:
            size = draw(st.integers(1, len(rest)))
            extension = draw(st.sampled_from([b"", b";a", b' ; a="b"']))
            sent += b"%x%b\r\n%b\r\n" % (size, extension, rest[:size])
            rest = rest[size:]
        sent += b"0\r\n" + draw(st.sampled_from([b"", b"X-Late: 1\r\n"])) + b"\r\n"
    elif body:
        framed, sent = b"Content-Length: %d\r\n" % len(body), body
    else:
        framed, sent = b"", b""
    number = draw(st.integers(0, 999))
    line = f"{method} /{number} HTTP/1.1\r\nHost: h\r\n".encode()
    empty = draw(st.sampled_from([b"", b"\r\n"]))
    return empty + line + head + framed + b"\r\n" + sent, f"{method} /{number}", body


@st.composite
def streams(draw: Any) -> tuple[list[bytes], list[tuple[str, bytes]]]:
    requests = [request_bytes(draw) for _ in range(draw(st.integers(1, 6)))]
    data = b"".join(each[0] for each in requests) + LAST
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return pieces, [(name, body) for _, name, body in requests]


@settings(PROFILE)
@given(streams())
def test_any_split_of_any_requests_gives_the_same_answers(drive: Any, stream: Any) -> None:
    pieces, expected = stream
    driven = drive(echo, *pieces)
    got = [
        (f"{method.decode()} {answer.headers['x-path']}", body)
        for answer in driven.answers
        for method, _, body in [answer.body.partition(b" ")]
    ]
    assert got == [*expected, ("GET /", b"")]


TOKENS = [
    *(GET, GET + b"\r\n", b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"),
    *(b"PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", GET + b"X: y\r\n"),
    *(b"GET ", b"POST ", b"/", b"http://h/", b"*", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"\r\n"),
    *(b"Host: h\r\n", b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"\n", b"\r", b"\0"),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n", b" ", b"\t"),
    *(b"Connection: upgrade\r\nUpgrade: h2c\r\n", b"Expect: 100-continue\r\n", b"\r\n\r\n"),
    *(b"0\r\n\r\n", b"3\r\nabc\r\n", b"3;x\r\n", b"-1\r\n", b"fffffffffffffffff\r\n", b"abc", b":"),
    *(b"CONNECT h:1", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"X: a\r\n b\r\n", b"Host : h\r\n"),
]


@settings(PROFILE, max_examples=300)
@given(st.lists(st.sampled_from(TOKENS) | st.binary(max_size=4), max_size=40), st.integers(1, 50))
def test_no_bytes_get_more_answers_than_requests(harness: Any, tokens: Any, step: int) -> None:
    """One answer per call of the application, in order, and at most one refusal, last."""
    calls: list[int] = []

    async def app(environ: Any, start_response: Any) -> list[bytes]:
        calls.append(len(calls))
        start_response("200 OK", [("X-Call", str(calls[-1]))])
        return [b"x"]

    async def main() -> bytes:
        errors: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, error: errors.append(error))
        at = harness(app)
        connection, transport = at.connect()
        data = b"".join(tokens)
        for i in range(0, len(data), step):
            if transport.closed.is_set() or transport.eof_written:
                break
            connection.data_received(data[i : i + step])
            await asyncio.sleep(0)
        if not transport.closed.is_set() and not connection.eof_received():
            transport.close()
        await until(lambda: not at.server.exchanges)
        await at.aclose()
        assert errors == []
        assert at.server.quota.used == 0
        return bytes(transport.written)

    raw = asyncio.run(main()).replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    statuses = re.findall(rb"HTTP/1\.1 (\d{3}) ", raw)
    served = statuses.count(b"200")
    assert re.findall(rb"X-Call: (\d+)", raw) == [b"%d" % n for n in range(served)]
    assert served == len(calls)
    assert statuses[:served] == [b"200"] * served
    assert len(statuses) <= served + 1


@settings(PROFILE, max_examples=200)
@given(
    st.lists(st.sampled_from(TOKENS) | st.binary(max_size=4), max_size=30),
    st.lists(st.integers(0, 400), max_size=10),
)
def test_any_split_of_any_bytes_gives_the_same_answers(
    harness: Any, tokens: Any, cuts: list[int]
) -> None:
    """What is served is, and whether the rest is refused; for several faults, any status."""

    async def answers(pieces: list[bytes]) -> tuple[list[bytes], bool, bool]:
        at = harness(echo)
        connection, transport = at.connect()
        for piece in pieces:
            while not transport.reading:
                await asyncio.sleep(0)
            if transport.closed.is_set() or transport.eof_written:
                break
            if piece:
                connection.data_received(piece)
            await until(lambda: not at.server.exchanges)
        if not transport.closed.is_set() and not connection.eof_received():
            transport.close()
        await until(lambda: not at.server.exchanges)
        await at.aclose()
        raw = re.sub(rb"HTTP/1\.1 100 Continue\r\n\r\n|Date: .*\r\n", b"", bytes(transport.written))
        first, *others = raw.split(b"HTTP/1.1 ")
        assert first == b""
        refused = bool(others) and not others[-1].startswith(b"200 ")
        return others[: len(others) - refused], refused, transport.eof_written

    data = b"".join(tokens)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
    assert asyncio.run(answers([data])) == asyncio.run(answers(pieces))


# Disconnects and cancellations.


class Body:
    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.closed = 0
        self.number = 0

    def _next(self, end: type[Exception]) -> bytes:
        self.number += 1
        if self.number > 4:
            raise end
        return b"item"

    def close(self) -> None:
        self.closed += 1


class SyncBody(Body):
    def close(self) -> None:
        if self.kind == "def":
            await_(asyncio.sleep(0))
            await_(asyncio.sleep(0))
        super().close()

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> bytes:
        return self._next(StopIteration)


class AsyncBody(Body):
    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> bytes:
        await asyncio.sleep(0)
        return self._next(StopAsyncIteration)

    async def aclose(self) -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.closed += 1


@pytest.mark.parametrize("how", ["lost", "cancelled"])
@pytest.mark.parametrize("kind", ["def", "def async", "async", "async sync"])
def test_closed_once_wherever_it_is_cancelled(harness: Any, kind: str, how: str) -> None:
    """At each turn of the loop in turn, in the first or in the second of two requests."""
    bodies: list[Body] = []

    def make() -> Body:
        body = AsyncBody(kind) if kind in ("def async", "async") else SyncBody(kind)
        bodies.append(body)
        return body

    def app(environ: Any, start_response: Any) -> Any:
        environ["wsgi.input"].read()
        start_response("200 OK", [])
        return make()

    async def async_app(environ: Any, start_response: Any) -> Any:
        await asyncio.sleep(0)
        return app(environ, start_response)

    post = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"

    async def main(turns: int) -> None:
        errors: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, error: errors.append(error))
        at = harness(async_app if kind.startswith("async") else app, max_body_in_memory=1)
        connection, transport = at.connect()
        connection.data_received(post * 2)
        for _ in range(turns):
            await asyncio.sleep(0)
        if how == "lost":
            transport.abort()
        else:
            connection.end()
        await until(lambda: not at.server.exchanges and not at.home.threads.busy)
        if not transport.closed.is_set():
            # The second request had not begun.
            transport.abort()
        await asyncio.sleep(0.002)
        await until(lambda: not at.server.exchanges and not at.home.threads.busy)
        # The body of the second may be given up a moment later.
        await until(lambda: at.server.quota.used == 0 and not at.server.connections)
        await at.aclose()
        assert errors == []

    for turns in range(40):
        bodies.clear()
        asyncio.run(main(turns))
        assert [body.closed for body in bodies] == [1] * len(bodies), turns


def test_cancelled_before_its_first_step(harness: Any) -> None:
    calls = []

    async def app(environ: Any, start_response: Any) -> list[bytes]:
        calls.append(environ)
        return await echo(environ, start_response)

    async def main() -> None:
        at = harness(app)
        connection, transport = at.connect()
        connection.data_received(GET + b"\r\n")
        connection.connection_lost(None)
        transport.closed.set()
        assert at.server.exchanges
        await until(lambda: not at.server.exchanges)
        assert connection.exchange is None
        await at.aclose()
        assert len(at.log.accesses) == 1

    asyncio.run(main())
    assert calls == []


def test_an_eager_task_factory_changes_nothing(harness: Any) -> None:
    if not hasattr(asyncio, "eager_task_factory"):
        pytest.skip("Python 3.12")

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        at = harness(echo)
        connection, transport = at.connect()
        connection.data_received((GET + b"\r\n") * 300 + LAST)
        await until(lambda: transport.closed.is_set() or transport.eof_written)
        assert transport.written.count(b"HTTP/1.1 200") == 301
        assert not at.server.exchanges
        await at.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("where", ["loop", "thread"])
def test_nothing_is_written_into_the_next_answer(harness: Any, where: str) -> None:
    """An application that keeps what is a finished request's."""
    kept: list[Any] = []
    errors: list[BaseException] = []

    def late() -> None:
        write, hints = kept[0]
        hints([("Link", "</late>")])
        try:
            write(b"injected")
        except ApplicationError as exc:
            errors.append(exc)

    def app(environ: Any, start_response: Any) -> list[bytes]:
        kept.append((start_response("200 OK", []), environ["wsgi.early_hints"]))
        if len(kept) == 2:
            late()
        return [b"x"]

    async def async_app(environ: Any, start_response: Any) -> list[bytes]:
        return app(environ, start_response)

    async def main() -> bytes:
        at = harness(app if where == "thread" else async_app)
        connection, transport = at.connect()
        connection.data_received(GET + b"\r\n" + LAST)
        await until(lambda: transport.closed.is_set())
        await at.aclose()
        return bytes(transport.written)

    raw = asyncio.run(main())
    assert b"injected" not in raw
    assert b"103" not in raw
    assert len(errors) == 1


def test_an_environ_that_is_kept_does_not_keep_the_answer(harness: Any) -> None:
    """Django's requests wait for the garbage collector, and have the environ."""
    kept: list[Any] = []

    async def app(environ: Any, start_response: Any) -> list[bytes]:
        kept.append(environ)
        start_response("200 OK", [])
        return [b"x"]

    async def main() -> None:
        at = harness(app)
        connection, transport = at.connect()
        connection.data_received(LAST)
        await until(lambda: transport.closed.is_set())
        await at.aclose()

    # Those of other tests may be there still.
    before = [each for each in gc.get_objects() if type(each) is Response]
    asyncio.run(main())
    gc.collect()
    assert kept
    after = [each for each in gc.get_objects() if type(each) is Response]
    assert not [each for each in after if each not in before]


def test_what_was_only_announced_takes_no_room(harness: Any, tmp_path: Any) -> None:
    head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"

    async def main() -> None:
        at = harness(echo, max_body_in_memory=100, spool_quota=5000, spool_dir=str(tmp_path))
        silent = [at.connect()[0] for _ in range(5)]
        for connection in silent:
            connection.data_received(head % 4000)
        connection, transport = at.connect()
        connection.data_received(head % 4000 + b"x" * 4000)
        await until(lambda: transport.written)
        assert transport.written.startswith(b"HTTP/1.1 200")
        # What has arrived is counted.
        silent[0].data_received(b"x" * 3000)
        silent[1].data_received(b"x" * 3000)
        await until(lambda: not silent[1]._busy)
        assert at.server.quota.used == 3000
        for each in silent:
            each._transport.abort()
        await until(lambda: not at.server.connections - {connection})
        await until(lambda: at.server.quota.used == 0)
        await at.aclose()

    asyncio.run(main())


def test_a_close_that_the_client_did_not_ask_for_reads_on(drive: Any) -> None:
    """Else the reset for a request that is on its way takes the answer from the client."""
    driven = drive(echo, GET + b"\r\n", keepalive=0)
    assert driven.transport.eof_written
    assert not driven.transport.is_closing() or driven.transport.aborted
    assert not drive(echo, LAST).transport.eof_written


# Early hints.


@pytest.mark.parametrize("kind", ["thread", "loop"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_early_hints(drive: Any, kind: str, version: str) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        hints = environ["wsgi.early_hints"]
        hints([("Link", "</a.css>; rel=preload"), (b"X-B", b"c"), ("Content-Length", "9")])
        hints([("Link", "</b.css>"), ("Transfer-Encoding", "chunked")])
        write = start_response("200 OK", [])
        if kind == "thread":
            write(b"x")
            hints([("Link", "</late>")])
            return [b"y"]
        return [b"xy"]

    async def async_app(environ: Any, start_response: Any) -> Any:
        return app(environ, start_response)

    head = f"GET / HTTP/{version}\r\nHost: h\r\nConnection: close\r\n\r\n".encode()
    raw = drive(app if kind == "thread" else async_app, head).raw if version == "1.0" else None
    if raw is not None:
        assert raw.startswith(b"HTTP/1.1 200")
        assert b"Early" not in raw
        return
    with contextlib.suppress(AssertionError):
        # The strict parser of answers takes a 103 for one without an end.
        drive(app if kind == "thread" else async_app, head)
    raw = asyncio.run(_raw(app if kind == "thread" else async_app, head))
    assert raw.startswith(
        b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nX-B: c\r\n\r\n"
        b"HTTP/1.1 103 Early Hints\r\nLink: </b.css>\r\n\r\nHTTP/1.1 200 OK\r\n"
    )
    assert b"</late>" not in raw


async def _raw(app: Any, data: bytes) -> bytes:
    from .conftest import Harness

    at = Harness(app)
    connection, transport = at.connect()
    connection.data_received(data)
    await until(transport.closed.is_set)
    await at.aclose()
    return bytes(transport.written)


@pytest.mark.parametrize(
    "field", [("X\r\nY", "z"), ("X", "y\r\nZ: 1"), ("X", "\u20ac"), ("X", 1), (b"X:", b"y")]
)
def test_early_hints_are_checked(drive: Any, field: Any) -> None:
    async def app(environ: Any, start_response: Any) -> Any:
        environ["wsgi.early_hints"]([field])
        return await echo(environ, start_response)

    assert drive(app, LAST).statuses == [500]


# The items of a `def` application.


def test_items_of_a_thread_keep_their_order(drive: Any) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return (b"%d\n" % number for number in range(20_000))

    body = drive(app, LAST).answers[0].body
    assert body == b"".join(b"%d\n" % number for number in range(20_000))


def test_a_thread_is_not_ahead_of_a_slow_client(harness: Any) -> None:
    made = 0

    def app(environ: Any, start_response: Any) -> Any:
        nonlocal made
        start_response("200 OK", [])
        for _ in range(1000):
            made += 1
            yield b"x" * 1000

    async def main() -> None:
        at = harness(app)
        connection, transport = at.connect()
        connection.pause_writing()
        connection.data_received(LAST)
        await until(lambda: made)
        await asyncio.sleep(0.05)
        assert made == 1
        connection.resume_writing()
        await until(lambda: made > 2)
        connection.pause_writing()
        await asyncio.sleep(0.05)
        before = made
        await asyncio.sleep(0.05)
        assert made == before
        connection.resume_writing()
        await until(transport.closed.is_set)
        assert made == 1000
        await at.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("how", ["lost", "cancelled"])
def test_a_thread_is_told_at_its_next_item(harness: Any, how: str) -> None:
    ended = threading.Event()
    goes_on = threading.Event()

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        try:
            for number in range(1000):
                if number == 5:
                    goes_on.wait(10)
                yield b"x"
            ended.wait(10)
        finally:
            ended.set()

    async def main() -> None:
        at = harness(app)
        connection, transport = at.connect()
        connection.data_received(LAST)
        await until(lambda: transport.written.count(b"1\r\nx\r\n") == 5)
        if how == "lost":
            transport.abort()
            await asyncio.sleep(0.01)
        else:
            connection.end()
            await asyncio.sleep(0.01)
        goes_on.set()
        await until(ended.is_set)
        await until(lambda: not at.server.exchanges)
        assert transport.written.count(b"1\r\nx\r\n") == 5
        await at.aclose()

    asyncio.run(main())


def test_an_item_that_is_no_bytes_ends_it(drive: Any, caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        yield b"x"
        yield b"y"
        yield "z"

    with pytest.raises(ValueError, match="invalid literal"):
        drive(app, GET + b"\r\n")
    assert "must be bytes, not str" in caplog.text


def test_a_long_body_from_a_thread_is_cut(drive: Any) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Length", "5")])
        while True:
            yield b"abc"

    assert drive(app, LAST).answers[0].body == b"abcab"


@pytest.mark.parametrize("kind", ["loop", "thread"])
def test_an_endless_answer_gives_way(harness: Any, kind: str) -> None:
    """However fast its client is, others get a turn after some items."""
    turns: list[int] = []

    def items() -> Any:
        for _ in range(200):
            yield b"x" * 65536

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return items()

    async def async_app(environ: Any, start_response: Any) -> Any:
        return app(environ, start_response)

    async def main() -> None:
        at = harness(app if kind == "thread" else async_app)
        connection, transport = at.connect()
        connection.data_received(LAST)
        while not transport.closed.is_set():
            before = len(transport.written)
            await asyncio.sleep(0)
            turns.append(len(transport.written) - before)
        await at.aclose()

    asyncio.run(main())
    assert max(turns) < 300_000


# The server.


def serving(app: Any, **config: Any) -> tuple[Server, socket.socket, Home]:
    loop = asyncio.get_running_loop()
    home = Home(loop, Threads(loop, limit=2))
    home.register()
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    from .conftest import RecordingLog

    server = Server(app, Config(**config), home, RecordingLog())
    server.listen([listening])
    return server, listening, home


def test_ten_thousand_connections_leave_nothing(loop_factory: Any, tmp_path: Any) -> None:
    """Opened and dropped: at once, in a head, in a body on disk, in an answer."""

    async def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])

        async def items() -> Any:
            while True:
                yield b"x" * 100
                await asyncio.sleep(0.001)

        return items()

    sent = [
        b"",
        b"GET / HT",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9000\r\n\r\n" + b"x" * 5000,
        GET + b"\r\n" + GET,
    ]

    async def main() -> None:
        server, listening, home = serving(
            app, max_body_in_memory=1000, spool_dir=str(tmp_path), connections=300
        )
        address = listening.getsockname()
        tasks = len(asyncio.all_tasks())
        gc.collect()
        files = len(os.listdir("/proc/self/fd"))
        for round_ in range(100):
            clients = []
            # Connecting blocks this very loop when the backlog is full.
            await until(lambda: server._open < 200)
            for number in range(100):
                client = socket.create_connection(address)
                client.send(sent[(round_ + number) % 4])
                clients.append(client)
            await asyncio.sleep(0)
            if round_ % 3:
                await asyncio.sleep(0.002)
            for client in clients:
                client.close()
        await until(lambda: server._open == 0 and not server.exchanges)
        await until(lambda: len(asyncio.all_tasks()) == tasks)
        assert not server.connections
        assert not server._connecting
        assert server.quota.used == 0
        await until(lambda: len(os.listdir("/proc/self/fd")) <= files + 1)
        await server.drain(1)
        await home.aclose()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="the system has it not")
def test_the_kernel_keeps_little_of_what_a_client_does_not_take(loop_factory: Any) -> None:
    made = 0

    async def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])

        async def items() -> Any:
            nonlocal made
            while True:
                made += 1
                yield b"x" * 65536

        return items()

    async def main() -> None:
        server, listening, home = serving(app)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(listening.getsockname())
            client.send(LAST)
            await until(lambda: made)
            before = 0
            while made != before:
                before = made
                await asyncio.sleep(0.1)
            # By default 40 items and more: as much as the socket's buffer holds.
            assert made < 20
        await until(lambda: not server.exchanges)
        await server.drain(1)
        await home.aclose()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EPERM, errno.ECONNABORTED])
def test_a_failing_accept_does_not_break_a_drain(code: int) -> None:
    class Listening(socket.socket):
        failures = 0

        def accept(self) -> Any:
            if Listening.failures < 3:
                Listening.failures += 1
                raise OSError(code, os.strerror(code))
            return super().accept()

    async def main() -> None:
        server, listening, home = serving(echo)
        server._sockets = {
            Listening(fileno=listening.detach()): base for base in server._sockets.values()
        }
        await server.drain(1)
        await home.aclose()

    asyncio.run(main())
    assert Listening.failures


def test_what_is_cancelled_is_named(harness: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def hang(environ: Any, start_response: Any) -> Any:
        await asyncio.sleep(3600)

    async def main(paths: list[str]) -> str:
        at = harness(hang)
        for path in paths:
            connection, _ = at.connect()
            connection.data_received(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        caplog.clear()
        await at.server.drain(0.01)
        await at.aclose()
        (said,) = [each for each in caplog.messages if each.startswith("Cancelling")]
        return said

    assert asyncio.run(main(["/clock/events?token=s"])) == (
        "Cancelling 1 request that did not end: GET /clock/events"
    )
    assert asyncio.run(main(["/b", "/a"])) == (
        "Cancelling 2 requests that did not end: GET /a, GET /b"
    )
    assert asyncio.run(main(["/x"] * 12)).endswith(" and 2 more")
