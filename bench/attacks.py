"""What ordinary clients notice while others attack, and how much memory it takes.

    make attacks
    .venv/bin/python bench/attacks.py --rounds 5 --only slowloris upload

One worker serves one client that asks for a small page at a fixed pace, each time on a new
connection: for a while with nothing else to do, then under an attack, in turns. Printed are
its medians and 99th percentiles in both, and the worker's memory. The attackers are another
process. Where there are two cores, the worker has one of them; the attackers give way to the
client on the other, for they would be other machines.

Exits with 1 where the median under an attack is over `--ratio` times the other, where the
memory grows by more than is said for the attack, or where an ordinary request fails.

Attackers have a line of a gigabit together (`--line`, in MB/s; 0 for as fast as the machine
goes, which is that of its memory: then any server is busy with them alone, and the ratio
says how fair it is). What comes pipelined isn't slowed down.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

HERE = Path(__file__).resolve().parent
PACE = 0.005
BLOCK = b"x" * 65536
BOMB = 1_000_000
GET = b"GET /%b HTTP/1.1\r\nHost: h\r\n"


# The application.


async def app(environ: dict[str, Any], start_response: Any) -> Any:
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path == "/stream":
        start_response("200 OK", [("Content-Length", query)])
        return blocks(int(query))
    if path == "/file":
        start_response("200 OK", [("Content-Length", query)])
        file = open(os.environ["ATTACKS_FILE"], "rb", buffering=0)  # noqa: SIM115, ASYNC230
        return environ["wsgi.file_wrapper"](file)
    size = 0
    # On the loop, a block at a time: as a coroutine view would.
    while block := environ["wsgi.input"].read(1 << 20):
        size += len(block)
        await asyncio.sleep(0)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello %d\n" % size]


# More than a body may have otherwise.
app.coroutine_wsgi_options = {"max_body": None, "spool_quota": None}


async def blocks(size: int) -> AsyncIterator[bytes]:
    while size > 0:
        yield BLOCK[:size]
        size -= len(BLOCK)


# The attacks. Each says "ready" when it is under way. `count` is of connections, of requests
# or of megabytes.


class Line:
    """Lets so many bytes a second pass."""

    def __init__(self) -> None:
        self.rate = 1e6 * float(os.environ.get("ATTACKS_LINE", "0"))
        self.free = time.perf_counter()

    async def take(self, size: int) -> None:
        if self.rate:
            now = time.perf_counter()
            # A sleep is too long by a millisecond or so.
            self.free = max(self.free, now - 0.05) + size / self.rate
            if self.free > now + 0.005:
                await asyncio.sleep(self.free - now)


async def slowloris(address: Any, count: int) -> None:
    """Heads that come byte by byte and never end."""

    async def one() -> None:
        while True:
            with contextlib.suppress(ConnectionError):
                _, writer = await asyncio.open_connection(*address)
                writer.write(GET % b"" + b"X: ")
                while not writer.is_closing():
                    await asyncio.sleep(0.1)
                    writer.write(b"y")
                    await writer.drain()

    await everyone(one, count)


async def slow_readers(address: Any, count: int) -> None:
    """Answers of 10 MB that are taken a kilobyte at a time."""
    loop = asyncio.get_running_loop()

    async def one() -> None:
        while True:
            with socket.socket() as sock, contextlib.suppress(ConnectionError):
                sock.setblocking(False)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                await loop.sock_connect(sock, address)
                await loop.sock_sendall(sock, GET % b"stream?10000000" + b"\r\n")
                while True:
                    if not await loop.sock_recv(sock, 1024):
                        break
                    await asyncio.sleep(0.1)

    await everyone(one, count)


async def many_fields(address: Any, count: int) -> None:
    """Heads of very many fields, again and again."""
    await bombs(address, count, GET % b"" + b"X-Some-Field: some value\r\n" * (BOMB // 26))


async def huge_fields(address: Any, count: int) -> None:
    """Heads with a huge field, again and again."""
    await bombs(address, count, GET % b"" + b"X: " + b"y" * BOMB)


async def bombs(address: Any, count: int, head: bytes) -> None:
    line = Line()

    async def one() -> None:
        while True:
            with contextlib.suppress(ConnectionError):
                await line.take(len(head))
                reader, writer = await asyncio.open_connection(*address)
                # In pieces: the system isn't to be kept busy with one call.
                for at in range(0, len(head), len(BLOCK)):
                    writer.write(head[at : at + len(BLOCK)])
                    await writer.drain()
                await reader.read()
                writer.close()

    await everyone(one, count)


async def pipelined(address: Any, count: int) -> None:
    """Very many requests at once on one connection."""
    reader, writer = await asyncio.open_connection(*address, limit=1 << 22)
    print("ready", flush=True)
    request = GET % b"" + b"\r\n"

    async def write() -> None:
        for _ in range(count // 100):
            writer.write(request * 100)
            await writer.drain()
        writer.write(GET % b"" + b"Connection: close\r\n\r\n")

    writing = asyncio.ensure_future(write())
    answers, tail = 0, b""
    while data := await reader.read(1 << 16):
        data = tail + data
        answers += data.count(b"HTTP/1.1 200 OK")
        # So that none is counted twice, or missed.
        tail = data[-14:]
    await writing
    assert answers == count // 100 * 100 + 1, answers
    writer.close()


async def upload(address: Any, count: int) -> None:
    reader, writer = await asyncio.open_connection(*address)
    print("ready", flush=True)
    size = count * 1_000_000
    writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n" % size)
    writer.write(b"Connection: close\r\n\r\n")
    line, left = Line(), size
    while left:
        block = BLOCK[:left]
        left -= len(block)
        await line.take(len(block))
        writer.write(block)
        await writer.drain()
    answer = await reader.read()
    assert b"hello %d\n" % size in answer, answer
    writer.close()


async def download(address: Any, count: int, path: bytes = b"stream") -> None:
    loop = asyncio.get_running_loop()
    size = count * 1_000_000
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, address)
        print("ready", flush=True)
        request = GET % (b"%b?%d" % (path, size))
        await loop.sock_sendall(sock, request + b"Connection: close\r\n\r\n")
        line, received = Line(), 0
        buffer = bytearray(1 << 18)
        while got := await loop.sock_recv_into(sock, buffer):
            received += got
            await line.take(got)
    assert received > size, received


async def download_file(address: Any, count: int) -> None:
    await download(address, count, b"file")


async def everyone(one: Callable[[], Awaitable[None]], count: int) -> None:
    tasks = [asyncio.ensure_future(one()) for _ in range(count)]
    await asyncio.sleep(1)
    print("ready", flush=True)
    await asyncio.gather(*tasks)


@dataclass
class Attack:
    """`growth`: how many megabytes more than at rest the worker may have."""

    run: Callable[[Any, int], Awaitable[None]]
    count: int
    of: str
    growth: int
    # Whether it ends by itself.
    ends: bool = False
    idle: list[float] = field(default_factory=list)
    under: list[float] = field(default_factory=list)
    grown: float = 0
    failed: int = 0
    seconds: float = 0


def attacks(scale: float) -> dict[str, Attack]:
    def some(count: int) -> int:
        return max(1, int(count * scale))

    return {
        # A head, and what asyncio has for a connection.
        "slowloris": Attack(slowloris, some(500), "connections", 50),
        # 64 KiB in the transport and an item, each.
        "slow readers": Attack(slow_readers, some(500), "connections", 120),
        # limit_request_fields × limit_request_field_size of a head, each.
        "many fields": Attack(many_fields, some(100), "connections", 150),
        "huge fields": Attack(huge_fields, some(100), "connections", 150),
        "pipelined": Attack(pipelined, some(100_000), "requests", 20, ends=True),
        "upload": Attack(upload, some(1000), "MB", 20, ends=True),
        "download": Attack(download, some(1000), "MB", 20, ends=True),
        "download of a file": Attack(download_file, some(1000), "MB", 20, ends=True),
    }


# The server, and the ordinary client.


@contextlib.contextmanager
def serving() -> Iterator[tuple[tuple[str, int], int]]:
    """gunicorn with one worker; its address, and the worker's process."""
    command = [sys.executable, "-m", "gunicorn", "attacks:app", "--bind", "127.0.0.1:0"]
    command += ["--worker-class", "greenroom.Worker", "--backlog", "2048"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=HERE, stdout=log, stderr=log, preexec_fn=on_last)
        try:
            for _ in range(300):
                log.seek(0)
                said = log.read()
                if "greenroom: threads" in said:
                    break
                time.sleep(0.1)
            else:
                sys.exit(f"gunicorn didn't start:\n{said}")
            port = int(re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", said)[1])  # type: ignore[index]
            worker = int(re.search(r"Booting worker with pid: (\d+)", said)[1])  # type: ignore[index]
            yield ("127.0.0.1", port), worker
            log.seek(0)
            said = log.read()
            # A worker that was ended and replaced has not withstood it.
            if said.count("Booting worker") > 1 or "Traceback" in said:
                sys.exit(f"the worker failed:\n{said[-5000:]}")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def memory(pid: int) -> float:
    """Megabytes of a process that are in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def ask(address: tuple[str, int]) -> float:
    """One ordinary request on a new connection; its seconds."""
    began = time.perf_counter()
    with socket.create_connection(address, timeout=10) as sock:
        sock.sendall(GET % b"" + b"Connection: close\r\n\r\n")
        answer = b""
        while piece := sock.recv(4096):
            answer += piece
    if not (answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"hello 0\n")):
        raise OSError(f"another answer: {answer!r}")
    return time.perf_counter() - began


def ask_for_a_while(
    address: tuple[str, int], worker: int, attack: Attack, until: Callable[[], bool]
) -> tuple[list[float], float]:
    """The seconds of all requests, and the most memory that was seen."""
    taken, most = [], 0.0
    due = time.perf_counter()
    while not until():
        try:
            taken.append(ask(address))
        except OSError as exc:
            print(f"an ordinary request failed: {exc}", file=sys.stderr)
            attack.failed += 1
        most = max(most, memory(worker))
        due = max(due + PACE, time.perf_counter())
        time.sleep(max(0.0, due - time.perf_counter()))
    return taken, most


def measure(name: str, attack: Attack, seconds: float) -> None:
    """At rest, then under an attack, on a worker of its own."""
    with serving() as (address, worker):
        for _ in range(50):
            ask(address)
        ends = time.perf_counter() + seconds
        taken, rest = ask_for_a_while(address, worker, attack, lambda: time.perf_counter() > ends)
        attack.idle += taken
        command = [sys.executable, __file__, "--attack", name, str(address[1]), str(attack.count)]
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=give_way) as attackers:
            try:
                assert attackers.stdout is not None
                if attackers.stdout.readline() != b"ready\n":
                    sys.exit(f"{name}: the attackers failed")
                limit = time.perf_counter() + (120 if attack.ends else seconds)
                taken, most = ask_for_a_while(
                    address,
                    worker,
                    attack,
                    lambda: attackers.poll() is not None or time.perf_counter() > limit,
                )
                if attack.ends:
                    attack.seconds = time.perf_counter() - began
                if attackers.poll() != (0 if attack.ends else None):
                    sys.exit(f"{name}: the attackers ended with {attackers.poll()}")
            finally:
                attackers.kill()
        attack.under += taken
        attack.grown = max(attack.grown, most - rest)


# Cores.

_cores = sorted(os.sched_getaffinity(0))


def on_last() -> None:
    os.sched_setaffinity(0, _cores[-1:])


def give_way() -> None:
    os.nice(19)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--scale", type=float, default=1, help="of the attacks")
    parser.add_argument("--ratio", type=float, default=2)
    parser.add_argument("--line", type=float, default=125, help="MB/s that attackers have")
    parser.add_argument("--only", nargs="*", help="which attacks")
    parser.add_argument("--attack", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    measured = attacks(options.scale)
    if options.attack:
        name, port, count = options.attack
        asyncio.run(measured[name].run(("127.0.0.1", int(port)), int(count)))  # type: ignore[arg-type]
        return 0
    os.environ["ATTACKS_LINE"] = str(options.line)
    if options.only:
        measured = {name: measured[name] for name in options.only}
    if len(_cores) > 1:
        os.sched_setaffinity(0, _cores[:-1])
    with file_for(measured):
        turns(measured, options)
    return report(measured, options.ratio)


@contextlib.contextmanager
def file_for(measured: dict[str, Attack]) -> Iterator[None]:
    """The file that is downloaded. It is read once: not the disk is measured."""
    with tempfile.NamedTemporaryFile() as file:
        os.environ["ATTACKS_FILE"] = file.name
        if (attack := measured.get("download of a file")) is not None:
            file.truncate(attack.count * 1_000_000)
            while file.read(1 << 20):
                pass
        yield


def turns(measured: dict[str, Attack], options: argparse.Namespace) -> None:
    for turn in range(options.rounds):
        for name, attack in measured.items():
            print(f"round {turn + 1}: {name}", file=sys.stderr)
            measure(name, attack, options.seconds)


def report(measured: dict[str, Attack], ratio: float) -> int:
    print("| attack | at rest, ms: median, p99 | under it | ratio | MB more (allowed) | seconds |")
    print("|---|---|---|---|---|---|")
    wrong = []
    for name, attack in measured.items():
        times = median(attack.under) / median(attack.idle)
        print(
            f"| {name}: {attack.count:,} {attack.of} | {shown(attack.idle)} | "
            f"{shown(attack.under)} | {times:.2f} | {attack.grown:.0f} ({attack.growth}) | "
            f"{f'{attack.seconds:.1f}' if attack.ends else ''} |"
        )
        if times > ratio:
            wrong.append(f"{name}: the median is {times:.2f} times that at rest")
        if attack.grown > attack.growth:
            wrong.append(f"{name}: {attack.grown:.0f} MB more, {attack.growth} are allowed")
        if attack.failed:
            wrong.append(f"{name}: {attack.failed} ordinary requests failed")
    for each in wrong:
        print(each, file=sys.stderr)
    return 1 if wrong else 0


def shown(seconds: list[float]) -> str:
    return f"{1000 * median(seconds):.2f}, {1000 * quantiles(seconds, n=100)[98]:.2f}"


if __name__ == "__main__":
    sys.exit(main())
