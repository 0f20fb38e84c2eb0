"""What is said of a worker that is aborted."""

from __future__ import annotations

import asyncio
import linecache
import re
import signal
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import uvloop

from greenroom import bridge
from greenroom.server import stacks

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


def waits() -> None:
    bridge.await_(asyncio.sleep(3600))


def interrupted() -> None:
    signal.raise_signal(signal.SIGUSR1)


class Exchange:
    def __init__(self, task: Any, path: str, started: float) -> None:
        self.task = task
        self.started = started
        self.request = SimpleNamespace(method="GET", path=path)


def exchanges(*each: tuple[Any, str, float]) -> Any:
    return {Exchange(*one) for one in each}


async def waiter() -> None:
    await bridge.run(waits)


async def view() -> None:
    await bridge.run(interrupted)


@pytest.mark.parametrize("new_loop", LOOPS)
def test_an_autopsy_in_a_signal_handler(new_loop: Any) -> None:
    reports: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        waiting = asyncio.create_task(bridge.bridged(asyncio.to_thread)(int))
        waiting.cancel()
        await asyncio.wait([waiting])
        tasks = [asyncio.create_task(waiter()) for _ in range(2)]
        await asyncio.sleep(0.01)
        running = asyncio.create_task(view())
        known = exchanges(
            (tasks[0], "/waits", now - 5), (running, "/runs", now - 2), (None, "/other", now - 9)
        )

        def handler(sig: int, frame: FrameType | None) -> None:
            root = asyncio.Runner.run.__code__
            reports.append(stacks.autopsy(loop, known, frame, root))

        before = signal.signal(signal.SIGUSR1, handler)
        try:
            await running
        finally:
            signal.signal(signal.SIGUSR1, before)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert bridge.suspended(loop) == []

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    (report,) = reports
    # In the greenlet, and in what waits for it.
    first, _, rest = report.partition("\nIn flight, the oldest first: ")
    assert first.startswith("It ran GET /runs:\n")
    functions = re.findall(r"line \d+, in (\S+)", first)
    assert functions.index("view") < functions.index("interrupted")
    assert "Runner.run" not in functions
    assert rest.startswith("GET /other (9.0 s), GET /waits (5.0 s), GET /runs (2.0 s)\n")
    # Those that wait in greenlets: a request's, and another's.
    assert rest.count("Suspended in synchronous code, GET /waits:\n") == 1
    assert rest.count("Suspended in synchronous code, the task Task-") == 1
    assert rest.count("in waits\n    bridge.await_(asyncio.sleep(3600))") == 2
    # Neither what has ended nor what runs.
    assert rest.count("Suspended") == 2


SOURCE = """\
# coding: latin-1
import sys
def outer():
    return inner()
def inner():
    return sys._getframe(0), "\xe4"
"""


def test_no_source_is_kept(tmp_path: Path) -> None:
    """linecache would keep all of each file, in each worker, for ever."""
    path = tmp_path / "module.py"
    path.write_text(SOURCE, encoding="latin-1")
    unread = compile(SOURCE, "<generated>", "exec"), compile(SOURCE, str(tmp_path), "exec")
    found = [
        *[(code, 3) for code in unread],
        # Past its end, and nowhere.
        *[(compile("", str(path), "exec"), line) for line in (7, None)],
    ]
    names: dict[str, Any] = {}
    exec(compile(path.read_bytes(), str(path), "exec"), names)
    frame, _ = names["outer"]()
    said = stacks.text([(frame.f_code, 6), (names["outer"].__code__, 4), *found])  # type: ignore[list-item]
    assert str(path) not in linecache.cache
    assert said.splitlines() == [
        f'  File "{path}", line None, in <module>',
        f'  File "{path}", line 7, in <module>',
        f'  File "{tmp_path}", line 3, in <module>',
        '  File "<generated>", line 3, in <module>',
        f'  File "{path}", line 4, in outer',
        "    return inner()",
        f'  File "{path}", line 6, in inner',
        '    return sys._getframe(0), "\xe4"',
    ]


def test_names_are_bounded() -> None:
    assert stacks.names(["a", "b"]) == "a, b"
    assert stacks.names(map(str, range(12))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"


def test_what_runs() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert stacks.current(loop, exchanges((task, "/a", 0.0))) == "GET /a"
        assert stacks.current(loop, set()).startswith("the task test_what_runs.<locals>.main")
        told: list[str] = []
        loop.call_soon(lambda: told.append(stacks.current(loop, set())))
        await asyncio.sleep(0.01)
        assert told == ["a callback of no task"]

    asyncio.run(main())
