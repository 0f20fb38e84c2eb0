"""Every kind of application behind a real gunicorn, over real sockets."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from serving import Server, serve

APPS = Path(__file__).parent / "server_apps"


def run(app: str, **options: Any) -> Any:
    return serve(f"apps:{app}", cwd=APPS, **options)


@pytest.fixture(scope="module")
def bare() -> Iterator[Server]:
    with run("bare") as server:
        yield server


# Where uvloop can't be imported, asyncio's own loop serves.
ASYNCIO = "import sys\nsys.modules['uvloop'] = None\n"


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def stream(request: pytest.FixtureRequest) -> Iterator[Server]:
    config = ASYNCIO if request.param == "asyncio" else ""
    with run("stream", extra_config=config) as server:
        server.wait_for(f"loop {request.param}")
        yield server


def read_all(sock: socket.socket) -> bytes:
    """To the EOF; a reset is an error."""
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


def ask(server: Server, request: bytes) -> bytes:
    with server.connect() as sock:
        sock.sendall(request)
        return read_all(sock)


def test_coroutine_application(bare: Server) -> None:
    environ = httpx.get(f"{bare.url}/a%20b?c=d").json()
    assert environ["PATH_INFO"] == "/a b"
    assert environ["wsgi.async"] is True
    assert environ["coroutine_wsgi.version"] == [1, 0]
    assert environ["wsgi.multiprocess"] is False
    assert environ["REMOTE_ADDR"] == "127.0.0.1"
    assert int(environ["REMOTE_PORT"]) > 0
    assert (environ["SERVER_NAME"], int(environ["SERVER_PORT"])) == bare.address
    assert environ["thread"] == "MainThread"


def test_chunked_request(bare: Server) -> None:
    environ = httpx.post(bare.url, content=iter([b"a" * 100_000] * 30)).json()
    assert environ["body"] == 3_000_000
    assert environ["CONTENT_LENGTH"] == "3000000"


def test_pipelining(bare: Server) -> None:
    requests = [f"GET /{i} HTTP/1.1\r\nHost: h\r\n\r\n" for i in range(500)]
    requests.append("GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    raw = ask(bare, "".join(requests).encode())
    assert raw.count(b"HTTP/1.1 200 OK\r\n") == 501
    assert raw.index(b'"/41"') < raw.index(b'"/499"') < raw.index(b'"/last"')


def test_head(bare: Server) -> None:
    raw = ask(bare, b"HEAD / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert raw.endswith(b"\r\n\r\n")
    assert b"Content-Length: " in raw


def test_expect(bare: Server) -> None:
    with bare.connect() as sock:
        sock.sendall(
            b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n"
            b"Connection: close\r\n\r\n"
        )
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"ok")
        assert b'"body": 2' in read_all(sock)


@pytest.mark.parametrize("trailing", [b"", b"x" * 900_000])
def test_the_refusal_is_readable(bare: Server, trailing: bytes) -> None:
    with bare.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: x\r\n\r\n" + trailing)
        assert read_all(sock).startswith(b"HTTP/1.1 400 Bad Request\r\n")


def test_unix_socket() -> None:
    with run("bare", unix=True) as server:
        raw = ask(server, b"GET / HTTP/1.1\r\nHost: site.example\r\nConnection: close\r\n\r\n")
    assert b'"SERVER_NAME": "site.example"' in raw
    assert b'"SERVER_PORT": "80"' in raw
    assert b'"REMOTE_ADDR": ""' in raw


def certificates(path: Path) -> tuple[str, ssl.SSLContext]:
    """gunicorn's settings, and what a client trusts."""
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1")
    key, cert = path / "key.pem", path / "cert.pem"
    server.private_key_pem.write_to_path(key)
    for each in server.cert_chain_pems:
        each.write_to_path(cert, append=True)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    return f"certfile = {str(cert)!r}\nkeyfile = {str(key)!r}\n", trust


@pytest.mark.parametrize("loop", ["", ASYNCIO], ids=["uvloop", "asyncio"])
def test_a_handshake_that_hangs_does_not_keep_the_worker(tmp_path: Path, loop: str) -> None:
    config, trust = certificates(tmp_path)
    with run("bare", extra_config=config + loop) as server, server.connect() as silent:
        with httpx.Client(verify=trust) as client:
            url = server.url.replace("http:", "https:")
            assert client.get(url).status_code == 200
            # The second is in the middle of its handshake; the pool's is idle, and is
            # not read from.
            with server.connect() as half:
                half.sendall(b"\x16\x03\x01")
                started = time.monotonic()
                assert server.stop() == 0
                assert time.monotonic() - started < 6
                assert half.recv(10) == b""
        assert silent.recv(10) == b""
        assert "Traceback" not in server.log()
        assert "Error" not in server.log()


def test_early_hints(bare: Server) -> None:
    raw = ask(bare, b"GET /hints HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert raw.startswith(
        b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\n"
    )
    with run("plain") as server:
        assert ask(
            server, b"GET /hints HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
        ).startswith(b"HTTP/1.1 103 Early Hints\r\n")


def test_tls(tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(b"x" * 3_000_000)
    config, trust = certificates(tmp_path)
    with run("bare", extra_config=config) as server, httpx.Client(verify=trust) as client:
        url = server.url.replace("http:", "https:")
        for _ in range(2):
            environ = client.post(url, content=b"x" * 3_000_000).json()
            assert environ["body"] == 3_000_000
            assert environ["wsgi.url_scheme"] == "https"
        # Not TLS: this connection ends, the server goes on.
        with server.connect() as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            assert not sock.recv(1000).startswith(b"HTTP/1.1 200")
        assert client.get(url).status_code == 200
    with run("file", extra_config=config) as server, httpx.Client(verify=trust) as client:
        url = server.url.replace("http:", "https:")
        assert len(client.get(f"{url}/?{path}").content) == 3_000_000


def test_def_application_runs_on_a_thread() -> None:
    with run("plain", threads=2) as server:
        answer = httpx.post(server.url, content=b"x" * 2_000_000)
    assert answer.text == "2000000"
    assert answer.headers["x-thread"] != "MainThread"


def test_generator_application() -> None:
    with run("generator") as server:
        assert httpx.get(server.url).text == "0\n1\n2\n"
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"{server.url}/fail")
        server.wait_for("note: generator closed", count=2)
        server.wait_for("failed on purpose")
        # More than any buffer holds: it waits for the client, and is closed when that goes.
        with server.connect() as sock:
            sock.sendall(b"GET /?100000000 HTTP/1.1\r\nHost: h\r\n\r\n")
            assert sock.recv(10)
        server.wait_for("note: generator closed", count=3)
        assert httpx.get(server.url).text == "0\n1\n2\n"


def test_flask() -> None:
    with run("flask") as server:
        assert httpx.get(server.url).text == "from flask"
        answer = httpx.post(
            f"{server.url}/upload", data={"a": "b"}, files={"f": ("n", b"x" * 3_000_000)}
        )
        assert answer.json() == {"files": {"f": 3_000_000}, "form": {"a": "b"}}


def test_async_iterable(stream: Server) -> None:
    answer = httpx.get(stream.url)
    assert answer.text == "1\n2\n3\n"
    assert answer.headers["transfer-encoding"] == "chunked"


def test_error_in_a_stream_is_no_well_formed_end(stream: Server) -> None:
    raw = ask(stream, b"GET /fail HTTP/1.1\r\nHost: h\r\n\r\n")
    assert raw.endswith(b"2\r\n2\n\r\n")
    with stream.connect() as sock:
        sock.sendall(b"GET /fail HTTP/1.0\r\n\r\n")
        # Without chunks the end of the connection would be the end of the body.
        with pytest.raises(ConnectionResetError):
            read_all(sock)


def test_disconnect_closes_a_stream_once() -> None:
    with run("stream") as server:
        with server.connect() as sock:
            sock.sendall(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n")
            assert sock.recv(1000)
        server.wait_for("note: aclose after 2")
        assert httpx.get(server.url).status_code == 200
        server.stop()
        assert server.log().count("aclose") == 2


def test_backpressure(stream: Server) -> None:
    with stream.connect() as sock:
        sock.sendall(b"GET /big HTTP/1.1\r\nHost: h\r\n\r\n")
        assert sock.recv(1000)
        # Nobody reads: what was made is bounded by the buffers (a socket's is a few MB).
        with pytest.raises(AssertionError):
            stream.wait_for("note: made 500", timeout=2)
    stream.wait_for(r"note: aclose after \d{2}")


@pytest.mark.parametrize("query", ["", "keep"])
def test_disconnect(query: str) -> None:
    with run("bare") as server:
        with server.connect() as sock:
            sock.sendall(f"GET /hang?{query} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
            server.wait_for("note: hanging")
        server.wait_for("note: finished" if query else "note: cancelled")
        assert ("note: cancelled" in server.log()) is not bool(query)


def test_half_closed_client_is_answered(bare: Server) -> None:
    with bare.connect() as sock:
        sock.sendall(b"GET /sleep?0.2 HTTP/1.1\r\nHost: h\r\n\r\n")
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.setting("sendfile")
@pytest.mark.parametrize("app", ["file", "async_file"])
@pytest.mark.parametrize("loop", ["", ASYNCIO], ids=["uvloop", "asyncio"])
@pytest.mark.parametrize("sendfile", [True, False])
def test_file(tmp_path: Path, app: str, sendfile: bool, loop: str) -> None:
    path = tmp_path / "big"
    data = bytes(range(256)) * 40_000
    path.write_bytes(data)
    with run(app, extra_config=f"{loop}sendfile = {sendfile}\n") as server:
        with httpx.Client() as client:
            # Twice on one connection: the transport goes on after sendfile.
            for _ in range(2):
                answer = client.get(f"{server.url}/?{path}")
                assert answer.content == data
                assert ("content-length" in answer.headers) is sendfile
        with server.connect() as sock:
            sock.sendall(f"GET /?{path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
            assert sock.recv(10)
        # The client has gone in the middle; the next one is served.
        assert httpx.get(f"{server.url}/?{path}").content == data


def test_access_log() -> None:
    config = 'accesslog = "-"\naccess_log_format = "log: %(r)s %(s)s %(B)s %({x-a}i)s %(h)s"\n'
    with run("plain", extra_config=config) as server:
        httpx.get(f"{server.url}/p?q", headers={"X-A": "seen"})
        server.wait_for(r"log: GET /p\?q HTTP/1\.1 200 1 seen 127\.0\.0\.1")
        ask(server, b"GET / HTTP/1.1\r\n\r\n")
        server.wait_for(r"log: .* 400 ")


def test_hooks() -> None:
    config = (
        "def pre_request(worker, req): worker.log.info('before %s', req.path)\n"
        "def post_request(worker, req, environ, resp): worker.log.info('after %s', resp.status)\n"
    )
    with run("bare", extra_config=config) as server:
        httpx.get(f"{server.url}/p")
        server.wait_for("before /p(.|\n)*after 200 OK")
