"""How many requests can wait in one process: a view that waits a second.

    make bench                              # this and queries.py
    .venv/bin/python bench/waiting.py --connections 256 --rounds 3

Peers are at their best: gthread with 64, 256 and 1,000 threads; gevent with the plain
view, monkey-patched, since coroutines fail there. How it is measured: measuring.py.

Then one burst of as many requests as connections, each on a connection of its own,
is sent to Greenroom, and how long it took and the threads it used are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import time

from measuring import Server, gunicorn, in_turns, leave_a_core, need_wrk, running, table


def servers(connections: int) -> list[Server]:
    return [
        Server(
            "Greenroom, coroutine view, 1 thread",
            "/coroutine/",
            gunicorn("-k", "greenroom.Worker", "--threads", "1", connections=connections),
            {"BENCH_APPLICATION": "greenroom"},
        ),
        *(
            Server(
                f"gthread, plain view, {threads} threads",
                "/plain/",
                gunicorn("-k", "gthread", "--threads", str(threads), connections=connections),
            )
            for threads in (64, 256, 1000)
        ),
        Server("gevent, plain view", "/plain/", gunicorn("-k", "gevent", connections=connections)),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    need_wrk()
    leave_a_core()
    measured = servers(options.connections)
    in_turns(measured, options.rounds, options.connections, options.seconds)
    print(f"{options.connections} connections, each request waits 1 s; one process each\n")
    print("\n".join(table(measured)))
    with running(measured[0]) as (url, process):
        before = process.num_threads()
        seconds, good = asyncio.run(burst(url, options.connections))
        after = process.num_threads()
    print(
        f"\nA burst of {options.connections} requests to Greenroom, one each on as many "
        f"connections: {good} answered 200, the last after {seconds:.2f} s; "
        f"{before} threads before, {after} after."
    )
    return 0


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
