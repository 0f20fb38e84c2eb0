"""How many requests can wait in one process: a view that waits a second.

    make bench                              # 1,000 connections, five rounds
    .venv/bin/python bench/waiting.py --connections 256 --rounds 3

Each server has one worker process; wrk (Debian's package `wrk`) sends from another
core. The servers take turns, round by round, so that what else the machine does
falls on all alike: compare the figures of one run, not of two. Peers are at their
best: gthread with 64, 256 and 1,000 threads;
gevent with the plain view, monkey-patched, since coroutines fail there.

Then one burst of as many requests as connections, each on a connection of its own,
is sent to Greenroom, and how long it took and the threads it used are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import httpx
import psutil

HERE = Path(__file__).resolve().parent


@dataclass
class Server:
    name: str
    path: str
    arguments: list[str]
    application: str = "django"
    rates: list[float] = field(default_factory=list)
    threads: int = 0
    memory: int = 0
    errors: int = 0


def servers() -> list[Server]:
    return [
        Server(
            "Greenroom, coroutine view, 1 thread",
            "/coroutine/",
            ["-k", "greenroom.Worker", "--threads", "1"],
            "greenroom",
        ),
        *(
            Server(
                f"gthread, plain view, {threads} threads",
                "/plain/",
                ["-k", "gthread", "--threads", str(threads)],
            )
            for threads in (64, 256, 1000)
        ),
        Server("gevent, plain view", "/plain/", ["-k", "gevent"]),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        print("wrk is not installed; on Debian: apt-get install wrk", file=sys.stderr)
        return 1
    measured = servers()
    for turn in range(options.rounds):
        for server in measured:
            print(f"round {turn + 1}: {server.name}", file=sys.stderr)
            measure(server, options.connections, options.seconds)
    print(f"{options.connections} connections, each request waits 1 s; one process each\n")
    print("| server | requests/s, median (min-max) | errors | threads | MB |")
    print("|---|---|---|---|---|")
    for server in measured:
        low, high = min(server.rates), max(server.rates)
        print(
            f"| {server.name} | {median(server.rates):.0f} ({low:.0f}-{high:.0f}) "
            f"| {server.errors} | {server.threads} | {server.memory >> 20} |"
        )
    with running(measured[0], options.connections) as (url, process):
        before = process.num_threads()
        seconds, good = asyncio.run(burst(url, options.connections))
        after = process.num_threads()
    print(
        f"\nA burst of {options.connections} requests to Greenroom, one each on as many "
        f"connections: {good} answered 200, the last after {seconds:.2f} s; "
        f"{before} threads before, {after} after."
    )
    return 0


def measure(server: Server, connections: int, seconds: int) -> None:
    with running(server, connections) as (url, process):
        wrk = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", url]
        out = subprocess.run(wrk, capture_output=True, text=True, check=True).stdout
        server.threads = max(server.threads, process.num_threads())
        server.memory = max(server.memory, process.memory_info().rss)
    server.rates.append(float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1]))  # type: ignore[index]
    for count in re.findall(r"(?:connect|read|write|timeout) (\d+)", out):
        server.errors += int(count)
    for count in re.findall(r"Non-2xx or 3xx responses: (\d+)", out):
        server.errors += int(count)


class running:
    """A server on loopback; yields its address and its worker process."""

    def __init__(self, server: Server, connections: int) -> None:
        self.server, self.connections = server, connections

    def __enter__(self) -> tuple[str, psutil.Process]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        arguments = [
            *(sys.executable, "-m", "gunicorn", "site_wsgi:application"),
            *("--bind", f"127.0.0.1:{port}", "--worker-connections", str(self.connections + 50)),
            *("--backlog", str(max(2048, self.connections)), "--log-level", "error"),
            *("--timeout", "60", *self.server.arguments),
        ]
        environment = os.environ | {"BENCH_APPLICATION": self.server.application}
        self.process = subprocess.Popen(arguments, cwd=HERE, env=environment)
        url = f"http://127.0.0.1:{port}{self.server.path}"
        for _ in range(100):
            try:
                httpx.get(url, timeout=5)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        (worker,) = psutil.Process(self.process.pid).children()
        return url, worker

    def __exit__(self, *exc_info: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


async def burst(url: str, count: int) -> tuple[float, int]:
    """Send `count` requests at once, each on its own connection."""
    host, path = re.match(r"http://([^/]+)(.*)", url).groups()  # type: ignore[union-attr]
    address, port = host.split(":")

    async def one() -> bytes:
        reader, writer = await asyncio.open_connection(address, int(port))
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return answer

    began = time.perf_counter()
    answers = await asyncio.gather(*(one() for _ in range(count)))
    seconds = time.perf_counter() - began
    return seconds, sum(answer.startswith(b"HTTP/1.1 200") for answer in answers)


if __name__ == "__main__":
    sys.exit(main())
