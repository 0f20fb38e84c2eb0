"""Clients that wrk can't be; run as a process of its own, which prints JSON.

python client.py ticks PORT PATH CLIENTS SECONDS
python client.py download PORT PATH SIZE TIMES
python client.py upload PORT PATH SIZE TIMES
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import sys
import time
from typing import Any

HOST = "127.0.0.1"
# Seconds until all clients must have had their first tick.
RAMP = 90.0
_TICK = re.compile(rb"data: (\d+)\n\n")


class Listener(asyncio.Protocol):
    """A client of server-sent events: when each one came, in order."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: Any = None
        self.came: list[float] = []
        self.numbers: list[int] = []
        self.lost = False
        self.rest = b""
        self.head = True

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(f"GET {self.path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        data = self.rest + data
        if self.head:
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self.rest = head
                return
            self.head = False
            if not head.startswith(b"HTTP/1.1 200"):
                self.transport.abort()
                return
        last = 0
        for found in _TICK.finditer(data):
            self.came.append(now)
            self.numbers.append(int(found[1]))
            last = found.end()
        self.rest = data[last:]
        if self.numbers and not self.first.done():
            self.first.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if not self.first.done():
            self.first.set_result(None)


async def ticks(port: int, path: str, clients: int, seconds: int) -> dict[str, Any]:
    """`clients` that listen to a tick a second; when all have had one, for so long."""
    loop = asyncio.get_running_loop()
    listeners: list[Listener] = []
    refused = 0
    gate = asyncio.Semaphore(100)

    async def connect() -> None:
        nonlocal refused
        async with gate:
            if loop.time() > until:
                refused += 1
                return
            listener = Listener(path)
            try:
                await loop.create_connection(lambda: listener, HOST, port)
            except OSError:
                refused += 1
            else:
                listeners.append(listener)
                await asyncio.wait([listener.first], timeout=max(0, until - loop.time()))

    began = time.perf_counter()
    until = loop.time() + RAMP
    await asyncio.gather(*(connect() for _ in range(clients)))
    ramp = time.perf_counter() - began
    await asyncio.sleep(seconds)
    ends = time.perf_counter()
    lost = sum(each.lost for each in listeners)
    for each in listeners:
        each.transport.abort()
    started = [each for each in listeners if each.came]
    missing, wrong = 0, 0
    for each in started:
        # What is later than a second counts as missing.
        due = max(0, int(ends - each.came[0] - 1) + 1)
        missing += max(0, due - len(each.numbers))
        wrong += each.numbers != list(range(len(each.numbers)))
    late = []
    for each in started:
        # The tick that came soonest after it was due says when the stream began.
        begins = [at - number for number, at in zip(each.numbers, each.came, strict=True)]
        soonest = min(begins)
        late += [1000 * (at - soonest) for at in begins]
    late.sort()
    errors = {
        "not connected in time": refused,
        "lost": lost,
        "without a tick": len(listeners) - len(started),
        "out of order": wrong,
    }
    return {
        "clients": len(started),
        "ramp": ramp,
        "missing": missing,
        "late_p50": late[len(late) // 2] if late else 0.0,
        "late_p99": late[len(late) * 99 // 100] if late else 0.0,
        "errors": {kind: count for kind, count in errors.items() if count},
    }


def download(port: int, path: str, size: int, times: int) -> dict[str, Any]:
    """Megabytes a second."""
    buffer = bytearray(1 << 20)
    taken = 0.0
    for _ in range(times):
        with socket.create_connection((HOST, port)) as sock:
            began = time.perf_counter()
            sock.sendall(
                f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode()
            )
            got, start = 0, b""
            while count := sock.recv_into(buffer):
                got += count
                if len(start) < 4096:
                    start += buffer[: min(count, 4096)]
                tail = bytes(buffer[max(0, count - 5) : count])
            taken += time.perf_counter() - began
        head = start.partition(b"\r\n\r\n")[0]
        body = got - len(head) - 4
        chunked = b"transfer-encoding: chunked" in head.lower()
        whole = tail == b"0\r\n\r\n" and body > size if chunked else body == size
        if not head.startswith(b"HTTP/1.1 200") or not whole:
            return {"failed": f"{body} bytes came of {size}: {head[:100]!r}"}
    return {"mb_per_s": size * times / 1e6 / taken, "errors": {}}


def upload(port: int, path: str, size: int, times: int) -> dict[str, Any]:
    """Of a form with one file."""
    block = os.urandom(1 << 20)
    before = (
        b"--bench\r\nContent-Disposition: form-data; name=file; filename=file\r\n"
        b"Content-Type: application/octet-stream\r\n\r\n"
    )
    after = b"\r\n--bench--\r\n"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n"
        "Content-Type: multipart/form-data; boundary=bench\r\n"
        f"Content-Length: {len(before) + size + len(after)}\r\n\r\n"
    ).encode()
    taken = 0.0
    for _ in range(times):
        with socket.create_connection((HOST, port)) as sock:
            began = time.perf_counter()
            sock.sendall(head + before)
            for at in range(0, size, len(block)):
                sock.sendall(block[: size - at])
            sock.sendall(after)
            answer = b""
            while data := sock.recv(65536):
                answer += data
            taken += time.perf_counter() - began
        if not answer.startswith(b"HTTP/1.1 200") or str(size).encode() not in answer:
            return {"failed": f"it answered {answer[:200]!r}"}
    return {"mb_per_s": size * times / 1e6 / taken, "errors": {}}


def main() -> None:
    kind, port, path, size, times = sys.argv[1:]
    arguments = int(port), path, int(size), int(times)
    if kind == "ticks":
        try:
            import uvloop
        except ImportError:
            result = asyncio.run(ticks(*arguments))
        else:
            result = uvloop.run(ticks(*arguments))
    else:
        result = {"download": download, "upload": upload}[kind](*arguments)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
