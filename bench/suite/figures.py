"""What rounds are worth: medians, spreads, and ratios of rows that took turns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A median, with the least and the most."""

    value: float
    low: float
    high: float

    @staticmethod
    def of(values: Iterable[float]) -> Figure:
        values = list(values)
        return Figure(median(values), min(values), max(values))


def failures(row: dict[str, Any]) -> list[str]:
    """Why a row's figures don't count; empty if they do."""
    if "skipped" in row:
        return [row["skipped"]]
    found = []
    for number, each in enumerate(row["rounds"], 1):
        if "failed" in each:
            found.append(f"round {number}: {each['failed']}")
        elif errors := each.get("errors"):
            said = ", ".join(f"{count} {kind}" for kind, count in errors.items())
            found.append(f"round {number}: {said}")
    return found or ([] if row["rounds"] else ["no round"])


def is_valid(row: dict[str, Any]) -> bool:
    return not failures(row)


def figure(row: dict[str, Any], metric: str) -> Figure | None:
    """Of a metric over the rounds of a row; None where it isn't valid or has none."""
    if not is_valid(row) or any(metric not in each for each in row["rounds"]):
        return None
    return Figure.of(each[metric] for each in row["rounds"])


def ratio(ours: dict[str, Any], theirs: dict[str, Any], metric: str) -> Figure | None:
    """The ratio of the medians; its spread is that of the ratios of each round."""
    mine, other = figure(ours, metric), figure(theirs, metric)
    if mine is None or other is None:
        return None
    pairs = zip(ours["rounds"], theirs["rounds"], strict=False)
    ratios = [_over(a[metric], b[metric]) for a, b in pairs]
    return Figure(_over(mine.value, other.value), min(ratios), max(ratios))


def _over(a: float, b: float) -> float:
    return a / b if b else math.inf


@dataclass(frozen=True)
class Slope:
    """Of a count over time: millions an hour, and twice its standard error."""

    per_hour: float
    noise: float


def slope(samples: Sequence[tuple[float, float]], blocks: int = 12) -> Slope:
    """A line through the means of as many stretches of time, the first fifth left out.

    Samples that follow each other aren't independent, which means of stretches nearly are.
    `samples` are seconds and counts, of bytes mostly: then it is megabytes an hour.
    """
    end = samples[-1][0]
    begin = end / 5
    width = (end - begin) / blocks
    points = []
    for number in range(blocks):
        left = begin + number * width
        values = [value for at, value in samples if left <= at < left + width]
        if values:
            points.append((left + width / 2, fmean(values)))
    x, y = fmean(at for at, _ in points), fmean(value for _, value in points)
    square = sum((at - x) ** 2 for at, _ in points)
    rise = sum((at - x) * (value - y) for at, value in points) / square
    rest = sum((value - y - rise * (at - x)) ** 2 for at, value in points)
    error = math.sqrt(rest / max(1, len(points) - 2) / square)
    return Slope(rise * 3600 / 1e6, 2 * error * 3600 / 1e6)
