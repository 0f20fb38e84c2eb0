"""What lasts as long as a process: an HTTP client, made once.

SITE_LIFESPAN names the file that says when: Apache ends its log before its processes.
"""

import os
from contextlib import asynccontextmanager
from pathlib import Path

import httpx


@asynccontextmanager
async def lifespan():
    async with httpx.AsyncClient(timeout=30) as client:
        _note("entered")
        yield client
    _note("left")


def _note(what):
    with Path(os.environ["SITE_LIFESPAN"]).open("a") as file:
        file.write(f"{what}\n")
