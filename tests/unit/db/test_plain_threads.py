"""Threads that serve no request of ours, a test or a command, and wait for coroutines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, transaction

from greenroom import await_
from greenroom.db import borrow
from orm import Database
from project.shop.models import Counter


@pytest.fixture(autouse=True)
def _drained(database: Database) -> Iterator[None]:
    yield
    borrow.drain()


async def count() -> int:
    await asyncio.sleep(0)
    return await Counter.objects.acount()


async def plain_count() -> int:
    await asyncio.sleep(0)
    return Counter.objects.count()


def test_a_thread_goes_on_with_its_own_connection(database: Database) -> None:
    assert Counter.objects.count() == 0
    mine = connection.connection
    assert await_(plain_count()) == 0
    assert borrow._scope.get() is None
    Counter.objects.create(name="a")
    assert connection.connection is mine
    assert await_(plain_count()) == 1


def test_what_is_awaited_in_a_transaction_is_in_it(database: Database) -> None:
    """As in a `TestCase`."""
    with transaction.atomic():
        Counter.objects.create(name="a")
        mine = connection.connection
        assert await_(count()) == 1
        await_(Counter.objects.acreate(name="b"))
        assert (connection.connection, connection.in_atomic_block) == (mine, True)
        # It would not be in the transaction.
        with pytest.raises(SynchronousOnlyOperation):
            await_(plain_count())
        assert Counter.objects.count() == 2
        transaction.set_rollback(True)
    assert Counter.objects.count() == 0
    assert borrow._scope.get() is None


async def ident() -> int:
    return await sync_to_async(threading.get_ident)()


@pytest.mark.timeout(20)
def test_calls_of_what_is_awaited_run_on_the_thread_that_waits(database: Database) -> None:
    """Under another ASGI server or an async test, where asgiref knows a thread: this one."""

    def waits() -> tuple[int, int, int]:
        return threading.get_ident(), await_(ident()), await_(count())

    async def served() -> tuple[int, int, int]:
        async with ThreadSensitiveContext():
            here, there, found = await sync_to_async(waits)()
            # And what was known is known again.
            assert await ident() == here
            return here, there, found

    async def tested() -> tuple[int, int, int]:
        here, there, found = await sync_to_async(waits)()
        assert await ident() == here
        return here, there, found

    for here, there, found in (asyncio.run(served()), async_to_sync(tested)()):
        assert (there, found) == (here, 0)
