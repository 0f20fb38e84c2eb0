"""The project's database in a test, and views of the test that use it.

See tests/unit/db/conftest.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from django.db import connections
from django.http.response import HttpResponseBase

import postgresql
from driver import Site
from project import urls_orm

View = Callable[[Any], Awaitable[Any]]
Ask = Callable[..., Coroutine[Any, Any, Any]]
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

    def raw(self) -> Any:
        """A connection of the driver, in autocommit, of nobody's pool."""
        if self.pg is None:
            return sqlite3.connect(self.settings["NAME"], isolation_level=None)
        import psycopg

        # Not by the name that the fixture looks for: this one is the test's.
        return psycopg.connect(
            host=self.settings["HOST"],
            dbname=self.settings["NAME"],
            user=self.settings["USER"],
            autocommit=True,
            application_name="greenroom-tests",
        )

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
        main: Callable[[Ask], Coroutine[Any, Any, Any]],
        placement: str = "loop",
        **more: Any,
    ) -> Any:
        """Run `main(ask)` on a loop; ``await ask(view)`` is one request, in its own task."""
        with self.site(placement, **more) as site:
            return site.run(lambda site: main(lambda view, **extra: ask(site, view, **extra)))

    def request(self, view: View, placement: str = "loop", **more: Any) -> Any:
        """One request, on a loop of its own."""
        return self.run(lambda ask: ask(view), placement, **more)


async def ask(site: Site, view: View, *, pattern: str = "call", **extra: Any) -> Any:
    """One request. `pattern`: "plain" for a view that is a plain function."""
    name = f"{getattr(view, '__name__', 'view')}-{next(_numbers)}"
    urls_orm.views[name] = view
    try:
        answer = await site.ask(f"/{pattern}/{name}/", **extra)
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


async def turns(count: int) -> None:
    """Let the loop turn so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


class Pulse:
    """Measures the loop's longest stall, in seconds, over an ``async with`` block.

    Without the time in which the machine had no processor for its thread (where Linux tells).
    """

    longest = 0.0

    async def __aenter__(self) -> Pulse:
        self._task = asyncio.create_task(self._beat())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.sleep(0.002)
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _beat(self) -> None:
        last = self._clock()
        while True:
            await asyncio.sleep(0.001)
            now = self._clock()
            self.longest = max(self.longest, now - last)
            last = now

    @staticmethod
    def _clock() -> float:
        ready = 0
        with contextlib.suppress(OSError):
            # Nanoseconds that it ran, that it was ready to run, and how often.
            ready = int(Path("/proc/thread-self/schedstat").read_text().split()[1])
        return time.monotonic() - ready / 1e9
