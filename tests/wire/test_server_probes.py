"""Liveness and readiness on a socket of their own, as a prober sees them."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import Server, reserved_port, serve

APPS = Path(__file__).parent / "server_apps"
Address = tuple[str, int]
LONG = "graceful_timeout = 60\n"


@contextmanager
def run(*, config: str = "", **options: Any) -> Iterator[tuple[Server, Address]]:
    """A server, and where its probes are."""
    with reserved_port() as port:
        probes = f"127.0.0.1:{port}"
        config = f"bind = [bind, {probes!r}]\n{LONG}{config}"
        env = {"PROBES": probes}
        with serve("life:optional", cwd=APPS, env=env, extra_config=config, **options) as server:
            yield server, ("127.0.0.1", port)


def ask(
    address: Address, target: str, method: str = "GET", timeout: float = 20, more: str = ""
) -> tuple[int, str]:
    """Status, and all that was answered."""
    with socket.create_connection(address, timeout) as sock:
        sock.sendall(f"{method} {target} HTTP/1.1\r\nHost: h\r\n{more}\r\n".encode())
        data = b""
        while piece := sock.recv(65536):
            data += piece
    match = re.match(rb"HTTP/1\.1 (\d+) ", data)
    assert match, data
    return int(match[1]), data.decode()


class Poll:
    """Asks again and again; counts what is answered."""

    def __init__(self, address: Address, target: str, pause: float = 0.01) -> None:
        self.seen: Counter[Any] = Counter()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(address, target, pause))

    def __enter__(self) -> Poll:
        self.thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.stopped.set()
        self.thread.join(60)

    def _run(self, address: Address, target: str, pause: float) -> None:
        while not self.stopped.wait(pause):
            try:
                self.seen[ask(address, target)[0]] += 1
            except (OSError, AssertionError) as exc:
                self.seen[repr(exc)] += 1


def until_there_is(file: Path) -> bytes:
    return f"GET /until?{file} HTTP/1.1\r\nHost: h\r\n\r\n".encode()


def until(condition: Any, timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_is_answered_though_connections_are_used_up() -> None:
    config = (
        "worker_connections = 1\naccesslog = '-'\n"
        "def pre_request(worker, request): worker.log.info('hook: %s', request.path)\n"
    )
    with run(config=config) as (server, address), server.connect() as busy:
        busy.sendall(b"GET /sleep?60 HTTP/1.1\r\nHost: h\r\n\r\n")
        server.wait_for("note: sleeping")
        with server.connect() as other:
            other.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            for _ in range(3):
                for path in ("/livez", "/readyz", "/readyz?verbose"):
                    status, answer = ask(address, path)
                    assert status == 200
                    assert answer.endswith("\r\n\r\nok\n")
                    assert "Connection: close\r\n" in answer
                    assert "Cache-Control: no-store\r\n" in answer
            other.settimeout(0.2)
            with pytest.raises(TimeoutError):
                other.recv(1)
        status, answer = ask(address, "/readyz", "HEAD")
        assert status == 200
        assert answer.endswith("\r\n\r\n")
        # Not the site's.
        for path in ("/", "/sleep?3", "/livez/", "/readyz/x", "//livez"):
            assert ask(address, path)[0] == 404
        for method in ("POST", "OPTIONS", "DELETE"):
            status, answer = ask(address, "/livez", method)
            assert status == 405
            assert "Allow: GET, HEAD\r\n" in answer
        assert ask(address, "/livez", more="X: " + "x" * 3000 + "\r\n")[0] == 431
        assert ask(address, "/livez", more="Content-Length: 100000\r\n")[0] == 413
        # Neither hooks nor the access log know of them.
        assert "hook: /livez" not in server.log()
        assert "hook: /sleep" in server.log()
        assert '"GET /livez' not in server.log()
        server.send_signal(signal.SIGQUIT)


def test_on_the_site_they_are_the_sites() -> None:
    with run() as (server, _):
        assert httpx.get(f"{server.url}/livez").text == str(server.workers()[0])


def test_a_draining_worker_is_live_and_not_ready(tmp_path: Path) -> None:
    with run() as (server, address), server.connect() as sock:
        sock.sendall(until_there_is(tmp_path / "over"))
        server.wait_for("note: waiting")
        server.send_signal(signal.SIGTERM)
        until(lambda: ask(address, "/readyz")[0] == 503)
        assert ask(address, "/readyz")[1].endswith("\r\n\r\ndraining\n")
        assert ask(address, "/livez")[0] == 200
        assert ask(address, "/")[0] == 404
        (tmp_path / "over").touch()
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        assert server.wait() == 0


def test_the_end_of_one_worker_is_not_that_of_the_service(tmp_path: Path) -> None:
    with run(workers=2) as (server, address), server.connect() as sock:
        with Poll(address, "/readyz") as ready, Poll(address, "/livez") as live:
            sock.sendall(until_there_is(tmp_path / "over"))
            busy = int(server.wait_for(r"note: waiting in (\d+)")[1])
            idle = next(each for each in server.workers() if each != busy)
            os.kill(busy, signal.SIGTERM)
            before = ready.seen[200]
            until(lambda: ready.seen[200] > before + 10)
            (tmp_path / "over").touch()
            assert sock.recv(65536).startswith(b"HTTP/1.1 200")
            server.wait_for("greenroom: threads ", count=3)
            os.kill(idle, signal.SIGTERM)
            server.wait_for("greenroom: threads ", count=4)
        assert set(ready.seen) == set(live.seen) == {200}
        assert ready.seen[200] > 20


def test_all_workers_drain(tmp_path: Path) -> None:
    with run(workers=2) as (server, address):
        socks = [server.connect() for _ in range(2)]
        for number, sock in enumerate(socks):
            sock.sendall(until_there_is(tmp_path / f"over{number}"))
        server.wait_for("note: waiting", count=2)
        server.send_signal(signal.SIGTERM)
        until(lambda: ask(address, "/readyz")[0] == 503)
        with Poll(address, "/readyz") as ready:
            for number, sock in enumerate(socks):
                before = ready.seen[503]
                until(lambda before=before: ready.seen[503] > before + 5)
                if number == 1:
                    # With the last one, the socket is gone.
                    ready.stopped.set()
                    ready.thread.join(60)
                (tmp_path / f"over{number}").touch()
                assert sock.recv(65536).startswith(b"HTTP/1.1 200")
                sock.close()
        assert set(ready.seen) == {503}
        assert server.wait() == 0


@pytest.mark.parametrize(
    "config", ["", pytest.param("preload_app = True\n", marks=pytest.mark.once)]
)
def test_a_reload_never_shows(config: str) -> None:
    with (
        run(workers=2, config=config) as (server, address),
        Poll(address, "/readyz") as ready,
        Poll(address, "/livez") as live,
    ):
        for reload in (1, 2):
            # One of the old ones lives on for a while.
            with server.connect() as sock:
                sock.sendall(b"GET /sleep?1.5 HTTP/1.1\r\nHost: h\r\n\r\n")
                server.wait_for("note: sleeping", count=reload)
                server.send_signal(signal.SIGHUP)
                server.wait_for("greenroom: threads ", count=2 + 2 * reload)
                server.wait_for("Worker exiting", count=2 * reload)
                assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        ready.stopped.set()
        live.stopped.set()
        ready.thread.join(30)
        live.thread.join(30)
        assert set(ready.seen) == set(live.seen) == {200}
        assert ready.seen[200] > 50


def test_a_stuck_loop_answers_nothing() -> None:
    with run() as (server, address), server.connect() as sock:
        sock.sendall(b"GET /block?2.5 HTTP/1.1\r\nHost: h\r\n\r\n")
        server.wait_for("has not turned")
        with pytest.raises(TimeoutError):
            ask(address, "/livez", timeout=0.3)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        assert ask(address, "/livez")[0] == 200


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "probes.sock"
    config = f"bind = [bind, 'unix:{path}']\n"
    env = {"PROBES": f"unix:{path}"}
    with serve("life:optional", cwd=APPS, env=env, extra_config=config) as server:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            assert client.get("http://probes/readyz").text == "ok\n"
        assert httpx.get(f"{server.url}/readyz").status_code == 200


@pytest.mark.parametrize(
    ("probes", "config", "said"),
    [
        (
            "127.0.0.1:1",
            "",
            r"is none of gunicorn's binds, which are \S+: add it to them, as bind = ",
        ),
        ("unix:probes.sock", "bind = 'unix:probes.sock'\n", "is gunicorn's only bind: add one"),
        ("127.0.0.1:http", "", "is no address: 'http' is not a valid port number"),
    ],
)
def test_an_address_that_is_not_bound(tmp_path: Path, probes: str, config: str, said: str) -> None:
    env = {"PROBES": probes, "PYTHONPATH": f"{APPS}:{os.environ.get('PYTHONPATH', '')}"}
    with serve("life:optional", cwd=tmp_path, env=env, extra_config=config, ready=False) as server:
        assert server.wait() == 3
        assert re.search(f"The worker can't start: .*{said}", server.log())
