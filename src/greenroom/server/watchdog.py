"""A thread that sees when the loop doesn't turn, and says what it runs.

The loop notes the time in a timer, `_NOTES` times in each `threshold`; the thread
sleeps until such a note is nearly `threshold` seconds old, so a loop that turns costs it
some fifteen looks a second. What is seen is logged once, and once more with its duration
when the loop turns again. Both count from the last note, and so may be too long by
the time between two. At most `_AT_ONCE` stalls are logged in a row, then one in
`_EVERY` seconds; the others are counted.

It costs some 5 ms of CPU time a second where to wake up costs 60 µs, with requests no
more. (Tried: no timer, but a thread that looks whether the loop waits, and asks it to note
the time where it doesn't. It leaves idle processes asleep, but can't tell a loop that
kept the interpreter lock from one that turned while the thread got no processor.)

What is no stall, though no note was made:

- **The loop waits for events**: then it runs nobody's code, and was kept from
  running by others (a thread that kept the interpreter lock, a busy machine).
- **The process was stopped**: this thread overslept too, and is to see another
  `threshold` pass.
- **Many tasks in one turn**: a burst of requests takes its time, but no code keeps the
  others from running. It is the same task that runs, from look to look, in a stall.
- **The machine is busy**: the loop's thread would run, but hasn't had a processor for
  half of `threshold` yet. What tells is its clock of CPU time and its state in
  /proc; where a system has neither, such a stall is reported with the others.

A thread that used its time in C, keeping the interpreter lock, is not stopped: it
is reported late, when this thread gets the lock, with the stack that called the C
code (CPython gives the lock away when such a call returns).

From this thread (tried on 3.11 and 3.13, asyncio and uvloop): `sys._current_frames`
shows the stack of the greenlet that runs, up to where the greenlet began;
`asyncio.current_task(loop)` may be asked for another thread's loop. Greenlets are
never touched, and frames only as `stacks` says.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from contextvars import Context
from types import CodeType
from typing import TYPE_CHECKING, Any

from . import stacks

if TYPE_CHECKING:
    from .lifecycle import Log

# In each `threshold`.
_NOTES = 3
# How many stalls are logged in a row, and seconds until one more may be.
_AT_ONCE = 5
_EVERY = 20.0
_UNLOGGED = "unlogged"


class Watchdog:
    """Watches the running loop from `start` to `stop`, which are called on it.

    `current` says what it runs, `root` is the function that runs it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        threshold: float,
        log: Log,
        current: Callable[[], str],
        root: CodeType,
    ) -> None:
        self._loop = loop
        self._threshold = threshold
        self._log = log
        self._current = current
        self._root = root
        # Held until the end. (Half as dear to wait for as an Event.)
        self._running = threading.Lock()
        self._thread: threading.Thread | None = None
        # The loop's thread.
        self._ident = 0
        self._stat = ""
        self._clock: int | None = None
        # Of the loop: when it last turned, and the CPU time that it had used then; how
        # long the last stall was.
        self._note = (0.0, 0.0)
        self._gap = 0.0
        self._timer: asyncio.TimerHandle | None = None
        # How many stalls may be logged, and since when.
        self._allowed: float = _AT_ONCE
        self._counted = 0.0
        self._unlogged: list[float] = []

    def start(self) -> None:
        self._ident = threading.get_ident()
        self._stat = f"/proc/self/task/{threading.get_native_id()}/stat"
        if hasattr(time, "pthread_getcpuclockid"):
            self._clock = time.pthread_getcpuclockid(self._ident)
        self._counted = time.monotonic()
        self._turn()
        self._running.acquire()
        self._thread = threading.Thread(target=self._watch, name="greenroom-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._thread is not None:
            self._running.release()
            # It may be writing to a log that nobody reads.
            self._thread.join(0.2)

    # On the loop.

    def _turn(self) -> None:
        now = time.monotonic()
        gap = now - self._note[0]
        if gap > self._threshold:
            self._gap = gap
        self._note = (now, time.thread_time())
        pause = self._threshold / _NOTES
        # In an empty context: it lives on from request to request.
        self._timer = self._loop.call_later(pause, self._turn, context=Context())

    # On the thread.

    def _watch(self) -> None:
        look = self._threshold / _NOTES
        pause, since, before = self._threshold, 0.0, time.monotonic()
        # Since which note which task has run, and from when on that is a stall.
        seen: tuple[Any, Any, float] = None, None, 0.0
        while not self._running.acquire(timeout=pause):
            now = time.monotonic()
            if now - before > pause + look:
                # It overslept: what it sees now may just have been let go on.
                since = now
            note = self._note
            due = note[0] + self._threshold
            if now < due - look:
                seen = None, None, 0.0
                before, pause = now, due - look - now
                continue
            task = asyncio.current_task(self._loop)
            if seen[0] is not note:
                seen = note, task, due
            elif seen[1] is not task:
                seen = note, task, now + self._threshold
            if now < seen[2]:
                before, pause = now, min(look, seen[2] - now)
                continue
            said = self._seen(note, now, settled=now - since >= self._threshold)
            del task
            seen = None, None, 0.0
            while said is not None and self._note is note:
                if self._running.acquire(timeout=look):
                    return
            if said:
                self._over(said)
            before, pause = time.monotonic(), look

    def _seen(self, note: tuple[float, float], now: float, settled: bool) -> str | None:
        """Report a stall; returns what ran, or None if there is none."""
        used = self._used()
        if used is not None:
            used -= note[1]
        busy = used is not None and used >= self._threshold / 2
        if not busy and not (settled and self._is_blocked()):
            return None
        ran = self._current()
        found = stacks.places(sys._current_frames().get(self._ident), self._root)
        if self._note is not note or _is_waiting(found, self._root):
            return None
        if not self._may_log(now):
            return _UNLOGGED
        unlogged, self._unlogged = self._unlogged, []
        others = (
            f"\nStalls that were not logged since the last one: {len(unlogged)}, the longest of "
            f"{1000 * max(unlogged):.0f} ms"
            if unlogged
            else ""
        )
        self._log.warning(
            "The event loop has not turned for %.0f ms%s. It runs %s, in %s:\n%s%s",
            1000 * (now - note[0]),
            "" if used is None else f" (with {1000 * used:.0f} ms of CPU time)",
            ran,
            stacks.innermost(found),
            stacks.text(found),
            others,
        )
        return ran

    def _over(self, ran: str) -> None:
        if ran == _UNLOGGED:
            self._unlogged.append(self._gap)
            return
        self._log.warning(
            "The event loop turns again: it was blocked for %.0f ms by %s.",
            1000 * self._gap,
            ran,
        )

    def _used(self) -> float | None:
        """The CPU time of the loop's thread."""
        return None if self._clock is None else time.clock_gettime(self._clock)

    def _is_blocked(self) -> bool:
        """Whether the loop's thread waits for something: no processor, nor to be let go on."""
        try:
            descriptor = os.open(self._stat, os.O_RDONLY)
        except OSError:
            return True
        try:
            # While this reads, the interpreter lock is free: who waits for it only
            # would run.
            state = os.read(descriptor, 512).rpartition(b")")[2].split()[0]
        finally:
            os.close(descriptor)
        return state not in (b"R", b"T", b"t")

    def _may_log(self, now: float) -> bool:
        self._allowed = min(_AT_ONCE, self._allowed + (now - self._counted) / _EVERY)
        self._counted = now
        if self._allowed < 1:
            return False
        self._allowed -= 1
        return True


def _is_waiting(found: list[stacks.Place], root: CodeType) -> bool:
    """Whether the loop runs nothing but itself: uvloop has no frames of its own."""
    if not found:
        return True
    code = found[0][0]
    return code is root or (
        code.co_name == "select" and os.path.basename(code.co_filename) == "selectors.py"
    )
