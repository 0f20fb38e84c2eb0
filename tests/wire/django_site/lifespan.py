"""What lasts as long as a process: an HTTP client, made once."""

import sys
from contextlib import asynccontextmanager

import httpx


@asynccontextmanager
async def lifespan():
    async with httpx.AsyncClient(timeout=30) as client:
        print("lifespan entered", file=sys.stderr, flush=True)
        yield client
    print("lifespan left", file=sys.stderr, flush=True)
