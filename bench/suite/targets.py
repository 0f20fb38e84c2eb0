"""What we want to reach, and whether we do.

A target compares a row of ours with a bound: with that many times another row's figure, or the
best peer's, or with a number. `Verdict` says by how much it was met or missed; a target that
only states has no bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import figures
from .figures import Figure
from .peers import OURS, PEERS
from .scenarios import SCENARIOS, Row

BEST = "the best peer"
_COROUTINE = f"{OURS}:coroutine"
_PLAIN = f"{OURS}:plain"


@dataclass(frozen=True)
class Target:
    """`against`: the key of a row, `BEST`, or None for a number as it is.

    `bound` is the least where `at_least`, else the most; None: stated, not judged. With
    `difference` the other's figure is subtracted, not divided by. `scale` is what the result is
    divided by, for people, and `unit` its name then.
    """

    scenario: str
    text: str
    ours: str = _COROUTINE
    against: str | None = None
    metric: str = ""
    bound: float | None = None
    at_least: bool = True
    difference: bool = False
    scale: float = 1
    unit: str = "×"
    # Which peers BEST is chosen from: those with rows of this form; empty: all. gevent's plain
    # view stands for either form, unless only what runs the same view is to count.
    form: str = ""
    same_view: bool = False
    wsgi_only: bool = False

    @property
    def the_metric(self) -> str:
        return self.metric or SCENARIOS[self.scenario].metric


@dataclass(frozen=True)
class Verdict:
    """`figure` in the target's unit, or why there is none; `met` is None where nothing is judged.

    `by` is how far the figure is on the right side of the bound (or, below 0, on the wrong one),
    as a part of it; where the bound is 0, in the unit.
    """

    target: Target
    figure: Figure | None = None
    missing: str = ""
    than: str = ""
    met: bool | None = None
    by: float | None = None


def _ratio(scenario: str, text: str, against: str, bound: float, **more: Any) -> Target:
    return Target(scenario, text, against=against, bound=bound, **more)


def _same_view(scenario: str, text: str, bound: float) -> Target:
    return _ratio(scenario, text, BEST, bound, form="coroutine", same_view=True)


_MB, _KB = 1e6, 1024

TARGETS: tuple[Target, ...] = (
    _ratio("hello-coroutine", "coroutine hello, beside uvicorn", "uvicorn:coroutine", 12),
    _ratio("hello-coroutine", "coroutine hello", BEST, 3),
    _same_view("hello-coroutine", "coroutine hello, beside those that run the coroutine", 3),
    _ratio("hello-coroutine", "coroutine hello, beside the limit", "limit:plain", 0.8),
    _ratio("hello-plain", "plain hello", BEST, 1.1, ours=_PLAIN),
    _ratio(
        "hello-coroutine-third",
        "coroutine hello beneath a third-party sync middleware, beside uvicorn",
        "uvicorn:coroutine",
        3,
    ),
    _ratio(
        "hello-coroutine-third",
        "coroutine hello beneath a third-party sync middleware",
        BEST,
        1.5,
    ),
    _same_view("hello-coroutine-third", "the same, beside those that run the coroutine", 1.5),
    _ratio(
        "queries-1",
        "coroutine view, one `aget()`, beside uvicorn with a pool",
        "uvicorn:coroutine:pool",
        4,
    ),
    _ratio("queries-1", "coroutine view, one `aget()`", BEST, 1.4, form="coroutine"),
    _same_view("queries-1", "the same, beside those that run the coroutine", 1.4),
    _ratio("queries-1", "coroutine view, one `aget()`, beside the limit", "limit:plain", 0.8),
    _ratio("queries-20", "coroutine view, twenty queries", BEST, 1.2, form="coroutine"),
    _same_view("queries-20", "the same, beside those that run the coroutine", 1.2),
    _ratio(
        "queries-20",
        "plain view, twenty queries, beside gthread",
        "gthread:plain",
        1.0,
        ours=_PLAIN,
    ),
    Target(
        "sleep-1s-1000",
        "sleep 1 s, 1,000 connections: of 1,000/s",
        bound=0.9,
        scale=1000,
        unit="of 1,000/s",
    ),
    _ratio("sleep-1s-1000", "sleep 1 s, beside gevent's plain view", "gevent:plain", 1.1),
    Target(
        "sleep-1s-5000",
        "5,000 connections: memory per waiting request",
        metric="per_request",
        bound=40,
        at_least=False,
        scale=_KB,
        unit="KB",
    ),
    Target(
        "sleep-1s-5000",
        "5,000 connections: threads more than at rest",
        metric="threads_more",
        bound=0,
        at_least=False,
        unit="threads",
    ),
    Target(
        "sleep-1s-1000-third",
        "sleep 1 s beneath a third-party sync middleware, `MAX_PARKED` 40",
        ours=f"{_COROUTINE}:MAX_PARKED 40",
        unit="/s",
    ),
    Target(
        "sleep-1s-1000-third",
        "sleep 1 s beneath a third-party sync middleware, `MAX_PARKED` 1,000",
        ours=f"{_COROUTINE}:MAX_PARKED 1,000",
        unit="/s",
    ),
    _ratio("list", "async DRF list, beside adrf under uvicorn", "uvicorn:adrf:pool", 5),
    _ratio(
        "list",
        "async DRF list, beside plain DRF on the best WSGI peer",
        BEST,
        1.2,
        form="plain",
        wsgi_only=True,
    ),
    Target(
        "events",
        "server-sent events, 5,000 clients: ticks that didn't come",
        metric="missing",
        bound=0,
        at_least=False,
        unit="ticks",
    ),
    Target(
        "events",
        "server-sent events, 5,000 clients: memory per client",
        metric="per_client",
        bound=50,
        at_least=False,
        scale=_KB,
        unit="KB",
    ),
    _ratio("download-file", "100 MB down, a file", BEST, 1.0),
    _ratio("download-stream", "100 MB down, a stream", BEST, 1.0),
    _ratio("upload", "100 MB up", BEST, 1.0),
    _ratio(
        "mixed",
        "mixed load: p99 of coroutine views, beside gthread's",
        "gthread:coroutine",
        0.5,
        at_least=False,
    ),
    _ratio(
        "mixed",
        "mixed load: p99 of coroutine views, beside uvicorn's",
        "uvicorn:coroutine",
        1.0,
        at_least=False,
    ),
    _ratio("redis", "session and throttle in Redis, beside gthread", "gthread:plain", 1.0),
    Target("beside-rendering", "light views beside one that renders for 100 ms: p99", unit="ms"),
    Target(
        "beside-rendering",
        "the same, beside gthread's",
        against="gthread:coroutine",
        at_least=False,
    ),
    Target(
        "beside-rendering",
        "the same, beside uvicorn's",
        against="uvicorn:coroutine",
        at_least=False,
    ),
    Target(
        "workers",
        "four workers, 256 connections: the busiest, of the mean",
        bound=1.5,
        at_least=False,
        unit="× the mean",
    ),
    Target("tls", "coroutine hello through nginx with TLS", unit="/s"),
    Target(
        "tls",
        "coroutine hello through nginx with TLS, beside uvicorn",
        against="uvicorn:coroutine",
    ),
    Target(
        "start",
        "memory after the start: more than gthread's",
        against="gthread:coroutine",
        bound=12,
        at_least=False,
        difference=True,
        scale=_MB,
        unit="MB",
    ),
    Target(
        "hour",
        "one hour of mixed load: growth of memory beyond the noise",
        metric="slope",
        bound=0,
        at_least=False,
        unit="MB an hour",
    ),
)


def judge(target: Target, scenarios: dict[str, Any]) -> Verdict:
    record = scenarios.get(target.scenario)
    if record is None:
        return Verdict(target, missing="not measured")
    rows = record["rows"]
    ours = rows.get(target.ours)
    if ours is None:
        return Verdict(target, missing="not measured")
    if wrong := figures.failures(ours):
        # Also what has to have no error is judged so.
        return Verdict(target, missing=f"invalid: {wrong[0]}", met=False)
    metric, than = target.the_metric, ""
    if target.against is None:
        found = figures.figure(ours, metric)
        if target.scenario == "hour" and found is not None:
            # Growth within the noise is none.
            noise = ours["rounds"][0]["noise"]
            beyond = max(0.0, found.value - noise)
            found = Figure(beyond, beyond, beyond)
    else:
        key = target.against if target.against != BEST else best(target, rows)
        theirs = rows.get(key)
        if key is None or theirs is None:
            return Verdict(target, missing="the peer was not measured")
        than = theirs["title"]
        if wrong := figures.failures(theirs):
            return Verdict(target, missing=f"the peer's is invalid: {wrong[0]}", than=than)
        found = (
            _difference(ours, theirs, metric)
            if target.difference
            else figures.ratio(ours, theirs, metric)
        )
    if found is None:
        return Verdict(target, missing="not measured", than=than)
    scale = target.scale
    found = Figure(found.value / scale, found.low / scale, found.high / scale)
    if target.bound is None:
        return Verdict(target, found, than=than)
    right = found.value - target.bound if target.at_least else target.bound - found.value
    by = right / target.bound if target.bound else right
    return Verdict(target, found, than=than, met=right >= 0, by=by)


def best(target: Target, rows: dict[str, Any]) -> str | None:
    """The key of the peer's row that is best, of those that count and are valid."""
    scenario = SCENARIOS[target.scenario]
    counted: dict[str, float] = {}
    for row in scenario.rows:
        if row.peer == OURS or row.reference or row.key not in rows:
            continue
        if not _is_candidate(target, row):
            continue
        found = figures.figure(rows[row.key], target.the_metric)
        if found is not None:
            counted[row.key] = found.value
    if not counted:
        return None
    # (Where less is better nobody is asked for the best.)
    return max(counted, key=counted.__getitem__)


def _is_candidate(target: Target, row: Row) -> bool:
    if target.wsgi_only and PEERS[row.peer].asgi:
        return False
    if target.same_view:
        return row.form == target.form
    return target.form in ("", row.form) or row.peer == "gevent"


def _difference(ours: dict[str, Any], theirs: dict[str, Any], metric: str) -> Figure | None:
    mine, other = figures.figure(ours, metric), figures.figure(theirs, metric)
    if mine is None or other is None:
        return None
    pairs = zip(ours["rounds"], theirs["rounds"], strict=False)
    each = [a[metric] - b[metric] for a, b in pairs]
    return Figure(mine.value - other.value, min(each), max(each))


def judge_all(scenarios: dict[str, Any]) -> list[Verdict]:
    return [judge(target, scenarios) for target in TARGETS]
