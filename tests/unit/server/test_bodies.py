"""Bodies of any size in any pieces: memory, disk, quota, and a loop that goes on."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import io
import itertools
import os
import random
import socket
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenroom.loops import Home
from greenroom.server import Config, Server
from greenroom.server.body import BLOCK, Chunked, Quota, Spool
from greenroom.threads import Threads

from .conftest import Harness, RecordingLog, parse_answers

CHUNKED = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
LENGTH = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
MIB = 1 << 20


async def count(environ: Any, start_response: Any) -> list[bytes]:
    size = 0
    while data := environ["wsgi.input"].read(65536):
        size += len(data)
    start_response("200 OK", [])
    return [b"%d" % size]


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


# Small pieces.


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("piece", [1, 7, 1000, 65536, 3 * MIB])
def test_a_body_is_kept_whatever_its_pieces(piece: int, where: str, tmp_path: Path) -> None:
    data = random.Random(piece).randbytes(300_000 if piece < 1000 else 3 * MIB)
    quota = Quota(None)
    spool = Spool(len(data) if where == "memory" else 1000, str(tmp_path), quota)
    for at in range(0, len(data), piece):
        spool.add(data[at : at + piece])
        if spool.due:
            spool.flush()
    assert spool.on_disk is (where == "disk")
    if spool.on_disk:
        spool.rewind()
        assert quota.used == len(data)
    with spool.open() as file:
        assert file.read() == data
    assert spool.close() is (file if where == "disk" else None)
    assert quota.used == 0


def test_small_chunks_take_no_more_memory_than_the_body(harness: Any) -> None:
    size = 60_000
    sent = b"1\r\nx\r\n" * size

    async def main() -> int:
        at = harness(count)
        connection, transport = at.connect()
        connection.data_received(CHUNKED)
        pieces = [sent[i : i + 65536] for i in range(0, len(sent), 65536)]
        tracemalloc.start()
        for piece in pieces:
            await until(lambda: transport.reading)
            connection.data_received(piece)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        transport.abort()
        await until(lambda: not at.server.connections)
        await at.aclose()
        return peak

    # The body, an eighth more of room to grow in, and what is being decoded (a read and
    # the pieces of a turn); a list of all pieces would be of 2.5 MB.
    assert asyncio.run(main()) < 600_000


def test_small_chunks_give_way_to_others(harness: Any) -> None:
    """What one read brings (256 KiB) is not decoded in one go."""
    chunks = 40_000

    async def main() -> int:
        turns = 0
        at = harness(count)
        connection, transport = at.connect()
        connection.data_received(CHUNKED + b"1\r\nx\r\n" * chunks + b"0\r\n\r\n" + GET)
        while transport.written.count(b"HTTP/1.1 200") < 2:
            turns += 1
            await asyncio.sleep(0)
        assert b"\r\n\r\n%d" % chunks in transport.written
        assert transport.reading
        transport.abort()
        await asyncio.sleep(0)
        await at.aclose()
        return turns

    assert asyncio.run(main()) > chunks // 2000


@pytest.mark.parametrize("how", ["lost", "end", "deadline", "eof"])
def test_ends_while_it_gives_way(harness: Any, how: str) -> None:
    async def main() -> None:
        errors: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, error: errors.append(error))
        at = harness(count, max_body_in_memory=100)
        connection, transport = at.connect()
        connection.data_received(CHUNKED + b"1\r\nx\r\n" * 5000)
        assert connection._busy
        if how == "lost":
            transport.abort()
        elif how == "end":
            connection.end()
        elif how == "deadline":
            # It is ours to go on, not the client's.
            connection.on_deadline(at.server.loop.time())
            await until(lambda: transport.reading)
            connection.on_deadline(at.server.loop.time())
            assert transport.written.startswith(b"HTTP/1.1 408 ")
            transport.abort()
        else:
            assert connection.eof_received()
        await until(lambda: not at.server.connections)
        await until(lambda: at.server.quota.used == 0)
        await at.aclose()
        assert errors == []

    asyncio.run(main())


def test_an_eof_that_comes_with_the_end_of_a_body(harness: Any) -> None:
    async def main() -> None:
        at = harness(count)
        connection, transport = at.connect()
        connection.data_received(CHUNKED + b"1\r\nx\r\n" * 5000 + b"0\r\n\r\n")
        assert connection.eof_received()
        await until(transport.closed.is_set)
        assert transport.written.endswith(b"\r\n\r\n5000")
        await at.aclose()

    asyncio.run(main())


def test_chunks_take_time_in_proportion() -> None:
    """However a body is cut: what has been decoded isn't looked at again."""

    def looked_at(body: bytes, piece: int) -> int:
        decoder, buffer, calls = Chunked(), bytearray(), 0
        for at in range(0, len(body), piece):
            buffer += body[at : at + piece]
            while True:
                calls += 1
                decoder.take(buffer)
                if not decoder.gave_way:
                    break
            assert len(buffer) < 20
        assert decoder.done
        return calls

    body = b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n"
    assert looked_at(body, len(body)) <= 22
    assert looked_at(body, 1) <= len(body)


# The disk.


class SlowDisk:
    """A `flush` that waits, or fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.goes_on = threading.Event()
        self.flushes = 0
        self.error: OSError | None = None
        real = Spool.flush

        def flush(spool: Spool) -> None:
            self.flushes += 1
            assert threading.current_thread() is not threading.main_thread()
            assert self.goes_on.wait(20)
            if self.error is not None:
                raise self.error
            real(spool)

        monkeypatch.setattr(Spool, "flush", flush)


def test_reading_pauses_while_the_disk_is_slow(
    harness: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def main() -> None:
        at = harness(count, max_body_in_memory=1000, spool_dir=str(tmp_path))
        slow, its_transport = at.connect()
        slow.data_received(LENGTH % (10 * BLOCK) + b"x" * BLOCK)
        assert not its_transport.reading
        await until(lambda: disk.flushes == 1)
        # The loop goes on meanwhile.
        other, other_transport = at.connect()
        other.data_received(GET)
        await until(lambda: other_transport.written.endswith(b"\r\n\r\n0"))
        assert not its_transport.reading
        disk.goes_on.set()
        for _ in range(9):
            await its_transport.receive(b"x" * BLOCK)
        await until(lambda: its_transport.written.endswith(b"\r\n\r\n%d" % (10 * BLOCK)))
        for each in (its_transport, other_transport):
            each.abort()
        await at.aclose()

    disk = SlowDisk(monkeypatch)
    asyncio.run(main())


@pytest.mark.parametrize("gone", [False, True])
def test_a_disk_that_is_full(
    harness: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gone: bool
) -> None:
    async def main() -> None:
        at = harness(count, max_body_in_memory=1000, spool_dir=str(tmp_path))
        connection, transport = at.connect()
        connection.data_received(LENGTH % 5000 + b"x" * 2000)
        if gone:
            transport.abort()
            await until(lambda: not at.server.connections)
        disk.goes_on.set()
        await until(lambda: at.server.quota.used == 0)
        if not gone:
            await until(lambda: transport.written)
            assert transport.written.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nRetry-After: " in transport.written
            transport.abort()
        await at.aclose()

    disk = SlowDisk(monkeypatch)
    disk.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    asyncio.run(main())


def test_a_file_that_takes_less_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(io.BytesIO):
        def write(self, data: Any) -> int:
            return super().write(data[:1000])

    monkeypatch.setattr("tempfile.TemporaryFile", lambda **kwargs: Slow())
    data = random.Random(1).randbytes(2 * BLOCK)
    spool = Spool(1000, None, Quota(None))
    spool.add(data[:5000])
    spool.flush()
    spool.room(BLOCK)[:] = data[5000 : 5000 + BLOCK]
    spool.filled(BLOCK)
    spool.flush()
    spool.add(data[5000 + BLOCK :])
    spool.rewind()
    with spool.open() as file:
        assert file.read() == data
    spool.close()


# What is received where it is kept.


async def _digest(environ: Any, start_response: Any) -> list[bytes]:
    data = environ["wsgi.input"].read()
    assert int(environ.get("CONTENT_LENGTH", 0)) == len(data)
    start_response("200 OK", [])
    return [hashlib.sha256(data).hexdigest().encode()]


@given(
    size=st.integers(1001, 3_000_000),
    pieces=st.lists(st.integers(1, 900_000), min_size=1, max_size=8),
)
@settings(max_examples=30, deadline=None)
def test_the_next_request_begins_where_the_body_ends(size: int, pieces: list[int]) -> None:
    data = random.Random(size).randbytes(size)
    sent = LENGTH % size + data + LENGTH % 4 + b"next" + GET

    async def main() -> bytes:
        at = Harness(_digest, max_body_in_memory=1000)
        _, transport = at.connect()
        begin = 0
        for length in itertools.cycle(pieces):
            if begin >= len(sent):
                break
            await transport.receive(sent[begin : begin + length])
            begin += length
        await until(lambda: transport.written.count(b"HTTP/1.1 200 OK") == 3)
        await until(lambda: at.server.quota.used == 0)
        assert at.server.quota.blocks == 0
        transport.abort()
        await at.aclose()
        return bytes(transport.written)

    answers = parse_answers(asyncio.run(main()))
    wanted = [hashlib.sha256(each).hexdigest().encode() for each in (data, b"next", b"")]
    assert [answer.body for answer in answers] == wanted


@pytest.mark.parametrize("how", ["lost", "end", "deadline", "eof", "quota"])
def test_ends_while_it_is_received_into_a_block(harness: Any, how: str, tmp_path: Path) -> None:
    async def main() -> bytes:
        quota = 2 * MIB if how == "quota" else None
        at = harness(count, max_body_in_memory=1000, spool_dir=str(tmp_path), spool_quota=quota)
        connection, transport = at.connect()
        _, other_transport = at.connect()
        for each, size in ((transport, 2 * MIB), (other_transport, 3 * MIB // 2)):
            await each.receive(LENGTH % size)
            await each.receive(b"x" * 2000)
        await transport.receive(b"x" * 500_000)
        assert isinstance(transport.protocol, asyncio.BufferedProtocol)
        assert at.server.quota.blocks == 2
        if how == "lost":
            transport.abort()
        elif how == "end":
            connection.end()
        elif how == "deadline":
            connection.on_deadline(at.server.loop.time())
        elif how == "eof":
            assert transport.protocol.eof_received() is False
            transport.close()
        else:
            await other_transport.receive(b"x" * MIB)
            await transport.receive(b"x" * (2 * MIB - 502_001))
        if how in ("deadline", "quota"):
            # It is read on, and what comes is thrown away.
            assert transport.eof_written
            assert transport.protocol is connection
            await transport.receive(b"x" * 100_000)
        for each in (transport, other_transport):
            each.abort()
        await until(lambda: not at.server.connections)
        await until(lambda: at.server.quota.used == 0)
        assert at.server.quota.blocks == 0
        await at.aclose()
        return bytes(transport.written[:12])

    answer = {"deadline": b"HTTP/1.1 408", "quota": b"HTTP/1.1 503"}.get(how, b"")
    assert asyncio.run(main()) == answer
    assert os.listdir(tmp_path) == []


# What the thread that writes to disk receives meanwhile.


class Sent:
    """Bytes on the socket of a harness's first connection, and a transport that reads them."""

    def __init__(self, at: Any, transport: Any, data: bytes) -> None:
        self.ours, self.theirs = at.sockets[:2]
        self.ours.setblocking(False)
        self.transport = transport
        # How many the loop has read.
        self.read = 0
        self._thread = threading.Thread(target=self._send, args=(data,))
        self._thread.start()
        if len(data) < 100_000:
            # It fits in the buffer of the socket.
            self._thread.join()

    def _send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self.theirs.sendall(data)

    async def read_until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                if self.transport.reading and not self.transport.closed.is_set():
                    with contextlib.suppress(BlockingIOError):
                        self._read()
                await asyncio.sleep(0)

    def _read(self) -> None:
        protocol = self.transport.protocol
        if isinstance(protocol, asyncio.BufferedProtocol):
            size = self.ours.recv_into(protocol.get_buffer(-1))
            self.read += size
            protocol.buffer_updated(size)
        else:
            data = self.ours.recv(65536)
            self.read += len(data)
            protocol.data_received(data)

    async def end(self) -> None:
        self.theirs.close()
        await asyncio.to_thread(self._thread.join)


@pytest.mark.parametrize("rest", [1, 70_000, 3 * MIB, 20 * MIB])
def test_the_thread_that_writes_goes_on_to_receive(harness: Any, tmp_path: Path, rest: int) -> None:
    data = random.Random(rest).randbytes(2000 + rest)

    async def main() -> bytes:
        at = harness(_digest, max_body_in_memory=1000, spool_dir=str(tmp_path))
        connection, transport = at.connect()
        sent = Sent(at, transport, data[2000:] + GET)
        connection.data_received(LENGTH % len(data) + data[:2000])
        await sent.read_until(lambda: transport.written.count(b"HTTP/1.1 200 OK") == 2)
        # Never a byte of what follows the body.
        assert sent.read >= len(GET)
        if rest < 100_000:
            assert sent.read == len(GET)
        assert transport.protocol is connection
        await until(lambda: at.server.quota.used == at.server.quota.blocks == 0)
        transport.abort()
        await sent.end()
        await at.aclose()
        return bytes(transport.written)

    answers = parse_answers(asyncio.run(main()))
    wanted = [hashlib.sha256(each).hexdigest().encode() for each in (data, b"")]
    assert [answer.body for answer in answers] == wanted


def test_what_the_thread_receives_is_progress(
    harness: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def main() -> None:
        at = harness(count, max_body_in_memory=1000, spool_dir=str(tmp_path))
        connection, transport = at.connect()
        sent = Sent(at, transport, b"x" * 50_000)
        connection.data_received(LENGTH % 100_000 + b"x" * 2000)
        connection.deadline = 0.0
        disk.goes_on.set()
        await until(lambda: transport.reading)
        assert sent.read == 0
        assert connection.deadline > at.server.loop.time()
        transport.abort()
        await sent.end()
        await at.aclose()

    disk = SlowDisk(monkeypatch)
    asyncio.run(main())


@pytest.mark.parametrize("how", ["quota", "full", "gone", "lost"])
def test_ends_while_the_thread_receives(
    harness: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    async def main() -> bytes:
        quota = 100_000 if how == "quota" else None
        at = harness(count, max_body_in_memory=1000, spool_dir=str(tmp_path), spool_quota=quota)
        connection, transport = at.connect()
        sent = Sent(at, transport, b"x" * 90_000)
        connection.data_received(LENGTH % 92_001 + b"x" * 2000)
        await until(lambda: disk.flushes == 1)
        if how == "quota":
            at.server.quota.take(60_000)
        elif how == "full":
            disk.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif how == "gone":
            sent.theirs.close()
        elif how == "lost":
            transport.abort()
            await until(lambda: not at.server.connections)
        disk.goes_on.set()
        await until(lambda: at.server.quota.blocks == 0 or transport.reading)
        if how == "gone":
            assert transport.protocol.eof_received() is False
            transport.close()
        await until(lambda: at.server.quota.blocks == 0)
        assert at.server.quota.used == (60_000 if how == "quota" else 0)
        transport.abort()
        await sent.end()
        await at.aclose()
        return bytes(transport.written[:12])

    # The last byte never comes: it would be a whole body.
    disk = SlowDisk(monkeypatch)
    answer = b"HTTP/1.1 503" if how in ("quota", "full") else b""
    assert asyncio.run(main()) == answer
    assert os.listdir(tmp_path) == []


def test_no_other_connection_is_read_by_the_thread(
    harness: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The number of a descriptor that was closed meanwhile is soon another's."""

    async def main() -> None:
        at = harness(count, max_body_in_memory=1000, spool_dir=str(tmp_path))
        connection, transport = at.connect()
        connection.data_received(LENGTH % 5000 + b"x" * 2000)
        await until(lambda: disk.flushes == 1)
        transport.abort()
        number = at.sockets[0].fileno()
        at.sockets[0].close()
        others = socket.socketpair()
        others[0].setblocking(False)
        assert others[0].fileno() == number
        others[1].sendall(b"another's")
        disk.goes_on.set()
        await until(lambda: at.server.quota.blocks == 0)
        assert others[0].recv(100) == b"another's"
        for each in others:
            each.close()
        await at.aclose()

    disk = SlowDisk(monkeypatch)
    asyncio.run(main())


def test_without_a_descriptor_more_the_loop_receives(
    harness: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def main() -> None:
        at = harness(count, max_body_in_memory=1000, spool_dir=str(tmp_path))
        connection, transport = at.connect()
        sent = Sent(at, transport, b"x" * 3 * MIB)
        connection.data_received(LENGTH % (2000 + 3 * MIB) + b"x" * 2000)
        await sent.read_until(lambda: transport.written.endswith(b"\r\n\r\n%d" % (2000 + 3 * MIB)))
        assert sent.read == 3 * MIB
        transport.abort()
        await sent.end()
        await at.aclose()

    def dup(self: socket.socket) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket.socket, "dup", dup)
    asyncio.run(main())


def test_blocks_are_smaller_the_more_there_are() -> None:
    quota = Quota(None)
    sizes = [len(quota.block(100 * MIB)) for _ in range(1000)]
    assert sizes[0] == 2 * MIB
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == BLOCK
    assert sum(sizes) < 400 * MIB
    # No more than is to come.
    assert len(Quota(None).block(70_000)) == 70_000


@pytest.mark.parametrize("size", [MIB + 1, 5_000_000])
def test_a_large_body_between_others_on_a_socket(loop_factory: Any, size: int) -> None:
    data = random.Random(size).randbytes(size)

    async def main() -> bytes:
        loop = asyncio.get_running_loop()
        home = Home(loop, Threads(loop, limit=1))
        home.register()
        listening = socket.create_server(("127.0.0.1", 0))
        server = Server(_digest, Config(), home, RecordingLog())
        server.listen([listening])
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        for _ in range(3):
            writer.write(LENGTH % size + data + LENGTH % 4 + b"next")
            await writer.drain()
        writer.write(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        answers = await reader.read()
        writer.close()
        await until(lambda: server._open == 0)
        assert server.quota.used == server.quota.blocks == 0
        await server.drain(1)
        await home.aclose()
        return answers

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        answers = parse_answers(runner.run(main()))
    wanted = [hashlib.sha256(each).hexdigest().encode() for each in (data, b"next")] * 3
    wanted.append(hashlib.sha256(b"").hexdigest().encode())
    assert [answer.body for answer in answers] == wanted


# Many at a time, on real sockets.


def test_the_quota_with_uploads_that_end_in_every_way(loop_factory: Any, tmp_path: Path) -> None:
    limit, size = 3 * MIB, 700_000
    most = 0

    class Watched(Quota):
        def take(self, size: int) -> None:
            nonlocal most
            super().take(size)
            most = max(most, self.used)

    async def upload(address: Any, number: int) -> bytes:
        reader, writer = await asyncio.open_connection(*address)
        chunked = number % 2
        writer.write(CHUNKED if chunked else LENGTH % size)
        answer = b""
        with contextlib.suppress(ConnectionError):
            for at in range(0, size, 50_000):
                piece = b"x" * min(50_000, size - at)
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                await writer.drain()
                await asyncio.sleep(0.001)
                if number % 3 == 0 and at > 200_000:
                    writer.transport.abort()
                    return b"left"
            writer.write(b"0\r\n\r\n" if chunked else b"")
            answer = await reader.read(65536)
        writer.close()
        return answer

    async def main() -> list[bytes]:
        loop = asyncio.get_running_loop()
        home = Home(loop, Threads(loop, limit=1))
        home.register()
        listening = socket.create_server(("127.0.0.1", 0), backlog=100)
        config = Config(max_body_in_memory=10_000, spool_dir=str(tmp_path), spool_quota=limit)
        server = Server(count, config, home, RecordingLog())
        server.quota = Watched(limit)
        server.listen([listening])
        answers: list[bytes] = []
        for _ in range(2):
            uploads = (upload(listening.getsockname(), number) for number in range(18))
            answers += await asyncio.gather(*uploads)
            await until(lambda: server._open == 0 and not server.exchanges)
            await until(lambda: server.quota.used == 0)
            assert server.quota.blocks == 0
        # All of it is there again.
        assert (await upload(listening.getsockname(), 1)).endswith(b"\r\n\r\n%d" % size)
        await server.drain(2)
        await home.aclose()
        return answers

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        answers = runner.run(main())
    assert most <= limit
    kinds = {answer[:12] for answer in answers}
    assert {b"HTTP/1.1 200", b"HTTP/1.1 503"} <= kinds
    assert all(a.endswith(b"\r\n\r\n%d" % size) for a in answers if a.startswith(b"HTTP/1.1 200"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("blocking", [False, True])
def test_a_refused_upload_finds_its_answer(loop_factory: Any, blocking: bool) -> None:
    """Also a client that sends all of it before it looks."""
    size = 30_000_000

    def send_all(address: Any) -> bytes:
        with socket.create_connection(address, 20) as sock:
            sock.sendall(LENGTH % size)
            for _ in range(size // 100_000):
                sock.sendall(b"x" * 100_000)
            return sock.recv(65536)

    def look(address: Any) -> bytes:
        with socket.create_connection(address, 20) as sock:
            sock.sendall(LENGTH % size)
            return sock.recv(65536)

    async def main() -> bytes:
        loop = asyncio.get_running_loop()
        home = Home(loop, Threads(loop, limit=1))
        home.register()
        listening = socket.create_server(("127.0.0.1", 0))
        server = Server(count, Config(max_body=MIB), home, RecordingLog())
        server.listen([listening])
        answer = await asyncio.to_thread(send_all if blocking else look, listening.getsockname())
        await until(lambda: server._open == 0)
        await server.drain(1)
        await home.aclose()
        return answer

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(main()).startswith(b"HTTP/1.1 413 ")


def test_reading_on_is_bounded(harness: Any) -> None:
    async def main(**config: Any) -> tuple[int, float]:
        at = harness(count, max_body=10, linger_timeout=0.05, **config)
        connection, transport = at.connect()
        connection.data_received(LENGTH % 1000)
        assert transport.eof_written
        began = at.server.loop.time()
        sent = 0
        while not transport.closed.is_set():
            if sent < 100:
                sent += 1
                connection.data_received(b"x")
            await asyncio.sleep(0.01)
            if connection.deadline <= (now := at.server.loop.time()):
                connection.on_deadline(now)
        took = at.server.loop.time() - began
        await at.aclose()
        return sent, took

    # As long as it sends, and then a moment longer; or as long as it may.
    sent, took = asyncio.run(main())
    assert sent == 100
    sent, took = asyncio.run(main(linger_total=0.3))
    assert 0 < sent < 100
    assert took >= 0.3


def test_a_drain_does_not_wait_for_those_that_go_on_sending(harness: Any) -> None:
    async def main() -> None:
        at = harness(count, max_body=10, linger_timeout=0.05)
        connection, transport = at.connect()
        connection.data_received(LENGTH % 1000)
        drain = asyncio.create_task(at.server.drain(20))
        while not transport.closed.is_set():
            connection.data_received(b"x")
            await asyncio.sleep(0.01)
        async with asyncio.timeout(5):
            await drain
        await at.home.aclose()
        for sock in at.sockets:
            sock.close()

    asyncio.run(main())
