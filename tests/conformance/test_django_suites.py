"""Django's own tests, in a bridge on the event loop, come out as they do without.

GREENROOM_CONFORMANCE_SUITES names others than those of `suites.SUITES`, or says "all".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from conformance import suites

LABELS = os.environ.get("GREENROOM_CONFORMANCE_SUITES", "").split() or suites.SUITES
if LABELS == ["all"]:
    LABELS = suites.SUITES + suites.MORE
ALIASES = ("default", "other")

pytestmark = pytest.mark.timeout(2 * suites.TIMEOUT + 120)


class Runs:
    """The runs by database and loop, each begun once; two at a time."""

    def __init__(self, request: pytest.FixtureRequest, factory: pytest.TempPathFactory) -> None:
        self._request = request
        self._factory = factory
        self._pool = ThreadPoolExecutor(2)
        self._begun: dict[tuple[str, str], Future[suites.Run]] = {}

    def begin(self, database: str, loop: str) -> Future[suites.Run]:
        key = (database, loop)
        if key not in self._begun:
            folder = self._factory.mktemp(f"{database}-{loop}")
            databases = getattr(self, f"_{database}")(loop, folder)
            self._begun[key] = self._pool.submit(suites.run, LABELS, loop, databases, folder)
        return self._begun[key]

    def close(self) -> None:
        self._pool.shutdown()

    def _sqlite(self, loop: str, folder: Path) -> dict[str, Any]:
        # In files: a database in memory belongs to one connection.
        return {
            alias: {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": str(folder / f"{alias}.sqlite3"),
                "TEST": {"NAME": str(folder / f"test_{alias}.sqlite3")},
            }
            for alias in ALIASES
        }

    def _postgresql(self, loop: str, folder: Path) -> dict[str, Any]:
        pg = self._request.getfixturevalue("pg")
        keys = ("ENGINE", "NAME", "USER", "HOST")
        entries = {alias: pg.create(f"conformance_{loop}_{alias}") for alias in ALIASES}
        return {alias: {key: entry[key] for key in keys} for alias, entry in entries.items()}


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runs]:
    suites.sources()
    runs = Runs(request, tmp_path_factory)
    yield runs
    runs.close()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_as_without_a_loop(runs: Runs, database: str, loop: str) -> None:
    stock, ours = (each.result() for each in [runs.begin(database, n) for n in ("stock", loop)])
    for name, run in (("stock", stock), (loop, ours)):
        print(
            f"\n{database}, {name}: {run.counts()}; {run.queries} queries, "
            f"{run.queries_in_bridge} in the bridge, {run.suspensions} suspensions; "
            f"{run.seconds:.0f} s"
        )
    found = suites.differences(stock, ours, database)
    assert not found, f"{len(found)} differences:\n\n" + "\n\n".join(found)
    assert (stock.status, ours.status) == (0, 0), ours.output[-5000:]
    # That all of this was really done by the stock code and ours, and on the loop.
    assert "success" in stock.outcomes.values()
    assert stock.queries_in_bridge == stock.suspensions == 0
    assert ours.queries == pytest.approx(stock.queries, rel=0.02)
    assert ours.queries_in_bridge > 0.9 * ours.queries
    assert ours.suspensions > 0.5 * ours.queries_in_bridge
