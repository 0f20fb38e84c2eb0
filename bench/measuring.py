"""Servers on loopback, one worker process each, measured with wrk in turns.

The servers take turns, round by round, so that what else the machine does falls on
all alike: compare the figures of one run, not of two. Where there are two cores or
more, the server has one of them, and wrk, with the database, the others.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import httpx
import psutil

HERE = Path(__file__).resolve().parent


@dataclass
class Server:
    """`command` has {port}; `environment` says which application and database it gets."""

    name: str
    path: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    threads: int = 0
    memory: int = 0
    errors: int = 0


def gunicorn(*arguments: str, connections: int = 1000) -> list[str]:
    return [
        *(sys.executable, "-m", "gunicorn", "site_wsgi:application"),
        *("--bind", "127.0.0.1:{port}", "--worker-connections", str(connections + 50)),
        *("--backlog", str(max(2048, connections)), "--log-level", "error"),
        *("--timeout", "60", *arguments),
    ]


def need_wrk() -> None:
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed; on Debian: apt-get install wrk")


def in_turns(servers: list[Server], rounds: int, connections: int, seconds: int) -> None:
    for turn in range(rounds):
        for server in servers:
            print(f"round {turn + 1}: {server.name}", file=sys.stderr)
            measure(server, connections, seconds)


def table(servers: list[Server]) -> Iterable[str]:
    """The ratio is how much faster the first is, of medians."""
    yield "| server | requests/s, median (min-max) | ratio | errors | threads | MB |"
    yield "|---|---|---|---|---|---|"
    first = median(servers[0].rates)
    for server in servers:
        low, high, middle = min(server.rates), max(server.rates), median(server.rates)
        yield (
            f"| {server.name} | {middle:.0f} ({low:.0f}-{high:.0f}) | {first / middle:.2f} "
            f"| {server.errors} | {server.threads} | {server.memory >> 20} |"
        )


def measure(server: Server, connections: int, seconds: int) -> None:
    with running(server) as (url, process):
        wrk = ["wrk", "-t1", f"-c{connections}", "--timeout", "30s", url]
        if seconds > 3:
            # Warm: connections are made, modules are imported.
            subprocess.run([*wrk, "-d1s"], capture_output=True, check=True)
        out = subprocess.run(
            [*wrk, f"-d{seconds}s"], capture_output=True, text=True, check=True
        ).stdout
        server.threads = max(server.threads, process.num_threads())
        server.memory = max(server.memory, process.memory_info().rss)
    server.rates.append(float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1]))  # type: ignore[index]
    for count in re.findall(r"(?:connect|read|write|timeout) (\d+)", out):
        server.errors += int(count)
    for count in re.findall(r"Non-2xx or 3xx responses: (\d+)", out):
        server.errors += int(count)


class running:
    """A server on loopback; yields its address and the process that works."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def __enter__(self) -> tuple[str, psutil.Process]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.process = subprocess.Popen(
            [part.format(port=port) for part in self.server.command],
            cwd=HERE,
            env=os.environ | self.server.environment,
            preexec_fn=_on_one_core,
        )
        url = f"http://127.0.0.1:{port}{self.server.path}"
        answer = None
        for _ in range(100):
            try:
                answer = httpx.get(url, timeout=5)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        if answer is None or answer.status_code != 200:
            self.__exit__()
            sys.exit(f"{self.server.name} does not answer: {answer}")
        children = psutil.Process(self.process.pid).children()
        # (granian starts a helper of multiprocessing too.)
        workers = [each for each in children if each.memory_info().rss > 30 << 20]
        return url, workers[0] if workers else psutil.Process(self.process.pid)

    def __exit__(self, *exc_info: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def _on_one_core() -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, cores[-1:])


def leave_a_core() -> None:
    """Run this process, and what it starts that isn't measured, on the other cores."""
    global _on_one_core
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        last = cores[-1:]
        os.sched_setaffinity(0, cores[:-1])

        def on_the_last() -> None:
            os.sched_setaffinity(0, last)

        _on_one_core = on_the_last
