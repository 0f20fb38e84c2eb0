"""What keeps the loop from turning is named while it does; what doesn't isn't."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from greenroom import bridge
from greenroom.server import stacks, watchdog
from greenroom.server.watchdog import Watchdog

THRESHOLD = 0.1
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


class Log:
    def __init__(self) -> None:
        self.records: list[str] = []

    def warning(self, message: str, *args: Any) -> None:
        self.records.append(message % args)

    def starting(self, begin: str) -> list[str]:
        return [each for each in self.records if each.startswith(begin)]

    @property
    def begun(self) -> list[str]:
        return self.starting("The event loop has not turned")

    @property
    def over(self) -> list[str]:
        return self.starting("The event loop turns again")


def watch(
    body: Callable[[], Awaitable[object]],
    new_loop: Any = asyncio.new_event_loop,
    threshold: float = THRESHOLD,
    prepare: Callable[[Watchdog], object] = id,
) -> Log:
    """Run a coroutine on a loop that is watched; return what was logged."""
    log = Log()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        root = asyncio.Runner.run.__code__
        dog = Watchdog(loop, threshold, log, lambda: stacks.current(loop, set()), root)  # type: ignore[arg-type]
        prepare(dog)
        dog.start()
        # It turns for a while.
        await asyncio.sleep(threshold)
        await body()
        await asyncio.sleep(1.5 * threshold)
        dog.stop()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    assert not [each for each in threading.enumerate() if each.name == "greenroom-watchdog"]
    return log


def block() -> None:
    time.sleep(0.5)


def spin() -> None:
    ends = time.thread_time() + 0.3
    while time.thread_time() < ends:
        pass


def keep_the_lock() -> int:
    """In C, with the interpreter lock kept."""
    number, began = 10_000_000, time.thread_time()
    while True:
        sum(range(number))
        took = time.thread_time() - began
        if took > 0.25:
            return number
        number, began = int(number * 0.4 / took), time.thread_time()


@pytest.mark.parametrize("new_loop", LOOPS)
@pytest.mark.parametrize("culprit", [block, spin, keep_the_lock])
def test_what_blocks_is_named_once(new_loop: Any, culprit: Callable[[], object]) -> None:
    async def view() -> None:
        culprit()

    log = watch(view, new_loop)
    # What keeps the lock turns out to be one stall or, calibrated, two.
    assert len(log.begun) == len(log.over) >= 1
    if culprit is not keep_the_lock:
        assert len(log.begun) == 1
    first = log.begun[0]
    assert f"It runs the task watch.<locals>.main, in {culprit.__qualname__} (" in first
    assert "test_watchdog.py" in first
    # The stack has the lines, innermost last, with what called it.
    lines = re.findall(r"line \d+, in (\S+)", first)
    assert lines[-1] == culprit.__qualname__
    assert lines[-2].endswith("view")
    assert "time.sleep(0.5)" in first or culprit is not block
    after = re.search(r"has not turned for (\d+) ms", first)
    assert after
    assert int(after[1]) >= 100
    lasted = re.search(r"blocked for (\d+) ms by the task", log.over[0])
    assert lasted
    assert int(lasted[1]) >= 290 or culprit is keep_the_lock


def test_in_a_greenlet() -> None:
    async def view() -> None:
        await bridge.run(lambda: (bridge.await_(asyncio.sleep(0)), block()))

    log = watch(view, uvloop.new_event_loop)
    assert len(log.begun) == 1
    assert ", in block (" in log.begun[0]


def test_a_callback_is_no_task() -> None:
    async def view() -> None:
        asyncio.get_running_loop().call_soon(block)
        await asyncio.sleep(0.01)

    log = watch(view)
    assert "It runs a callback of no task, in block (" in log.begun[0]


@pytest.mark.parametrize("new_loop", LOOPS)
def test_a_loop_that_turns_or_waits_is_left_alone(new_loop: Any) -> None:
    async def view() -> None:
        for _ in range(20):
            time.sleep(0.01)
            await asyncio.sleep(0)
        await asyncio.sleep(0.2)

    # So much that a busy machine doesn't matter.
    assert watch(view, new_loop, threshold=0.4).records == []


@pytest.mark.parametrize("new_loop", LOOPS)
def test_a_turn_of_many_tasks_is_no_stall_of_any(new_loop: Any) -> None:
    async def one_of_many() -> None:
        time.sleep(0.01)

    async def view() -> None:
        await asyncio.gather(*(one_of_many() for _ in range(120)))

    assert watch(view, new_loop, threshold=0.4).records == []


def test_who_blocks_among_many_is_named() -> None:
    async def one_of_many(number: int) -> None:
        time.sleep(0.01)
        if number == 30:
            block()

    async def view() -> None:
        await asyncio.gather(*(one_of_many(number) for number in range(40)))

    log = watch(view)
    assert len(log.begun) == 1
    assert ", in block (" in log.begun[0]


@pytest.mark.parametrize("new_loop", LOOPS)
def test_a_loop_that_waits_though_it_is_late_is_left_alone(new_loop: Any) -> None:
    """Its timer is lost: as if it got no processor, or not the interpreter lock."""
    dogs: list[Watchdog] = []

    async def view() -> None:
        (dog,) = dogs
        assert dog._timer is not None
        dog._timer.cancel()
        await asyncio.sleep(0.5)

    assert watch(view, new_loop, prepare=dogs.append).records == []


def test_who_gets_no_processor_does_not_stall() -> None:
    """It would run, and used less than half of the time."""

    def prepare(dog: Watchdog) -> None:
        dog._is_blocked = lambda: False  # type: ignore[method-assign]

    async def view() -> None:
        block()

    assert watch(view, prepare=prepare).records == []


def test_who_overslept_does_not_accuse() -> None:
    """As after a SIGSTOP: the watchdog is late itself."""

    class Late:
        def __init__(self) -> None:
            self.lock = threading.Lock()
            self.release = self.lock.release

        def acquire(self, timeout: float = -1) -> bool:
            return self.lock.acquire(timeout=timeout if timeout < 0 else timeout + 0.2)

    def prepare(dog: Watchdog) -> None:
        dog._running = Late()  # type: ignore[assignment]

    async def view() -> None:
        block()

    assert watch(view, prepare=prepare).records == []


def test_without_a_clock_or_proc_it_says_what_it_sees() -> None:
    def prepare(dog: Watchdog) -> None:
        start = dog.start

        def bare() -> None:
            start()
            dog._clock, dog._stat = None, "/nowhere"

        dog.start = bare  # type: ignore[method-assign]

    async def view() -> None:
        block()

    log = watch(view, prepare=prepare)
    assert len(log.begun) == 1
    assert "CPU time" not in log.begun[0]


def test_many_stalls_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_AT_ONCE", 2)
    monkeypatch.setattr(watchdog, "_EVERY", 1e9)
    dogs: list[Watchdog] = []

    async def view() -> None:
        for _ in range(5):
            block()
            await asyncio.sleep(0.06)
        dogs[0]._allowed = 1.0
        block()

    log = watch(view, prepare=dogs.append)
    assert len(log.begun) == len(log.over) == 3
    assert "not logged" not in log.begun[1]
    assert re.search(
        r"Stalls that were not logged since the last one: 3, the longest of \d+ ms",
        log.begun[2],
    )


def test_the_right_to_log_comes_back() -> None:
    dog = Watchdog(None, 0.1, None, str, str)  # type: ignore[arg-type]
    for _ in range(watchdog._AT_ONCE):
        assert dog._may_log(100.0)
    assert not dog._may_log(100.0 + watchdog._EVERY / 2)
    assert dog._may_log(101.0 + watchdog._EVERY)
    assert not dog._may_log(102.0 + watchdog._EVERY)


def test_a_deep_stack_is_cut() -> None:
    def deep(n: int) -> None:
        if n:
            deep_too(n - 1)
        else:
            block()

    def deep_too(n: int) -> None:
        deep(n)

    async def view() -> None:
        deep(100)

    (record,) = watch(view).begun
    assert record.count("File ") == stacks.FRAMES
    assert re.search(r"\n  \(outside of it: 1\d\d more\)\n", record)
