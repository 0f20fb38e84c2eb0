"""What is left of a request when it has ended: child tasks, threads, cursors."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, connection, connections, transaction

import greenroom
from greenroom import bridged
from greenroom.db import borrow
from project.shop.models import Customer


def names() -> list[str]:
    return sorted(Customer.objects.values_list("name", flat=True))


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


def test_a_thread_that_ends_closes_what_it_kept(database: Any) -> None:
    """With CONN_MAX_AGE connections outlive their requests, but not their threads."""
    database.change(CONN_MAX_AGE=None)
    kept: list[Any] = []

    def view(request: Any) -> None:
        Customer.objects.count()
        kept.append(connection.connection)

    async def main(ask: Any) -> None:
        await ask(view, pattern="plain")
        await ask(view, pattern="plain")

    database.run(main, "thread", threads=1)
    assert kept[0] is kept[1]
    deadline = time.monotonic() + 10
    while is_open(kept[0]):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_open(driver: Any) -> bool:
    closed: bool = driver._closed if hasattr(driver, "_closed") else driver.closed
    return not closed


@pytest.mark.parametrize("how", ["sync_to_async", "not thread-sensitive", "to_thread"])
def test_a_block_of_a_thread_that_was_given_up_is_never_torn(database: Any, how: str) -> None:
    """Its request was cancelled, and the thread goes on: all of the block, or nothing."""
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def block() -> None:
        try:
            with transaction.atomic():
                Customer.objects.create(name="before")
                begun.set()
                assert go_on.wait(10)
                Customer.objects.create(name="after")
        except DatabaseError:
            pass
        finally:
            connections.close_all()
            done.set()

    async def view(request: Any) -> None:
        if how == "to_thread":
            await asyncio.to_thread(block)
        else:
            await sync_to_async(block, thread_sensitive=how == "sync_to_async")()

    async def main(ask: Any) -> None:
        task = asyncio.create_task(ask(view))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        if how == "sync_to_async":
            # A request waits for its own.
            await asyncio.wait([task], timeout=0.1)
            assert not task.done()
        else:
            await asyncio.wait([task])
        go_on.set()
        await asyncio.wait([task])
        while not done.is_set():
            await asyncio.sleep(0.001)

    database.run(main)
    assert names() in ([], ["after", "before"])


def test_a_task_that_was_started_in_a_block_and_outlives_its_request(
    database: Any, placement: str
) -> None:
    """The block has ended, as it should: what the task then does is its own."""
    tasks: list[asyncio.Task[None]] = []

    async def main(ask: Any) -> None:
        gate = asyncio.Event()

        async def later() -> None:
            await gate.wait()
            await Customer.objects.acreate(name="late")
            async with greenroom.atomic():
                await Customer.objects.acreate(name="late too")

        async def view(request: Any) -> None:
            async with greenroom.atomic():
                await Customer.objects.acreate(name="in time")
                async with greenroom.atomic():
                    tasks.append(asyncio.create_task(later()))

        await ask(view)
        gate.set()
        await tasks[0]

    database.run(main, placement)
    assert names() == ["in time", "late", "late too"]
