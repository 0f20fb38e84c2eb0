"""The standard library's validator of WSGI has no objection to the worker.

Over real sockets, with applications of every kind, and however an answer ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serving import Server, serve

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def served() -> Iterator[Server]:
    with serve("validated:app", cwd=HERE, threads=4, extra_config="keepalive = 5\n") as server:
        yield server
        # Now the log is complete.
        server.stop()
        assert objections(server) == []


def objections(server: Server) -> list[str]:
    """The log from where a validator spoke: an assertion, or that it was never closed."""
    log = server.log().splitlines()
    signs = ("AssertionError", "without being closed", "WSGIWarning")
    return [
        "\n".join(log[max(0, number - 20) : number + 1])
        for number, line in enumerate(log)
        if any(sign in line for sign in signs)
    ]


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        *(("plain/read", b"line 1\nline 2"), ("plain/readline", b"line 1\n")),
        *(("plain/readlines", b"line 1\nline 2"), ("plain/iterate", b"line 1\nline 2")),
        *(("plain/write", b"written twice"), ("plain/empty", b""), ("plain/not-modified", b"")),
        ("plain/generator", b"".join(b"%d\n" % number for number in range(1000))),
        *(("plain/late-start", b"late"), ("plain/long", b"012"), ("plain/replaced", b"replaced")),
        *(("plain/file", b"x" * 300_000), ("plain/nothing", b"nothing")),
        ("flask/", b"POST 13"),
        ("flask/stream", b"".join(b"%d\n" % number for number in range(100))),
        *(("django/hello/", b"Hello world!"), ("django/plain/", b"plain")),
        ("django/upload/", b'{"size": 13, "length": "13"}'),
        *(("django/file/", bytes(range(256)) * 4096), ("django/plain-file/", None)),
        *(
            ("django/plain-stream/", None),
            ("django/missing/", None),
            ("stock/hello/", b"Hello world!"),
        ),
        ("stock/plain-file/", bytes(range(256)) * 4096),
    ],
)
def test_no_objection(served: Server, path: str, answer: bytes | None) -> None:
    method = "GET" if "stream" in path else "POST"
    if path.startswith(("django", "stock")) and "upload" not in path:
        method = "GET"
    body = {"content": b"line 1\nline 2"} if method == "POST" else {}
    chunked = {"content": iter([b"line 1\n", b"line 2"])} if method == "POST" else {}
    with httpx.Client(base_url=served.url) as client:
        for options in (body, chunked):
            got = client.request(method, f"/{path}", **options)
            assert got.status_code != 500 or "replaced" in path, served.log()
            if answer is not None:
                assert got.content == answer
        assert client.head(f"/{path}").content == b""
    assert objections(served) == []


def test_no_objection_when_a_client_leaves(served: Server) -> None:
    for path in ("plain/generator", "plain/file", "django/stream/", "django/plain-file/"):
        with served.connect() as sock:
            sock.sendall(f"GET /{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            assert sock.recv(100)
    # Answered by the same threads, after what they had to close.
    assert httpx.get(f"{served.url}/django/plain/").text == "plain"
    assert objections(served) == []


def test_a_coroutine_application() -> None:
    with serve("validated:coroutine", cwd=HERE) as server:
        assert httpx.get(f"{server.url}/a?b=c").content == b"nothing"
        assert httpx.post(server.url, content=b"x" * 2_000_000).content == b"x" * 2_000_000
        assert httpx.post(server.url, content=iter([b"a", b"b"])).content == b"ab"
        assert httpx.head(server.url).status_code == 200
        server.stop()
        assert objections(server) == []


def test_the_validator_is_there() -> None:
    with serve("validated:app", cwd=HERE) as server:
        assert httpx.get(f"{server.url}/plain/broken").status_code == 500
        server.wait_for("AssertionError")
        assert objections(server)
