"""The plots of docs/: rates and the memory of waiting, each beside its peers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import figures
from .peers import LIMIT, OURS
from .tables import COLUMNS

NAME = "benchmarks"
ALT = "Requests a second and p99 of Greenroom beside other servers; the tables below say the same"
PLOTS = ((f"{NAME}.svg", ALT),)
# Scenario, metric, and what stands above.
_PANELS = (
    ("hello-coroutine", "rate", "coroutine hello, seven middlewares: requests/s"),
    ("hello-plain", "rate", "plain hello, seven middlewares: requests/s"),
    ("hello-coroutine-third", "rate", "… with a third-party sync middleware: requests/s"),
    ("queries-1", "rate", "one ORM query: requests/s"),
    ("sleep-1s-1000", "rate", "sleep 1 s, 1,000 connections: requests/s"),
    ("sleep-1s-5000", "per_request", "sleep 1 s, 5,000 connections: KB per waiting request"),
    ("list", "rate", "a list in Django REST framework: requests/s"),
    ("mixed", "p99", "coroutine views beside slow plain ones: p99, ms"),
)
_COLORS = {OURS: "#2a7f62", LIMIT: "#d9d9d9"}
_OTHER = "#8fa3b0"


def draw(scenarios: dict[str, Any], folder: Path) -> list[Path]:
    """Write the plot of what there is, as SVG and PNG; the same figures, the same files."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = NAME
    mpl.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot

    panels = [panel for panel in _PANELS if panel[0] in scenarios]
    if not panels:
        return []
    rows = (len(panels) + 1) // 2
    figure, axes = pyplot.subplots(rows, 2, figsize=(12, 3.2 * rows), squeeze=False)
    for axis, (key, metric, title) in zip(axes.flat, panels, strict=False):
        _panel(axis, metric, title, scenarios[key])
    for axis in list(axes.flat)[len(panels) :]:
        axis.axis("off")
    figure.tight_layout()
    written = []
    for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        written.append(folder / f"{NAME}.{kind}")
        figure.savefig(written[-1], metadata=metadata, dpi=110)
    pyplot.close(figure)
    return written


def _panel(axis: Any, metric: str, title: str, record: dict[str, Any]) -> None:
    _, scale, digits = COLUMNS[metric]
    bars = []
    for row_key, row in record["rows"].items():
        found = figures.figure(row, metric)
        if found is not None:
            bars.append((row["title"], row_key.partition(":")[0], found))
    bars.reverse()
    values = [found.value / scale for *_, found in bars]
    spread = [
        [(found.value - found.low) / scale for *_, found in bars],
        [(found.high - found.value) / scale for *_, found in bars],
    ]
    colors = [_COLORS.get(peer, _OTHER) for _, peer, _ in bars]
    axis.barh([title for title, *_ in bars], values, color=colors, xerr=spread, ecolor="#404040")
    for at, value in enumerate(values):
        axis.annotate(
            f" {value:,.{digits}f}",
            (max(value, 0), at),
            va="center",
            fontsize=7,
            xytext=(6, 5),
            textcoords="offset points",
        )
    axis.set_title(title, fontsize=9, loc="left")
    axis.tick_params(labelsize=7)
    axis.margins(x=0.15)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
