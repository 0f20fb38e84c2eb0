"""The threads on which synchronous code runs.

One `Threads` belongs to one loop. Its contract:

Rule 1: **starting is bounded, resuming is not.** At most `limit` threads run
requests that were begun and do not wait. A thread that waits for a coroutine is
*parked*: its place is free for another. When the coroutine is done the thread
goes on at once, above the limit if need be: it may hold a lock in the database
that the running ones wait for.

Rule 2: **parked threads are bounded too.** Jobs that are known to park (those of
coroutine views) wait for one of `max_parked` places before they begin, and get
`Overloaded` after `queue_timeout` seconds. Others may park unforeseen; when
`max_parked + limit` threads are parked, nothing more is begun. Nothing under way
ever waits for a place, so pages that call back into their own server can't lock
it up: the call that finds no place is refused in time. Calls of requests that hold a
connection are not counted: there are no more of them than connections in the pool.

Rule 3: **a further thread is woken for work that waits**, not for each job: with
the GIL one thread is fastest for short jobs. A job that was queued for `WAKE`
seconds gets another thread. Idle threads are woken last in, first out.

What runs on them, and how it waits for coroutines, is in `greenroom.crossing`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from queue import SimpleQueue
from typing import Any, TypeVar

from asgiref.sync import SyncToAsync

from .crossing import CALL, HELD, START, Call, Calls, Job
from .errors import Overloaded

T = TypeVar("T")

logger = logging.getLogger("greenroom.threads")

# Seconds that a job is queued before another thread is woken for it. Measured
# with eight threads: at 2 ms they keep the rate of one for a hello-world view,
# with a lower 99th percentile.
WAKE = 0.002


class Threads:
    """The threads of one loop. All its public methods belong to the loop's thread.

    `limit`: how many jobs run at a time (gunicorn's `threads`).
    `max_parked`: how many jobs that park are under way at a time.
    `queue_timeout`: seconds until a job that found no place raises `Overloaded`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        limit: int,
        max_parked: int = 40,
        queue_timeout: float = 30.0,
    ) -> None:
        self.loop = loop
        self.limit = limit
        self.max_parked = max_parked
        self.queue_timeout = queue_timeout
        # Called on a thread after a call that ran there for a lane without one.
        self.after_call: Callable[[], object] | None = None
        # Called on a thread that ends.
        self.at_end: Callable[[], object] | None = None
        self.calls = Calls(self)
        self.tasks: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(max_parked)
        self._lock = threading.Lock()
        # All below is read and written under the lock.
        self._queues: tuple[deque[Job], deque[Call], deque[Call]] = (deque(), deque(), deque())
        self._running = [0, 0, 0]
        self._parked = 0
        self._idle: list[SimpleQueue[Job | Call | None]] = []
        self._made = 0
        self._starved = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def most(self) -> int:
        """The most threads that can exist, and so the most connections of an alias."""
        return 2 * (self.limit + self.max_parked)

    @property
    def busy(self) -> bool:
        """Whether a thread runs or is parked: `Then.after` outlives the answer."""
        return any(self._running) or self._parked > 0

    @property
    def made(self) -> int:
        """How many threads exist."""
        return self._made

    async def run(self, fn: Callable[..., Any], /, *args: Any, parks: bool = False) -> Any:
        """Run `fn(*args)` on a thread, in this task's context, and return its result.

        `parks` says that it is known to wait for a coroutine. Raises `Overloaded`
        when no place came free in time. If `fn` returns a `Then`, its value is
        returned early; if a `Hold`, a `Held`.
        """
        job = Job(self, fn, args)
        if not parks:
            self.submit(START, job)
            return await job.drive()
        if self._places.locked():
            try:
                async with asyncio.timeout(self.queue_timeout):
                    await self._places.acquire()
            except TimeoutError:
                raise self._overloaded() from None
        else:
            await self._places.acquire()
        job.on_end = self._places.release
        self.submit(START, job)
        return await job.drive()

    def adopt(self, fn: Callable[..., T], /, *args: Any) -> T:
        """Run `fn(*args)` on the calling thread, which is none of ours, as a job.

        What it waits for runs in one task on the loop. To be called from a thread
        without a running loop.
        """
        job = Job(self, fn, args)
        job.adopted = True
        return job.execute_adopted()  # type: ignore[no-any-return]

    def keep(self, coroutine: Coroutine[Any, Any, None], context: Context) -> asyncio.Task[None]:
        """Start a task and hold it until it is done."""
        task = self.loop.create_task(coroutine, context=context)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def close(self) -> None:
        """Let idle threads end; running ones end when they are done."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for inbox in idle:
            inbox.put(None)

    # Which thread runs what. `_claim`, `_may`, `_full` need the lock.

    def submit(self, kind: int, item: Job | Call) -> None:
        with self._lock:
            self._queues[kind].append(item)  # type: ignore[arg-type]
            if kind != START or self._running[START] == 0:
                self._claim_and_wake()
            waiting = any(self._queues)
        if waiting and self._timer is None:
            self._arm()

    def hurry(self, call: Call) -> None:
        """Begin a call now, if it was not begun: one that holds something is behind it."""
        with self._lock:
            if call in self._queues[1]:
                self._queues[1].remove(call)
                call.kind = HELD
                self._queues[2].append(call)
                self._claim_and_wake()

    def withdraw(self, job: Job) -> bool:
        """Take a job back; False if it was begun."""
        with self._lock:
            try:
                self._queues[0].remove(job)
            except ValueError:
                return False
            return True

    def _may(self, kind: int) -> bool:
        if kind == HELD:
            return True
        bound = self.limit if kind == START else self.max_parked
        return self._running[kind] < bound and not self._full()

    def _full(self) -> bool:
        return (
            self._parked >= self.max_parked + self.limit
            or self._parked + sum(self._running) >= self.most
        )

    def _claim(self) -> Job | Call | None:
        for kind in (HELD, CALL, START):
            if self._queues[kind] and self._may(kind):
                self._running[kind] += 1
                return self._queues[kind].popleft()
        return None

    def _claim_and_wake(self) -> None:
        item = self._claim()
        if item is None:
            return
        if self._idle:
            self._idle.pop().put(item)
            return
        self._made += 1
        # Not by its arguments, which a thread keeps until it ends.
        inbox: SimpleQueue[Job | Call | None] = SimpleQueue()
        inbox.put(item)
        thread = threading.Thread(
            target=self._main, args=(inbox,), name=f"greenroom-{self._made}", daemon=True
        )
        try:
            # Tools that trace have a thread go on in the context that started it, to its end:
            # that is not to be the request's for which there was none yet.
            Context().run(thread.start)
        except RuntimeError as exc:
            # A limit of the system's. The timer tries again.
            self._made -= 1
            self._running[item.kind] -= 1
            self._queues[item.kind].appendleft(item)  # type: ignore[arg-type]
            self._starved = True
            self.soon(logger.error, "No thread could be started: %s", exc)
            self.soon(self._arm)
        else:
            self._starved = False

    def _main(self, inbox: SimpleQueue[Job | Call | None]) -> None:
        SyncToAsync.threadlocal.main_event_loop = self.loop
        SyncToAsync.threadlocal.main_event_loop_pid = os.getpid()
        item = inbox.get()
        while item is not None:
            kind = item.kind
            try:
                item.execute()
            except BaseException as exc:
                # Not the job's, which are answered: of a log handler, or out of memory.
                self.soon(item.refuse, exc)
            del item
            with self._lock:
                self._running[kind] -= 1
                item = self._claim()
                if any(self._queues) and self._timer is None:
                    self.soon(self._arm)
                if item is None:
                    if self._closed:
                        break
                    self._idle.append(inbox)
            if item is None:
                item = inbox.get()
        if self.at_end is not None:
            try:
                self.at_end()
            except Exception:
                logger.exception("An error where a thread ended")
        with self._lock:
            self._made -= 1

    def soon(self, fn: Callable[..., object], *args: Any) -> None:
        try:
            self.loop.call_soon_threadsafe(fn, *args)
        except RuntimeError:
            # The loop is closed: the process ends, nobody is there to be told.
            logger.debug("A thread ended after its loop.")

    def _arm(self) -> None:
        if self._timer is None:
            with self._lock:
                kinds = [kind for kind in (START, CALL, HELD) if self._queues[kind]]
                blocked = self._starved or not any(self._may(kind) for kind in kinds)
            if kinds:
                # In an empty context: the timer lives on from request to request.
                self._timer = self.loop.call_later(
                    0.1 if blocked else WAKE, self._check, context=Context()
                )

    def _check(self) -> None:
        self._timer = None
        expired: list[Job | Call] = []
        now = time.monotonic()
        with self._lock:
            if any(queue and now - queue[0].queued >= WAKE for queue in self._queues):
                self._claim_and_wake()
            if self._full():
                for queue in self._queues:
                    while queue and now - queue[0].queued > self.queue_timeout:
                        expired.append(queue.popleft())
            waiting = any(self._queues)
        for item in expired:
            item.refuse(self._overloaded())
        if waiting:
            self._arm()

    def park(self, kind: int) -> None:
        with self._lock:
            self._running[kind] -= 1
            self._parked += 1
            starts = self._queues[START]
            if (
                self._running[START] == 0
                or self._queues[CALL]
                or self._queues[HELD]
                or (starts and time.monotonic() - starts[0].queued >= WAKE)
            ):
                self._claim_and_wake()

    def resume(self, kind: int) -> None:
        with self._lock:
            self._parked -= 1
            self._running[kind] += 1

    def _overloaded(self) -> Overloaded:
        return Overloaded(
            f"No place came free within {self.queue_timeout:g} s: {self._parked} threads wait for "
            f"coroutines. Raise GREENROOM['MAX_PARKED'] (now {self.max_parked}), or make the code "
            "around the views loop-safe: `manage.py greenroom` names it.",
            retry_after=max(1, int(self.queue_timeout)),
        )
