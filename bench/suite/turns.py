"""A scenario, run: its sweeps, then rounds in which the rows take turns.

A B C, C B A, A B C, …: what else the machine does falls on all alike, and neighbours are
measured close to each other.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from . import machine, results
from .measures import Run
from .peers import OURS, PEERS, SWEPT
from .scenarios import SCENARIOS, Row, Scenario
from .servers import Invalid, idle
from .services import Services

# Of the metrics, those that are better when they are more.
MORE_IS_BETTER = {"rate", "mb_per_s"}
# Around the time that is measured: the start, the check, and the end; with what warms.
AROUND = 4.0
_QUICK_PEERS = {OURS, "gthread", "gevent", "uvicorn", "granian-wsgi", "limit"}


@dataclass(frozen=True)
class Options:
    rounds: int = 5
    # None: what each scenario says.
    seconds: float | None = None
    quick: bool = False
    peers: frozenset[str] | None = None

    def seconds_of(self, scenario: Scenario) -> float:
        if self.seconds is not None:
            return self.seconds
        if self.quick:
            # Where requests wait a second, the last of which is lost, that must not be all.
            return min(scenario.seconds, 6 if scenario.seconds >= 30 else 2)
        return scenario.seconds

    def rounds_of(self, scenario: Scenario) -> int:
        return 1 if scenario.measure == "hour" else self.rounds

    def rows_of(self, scenario: Scenario) -> tuple[Row, ...]:
        """Those asked for, by peer or by the key of a row."""
        wanted = self.peers
        if wanted is None and self.quick:
            wanted = frozenset(_QUICK_PEERS)
        if wanted is None:
            return scenario.rows
        return tuple(row for row in scenario.rows if row.peer in wanted or row.key in wanted)

    def sweep_of(self, scenario: Scenario, row: Row) -> tuple[int, ...]:
        """The numbers of threads to try."""
        if not PEERS[row.peer].swept:
            return (0,)
        if row.threads is not None:
            return (row.threads,)
        if self.quick:
            return (256,) if scenario.waits else (8,)
        return SWEPT


def sweep_seconds(scenario: Scenario, seconds: float) -> float:
    """Enough to tell the numbers of threads apart. What waits a second is answered in bursts."""
    return min(seconds, 5 if scenario.waits else 2)


def estimate(scenario: Scenario, options: Options) -> float:
    """Seconds, about."""
    rows, seconds = options.rows_of(scenario), options.seconds_of(scenario)
    if scenario.measure == "beside":
        seconds += 3
    sweeps = sum(len(found) for row in rows if len(found := options.sweep_of(scenario, row)) > 1)
    each = AROUND + {"ticks": 25, "start": 1, "balance": 4}.get(scenario.measure, 0)
    return options.rounds_of(scenario) * len(rows) * (each + seconds) + sweeps * (
        each + sweep_seconds(scenario, seconds)
    )


def run(key: str, options: Options, services: Services) -> dict[str, Any]:
    """Measure a scenario; what came out, as JSON."""
    scenario = SCENARIOS[key]
    began = time.monotonic()
    record = {
        "title": scenario.title,
        "metric": scenario.metric,
        "quick": options.quick,
        "seconds": options.seconds_of(scenario),
        "connections": scenario.connections,
        "idle": round(idle(), 2),
        **machine.now(),
        "rows": {},
    }
    if record["idle"] < 0.9:
        _say(f"{key}: the machine isn't quiet: {1 - record['idle']:.0%} of it is in use")
    rows: dict[str, Any] = record["rows"]
    turns = []
    for row in options.rows_of(scenario):
        kept: dict[str, Any] = {"title": row.title, "rounds": []}
        rows[row.key] = kept
        missing = Services.missing(scenario.needs) or PEERS[row.peer].missing()
        if missing is not None:
            kept["skipped"] = missing if " " in missing else f"{missing} is not installed"
            _say(f"{key}: {row.title} is left out: {kept['skipped']}")
            continue
        threads = _threads(key, scenario, row, options, services, kept)
        if threads is not None:
            turns.append((row, threads, kept))
    for number in range(options.rounds_of(scenario)):
        for row, threads, kept in turns if number % 2 == 0 else reversed(turns):
            attempt = Run(services, scenario, row, threads, options.seconds_of(scenario))
            metrics = _measured(attempt)
            kept["rounds"].append(metrics)
            _say(f"{key}: round {number + 1}: {row.title}: {_brief(metrics, scenario.metric)}")
    record["took"] = round(time.monotonic() - began)
    return record


def _threads(
    key: str,
    scenario: Scenario,
    row: Row,
    options: Options,
    services: Services,
    kept: dict[str, Any],
) -> int | None:
    """The number of threads that was best; None if none was right."""
    swept = options.sweep_of(scenario, row)
    if len(swept) == 1:
        if swept[0]:
            kept["threads"] = swept[0]
        return swept[0]
    seconds = sweep_seconds(scenario, options.seconds_of(scenario))
    found: dict[int, float] = {}
    kept["sweep"] = {}
    for threads in swept:
        metrics = _measured(Run(services, scenario, row, threads, seconds))
        said = _brief(metrics, scenario.metric)
        _say(f"{key}: {row.title}, {threads} threads: {said}")
        if _is_right(metrics, scenario.metric):
            found[threads] = kept["sweep"][str(threads)] = metrics[scenario.metric]
        else:
            kept["sweep"][str(threads)] = said
    if not found:
        kept["skipped"] = f"wrong with any number of threads: {said}"
        return None
    chosen = kept["threads"] = best_of(found, scenario.metric)
    return chosen


def best_of(found: dict[int, float], metric: str) -> int:
    """The fewest threads that are as good as any, but for what one short run can't tell."""
    if metric in MORE_IS_BETTER:
        least = 0.97 * max(found.values())
        return min(threads for threads, value in found.items() if value >= least)
    most = 1.03 * min(found.values())
    return min(threads for threads, value in found.items() if value <= most)


def _measured(run: Run) -> dict[str, Any]:
    try:
        return run.measure()
    except Invalid as exc:
        return {"failed": str(exc)}
    except Exception as exc:
        # Whatever it was, hours of others are not to be lost.
        traceback.print_exc()
        return {"failed": repr(exc)}


def _is_right(metrics: dict[str, Any], metric: str) -> bool:
    return metric in metrics and not metrics.get("errors")


def _brief(metrics: dict[str, Any], metric: str) -> str:
    if "failed" in metrics:
        return f"failed: {metrics['failed']}"
    errors = metrics.get("errors")
    return f"{metric} {metrics[metric]:.4g}{f', errors: {errors}' if errors else ''}"


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def run_all(
    keys: Iterable[str], options: Options, save: Callable[[str, dict[str, Any]], None]
) -> int:
    """Run scenarios, one after the other; `save` is called after each. How many failed."""
    failed = 0
    with Services() as services:
        for key in keys:
            record = run(key, options, services)
            save(key, record)
            failed += not any(results.has_figures(row) for row in record["rows"].values())
    return failed
