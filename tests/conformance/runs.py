"""The runs that a module of tests compares, each on databases of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest

T = TypeVar("T")


class Runs(Generic[T]):
    """The runs by database and name, each begun once, by `start`; two at a time.

    `start(name, databases, folder)` has settings for each of `aliases`, and a folder.
    """

    def __init__(
        self,
        request: pytest.FixtureRequest,
        start: Callable[[str, dict[str, Any], Path], T],
        what: str,
        aliases: Sequence[str],
    ) -> None:
        self._request = request
        self._factory: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
        self._start = start
        self._what = what
        self._aliases = aliases
        self._pool = ThreadPoolExecutor(2)
        self._begun: dict[tuple[str, str], Future[T]] = {}

    def begin(self, database: str, name: str) -> Future[T]:
        key = (database, name)
        if key not in self._begun:
            folder = self._factory.mktemp(f"{self._what}-{database}-{name}")
            databases = getattr(self, f"_{database}")(name, folder)
            self._begun[key] = self._pool.submit(self._start, name, databases, folder)
        return self._begun[key]

    def close(self) -> None:
        self._pool.shutdown()

    def _sqlite(self, name: str, folder: Path) -> dict[str, Any]:
        # In files: a database in memory belongs to one connection.
        return {
            alias: {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": str(folder / f"{alias}.sqlite3"),
                "TEST": {"NAME": str(folder / f"test_{alias}.sqlite3")},
            }
            for alias in self._aliases
        }

    def _postgresql(self, name: str, folder: Path) -> dict[str, Any]:
        pg = self._request.getfixturevalue("pg")
        keys = ("ENGINE", "NAME", "USER", "HOST")
        entries = {alias: pg.create(f"{self._what}_{name}_{alias}") for alias in self._aliases}
        return {alias: {key: entry[key] for key in keys} for alias, entry in entries.items()}
