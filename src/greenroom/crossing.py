"""Synchronous code on a thread that waits for coroutines on the loop, and calls back.

Rule 1: **the coroutine that a thread waits for runs in the task that waits for
the thread.** So a request is one task, whatever the placement. Where that task
is busy (synchronous code that a coroutine of it sent to a thread, and that waits
in turn) a task of its own is made, linked as asgiref links its.

Rule 2: **thread-sensitive calls of a coroutine run on the thread that waits for
it**, one at a time, in order. A `Lane` is where the calls of a coroutine go; a
context variable tells which, so child tasks find it, and when it has closed
their calls go to the lane around it: a task may outlive its request. The last
lane of a request has no thread: its calls run on free ones, in order.

Rule 3: **the context crosses with the control**: context variables, and asgiref's
`Local` storage (language, time zone, script prefix, urlconf), which is tagged
with its thread and has to be re-homed. Every job starts from a copy of its
task's context, so nothing stays behind on a thread for the next request.

Rule 4: **a call of who holds something waits for nobody who may wait for it.** A
request that holds a connection of the pool, or has a block open, may have a call to make on
a thread before it can let go. Such calls begin whatever else runs; and while a call
waits for the block of another task, those of that block go before it.

A call that is marked `ToItsEnd` (in a transaction, or by `off_loop`) likewise is awaited
to its end when it is cancelled, if it was begun. Other calls are given up, as by asgiref.

Cancelling `run` never abandons a thread. It can't be interrupted: the
cancellation is delivered where it next waits for a coroutine, and `run` raises it
when the thread is done.

The module is long because its parts are the two halves of one handshake: what a
thread does and what the loop does meanwhile are to be read side by side.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from abc import ABC, abstractmethod
from asyncio import CancelledError, current_task
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context, ContextVar, copy_context
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from asgiref.sync import AsyncToSync, SyncToAsync, _restore_context

from . import bridge, turns
from .errors import BridgeError

if TYPE_CHECKING:
    from .threads import Threads

T = TypeVar("T")

logger = logging.getLogger("greenroom.threads")

# Seconds after which a waiting thread looks whether its loop is closed: a loop
# that is closed drops what it was sent, and tells nobody.
LOOK = 5.0

# The kinds of what runs on a thread: a job of its own, a call of a coroutine, or one of a
# coroutine that holds what others wait for.
START, CALL, HELD = 0, 1, 2

_CLOSED = "await_() can't wait: the loop of this process is closed."

_lane: ContextVar[Lane | None] = ContextVar("greenroom.lane", default=None)


class Then:
    """What a job returns to be answered early.

    `Threads.run` returns `value` at once, while the thread goes on to run
    `after()`, whose errors are logged.
    """

    __slots__ = ("after", "value")

    def __init__(self, value: Any, after: Callable[[], object]) -> None:
        self.value = value
        self.after = after


class Hold:
    """What a job returns to keep its thread: `Threads.run` returns a `Held`.

    `close()` is run on the thread when it is let go, exactly once.
    """

    __slots__ = ("close", "value")

    def __init__(self, value: Any, close: Callable[[], object]) -> None:
        self.value = value
        self.close = close


class Held:
    """A thread that was kept by a job, for more calls of the same request."""

    __slots__ = ("_job", "_released", "value")

    def __init__(self, job: Job, value: Any) -> None:
        self._job = job
        self._released = False
        self.value = value

    async def call(self, fn: Callable[..., T], /, *args: Any) -> T:
        """Run `fn(*args)` on the thread; one call at a time."""
        if self._released or self._job.driving:
            raise RuntimeError("A thread that is held runs one call at a time, until its release.")
        self._job.steps.put((fn, args))
        return await self._job.drive()  # type: ignore[no-any-return]

    async def release(self) -> None:
        """Run the job's `close()` on the thread, then let the thread go."""
        if not self._released:
            self._released = True
            self._job.steps.put(None)
            await self._job.drive()

    def __del__(self) -> None:
        # Its task was thrown away. This wakes the thread, and waits for nothing.
        if not self._released:
            self._job.steps.put(None)


class Calls:
    """What asgiref's `sync_to_async` submits thread-sensitive calls to.

    Installed as ``AsyncToSync.loop_thread_executors[loop]``. It is called on the
    loop's thread and returns an asyncio future, which `run_in_executor` takes.
    """

    # Set by `greenroom.db`: runs a call on the loop, and returns its future; or
    # returns what is to be called on the thread.
    route: Callable[[Callable[[], Any]], Any] | None = None

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._rest = Lane(threads)

    def submit(self, fn: Callable[..., T], /, *args: Any) -> asyncio.Future[T]:
        if Calls.route is not None and not args:
            fn = Calls.route(fn)
            if isinstance(fn, asyncio.Future):
                return fn
        lane = _lane.get()
        while lane is not None and (lane.closed or lane.threads is not self._threads):
            lane = lane.parent
        return (lane or self._rest).submit(partial(fn, *args) if args else fn)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Nothing: the threads are not asgiref's to end."""


class Lane:
    """The thread-sensitive calls of one coroutine: one at a time, in order.

    Calls that wait stand aside: what is held by who they wait for goes before them.
    """

    __slots__ = (
        "_current",
        "_queue",
        "_waiting",
        "_waiting_shortly",
        "closed",
        "inbox",
        "parent",
        "threads",
    )

    def __init__(
        self, threads: Threads, inbox: SimpleQueue[Any] | None = None, parent: Lane | None = None
    ) -> None:
        self.threads = threads
        self.inbox = inbox
        self.parent = parent
        self.closed = False
        # Without an inbox: the call that runs, those to come, and how many wait. Those of a
        # block go before calls that wait for it, and nothing before one that waits for a
        # statement.
        self._current: Call | None = None
        self._queue: deque[Call | _Aside] | None = None
        self._waiting = self._waiting_shortly = 0

    @property
    def given_up(self) -> bool:
        """Whether a call runs on that nobody awaits any more: it was cancelled."""
        return self._current is not None and self._current.future.cancelled()

    def submit(self, fn: Callable[[], T]) -> asyncio.Future[T]:
        call = Call(self, fn)
        if self.inbox is not None:
            self.inbox.put(call)
        elif self._current is None and self._may_begin(call):
            self._begin(call)
        else:
            if self._queue is None:
                self._queue = deque()
            self._queue.append(call)
            if call.kind == HELD and self._current is not None:
                # It may not have begun.
                self.threads.hurry(self._current)
        return call.future

    def next(self) -> None:
        """Begin the next call; the last one has ended, or waits."""
        self._current = None
        held = any(isinstance(each, Call) and each.kind == HELD for each in self._queue or ())
        for each in self._queue or ():
            if isinstance(each, _Aside) or self._may_begin(each):
                assert self._queue is not None
                self._queue.remove(each)
                if isinstance(each, _Aside):
                    self._go_on(each)
                else:
                    if held:
                        each.kind = HELD
                    self._begin(each)
                return

    def stand_aside(self, aside: _Aside) -> None:
        self._waiting += 1
        self._waiting_shortly += not aside.calls
        self.next()

    def come_back(self, aside: _Aside) -> None:
        """It goes on before all that have not begun."""
        if self._current is None:
            self._go_on(aside)
        else:
            if self._queue is None:
                self._queue = deque()
            self._queue.appendleft(aside)

    def _may_begin(self, call: Call) -> bool:
        return not self._waiting or (call.in_block and not self._waiting_shortly)

    def _begin(self, call: Call) -> None:
        self._current = call
        self.threads.submit(call.kind, call)

    def _go_on(self, aside: _Aside) -> None:
        self._waiting -= 1
        self._waiting_shortly -= not aside.calls
        self._current = aside.call
        aside.back.set()


class _Aside:
    """What a call on a free thread waits on for its turn with the database.

    `calls`: whether those that it waits for may have calls of their own.
    """

    def __init__(self, call: Call, calls: bool) -> None:
        self.call = call
        self.calls = calls
        self.back = threading.Event()
        self._woken = threading.Event()
        self.set = self._woken.set

    def wait(self, timeout: float) -> bool:
        lane, threads = self.call.lane, self.call.threads
        threads.soon(lane.stand_aside, self)
        woken = self._woken.wait(timeout)
        # It may have the turn by now, for which the one that runs meanwhile stands aside.
        threads.soon(lane.come_back, self)
        while not self.back.wait(LOOK) and not threads.loop.is_closed():
            pass
        return woken


class _Served:
    """What a call on a parked thread waits on: that thread has the other calls to run, too."""

    def __init__(self, inbox: SimpleQueue[Any]) -> None:
        self._inbox = inbox
        self._woken = False

    def set(self) -> None:
        self._woken = True
        self._inbox.put(self)

    def execute(self) -> None:
        """Nothing: it was woken by something else, and this came later."""

    def wait(self, timeout: float) -> bool:
        later: list[Any] = []
        until = time.monotonic() + timeout
        while not self._woken:
            try:
                item = self._inbox.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                break
            if isinstance(item, Call) and item.in_block:
                item.execute()
            else:
                later.append(item)
            del item
        # In their order, before what has come since.
        later += _emptied(self._inbox)
        for each in later:
            self._inbox.put(each)
        return self._woken


def _served(inbox: SimpleQueue[Any], calls: bool) -> _Served | threading.Event:
    return _Served(inbox) if calls else threading.Event()


def _emptied(inbox: SimpleQueue[Any]) -> list[Any]:
    found = []
    while True:
        try:
            found.append(inbox.get_nowait())
        except Empty:
            return found


def new_lane(threads: Threads) -> Lane:
    """Give the current context, which is a request's, a lane of its own."""
    lane = Lane(threads)
    _lane.set(lane)
    return lane


class Ask:
    """An awaitable that a thread waits for, and where the answer goes."""

    __slots__ = (
        "awaitable",
        "cancelled",
        "context",
        "error",
        "lane",
        "result",
        "task",
        "task_context",
    )

    def __init__(self, awaitable: Awaitable[Any], lane: Lane) -> None:
        self.awaitable = awaitable
        self.lane = lane
        # asgiref's: the tasks to cancel when the call on this thread is cancelled.
        self.task_context: list[asyncio.Task[Any]] | None = getattr(
            SyncToAsync.threadlocal, "task_context", None
        )
        self.context = copy_context()
        self.task: asyncio.Task[Any] | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.cancelled = False

    async def answer(self) -> None:
        """Await it, with the thread's context; then let the thread go on."""
        self.task = task = current_task()
        assert task is not None
        _restore_context(self.context)
        token = _lane.set(self.lane)
        try:
            self.result = await bridge.run(bridge.await_, self.awaitable)
        except GeneratorExit:
            # The task is thrown away, in any context.
            self.fail(BridgeError(_CLOSED))
            raise
        except BaseException as exc:
            # Raised on the thread, a cancellation too; SystemExit ends the
            # request there, and not the loop here.
            self.error = exc
            self.cancelled = isinstance(exc, CancelledError) and task.cancelling() > 0
        _lane.reset(token)
        self.context = copy_context()
        self._done()

    def fail(self, error: BaseException) -> None:
        """Let the thread go on with an error, unless it was answered."""
        if not self.lane.closed:
            if asyncio.iscoroutine(self.awaitable) and self.task is None:
                self.awaitable.close()
            self.error = error
            self._done()

    def task_done(self, task: asyncio.Task[None]) -> None:
        if not self.lane.closed:
            # It was cancelled before its first step.
            self.task = None
            self.fail(CancelledError())

    def abandon(self) -> None:
        """The thread waits no longer: it was interrupted."""
        if self.task is not None and not self.lane.closed:
            self.task.cancel()

    def _done(self) -> None:
        self.lane.closed = True
        if self.task_context is not None and self.task in self.task_context:
            # Before the thread goes on: asgiref would cancel a task that is done,
            # and take the cancellation as delivered.
            self.task_context.remove(self.task)
        assert self.lane.inbox is not None
        self.lane.inbox.put(self)


class Outcome:
    """What a job, or a step of one that is held, came to."""

    __slots__ = ("context", "error", "held", "last", "value")

    def __init__(
        self, value: Any, error: BaseException | None, *, held: bool = False, last: bool = True
    ) -> None:
        self.value = value
        self.error = error
        self.held = held
        self.last = last
        self.context: Context | None = copy_context()


class Waiter(ABC):
    """The thread's side of waiting, shared by jobs and calls."""

    __slots__ = ("cancelled_at", "counted", "queued", "threads")

    kind: int

    def __init__(self, threads: Threads) -> None:
        self.threads = threads
        self.queued = time.monotonic()
        self.counted = True
        self.cancelled_at: str | None = None

    def wait(self, awaitable: Awaitable[T]) -> T:
        """Park this thread while `awaitable` runs on the loop (`bridge.await_`)."""
        inbox: SimpleQueue[Any] = SimpleQueue()
        lane = Lane(self.threads, inbox, _lane.get())
        ask = Ask(awaitable, lane)
        if self.counted:
            self.threads.park(self.kind)
        try:
            self.threads.loop.call_soon_threadsafe(self.deliver, ask)
        except RuntimeError:
            if self.counted:
                self.threads.resume(self.kind)
            if asyncio.iscoroutine(awaitable):
                awaitable.close()
            raise BridgeError(_CLOSED) from None
        # A traceback refers to this frame, and what was awaited may refer to its error.
        del awaitable
        try:
            while (item := self.get(inbox)) is not ask:
                item.execute()
                del item
        except BaseException:
            # Ctrl-C in the main thread, or a closed loop.
            if self.threads.loop.is_closed():
                ask.fail(BridgeError(_CLOSED))
            else:
                self.threads.soon(ask.abandon)
            raise
        finally:
            if self.counted:
                self.threads.resume(self.kind)
        _restore_context(ask.context)
        error, ask.error = ask.error, None
        if error is None:
            return ask.result  # type: ignore[no-any-return]
        if ask.cancelled:
            self.cancelled_at = _caller()
        del ask, item
        try:
            raise error
        finally:
            del error

    def get(self, queue: SimpleQueue[Any]) -> Any:
        while True:
            try:
                return queue.get(timeout=LOOK)
            except Empty:
                if self.threads.loop.is_closed():
                    raise BridgeError(_CLOSED) from None

    def report_swallowed(self) -> None:
        """After synchronous code returned: say where a cancellation got lost."""
        if self.cancelled_at is not None:
            logger.warning(
                "A cancellation was swallowed: CancelledError was raised in %s and did not come "
                "out. Catch Exception, not BaseException, or raise it again.",
                self.cancelled_at,
            )

    @abstractmethod
    def deliver(self, message: Any) -> None:
        """On the loop: take what the thread sent."""

    def spawn(self, ask: Ask) -> None:
        """Answer in a task of its own, since the request's is busy."""
        if self.threads.loop.is_closed():
            ask.fail(BridgeError(_CLOSED))
            return
        ask.task = task = self.threads.keep(ask.answer(), ask.context.copy())
        # It may be cancelled before its first step.
        task.add_done_callback(ask.task_done)
        if ask.task_context is not None and not ask.lane.closed:
            ask.task_context.append(task)


class Job(Waiter):
    """One run of synchronous code on a thread, and the task that awaits it."""

    __slots__ = (
        "_inbox",
        "_waiter",
        "adopted",
        "args",
        "context",
        "driving",
        "fn",
        "on_end",
        "steps",
    )

    kind = START

    def __init__(self, threads: Threads, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        super().__init__(threads)
        self.fn = fn
        self.args = args
        self.context = copy_context()
        self.on_end: Callable[[], object] | None = None
        self.adopted = False
        self.steps: SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]] | None] = SimpleQueue()
        self._inbox: deque[Any] = deque()
        self._waiter: asyncio.Future[None] | None = None
        # Whether a task awaits the thread: from the start to an outcome's arrival.
        self.driving = True

    # On the loop.

    async def drive(self) -> Any:
        """Await what the thread asks for, until it has a result."""
        task = current_task()
        assert task is not None
        cancelled: CancelledError | None = None
        self.driving = True
        while True:
            if not self._inbox:
                self._waiter = self.threads.loop.create_future()
                try:
                    await self._waiter
                except CancelledError as exc:
                    if self.threads.withdraw(self):
                        self._ended()
                        raise
                    cancelled = exc
                except GeneratorExit:
                    self._thrown_away()
                    raise
                finally:
                    self._waiter = None
                continue
            message = self._inbox.popleft()
            if isinstance(message, Outcome):
                break
            if cancelled is not None:
                # Again, and counted once: to a timeout or a task group around
                # this, the number of requests tells whose cancellation it is.
                task.uncancel()
                task.cancel(*cancelled.args)
                cancelled = None
            try:
                await message.answer()
            except GeneratorExit:
                self._thrown_away()
                raise
        if message.context is not None:
            _restore_context(message.context)
        if message.last:
            self._ended()
        held = Held(self, message.value) if message.held else None
        if cancelled is not None:
            try:
                if held is not None:
                    await held.release()
            except Exception:
                logger.exception("An error when a thread was let go")
            try:
                raise cancelled
            finally:
                # The traceback refers to this frame.
                del cancelled, message
        if held is not None:
            return held
        if message.error is not None:
            try:
                raise message.error
            finally:
                del message
        return message.value

    def _ended(self) -> None:
        if self.on_end is not None:
            self.on_end()
            self.on_end = None

    def _thrown_away(self) -> None:
        """The task that drives this is closed, not cancelled: with its loop, as a rule."""
        self.driving = False
        if self.threads.withdraw(self):
            self._ended()
        while self._inbox:
            self.deliver(self._inbox.popleft())

    def deliver(self, message: Any) -> None:
        outcome = isinstance(message, Outcome)
        if self.adopted:
            self._deliver_adopted(message)
        elif self.driving:
            # What comes after an outcome (`Then.after` may wait) is not the driver's.
            self.driving = not outcome
            self._inbox.append(message)
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)
        elif not outcome:
            self.spawn(message)
        else:
            if message.last:
                self._ended()
            if message.held:
                self.steps.put(None)
            if message.error is not None:
                logger.error("An error on a thread that nobody awaits", exc_info=message.error)

    def refuse(self, error: BaseException) -> None:
        """End the job, which was not begun."""
        outcome = Outcome(None, error)
        # Made in the timer's context, which is not this request's.
        outcome.context = None
        self.deliver(outcome)

    def _deliver_adopted(self, message: Any) -> None:
        self._inbox.append(message)
        if self._waiter is not None:
            if not self._waiter.done():
                self._waiter.set_result(None)
        elif isinstance(message, Ask):
            task = self.threads.keep(self._drive_adopted(), message.context.copy())
            task.add_done_callback(self._adopted_done)

    def _adopted_done(self, task: asyncio.Task[None]) -> None:
        """It may be cancelled before its first step, or between two."""
        self._waiter = None
        while self._inbox:
            message = self._inbox.popleft()
            if isinstance(message, Ask):
                message.fail(CancelledError())

    async def _drive_adopted(self) -> None:
        """Answer all that an adopted thread asks for, in one task."""
        while True:
            while self._inbox:
                message = self._inbox.popleft()
                if not isinstance(message, Ask):
                    return
                self._waiter = self.threads.loop.create_future()
                await message.answer()
            self._waiter = self.threads.loop.create_future()
            if self._inbox:
                continue
            await self._waiter

    # On the thread.

    def execute(self) -> None:
        bridge.set_thread_wait(self.wait)
        SyncToAsync.threadlocal.task_context = None
        try:
            self.context.run(self._execute)
        finally:
            bridge.set_thread_wait(None)

    def execute_adopted(self) -> Any:
        local, executors = SyncToAsync.threadlocal, AsyncToSync.executors
        before = bridge.thread_wait(), getattr(local, "task_context", None)
        # By these asgiref finds this thread for the calls of what is waited for, which
        # would wait for it in turn: the lane is where they go.
        executor = getattr(executors, "current", None)
        executors.current = None
        sensitive = SyncToAsync.thread_sensitive_context.set(None)  # type: ignore[arg-type]
        self.counted = False
        bridge.set_thread_wait(self.wait)
        local.task_context = None
        try:
            return self.fn(*self.args)
        finally:
            bridge.set_thread_wait(before[0])
            local.task_context = before[1]
            SyncToAsync.thread_sensitive_context.reset(sensitive)
            executors.current = executor
            self.threads.soon(self.deliver, Outcome(None, None))

    def _execute(self) -> None:
        _restore_context(self.context)
        outcome = self._attempt(self.fn, self.args)
        self.fn = self.args = None  # type: ignore[assignment]
        result = outcome.value
        if isinstance(result, Hold):
            self._serve(result)
        elif isinstance(result, Then):
            outcome.value = result.value
            self.threads.soon(self.deliver, outcome)
            del outcome
            try:
                result.after()
            except BaseException:
                logger.exception("An error after the answer to a request")
        else:
            self.threads.soon(self.deliver, outcome)
            # The frames of an error's traceback refer to this one.
            del outcome

    def _serve(self, hold: Hold) -> None:
        """Run what the request still calls on this thread, until it is let go."""
        self.threads.soon(self.deliver, Outcome(hold.value, None, held=True, last=False))
        while (step := self._next_step()) is not None:
            outcome = self._attempt(*step)
            outcome.last = False
            self.threads.soon(self.deliver, outcome)
            del step, outcome
        self.threads.soon(self.deliver, self._attempt(hold.close, ()))

    def _next_step(self) -> tuple[Callable[..., Any], tuple[Any, ...]] | None:
        self.threads.park(self.kind)
        try:
            return self.get(self.steps)  # type: ignore[no-any-return]
        except BridgeError:
            return None
        finally:
            self.threads.resume(self.kind)

    def _attempt(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Outcome:
        self.cancelled_at = None
        try:
            result = fn(*args)
            self.report_swallowed()
        except BaseException as exc:
            return Outcome(None, exc)
        return Outcome(result, None)


class ToItsEnd:
    """A call that is not given up by a cancellation once it has begun.

    It uses the request; or it is part of a transaction, and what it went on to write
    would come after the rollback. `in_block`, `held`: see rule 4.
    """

    __slots__ = ("fn", "held", "in_block")

    def __init__(
        self, fn: Callable[[], Any], *, held: bool = False, in_block: bool = False
    ) -> None:
        self.fn = fn
        self.held = held
        self.in_block = in_block

    def __call__(self) -> Any:
        return self.fn()


class Holding:
    """A call of a request that holds a connection: see rule 4."""

    __slots__ = ("fn",)

    held = True

    def __init__(self, fn: Callable[[], Any]) -> None:
        self.fn = fn

    def __call__(self) -> Any:
        return self.fn()


class _Patient(asyncio.Future[Any]):
    """The future of such a call: cancelled when the call has ended, or never begins."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        # Taken by the thread when it begins, or by a cancellation.
        self._turn: list[None] = [None]
        self.asked: tuple[Any, ...] | None = None

    def begin(self) -> bool:
        try:
            self._turn.pop()
        except IndexError:
            return False
        return True

    def cancel(self, msg: Any = None) -> bool:
        if self.done():
            return False
        if self.begin():
            return super().cancel(msg)
        self.asked = () if msg is None else (msg,)
        return True

    def end(self) -> None:
        if self.asked is not None and not self.done():
            super().cancel(*self.asked)


class Call(Waiter):
    """One thread-sensitive call of a coroutine, and the future that awaits it."""

    __slots__ = ("fn", "future", "in_block", "kind", "lane", "patient")

    def __init__(self, lane: Lane, fn: Callable[[], Any]) -> None:
        super().__init__(lane.threads)
        self.kind = HELD if getattr(fn, "held", False) else CALL
        self.in_block = isinstance(fn, ToItsEnd) and fn.in_block
        self.fn = fn
        self.lane = lane
        self.patient = _Patient(lane.threads.loop) if isinstance(fn, ToItsEnd) else None
        self.future: asyncio.Future[Any] = self.patient or lane.threads.loop.create_future()

    def deliver(self, message: Any) -> None:
        """The request's task is busy: it awaits this call, or its sibling.

        asgiref cancels what is in the list that it keeps for the call. When it was
        cancelled before there was anything in it, it has given the call up: what
        the thread then waits for is cancelled here, or the request would go on.
        """
        self.spawn(message)
        given_up = self.future.cancelled() or (
            self.patient is not None and self.patient.asked is not None
        )
        if given_up and message.task is not None:
            message.task.cancel()

    def refuse(self, error: BaseException) -> None:
        """End the call, which was not begun."""
        self._end(None, error)

    def execute(self) -> None:
        # On a parked thread the job is counted, not its calls.
        self.counted = self.lane.inbox is None
        local = SyncToAsync.threadlocal
        before = bridge.thread_wait(), getattr(local, "task_context", None)
        bridge.set_thread_wait(self.wait)
        inbox = self.lane.inbox
        event = turns.set_event(partial(_Aside, self) if inbox is None else partial(_served, inbox))
        result = error = None
        try:
            begins = not self.future.cancelled() if self.patient is None else self.patient.begin()
            if begins:
                result = self.fn()
                self.report_swallowed()
        except BaseException as exc:
            error = exc
        finally:
            turns.set_event(event)
            bridge.set_thread_wait(before[0])
            local.task_context = before[1]
        if self.lane.inbox is None and self.threads.after_call is not None:
            try:
                self.threads.after_call()
            except BaseException:
                logger.exception("An error after a call on a thread")
        self.fn = None  # type: ignore[assignment]
        self.threads.soon(self._end, result, error)
        # Referred to by the error's traceback.
        del error, result

    def _end(self, result: Any, error: BaseException | None) -> None:
        if self.patient is not None:
            self.patient.end()
        if not self.future.done():
            if error is None:
                self.future.set_result(result)
            elif isinstance(error, StopIteration):
                self.future.set_exception(RuntimeError("synchronous code raised StopIteration"))
            else:
                self.future.set_exception(error)
        if self.lane.inbox is None:
            self.lane.next()


def _caller() -> str:
    """Where `await_` was called, seen from `Waiter.wait`."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename in (__file__, bridge.__file__):
        frame = frame.f_back
    code = frame.f_code
    return f"{code.co_qualname} ({code.co_filename}:{frame.f_lineno})"
