"""Bytes of any kind over real sockets: no hang, no crash, one answer to one request."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving import Server, serve

HERE = Path(__file__).parent
GET = b"GET /%d HTTP/1.1\r\nHost: h\r\n"
PIECES = [
    *(GET % 1, GET % 2 + b"\r\n", b"POST /3 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"),
    *(b"PUT /4 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n"),
    *(b"HEAD /5 HTTP/1.0\r\n\r\n", b"GET /6 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
    *(
        b"0\r\n\r\n",
        b"0\r\nX: y\r\n\r\n",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
    ),
    *(
        b"Expect: 100-continue\r\n",
        b"Connection: close\r\n",
        b"Connection: upgrade\r\nUpgrade: x\r\n",
    ),
    *(
        b"Host: h\r\n",
        b" HTTP/1.1\r\n",
        b"\r\n",
        b"\n",
        b"\r",
        b"\0",
        b" ",
        b":",
        b"\xff",
        b"x" * 5000,
    ),
]


@pytest.fixture(scope="module")
def served() -> Iterator[Server]:
    with serve("proxied:app", cwd=HERE) as server:
        yield server


def exchange(server: Server, pieces: list[bytes]) -> bytes:
    """Send the pieces and one half of the goodbye; all that comes back until the other."""
    with server.connect(timeout=10) as sock:
        try:
            for piece in pieces:
                sock.sendall(piece)
            sock.shutdown(1)
            raw = b""
            while data := sock.recv(65536):
                raw += data
        except OSError as exc:
            # Sent on, or ended, after a refusal that was long over.
            if not isinstance(exc, ConnectionError) and exc.errno != errno.ENOTCONN:
                raise
            return b""
    return raw


def journal(server: Server) -> list[dict[str, str]]:
    raw = exchange(server, [GET.replace(b"%d", b"journal") + b"X-Read: yes\r\n\r\n"])
    return json.loads(raw.partition(b"\r\n\r\n")[2])


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(st.sampled_from(PIECES) | st.binary(max_size=8), max_size=15))
def test_any_bytes(served: Server, pieces: list[bytes]) -> None:
    before = len(journal(served))
    raw = exchange(served, pieces)
    seen = journal(served)[before:]
    raw = raw.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
    statuses = re.findall(rb"HTTP/1\.1 (\d{3}) ", raw)
    count = statuses.count(b"200")
    # Those that were served, in order, then at most one refusal; nothing of the server's own.
    assert statuses[:count] == [b"200"] * count
    assert len(statuses) <= count + 1
    assert b"500" not in statuses
    if raw:
        assert len(seen) == count
    assert served.workers() == served.workers()[:1]
