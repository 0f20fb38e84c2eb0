"""A task that ticks, so that a loop that stood still shows."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from pathlib import Path

TICK = 0.002


def waited() -> float:
    """Seconds in which the machine had no processor for this thread (0 where it doesn't tell)."""
    try:
        # Nanoseconds that it ran, that it was ready to run, and how often.
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


class Clock:
    """`longest`: seconds that the loop kept a tick waiting, since that was last set to 0."""

    def __init__(self):
        self.longest = 0.0

    async def run(self):
        loop = asyncio.get_running_loop()
        while True:
            due, before = loop.time() + TICK, waited()
            await asyncio.sleep(TICK)
            self.longest = max(self.longest, loop.time() - due - (waited() - before))


@asynccontextmanager
async def ticking():
    clock = Clock()
    task = asyncio.create_task(clock.run())
    try:
        yield clock
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
