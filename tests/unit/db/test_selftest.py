"""A worker proves to itself at the start that queries yield to the loop."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from driver import Site
from greenroom.db import borrow
from orm import Database


def started(database: Database, caplog: pytest.LogCaptureFixture) -> list[str]:
    async def main(site: Site) -> str:
        return await site.app.coroutine_wsgi_startup()

    with database.site() as site, caplog.at_level(logging.WARNING, "greenroom"):
        assert "connections per database" in site.run(main)
    return [record.getMessage() for record in caplog.records]


def test_nothing_is_said_of_one_that_yields(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    assert started(database, caplog) == []


def test_one_that_blocks_is_reported(
    database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a release of the driver waited elsewhere than where it is overridden."""
    if database.vendor == "postgresql":
        import psycopg

        from greenroom.db.postgresql import WaitingConnection

        monkeypatch.setattr(WaitingConnection, "wait", psycopg.Connection.wait)
    else:
        from greenroom.db.sqlite import WaitingConnection as Waiting

        monkeypatch.setattr(Waiting, "call", lambda self, fn, *args: fn(*args))
    (said,) = started(database, caplog)
    assert said.startswith("A query to the database 'default' blocked the event loop")
    assert "'PLACEMENT': 'thread'" in said


def test_one_that_is_down_is_no_reason_not_to_start(
    database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere: dict[str, Any] = (
        {"HOST": "/nowhere/at/all"}
        if database.vendor == "postgresql"
        else {"NAME": "/nowhere/at/all.sqlite3"}
    )
    database.change(**nowhere)
    (said,) = started(database, caplog)
    assert said.startswith("The database 'default' did not answer at the start (")
    caplog.clear()
    # Nor to be told of in a project's tests.
    monkeypatch.setattr(borrow, "in_tests", lambda: True)
    assert started(database, caplog) == []
