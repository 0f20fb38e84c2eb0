"""A task that ticks, so that a loop that stood still shows."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager

TICK = 0.002


class Clock:
    """`longest`: seconds that the loop kept a tick waiting, since that was last set to 0."""

    def __init__(self):
        self.longest = 0.0

    async def run(self):
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + TICK
            await asyncio.sleep(TICK)
            self.longest = max(self.longest, loop.time() - due)


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
