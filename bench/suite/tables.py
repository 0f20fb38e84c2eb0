"""What was measured, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from . import figures, profile
from .figures import Figure
from .peers import OURS
from .scenarios import SCENARIOS
from .targets import Target, Verdict, judge_all

# How a metric is called at the head of a column, by what it is divided, and its digits.
COLUMNS = {
    "rate": ("requests/s", 1, 0),
    "mb_per_s": ("MB/s", 1, 0),
    "p50": ("median, ms", 1, 1),
    "p99": ("p99, ms", 1, 1),
    "rss": ("MB", 1e6, 0),
    "seconds": ("seconds", 1, 2),
    "threads": ("threads", 1, 0),
    "per_request": ("KB per waiting request", 1024, 1),
    "per_client": ("KB per client", 1024, 1),
    "late_p50": ("late, ms: median", 1, 1),
    "late_p99": ("p99", 1, 1),
    "missing": ("ticks that didn't come", 1, 0),
    "others": ("the others/s", 1, 0),
    "busiest": ("the busiest, of the mean", 1, 2),
    "slope": ("MB an hour", 1, 2),
    "noise": ("twice the error", 1, 2),
    "blocks": ("thousand blocks kept an hour", 1, 1),
    "blocks_noise": ("twice the error", 1, 1),
}
# The metrics of a table, the first of which is compared.
_OF_MEASURE = {
    "rate": ("rate", "p50", "p99", "threads", "rss"),
    "beside": ("p99", "p50", "rate", "others"),
    "ticks": ("per_client", "missing", "late_p50", "late_p99", "threads", "rss"),
    "download": ("mb_per_s", "rss"),
    "upload": ("mb_per_s", "rss"),
    "start": ("rss", "seconds", "threads"),
    "balance": ("busiest", "rate"),
    "through_nginx": ("rate", "p50", "p99"),
    "hour": ("slope", "noise", "blocks", "blocks_noise", "rss"),
}

# Written by hand: what comes of looking for the reasons.
_MISSED = Path(__file__).with_name("missed.md")


def of_scenario(key: str, record: dict[str, Any]) -> Iterator[str]:
    """The lines of its section. Ratios are ours to theirs, of the medians."""
    scenario = SCENARIOS[key]
    metrics = _OF_MEASURE[scenario.measure]
    if scenario.waits:
        metrics = ("rate", "p50", "threads", "rss", "per_request")
    yield f"### {record['title']}"
    yield ""
    heads = [COLUMNS[metric][0] for metric in metrics]
    compared = len(record["rows"]) > 1
    yield _line(["server", heads[0], *(["ours to it"] if compared else []), *heads[1:]])
    yield "|---" * (len(heads) + 1 + compared) + "|"
    ours = None
    for row_key, row in record["rows"].items():
        if row_key.startswith(f"{OURS}:") and (ours is None or not figures.is_valid(ours)):
            ours = row
        # Rows with threads are named with their number.
        threads = row.get("threads")
        title = row["title"] + (f", {threads:,} thread{'s' * (threads != 1)}" if threads else "")
        if wrong := figures.failures(row):
            why = wrong[0] if "skipped" in row else f"invalid: {'; '.join(wrong)}"
            yield _line([title, _short(why), *[""] * (len(heads) - 1 + compared)])
            continue
        cells = [shown(figures.figure(row, metrics[0]), metrics[0], spread=True)]
        if compared:
            cells.append(_ratio(ours, row, metrics[0]))
        cells += [shown(figures.figure(row, metric), metric) for metric in metrics[1:]]
        yield _line([title, *cells])
    yield ""
    yield f"(`{_command(key, record)}`, {_rounds(record)}, {record['date'][:10]}.)"


def _rounds(record: dict[str, Any]) -> str:
    count = max((len(row["rounds"]) for row in record["rows"].values()), default=0)
    return f"{count} round{'s' * (count != 1)} of {record['seconds']:g} s"


def _command(key: str, record: dict[str, Any]) -> str:
    return f"bench/run.py {key}{' --quick' if record['quick'] else ''}"


def _ratio(ours: dict[str, Any] | None, row: dict[str, Any], metric: str) -> str:
    if ours is None or ours is row:
        return ""
    found = figures.ratio(ours, row, metric)
    return "" if found is None else f"{number(found.value)} × ({_spread(found)})"


def _spread(found: Figure) -> str:
    return f"{number(found.low)}-{number(found.high)}"


def shown(found: Figure | None, metric: str, spread: bool = False) -> str:
    if found is None:
        return ""
    _, scale, digits = COLUMNS[metric]

    def text(value: float) -> str:
        return f"{value / scale:,.{digits}f}"

    if not spread or text(found.low) == text(found.high):
        return text(found.value)
    return f"{text(found.value)} ({text(found.low)}-{text(found.high)})"


def number(value: float) -> str:
    """Three digits that count."""
    if value == 0:
        return "0"
    if abs(value) < 9.995:
        return f"{value:.2f}"
    return f"{value:,.1f}" if abs(value) < 99.95 else f"{value:,.0f}"


def of_targets(scenarios: dict[str, Any]) -> Iterator[str]:
    yield "| | target | measured | |"
    yield "|---|---|---|---|"
    for verdict in judge_all(scenarios):
        yield _line([verdict.target.text, _bound(verdict), _measured(verdict), _said(verdict)])


def _bound(verdict: Verdict) -> str:
    target = verdict.target
    if target.bound is None:
        return "stated"
    least = "≥" if target.at_least else "≤"
    than = ""
    if target.against is not None and not target.difference:
        than = f" {verdict.than or _title(target)}"
    return f"{least} {target.bound:g} {target.unit}{than}"


def _title(target: Target) -> str:
    """Of what it is compared with, where that wasn't measured."""
    rows = {row.key: row.title for row in SCENARIOS[target.scenario].rows}
    return rows.get(str(target.against), str(target.against))


def _measured(verdict: Verdict) -> str:
    if verdict.figure is None:
        return _short(verdict.missing)
    found = verdict.figure
    value = number(found.value)
    spread = f" ({_spread(found)})" if number(found.low) != number(found.high) else ""
    unit = verdict.target.unit
    than = ""
    if verdict.target.bound is None and verdict.than and unit == "×":
        than = f" {verdict.than}"
    return f"{value} {unit}{than}{spread}".replace(" /s", "/s")


def _said(verdict: Verdict) -> str:
    if verdict.met is None:
        return ""
    if verdict.by is None:
        return "**missed**"
    # A bound of nothing has no parts.
    by = abs(verdict.by)
    much = f"{by:.0%}" if verdict.target.bound else f"{number(by)} {verdict.target.unit}"
    if verdict.met:
        return "met" if by == 0 else f"met by {much}"
    return f"**missed** by {much}"


def machines(scenarios: dict[str, Any]) -> Iterator[str]:
    """Each kind of machine and set of versions that something was measured with."""
    seen: dict[str, list[str]] = {}
    for key, record in scenarios.items():
        seen.setdefault(_environment(record), []).append(key)
    for text, keys in seen.items():
        whose = "" if len(seen) == 1 else f" ({', '.join(keys)})"
        yield f"{text}{whose}"
        yield ""


def _environment(record: dict[str, Any]) -> str:
    machine = record["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, "
        f"{machine['system']}. {versions}."
    )


def revisions(scenarios: Mapping[str, Any]) -> str:
    found: dict[str, None] = {}
    for record in scenarios.values():
        mark = " with changes" if record["changed"] else ""
        found[f"`{record['revision'][:10]}`{mark}"] = None
    return ", ".join(found)


_HEAD = """\
# Benchmarks

One worker process of each server on one core; wrk, the database and all else on the other. `make bench`
measures all of this again in some hours, `make bench-quick` some of it in a few minutes, and
`bench/run.py --list` says what there is. The figures below are made from
`bench/results/published.json` by `bench/report.py`, with every round in it.

- **Servers take turns**, round by round, in both directions (A B C, C B A): compare the figures of one table, by
  their ratios, not those of two. A figure is the median of the rounds, with the least and the most. A ratio is of the
  medians, with the least and the most of the rounds' own ratios.
- **Each server is at its best.** Those with threads are tried with 1, 8, 64, 256 and 1,000 before, and
  measured with what was fastest. gevent runs the plain form of each view, since coroutines fail there, and is counted
  among those that run the coroutine. Django's connections are kept, under ASGI in psycopg's pool.
- **The limit** is Django's own handler, called again and again in one process with the plain view: no server, no client.
- **All do the same**: the same views, middlewares and settings; nothing is cached, and nothing here knows of the
  benchmark. Each server's answer is looked at before it is measured. A figure with one answer that isn't 2xx, or one
  error of a socket, doesn't count, and is shown as invalid.
- django-bolt stands here for reference: its views are of its own kind.
- A request that waits a second is lost when wrk's time is over: of 1,000/s, 967 can be counted in 30 s.
"""  # noqa: E501


_PROFILED = """\
### Profiles

The processor's time of one request, by whose code runs, as py-spy sees the worker under the load of the scenario.
What a function in C takes counts for who called it. These are samples of who has the GIL, rough where threads
change all the time, as in plain hello; and what the kernel takes is as its ticks fall: of granian's, none was seen.
"""  # noqa: E501


def document(
    scenarios: dict[str, Any],
    plots: Iterable[tuple[str, str]] = (),
    profiles: Mapping[str, profile.Record] = MappingProxyType({}),
) -> str:
    """The page docs/benchmarks.md."""
    lines = [_HEAD]
    if any(record["quick"] for record in scenarios.values()):
        lines += [
            "**Some of these are from a quick run: few rounds of seconds, threads not swept.**",
            "",
        ]
    lines += ["## Targets", ""]
    lines += of_targets(scenarios)
    lines += ["", _MISSED.read_text()]
    if profiles:
        lines += [_PROFILED, *profile.table(profiles.values()), ""]
        lines += [f"(`bench/profiles.py`, Greenroom at {revisions(profiles)}.)", ""]
    lines += ["## Measured with", ""]
    lines += machines(scenarios)
    lines += [f"Greenroom at {revisions(scenarios)}.", ""]
    for name, text in plots:
        lines += [f"![{text}]({name})", ""]
    lines += ["## All figures", ""]
    for key in SCENARIOS:
        if key in scenarios:
            lines += of_scenario(key, scenarios[key])
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _short(text: str, size: int = 200) -> str:
    text = " ".join(text.split())
    return text if len(text) <= size else text[: size - 1] + "…"
