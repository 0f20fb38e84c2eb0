"""A loop that doesn't turn: what is said of it, by the watchdog and at the abort."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import serve

APPS = Path(__file__).parent / "server_apps"
NEVER_TURNED = "The event loop has not turned"


def run(app: str, **options: Any) -> Any:
    return serve(app if ":" in app else f"life:{app}", cwd=APPS, **options)


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


def test_a_stall_is_named_and_its_end_too() -> None:
    with run("blocking") as server:
        assert NEVER_TURNED not in server.log()
        assert httpx.get(f"{server.url}/block?0.8&secret").status_code == 200
        begun = server.wait_for(rf"{NEVER_TURNED} for (\d+) ms.* It runs GET /block, in block \(")
        over = server.wait_for(r"turns again: it was blocked for (\d+) ms by GET /block\.$")
        assert int(begun[1]) >= 100
        assert int(over[1]) >= 700
        assert server.log().count(NEVER_TURNED) == 1
        # The line, and who called it.
        stack = server.log()[begun.end() : over.start()]
        assert "time.sleep(seconds)" in stack
        assert ", in blocking\n" in stack
        assert "secret" not in server.log()


def test_a_stall_of_a_child_task() -> None:
    with run("blocking") as server:
        httpx.get(f"{server.url}/child")
        server.wait_for(rf"{NEVER_TURNED}.* It runs the task blocking.<locals>.child, in block \(")


@pytest.mark.parametrize("path", ["/sleep?3", "/busy?3"])
def test_a_process_that_was_stopped_is_not_accused(path: str) -> None:
    with run("blocking") as server, server.connect() as sock:
        worker = server.workers()[0]
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
        server.wait_for("note: (busy|sleeping)")
        for length in (0.12, 0.2, 0.4, 0.6):
            time.sleep(0.2)
            os.kill(worker, signal.SIGSTOP)
            time.sleep(length)
            os.kill(worker, signal.SIGCONT)
        assert read_all(sock).startswith(b"HTTP/1.1 200")
        assert NEVER_TURNED not in server.log()


def test_the_watchdog_can_be_turned_off() -> None:
    with run("optional", env={"UNWATCHED": "1"}) as server:
        assert httpx.get(f"{server.url}/block?0.8").status_code == 200
        assert NEVER_TURNED not in server.log()


@pytest.mark.setting("timeout", "worker_abort")
def test_what_was_aborted_is_told() -> None:
    config = "timeout = 3\ndef worker_abort(worker): worker.log.info('hook: abort')\n"
    with run("blocking", extra_config=config) as server:
        socks = [server.connect() for _ in range(14)]
        for sock in socks[:12]:
            sock.sendall(b"GET /suspended?secret HTTP/1.1\r\nHost: h\r\n\r\n")
        server.wait_for("note: suspended", count=12)
        socks[12].sendall(b"GET /sleep?4 HTTP/1.1\r\nHost: h\r\n\r\n")
        server.wait_for("note: sleeping")
        socks[13].sendall(b"GET /block?3600&secret HTTP/1.1\r\nHost: h\r\n\r\n")
        server.wait_for("hook: abort")
        log = server.log()
        report = log[log.index("Aborted: the event loop was stuck.") : log.index("hook: abort")]
        assert "It ran GET /block:\n" in report
        assert "    time.sleep(seconds)\n" in report
        # In flight, the oldest first.
        assert re.search(r"In flight, .*: GET /suspended \(\d+\.\d s\), .* and 4 more\n", report)
        # Stacks of what is suspended in greenlets, some of them.
        assert report.count("Suspended in synchronous code, GET /suspended:\n") == 10
        assert "Suspended too: 2 more" in report
        assert report.count(", in wait_in_a_bridge\n    await_(asyncio.sleep(3600))\n") == 10
        assert "secret" not in log
        # The loop turns again: the others are answered, then the worker is another.
        socks[12].settimeout(20)
        assert read_all(socks[12]).startswith(b"HTTP/1.1 200")
        for sock in socks:
            sock.close()
        server.wait_for("greenroom: threads ", count=2)
        server.wait_for("exited with code 1")
        assert httpx.get(server.url).status_code == 200


@pytest.mark.once
def test_a_hook_of_the_abort_that_fails() -> None:
    config = "timeout = 3\ndef worker_abort(worker): raise RuntimeError('the hook fails')\n"
    with run("blocking", extra_config=config) as server, server.connect() as sock:
        sock.sendall(b"GET /block?3600 HTTP/1.1\r\nHost: h\r\n\r\n")
        server.wait_for("An error while the worker was aborted")
        server.wait_for("greenroom: threads ", count=2)
        server.wait_for("exited with code 1")


def test_a_worker_that_hangs_while_booting(tmp_path: Path) -> None:
    """gunicorn doesn't abort it; somebody may."""
    (tmp_path / "hanging.py").write_text("import time\nprint('here')\ntime.sleep(3600)\n")
    with serve("hanging:app", cwd=tmp_path, ready=False) as server:
        server.wait_for("here")
        os.kill(server.workers()[0], signal.SIGABRT)
        found = server.wait_for("Aborted: the worker hung while booting, in\n")
        server.wait_for("Booting worker", count=2)
        told = server.log()[found.end() :]
        assert re.search(r"hanging\.py\", line [23], in <module>", told)
        # Only what is below the worker.
        assert "arbiter.py" not in told


@pytest.mark.once
def test_what_c_code_keeps_is_said_by_faulthandler() -> None:
    """Nothing of Python's runs any more: the arbiter kills, but there is a stack."""
    env = {"PYTHONFAULTHANDLER": "1"}
    with run("blocking", extra_config="timeout = 2\n", env=env) as server:
        with server.connect() as sock:
            sock.sendall(b"GET /in-c HTTP/1.1\r\nHost: h\r\n\r\n")
            server.wait_for("note: in C")
            server.wait_for("Fatal Python error: Aborted")
            server.wait_for(r"life\.py\", line \d+ in keep_the_lock")
        server.wait_for("was sent SIGKILL")
        server.wait_for("greenroom: threads ", count=2)
        assert "Aborted: the event loop" not in server.log()
