"""Deadlines, draining, pauses: one sweep, a transport that doesn't take or send."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

GET = b"GET / HTTP/1.1\r\nHost: h\r\n"
# Short where a test waits for them, long where it must not.
SOON, NEVER = 0.05, 100.0


async def hello(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"hello"]


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def on_loop(test: Any) -> Any:
    """Run a coroutine test with the harness class, on a loop of its own."""

    def run(harness: Any) -> None:
        asyncio.run(test(harness))

    run.__name__ = test.__name__
    return run


def late(connection: Any) -> bool:
    """Do what the sweep does."""
    now = connection.server.loop.time()
    if connection.deadline > now:
        return False
    connection.on_deadline(now)
    return True


@on_loop
async def test_a_dripping_head_is_not_given_more_time(harness: Any) -> None:
    at = harness(hello, head_timeout=SOON)
    connection, transport = at.connect()
    for byte in (GET[i : i + 1] for i in range(8)):
        connection.data_received(byte)
        await asyncio.sleep(SOON / 4)
    assert late(connection)
    assert transport.written.startswith(b"HTTP/1.1 408 ")
    assert transport.eof_written
    await at.aclose()


@on_loop
async def test_a_new_connection_without_a_byte_is_closed_without_one(harness: Any) -> None:
    at = harness(hello, head_timeout=SOON)
    connection, transport = at.connect()
    await until(lambda: late(connection))
    assert transport.closed.is_set()
    assert not transport.written
    await at.aclose()


@on_loop
async def test_keep_alive_ends_unless_bytes_have_arrived(harness: Any) -> None:
    at = harness(hello, keepalive=SOON)
    connection, transport = at.connect()
    connection.data_received(GET + b"\r\n")
    await until(lambda: transport.written.endswith(b"hello"))
    at.sockets[1].send(b"G")  # In the kernel: the transport has not read it yet.
    await until(lambda: late(connection))
    assert not transport.closed.is_set()
    connection.data_received(GET + b"\r\n")
    await until(lambda: transport.written.count(b"hello") == 2)
    at.sockets[0].recv(1)
    await until(lambda: late(connection))
    assert transport.closed.is_set()
    await at.aclose()


@on_loop
async def test_a_body_has_time_while_it_comes(harness: Any) -> None:
    at = harness(hello, body_timeout=0.2, body_progress=10)
    connection, transport = at.connect()
    connection.data_received(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n")
    for _ in range(4):
        await asyncio.sleep(0.1)
        connection.data_received(b"x" * 10)
        assert not late(connection)
    # A drip isn't progress.
    for _ in range(3):
        await asyncio.sleep(0.1)
        connection.data_received(b"x")
    await until(lambda: late(connection))
    assert transport.written.startswith(b"HTTP/1.1 408 ")
    await at.aclose()


@on_loop
async def test_a_client_that_takes_nothing_is_aborted(harness: Any) -> None:
    ended = asyncio.Event()

    async def endless(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])

        async def items() -> Any:
            try:
                while True:
                    yield b"x" * 1000
            finally:
                ended.set()

        return items()

    at = harness(endless, write_timeout=SOON)
    connection, transport = at.connect()
    transport.buffered = 100
    connection.data_received(GET + b"\r\n")
    await until(lambda: transport.written)  # Others get their turn all the same.
    connection.pause_writing()
    # It took some: more time.
    transport.buffered = 50
    await until(lambda: late(connection))
    assert not transport.aborted
    await until(lambda: late(connection))
    assert transport.aborted
    await asyncio.wait_for(ended.wait(), 5)
    await at.aclose()


@on_loop
async def test_lingering_ends_though_its_answer_was_buffered(harness: Any) -> None:
    at = harness(hello, linger_timeout=SOON, write_timeout=NEVER)
    connection, transport = at.connect()
    connection.data_received(GET)
    transport.buffered = 100
    connection.data_received(b"Content-Length: x\r\n\r\n")
    assert transport.eof_written
    # Sent meanwhile.
    transport.buffered = 0
    await until(lambda: late(connection))
    assert transport.closed.is_set()
    await at.aclose()


@on_loop
async def test_lingering_lasts_while_its_answer_is_taken(harness: Any) -> None:
    at = harness(hello, linger_timeout=SOON, write_timeout=SOON)
    connection, transport = at.connect()
    connection.data_received(GET)
    transport.buffered = 100
    connection.data_received(b"Content-Length: x\r\n\r\n")
    for buffered in (100, 50):
        transport.buffered = buffered
        await until(lambda: late(connection))
        assert not transport.aborted
    await until(lambda: late(connection))
    assert transport.aborted
    await at.aclose()


@on_loop
async def test_writing_waits_while_paused(harness: Any) -> None:
    made = 0

    async def app(environ: Any, start_response: Any) -> Any:
        nonlocal made
        start_response("200 OK", [])
        for _ in range(10):
            made += 1
            yield b"x"

    async def wrapped(environ: Any, start_response: Any) -> Any:
        return app(environ, start_response)

    at = harness(wrapped)
    connection, transport = at.connect()
    connection.pause_writing()
    connection.data_received(GET + b"Connection: close\r\n\r\n")
    await asyncio.sleep(SOON)
    assert made == 1
    connection.resume_writing()
    await until(transport.closed.is_set)
    assert made == 10
    assert transport.written.endswith(b"0\r\n\r\n")
    await at.aclose()


@on_loop
async def test_pipelined_bytes_are_bounded(harness: Any) -> None:
    go = asyncio.Event()

    async def app(environ: Any, start_response: Any) -> Any:
        await go.wait()
        return await hello(environ, start_response)

    at = harness(app)
    connection, transport = at.connect()
    many = (GET + b"\r\n") * 5000
    for i in range(0, len(many), 1000):
        if not transport.reading:
            break
        connection.data_received(many[i : i + 1000])
        await asyncio.sleep(0)
    assert i < 70_000
    go.set()
    await until(lambda: transport.reading)
    await until(lambda: transport.written.count(b"hello") == (i // len(GET + b"\r\n")))
    await at.aclose()


@pytest.mark.parametrize("wanted", [True, False])
def test_connection_lost(harness: Any, wanted: bool) -> None:
    async def main() -> None:
        events = []

        async def app(environ: Any, start_response: Any) -> Any:
            environ["coroutine_wsgi.cancel_on_disconnect"] = wanted
            try:
                await asyncio.sleep(SOON)
                events.append("finished")
            except asyncio.CancelledError:
                events.append("cancelled")
                raise
            return await hello(environ, start_response)

        at = harness(app)
        connection, transport = at.connect()
        connection.data_received(GET + b"\r\n")
        await asyncio.sleep(0.01)
        transport.abort()
        await until(lambda: at.log.accesses)
        assert events == ["cancelled" if wanted else "finished"]
        assert not at.server.exchanges
        assert not at.server.connections
        assert not transport.written
        await at.aclose()

    asyncio.run(main())


@on_loop
async def test_cancelling_waits_until_the_body_is_closed(harness: Any) -> None:
    events = []
    closing = asyncio.Event()

    class Body:
        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> bytes:
            raise StopAsyncIteration

        async def aclose(self) -> None:
            closing.set()
            await asyncio.sleep(SOON)
            events.append("closed")

    async def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return Body()

    at = harness(app)
    connection, transport = at.connect()
    connection.data_received(GET + b"\r\n")
    await closing.wait()
    transport.abort()
    await until(lambda: at.log.accesses)
    assert events == ["closed"]
    await at.aclose()


@on_loop
async def test_an_own_cancellation_is_an_error(harness: Any) -> None:
    async def app(environ: Any, start_response: Any) -> Any:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    at = harness(app)
    connection, transport = at.connect()
    connection.data_received(GET + b"Connection: close\r\n\r\n")
    await until(transport.closed.is_set)
    assert transport.written.startswith(b"HTTP/1.1 500 ")
    await at.aclose()


@on_loop
async def test_draining(harness: Any) -> None:
    go = asyncio.Event()

    async def app(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/wait":
            await go.wait()
        return await hello(environ, start_response)

    at = harness(app, keepalive=NEVER, drain_grace=0.3)
    idle, idle_transport = at.connect()
    idle.data_received(GET + b"\r\n")
    await until(lambda: idle_transport.written)
    await asyncio.sleep(0.35)
    busy, busy_transport = at.connect()
    busy.data_received(GET.replace(b"/ ", b"/wait ") + b"\r\n")
    fresh, fresh_transport = at.connect()
    partial, partial_transport = at.connect()
    partial.data_received(GET)
    drain = asyncio.create_task(at.server.drain(5))
    await until(idle_transport.closed.is_set)
    fresh.data_received(GET + b"\r\n")
    partial.data_received(b"\r\n")
    await asyncio.sleep(0.01)
    go.set()
    for transport in (busy_transport, fresh_transport, partial_transport):
        await until(lambda t=transport: t.eof_written or t.closed.is_set())
        assert transport.written.endswith(b"hello")
        assert b"Connection: close\r\n" in transport.written
    for connection in (busy, fresh, partial):
        connection.eof_received()
        connection._transport.close()
    await asyncio.wait_for(drain, 3)
    await at.aclose()


@on_loop
async def test_requests_sent_ahead_give_way_if_there_are_other_connections(harness: Any) -> None:
    loop = asyncio.get_running_loop()
    turns = 0
    over = False
    served: list[int] = []

    def turn() -> None:
        nonlocal turns
        turns += 1
        if not over:
            loop.call_soon(turn)

    async def app(environ: Any, start_response: Any) -> Any:
        served.append(turns)
        if over:
            # The client leaves once it has its answer.
            loop.call_soon(transport.close)
        return await hello(environ, start_response)

    at = harness(app)
    connection, transport = at.connect()
    turn()
    gaps = []
    for _ in range(2):
        served.clear()
        connection.data_received((GET + b"\r\n") * 3)
        await until(lambda: len(served) == 3)
        gaps.append((served[2] - served[0]) / 2)
        # Now there is another one.
        at.connect()
    over = True
    assert gaps[0] <= 2
    assert gaps[1] >= gaps[0] + 3
    served.clear()
    connection.data_received((GET + b"\r\n") * 3)
    await asyncio.sleep(SOON)
    assert len(served) == 1
    await at.aclose()
