"""A worker proves to itself, when it starts, that a query yields to the loop.

A driver may move its waiting to where it can't be overridden: psycopg 3.1.5 did,
and silently blocked the users of gevent.
"""

from __future__ import annotations

import asyncio
import logging
import time

from django.db import connections

from greenroom import bridge

from . import borrow

logger = logging.getLogger("greenroom")

# Seconds that a database gets to answer; one that is down is no reason not to start.
PATIENCE = 5.0


async def run() -> None:
    """Ask each database that is waited for on the loop; log an error for one that blocks.

    Not in tests, whose live servers may be forbidden to ask.
    """
    if borrow.in_tests():
        return
    for alias in connections:
        wrapper_settings = connections.settings[alias]
        if borrow.why_not(alias) is not None or "dummy" in wrapper_settings["ENGINE"]:
            continue
        try:
            async with asyncio.timeout(PATIENCE):
                yields = await asyncio.create_task(_yields(alias))
        except Exception as exc:
            logger.warning(
                "The database %r did not answer at the start (%s): whether its driver waits on the "
                "loop is not known.",
                alias,
                str(exc).strip() or type(exc).__name__,
            )
            continue
        if not yields:
            logger.error(
                "A query to the database %r blocked the event loop: this version of its driver is "
                "not supported. Set GREENROOM = {'PLACEMENT': 'thread'} until it is.",
                alias,
            )


async def _yields(alias: str) -> bool:
    turned: list[float] = []

    def query() -> None:
        # The first connects.
        for _ in range(2):
            turned.clear()
            with connections[alias].cursor() as cursor:
                asyncio.get_running_loop().call_soon(lambda: turned.append(time.monotonic()))
                cursor.execute("SELECT 1")
                cursor.fetchone()

    scope = borrow.begin("the self-test")
    try:
        await bridge.run(query)
    finally:
        scope.close()
    return bool(turned)
