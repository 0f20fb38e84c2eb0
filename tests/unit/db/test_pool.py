"""The pool, with a driver that connects to nothing."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.db import OperationalError

from greenroom import bridge
from greenroom.db import pool as pools
from greenroom.db.pool import Driver, Limits, Pool
from orm import turns


class Connection:
    """One that is in the state that a test says."""

    def __init__(self) -> None:
        self.made_at = 0.0
        self.holder: Any = None
        self._pool: Any = None
        self.suspect = False
        self.alive = self.clean = True
        self.closed = 0

    def is_clean(self) -> bool:
        return self.clean

    def is_idle(self) -> bool:
        return self.clean

    def is_open(self) -> bool:
        return self.alive

    def is_alive(self) -> bool:
        return self.alive

    def close(self) -> None:
        self.closed += 1
        self.alive = False


class Made:
    """The driver, and all that it made."""

    def __init__(self) -> None:
        self.all: list[Connection] = []
        self.before_make: Callable[[], object] = bool
        self.on_clean: Callable[[Connection], object] = self.cleaned
        self.on_check: Callable[[Connection], bool] | None = None

    @staticmethod
    def cleaned(connection: Connection) -> None:
        connection.clean = True

    def make(self) -> Connection:
        self.before_make()
        connection = Connection()
        self.all.append(connection)
        return connection

    def pool(self, limit: int = 1, timeout: float = 5.0, **more: Any) -> Pool:
        driver: Any = Driver(self.make, self.on_check, lambda each: self.on_clean(each))  # type: ignore[arg-type]
        return Pool("default", driver, Limits(limit, timeout, more.pop("max_age", None), **more))


@pytest.fixture
def made() -> Made:
    return Made()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(pools.time, "monotonic", lambda: now[0])
    return now


def whole(pool: Pool) -> bool:
    return not pool._loans and not pool._waiting and pool.size == len(pool._idle)


@bridge.bridged
async def lend(pool: Pool, name: str = "somebody") -> Any:
    return pool.lend(name)


def test_connections_are_used_again(made: Made) -> None:
    pool = made.pool(3)
    first = pool.lend("a")
    pool.give_back(first)
    assert pool.lend("b") is first
    assert pool.lend("b") is not first
    assert pool.size == len(made.all) == 2


def test_first_come_first_served_on_the_loop_and_on_threads(made: Made) -> None:
    pool = made.pool(1)
    order: list[int] = []

    async def main() -> None:
        connection = pool.lend("holder")

        async def on_loop(number: int) -> None:
            got = await lend(pool)
            order.append(number)
            await asyncio.sleep(0)
            pool.give_back(got)

        def on_thread(number: int) -> None:
            got = pool.lend("thread")
            order.append(number)
            pool.give_back(got)

        waiting = []
        for number in range(8):
            fn = on_loop(number) if number % 2 else asyncio.to_thread(on_thread, number)
            waiting.append(asyncio.create_task(fn))
            while len(pool._waiting) <= number:
                await asyncio.sleep(0.001)
        pool.give_back(connection)
        await asyncio.gather(*waiting)

    asyncio.run(main())
    assert order == list(range(8))
    assert len(made.all) == 1
    assert whole(pool)


def test_the_error_names_who_holds_them(made: Made) -> None:
    pool = made.pool(1, 0.05)
    connection = pool.lend("GET '/slow/'")
    with pytest.raises(OperationalError, match=r"within 0.05 s. All 1 are in use, by: GET '/slow/"):
        pool.lend("other")
    assert not pool._waiting
    pool.give_back(connection)
    assert pool.lend("other") is connection


@pytest.mark.parametrize("after", range(6))
def test_cancelled_while_waiting_at_any_moment(made: Made, after: int) -> None:
    """Also when it was handed over in the last moment."""
    pool = made.pool(1)

    async def main() -> None:
        connection = pool.lend("holder")
        first, second = asyncio.create_task(lend(pool)), asyncio.create_task(lend(pool))
        await turns(2)
        for turn in range(after + 1):
            if turn == after // 2:
                pool.give_back(connection)
            if turn == after:
                first.cancel()
            await asyncio.sleep(0)
        await asyncio.wait([first])
        if not first.cancelled():
            pool.give_back(first.result())
        assert await second is connection
        pool.give_back(connection)

    asyncio.run(main())
    assert whole(pool)


def test_one_that_can_t_be_made_leaves_its_place_to_who_waits(made: Made) -> None:
    pool = made.pool(1)
    calls: list[int] = []

    async def main() -> None:
        gate = asyncio.Event()

        def fails_once() -> None:
            calls.append(1)
            bridge.await_(gate.wait())
            if len(calls) == 1:
                raise OSError("refused")

        made.before_make = fails_once
        first, second = asyncio.create_task(lend(pool)), asyncio.create_task(lend(pool))
        await turns(3)
        gate.set()
        with pytest.raises(OSError, match="refused"):
            await first
        pool.give_back(await second)

    asyncio.run(main())
    assert whole(pool)
    assert pool.size == 1


def test_cancelled_while_one_is_made(made: Made) -> None:
    """It is made to its end, and closed."""
    pool = made.pool(1)

    async def main() -> None:
        gate = asyncio.Event()
        made.before_make = lambda: bridge.await_(gate.wait())
        task = asyncio.create_task(lend(pool))
        await turns(2)
        task.cancel()
        await turns(2)
        assert not task.done()
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert [each.closed for each in made.all] == [1]
    assert whole(pool)
    assert pool.size == 0


def test_what_is_not_clean_is_cleaned_before_it_is_lent(made: Made) -> None:
    pool = made.pool(1)

    async def main() -> None:
        gate = asyncio.Event()

        def clean(connection: Connection) -> None:
            bridge.await_(gate.wait())
            connection.clean = True

        made.on_clean = clean
        connection = pool.lend("a")
        made.all[0].clean = False
        pool.give_back(connection)
        task = asyncio.create_task(lend(pool))
        await turns(5)
        assert not task.done()
        gate.set()
        assert await task is connection
        pool.give_back(connection)

    asyncio.run(main())
    assert whole(pool)


@pytest.mark.parametrize("on_loop", [True, False])
def test_what_can_t_be_cleaned_or_closed_is_replaced(made: Made, on_loop: bool) -> None:
    pool = made.pool(1)

    def fails(connection: Any = None) -> None:
        raise OSError("broken")

    async def main() -> None:
        use()
        while pool._tasks:
            await asyncio.sleep(0)

    def use() -> None:
        connection: Any = pool.lend("a")
        connection.clean = False
        connection.close = fails
        pool.give_back(connection)

    made.on_clean = fails
    asyncio.run(main()) if on_loop else use()
    assert pool.size == 0
    assert pool.lend("b") is made.all[1]


def test_a_dead_one_is_replaced(made: Made) -> None:
    pool = made.pool(1)
    first = made_first = pool.lend("a")
    pool.give_back(first)
    made.all[0].alive = False
    assert pool.lend("b") is not made_first
    assert pool.size == 1


def test_health_checks(made: Made) -> None:
    made.on_check = lambda connection: connection is made.all[-1] and len(made.all) > 1
    pool = made.pool(1)
    first = pool.lend("a")
    pool.give_back(first)
    second = pool.lend("b")
    assert second is not first
    assert made.all[0].closed == 1
    pool.give_back(second)
    assert pool.lend("c") is second


def test_a_check_that_fails_loses_no_place(made: Made) -> None:
    def check(connection: Connection) -> bool:
        raise OSError("broken")

    made.on_check = check
    pool = made.pool(1)
    pool.give_back(pool.lend("a"))
    with pytest.raises(OSError):
        pool.lend("b")
    assert pool.size == 0
    assert whole(pool)


def test_age(made: Made, clock: list[float]) -> None:
    pool = made.pool(1, max_age=60)
    first = pool.lend("a")
    clock[0] += 59
    pool.give_back(first)
    assert pool.lend("b") is first
    clock[0] += 2
    pool.give_back(first)
    assert pool.lend("c") is not first
    assert pool.size == 1


@pytest.mark.parametrize(("keep", "left"), [(0, 1), (2, 2), (5, 4)])
def test_idle_ones_are_closed_but_for_those_that_are_kept(
    made: Made, clock: list[float], keep: int, left: int
) -> None:
    pool = made.pool(5, max_age=0, keep=keep)
    lent = [pool.lend("a") for _ in range(4)]
    for connection in lent[:3]:
        pool.give_back(connection)
    clock[0] += pools.IDLE + 1
    # On a thread, those that are idle are looked at when one comes back.
    pool.give_back(lent[3])
    assert pool.size == len(pool._idle) == left
    assert sum(each.closed for each in made.all) == 4 - left
    assert made.all[3].closed == 0


def test_idle_ones_are_closed_by_the_loop(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "IDLE", 0.02)
    pool = made.pool(2, max_age=0)

    async def main() -> None:
        pool.give_back(pool.lend("a"))
        async with asyncio.timeout(5):
            while pool.size:
                await asyncio.sleep(0.01)
        pool.close()

    asyncio.run(main())
    assert made.all[0].closed == 1


def test_persistent_ones_are_kept(made: Made, clock: list[float]) -> None:
    pool = made.pool(2, max_age=None)
    lent = [pool.lend("a"), pool.lend("b")]
    for connection in lent:
        clock[0] += 10_000
        pool.give_back(connection)
    assert pool.size == 2


def test_closed_while_some_are_lent(made: Made) -> None:
    pool = made.pool(2)
    first, second = pool.lend("a"), pool.lend("b")
    pool.give_back(first)
    pool.close()
    assert made.all[0].closed == 1
    pool.give_back(second)
    assert made.all[1].closed == 1
    assert pool.size == 0
    assert not pool._idle


def test_who_waits_when_it_is_closed_still_gets_one(made: Made) -> None:
    pool = made.pool(1)

    async def main() -> None:
        connection = pool.lend("a")
        task = asyncio.create_task(lend(pool))
        await turns(2)
        pool.close()
        pool.give_back(connection)
        pool.give_back(await task)

    asyncio.run(main())
    assert pool.size == 0


def test_a_loop_that_was_closed_takes_none_with_it(made: Made) -> None:
    pool = made.pool(1)
    connection = pool.lend("a")
    loop = asyncio.new_event_loop()
    task = loop.create_task(lend(pool))
    loop.run_until_complete(asyncio.sleep(0.01))
    assert len(pool._waiting) == 1
    loop.close()
    pool.give_back(connection)
    assert pool.lend("b") is connection
    del task


def test_no_more_than_the_limit_under_load(made: Made) -> None:
    pool = made.pool(3)
    out = threading.Semaphore(3)
    failures: list[str] = []

    def use() -> None:
        for number in range(100):
            connection: Any = pool.lend("thread")
            if not out.acquire(blocking=False):
                failures.append("too many")
            connection.clean = number % 3 > 0
            connection.alive = number % 7 > 0
            out.release()
            pool.give_back(connection)

    async def tasks() -> None:
        async def one() -> None:
            for number in range(50):
                connection = await lend(pool)
                if not out.acquire(blocking=False):
                    failures.append("too many")
                connection.clean = number % 3 > 0
                await asyncio.sleep(0)
                out.release()
                pool.give_back(connection)

        await asyncio.gather(*(one() for _ in range(5)))
        while pool._tasks:
            await asyncio.sleep(0)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    asyncio.run(tasks())
    for thread in threads:
        thread.join()
    assert not failures
    assert whole(pool)
    assert pool.size <= 3


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_process_begins_anew(made: Made) -> None:
    pool = made.pool(1)
    pool.give_back(pool.lend("a"))
    lent = pool.lend("b")
    pid = os.fork()
    if not pid:
        good = pool.lend("child") is not lent and not made.all[0].closed
        os._exit(0 if good else 1)
    assert os.waitpid(pid, 0)[1] == 0
    pool.give_back(lent)
    assert whole(pool)


def test_it_waits_nowhere_on_the_loop_outside_of_a_bridge(made: Made) -> None:
    pool = made.pool(1)

    async def main() -> None:
        connection = pool.lend("a")
        before = time.monotonic()
        with pytest.raises(bridge.BridgeError, match="bridged"):
            pool.lend("b")
        assert time.monotonic() - before < 1
        pool.give_back(connection)

    asyncio.run(main())
    assert whole(pool)
