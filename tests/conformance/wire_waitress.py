"""Run waitress's functional tests against the worker; report what came out as JSON.

A process of its own, since these tests fork servers. What is put in the place of
waitress's server is gunicorn with our worker, and:

- its settings are what comes next to those that a test asks waitress for;
- requests of HTTP/1.1 get the Host that the tests leave out (RFC 9112, 3.2 asks for it);
- an answer of HTTP/1.1 to a request of HTTP/1.0 is as good (RFC 9110, 6.2);
- `REMOTE_HOST`, which a server may set, is added for the application that looks at it.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import multiprocessing
import os
import re
import signal
import socket
import sys
import time
import unittest
from dataclasses import replace
from pathlib import Path
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.config import make_settings

from greenroom import worker

TEST_TIMEOUT = 60
LIMITS = {
    # It bounds the whole head, these its parts.
    "max_request_header_size": {
        "limit_request_line": 1000,
        "limit_request_fields": 10,
        "limit_request_field_size": 1000,
    },
}


class Gunicorn(BaseApplication):  # type: ignore[misc]
    """What waitress's tests take for one of its servers."""

    family = socket.AF_INET

    def __init__(self, application: Any, queue: Any, **asked: Any) -> None:
        self._application = application
        self._queue = queue
        self._asked = asked
        # Looked for in the answers.
        worker.SERVER = "waitress"
        # Otherwise a test that goes on to wait, where ours does, would wait for a minute.
        config = worker._config
        worker._config = lambda *args: replace(config(*args), body_timeout=1.0)
        super().__init__()

    @property
    def bind(self) -> str:
        return "127.0.0.1:0"

    def load_config(self) -> None:
        settings: dict[str, Any] = {
            "bind": self.bind,
            "worker_class": "greenroom.Worker",
            "threads": 4,
            "keepalive": 1,
            "graceful_timeout": 1,
            "loglevel": "critical",
            "when_ready": lambda arbiter: self._queue.put(arbiter.LISTENERS[0].sock.getsockname()),
        }
        if "control_socket_disable" in make_settings():
            settings["control_socket_disable"] = True
        for name in LIMITS.keys() & self._asked.keys():
            settings |= LIMITS[name]
        for name, value in settings.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        def application(environ: Any, start_response: Any) -> Any:
            environ["REMOTE_HOST"] = environ["REMOTE_ADDR"]
            return self._application(environ, start_response)

        return application


class Unix(Gunicorn):
    family = socket.AF_UNIX

    @property
    def bind(self) -> str:
        return f"unix:{Path.cwd()}/socket-{time.monotonic_ns()}"


class Client(socket.socket):
    """Sends the Host that is missing."""

    def send(self, data: bytes, *args: Any) -> int:  # type: ignore[override]
        line, end, rest = data.partition(b"\r\n")
        if line.endswith(b" HTTP/1.1") and not re.search(rb"(?i)(^|\n)host:", rest):
            data = line + end + b"Host: added.example\r\n" + rest
        return super().send(data, *args)


class Result(unittest.TestResult):
    def __init__(self) -> None:
        super().__init__()
        self.outcomes: dict[str, str] = {}
        self.details: dict[str, str] = {}

    def startTest(self, test: Any) -> None:
        signal.alarm(TEST_TIMEOUT)

    def stopTest(self, test: Any) -> None:
        signal.alarm(0)

    def _note(self, test: Any, outcome: str, error: Any = None) -> None:
        name = test.id().rpartition("test_functional.")[2]
        self.outcomes[name] = outcome
        if error is not None:
            self.details[name] = self._exc_info_to_string(error, test)

    def addSuccess(self, test: Any) -> None:
        self._note(test, "success")

    def addSkip(self, test: Any, reason: str) -> None:
        self._note(test, "skipped")

    def addFailure(self, test: Any, err: Any) -> None:
        self._note(test, "failure", err)

    def addError(self, test: Any, err: Any) -> None:
        self._note(test, "error", err)


def too_late(*args: Any) -> None:
    raise TimeoutError(f"not within {TEST_TIMEOUT} s")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sources", required=True)
    parser.add_argument("--result", required=True)
    parser.add_argument("--timeout", type=float, required=True)
    parser.add_argument("--sockets", nargs="+", required=True, help="Tcp, Unix")
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1)
    options = parser.parse_args()
    faulthandler.dump_traceback_later(options.timeout, exit=True)
    os.chdir(Path(options.result).parent)
    sys.path[:0] = [options.sources, f"{options.sources}/src"]
    from tests import test_functional as functional

    functional.TcpTests.server = Gunicorn
    functional.UnixTests.server = Unix
    tests = functional.SubprocessTests

    def create_socket(self: Any) -> socket.socket:
        return Client(self.server.family, socket.SOCK_STREAM)

    def assertline(self: Any, line: bytes, status: str, reason: str, version: str) -> None:
        found = line.decode("latin-1").strip().split(" ", 2)
        assert found == ["HTTP/1.1", status, reason]

    tests.create_socket = create_socket
    tests.assertline = assertline
    # Each class is there for both kinds of sockets, but for one.
    prefixes = tuple(options.sockets) + (("Sleepy",) if "Tcp" in options.sockets else ())
    names = [
        name
        for name, each in vars(functional).items()
        if name.startswith(prefixes) and issubclass(each, unittest.TestCase)
    ]
    load = unittest.defaultTestLoader.loadTestsFromTestCase
    found = [test for name in names for test in load(getattr(functional, name))]
    suite = unittest.TestSuite(found[options.part :: options.parts])
    signal.signal(signal.SIGALRM, too_late)
    result = Result()
    suite.run(result)
    # One whose test failed before it could end it.
    for child in multiprocessing.active_children():
        child.kill()
    report = {"outcomes": result.outcomes, "details": result.details}
    Path(options.result).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
