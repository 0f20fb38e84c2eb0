"""The rules of `greenroom.threads`: bounds, order, cancellation, context."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from asgiref.local import Local
from asgiref.sync import async_to_sync, sync_to_async
from hypothesis import given, settings
from hypothesis import strategies as st

from greenroom import bridge, crossing, patches, threads
from greenroom.bridge import await_
from greenroom.crossing import Held, Hold, Then, new_lane
from greenroom.errors import BridgeError, Overloaded
from greenroom.loops import Home
from greenroom.threads import Threads

patches.apply()

Main = Callable[[Threads], Awaitable[Any]]
Go = Callable[..., Any]
var: contextvars.ContextVar[Any] = contextvars.ContextVar("var", default=None)
local = Local()
LONG = 20


def serve(main: Main, loop_factory: Any = asyncio.new_event_loop, **limits: Any) -> Any:
    """Run `main(pool)`, then see that nothing is left of what it did."""
    limits.setdefault("limit", 2)

    async def whole() -> Any:
        loop = asyncio.get_running_loop()
        home = Home(loop, Threads(loop, **limits))
        home.register()
        pool = home.threads
        try:
            result = await asyncio.wait_for(main(pool), LONG)
            await settled(pool)
            return result
        finally:
            await home.aclose()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(whole())


@pytest.fixture
def go(loop_factory: Any) -> Go:
    def go(main: Main, **limits: Any) -> Any:
        return serve(main, loop_factory, **limits)

    return go


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("never came true")


def nothing_left(pool: Threads) -> bool:
    return (
        (pool._parked, sum(pool._running)) == (0, 0)
        and not pool.tasks
        and not any(pool._queues)
        and pool._places._value == pool.max_parked
        and len(pool._idle) == pool.made
    )


async def settled(pool: Threads) -> None:
    await until(lambda: nothing_left(pool))
    assert pool.made <= pool.most


def me() -> threading.Thread:
    return threading.current_thread()


async def value(result: Any) -> Any:
    await asyncio.sleep(0)
    return result


async def running(pool: Threads, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A task that runs `fn`, begun."""
    task = asyncio.create_task(pool.run(fn, *args, **kwargs))
    await asyncio.sleep(0)
    return task


# Rule 1: starting is bounded, resuming is not.


@pytest.mark.parametrize("limit", [1, 3])
def test_at_most_limit_run(go: Go, limit: int) -> None:
    lock = threading.Lock()
    now = most = 0

    def job(i: int) -> int:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.004)
        with lock:
            now -= 1
        return i

    async def main(pool: Threads) -> None:
        results = await asyncio.gather(*(pool.run(job, i) for i in range(24)))
        assert results == list(range(24))
        assert pool.made == limit

    go(main, limit=limit)
    assert most == limit


def test_resuming_never_queues(go: Go) -> None:
    """One thread: A parks with a lock held, B blocks on it. A gets through."""
    lock = threading.Lock()
    order: list[str] = []

    async def main(pool: Threads) -> None:
        locked, blocked = asyncio.Event(), asyncio.Event()

        def a() -> None:
            with lock:
                await_(signal(locked))
                await_(blocked.wait())
                await_(value(None))
                order.append("a commits")

        def b() -> None:
            loop.call_soon_threadsafe(blocked.set)
            with lock:
                order.append("b")

        async def signal(event: asyncio.Event) -> None:
            event.set()

        loop = asyncio.get_running_loop()
        first = await running(pool, a, parks=True)
        await locked.wait()
        await asyncio.gather(first, pool.run(b))

    go(main, limit=1)
    assert order == ["a commits", "b"]


def test_a_parked_threads_place_is_another_ones_at_once(go: Go) -> None:
    """Also when work has queued, and the others keep their places."""

    async def main(pool: Threads) -> None:
        leave, late = threading.Event(), asyncio.Event()
        blocker = await running(pool, leave.wait, LONG)
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def parks() -> None:
            loop.call_soon_threadsafe(begun.set)
            go_on.wait(LONG)
            await_(late.wait())

        go_on = threading.Event()
        parked = await running(pool, parks)
        await begun.wait()
        queued = await running(pool, lambda: "ran")
        await asyncio.sleep(threads.WAKE * 2)
        assert not queued.done()
        start = time.monotonic()
        go_on.set()
        assert await queued == "ran"
        assert time.monotonic() - start < 0.09
        leave.set()
        late.set()
        await asyncio.gather(blocker, parked)

    go(main, limit=2)


# Rule 2: parked threads are bounded.


def test_max_parked_is_first_come_first_served(go: Go) -> None:
    order: list[int] = []

    async def main(pool: Threads) -> None:
        events = [asyncio.Event() for _ in range(6)]

        def job(i: int) -> None:
            order.append(i)
            await_(events[i].wait())

        tasks = [await running(pool, job, i, parks=True) for i in range(6)]
        await until(lambda: pool._parked == 2)
        for i in range(6):
            assert order == list(range(min(i + 2, 6)))
            events[i].set()
            await tasks[i]
            await until(lambda i=i: len(order) == min(i + 3, 6))  # type: ignore[misc]

    go(main, limit=4, max_parked=2)


def test_overloaded(go: Go) -> None:
    async def main(pool: Threads) -> None:
        event = asyncio.Event()
        tasks = [await running(pool, lambda: await_(event.wait()), parks=True) for _ in range(2)]
        with pytest.raises(Overloaded, match="MAX_PARKED") as caught:
            await pool.run(lambda: None, parks=True)
        assert caught.value.retry_after == 1
        # What doesn't park is served.
        assert await pool.run(lambda: "plain") == "plain"
        event.set()
        await asyncio.gather(*tasks)
        assert await pool.run(lambda: await_(value("again")), parks=True) == "again"

    go(main, max_parked=2, queue_timeout=0.05)


def test_jobs_that_park_unforeseen_are_bounded(go: Go) -> None:
    async def main(pool: Threads) -> None:
        event = asyncio.Event()
        tasks = [await running(pool, lambda: await_(event.wait())) for _ in range(40)]
        done, pending = await asyncio.wait(tasks, timeout=0.5)
        assert len(pending) <= pool.max_parked + 2 * pool.limit
        assert all(isinstance(task.exception(), Overloaded) for task in done)
        assert pool.made <= pool.most
        event.set()
        await asyncio.wait(pending)

    go(main, limit=2, max_parked=3, queue_timeout=0.05)


def test_a_refusal_brings_no_other_requests_context(go: Go) -> None:
    seen: list[Any] = []

    async def main(pool: Threads) -> None:
        event = asyncio.Event()
        parked = [await running(pool, lambda: await_(event.wait())) for _ in range(3)]
        await until(lambda: pool._parked == 3)

        async def request(i: int) -> None:
            var.set(i)
            local.name = i
            with pytest.raises(Overloaded):
                await pool.run(lambda: None)
            seen.append((i, var.get(), local.name))

        await asyncio.gather(*(request(i) for i in range(5)))
        event.set()
        await asyncio.gather(*parked)

    go(main, limit=1, max_parked=2, queue_timeout=0.03)
    assert sorted(seen) == [(i, i, i) for i in range(5)]


@pytest.mark.parametrize("pages", [7, 8, 9, 30])
@pytest.mark.parametrize("parks", [False, True])
def test_pages_that_call_back_into_their_server(go: Go, pages: int, parks: bool) -> None:
    """At and above the bound: each is answered or refused, in time."""

    async def main(pool: Threads) -> None:
        def page() -> str:
            return await_(asyncio.create_task(pool.run(callback, parks=parks)))  # type: ignore[return-value]

        def callback() -> str:
            return await_(value("back")) if parks else "back"

        results = await asyncio.gather(
            *(pool.run(in_page, page, parks=True) for _ in range(pages)), return_exceptions=True
        )
        assert {str(r) if r == "back" else type(r) for r in results} <= {"back", Overloaded}
        if not parks or pages < 8:
            assert results == ["back"] * pages

    def in_page(page: Any) -> Any:
        return await_(as_coroutine(page))

    async def as_coroutine(page: Any) -> Any:
        return await bridge.run(page)

    go(main, limit=2, max_parked=8, queue_timeout=0.2)


# Rule 3: which thread.


def test_threads_are_reused_last_in_first_out(go: Go) -> None:
    async def main(pool: Threads) -> None:
        barrier = threading.Barrier(4)
        await asyncio.gather(*(pool.run(barrier.wait, LONG) for _ in range(4)))
        await until(lambda: len(pool._idle) == 4)
        used = set()
        for _ in range(50):
            used.add(await pool.run(me))
            await until(lambda: len(pool._idle) == 4)
        assert len(used) == 1
        assert pool.made == 4

    go(main, limit=4)


def test_one_thread_serves_short_jobs(go: Go) -> None:
    async def main(pool: Threads) -> None:
        for _ in range(200):
            await pool.run(lambda: None)
        assert pool.made <= 2

    go(main, limit=8)


def test_no_timer_while_nothing_waits(go: Go) -> None:
    async def main(pool: Threads) -> None:
        event = asyncio.Event()
        parked = await running(pool, lambda: await_(event.wait()))
        await asyncio.gather(*(pool.run(time.sleep, 0.005) for _ in range(4)))
        await until(lambda: pool._timer is None)
        event.set()
        await parked

    go(main)


def test_no_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The job waits for one that can: nothing is lost."""
    start, failures = threading.Thread.start, [1, 1]

    def failing(thread: threading.Thread) -> None:
        if failures and thread.name.startswith("greenroom-"):
            failures.pop()
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", failing)

    async def main(pool: Threads) -> None:
        assert await pool.run(lambda: "ran") == "ran"
        assert pool.made == 1

    serve(main)
    assert "can't start new thread" in caplog.text


def test_a_thread_is_started_for_no_request(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentry's SDK and OpenTelemetry give a new thread the context that started it."""
    start = threading.Thread.start
    seen = []

    def traced(self: threading.Thread) -> None:
        seen.append(var.get())
        start(self)

    monkeypatch.setattr(threading.Thread, "start", traced)

    async def main(pool: Threads) -> None:
        var.set("a request's")
        assert await pool.run(var.get) == "a request's"

    go(main)
    assert seen == [None]


def test_an_error_of_ours_costs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any) -> None:
        raise MemoryError

    async def main(pool: Threads) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(crossing.Job, "execute", broken)
            with pytest.raises(MemoryError):
                await pool.run(lambda: None)
        assert await pool.run(lambda: 1) == 1

    serve(main, limit=1)


# Rule 4: one task.


def test_a_request_is_one_task(go: Go) -> None:
    async def main(pool: Threads) -> None:
        task = asyncio.current_task()

        def job() -> None:
            for _ in range(3):
                assert await_(who()) is task
            assert await_(asyncio.wait_for(value(3), 1)) == 3

        async def who() -> Any:
            return asyncio.current_task()

        await pool.run(job)

    go(main)


def test_six_deep(go: Go) -> None:
    """sync -> async -> sync ..., by await_ and by asgiref: on one thread."""
    seen: list[Any] = []

    def sync(depth: int) -> int:
        seen.append(me())
        if not depth:
            return 0
        one = await_(coroutine(depth - 1))
        two: int = async_to_sync(coroutine)(depth - 1)
        return one + two + 1

    async def coroutine(depth: int) -> int:
        await asyncio.sleep(0)
        return await sync_to_async(sync)(depth)

    async def main(pool: Threads) -> None:
        assert await pool.run(sync, 6) == 63
        assert len(set(seen)) == 1
        seen.clear()
        # From a coroutine that has no thread.
        new_lane(pool)
        assert await coroutine(6) == 63
        assert len(set(seen)) == 1

    go(main, limit=1, max_parked=1)


# Rule 5: lanes.


def test_calls_run_on_the_parked_thread_in_order(go: Go) -> None:
    async def main(pool: Threads) -> None:
        order: list[int] = []
        used: set[Any] = set()
        tasks: list[Any] = []
        response = asyncio.Event()

        def call(i: int) -> None:
            used.add(me())
            order.append(i)

        async def view() -> None:
            await asyncio.gather(*(sync_to_async(call)(i) for i in range(10)))
            async with asyncio.TaskGroup() as group:
                group.create_task(sync_to_async(call)(10))
            other = await sync_to_async(me, thread_sensitive=False)()
            assert other not in used
            tasks.append(asyncio.create_task(outlives()))

        async def outlives() -> Any:
            await response.wait()
            first = await sync_to_async(me)()
            # And waits in turn.
            await sync_to_async(lambda: await_(sync_to_async(value_of)(1)))()
            return first

        def value_of(x: int) -> int:
            return x

        def job() -> Any:
            await_(view())
            return me()

        thread = await pool.run(job, parks=True)
        assert used == {thread}
        assert order == list(range(11))
        response.set()
        assert (await tasks[0]).name.startswith("greenroom-")

    go(main, limit=1, max_parked=1)


def test_calls_of_a_request_without_a_thread(go: Go) -> None:
    """On free threads, one at a time and in order; requests don't wait for each other."""

    async def main(pool: Threads) -> None:
        barrier = threading.Barrier(2)
        order: list[Any] = []

        async def request(name: str) -> None:
            new_lane(pool)
            busy = threading.Lock()

            def call(i: int) -> None:
                assert busy.acquire(blocking=False)
                barrier.wait(LONG)
                order.append((name, i))
                busy.release()

            await asyncio.gather(*(sync_to_async(call)(i) for i in range(8)))

        await asyncio.gather(request("a"), request("b"))
        for name in "ab":
            assert [i for n, i in order if n == name] == list(range(8))

    go(main)


def test_a_lane_of_another_loop_is_not_used(go: Go) -> None:
    """A context that was copied to a thread with a loop of its own."""

    async def main(pool: Threads) -> None:
        new_lane(pool)

        def other_loop() -> Any:
            return serve(lambda inner: sync_to_async(me)())

        context = contextvars.copy_context()
        thread = await asyncio.to_thread(context.run, other_loop)
        assert thread.name.startswith("greenroom-")
        assert pool.made == 0

    go(main)


def test_after_call(go: Go, caplog: pytest.LogCaptureFixture) -> None:
    async def main(pool: Threads) -> None:
        calls: list[Any] = []

        def after() -> None:
            calls.append(me())
            raise SystemExit

        pool.after_call = after
        thread = await sync_to_async(me)()
        await settled(pool)
        assert calls == [thread]
        await pool.run(lambda: await_(sync_to_async(me)()))
        assert len(calls) == 1

    go(main, limit=1)
    assert "after a call" in caplog.text


# Rule 6: context.


def test_context_both_ways(go: Go) -> None:
    async def main(pool: Threads) -> None:
        var.set("task")
        local.name = "task"

        def job() -> None:
            assert (var.get(), local.name) == ("task", "task")
            var.set("thread")
            local.name = "thread"
            await_(coroutine())
            assert (var.get(), local.name) == ("call", "call")
            local.name = var.set("end") and "end"

        async def coroutine() -> None:
            assert (var.get(), local.name) == ("thread", "thread")
            var.set("coroutine")
            local.name = "coroutine"
            await sync_to_async(call)()

        def call() -> None:
            assert (var.get(), local.name) == ("coroutine", "coroutine")
            var.set("call")
            local.name = "call"

        def clean() -> None:
            assert var.get() is None
            assert not hasattr(local, "name")

        await pool.run(job)
        assert (var.get(), local.name) == ("end", "end")
        # The same thread, for another request.
        await asyncio.create_task(pool.run(clean), context=contextvars.Context())
        assert pool.made == 1

    go(main, limit=1)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(["await", "call", "set", "child"]), max_size=5),
        min_size=2,
        max_size=4,
    ),
    st.integers(1, 2),
)
def test_requests_never_see_each_others_context(programs: list[list[str]], limit: int) -> None:
    def step(name: str, count: list[int]) -> None:
        assert (var.get(), local.name) == (name, (name, count[0]))
        count[0] += 1
        local.name = (name, count[0])

    async def coroutine(name: str, count: list[int], how: str) -> None:
        step(name, count)
        await asyncio.sleep(0)
        if how == "call":
            await sync_to_async(step)(name, count)
        if how == "child":
            # A child's changes stay with it.
            await asyncio.create_task(sync_to_async(step)(name, list(count)))
        step(name, count)

    def job(name: str, program: list[str]) -> None:
        count = [0]
        local.name = (name, 0)
        for how in program:
            if how == "set":
                step(name, count)
            else:
                await_(coroutine(name, count, how))
        local.name = name

    async def request(pool: Threads, name: str, program: list[str]) -> None:
        assert not hasattr(local, "name")
        var.set(name)
        await pool.run(job, name, program)
        assert (var.get(), local.name) == (name, name)

    async def main(pool: Threads) -> None:
        await asyncio.gather(
            *(request(pool, str(i), program) for i, program in enumerate(programs))
        )

    serve(main, limit=limit)


class Request:
    pass


def test_nothing_is_kept_alive(go: Go) -> None:
    things: weakref.WeakSet[Any] = weakref.WeakSet()

    async def main(pool: Threads) -> None:
        def job(request: Request) -> Any:
            here = Request()
            things.add(here)
            var.set(here)
            await_(coroutine(request))
            if len(things) % 2:
                raise LookupError
            return here

        async def coroutine(request: Request) -> None:
            await sync_to_async(lambda: request)()

        async def request() -> None:
            one = Request()
            things.add(one)
            var.set(one)
            with contextlib.suppress(LookupError):
                await pool.run(job, one)

        await asyncio.gather(*(request() for _ in range(30)))
        await settled(pool)
        await until(lambda: not any(pool._queues))
        await asyncio.sleep(0)
        gc.collect()
        assert len(things) == 0

    go(main)


# Errors.


class Marked(Exception):
    pass


@pytest.mark.parametrize(
    "error", [Marked, StopIteration, SystemExit, KeyboardInterrupt, asyncio.CancelledError]
)
@pytest.mark.parametrize("where", ["job", "coroutine", "call"])
def test_errors(go: Go, error: Any, where: str) -> None:
    def fail() -> None:
        raise error("mine")

    def job() -> None:
        if where == "job":
            fail()
        elif where == "coroutine":
            await_(coroutine())
        else:
            await_(sync_to_async(fail)())

    async def coroutine() -> None:
        await asyncio.sleep(0)
        fail()

    async def main(pool: Threads) -> None:
        # StopIteration out of a coroutine is a RuntimeError (PEP 479).
        expected = RuntimeError if error is StopIteration else error
        try:
            await pool.run(job)
        except expected:
            pass
        else:
            raise AssertionError("nothing was raised")
        assert await pool.run(lambda: await_(value(2))) == 2

    go(main)


@pytest.mark.parametrize("where", ["job", "coroutine", "task"])
def test_errors_form_no_cycles(go: Go, where: str) -> None:
    def fail() -> None:
        raise Marked

    async def coroutine() -> None:
        await asyncio.sleep(0)
        fail()

    def job() -> None:
        if where == "job":
            fail()
        if where == "coroutine":
            await_(coroutine())
        await_(spawned())

    async def spawned() -> None:
        await asyncio.create_task(coroutine())

    async def once(pool: Threads) -> weakref.ref[Marked]:
        try:
            await pool.run(job)
        except Marked as exc:
            return weakref.ref(exc)
        raise AssertionError

    async def main(pool: Threads) -> None:
        gc.collect()
        gc.disable()
        try:
            error = await once(pool)
            await settled(pool)
            await until(lambda: error() is None)
        finally:
            gc.enable()

    go(main)


# Then and Hold.


def test_then(go: Go, caplog: pytest.LogCaptureFixture) -> None:
    async def main(pool: Threads) -> None:
        leave = threading.Event()
        seen: list[Any] = []

        def after() -> None:
            assert leave.wait(LONG)
            seen.append(await_(value("waited")))
            seen.append(await_(sync_to_async(me)()) is me())
            raise Marked("after the answer")

        assert await pool.run(lambda: Then("value", after), parks=True) == "value"
        assert not seen
        assert pool._places._value == pool.max_parked
        leave.set()
        await settled(pool)
        assert seen == ["waited", True]

    go(main)
    assert "after the answer" in caplog.text


def test_what_then_waits_for_at_once_is_answered(go: Go) -> None:
    """It arrives on the loop together with the value, before the task goes on."""

    async def main(pool: Threads) -> None:
        seen: list[Any] = []
        both = threading.Event()

        def after() -> None:
            both.set()
            seen.append(await_(value(1)))

        task = await running(pool, lambda: Then(None, after))
        # The loop stands still until both are under way.
        assert both.wait(LONG)
        time.sleep(0.02)
        await task
        await until(lambda: seen == [1])

    go(main)


def test_hold(go: Go) -> None:
    async def main(pool: Threads) -> None:
        used: list[Any] = []
        closed: list[Any] = []

        def job() -> Hold:
            var.set("job")
            used.append(me())
            return Hold(iter("ab"), lambda: closed.append(me()))

        def step(iterator: Iterator[str]) -> Any:
            used.append(me())
            assert var.get() == "between"
            return await_(value(next(iterator, None)))

        held = await pool.run(job, parks=True)
        assert isinstance(held, Held)
        assert var.get() == "job"
        # Between two calls its place is free.
        assert await pool.run(lambda: "other") == "other"
        var.set("between")
        with pytest.raises(LookupError):
            await held.call({}.__getitem__, 1)
        busy = threading.Event()
        first = asyncio.create_task(held.call(busy.wait, LONG))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="one call at a time"):
            await held.call(len, ())
        busy.set()
        assert await first
        assert pool._places._value == pool.max_parked - 1
        await held.release()
        await held.release()
        assert closed == [used[0]]
        with pytest.raises(RuntimeError, match="release"):
            await held.call(len, ())

    go(main, limit=1)


def test_hold_sees_the_context_of_its_job(go: Go) -> None:
    async def main(pool: Threads) -> None:
        def job() -> Hold:
            var.set("job")
            return Hold(None, lambda: None)

        held = await pool.run(job)
        assert await held.call(var.get) == "job"
        await held.release()

    go(main)


def test_a_held_thread_that_is_dropped_is_let_go(go: Go) -> None:
    async def main(pool: Threads) -> None:
        closed = threading.Event()
        held = await pool.run(lambda: Hold(None, closed.set), parks=True)
        del held
        await settled(pool)
        assert closed.is_set()

    go(main)


# Cancellation, in every state.


def test_cancelled_while_it_queues_for_a_place(go: Go) -> None:
    async def main(pool: Threads) -> None:
        event = asyncio.Event()
        parked = await running(pool, lambda: await_(event.wait()), parks=True)
        ran: list[int] = []
        waiting = [await running(pool, ran.append, i, parks=True) for i in range(4)]
        waiting[0].cancel()
        waiting[2].cancel()
        event.set()
        # Granted, and cancelled before it went on.
        await parked
        waiting[1].cancel()
        await asyncio.wait(waiting)
        assert [task.cancelled() for task in waiting[::2]] == [True, True]
        assert waiting[3].done()
        assert 3 in ran

    go(main, max_parked=1)


@pytest.mark.parametrize("parks", [False, True])
def test_cancelled_while_it_queues_for_a_thread(go: Go, parks: bool) -> None:
    async def main(pool: Threads) -> None:
        leave = threading.Event()
        blocker = await running(pool, leave.wait, LONG)
        ran: list[int] = []
        task = await running(pool, ran.append, 1, parks=parks)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        leave.set()
        await blocker
        await pool.run(lambda: None)
        assert not ran

    go(main, limit=1)


@pytest.mark.parametrize("waits", [0, 1, 3])
def test_cancelled_while_it_runs(go: Go, waits: int) -> None:
    """Delivered where it next waits; else raised when the thread is done."""

    async def main(pool: Threads) -> None:
        begun, leave = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()
        seen: list[str] = []

        def job() -> None:
            loop.call_soon_threadsafe(begun.set)
            assert leave.wait(LONG)
            try:
                for _ in range(waits):
                    await_(asyncio.sleep(0))
                    seen.append("waited")
            except asyncio.CancelledError:
                seen.append("cancelled")
                # Once: clean-up may wait.
                await_(asyncio.sleep(0.001))
                raise
            finally:
                seen.append("end")

        task = await running(pool, job, parks=True)
        await begun.wait()
        task.cancel()
        await asyncio.sleep(0.005)
        assert not task.done()
        leave.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelling() == 1
        assert seen == (["cancelled", "end"] if waits else ["end"])

    go(main)


def test_cancelled_while_parked_and_between(go: Go) -> None:
    async def main(pool: Threads) -> None:
        seen: list[str] = []

        def job() -> None:
            try:
                await_(value(1))
                await_(asyncio.Event().wait())
            except asyncio.CancelledError as exc:
                seen.append(str(exc))
                await_(value(1))
                raise

        for pause in (0, 1, 2, 3, 5, 8):
            task = await running(pool, job, parks=True)
            for _ in range(pause):
                await asyncio.sleep(0.0005)
            task.cancel("why")
            with pytest.raises(asyncio.CancelledError):
                await task
        assert set(seen) == {"why"}

    go(main)


def test_a_swallowed_cancellation_is_named(go: Go, caplog: pytest.LogCaptureFixture) -> None:
    async def main(pool: Threads) -> None:
        def careless() -> str:
            with contextlib.suppress(BaseException):
                await_(asyncio.Event().wait())
            return "went on"

        task = await running(pool, careless, parks=True)
        await until(lambda: pool._parked == 1)
        task.cancel()
        assert await task == "went on"

    go(main)
    (record,) = caplog.records
    assert "careless" in record.getMessage()


def test_what_was_not_cancelled_is_not_named(go: Go, caplog: pytest.LogCaptureFixture) -> None:
    async def main(pool: Threads) -> None:
        def job() -> Hold:
            with contextlib.suppress(asyncio.CancelledError):
                await_(child())
            return Hold(None, lambda: None)

        async def child() -> None:
            task = asyncio.create_task(asyncio.sleep(LONG))
            task.cancel()
            await task

        held = await pool.run(job)
        task = asyncio.create_task(held.call(await_, asyncio.Event().wait()))
        await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await held.release()

    go(main)
    assert not caplog.records


@pytest.mark.parametrize("busy", [False, True])
def test_a_timeout_around_run(go: Go, busy: bool) -> None:
    async def main(pool: Threads) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                if busy:
                    await pool.run(time.sleep, 0.03)
                else:
                    await pool.run(lambda: await_(asyncio.Event().wait()))
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    go(main)


def test_a_timeout_takes_nobody_elses_cancellation(go: Go) -> None:
    """The client goes away, then the view's own timeout fires, while a thread is busy."""

    async def main(pool: Threads) -> None:
        leave = threading.Event()

        async def view() -> str:
            try:
                async with asyncio.timeout(0.02):
                    await pool.run(leave.wait, LONG)
            except TimeoutError:
                return "as if nobody had gone"
            return "no timeout"

        task = asyncio.create_task(view())
        await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.sleep(0.03)
        leave.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    go(main)


def test_cancelled_in_then(go: Go) -> None:
    """The answer was given: nothing is cancelled."""

    async def main(pool: Threads) -> None:
        event, seen = asyncio.Event(), []

        def after() -> None:
            seen.append(await_(event.wait()))

        async def request() -> None:
            await pool.run(lambda: Then(1, after))
            await asyncio.sleep(LONG)

        task = asyncio.create_task(request())
        await until(lambda: pool._parked == 1)
        task.cancel()
        await asyncio.wait([task])
        event.set()
        await until(lambda: seen == [True])

    go(main)


@pytest.mark.parametrize("state", ["begin", "idle", "step", "parked step", "release"])
def test_cancelled_while_held(go: Go, state: str) -> None:
    async def main(pool: Threads) -> None:
        leave, closed = threading.Event(), []
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def job() -> Hold:
            loop.call_soon_threadsafe(begun.set)
            if state == "begin":
                leave.wait(LONG)
            return Hold(None, close)

        def close() -> None:
            await_(asyncio.sleep(0.01))
            closed.append(1)

        async def request() -> None:
            held = await pool.run(job, parks=True)
            try:
                if state == "idle":
                    await asyncio.sleep(LONG)
                if state == "step":
                    await held.call(leave.wait, LONG)
                if state == "parked step":
                    await held.call(await_, asyncio.Event().wait())
            finally:
                await held.release()

        task = asyncio.create_task(request())
        await begun.wait()
        await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.sleep(0.005)
        leave.set()
        await asyncio.wait([task])
        await settled(pool)
        assert task.cancelled()
        if state != "release":
            assert closed == [1]

    go(main)


def test_asgiref_links_cancellation(go: Go) -> None:
    """A call's coroutine is cancelled with the call, even before its first step."""

    async def main(pool: Threads) -> None:
        begun: list[int] = []
        cancelled: list[int] = []
        end = asyncio.Event()

        async def inner(i: int) -> None:
            begun.append(i)
            try:
                await end.wait()
            except asyncio.CancelledError:
                cancelled.append(i)
                raise

        for i, pause in enumerate((None, None, 0, 0.0005, 0.001, 0.002)):
            task = asyncio.create_task(sync_to_async(lambda i=i: await_(inner(i)))())
            if pause is None:
                await until(lambda i=i: i in begun)  # type: ignore[misc]
            else:
                await asyncio.sleep(pause)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert set(cancelled) >= {0, 1}
        # As with asgiref alone: one that had not begun to wait goes on.
        end.set()

    go(main)


def test_a_task_cancelled_before_its_first_step(go: Go) -> None:
    """The thread that waits for it goes on."""

    async def main(pool: Threads) -> None:
        keep = pool.keep

        def cancel_at_once(*args: Any) -> Any:
            task = keep(*args)
            task.cancel()
            return task

        pool.keep = cancel_at_once  # type: ignore[method-assign]

        def job() -> Any:
            try:
                return await_(value(1))
            except asyncio.CancelledError:
                return "cancelled"

        assert await asyncio.to_thread(pool.adopt, job) == "cancelled"
        assert await sync_to_async(job)() == "cancelled"

    go(main)


# Threads of others.


def test_adopted(go: Go) -> None:
    async def main(pool: Threads) -> None:
        tasks: set[Any] = set()

        def foreign(i: int) -> list[Any]:
            return pool.adopt(request, i)

        def request(i: int) -> list[Any]:
            var.set(i)
            local.name = i
            return [await_(coroutine(i)) for _ in range(5)]

        async def coroutine(i: int) -> Any:
            tasks.add(asyncio.current_task())
            assert (var.get(), local.name) == (i, i)
            thread = await sync_to_async(me)()
            return i, thread

        def many() -> list[Any]:
            results: list[Any] = [None] * 20

            def one(i: int) -> None:
                results[i] = (foreign(i), me())

            every = [threading.Thread(target=one, args=(i,)) for i in range(20)]
            for thread in every:
                thread.start()
            for thread in every:
                thread.join(LONG)
            return results

        for i, (answers, thread) in enumerate(await asyncio.to_thread(many)):
            assert answers == [(i, thread)] * 5
        assert len(tasks) == 20
        # They are their own: none of ours was made, and nothing is counted.
        assert pool.made == 0

    go(main)


def test_adopted_threads_get_errors(go: Go) -> None:
    async def main(pool: Threads) -> None:
        async def fail() -> None:
            raise Marked

        def job() -> str:
            with pytest.raises(Marked):
                await_(fail())
            with pytest.raises(SystemExit):
                await_(leave())
            raise LookupError

        async def leave() -> None:
            raise SystemExit

        with pytest.raises(LookupError):
            await asyncio.to_thread(pool.adopt, job)
        assert bridge.thread_wait() is None

    go(main)


# The end.


def test_idle_threads_end(go: Go) -> None:
    async def main(pool: Threads) -> None:
        thread = await pool.run(me)
        leave = threading.Event()
        busy = await running(pool, leave.wait, LONG)
        pool.close()
        # What is under way, and even what comes late, is served.
        late = await running(pool, lambda: await_(value("late")))
        leave.set()
        assert await late == "late"
        await busy
        await until(lambda: pool.made == 0)
        thread.join(LONG)
        assert not thread.is_alive()

    go(main, limit=1)


def test_a_loop_that_is_closed(monkeypatch: pytest.MonkeyPatch, loop_factory: Any) -> None:
    """A thread that waits gets an error; so does one that comes later."""
    monkeypatch.setattr(crossing, "LOOK", 0.02)
    loop = loop_factory()
    pool = Threads(loop, limit=1)
    caught: list[BaseException] = []

    def foreign() -> None:
        for _ in range(2):
            try:
                pool.adopt(await_, asyncio.sleep(0))
            except BaseException as exc:
                caught.append(exc)

    thread = threading.Thread(target=foreign)
    # The loop isn't running: what is sent stays where it is.
    thread.start()
    time.sleep(0.05)
    loop.close()
    thread.join(LONG)
    assert [type(exc) for exc in caught] == [BridgeError, BridgeError]
    assert all("closed" in str(exc) for exc in caught)


def test_thrown_away(go: Go, caplog: pytest.LogCaptureFixture) -> None:
    """The coroutine is closed, not cancelled: its thread is answered all the same."""
    caplog.set_level(logging.ERROR, "greenroom")

    async def main(pool: Threads) -> None:
        seen: list[Any] = []
        leave = threading.Event()

        def job() -> Hold:
            leave.wait(LONG)
            seen.append(await_(value("answered")))
            return Hold(None, lambda: seen.append("closed"))

        runner = pool.run(job, parks=True)
        future = runner.send(None)
        future._asyncio_future_blocking = False
        runner.close()
        leave.set()
        await until(lambda: seen == ["answered", "closed"])

    go(main)
