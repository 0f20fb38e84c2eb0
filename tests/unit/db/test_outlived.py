"""What is left of a request when it has ended: child tasks, cursors."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from django.db import DatabaseError, connection

from greenroom import bridged
from greenroom.db import borrow
from project.shop.models import Customer


def lent() -> int:
    return sum(len(pool._loans) for pool in borrow.pools())


def test_a_child_that_connects_when_its_request_ends_leaves_no_loan(database: Any) -> None:
    async def main(ask: Any) -> None:
        children: list[asyncio.Task[Any]] = []

        async def view(request: Any) -> None:
            children.append(asyncio.create_task(bridged(count)()))
            await asyncio.sleep(0)

        async def count() -> None:
            Customer.objects.count()

        async with asyncio.TaskGroup() as group:
            for _ in range(10):
                group.create_task(ask(view))
        await asyncio.wait(children)
        for child in children:
            assert child.exception() is None or isinstance(child.exception(), DatabaseError)
        await asyncio.sleep(0.05)
        assert lent() == 0

    database.run(main, "loop", GREENROOM={"DB_MAX_CONNECTIONS": 3})


def test_a_cursor_that_is_collected_late_closes_nothing(database: Any) -> None:
    if database.vendor != "postgresql":
        pytest.skip("there are no cursors in the server")

    async def main(ask: Any) -> None:
        kept: list[Any] = []

        async def fill(request: Any) -> None:
            Customer.objects.bulk_create(Customer(name=str(index)) for index in range(50))

        async def leaves(request: Any) -> None:
            rows = Customer.objects.iterator(chunk_size=2)
            next(rows)
            kept.append(rows)

        async def others(request: Any) -> None:
            Customer.objects.count()
            kept.clear()
            gc.collect()
            for _ in range(3):
                Customer.objects.count()
            await asyncio.sleep(0.01)
            assert not connection.connection

        await ask(fill)
        await ask(leaves)
        while lent() or not borrow.pools()[0]._idle:
            await asyncio.sleep(0.01)
        await ask(others)

    database.run(main, "loop", GREENROOM={"DB_MAX_CONNECTIONS": 1})
