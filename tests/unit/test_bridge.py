"""The rules of `greenroom.bridge`, each broken on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import sys
import threading
import traceback
import types
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import greenlet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenroom import bridge
from greenroom.bridge import await_, bridged, in_bridge, run
from greenroom.errors import BridgeError

Main = Callable[[], Coroutine[Any, Any, Any]]
var: contextvars.ContextVar[Any] = contextvars.ContextVar("var", default=None)


@pytest.fixture
def go(loop_factory: Any) -> Callable[[Main], Any]:
    """Run a coroutine function on a new loop of either kind."""

    def go(main: Main) -> Any:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(asyncio.wait_for(main(), 20))

    return go


@pytest.fixture
def go_eager(loop_factory: Any) -> Iterator[Callable[[Main], Any]]:
    """The same with eager tasks, where this pair of Python and loop has them."""
    if not hasattr(asyncio, "eager_task_factory"):
        pytest.skip("Python has no eager tasks")

    def new_loop() -> asyncio.AbstractEventLoop:
        loop = loop_factory()
        loop.set_task_factory(asyncio.eager_task_factory)
        return loop

    def go(main: Main) -> Any:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            return runner.run(main())

    if not makes_eager_tasks(new_loop()):
        pytest.skip("this loop can't make eager tasks here")
    return go


def makes_eager_tasks(loop: asyncio.AbstractEventLoop) -> bool:
    begun: list[bool] = []

    async def child() -> None:
        begun.append(True)

    def probe() -> None:
        coroutine = child()
        try:
            loop.create_task(coroutine)
        except Exception:
            coroutine.close()
        if not begun:
            begun.append(False)
        loop.stop()

    loop.call_soon(probe)
    loop.run_forever()
    loop.close()
    return begun == [True]


async def double(value: int) -> int:
    await asyncio.sleep(0)
    return 2 * value


# What can be awaited, and what comes back.


class Awaitable:
    def __await__(self) -> Any:
        yield from asyncio.sleep(0).__await__()
        return "awaited"


@types.coroutine
def generator() -> Any:
    yield
    return "generated"


def test_everything_that_can_be_awaited(go: Any) -> None:
    async def main() -> Any:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_soon(future.set_result, "future")
        task = asyncio.create_task(double(3))
        done = loop.create_future()
        done.set_result("done")

        def sync() -> list[Any]:
            return [await_(x) for x in (future, task, done, Awaitable(), generator(), double(2))]

        return await run(sync)

    assert go(main) == ["future", 6, "done", "awaited", "generated", 4]


@pytest.mark.parametrize("value", [None, 3, "text", [1], object()])
def test_what_cannot_be_awaited_is_a_type_error(value: Any) -> None:
    async def main() -> None:
        with pytest.raises(TypeError, match="await"):
            await run(await_, value)
        assert await run(await_, double(1)) == 2

    asyncio.run(main())


def test_a_coroutine_is_awaited_once(go: Any) -> None:
    async def main() -> None:
        coroutine = double(1)
        assert await run(await_, coroutine) == 2
        with pytest.raises(RuntimeError, match="reuse"):
            await run(await_, coroutine)

    go(main)


def test_arguments_and_results(go: Any) -> None:
    async def main() -> None:
        assert await run(lambda *a, **k: (a, k), 1, 2, x=3) == ((1, 2), {"x": 3})
        assert await run(lambda fn, args: (fn, args), fn=1, args=2) == (1, 2)
        assert await run(lambda: None) is None

    go(main)


def test_async_with_and_async_for(go: Any) -> None:
    seen: list[Any] = []

    @contextlib.asynccontextmanager
    async def resource() -> AsyncIterator[str]:
        await asyncio.sleep(0)
        try:
            yield "open"
        finally:
            await asyncio.sleep(0)
            seen.append("closed")

    async def items() -> AsyncIterator[int]:
        for i in range(3):
            await asyncio.sleep(0)
            yield i

    def sync() -> None:
        manager = resource()
        seen.append(await_(manager.__aenter__()))
        iterator = items()
        with contextlib.suppress(StopAsyncIteration):
            while True:
                seen.append(await_(iterator.__anext__()))
        await_(manager.__aexit__(None, None, None))

    async def whole() -> None:
        async with resource():
            seen.extend([i async for i in items()])

    async def main() -> None:
        await run(sync)
        await run(await_, whole())

    go(main)
    assert seen == ["open", 0, 1, 2, "closed", 0, 1, 2, "closed"]


# One task, one context, many at a time.


def test_five_hundred_tasks(go: Any) -> None:
    at_once = most = 0

    def sync(i: int) -> int:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        total = sum(await_(double(i)) for _ in range(3))
        at_once -= 1
        return total

    async def main() -> list[int]:
        return await asyncio.gather(*(run_in_task(sync, i) for i in range(500)))

    async def run_in_task(fn: Any, i: int) -> int:
        return await run(fn, i)

    assert go(main) == [6 * i for i in range(500)]
    assert most == 500


def test_ten_deep(go: Any) -> None:
    go(ten_deep)


def test_ten_deep_in_eager_tasks(go_eager: Any) -> None:
    go_eager(ten_deep)


async def ten_deep() -> None:
    tasks = set()

    def sync(depth: int) -> int:
        tasks.add(asyncio.current_task())
        await_(asyncio.sleep(0))
        below = await_(coroutine(depth - 1)) if depth else 0
        await_(asyncio.sleep(0))
        return below + 1

    async def coroutine(depth: int) -> int:
        await asyncio.sleep(0)
        # A bridge within the bridge, or the one there is.
        result = await run(sync, depth) if depth % 2 else sync(depth)
        await asyncio.sleep(0)
        return result

    assert await asyncio.gather(*(coroutine(11) for _ in range(5))) == [12] * 5
    assert len(tasks) == 5


def test_what_never_suspends_switches_to_nobody(go: Any) -> None:
    order = []

    async def quick() -> int:
        return 1

    async def main() -> None:
        other = asyncio.create_task(note())
        order.append(await run(lambda: [await_(quick()) for _ in range(100)][-1]))
        await other

    async def note() -> None:
        order.append("other")

    go(main)
    assert order == [1, "other"]


def test_context_variables_both_ways(go: Any) -> None:
    async def inner(expected: str) -> None:
        assert var.get() == expected
        await asyncio.sleep(0)
        var.set(expected + "-coroutine")

    def sync(name: str) -> None:
        assert var.get() == name
        await_(inner(name))
        assert var.get() == name + "-coroutine"
        var.set(name + "-sync")

    async def request(name: str) -> None:
        var.set(name)
        await run(sync, name)
        assert var.get() == name + "-sync"

    async def main() -> None:
        await asyncio.gather(*(request(str(i)) for i in range(20)))
        assert var.get() is None

    go(main)


def test_asyncio_within(go: Any) -> None:
    """TaskGroup, timeout, wait_for, current_task: as without a bridge."""

    def sync(task: Any) -> str:
        assert asyncio.current_task() is task
        assert in_bridge()
        with pytest.raises(TimeoutError):
            await_(asyncio.wait_for(asyncio.sleep(60), 0.001))
        await_(timed())
        await_(grouped())
        assert task.cancelling() == 0
        return "end"

    async def timed() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):  # noqa: ASYNC100
                # Synchronous code is what is interrupted.
                await_(asyncio.sleep(60))

    async def grouped() -> None:
        with pytest.raises(BaseExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                await_(asyncio.sleep(60))
        assert caught.group_contains(KeyError)

    async def fail() -> None:
        raise KeyError

    async def main() -> None:
        assert not in_bridge()
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            task = group.create_task(whole())
        assert task.result() == "end"

    async def whole() -> str:
        return await run(sync, asyncio.current_task())

    go(main)


def test_a_timeout_around_run(go: Any) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await run(lambda: await_(asyncio.sleep(60)))
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    go(main)


def test_outside_of_a_task(go: Any) -> None:
    async def main() -> None:
        with pytest.raises(BridgeError, match=r"create_task"):
            # Stepped by hand: not within a task.
            asyncio.get_running_loop().call_soon(lambda: None)
            contextvars.Context().run(step)

    def step() -> None:
        task = asyncio.current_task()
        leave(task)
        try:
            run(lambda: None).send(None)  # type: ignore[attr-defined]
        finally:
            asyncio.tasks._enter_task(asyncio.get_running_loop(), task)  # type: ignore[attr-defined]

    def leave(task: Any) -> None:
        asyncio.tasks._leave_task(asyncio.get_running_loop(), task)  # type: ignore[attr-defined]

    go(main)


# Eager tasks: a child's first step runs in its creator's greenlet.


def test_eager_children(go_eager: Any) -> None:
    """The parent is set before every switch: none resumes a wrong stack."""

    def sync(i: int) -> int:
        first = await_(double(i))
        child = asyncio.create_task(bridged(load)(i))
        second = await_(double(i))
        return first + second + await_(child)

    async def load(i: int) -> int:
        value = await_(double(i))
        await asyncio.sleep(0)
        return value + await_(double(i))

    async def main() -> None:
        results = await asyncio.gather(*(bridged_sync(i) for i in range(50)))
        assert results == [8 * i for i in range(50)]

    async def bridged_sync(i: int) -> int:
        return await run(sync, i)

    go_eager(main)


def test_an_eager_childs_first_step_is_refused(go_eager: Any) -> None:
    """It runs inside the creator's greenlet, but is another task."""

    async def child() -> str:
        try:
            await_(asyncio.sleep(0))
        except BridgeError as exc:
            return str(exc)
        return "not refused"

    def sync() -> Any:
        answer = await_(asyncio.create_task(child()))
        # And the bridge around is whole.
        assert await_(double(2)) == 4
        return answer

    async def main() -> Any:
        return await run(sync)

    assert "greenroom.bridged()" in go_eager(main)


def test_a_bare_child_is_refused_and_a_bridged_one_works(go: Any) -> None:
    async def child() -> int:
        return await_(double(1))

    async def main() -> None:
        def sync() -> None:
            with pytest.raises(BridgeError, match=r"greenroom\.bridged\(\)"):
                await_(asyncio.create_task(child()))
            assert await_(asyncio.gather(bridged(child)(), bridged(child)())) == [2, 2]

        await run(sync)
        assert await bridged(child)() == 2

    go(main)
    assert bridged(child).__name__ == "child"


def test_on_the_loop_outside_of_a_bridge(go: Any) -> None:
    async def main() -> None:
        coroutine = double(1)
        with pytest.raises(BridgeError, match="use await"):
            await_(coroutine)
        # It was closed: no warning that it was never awaited.
        assert coroutine.cr_frame is None
        future = asyncio.get_running_loop().create_future()
        with pytest.raises(BridgeError):
            await_(future)
        assert not future.cancelled()
        caught: list[BaseException] = []

        def callback() -> None:
            try:
                await_(asyncio.sleep(0))
            except BridgeError as exc:
                caught.append(exc)

        asyncio.get_running_loop().call_soon(callback)
        await asyncio.sleep(0.001)
        assert len(caught) == 1

    go(main)


# Errors.


def test_errors_both_ways(go: Any) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise KeyError("below")

    def sync() -> None:
        try:
            await_(fail())
        except KeyError as exc:
            raise ValueError("above") from exc

    async def main() -> None:
        with pytest.raises(ValueError, match="above") as caught:
            await run(sync)
        names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert names[-1] == "sync"
        cause = caught.value.__cause__
        assert cause is not None
        names = [frame.name for frame in traceback.extract_tb(cause.__traceback__)]
        assert names[0] == "sync"
        assert names[-1] == "fail"
        # The greenlet is whole.
        assert await run(await_, double(1)) == 2

    go(main)


@pytest.mark.parametrize("suspends", [False, True])
@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration, GeneratorExit, LookupError])
def test_peculiar_errors_of_synchronous_code(error: Any, suspends: bool) -> None:
    def sync() -> None:
        if suspends:
            await_(asyncio.sleep(0))
        raise error("mine")

    async def main() -> None:
        # As out of any coroutine (PEP 479).
        expected = RuntimeError if error is StopIteration else error
        with pytest.raises(expected, match=r"mine|StopIteration"):
            await run(sync)
        assert await run(await_, double(1)) == 2

    asyncio.run(main())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, greenlet.GreenletExit])
@pytest.mark.parametrize("suspends", [False, True])
def test_errors_that_end_things(error: Any, suspends: bool, go: Any) -> None:
    """They come out of run(); none ends a greenlet in a way that loses the result."""
    handled: list[str] = []

    def sync() -> None:
        try:
            if suspends:
                await_(asyncio.sleep(0))
            raise error
        finally:
            await_(asyncio.sleep(0))
            handled.append("finally")

    async def main() -> None:
        with pytest.raises(error):
            await run(sync)
        assert await run(await_, double(1)) == 2

    go(main)
    assert handled == ["finally"]


def test_exc_info_is_the_greenlets_own(go: Any) -> None:
    def sync(i: int) -> None:
        try:
            raise KeyError(i)
        except KeyError as exc:
            for _ in range(3):
                await_(asyncio.sleep(0))
                assert sys.exc_info()[1] is exc  # noqa: PT017
        assert sys.exc_info() == (None, None, None)

    async def main() -> None:
        await asyncio.gather(*(in_task(i) for i in range(20)))

    async def in_task(i: int) -> None:
        await run(sync, i)

    go(main)


class Marked(Exception):
    """Can be referred to weakly."""


@pytest.mark.parametrize("way", ["sync", "coroutine", "task", "future", "nested"])
def test_errors_form_no_cycles(way: str, go: Any) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise Marked

    def sync() -> None:
        if way == "sync":
            raise Marked
        if way == "coroutine":
            await_(fail())
        if way == "task":
            await_(asyncio.create_task(fail()))
        if way == "future":
            await_(done())
        await_(nested())

    def done() -> Any:
        future = asyncio.get_running_loop().create_future()
        future.set_exception(Marked())
        return future

    async def nested() -> None:
        await run(await_, asyncio.create_task(fail()))

    async def main() -> None:
        await run(await_, double(1))
        await asyncio.sleep(0)
        gc.collect()
        gc.disable()
        try:
            error = await once()
            # The loop lets go of the tasks that are done.
            for _ in range(3):
                await asyncio.sleep(0)
            assert error() is None
        finally:
            gc.enable()

    async def once() -> weakref.ref[Marked]:
        try:
            await run(sync)
        except Marked as exc:
            return weakref.ref(exc)
        raise AssertionError

    go(main)


# Cancellation.


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))), st.data())
def test_cancelled_at_any_point(program: tuple[int, int], data: st.DataObject) -> None:
    """n waits, cancelled at the k-th: what was entered is left, by awaiting too."""
    n, k = program
    styles = data.draw(
        st.lists(st.sampled_from(["plain", "nested", "task"]), min_size=n, max_size=n)
    )
    log: list[str] = []
    reached: list[asyncio.Event] = []

    @contextlib.contextmanager
    def block(i: int) -> Iterator[None]:
        log.append(f"+{i}")
        try:
            yield
        finally:
            await_(asyncio.sleep(0))
            log.append(f"-{i}")

    def sync(i: int = 0) -> None:
        if i == n:
            return
        with block(i):
            if styles[i] == "nested":
                await_(nested(i))
            elif styles[i] == "task":
                await_(asyncio.create_task(pause(i)))
            else:
                await_(pause(i))
            sync(i + 1)

    async def pause(i: int) -> None:
        if i == k:
            reached[0].set()
            await asyncio.sleep(60)
        await asyncio.sleep(0)

    async def nested(i: int) -> None:
        await run(lambda: await_(pause(i)))

    async def main() -> None:
        reached.append(asyncio.Event())
        task = asyncio.create_task(in_task())
        await reached[0].wait()
        task.cancel("why")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    async def in_task() -> None:
        await run(sync)

    asyncio.run(main())
    assert log == [f"+{i}" for i in range(k + 1)] + [f"-{i}" for i in reversed(range(k + 1))]


def test_a_swallowed_cancellation_is_named(go: Any, caplog: pytest.LogCaptureFixture) -> None:
    def careless() -> str:
        with contextlib.suppress(BaseException):
            await_(asyncio.sleep(60))
        return "went on"

    async def main() -> None:
        task = asyncio.create_task(in_task())
        await asyncio.sleep(0)
        task.cancel()
        assert await task == "went on"

    async def in_task() -> Any:
        return await run(careless)

    go(main)
    (record,) = caplog.records
    assert "careless" in record.getMessage()
    assert __file__ in record.getMessage()


def test_a_cancellation_that_was_handled_is_not_named(
    go: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def careful() -> None:
        with contextlib.suppress(TimeoutError):
            await_(asyncio.wait_for(asyncio.sleep(60), 0.001))
        child = asyncio.create_task(asyncio.sleep(60))
        child.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await_(child)
        await_(timed())

    async def timed() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.001):  # noqa: ASYNC100
                await_(asyncio.sleep(60))

    async def main() -> None:
        await run(careful)

    go(main)
    assert not caplog.records


# A task that is thrown away.


def stepped(fn: Callable[[], Any]) -> Any:
    """`run(fn)` stepped to its first suspension, in the current task."""
    runner = run(fn)
    runner.send(None)  # type: ignore[attr-defined]
    return runner


def test_thrown_away(go: Any) -> None:
    seen: list[str] = []

    def sync() -> None:
        try:
            await_(asyncio.sleep(60))
        except GeneratorExit:
            seen.append("GeneratorExit")
            with pytest.raises(BridgeError, match="thrown away"):
                await_(asyncio.sleep(0))
            raise

    async def main() -> None:
        stepped(sync).close()
        del_me = stepped(sync)
        del del_me
        assert await run(await_, double(1)) == 2

    go(main)
    assert seen == ["GeneratorExit"] * 2


@pytest.mark.parametrize("deep", [False, True])
def test_thrown_away_while_a_coroutine_awaits_in_its_finally(go: Any, deep: bool) -> None:
    """Its greenlet isn't pooled with that coroutine in it."""

    async def stubborn() -> None:
        await asyncio.sleep(0)
        try:
            if deep:
                sync()
            else:
                await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)

    def sync() -> None:
        await_(asyncio.sleep(60))

    async def main() -> None:
        before = len(bridge._pool().idle)
        runner = run(await_, stubborn())
        runner.send(None)  # type: ignore[attr-defined]
        runner.send(None)  # type: ignore[attr-defined]
        with pytest.raises((RuntimeError, GeneratorExit)):
            runner.throw(GeneratorExit)  # type: ignore[attr-defined]
        for _ in range(before + 3):
            assert await run(await_, double(1)) == 2
        results = await asyncio.gather(*(in_task() for _ in range(before + 3)))
        assert results == [2] * (before + 3)

    async def in_task() -> int:
        return await run(await_, double(1))

    go(main)


async def ten() -> None:
    assert await asyncio.gather(*(bridged(double)(i) for i in range(10))) == [
        2 * i for i in range(10)
    ]


def test_a_greenlet_that_nobody_refers_to_ends() -> None:
    """greenlet throws GreenletExit into it, and insists on its end."""
    ended: list[str] = []

    def fn() -> None:
        try:
            greenlet.getcurrent().parent.switch()  # type: ignore[union-attr]
        finally:
            ended.append("finally")

    one = bridge._Pool().make()
    one.switch(fn, (), {})
    one.throw(greenlet.GreenletExit)
    assert ended == ["finally"]
    assert one.dead
    one = bridge._Pool().make()
    one.switch(len, ((),), {})
    ref = weakref.ref(one)
    assert one.finished
    del one
    assert ref() is None


def test_the_greenlets_of_a_thread_end_with_it() -> None:
    refs: list[weakref.ref[Any]] = []

    def main() -> None:
        asyncio.run(ten())
        refs.extend(weakref.ref(one) for one in bridge._pool().idle)

    thread = threading.Thread(target=main)
    thread.start()
    thread.join()
    # Killed when their thread's state goes, or at the next switch.
    gc.collect()
    asyncio.run(ten())
    assert len(refs) == 10
    assert [ref() for ref in refs] == [None] * 10


# Finalisers.


class Closing:
    """What closes itself by awaiting: wrong in a finaliser."""

    caught: list[BaseException]

    def __init__(self, caught: list[BaseException]) -> None:
        self.caught = caught
        self.cycle: Any = None

    def __del__(self) -> None:
        try:
            await_(asyncio.sleep(0))
        except BaseException as exc:
            self.caught.append(exc)


@pytest.mark.parametrize("cyclic", [False, True])
@pytest.mark.parametrize("within", [False, True])
def test_finalisers_are_refused_and_logged(
    go: Any, caplog: pytest.LogCaptureFixture, cyclic: bool, within: bool
) -> None:
    caught: list[BaseException] = []

    def sync() -> None:
        thing = Closing(caught)
        if cyclic:
            thing.cycle = thing
        del thing
        gc.collect()
        assert await_(double(1)) == 2 if within else True

    async def main() -> None:
        await run(sync)

    if within:
        go(main)
    else:
        sync()
    (error,) = caught
    assert isinstance(error, BridgeError)
    assert "with block" in str(error)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_the_collectors_callbacks_are_refused(go: Any) -> None:
    """No __del__ in the stack: a weakref's callback during a collection."""
    caught: list[BaseException] = []

    class Cycle:
        pass

    def callback(ref: Any) -> None:
        try:
            await_(asyncio.sleep(0))
        except BaseException as exc:
            caught.append(exc)

    def sync() -> None:
        cycle = Cycle()
        cycle.itself = cycle  # type: ignore[attr-defined]
        ref = weakref.ref(cycle, callback)
        del cycle
        gc.collect()
        assert ref() is None
        await_(asyncio.sleep(0))

    async def main() -> None:
        await run(sync)

    go(main)
    assert [type(error) for error in caught] == [BridgeError]


# The pool, and what is left behind.


class Request:
    pass


def test_nothing_is_left_behind(go: Any) -> None:
    """500 idle greenlets keep no request, task, context or greenlet alive."""
    things: weakref.WeakSet[Any] = weakref.WeakSet()
    greenlets: weakref.WeakSet[Any] = weakref.WeakSet()

    def sync(request: Request) -> Request:
        greenlets.add(greenlet.getcurrent())
        local = Request()
        things.add(local)
        var.set(local)
        await_(asyncio.sleep(0))
        await_(asyncio.sleep(0))
        if len(things) % 3 == 0:
            raise Marked
        return request

    async def in_task() -> Any:
        request = Request()
        things.add(request)
        things.add(asyncio.current_task())
        var.set(request)
        with contextlib.suppress(Marked):
            await run(sync, request)
        await run(sync, request=request) if len(things) % 7 == 0 else None

    async def main() -> None:
        before = set(bridge._pool().idle)
        await asyncio.gather(*(in_task() for _ in range(500)), return_exceptions=True)
        for _ in range(3):
            await asyncio.sleep(0)
        gc.collect()
        assert len(things) == 0
        idle = bridge._pool().idle
        assert len(idle) == bridge.MAX_IDLE
        assert len(greenlets) <= bridge.MAX_IDLE + len(before)
        for one in idle:
            assert one.gr_context is None
            assert one.parent is bridge._pool().root
            assert one.task is one.result is one.failure is None

    go(main)


def test_greenlets_are_reused(go: Any) -> None:
    used = []

    async def main() -> None:
        for _ in range(50):
            await run(lambda: used.append(greenlet.getcurrent()))

    go(main)
    assert len(set(map(id, used))) == 1


def test_each_thread_has_its_own_pool() -> None:
    pools = []
    barrier = threading.Barrier(4)

    def thread() -> None:
        async def main() -> None:
            barrier.wait()
            await asyncio.gather(*(bridged(double)(i) for i in range(30)))
            pools.append(bridge._pool())

        asyncio.run(main())

    threads = [threading.Thread(target=thread) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(20)
    assert len(set(map(id, pools))) == 4
    assert len({id(one) for pool in pools for one in pool.idle}) == 120


def test_a_bridge_belongs_to_its_thread(go: Any) -> None:
    """A thread that a bridge started is in no bridge."""
    found: list[Any] = []

    def thread() -> None:
        found.append(in_bridge())
        found.append(bridge.thread_wait())

    def sync() -> None:
        one = threading.Thread(target=thread)
        one.start()
        await_(asyncio.to_thread(one.join))

    async def main() -> None:
        await run(sync)

    go(main)
    assert found == [False, None]


def test_a_thread_waits_in_its_own_way() -> None:
    waited: list[Any] = []

    def wait(awaitable: Any) -> str:
        waited.append(awaitable)
        awaitable.close()
        return "waited"

    bridge.set_thread_wait(wait)
    try:
        assert await_(double(1)) == "waited"  # type: ignore[comparison-overlap]
    finally:
        bridge.set_thread_wait(None)
    assert len(waited) == 1


def test_without_a_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "_fallback", bridge._no_fallback)
    coroutine = double(1)
    with pytest.raises(BridgeError, match="no loop"):
        await_(coroutine)
    assert coroutine.cr_frame is None
