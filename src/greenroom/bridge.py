"""Synchronous code that can wait for coroutines without holding a thread.

`run(fn)` is awaited by a coroutine; it runs `fn` in a greenlet. Anywhere below
`fn`, to any depth, `await_(awaitable)` waits for a coroutine and returns its
result, while the event loop goes on with other tasks.

Rule 1: **the awaitable is stepped in the child**, that is inside the greenlet.
`await_` drives it with `send` and `throw` and switches to the parent only with
what it yields to the loop, a future. So synchronous code that a coroutine calls
can `await_` again, and an awaitable that never suspends costs no switch.
(Awaiting in the parent, as is often done, can't nest.)

Rule 2: **one task.** `run` adds no task: `current_task()`, `timeout()`,
`TaskGroup` and cancellation are those of the awaiting task. The greenlet shares
the task's context, so context variables are seen and changed both ways.

Rule 3: **the parent is set before every switch.** An eager task's first step
runs inside whatever greenlet created it, its later ones in the loop's: a parent
kept from the first step would resume the wrong stack ("Cannot enter into task").

Rule 4: **a bridge belongs to one task.** `await_` looks whether the current
greenlet's task is the current task, which also catches the first step of an
eager child task, run inside its creator's greenlet.

Rule 5: **an idle greenlet holds nothing**: no context, no result, no arguments,
no parent but the thread's own. A `gr_context` left behind keeps a whole request
alive.

Rule 6: **no frame that may outlive its thread refers to the thread's own
greenlet**, so `getcurrent()` is not called on threads without a loop. When a
thread ends, greenlet drops a reference too many to it if it is held by the frame
of a traceback, and the next garbage collection crashes (seen with 3.5.6 on
CPython 3.13.0: a logged exception of a thread that had ended).

Greenlets are pooled because a new one that runs deep Python code maps a new
frame stack: 50-60 µs, against about 1 µs for a used one.

Rule 7: **what is shielded runs to its end.** Below `shielded(fn)` a cancellation
is kept back, and raised when `fn` is done. `Task.cancel()` cancels the future
that the task waits for, so there the task is given futures of our own to wait
for, and never the one that somebody else's work will be found in.

Cancellation arrives as `CancelledError` raised by `await_`; `finally` and `with`
blocks run and may `await_`. Code that swallows it is named in the log.

`when_suspended(hook)` has `hook` called when the code in this bridge next suspends in
`await_`, or ends: what was borrowed for a moment is given back then.
`pause(future)` suspends without it.

`await_` in a finaliser is refused: `__del__` and the cyclic garbage collector
run at any moment inside anybody's greenlet, and what is raised there is lost.
A weakref callback that runs because the last reference was dropped can't be
told from an ordinary call; it must not `await_` either.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import sys
import threading
import types
from asyncio import CancelledError, _get_running_loop, current_task
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial, wraps
from types import CoroutineType
from typing import Any, ParamSpec, TypeVar, cast
from weakref import WeakSet

from greenlet import GreenletExit, getcurrent, greenlet

from .errors import BridgeError

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("greenroom.bridge")

# Idle greenlets kept by a thread. One holds about 20 KB (its frame stack).
MAX_IDLE = 256


@types.coroutine
def run(fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Generator[Any, Any, T]:
    """Run `fn(*args, **kwargs)` in a greenlet of the current task; return its result.

    To be awaited within a task. Below `fn`, `await_` waits on this task's loop.
    """
    task = current_task()
    if task is None:
        raise BridgeError("run() was awaited outside of a task: use asyncio.create_task().")
    pool = _thread.pool or _pool()
    bridge = pool.idle.pop() if pool.idle else pool.make()
    bridge.task = task
    bridge.parent = parent = getcurrent()
    bridge.gr_context = parent.gr_context
    value = bridge.switch(fn, args, kwargs)
    # A traceback refers to this frame, and what was awaited may refer to its error.
    del args, kwargs
    while not bridge.finished:
        try:
            sent = yield value
        except GeneratorExit as exc:
            # The task is thrown away: nothing can wait any more.
            bridge.closing = True
            bridge.parent = getcurrent()
            bridge.throw(exc)
            error = bridge.failure
            pool.give(bridge)
            if error is None or isinstance(error, GeneratorExit):
                raise
            raise error from None
        except BaseException as exc:
            if isinstance(exc, CancelledError):
                bridge.cancelled_at = _caller_of_await(bridge)
            bridge.parent = getcurrent()
            value = bridge.throw(exc)
        else:
            bridge.parent = getcurrent()
            value = bridge.switch(sent)
    result, error = bridge.result, bridge.failure
    if bridge.cancelled_at is not None and error is None and task.cancelling():
        logger.warning(
            "A cancellation was swallowed: CancelledError was raised in %s and did not come "
            "out. Catch Exception, not BaseException, or raise it again.",
            bridge.cancelled_at,
        )
    pool.give(bridge)
    if error is not None:
        try:
            raise error
        finally:
            # The traceback refers to this frame: break the cycle.
            del error, result, value
    return result  # type: ignore[no-any-return]


def await_(awaitable: Awaitable[T]) -> T:
    """Wait for `awaitable` from synchronous code, and return its result.

    Inside a bridge the task suspends and the loop goes on. On a thread that
    serves a request, the thread is parked while the awaitable runs on the
    worker's loop. On any other thread it runs on the process's background loop.

    Raises whatever the awaitable raises; `CancelledError` if the request was
    cancelled; `BridgeError` where nothing can wait: on the loop outside of a
    bridge of the current task, and in a finaliser.
    """
    if _get_running_loop() is None:
        return _await_on_thread(awaitable)
    bridge = getcurrent()
    if bridge.__class__ is not _Bridge or bridge.task is not current_task():
        del bridge
        raise _refuse(awaitable, _OUTSIDE)
    if _collecting == threading.get_ident():
        raise _refuse(awaitable, _IN_FINALISER)
    coroutine = awaitable if isinstance(awaitable, CoroutineType) else _coroutine(awaitable)
    # Here as below: a future refers to its error, whose traceback refers to this frame.
    del awaitable
    send = coroutine.send
    try:
        value = send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    if _in_del():
        coroutine.close()
        raise _refuse(None, _IN_FINALISER)
    while True:
        if bridge.closing:
            # Also what awaits in a finally: a greenlet that suspended now would be
            # pooled with somebody's code in it.
            del value
            coroutine.close()
            raise BridgeError(_THROWN_AWAY)
        if bridge.hook is not None:
            bridge.suspends()
        try:
            if bridge.shields:
                sent = _shielded_switch(bridge, value)
            else:
                sent = bridge.parent.switch(value)  # type: ignore[union-attr]
        except BaseException as exc:
            value = None
            try:
                value = coroutine.throw(exc)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
        else:
            value = None
            try:
                value = send(sent)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]


def bridged(fn: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Give a coroutine function a bridge of its own, for use as a child task.

    ``asyncio.gather(bridged(load)(1), bridged(load)(2))``: synchronous code that
    `load` calls can `await_`, which it can't in a bare child task.
    """

    @wraps(fn)
    async def inner(*args: P.args, **kwargs: P.kwargs) -> T:
        return await run(_call_and_await, fn, args, kwargs)

    return inner


def pause(future: asyncio.Future[T], *, hooked: bool = False) -> T:
    """Wait in a bridge for a future that nobody else refers to but who sets it.

    What `await_` does, without a coroutine, and with the hook of `when_suspended` if `hooked`.
    """
    bridge = cast("_Bridge", getcurrent())
    if bridge.closing:
        raise BridgeError(_THROWN_AWAY)
    if _collecting == threading.get_ident() or _in_del():
        raise _refuse(None, _IN_FINALISER)
    if not future.done():
        if hooked and bridge.hook is not None:
            bridge.suspends()
        future._asyncio_future_blocking = True
        if bridge.shields:
            _shielded_switch(bridge, future)
        else:
            bridge.parent.switch(future)  # type: ignore[union-attr]
    return future.result()


def shielded(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run synchronous code to its end; a cancellation meanwhile is raised after it.

    Outside of a bridge, where nothing is cancelled, it is called as it is.
    """
    if not in_bridge():
        return fn(*args, **kwargs)
    bridge = cast("_Bridge", getcurrent())
    bridge.shields += 1
    try:
        return fn(*args, **kwargs)
    finally:
        bridge.shields -= 1
        if not bridge.shields and bridge.withheld is not None:
            withheld, bridge.withheld = bridge.withheld, None
            try:
                raise withheld
            finally:
                del withheld


def when_suspended(hook: Callable[[], object]) -> None:
    """Call `hook`, which must not wait, when the code in this bridge next suspends.

    Where it returns something true, it is called again the next time. Outside of a
    bridge this does nothing.
    """
    if _get_running_loop() is not None:
        bridge = getcurrent()
        if bridge.__class__ is _Bridge and bridge.task is current_task():
            bridge.hook = hook


def in_bridge() -> bool:
    """Whether `await_` here would suspend the current task (and block no thread)."""
    if _get_running_loop() is None:
        return False
    bridge = getcurrent()
    return bridge.__class__ is _Bridge and bridge.task is current_task()


def suspended(
    loop: asyncio.AbstractEventLoop,
) -> list[tuple[asyncio.Task[Any], types.FrameType]]:
    """What waits in bridges of this thread's loop: the task, and the frame that called `await_`.

    For a report on a process that is about to end: the frames are to be dropped at once.
    """
    found = []
    for bridge in list(_pool().bridges):
        task, frame = bridge.task, _outside(bridge.gr_frame)
        if task is not None and frame is not None and task.get_loop() is loop:
            found.append((task, frame))
    return found


def outer_frames() -> list[types.FrameType]:
    """What waits for the greenlet that runs: the frames of its parent, and of theirs."""
    found = []
    outer = getcurrent().parent
    while outer is not None:
        if outer.gr_frame is not None:
            found.append(outer.gr_frame)
        outer = outer.parent
    return found


def set_thread_wait(wait: Callable[[Awaitable[Any]], Any] | None) -> None:
    """Set what `await_` calls on the current thread, which has no running loop."""
    _thread.wait = wait


def thread_wait() -> Callable[[Awaitable[Any]], Any] | None:
    """What `await_` calls on the current thread, if this thread serves a request."""
    return getattr(_thread, "wait", None)


def set_fallback(wait: Callable[[Awaitable[Any]], Any]) -> None:
    """Set what `await_` calls on threads that serve no request."""
    global _fallback
    _fallback = wait


class _Bridge(greenlet):
    """A pooled greenlet and what it runs at the moment."""

    __slots__ = (
        "cancelled_at",
        "closing",
        "failure",
        "finished",
        "hook",
        "result",
        "shields",
        "task",
        "withheld",
    )

    task: asyncio.Task[Any] | None
    result: Any
    failure: BaseException | None
    finished: bool
    closing: bool
    cancelled_at: str | None
    hook: Callable[[], object] | None
    # How many `shielded` calls are on the stack, and what they keep back.
    shields: int
    withheld: CancelledError | None

    def __init__(self) -> None:
        super().__init__(_work)
        self.clear()

    def clear(self) -> None:
        self.cancelled_at = self.failure = self.result = self.task = None
        self.hook = self.withheld = None
        self.shields = 0
        self.finished = self.closing = False

    def suspends(self) -> None:
        hook, self.hook = self.hook, None
        if hook is not None:
            try:
                if hook():
                    self.hook = hook
            except Exception:
                logger.exception("An error where a bridge suspended")


def _work() -> None:
    while True:
        # Started without arguments, which greenlet keeps until the greenlet ends.
        fn, args, kwargs = getcurrent().parent.switch()  # type: ignore[union-attr]
        bridge = cast("_Bridge", getcurrent())
        try:
            bridge.result = fn(*args, **kwargs)
        except GreenletExit as exc:
            # Also how greenlet ends one that nobody refers to: it must not go on.
            bridge.failure = exc
            bridge.finished = True
            return
        except BaseException as exc:
            bridge.failure = exc
        fn = args = kwargs = None
        bridge.finished = True
        # Its own frame would keep an idle greenlet for ever: no collector sees that.
        del bridge


class _Pool:
    """The idle greenlets of one thread: greenlets can't change threads."""

    __slots__ = ("bridges", "idle", "root")

    def __init__(self) -> None:
        self.idle: list[_Bridge] = []
        # All of them, for `suspended`.
        self.bridges: WeakSet[_Bridge] = WeakSet()
        root = getcurrent()
        while root.parent is not None:
            root = root.parent
        self.root = root

    def make(self) -> _Bridge:
        bridge = _Bridge()
        self.bridges.add(bridge)
        bridge.switch()
        return bridge

    def give(self, bridge: _Bridge) -> None:
        if bridge.hook is not None:
            bridge.suspends()
        bridge.clear()
        if bridge.dead:
            return
        bridge.gr_context = None
        bridge.parent = self.root
        if len(self.idle) < MAX_IDLE:
            self.idle.append(bridge)


class _Thread(threading.local):
    pool: _Pool | None = None
    wait: Callable[[Awaitable[Any]], Any] | None = None


_thread = _Thread()


def _pool() -> _Pool:
    pool = _thread.pool
    if pool is None:
        pool = _thread.pool = _Pool()
    return pool


def _no_fallback(awaitable: Awaitable[Any]) -> Any:
    raise _refuse(awaitable, "await_() was called on a thread that has no loop to wait for.")


_fallback: Callable[[Awaitable[Any]], Any] = _no_fallback

_THROWN_AWAY = "await_() can't wait: the task of this bridge was thrown away."

_IN_FINALISER = (
    "await_() was called in a finaliser (__del__, or the garbage collector's), which runs at "
    "any moment inside anybody's code: close the resource in a with block or a finally instead."
)


_OUTSIDE = (
    "await_() was called on the event loop outside of a bridge of the current task. In a "
    "coroutine, use await; for synchronous code in a child task, start the task with "
    "greenroom.bridged()."
)


def _shielded_switch(bridge: _Bridge, value: Any) -> Any:
    """Give the loop what the code waits for, and keep a cancellation back.

    `value` is a future, or None of a bare ``yield``, as in ``asyncio.sleep(0)``.
    """
    if value is None:
        try:
            return bridge.parent.switch(None)  # type: ignore[union-attr]
        except CancelledError as exc:
            bridge.withheld = exc
            return None
    # Taken by us, in the place of the task.
    value._asyncio_future_blocking = False
    while not value.done():
        outer = value.get_loop().create_future()
        value.add_done_callback(partial(_release, outer))
        outer._asyncio_future_blocking = True
        try:
            bridge.parent.switch(outer)  # type: ignore[union-attr]
        except CancelledError as exc:
            bridge.withheld = exc
            if bridge.closing:
                raise
    return None


def _release(outer: asyncio.Future[None], inner: asyncio.Future[Any]) -> None:
    if not outer.done():
        outer.set_result(None)


def _await_on_thread(awaitable: Awaitable[T]) -> T:
    if _collecting == threading.get_ident() or _in_del():
        raise _refuse(awaitable, _IN_FINALISER)
    return cast("T", (_thread.wait or _fallback)(awaitable))


def _refuse(awaitable: Awaitable[Any] | None, message: str) -> BridgeError:
    """An error about misuse; logged too, where the raised one would be lost."""
    if inspect.iscoroutine(awaitable):
        awaitable.close()
    if message is _IN_FINALISER:
        logger.error(message, stack_info=True)
    return BridgeError(message)


async def _coroutine(awaitable: Awaitable[T]) -> T:
    try:
        return await awaitable
    finally:
        del awaitable


def _call_and_await(fn: Callable[..., Awaitable[T]], args: Any, kwargs: Any) -> T:
    return await_(fn(*args, **kwargs))


def _in_del() -> bool:
    frame: types.FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def _caller_of_await(bridge: _Bridge) -> str:
    frame = _outside(bridge.gr_frame)
    if frame is None:
        return "a coroutine"
    code = frame.f_code
    return f"{code.co_qualname} ({code.co_filename}:{frame.f_lineno})"


def _outside(frame: types.FrameType | None) -> types.FrameType | None:
    """The innermost frame that is not of this module."""
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return frame


# The thread whose cyclic garbage collection is running, if any.
_collecting: int | None = None


def _on_gc(phase: str, info: dict[str, int]) -> None:
    global _collecting
    _collecting = threading.get_ident() if phase == "start" else None


gc.callbacks.append(_on_gc)
