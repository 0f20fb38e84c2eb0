"""The end of a worker, whatever begins it: who is told, what goes on, what hurries it."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import Server, serve

APPS = Path(__file__).parent / "server_apps"
# Far more than any test takes: who waits for it has failed.
LONG = "graceful_timeout = 60\n"


def run(app: str, **options: Any) -> Any:
    return serve(app if ":" in app else f"life:{app}", cwd=APPS, **options)


def listen(server: Server, path: str = "/") -> socket.socket:
    """A client that has read the first event."""
    sock = server.connect()
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    data = b""
    while b"data: tick" not in data:
        piece = sock.recv(65536)
        assert piece, data
        data += piece
    return sock


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


def test_streams_that_are_told_end_well_and_at_once() -> None:
    with run("events", extra_config=LONG) as server:
        clients = [listen(server) for _ in range(20)]
        started = time.monotonic()
        server.send_signal(signal.SIGTERM)
        for sock in clients:
            with sock:
                rest = read_all(sock)
                assert b"data: bye\n\n\r\n" in rest
                assert rest.endswith(b"\r\n0\r\n\r\n")
        assert server.wait() == 0
        assert time.monotonic() - started < 20
        assert server.log().count("note: told") == 20
        assert "Cancelling" not in server.log()


def test_a_stream_that_does_not_listen_is_cancelled_at_the_end() -> None:
    with run("events", extra_config="graceful_timeout = 3\n") as server:
        with listen(server) as told, listen(server, "/deaf?secret") as deaf:
            started = time.monotonic()
            server.send_signal(signal.SIGTERM)
            assert read_all(told).endswith(b"\r\n0\r\n\r\n")
            # It sees that its stream isn't complete.
            assert not read_all(deaf).endswith(b"\r\n0\r\n\r\n")
            assert time.monotonic() - started > 2
        assert server.wait() == 0
        assert "Cancelling 1 request that did not end: GET /deaf\n" in server.log()
        assert "note: cancelled" in server.log()


@pytest.mark.parametrize("path", ["/ask", "/wait"])
def test_streams_on_threads_are_told(path: str) -> None:
    with run("plain_events", threads=2, extra_config=LONG) as server, listen(server, path) as sock:
        started = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert read_all(sock).endswith(b"data: bye\n\n\r\n0\r\n\r\n")
        assert server.wait() == 0
        assert time.monotonic() - started < 20


@pytest.mark.parametrize("cause", ["max_requests", "exit", "worker", "reload"])
def test_whatever_begins_the_end(cause: str, tmp_path: Path) -> None:
    config = LONG
    if cause == "max_requests":
        config += "max_requests = 1\n"
    elif cause == "reload":
        (tmp_path / "watched.txt").write_text("one")
        config += (
            "reload = True\nreload_engine = 'poll'\n"
            f"reload_extra_files = [{str(tmp_path / 'watched.txt')!r}]\n"
        )
    with run("events", extra_config=config) as server, listen(server) as sock:
        if cause == "worker":
            os.kill(server.workers()[0], signal.SIGTERM)
        elif cause == "reload":
            server.save(tmp_path / "watched.txt", "two", "Worker reloading: ")
        else:
            with server.connect() as other:
                path = "/exit" if cause == "exit" else "/hello"
                other.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
                read_all(other)
        assert read_all(sock).endswith(b"data: bye\n\n\r\n0\r\n\r\n")
        server.wait_for("greenroom: threads ", count=2)
        assert httpx.get(f"{server.url}/hello").text == "hello"


@pytest.mark.once
def test_the_heart_beats_while_draining() -> None:
    """The arbiter, which goes on, would abort it after two seconds."""
    with run("blocking", extra_config=LONG + "timeout = 2\n") as server, server.connect() as sock:
        sock.sendall(b"GET /sleep?4.5 HTTP/1.1\r\nHost: h\r\n\r\n")
        server.wait_for("note: sleeping")
        os.kill(server.workers()[0], signal.SIGTERM)
        assert read_all(sock).startswith(b"HTTP/1.1 200")
        server.wait_for("greenroom: threads ", count=2)
        assert "WORKER TIMEOUT" not in server.log()


def test_term_twice_is_term_once(tmp_path: Path) -> None:
    with run("blocking", extra_config=LONG) as server, server.connect() as sock:
        sock.sendall(f"GET /until?{tmp_path}/over HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        server.wait_for("note: waiting")
        for _ in range(3):
            os.kill(server.workers()[0], signal.SIGTERM)
            time.sleep(0.2)
        server.send_signal(signal.SIGTERM)
        (tmp_path / "over").touch()
        assert read_all(sock).startswith(b"HTTP/1.1 200")
        assert server.wait() == 0


@pytest.mark.parametrize("sig", [signal.SIGQUIT, signal.SIGINT])
def test_quit_hurries_a_drain(sig: int) -> None:
    config = LONG + "def worker_int(worker): raise RuntimeError('the hook fails')\n"
    with run("events", extra_config=config) as server, listen(server, "/deaf") as sock:
        worker = server.workers()[0]
        os.kill(worker, signal.SIGTERM)
        sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(20)
        started = time.monotonic()
        os.kill(worker, sig)
        read_all(sock)
        server.wait_for(rf"Worker exiting \(pid: {worker}\)")
        assert time.monotonic() - started < 20
        assert "note: cancelled" in server.log()
        # A hook that fails doesn't keep it.
        assert "Exception in worker_int hook" in server.log()


def test_quit_hurries_the_end_of_a_lifespan() -> None:
    with run("apps:starting", env={"ENDLESS": "1"}, extra_config=LONG) as server:
        worker = server.workers()[0]
        os.kill(worker, signal.SIGTERM)
        server.wait_for("note: ending")
        started = time.monotonic()
        os.kill(worker, signal.SIGQUIT)
        server.wait_for(rf"Worker exiting \(pid: {worker}\)")
        assert time.monotonic() - started < 20
        assert "Abandoned: the end of what lasts" in server.log()


@pytest.mark.once
def test_max_requests_fails_no_request() -> None:
    config = LONG + "max_requests = 20\nmax_requests_jitter = 10\n"
    with run("blocking", workers=2, extra_config=config) as server:
        with httpx.Client() as client:
            for _ in range(150):
                assert client.get(server.url).status_code == 200
        # At least: each answers 30 at the most.
        server.wait_for("Autorestarting worker", count=4)
        assert "WORKER TIMEOUT" not in server.log()


def test_preload() -> None:
    with run("events", workers=2, extra_config=LONG + "preload_app = True\n") as server:
        assert server.log().count("note: imported") == 1
        assert httpx.get(f"{server.url}/hello").text == "hello"
        # What the master loaded is unset in its children, and set in these.
        with listen(server) as sock:
            server.send_signal(signal.SIGHUP)
            assert read_all(sock).endswith(b"data: bye\n\n\r\n0\r\n\r\n")
        server.wait_for("greenroom: threads ", count=4)
        with listen(server) as sock:
            server.send_signal(signal.SIGTERM)
            assert read_all(sock).endswith(b"data: bye\n\n\r\n0\r\n\r\n")
        assert server.wait() == 0


def test_the_drain_of_a_socket_of_its_own(tmp_path: Path) -> None:
    with socket.socket() as reserved:
        # Bound without listening: gunicorn's processes can have this port, nobody else.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        host, port = reserved.getsockname()
        config = LONG + f"bind = '{host}:{port}'\nreuse_port = True\n"
        with run("blocking", workers=2, extra_config=config, ready=False) as server:
            server.wait_for("greenroom: threads ", count=2)
            server.address = (host, port)
            with server.connect() as sock:
                sock.sendall(f"GET /until?{tmp_path}/over HTTP/1.1\r\nHost: h\r\n\r\n".encode())
                server.wait_for("note: waiting")
                server.send_signal(signal.SIGTERM)
                # The other one has nothing to wait for.
                server.wait_for("Worker exiting")
                (tmp_path / "over").touch()
                assert read_all(sock).startswith(b"HTTP/1.1 200")
            assert server.wait() == 0
