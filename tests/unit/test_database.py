"""The database, as far as coroutine views reach it through plain Django's own `a…` calls."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.sessions.models import Session
from django.core.management import call_command
from django.db import connection, connections

from driver import Site


@pytest.fixture(scope="module", autouse=True)
def _tables() -> None:
    call_command("migrate", verbosity=0)


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    Session.objects.all().delete()
    connection.close()
    yield
    connection.close()


@pytest.fixture
def atomic_requests() -> Iterator[None]:
    connections.settings["default"]["ATOMIC_REQUESTS"] = True
    yield
    connections.settings["default"]["ATOMIC_REQUESTS"] = False


def database_site(placement: str, **more: Any) -> Site:
    return Site(placement, ROOT_URLCONF="project.urls_database", **more)


@pytest.mark.usefixtures("atomic_requests")
def test_atomic_requests_span_the_coroutine(placement: str) -> None:
    with database_site(placement) as site:
        assert site.get("/create/kept/return/").text == "1"
        assert site.get("/create/lost/raise/").code == 500
    assert list(Session.objects.values_list("session_key", flat=True)) == ["kept"]


@pytest.mark.usefixtures("atomic_requests")
def test_a_cancelled_transaction_is_rolled_back() -> None:
    async def main(site: Site) -> None:
        for turns in range(0, 60, 3):
            task = asyncio.create_task(site.ask(f"/create/c{turns}/return/"))
            for _ in range(turns):
                await asyncio.sleep(0.0005)
            task.cancel()
            await asyncio.wait([task])

    with database_site("auto") as site:
        site.run(main)
        # The thread's connection is in no transaction: the next request commits.
        assert site.get("/create/after/return/").text == "1"
    assert Session.objects.filter(pk="after").exists()


def test_without_atomic_requests_rows_stay(placement: str) -> None:
    with database_site(placement) as site:
        assert site.get("/create/stays/raise/").code == 500
    assert Session.objects.filter(pk="stays").exists()


def test_on_a_thread_all_use_its_one_connection() -> None:
    middleware = ("project.urls_database.sees_connection",)
    with database_site("thread", middleware=middleware) as site:
        answer = json.loads(site.get("/which/").text)
    assert answer["calls"] == [answer["chain"]] * 4


def test_a_transaction_left_open_reaches_no_other_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with database_site("loop", threads=1) as site, caplog.at_level(logging.ERROR, "greenroom"):
        site.get("/leave-open/")
        assert site.get("/create/next/return/").text == "1"
    assert "left a transaction open on the database 'default'" in caplog.text
    assert list(Session.objects.values_list("session_key", flat=True)) == ["next"]


def test_a_stream_may_query(placement: str) -> None:
    with database_site(placement) as site:
        assert site.get("/stream/").parts == [b"0,", b"0,", b"0,"]
