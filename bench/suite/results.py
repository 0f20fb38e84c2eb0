"""What was measured, in a file: JSON, with a record for each scenario.

A run adds its scenarios to those that are there, and takes the place of older ones of the same
name, so that a whole can be measured in parts. A record says when, at which revision and
with what it was measured; `rows` has what each round said.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from . import figures

FORMAT = 1
FOLDER = Path(__file__).resolve().parents[1] / "results"
# What docs/benchmarks.md is made from.
PUBLISHED = FOLDER / "published.json"
# Where the time goes, by profile.
PROFILES = FOLDER / "profiles.json"
# What was measured last.
LATEST = FOLDER / "latest.json"


def load(path: Path) -> dict[str, Any]:
    """The records by scenario; none where there is no file. Raises `ValueError`."""
    if not path.exists():
        return {}
    data = json.loads(path.read_text())
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError(f"{path} is no file of results of format {FORMAT}: remove it.")
    scenarios: dict[str, Any] = data["scenarios"]
    return scenarios


def save(path: Path, scenarios: dict[str, Any]) -> None:
    """Whole or not at all: a run may be ended at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    data = {"format": FORMAT, "scenarios": scenarios}
    beside.write_text(json.dumps(data, indent=1) + "\n")
    os.replace(beside, path)


def add(path: Path, key: str, record: dict[str, Any]) -> None:
    save(path, load(path) | {key: record})


def has_figures(row: dict[str, Any]) -> bool:
    return figures.is_valid(row)


def is_done(record: dict[str, Any] | None, rounds: int, revision: str, quick: bool) -> bool:
    """Whether a scenario needs no other run: it has the rounds, of this revision."""
    return (
        record is not None
        and record["revision"] == revision
        and not record["changed"]
        and record["quick"] == quick
        and all("skipped" in row or len(row["rounds"]) >= rounds for row in record["rows"].values())
    )
