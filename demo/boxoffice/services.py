"""The services that a booking needs. Unlike a montage, it can't do without any of them."""

import asyncio
import logging

import httpx

from .errors import ServiceFailed

logger = logging.getLogger(__name__)


async def ask(client: httpx.AsyncClient, *names, failing=()):
    """What each of the services answers; all are asked at once.

    If one fails, the others are not waited for.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_ask(client, name, name in failing)) for name in names]
    except ExceptionGroup as failed:
        logger.warning("No booking: %r", failed.exceptions)
        raise ServiceFailed from failed
    return [task.result() for task in tasks]


async def _ask(client, name, fail):
    response = await client.get(f"/upstream/{name}/", params={"fail": ""} if fail else {})
    return response.raise_for_status().json()["data"]
