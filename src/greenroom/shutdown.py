"""Whether this process is about to end: one event for all its loops and threads.

Under the worker it is set when the drain begins, whatever began it. Elsewhere
nobody tells us in time: it is set at exit, when the background loop ends, and in a
process without one never.

There is one object for the life of the interpreter, so that a module may keep it;
a forked child finds it unset. It takes no lock, for it may be used in a finaliser:
a waiter is added before it looks at the flag, and the flag is set before the
waiters are taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Literal


class ShuttingDown:
    """As an `asyncio.Event`, but for any loop and thread; nothing clears it."""

    def __init__(self) -> None:
        self._set = False
        self._waiters: set[asyncio.Future[None]] = set()

    def is_set(self) -> bool:
        """Whether the process is about to end. May be asked on any thread."""
        return self._set

    async def wait(self) -> Literal[True]:
        """Wait until it is. On a thread: ``greenroom.await_(event.wait())``."""
        if not self._set:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                if not self._set:
                    await waiter
            finally:
                self._waiters.discard(waiter)
        return True

    def set(self) -> None:
        """For the worker. May be called on any thread, and more than once."""
        self._set = True
        with contextlib.suppress(KeyError):
            while True:
                waiter = self._waiters.pop()
                # A loop that is closed has no use for it.
                with contextlib.suppress(RuntimeError):
                    waiter.get_loop().call_soon_threadsafe(_wake, waiter)

    def __repr__(self) -> str:
        return f"<ShuttingDown {'set' if self._set else 'unset'}>"

    def _after_fork(self) -> None:
        self._set = False
        self._waiters = set()


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


_event = ShuttingDown()
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_event._after_fork)


def shutting_down() -> ShuttingDown:
    """An event that is set when this process is about to end.

    For what would otherwise go on until it is cancelled, at the end of
    `graceful_timeout`: endless streams, background tasks. It has `is_set()` and
    ``await wait()``, as an `asyncio.Event`.
    """
    return _event
