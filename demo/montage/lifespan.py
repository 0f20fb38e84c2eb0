"""What lives as long as a worker process, on every request as `request.lifespan`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
from django.conf import settings


@dataclass(frozen=True)
class Lifespan:
    client: httpx.AsyncClient
    # For the page that asks one after another. It keeps its connections too, so that the
    # two pages differ in nothing but the order of their waiting.
    sync_client: httpx.Client


@asynccontextmanager
async def lifespan() -> AsyncIterator[Lifespan]:
    options = {
        "base_url": settings.MONTAGE_UPSTREAM,
        "timeout": settings.MONTAGE_TIMEOUT,
        "limits": httpx.Limits(max_connections=500, max_keepalive_connections=100),
        "trust_env": False,  # no proxy between this server and itself
    }
    async with httpx.AsyncClient(**options) as client:
        with httpx.Client(**options) as sync_client:
            yield Lifespan(client, sync_client)
