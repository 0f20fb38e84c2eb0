"""A Django project with real clients, under the worker and under every other server.

`make test` runs those that are quick to install and to start, once; `make conformance
SUITES=servers` all that the machine has.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

import servers
from serving import Server

HERE = Path(__file__).resolve().parent
ALL = bool(os.environ.get("GREENROOM_SERVERS"))
# How often a client that was made once is used; the connections that it may need.
REQUESTS = 3000 if ALL else 100
CONNECTIONS = 10

LIFESPAN = {"LIFESPAN": "django_site.lifespan.lifespan"}


@dataclass
class Served:
    """A site that is served; `placement` is that of its coroutine views' surroundings."""

    name: str
    server: Server
    placement: str

    @property
    def kind(self) -> servers.Kind:
        return servers.KINDS[self.name]

    @property
    def url(self) -> str:
        return self.server.url

    def events(self) -> dict[str, Any]:
        return dict(httpx.get(f"{self.url}/events/", timeout=30).json())


def _cases() -> Iterator[Any]:
    """The worker in each placement and beneath a plain wrapper; every other server."""
    yield pytest.param(("worker", "auto", "wsgi"), id="loop")
    yield pytest.param(("worker", "thread", "wsgi"), id="thread")
    yield pytest.param(("worker", "auto", "wrapped"), id="wrapped")
    for name, kind in servers.KINDS.items():
        if name != "worker" and (kind.often or ALL):
            yield pytest.param((name, "auto", ""), id=name, marks=pytest.mark.once)
    if ALL:
        for name in ("uvicorn", "granian"):
            yield pytest.param((name, "thread", ""), id=f"{name}-thread")


@pytest.fixture(scope="module", params=_cases())
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    name, placement, module = request.param
    servers.require(name)
    noted = tmp_path_factory.mktemp(name) / "lifespan"
    environment = {
        "SITE_GREENROOM": json.dumps({"PLACEMENT": placement, **LIFESPAN}),
        "SITE_LIFESPAN": str(noted),
    }
    with servers.start(name, "django_site", cwd=HERE, env=environment, module=module) as server:
        yield Served(name, server, placement)
        server.stop(servers.KINDS[name].ends)
        # Once for the process, and in order, whatever the server; or no request was made.
        found = noted.read_text().split() if noted.exists() else []
        assert found in (["entered", "left"], []), server.log()


def until(condition: Any, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def test_views_answer(served: Served) -> None:
    with httpx.Client(base_url=served.url) as client:
        for path, text in (
            ("/hello/", "Hello world!"),
            ("/plain/", "plain"),
            ("/sleep/0.01/", "slept"),
        ):
            answer = client.get(path)
            assert (answer.status_code, answer.text) == (200, text)
            assert answer.headers["X-Frame-Options"] == "DENY"
            assert answer.headers["Content-Length"] == str(len(text))
        assert client.get("/nowhere/").status_code == 404
        assert client.head("/hello/").content == b""
        assert client.get("/hello").headers["Location"] == "/hello/"


UNUSUAL = [
    # There is no such page; and no error, whatever the urlconf.
    ("OPTIONS * HTTP/1.1", 404),
    ("GET //evil.example/x HTTP/1.1", 404),
    ("GET //hello/ HTTP/1.1", 404),
    # To the path that it was asked for, never to a host.
    ("GET //hello HTTP/1.1", 404),
    ("GET http://127.0.0.1/hello/ HTTP/1.1", 200),
    ("GET http://other.example/hello/ HTTP/1.1", 400),
    ("GET /hello/#x HTTP/1.1", 400),
    ("GET /hello/%00 HTTP/1.1", 400),
    ("GET /hello/%2e%2e/plain/ HTTP/1.1", 404),
]


def test_unusual_targets(served: Served) -> None:
    if served.name != "worker":
        pytest.skip("what other servers refuse is theirs to say")
    for line, status in UNUSUAL:
        with served.server.connect() as sock:
            sock.sendall(f"{line}\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
            data = b""
            while piece := sock.recv(65536):
                data += piece
        assert data.startswith(b"HTTP/1.1 %d " % status), line
        assert b"\r\nLocation:" not in data


def test_a_page_that_asks_its_own_server(served: Served) -> None:
    if not served.kind.concurrent:
        pytest.skip("it answers one request at a time")
    assert httpx.get(f"{served.url}/plain-calls-back/").text == "Hello world!"
    assert httpx.get(f"{served.url}/calls-back/?to=hello").text == "200 Hello world!"


@pytest.mark.parametrize("path", ["/file/", "/plain-file/"])
def test_files(served: Served, path: str) -> None:
    answer = httpx.get(f"{served.url}{path}")
    assert sha256(answer.content).digest() == sha256(bytes(range(256)) * 4096).digest()
    assert httpx.head(f"{served.url}{path}").content == b""


def test_uploads(served: Served) -> None:
    body = bytes(range(256)) * 20_000
    answer = httpx.post(f"{served.url}/upload/", files={"file": ("a.bin", body)})
    assert answer.json() == {"size": len(body), "sha256": sha256(body).hexdigest()}


def test_a_chunked_request_has_a_length(served: Served) -> None:
    if not served.kind.chunked:
        pytest.skip("it doesn't understand chunks")
    answer = httpx.post(f"{served.url}/upload/", content=iter([b"ab", b"", b"cde"]))
    assert answer.json() == {"size": 5, "length": "5"}
    body = bytes(range(256)) * 20_000
    files = httpx.Request("POST", served.url, files={"file": ("a.bin", body)})
    answer = httpx.post(
        f"{served.url}/upload/",
        content=iter([files.read()]),
        headers={"Content-Type": files.headers["Content-Type"]},
    )
    assert answer.json() == {"size": len(body), "sha256": sha256(body).hexdigest()}


def test_a_plain_stream_stays_on_its_thread(served: Served) -> None:
    lines = httpx.get(f"{served.url}/plain-stream/").text.splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "2"]
    assert len({line.split(maxsplit=1)[1] for line in lines}) == 1


def test_an_error_in_a_stream_is_no_well_formed_end(served: Served) -> None:
    if not served.kind.shows_errors:
        pytest.skip("its clients can't tell")
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{served.url}/broken-stream/")


@pytest.mark.parametrize("path", ["/stream/", "/plain-ticks/"])
def test_streams_go_item_by_item_and_end_with_their_client(served: Served, path: str) -> None:
    """Neither ends by itself: consumed whole first, no item would ever come."""
    before = served.events()["seen"].count("stream closed")
    with httpx.stream("GET", f"{served.url}{path}") as answer:
        lines = answer.iter_lines()
        assert [next(lines) for _ in range(3)] == ["tick"] * 3
    until(lambda: served.events()["seen"].count("stream closed") == before + 1)
    until(lambda: _is_balanced(served.events()["seen"]))


def _is_balanced(seen: list[str]) -> bool:
    return seen.count("response closed") == seen.count("stream closed")


def test_a_stream_waits_for_a_slow_client(served: Served) -> None:
    if not served.kind.waits or not served.kind.concurrent:
        pytest.skip("it keeps in memory what isn't sent yet, or answers nobody meanwhile")
    with socket.create_connection(served.server.address) as sock:  # type: ignore[arg-type]
        sock.sendall(b"GET /flood/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert sock.recv(100)
        blocks = -1
        # Until it stands still.
        while blocks != (blocks := served.events()["seen"].count("block")):
            time.sleep(0.3)
        assert blocks < 1000
    until(lambda: served.events()["seen"].count("flood closed") == 1)


def test_a_client_that_leaves_a_view(served: Served) -> None:
    """A WSGI server doesn't look; under ASGI, as under the worker, the view is cancelled."""
    if not served.kind.asgi and served.name != "worker":
        pytest.skip("a WSGI server doesn't tell")
    with served.server.connect() as sock:
        sock.sendall(b"GET /wait/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        until(lambda: "begun" in served.events()["seen"])
    until(lambda: "finally" in served.events()["seen"])
    seen = [each for each in served.events()["seen"] if each in ("begun", "cancelled", "finally")]
    assert seen == ["begun", "cancelled", "finally"]


def test_every_request_is_finished_once(served: Served) -> None:
    def under_way() -> int:
        seen = served.events()["seen"]
        return int(seen.count("started") - seen.count("finished"))

    for path in ("/hello/", "/plain/", "/nowhere/", "/plain-stream/", "/file/"):
        httpx.get(f"{served.url}{path}")
    # The one that asks.
    until(lambda: under_way() == 1)


class _Upstream(BaseHTTPRequestHandler):
    """A service that keeps its connections, and counts them."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    connections = 0

    def setup(self) -> None:
        _Upstream.connections += 1
        super().setup()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def upstream() -> Iterator[str]:
    _Upstream.connections = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), _Upstream) as server:
        # Its connections are kept; it doesn't wait for their ends.
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


def test_a_client_that_is_made_once_is_used_by_all_requests(served: Served, upstream: str) -> None:
    loops = {served.events()["loop"]}
    with httpx.Client(base_url=served.url, timeout=30) as client:
        # wsgiref writes in small pieces, which the kernel holds back.
        for _ in range(100 if served.name == "wsgiref" else REQUESTS):
            assert client.get("/fetch/", params={"url": upstream}).text == "hello"
    assert loops == {served.events()["loop"]}
    assert _Upstream.connections <= CONNECTIONS


def test_calls_come_back_to_the_request_s_own(served: Served) -> None:
    """Its database connection everywhere, and on a thread that serves it that thread too."""
    own = httpx.get(f"{served.url}/own/").json()
    on_loop = (served.kind.asgi or served.name == "worker") and served.placement == "auto"
    assert own["connection"]
    if not on_loop:
        assert own["thread"]
