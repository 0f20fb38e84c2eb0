"""What is understood, whole and in every split; what is refused, and with which status."""

from __future__ import annotations

import asyncio
import itertools
import json
from contextvars import ContextVar
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

settings.register_profile(
    "server", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PROFILE = settings.get_profile("server")


async def echo(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    body = environ["wsgi.input"].read()
    seen = {k: v for k, v in environ.items() if isinstance(v, str)}
    seen["body"] = body.decode("latin-1")
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(seen).encode()]


def seen(answer: Any) -> dict[str, str]:
    return json.loads(answer.body)


PIPELINE = (
    b"\r\nGET /a%20b/%E4?x=%20 HTTP/1.1\r\nHost: example.org:81\r\nCookie: a=1\r\n"
    b"Cookie: b=2\r\nX-A: 1 \r\nX-A:\t2\r\nX_A: 3\r\n\r\n"
    b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 12\r\n\r\nhello\r\n\r\nGET"
    b"POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n"
    b'5;a=b\r\nhello\r\n006 ; q="x"\r\n world\r\n0\r\nX-Late: no\r\nHost: evil\r\n\r\n'
    b"HEAD /h HTTP/1.1\r\nHost: h\r\n\r\n"
    b"POST /u HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: h2c\r\n"
    b"Content-Length: 31\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x"
    b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n"
    b"GET http://other.example/abs?q HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
)
METHODS = ["GET", "POST", "POST", "HEAD", "POST", "OPTIONS", "GET"]


def check_pipeline(driven: Any) -> None:
    assert driven.statuses == [200] * 7
    get, post, chunked, head, upgrade, options, absolute = driven.answers
    environ = seen(get)
    assert environ["PATH_INFO"] == "/a b/\xe4"
    assert environ["RAW_URI"] == "/a%20b/%E4?x=%20"
    assert environ["QUERY_STRING"] == "x=%20"
    assert environ["HTTP_HOST"] == "example.org:81"
    assert environ["HTTP_COOKIE"] == "a=1; b=2"
    assert environ["HTTP_X_A"] == "1,2"
    assert "CONTENT_LENGTH" not in environ
    assert seen(post)["body"] == "hello\r\n\r\nGET"
    assert seen(post)["CONTENT_LENGTH"] == "12"
    environ = seen(chunked)
    assert environ["body"] == "hello world"
    assert environ["CONTENT_LENGTH"] == "11"
    assert "HTTP_TRANSFER_ENCODING" not in environ
    assert "HTTP_X_LATE" not in environ
    assert environ["HTTP_HOST"] == "h"
    assert head.body == b""
    assert int(head.headers["content-length"]) > 0
    assert seen(upgrade)["body"] == "GET /smuggled HTTP/1.1\r\nHost: x"
    assert seen(options)["PATH_INFO"] == "*"
    assert seen(absolute)["PATH_INFO"] == "/abs"
    assert seen(absolute)["HTTP_HOST"] == "other.example"
    assert absolute.headers["connection"] == "close"
    assert "connection" not in get.headers


def test_pipeline_whole(drive: Any) -> None:
    check_pipeline(drive(echo, PIPELINE, methods=METHODS))


def test_pipeline_byte_by_byte(drive: Any) -> None:
    pieces = [PIPELINE[i : i + 1] for i in range(len(PIPELINE))]
    check_pipeline(drive(echo, *pieces, methods=METHODS))


@settings(PROFILE, max_examples=40)
@given(st.lists(st.integers(1, len(PIPELINE) - 1), max_size=8, unique=True))
def test_pipeline_split_anywhere(drive: Any, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(PIPELINE)]
    pieces = [PIPELINE[a:b] for a, b in itertools.pairwise(edges)]
    check_pipeline(drive(echo, *pieces, methods=METHODS))


visitor: ContextVar[str] = ContextVar("visitor", default="nobody")


def meet(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Who was here before, in this context."""
    before = visitor.get()
    visitor.set(environ["PATH_INFO"])
    start_response("200 OK", [])
    return [before.encode()]


async def meet_on_loop(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    await asyncio.sleep(0)
    return meet(environ, start_response)


@pytest.mark.parametrize("app", [meet_on_loop, meet])
def test_a_pipelined_request_has_a_context_of_its_own(drive: Any, app: Any) -> None:
    """It is begun where the one before it ends."""
    requests = [f"GET /{i} HTTP/1.1\r\nHost: h\r\n\r\n".encode() for i in range(3)]
    last = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    driven = drive(app, b"".join([*requests, last]))
    assert [answer.body for answer in driven.answers] == [b"nobody"] * 4


GET = b"GET / HTTP/1.1\r\nHost: h\r\n"
POST = b"POST / HTTP/1.1\r\nHost: h\r\n"
REFUSED = {
    "no version": (400, b"GET /\r\n\r\n"),
    "version 2": (505, b"GET / HTTP/2.0\r\nHost: h\r\n\r\n"),
    "version 1.2": (505, b"GET / HTTP/1.2\r\nHost: h\r\n\r\n"),
    "preface of HTTP/2": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "rtsp": (400, b"GET / RTSP/1.0\r\nHost: h\r\n\r\n"),
    "ice": (400, b"SOURCE / ICE/1.0\r\nHost: h\r\n\r\n"),
    "two spaces": (400, b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n"),
    "unknown method": (501, b"FROB / HTTP/1.1\r\nHost: h\r\n\r\n"),
    "lower-case method": (501, b"get / HTTP/1.1\r\nHost: h\r\n\r\n"),
    "an answer": (400, b"(HTTP/1.1 200 OK\r\n\r\n"),
    "no Host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two Hosts": (400, GET + b"Host: h\r\n\r\n"),
    "Host with a path": (400, b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n"),
    "Host with a user": (400, b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n"),
    "empty Host": (400, b"GET / HTTP/1.1\r\nHost: \r\n\r\n"),
    "Host of a port only": (400, b"GET / HTTP/1.1\r\nHost: :80\r\n\r\n"),
    "Host of two": (400, b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n"),
    "Host with 8 bits": (400, b"GET / HTTP/1.1\r\nHost: \xe4\r\n\r\n"),
    "target with a user": (400, b"GET http://a@b/ HTTP/1.1\r\nHost: b\r\n\r\n"),
    "target without a host": (400, b"GET http:///x HTTP/1.1\r\nHost: b\r\n\r\n"),
    "target of another scheme": (400, b"GET ftp://h/ HTTP/1.1\r\nHost: h\r\n\r\n"),
    "target without a slash": (400, b"GET x HTTP/1.1\r\nHost: h\r\n\r\n"),
    "fragment": (400, b"GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n"),
    "fragment after a query": (400, b"GET /a?b#c HTTP/1.1\r\nHost: h\r\n\r\n"),
    "NUL in the path": (400, b"GET /a%00b HTTP/1.1\r\nHost: h\r\n\r\n"),
    "target with 8 bits": (400, b"GET /\xe4 HTTP/1.1\r\nHost: h\r\n\r\n"),
    "target with a control": (400, b"GET /\x7f HTTP/1.1\r\nHost: h\r\n\r\n"),
    "two empty lines": (400, b"\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n"),
    "nothing but empty lines": (400, b"\r\n" * 50),
    "space after the version": (400, b"GET / HTTP/1.1 \r\nHost: h\r\n\r\n"),
    "tab for a space": (400, b"GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n"),
    "space before the first field": (400, b"GET / HTTP/1.1\r\n Host: h\r\n\r\n"),
    "target *": (400, b"GET * HTTP/1.1\r\nHost: h\r\n\r\n"),
    "CONNECT": (501, b"CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n"),
    "chunked in 1.0": (400, b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "gzip, chunked": (501, POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n"),
    "chunked, gzip": (400, POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n"),
    "chunked twice": (400, POST + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n"),
    "length and chunks": (
        400,
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "two lengths": (400, POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
    "signed length": (400, POST + b"Content-Length: +5\r\n\r\nhello"),
    "listed length": (400, POST + b"Content-Length: 5, 5\r\n\r\nhello"),
    "two types": (400, POST + b"Content-Type: a/b\r\nContent-Type: c/d\r\n\r\n"),
    "folded line": (400, GET + b"X: a\r\n b\r\n\r\n"),
    "space before colon": (400, GET + b"X : a\r\n\r\n"),
    "field without a name": (400, GET + b": a\r\n\r\n"),
    "field without a colon": (400, GET + b"X\r\n\r\n"),
    "8 bits in a name": (400, GET + b"\xe4: a\r\n\r\n"),
    "control in a value": (400, GET + b"X: a\x1bb\r\n\r\n"),
    "huge length": (400, POST + b"Content-Length: 18446744073709551616\r\n\r\n"),
    "NUL": (400, GET + b"X: a\0b\r\n\r\n"),
    "bare CR": (400, GET + b"X: a\rb\r\n\r\n"),
    "bare LF": (400, b"GET / HTTP/1.1\nHost: h\n\n"),
    "bare LF in a field": (400, GET + b"X: a\nY: b\r\n\r\n"),
    "expectation": (417, POST + b"Expect: 200-ok\r\n\r\n"),
    "long line": (414, b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: h\r\n\r\n"),
    "endless line": (414, b"GET /" + b"a" * 5000),
    "many fields": (431, GET + b"X: a\r\n" * 100 + b"\r\n"),
    "big field": (431, GET + b"X: " + b"a" * 8190 + b"\r\n\r\n"),
    "endless head": (431, GET + b"X: a\r\n" * 150_000),
    "bad chunk size": (400, POST + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n"),
    "no chunk size": (400, POST + b"Transfer-Encoding: chunked\r\n\r\n;a\r\n"),
    "negative chunk": (400, POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n"),
    "huge chunk": (400, POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 17 + b"\r\n"),
    "chunk ends late": (400, POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n"),
    "bare LF in chunks": (400, POST + b"Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n"),
    "endless chunk line": (400, POST + b"Transfer-Encoding: chunked\r\n\r\n5;" + b"a" * 9000),
    "many extensions": (
        431,
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + (b"1;" + b"e" * 2000 + b"\r\nx\r\n") * 20,
    ),
    "bad trailer": (400, POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX Y: z\r\n\r\n"),
}


@pytest.mark.parametrize(("status", "data"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(drive: Any, status: int, data: bytes) -> None:
    calls = []

    async def app(environ: Any, start_response: Any) -> list[bytes]:
        calls.append(environ["PATH_INFO"])
        return await echo(environ, start_response)

    bytewise = [data[i : i + 1] for i in range(len(data))]
    if len(bytewise) > 50_000:
        bytewise = [data[i : i + 100] for i in range(0, len(data), 100)]
    # Whole, with what must never be taken for a request behind it; and byte by byte.
    for pieces in ([data + b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n"], bytewise):
        driven = drive(app, *pieces)
        assert driven.statuses == [status]
        assert driven.answers[0].headers["connection"] == "close"
        assert driven.transport.eof_written, "half-closed, so that the answer is readable"
        assert not driven.aborted
        assert calls == []
        assert len(driven.log.accesses) == 1


@pytest.mark.parametrize(
    ("mode", "trusted", "expected"),
    [
        ("drop", False, None),
        ("refuse", False, 400),
        ("dangerous", False, "/x"),
        ("drop", True, "/x"),
    ],
)
def test_underscores(drive: Any, mode: str, trusted: bool, expected: Any) -> None:
    data = GET + b"PATH_INFO: /x\r\nConnection: close\r\n\r\n"
    driven = drive(echo, data, header_map=mode, trusted=trusted)
    if expected == 400:
        assert driven.statuses == [400]
    else:
        assert seen(driven.answers[0]).get("HTTP_PATH_INFO") == expected


@pytest.mark.parametrize(
    ("fields", "trusted", "expected"),
    [
        (b"X-Forwarded-Proto: https\r\n", True, "https"),
        (b"X-Forwarded-Proto: https\r\n", False, "http"),
        (b"X-Forwarded-Proto: http\r\n", True, "http"),
        (b"X-Forwarded-Proto: https\r\nX-Forwarded-Ssl: off\r\n", True, 400),
    ],
)
def test_scheme(drive: Any, fields: bytes, trusted: bool, expected: Any) -> None:
    driven = drive(echo, GET + fields + b"Connection: close\r\n\r\n", trusted=trusted)
    if expected == 400:
        assert driven.statuses == [400]
    else:
        assert seen(driven.answers[0])["wsgi.url_scheme"] == expected


@pytest.mark.parametrize(
    ("path", "script_name", "path_info"), [("/app/x%20", "/app", "/x "), ("/other", None, None)]
)
def test_script_name(drive: Any, path: str, script_name: Any, path_info: Any) -> None:
    data = f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode()
    driven = drive(echo, data, script_name="/app")
    if script_name is None:
        assert driven.statuses == [500]
    else:
        environ = seen(driven.answers[0])
        assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == (script_name, path_info)


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: h\r\nConnection: x, Close\r\n\r\n", False),
    ],
)
def test_keep_alive(drive: Any, head: bytes, kept: bool) -> None:
    last = b"GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    driven = drive(echo, head + last)
    assert len(driven.answers) == (2 if kept else 1)
    expected = None if b"1.1" in head else "keep-alive"
    assert driven.answers[0].headers.get("connection") == (expected if kept else "close")


def test_keep_alive_switched_off(drive: Any) -> None:
    driven = drive(echo, (GET + b"\r\n") * 2, keepalive=0)
    assert driven.statuses == [200]
    assert driven.answers[0].headers["connection"] == "close"


@pytest.mark.parametrize(
    ("version", "early", "told"),
    [("1.1", False, True), ("1.1", True, False), ("1.0", False, False)],
)
def test_expect_continue(drive: Any, version: str, early: bool, told: bool) -> None:
    head = (
        f"POST / HTTP/{version}\r\nHost: h\r\nExpect: 100-Continue\r\n"
        "Content-Length: 2\r\nConnection: close\r\n\r\n"
    ).encode()
    driven = drive(echo, *([head + b"ok"] if early else [head, b"ok"]))
    assert driven.raw.startswith(b"HTTP/1.1 100 Continue\r\n\r\n") is told
    assert seen(driven.answers[0])["body"] == "ok"


@pytest.mark.parametrize("chunked", [False, True])
def test_big_body_goes_through_a_file(drive: Any, tmp_path: Any, chunked: bool) -> None:
    kinds = []

    async def app(environ: Any, start_response: Any) -> list[bytes]:
        kinds.append((type(environ["wsgi.input"]).__name__, environ["CONTENT_LENGTH"]))
        body = environ["wsgi.input"].read()
        start_response("200 OK", [])
        return [body]

    body = bytes(range(256)) * 4000
    if chunked:
        head = b"Transfer-Encoding: chunked\r\n"
        sent = b"".join(
            b"%x\r\n%b\r\n" % (len(body[i : i + 5000]), body[i : i + 5000])
            for i in range(0, len(body), 5000)
        )
        sent += b"0\r\n\r\n"
    else:
        head = b"Content-Length: %d\r\n" % len(body)
        sent = body
    data = POST + head + b"\r\n" + sent + GET + b"Connection: close\r\n\r\n"
    pieces = [data[i : i + 65536] for i in range(0, len(data), 65536)]

    async def both(environ: Any, start_response: Any) -> list[bytes]:
        if environ["REQUEST_METHOD"] == "POST":
            return await app(environ, start_response)
        return await echo(environ, start_response)

    driven = drive(both, *pieces, max_body_in_memory=100_000, spool_dir=str(tmp_path))
    assert driven.statuses == [200, 200]
    assert driven.answers[0].body == body
    assert kinds == [("BufferedReader", str(len(body)))]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("chunked", [False, True])
def test_spool_quota(drive: Any, tmp_path: Any, chunked: bool) -> None:
    if chunked:
        data = POST + b"Transfer-Encoding: chunked\r\n\r\n2000\r\n" + b"x" * 0x2000
    else:
        data = POST + b"Expect: 100-continue\r\nContent-Length: 8000\r\n\r\n"
    driven = drive(echo, data, max_body_in_memory=1000, spool_dir=str(tmp_path), spool_quota=5000)
    assert driven.statuses == [503]
    assert b"100 Continue" not in driven.raw
    assert int(driven.answers[0].headers["retry-after"]) > 0


@settings(PROFILE, max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, len(PIPELINE)), st.integers(0, 40), st.binary(max_size=6))),
    st.integers(1, 300),
)
def test_no_bytes_break_it(harness: Any, changes: Any, step: int) -> None:
    """Whatever is sent, nothing is raised but by us, and what is answered is well-formed."""

    async def main() -> bytes:
        errors: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, error: errors.append(error))
        data = bytearray(PIPELINE)
        for start, length, new in changes:
            data[start : start + length] = new
        at = harness(echo)
        connection, transport = at.connect()
        for i in range(0, len(data), step):
            if transport.closed.is_set() or transport.eof_written:
                break
            connection.data_received(bytes(data[i : i + step]))
            await asyncio.sleep(0)
        if not connection.eof_received():
            transport.close()
        async with asyncio.timeout(5):
            while at.server.exchanges:
                await asyncio.sleep(0)
        await at.aclose()
        assert errors == []
        return bytes(transport.written)

    raw = asyncio.run(main())
    assert raw == b"" or raw.startswith(b"HTTP/1.1 ")
    assert b"HTTP/1.1 500" not in raw


# What is unusual, and unambiguous.
TAKEN = {
    "path of two slashes": (b"//evil.com/x", {"PATH_INFO": "//evil.com/x", "HTTP_HOST": "h"}),
    "path that looks absolute": (b"/http://evil.com/", {"PATH_INFO": "/http://evil.com/"}),
    "dots": (b"/a/../b", {"PATH_INFO": "/a/../b"}),
    "NUL in the query": (b"/?a=%00", {"QUERY_STRING": "a=%00"}),
    "slash that is quoted": (b"/a%2Fb", {"PATH_INFO": "/a/b", "RAW_URI": "/a%2Fb"}),
    "percent that quotes nothing": (b"/%zz%", {"PATH_INFO": "/%zz%"}),
    "question marks": (b"/??a=?", {"PATH_INFO": "/", "QUERY_STRING": "?a=?"}),
    "absolute": (b"HTTP://Other:81/a", {"PATH_INFO": "/a", "HTTP_HOST": "Other:81"}),
    "absolute without a path": (b"https://o?q", {"PATH_INFO": "/", "QUERY_STRING": "q"}),
    "IPv6": (b"http://[::1]:8/", {"HTTP_HOST": "[::1]:8"}),
}


@pytest.mark.parametrize(("target", "expected"), TAKEN.values(), ids=TAKEN.keys())
def test_targets_that_are_taken(drive: Any, target: bytes, expected: dict[str, str]) -> None:
    data = b"GET %b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n" % target
    environ = seen(drive(echo, data).answers[0])
    assert {name: environ[name] for name in expected} == expected
    # Whatever scheme a client writes there.
    assert environ["wsgi.url_scheme"] == "http"


def test_values_of_fields(drive: Any) -> None:
    data = GET + b"A: \xe4\xff\r\nB:\t a b \t\r\nC:\r\nD: a:b\r\nConnection: close\r\n\r\n"
    environ = seen(drive(echo, data).answers[0])
    assert [environ[f"HTTP_{name}"] for name in "ABCD"] == ["\xe4\xff", "a b", "", "a:b"]


# The size of a body.

LIMIT = 1000


def body_of(size: int, chunked: bool, piece: int = 100) -> bytes:
    data = b"x" * size
    if not chunked:
        return b"Content-Length: %d\r\n\r\n" % size + data
    pieces = [data[i : i + piece] for i in range(0, size, piece)]
    return b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(
        b"%x\r\n%b\r\n" % (len(each), each) for each in [*pieces, b""]
    )


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1])
def test_a_body_up_to_its_limit(drive: Any, size: int, chunked: bool) -> None:
    data = POST + body_of(size, chunked)
    driven = drive(echo, data + GET + b"Connection: close\r\n\r\n", max_body=LIMIT)
    if size == LIMIT:
        assert driven.statuses == [200, 200]
        assert len(seen(driven.answers[0])["body"]) == LIMIT
    else:
        # And what follows is no request.
        assert driven.statuses == [413]
        assert driven.answers[0].headers["connection"] == "close"
        assert driven.transport.eof_written
        assert not driven.aborted
        assert len(driven.log.accesses) == 1


def test_no_limit(drive: Any) -> None:
    data = POST + body_of(200_000, False) + GET + b"Connection: close\r\n\r\n"
    assert drive(echo, data, max_body=None).statuses == [200, 200]


@pytest.mark.parametrize("expects", [b"", b"Expect: 100-continue\r\n"])
def test_what_is_announced_is_refused_before_it_comes(drive: Any, expects: bytes) -> None:
    head = POST + expects + b"Content-Length: %d\r\n\r\n" % (LIMIT + 1)
    driven = drive(echo, head, max_body=LIMIT)
    assert driven.statuses == [413]
    assert b"100 Continue" not in driven.raw
    # Also by the size of a chunk.
    head = POST + expects + b"Transfer-Encoding: chunked\r\n\r\n"
    driven = drive(echo, head + b"3e7\r\n" + b"x" * 999 + b"\r\n", b"2\r\n", max_body=LIMIT)
    assert driven.statuses == [413]
