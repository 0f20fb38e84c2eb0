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

import asyncio
import contextlib
import itertools
import shutil
import sqlite3
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import connections
from django.http.response import HttpResponseBase

import postgresql
from driver import Site
from project import urls_orm

View = Callable[[Any], Awaitable[Any]]
_numbers = itertools.count(1)


class Database:
    """The database ``default`` of the project while a test runs."""

    def __init__(self, settings: dict[str, Any], pg: postgresql.PostgreSQL | None) -> None:
        self.settings = settings
        self.pg = pg
        self.vendor = "sqlite" if pg is None else "postgresql"

    def change(self, **settings: Any) -> None:
        """Other settings for the rest of the test: ``change(CONN_MAX_AGE=60)``."""
        forget_wrapper()
        self.settings.update(settings)

    def execute(self, sql: str, params: tuple[Any, ...] = ()) -> list[Any]:
        """A statement on a connection of its own, of nobody's pool; ``%s`` on both."""
        if self.pg is not None:
            return self.pg.execute(sql, self.settings["NAME"], params)
        connection = sqlite3.connect(self.settings["NAME"], isolation_level=None)
        try:
            return connection.execute(sql.replace("%s", "?"), params).fetchall()
        finally:
            connection.close()

    def sessions(self) -> list[Any]:
        """The sessions that PostgreSQL's server has on this database."""
        assert self.pg is not None
        return self.pg.connections(self.settings["NAME"])

    def site(self, placement: str = "loop", **more: Any) -> Site:
        """As `driver.Site`, but none of the test's own code is known to be loop-safe."""
        greenroom = {"LOOP_SAFE": [], **more.pop("GREENROOM", {})}
        return Site(placement, ROOT_URLCONF="project.urls_orm", GREENROOM=greenroom, **more)

    def run(
        self,
        main: Callable[[Callable[..., Coroutine[Any, Any, Any]]], Coroutine[Any, Any, Any]],
        placement: str = "loop",
        **more: Any,
    ) -> Any:
        """Run `main(ask)` on a loop; ``await ask(view)`` is one request, in its own task."""
        with self.site(placement, **more) as site:
            return site.run(lambda site: main(lambda view, **extra: ask(site, view, **extra)))

    def request(self, view: View, placement: str = "loop", **more: Any) -> Any:
        """One request, on a loop of its own."""
        return self.run(lambda ask: ask(view), placement, **more)


async def ask(site: Site, view: View, **extra: Any) -> Any:
    name = f"{getattr(view, '__name__', 'view')}-{next(_numbers)}"
    urls_orm.views[name] = view
    try:
        answer = await site.ask(f"/call/{name}/", **extra)
        error = urls_orm.errors.pop(name, None)
        result = urls_orm.results.pop(name, None)
    finally:
        for each in (urls_orm.views, urls_orm.errors, urls_orm.results):
            each.pop(name, None)
    if error is not None:
        try:
            raise error
        finally:
            del error
    if isinstance(result, HttpResponseBase):
        return answer
    assert answer.code == 200, answer.text
    return result


def forget_wrapper(alias: str = "default") -> None:
    """The wrapper of this thread, which has settings that are no longer true."""
    connections[alias].close()
    del connections[alias]


@pytest.fixture(scope="session")
def _sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with all tables, to be copied."""
    file = tmp_path_factory.mktemp("database") / "template.sqlite3"
    with _as_default({**connections.settings["default"], "NAME": str(file)}):
        call_command("migrate", run_syncdb=True, verbosity=0)
    return file


@pytest.fixture(scope="session")
def _postgresql_settings(pg: postgresql.PostgreSQL) -> dict[str, Any]:
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
        made.execute(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY CASCADE")
    with _as_default(made.settings):
        yield made
    if made.pg is not None:
        _all_closed(made)


def _all_closed(database: Database) -> None:
    """No test leaves a connection behind, wherever it was cancelled."""
    deadline = time.monotonic() + 5
    while sessions := database.sessions():
        assert time.monotonic() < deadline, f"still connected: {sessions}"
        time.sleep(0.01)


async def turns(count: int) -> None:
    """Let the loop turn so many times."""
    for _ in range(count):
        await asyncio.sleep(0)
