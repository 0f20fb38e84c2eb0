"""Start, reload, drain, exit: what becomes of requests and processes."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import Server, serve

APPS = Path(__file__).parent / "server_apps"


def run(app: str, **options: Any) -> Any:
    return serve(f"apps:{app}", cwd=APPS, **options)


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


class Load:
    """Clients that ask without a pause, on new or on kept connections."""

    def __init__(self, server: Server, *, clients: int, keep_alive: bool) -> None:
        self.server = server
        self.keep_alive = keep_alive
        self.answered = 0
        self.failures: list[str] = []
        # New connections that were reset without a byte, once the server was to end.
        self.resets: list[str] = []
        self.stopped = threading.Event()
        self.refused_is_the_end = False
        self.changed = threading.Condition()
        self.threads = [threading.Thread(target=self._client) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self.threads)

    def wait(self, more: int) -> None:
        """Wait until so many more requests were answered."""
        with self.changed:
            goal = self.answered + more
            assert self.changed.wait_for(lambda: self.answered >= goal or self.failures, 30)

    def _client(self) -> None:
        sock: socket.socket | None = None
        answers = 0
        while not self.stopped.is_set():
            try:
                if sock is None:
                    sock, answers = self.server.connect(), 0
            except ConnectionRefusedError:
                if self.refused_is_the_end:
                    break
                raise
            try:
                last = b"" if self.keep_alive else b"Connection: close\r\n"
                sock.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n" + last + b"\r\n")
                answer = self._read(sock)
            except (OSError, AssertionError) as exc:
                new = not answers and self.refused_is_the_end
                if new and isinstance(exc, ConnectionResetError | BrokenPipeError):
                    self.resets.append(repr(exc))
                else:
                    self.failures.append(repr(exc))
                sock.close()
                break
            answers += 1
            with self.changed:
                self.answered += 1
                self.changed.notify_all()
            if b"Connection: close\r\n" in answer:
                sock.close()
                sock = None
        if sock is not None:
            sock.close()

    def _read(self, sock: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            try:
                piece = sock.recv(65536)
            except ConnectionResetError:
                assert not data, "reset in the head"
                raise
            assert piece, f"closed after {len(data)} bytes"
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(body) < length:
            try:
                piece = sock.recv(65536)
            except ConnectionResetError as exc:
                raise AssertionError("reset in the body") from exc
            assert piece, "closed in the body"
            body += piece
        return head + b"\r\n"


@pytest.mark.parametrize("app", ["bare", "plain"])
@pytest.mark.parametrize("keep_alive", [True, False])
def test_reload_under_load_fails_no_request(app: str, keep_alive: bool) -> None:
    with (
        run(app, workers=2) as server,
        Load(server, clients=8, keep_alive=keep_alive) as load,
    ):
        load.wait(100)
        for reload in (1, 2):
            server.send_signal(signal.SIGHUP)
            server.wait_for("greenroom: threads ", count=2 + 2 * reload)
            server.wait_for("Worker exiting", count=2 * reload)
            load.wait(100)
        load.stopped.set()
    assert load.failures == []


@pytest.mark.parametrize("keep_alive", [True, False])
def test_term_under_load_answers_what_was_accepted(keep_alive: bool) -> None:
    with (
        run("bare") as server,
        Load(server, clients=8, keep_alive=keep_alive) as load,
    ):
        load.wait(100)
        load.refused_is_the_end = True
        assert server.stop() == 0
    # Between the worker's last look into the backlog and its end, the kernel may still
    # have taken a connection, which is then reset: without a byte of an answer, and
    # never one that had one before.
    assert load.failures == []
    assert len(load.resets) <= len(load.threads)


def test_term_answers_requests_and_closes_idle_connections(tmp_path: Path) -> None:
    with run("bare", extra_config="keepalive = 60\n") as server:
        idle, busy, fresh = server.connect(), server.connect(), server.connect()
        with idle, busy, fresh:
            idle.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            assert idle.recv(65536).startswith(b"HTTP/1.1 200")
            time.sleep(1.2)  # It counts as idle when it was not used for a second.
            request = f"GET /until?{tmp_path}/over HTTP/1.1\r\nHost: h\r\n\r\n"
            busy.sendall(2 * request.encode())
            server.wait_for("note: waiting")
            server.send_signal(signal.SIGTERM)
            assert idle.recv(100) == b""
            fresh.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            answer = read_all(fresh)
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"Connection: close\r\n" in answer
            (tmp_path / "over").touch()
            answer = read_all(busy)
            assert answer.startswith(b"HTTP/1.1 200")
            # It was told that no further one would be answered.
            assert b"Connection: close\r\n" in answer
            assert answer.count(b"HTTP/1.1 ") == 1
        assert server.wait() == 0


@pytest.mark.setting("graceful_timeout")
def test_graceful_timeout_cancels_the_rest() -> None:
    with run("bare", extra_config="graceful_timeout = 2\n") as server, server.connect() as sock:
        sock.sendall(b"GET /hang HTTP/1.1\r\nHost: h\r\n\r\n")
        server.wait_for("note: hanging")
        started = time.monotonic()
        assert server.stop() == 0
        assert 1 < time.monotonic() - started < 20
        assert "note: cancelled" in server.log()


def test_a_stuck_thread_does_not_keep_the_process() -> None:
    with run("plain", extra_config="graceful_timeout = 4\n") as server, server.connect() as sock:
        sock.sendall(b"GET /sleep?60 HTTP/1.1\r\nHost: h\r\n\r\n")
        server.wait_for("note: sleeping")
        assert server.stop() == 0
        # It came to its own end; it was not killed.
        assert "Worker exiting" in server.log()
        assert "Traceback" not in server.log()


def test_streams_are_closed_at_the_end() -> None:
    with run("stream", extra_config="graceful_timeout = 1\n") as server, server.connect() as sock:
        sock.sendall(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n")
        assert sock.recv(1000)
        assert server.stop() == 0
        assert "note: aclose after 2" in server.log()


@pytest.mark.setting("worker_int")
@pytest.mark.parametrize("sig", [signal.SIGQUIT, signal.SIGINT])
def test_quit_ends_at_once(sig: int) -> None:
    config = "def worker_int(worker): worker.log.info('hook: int')\n"
    with run("bare", extra_config=config) as server, server.connect() as sock:
        sock.sendall(b"GET /hang HTTP/1.1\r\nHost: h\r\n\r\n")
        server.wait_for("note: hanging")
        started = time.monotonic()
        server.stop(sig)
        # graceful_timeout is 30.
        assert time.monotonic() - started < 15
        assert "hook: int" in server.log()


def test_usr1_reopens_the_logs(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    with run("bare", extra_config=f"accesslog = {str(path)!r}\n") as server:
        httpx.get(f"{server.url}/one")
        path.rename(tmp_path / "old.log")
        os.kill(server.workers()[0], signal.SIGUSR1)
        os.kill(server.workers()[0], signal.SIGWINCH)
        deadline = time.monotonic() + 10
        logged = ""
        while "/two" not in logged and time.monotonic() < deadline:
            httpx.get(f"{server.url}/two")
            logged = path.read_text() if path.exists() else ""
        assert "/two" in logged
        assert "/one" in (tmp_path / "old.log").read_text()


def test_a_worker_ends_with_its_master() -> None:
    with run("bare") as server:
        worker = server.workers()[0]
        server.send_signal(signal.SIGKILL)
        server.wait_for("Parent changed")
        server.wait_for(rf"Worker exiting \(pid: {worker}\)")
        # Its output was closed too: the whole process has ended.
        server.wait()
        assert server.ended


def test_the_end_of_a_lifespan_is_bounded() -> None:
    config = "graceful_timeout = 3\n"
    with run("starting", env={"ENDLESS": "1"}, extra_config=config) as server:
        started = time.monotonic()
        assert server.stop() == 0
        assert 1 < time.monotonic() - started < 20
        assert "Abandoned: the end of what lasts" in server.log()
        assert "Worker exiting" in server.log()


def test_what_threads_do_after_an_answer_is_waited_for() -> None:
    with run("plain") as server:
        assert httpx.get(f"{server.url}/late").text == "late"
        server.wait_for("note: closing")
        assert server.stop() == 0
        assert "note: closed" in server.log()


def test_an_interrupt_in_a_task_drains() -> None:
    with run("bare", extra_config="graceful_timeout = 3\n") as server:
        with server.connect() as other, server.connect() as sock:
            other.sendall(b"GET /sleep?1 HTTP/1.1\r\nHost: h\r\n\r\n")
            server.wait_for("note: sleeping")
            sock.sendall(b"GET /interrupt-in-child HTTP/1.1\r\nHost: h\r\n\r\n")
            assert read_all(other).startswith(b"HTTP/1.1 200")
        server.wait_for("greenroom: threads ", count=2)


@pytest.mark.parametrize("path", ["/exit", "/exit-in-child"])
@pytest.mark.parametrize("app", ["bare", "plain"])
def test_system_exit_drains(app: str, path: str) -> None:
    if app == "plain" and path == "/exit-in-child":
        return
    with run(app, threads=2, extra_config="graceful_timeout = 3\n") as server:
        with server.connect() as other, server.connect() as sock:
            other.sendall(b"GET /sleep?1 HTTP/1.1\r\nHost: h\r\n\r\n")
            server.wait_for("note: sleeping")
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
            assert sock.recv(100) == b""
            assert read_all(other).startswith(b"HTTP/1.1 200")
        server.wait_for("exited with code 7")
        server.wait_for("greenroom: threads ", count=2)
        assert httpx.get(server.url).status_code == 200


@pytest.mark.setting("max_requests")
def test_max_requests() -> None:
    with run("bare", extra_config="max_requests = 3\n") as server:
        pids = {httpx.get(server.url).json()["pid"] for _ in range(3)}
        server.wait_for("Autorestarting worker")
        server.wait_for("greenroom: threads ", count=2)
        pids |= {httpx.get(server.url).json()["pid"]}
        assert len(pids) == 2


@pytest.mark.setting("worker_connections")
def test_worker_connections_is_a_bound() -> None:
    with run("bare", extra_config="worker_connections = 2\nkeepalive = 1\n") as server:
        first, second, third = server.connect(), server.connect(), server.connect()
        with first, second, third:
            for sock in (first, second):
                sock.sendall(b"GET /sleep?1 HTTP/1.1\r\nHost: h\r\n\r\n")
            server.wait_for("note: sleeping", count=2)
            third.sendall(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            third.settimeout(0.3)
            with pytest.raises(TimeoutError):
                third.recv(10)
            third.settimeout(10)
            # The others end after their keep-alive time; nobody was reset.
            assert read_all(third).startswith(b"HTTP/1.1 200")


@pytest.mark.setting("reload", "reload_engine")
def test_reload_on_change(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "async def app(environ, start_response):\n"
        "    start_response('200 OK', [])\n    return [b'one']\n"
    )
    config = "reload = True\nreload_engine = 'poll'\n"
    with serve("app:app", cwd=tmp_path, extra_config=config) as server:
        assert httpx.get(server.url).text == "one"
        second = (tmp_path / "app.py").read_text().replace("one", "second")
        server.save(tmp_path / "app.py", second, "Worker reloading: ")
        server.wait_for("greenroom: threads ", count=2)
        assert httpx.get(server.url).text == "second"


def test_options_and_startup() -> None:
    with run("starting") as server:
        server.wait_for("at most 11 parked")
        assert "9 coroutine views on the loop" in server.log()
        assert httpx.get(server.url).text == "True"
        answer = httpx.post(server.url, content=b"x" * 2_000_000)
        assert answer.status_code == 503


def test_boot_failure_ends_gunicorn_with_its_reason() -> None:
    with run("starting", env={"FAIL": "1"}, ready=False) as server:
        assert server.wait() == 3
        assert server.log().count("The worker can't start: no database today") == 1
        assert len(server.workers()) == 1


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ("strip_header_spaces = True", "strip_header_spaces"),
        ("casefold_http_method = True", "casefold_http_method"),
        ("permit_obsolete_folding = True", "permit_obsolete_folding"),
    ],
)
def test_settings_that_are_not_honoured(config: str, name: str) -> None:
    with run("bare", extra_config=config + "\n", ready=False) as server:
        assert server.wait() != 0
        assert f"greenroom.Worker can't honour the setting {name}" in server.log()
        assert "Booting worker" not in server.log() or len(server.workers()) == 1


def test_gevent_is_refused(tmp_path: Path) -> None:
    # What gevent leaves behind when it has patched a process.
    config = (
        "import sys, types\n"
        "sys.modules['gevent'] = types.ModuleType('gevent')\n"
        "sys.modules['gevent.monkey'] = monkey = types.ModuleType('gevent.monkey')\n"
        "monkey.is_module_patched = lambda name: name == 'socket'\n"
    )
    with run("bare", extra_config=config, ready=False) as server:
        assert server.wait() != 0
        assert "gevent has monkey-patched 'socket'" in server.log()
        assert "monkey.patch_all()" in server.log()


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGQUIT])
def test_a_signal_while_the_worker_boots_is_obeyed(tmp_path: Path, sig: int) -> None:
    """As after a deploy that is taken back at once: it isn't lost until the master kills."""
    (tmp_path / "slow_app.py").write_text(
        "import time\n"
        "print('importing', flush=True)\n"
        "time.sleep(0.5)\n"
        "async def application(environ, start_response):\n"
        "    start_response('200 OK', [])\n"
        "    return [b'']\n"
    )
    with serve("slow_app:application", cwd=tmp_path, ready=False) as server:
        server.wait_for("importing")
        assert server.stop(sig, timeout=15) == 0
