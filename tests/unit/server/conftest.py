"""Drive the real protocol class with bytes, without a socket."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from greenroom.loops import Home
from greenroom.server import Config, Hooks, Server
from greenroom.server.protocol import Connection
from greenroom.threads import Threads


class FakeTransport(asyncio.Transport):
    """Keeps what is written, and who closed it how."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: asyncio.BaseProtocol | None = None
        self.written = bytearray()
        self.writes = 0
        self.eof_written = False
        self.aborted = False
        self.reading = True
        self.closed = asyncio.Event()
        # Set to keep what is written "unsent".
        self.buffered = 0

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    async def receive(self, data: bytes) -> None:
        """What the kernel has, given to the protocol as a transport does while it reads."""
        while data:
            while not self.reading:
                await asyncio.sleep(0.001)
            protocol = self.protocol
            if self.closed.is_set():
                return
            if isinstance(protocol, asyncio.BufferedProtocol):
                room = protocol.get_buffer(-1)
                count = min(len(room), len(data))
                assert count
                room[:count] = data[:count]
                data = data[count:]
                protocol.buffer_updated(count)
            else:
                assert isinstance(protocol, asyncio.Protocol)
                piece, data = data, b""
                protocol.data_received(piece)

    def write(self, data: Any) -> None:
        assert not self.closed.is_set()
        assert not self.eof_written
        self.writes += 1
        self.written += data

    def writelines(self, data: Iterable[Any]) -> None:
        self.write(b"".join(data))

    def write_eof(self) -> None:
        self.eof_written = True

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def is_closing(self) -> bool:
        return self.closed.is_set()

    def close(self) -> None:
        if not self.closed.is_set():
            self.closed.set()
            asyncio.get_running_loop().call_soon(self._lost, None)

    def abort(self) -> None:
        self.aborted = True
        self.close()

    def _lost(self, exc: Exception | None) -> None:
        assert self.protocol is not None
        self.protocol.connection_lost(exc)


class RecordingLog(logging.LoggerAdapter):
    """gunicorn's logger, as far as the server uses it."""

    def __init__(self) -> None:
        super().__init__(logging.getLogger("test.server"), {})
        self.accesses: list[tuple[Any, Any, Any, Any]] = []

    def access(self, *args: Any) -> None:
        self.accesses.append(args)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Driven:
    """What came out of one connection."""

    raw: bytes
    aborted: bool
    transport: FakeTransport
    log: RecordingLog
    answers: list[Answer] = field(default_factory=list)

    @property
    def statuses(self) -> list[int]:
        return [answer.status for answer in self.answers]


def parse_answers(raw: bytes, methods: Iterable[str] = ()) -> list[Answer]:
    """Parse a sequence of complete answers, strictly."""
    answers = []
    methods = iter(methods)
    while raw:
        head, separator, raw = raw.partition(b"\r\n\r\n")
        assert separator, f"an answer's head is incomplete: {head!r}"
        lines = head.decode("latin-1").split("\r\n")
        match = re.fullmatch(r"HTTP/1\.1 (\d{3}) .*", lines[0])
        assert match, lines[0]
        status = int(match[1])
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(": ")
            assert name.lower() not in headers, f"{name} twice"
            headers[name.lower()] = value
        body = b""
        if status == 100:
            continue
        if next(methods, "GET") == "HEAD" or status in (204, 304):
            pass
        elif headers.get("transfer-encoding") == "chunked":
            while True:
                size, _, raw = raw.partition(b"\r\n")
                length = int(size, 16)
                body += raw[:length]
                assert raw[length : length + 2] == b"\r\n"
                raw = raw[length + 2 :]
                if not length:
                    break
        elif "content-length" in headers:
            length = int(headers["content-length"])
            assert len(raw) >= length, "a short body"
            body, raw = raw[:length], raw[length:]
        else:
            body, raw = raw, b""
        answers.append(Answer(status, headers, body))
    return answers


class Harness:
    """A server on the running loop, and connections to it that have no socket."""

    def __init__(self, app: Any, hooks: Hooks | None = None, **config: Any) -> None:
        loop = asyncio.get_running_loop()
        self.home = Home(loop, Threads(loop, limit=1))
        self.home.register()
        self.log = RecordingLog()
        self.server = Server(app, Config(**config), self.home, self.log, hooks)
        self.sockets: list[socket.socket] = []

    def connect(self, *, trusted: bool = True) -> tuple[Connection, FakeTransport]:
        ours, theirs = socket.socketpair()
        self.sockets += [ours, theirs]
        base = self.server._base_environ(ours)
        base.update(SERVER_NAME="127.0.0.1", SERVER_PORT="80", REMOTE_ADDR="127.0.0.1")
        connection = Connection(self.server, ours, base, trusted)
        self.server._open += 1
        transport = FakeTransport()
        transport.protocol = connection
        connection.connection_made(transport)
        return connection, transport

    async def aclose(self) -> None:
        self.server.hurry = True
        await self.server.drain(0.5)
        await self.home.aclose()
        for sock in self.sockets:
            sock.close()


async def _drive(
    app: Any, pieces: Iterable[bytes], methods: Iterable[str], trusted: bool, config: Any
) -> Driven:
    harness = Harness(app, **config)
    _, transport = harness.connect(trusted=trusted)
    for piece in pieces:
        if transport.closed.is_set():
            break
        await transport.receive(piece)
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        while not (transport.closed.is_set() or transport.eof_written):
            await asyncio.sleep(0.001)
    raw, aborted = bytes(transport.written), transport.aborted
    await harness.aclose()
    return Driven(raw, aborted, transport, harness.log, parse_answers(raw, methods))


@pytest.fixture
def drive() -> Callable[..., Driven]:
    """`drive(app, piece, ...)`: the answers to bytes that end with a closed connection."""

    def run(
        app: Any, *pieces: bytes, methods: Iterable[str] = (), trusted: bool = True, **config: Any
    ) -> Driven:
        return asyncio.run(_drive(app, pieces, methods, trusted, config))

    return run


@pytest.fixture
def harness() -> type[Harness]:
    return Harness
