"""How many connections there are, and what half of one is still good for."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from greenroom.loops import Home
from greenroom.server import Config, Server
from greenroom.threads import Threads

from .conftest import RecordingLog

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


async def hello(environ: Any, start_response: Any) -> list[bytes]:
    await asyncio.sleep(0)
    environ["wsgi.input"].read()
    start_response("200 OK", [])
    return [b"hello"]


@pytest.mark.parametrize("proxy_protocol", ["", "auto"])
def test_a_crowd_waits_and_nobody_is_reset(loop_factory: Any, proxy_protocol: str) -> None:
    """Four at a time; the others wait in the backlog, with what they have sent."""
    most = 0

    class Counting(Server):
        def _accept(self, listening: socket.socket) -> bool:
            nonlocal most
            accepted = super()._accept(listening)
            most = max(most, self._open)
            return accepted

    async def client(address: Any, silent: bool) -> bytes:
        reader, writer = await asyncio.open_connection(*address)
        if not silent:
            writer.write(GET + LAST)
        answer = await reader.read()
        writer.close()
        return answer

    async def main() -> list[bytes]:
        loop = asyncio.get_running_loop()
        home = Home(loop, Threads(loop, limit=1))
        home.register()
        listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        # Those that say nothing keep their place for a moment only.
        config = Config(connections=4, head_timeout=1.5, proxy_protocol=proxy_protocol)
        server = Counting(hello, config, home, RecordingLog())
        server.listen([listening])
        address = listening.getsockname()
        async with asyncio.timeout(30):
            answers = await asyncio.gather(*(client(address, n < 3) for n in range(100)))
        await server.drain(1)
        await home.aclose()
        return answers

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        answers = runner.run(main())
    assert most == 4
    assert sorted(answer.count(b"hello") for answer in answers) == [0] * 3 + [2] * 97


@pytest.mark.parametrize(
    ("sent", "answers"),
    [
        (GET * 3, 3),
        (GET * 3 + GET[:-1], 3),
        (GET + POST + b"hello" + GET, 3),
        (GET + POST + b"hell", 1),
        (GET + LAST + GET, 2),
        (GET[:-1], 0),
        (b"", 0),
    ],
)
def test_what_was_sent_ahead_of_an_eof_is_answered(
    loop_factory: Any, sent: bytes, answers: int
) -> None:
    async def main() -> bytes:
        loop = asyncio.get_running_loop()
        home = Home(loop, Threads(loop, limit=1))
        home.register()
        listening = socket.create_server(("127.0.0.1", 0))
        server = Server(hello, Config(), home, RecordingLog())
        server.listen([listening])
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        writer.write(sent)
        writer.write_eof()
        async with asyncio.timeout(10):
            raw = await reader.read()
        writer.close()
        # It isn't kept until a deadline.
        async with asyncio.timeout(1):
            while server._open:
                await asyncio.sleep(0.001)
        await server.drain(1)
        await home.aclose()
        return raw

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        raw = runner.run(main())
    assert raw.count(b"HTTP/1.1 200 OK") == raw.count(b"hello") == answers
    assert raw.count(b"HTTP/1.1 ") == answers
