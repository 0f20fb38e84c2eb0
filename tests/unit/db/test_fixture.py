"""The fixture that the other tests here stand on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.db import connection

from project.shop.models import Customer


def test_each_test_has_an_empty_database(database: Any, placement: str) -> None:
    async def view(request: Any) -> Any:
        await Customer.objects.acreate(name="a")
        Customer.objects.create(name="b")
        await asyncio.sleep(0)
        return connection.vendor, [each.name async for each in Customer.objects.order_by("name")]

    assert database.request(view, placement) == (database.vendor, ["a", "b"])
    assert database.execute("SELECT count(*) FROM shop_customer")[0][0] == 2
    assert Customer.objects.count() == 2


def test_errors_of_the_view_are_raised(database: Any) -> None:
    async def view(request: Any) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        database.request(view)
