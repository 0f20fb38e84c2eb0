"""Probes are strict, few at a time, and know of other workers."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from greenroom.loops import Home
from greenroom.server import probes
from greenroom.server.probes import Group, Probes
from greenroom.threads import Threads


class Served:
    """Probes on a Unix socket of the running loop."""

    def __init__(self, path: Path, log: Any, *, others: bool = False) -> None:
        self.path = str(path)
        self.others = others
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(self.path)
        sock.listen(100)
        loop = asyncio.get_running_loop()
        self.home = Home(loop, Threads(loop, limit=1))
        self.probes = Probes(self.home, log, lambda: self.others, "test")
        self.probes.listen(sock)

    async def ask(self, target: str = "/readyz") -> bytes:
        reader, writer = await asyncio.open_unix_connection(self.path)
        writer.write(f"GET {target} HTTP/1.0\r\n\r\n".encode())
        async with asyncio.timeout(10):
            answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    async def aclose(self) -> None:
        await self.probes.aclose()
        await self.home.aclose()


@pytest.fixture
def log(harness: Any) -> Any:
    class Log:
        def __init__(self) -> None:
            self.records: list[str] = []
            self.debug = self.info = self.warning = self.error = self.exception = self.note

        def note(self, message: str, *args: Any, **kwargs: Any) -> None:
            self.records.append(message % args)

        def access(self, *args: Any) -> None:
            raise AssertionError("a probe in the access log")

    return Log()


def test_ready_and_draining(tmp_path: Path, log: Any) -> None:
    async def main() -> None:
        at = Served(tmp_path / "s", log)
        assert (await at.ask()).startswith(b"HTTP/1.1 200 OK\r\n")
        at.probes.drain()
        assert (await at.ask()).startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert (await at.ask("/livez")).startswith(b"HTTP/1.1 200 OK\r\n")
        at.others = True
        assert (await at.ask()).startswith(b"HTTP/1.1 200 OK\r\n")
        await at.aclose()

    asyncio.run(main())
    assert log.records == []


def test_who_drains_lets_others_come_first(tmp_path: Path, log: Any) -> None:
    async def main() -> None:
        at = Served(tmp_path / "s", log)
        at.probes.drain()
        loop = asyncio.get_running_loop()
        began = loop.time()
        for looks in (1, 2, 3):
            await at.ask()
            assert loop.time() - began >= looks * probes.LOOK * 0.9
        await at.aclose()

    asyncio.run(main())


def test_few_at_a_time_and_not_for_long(
    tmp_path: Path, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "CONNECTIONS", 2)
    monkeypatch.setattr(probes, "_REQUEST", 0.5)

    async def main() -> None:
        at = Served(tmp_path / "s", log)
        silent = [await asyncio.open_unix_connection(at.path) for _ in range(2)]
        asking = asyncio.create_task(at.ask())
        await asyncio.sleep(0.2)
        assert not asking.done()
        # Their time is over: they make room.
        assert (await asking).startswith(b"HTTP/1.1 200 OK\r\n")
        for reader, writer in silent:
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
        await at.aclose()

    asyncio.run(main())


def test_the_end_answers_what_was_accepted(tmp_path: Path, log: Any) -> None:
    async def main() -> None:
        at = Served(tmp_path / "s", log)
        reader, writer = await asyncio.open_unix_connection(at.path)
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(at.probes.aclose())
        await asyncio.sleep(0.05)
        writer.write(b"GET /livez HTTP/1.0\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK\r\n")
        writer.close()
        await writer.wait_closed()
        await closing
        await at.home.aclose()

    asyncio.run(main())


def test_a_group() -> None:
    """Those that serve are known until they leave, or die."""
    script = """
import os, signal, sys
from greenroom.server.probes import Group

group = Group()
def child(then):
    told, tell = os.pipe()
    go, let = os.pipe()
    pid = os.fork()
    if pid == 0:
        group.join(1)
        os.write(tell, b"x")
        os.read(go, 1)
        then()
        os.write(tell, b"x")
        os.read(go, 1)
        os._exit(0)
    os.read(told, 1)
    return pid, told, let

assert not group.others()
leaves, told, let = child(group.leave)
group.join(0)
group.leave()
assert group.others()
os.write(let, b"x")
os.read(told, 1)
assert not group.others()
os.kill(leaves, signal.SIGKILL)
dies, told, let = child(int)
assert group.others()
# What it started itself holds nothing.
os.kill(dies, signal.SIGKILL)
os.waitpid(dies, 0)
assert not group.others()
os.waitpid(leaves, 0)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_who_was_forked_counts_until_it_joins_or_is_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Group(str(tmp_path))
    assert not group.others()
    for number in (3, 4):
        group.expect(number)
    group.join(3)
    group.leave()
    assert group.others()
    group.join(4)
    group.leave()
    assert not group.others()
    # One that died before it joined.
    group.expect(5)
    assert group.others()
    monkeypatch.setattr(probes, "_UNBORN", 0.0)
    assert not group.others()
    os.close(group._descriptor)


def test_a_group_leaves_no_file(tmp_path: Path) -> None:
    group = Group(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    os.close(group._descriptor)
