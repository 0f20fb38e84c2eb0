"""Locks for tasks and threads, and the blocks of tasks, without a database."""

from __future__ import annotations

import asyncio
import contextvars
import random
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenroom import bridge, turns
from greenroom.errors import BridgeError
from greenroom.turns import Turn, Turns


class Expired(Exception):
    """The turn took too long."""


class Aborted(Exception):
    """The block around ended before."""


def make(timeout: float = 5.0) -> Turns:
    return Turns(timeout, Expired, Aborted)


def free(turn: Turn) -> bool:
    return turn.holder is None and not turn._waiting and turn._depth == 0


async def some(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def sleep(count: int) -> None:
    bridge.await_(some(count))


def task(fn: Callable[[], Any]) -> asyncio.Task[Any]:
    async def run() -> Any:
        return await bridge.run(fn)

    return asyncio.create_task(run())


async def bridge_of(fn: Callable[[], Any]) -> Any:
    return await bridge.run(fn)


@pytest.fixture
def often() -> Iterator[None]:
    """Threads change places at every moment."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_first_come_first_served_by_tasks_and_threads() -> None:
    turn = make()
    order: list[int] = []

    async def main() -> None:
        def use(number: int) -> None:
            with turn:
                order.append(number)
                if bridge.in_bridge():
                    sleep(1)

        turn.take()
        waiting: list[Any] = []
        for number in range(10):
            waiting.append(
                asyncio.create_task(asyncio.to_thread(use, number))
                if number % 3 == 0
                else task(lambda number=number: use(number))  # type: ignore[misc]
            )
            while len(turn._waiting) <= number:
                await asyncio.sleep(0.001)
        turn.release()
        await asyncio.gather(*waiting)

    asyncio.run(main())
    assert order == list(range(10))
    assert free(turn)


def test_it_is_reentrant_for_who_has_it_and_who_acts_for_them() -> None:
    turn = make(0.05)

    async def main() -> None:
        def code() -> None:
            with turn, turn:
                me = turns.actor()
                thread = threading.Thread(target=lambda: turns.acting(me, use))
                thread.start()
                thread.join()
            assert done == [1]

        def use() -> None:
            with turn:
                done.append(1)

        done: list[int] = []
        await task(code)

    asyncio.run(main())
    assert free(turn)


def test_the_error_names_the_holder() -> None:
    turn = make(0.02)

    async def main() -> None:
        def holds() -> None:
            with turn:
                sleep(3)
                bridge.await_(asyncio.sleep(0.1))

        holder = task(holds)
        holder.set_name("the holder")
        await some(2)
        with pytest.raises(Expired, match="the task the holder"):
            await task(turn.take)
        await holder

    asyncio.run(main())
    assert free(turn)


@pytest.mark.parametrize("after", range(8))
def test_cancelled_at_any_moment(after: int) -> None:
    """Also when it was given the turn in the last moment."""
    turn = make()

    async def main() -> None:
        def use() -> None:
            with turn:
                sleep(2)

        tasks = [task(use) for _ in range(4)]
        await some(after)
        tasks[1].cancel()
        tasks[2].cancel()
        await asyncio.wait(tasks)

    asyncio.run(main())
    assert free(turn)


@pytest.mark.parametrize("shielded", [True, False])
def test_a_shielded_wait_is_cancelled_after_it(shielded: bool) -> None:
    turn = make()

    async def main() -> None:
        got: list[int] = []

        def use() -> None:
            with turn:
                got.append(1)

        turn.take()
        waits = task(lambda: bridge.shielded(use) if shielded else use())
        await some(2)
        waits.cancel()
        await some(2)
        assert waits.done() is not shielded
        turn.release()
        with pytest.raises(asyncio.CancelledError):
            await waits
        assert got == [1] * shielded

    asyncio.run(main())
    assert free(turn)


def test_what_is_to_be_called_when_it_is_free() -> None:
    turn = make()
    calls: list[str] = []
    turn.when_free(lambda: calls.append("at once"))
    with turn:
        assert calls == ["at once"]
    assert calls == ["at once"]

    async def main() -> None:
        def holds() -> None:
            with turn:
                sleep(2)
                assert calls == ["at once"]

        def waits() -> None:
            with turn:
                calls.append("next")

        first, second = task(holds), task(waits)
        await some(1)
        turn.when_free(lambda: calls.append("free"))
        await asyncio.gather(first, second)

    asyncio.run(main())
    assert calls == ["at once", "free", "next"]
    assert free(turn)


def test_what_fails_when_it_is_free_holds_nobody_up() -> None:
    turn = make()

    def fails() -> None:
        raise OSError("broken")

    with pytest.raises(OSError), turn:
        turn.when_free(fails)
    assert free(turn)


def test_a_closed_loop_is_passed_over() -> None:
    turn = make()
    loop = asyncio.new_event_loop()

    async def waits() -> None:
        await bridge.run(turn.take)

    turn.take()
    lost = loop.create_task(waits())
    loop.run_until_complete(some(3))
    loop.close()
    got = threading.Event()

    def next_one() -> None:
        with turn:
            got.set()

    thread = threading.Thread(target=next_one)
    thread.start()
    while len(turn._waiting) < 2:
        pass
    turn.release()
    assert got.wait(5)
    thread.join()
    del lost


def test_it_waits_nowhere_on_the_loop_outside_of_a_bridge() -> None:
    turn = make()

    async def main() -> None:
        holder = task(turn.take)
        await holder
        with pytest.raises(BridgeError, match="bridged"):
            turn.take()
        assert not turn._waiting
        turn.release()

    asyncio.run(main())
    assert free(turn)


class Token(list[Any]):
    """Stands for `Turn._free`, and lets something happen between two steps of another."""

    def __init__(self) -> None:
        super().__init__([True])
        self.before_append: Callable[[], Any] | None = None
        self.after_failed_pop: Callable[[], Any] | None = None

    def append(self, token: Any) -> None:
        before, self.before_append = self.before_append, None
        if before is not None:
            before()
        super().append(token)

    def pop(self, *args: Any) -> Any:
        try:
            return super().pop(*args)
        except IndexError:
            after, self.after_failed_pop = self.after_failed_pop, None
            if after is not None:
                after()
            raise


def test_who_begins_to_wait_while_it_is_released_is_not_overlooked() -> None:
    turn = make()
    turn._free = token = Token()
    got = threading.Event()

    def waits() -> None:
        with turn:
            got.set()

    thread = threading.Thread(target=waits)

    def meanwhile() -> None:
        thread.start()
        while not turn._waiting:
            pass

    turn.take()
    token.before_append = meanwhile
    turn.release()
    assert got.wait(2)
    thread.join()
    assert free(turn)


def test_what_is_to_be_called_and_comes_while_it_is_released_is_called() -> None:
    turn = make()
    turn._free = token = Token()
    calls: list[str] = []
    turn.take()
    token.before_append = lambda: turn.when_free(lambda: calls.append("free"))
    turn.release()
    assert calls == ["free"]
    assert free(turn)


def test_it_comes_free_before_one_begins_to_wait() -> None:
    turn = make(0.5)
    turn._free = token = Token()
    done = threading.Event()
    go = threading.Event()

    def holds() -> None:
        turn.take()
        done.set()
        go.wait(5)
        turn.release()

    holder = threading.Thread(target=holds)
    holder.start()
    assert done.wait(5)

    def meanwhile() -> None:
        go.set()
        holder.join()

    token.after_failed_pop = meanwhile
    with turn:
        pass
    assert free(turn)


@pytest.mark.parametrize("popped", [True, False])
def test_a_ctrl_c_while_it_is_taken_locks_nobody_out(popped: bool) -> None:
    class Interrupted(list[bool]):
        def pop(self, *args: Any) -> bool:
            if popped:
                super().pop()
            raise KeyboardInterrupt

    turn = make(0.1)
    turn._free = Interrupted([True])
    with pytest.raises(KeyboardInterrupt):
        turn.take()
    turn._free = list(turn._free)
    # What ends the process may need it, to close a connection.
    with turn:
        assert turn.is_mine()


@pytest.mark.parametrize("how", ["take", "try_take"])
def test_outside_of_a_block_it_is_given_back_to_who_waits_within(how: str) -> None:
    """Who may not have it yet holds it for a moment, in which others ask for it."""
    turn = make(2)
    block = turn.open()
    turn._free = token = Token()
    here = contextvars.copy_context()
    got = threading.Event()

    def in_block() -> None:
        with turn:
            got.set()

    thread = threading.Thread(target=here.run, args=(in_block,))

    def meanwhile() -> None:
        thread.start()
        while not turn._waiting:
            pass

    token.before_append = meanwhile
    outside = threading.Thread(target=contextvars.Context().run, args=(getattr(turn, how),))
    outside.start()
    assert got.wait(1)
    thread.join()
    turn.end(block)
    outside.join()
    assert (turn.holder is not None) is (how == "take")
    if how == "take":
        turn.release()
    assert free(turn)


def test_many_threads_and_tasks_have_it_one_at_a_time(often: None) -> None:
    turn = make(20)
    inside: list[Any] = []
    calls: list[Any] = []
    rounds = 300

    def use() -> None:
        for _ in range(rounds):
            with turn:
                inside.append(turns.actor())
                with turn:
                    assert inside == [turns.actor()]
                inside.pop()

    def on_loop() -> None:
        for number in range(rounds):
            with turn:
                inside.append(turns.actor())
                if number % 3 == 0:
                    sleep(1)
                assert inside == [turns.actor()]
                inside.pop()
            if number % 7 == 0:
                turn.when_free(lambda: calls.append(1))
            if turn.try_take():
                assert not inside
                turn.release()

    async def main() -> None:
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(asyncio.to_thread(use))
            for _ in range(2):
                group.create_task(bridge_of(on_loop))

    asyncio.run(main())
    assert free(turn)
    assert calls


# Blocks.


def test_a_block_that_ended_before_ends_no_other() -> None:
    turn = make()
    outer = turn.open()
    inner = turn.open()
    turn.end(outer)
    assert inner.aborted
    another = turn.open()
    turn.end(inner)
    assert another.open
    assert turn.innermost is another
    turn.end(another)
    assert turn.innermost is None


def test_code_of_a_block_that_was_aborted_is_refused() -> None:
    turn = make()
    block = turn.open()
    turn.abort()
    assert not block.open
    with pytest.raises(Aborted):
        turn.take()
    turn.end(block)
    with turn:
        pass
    assert free(turn)


@settings(max_examples=60, deadline=None, database=None)
@given(
    programs=st.lists(
        st.tuples(
            st.one_of(st.none(), st.integers(0, 25)),
            st.recursive(
                st.lists(st.integers(0, 3), min_size=1, max_size=3),
                lambda body: st.lists(st.one_of(st.integers(0, 3), body), min_size=1, max_size=4),
                max_leaves=8,
            ),
        ),
        min_size=2,
        max_size=5,
    ),
    seed=st.integers(0, 1000),
)
def test_blocks_never_interleave(programs: Any, seed: int) -> None:
    """A list is a block, a number a statement that takes so many turns of the loop."""
    turn = make()
    random_ = random.Random(seed)
    log: list[tuple[str, int]] = []

    def do(name: int, body: Any) -> None:
        if isinstance(body, int):
            with turn:
                log.append(("begin", name))
                sleep(body)
                log.append(("end", name))
            return
        with turn:
            block = turn.open()
            log.append(("open", name))
        try:
            for each in body:
                sleep(random_.randrange(3))
                do(name, each)
        finally:
            bridge.shielded(turn.take)
            log.append(("close", name))
            turn.end(block)
            turn.release()

    async def main() -> None:
        tasks = [
            task(lambda name=name, body=body: do(name, body))  # type: ignore[misc]
            for name, (_, body) in enumerate(programs)
        ]
        for turn_ in range(26):
            for each, (after, _) in zip(tasks, programs, strict=True):
                if after == turn_:
                    each.cancel()
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
    owner, depth = -1, 0
    for what, name in log:
        if depth:
            assert name == owner
        if what == "open":
            owner, depth = name, depth + 1
        elif what == "close":
            depth -= 1
    assert depth == 0
    assert free(turn)
    assert turn.innermost is None
