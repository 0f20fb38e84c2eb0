"""A lifespan that notes what happens to it."""

import asyncio
from contextlib import asynccontextmanager

log = []


@asynccontextmanager
async def lifespan():
    # A task group insists on being left by the task that entered it.
    async with asyncio.TaskGroup():
        log.append("entered")
        yield "a client"
        log.append("left")


@asynccontextmanager
async def fails():
    raise RuntimeError("no upstream")
    yield
