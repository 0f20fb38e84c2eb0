from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from contextlib import asynccontextmanager

import httpx

from . import tracing


@asynccontextmanager
async def client():
    """A client that lasts; and whatever of the tool blocks the loop is written down."""
    async with tracing.lifespan(), httpx.AsyncClient(timeout=30) as client:
        if "SITE_LOOKS_FOR_BLOCKING" in os.environ:
            look_for_blocking()
            # It is seen that it works.
            with contextlib.suppress(Exception):
                time.sleep(0)
        yield client


def look_for_blocking():
    import blockbuster

    class Blocked(blockbuster.BlockingError):
        def __init__(self, function):
            super().__init__(function)
            # The tools keep what goes wrong in them to themselves.
            where = "".join(traceback.format_stack(limit=12))
            print(f"BLOCKED in {function}\n{where}", file=sys.stderr, flush=True)

    blockbuster.blockbuster.BlockingError = Blocked
    blockbuster.BlockBuster(scanned_modules=[tracing.MODULE, __name__]).activate()
