"""`database`: each test on SQLite and on PostgreSQL, with the tables of `project.shop`, empty.

A view is a coroutine function of the test, of one argument, the request:

    def test_counting(database, placement):
        async def view(request):
            return Customer.objects.count()

        assert database.request(view, placement) == 0

What the view returns is the result, and what it raises is raised. With more than one
request, `run(main)` gives `main` a function that makes one:

    async def main(ask):
        await asyncio.gather(ask(view), ask(other))

    database.run(main, "loop", GREENROOM={"DB_MAX_CONNECTIONS": 1})
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import connections

from orm import Database, forget_wrapper
from postgresql import PostgreSQL


@pytest.fixture(scope="session")
def _sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with all tables, to be copied."""
    file = tmp_path_factory.mktemp("database") / "template.sqlite3"
    with _as_default({**connections.settings["default"], "NAME": str(file)}):
        call_command("migrate", run_syncdb=True, verbosity=0)
    return file


@pytest.fixture(scope="session")
def _postgresql_settings(pg: PostgreSQL) -> dict[str, Any]:
    settings = pg.create("shop")
    with _as_default(settings):
        call_command("migrate", run_syncdb=True, verbosity=0)
    return settings


@contextlib.contextmanager
def _as_default(settings: dict[str, Any]) -> Iterator[None]:
    """The project's database, for the block."""
    forget_wrapper()
    before = connections.settings["default"]
    connections.settings["default"] = settings
    try:
        yield
    finally:
        forget_wrapper()
        connections.settings["default"] = before


@pytest.fixture(params=["sqlite", "postgresql"])
def vendor(request: pytest.FixtureRequest) -> str:
    """To be parametrized by tests that are about one of the two."""
    return str(request.param)


@pytest.fixture
def database(vendor: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """The project's database, with empty tables."""
    if vendor == "sqlite":
        file = tmp_path / "shop.sqlite3"
        shutil.copy(request.getfixturevalue("_sqlite_file"), file)
        settings = {**connections.settings["default"], "NAME": str(file), "OPTIONS": {}}
        made = Database(settings, None)
    else:
        given = request.getfixturevalue("_postgresql_settings")
        made = Database({**given, "OPTIONS": {}}, request.getfixturevalue("pg"))
        tables = [model._meta.db_table for model in apps.get_app_config("shop").get_models()]
        tables += ["django_session", "auth_user"]
        # TRUNCATE makes files anew, and takes three times as long.
        deletes = " ".join(f"DELETE FROM {table};" for table in tables)
        made.execute(f"DO $$ BEGIN SET LOCAL session_replication_role = replica; {deletes} END $$")
    before = {each.pid for each in made.sessions()} if made.pg is not None else set()
    with _as_default(made.settings):
        yield made
    if made.pg is not None:
        _all_closed(made, before)


def _all_closed(database: Database, before: set[int]) -> None:
    """No test leaves a connection behind, wherever it was cancelled."""
    deadline = time.monotonic() + 5
    while sessions := [each for each in database.sessions() if each.pid not in before]:
        assert time.monotonic() < deadline, f"still connected: {sessions}"
        time.sleep(0.01)
