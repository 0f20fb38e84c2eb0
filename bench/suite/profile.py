"""Where the processor's time of a request goes, by whose code runs.

py-spy looks at the stack of the worker's thread that has the GIL while a scenario's load runs;
what a C function takes counts for the Python function that called it. The time itself, and
the kernel's part of it, come from the kernel's accounts, in the same load without py-spy, which
slows what it looks at.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from . import machine
from .measures import TRANSFERS, Metrics, Run, client
from .peers import program
from .scenarios import SCENARIOS
from .servers import Invalid, Server
from .services import Services

Record = dict[str, Any]

# Samples a second.
RATE = 400
_TICKS = os.sysconf("SC_CLK_TCK")

# By the first that matches the file of the function that runs.
PARTS = (
    ("uvloop, gunicorn, granian", r"/greenroom/worker\.py$|^<|/gunicorn/|/granian/"),
    ("Greenroom: HTTP", r"/greenroom/server/"),
    ("Greenroom: database", r"/greenroom/db/"),
    ("Greenroom: waiting, threads", r"/greenroom/(bridge|crossing|threads|turns|loops)\.py$"),
    ("Greenroom: Django's request cycle", r"/greenroom/"),
    ("Django", r"/django/"),
    ("Django REST framework", r"/rest_framework/"),
    ("psycopg", r"/psycopg[^/]*/"),
    ("other packages", r"/site-packages/"),
    ("the view", r"/bench/site/"),
    ("Python's library", r""),
)


def shares(stacks: Iterable[str]) -> dict[str, float]:
    """The parts of the time, from 0 to 1 each.

    Of py-spy's lines: `outer (file:1);inner (file:2) 7`, with the number of samples.
    """
    found: Counter[str] = Counter()
    for line in stacks:
        stack, _, count = line.rpartition(" ")
        # What runs: a frame's text may hold spaces and parentheses, of lambdas and comprehensions.
        said = re.search(r"\(([^()]*?)(?::\d+)?\)$", stack)
        file = said[1] if said else ""
        found[next(name for name, pattern in PARTS if re.search(pattern, file))] += int(count)
    samples = found.total()
    if not samples:
        raise Invalid("py-spy has seen nothing that runs")
    return {name: count / samples for name, count in found.most_common()}


def profile(services: Services, key: str, row_key: str, threads: int, seconds: float) -> Record:
    """`user` and `system` are µs a request; `parts` the shares of `user`. Raises `Invalid`."""
    scenario = SCENARIOS[key]
    (row,) = [each for each in scenario.rows if each.key == row_key]
    run = Run(services, scenario, row, threads, seconds)
    with tempfile.TemporaryDirectory() as folder, _loaded(run) as (server, load):
        load(2)
        worker = server.worker()
        before = _spent(worker)
        requests = load(seconds)
        user, system = (
            (now - then) / requests for now, then in zip(_spent(worker), before, strict=True)
        )
        file = Path(folder) / "stacks"
        command = [program("py-spy") or "py-spy", "record", "--pid", str(worker)]
        command += ["--duration", str(round(seconds)), "--rate", str(RATE), "--gil"]
        command += ["--full-filenames", "--format", "raw", "--output", str(file)]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as spy:
            load(seconds + 1)
            _, said = spy.communicate(timeout=60)
        if spy.returncode != 0 or not file.exists():
            raise Invalid(f"py-spy failed: {said.strip()[-300:]}")
        parts = shares(file.read_text().splitlines())
    return {
        "scenario": key,
        "row": row_key,
        "title": f"{scenario.title}: {row.title}",
        "threads": threads,
        "user": user * 1e6,
        "system": system * 1e6,
        "parts": parts,
        "seconds": seconds,
        **machine.now(),
    }


@contextlib.contextmanager
def _loaded(run: Run) -> Iterator[tuple[Server, Callable[[float], int]]]:
    """The server, and what loads it for some seconds and returns the number of requests."""
    scenario = run.scenario
    if scenario.measure == "rate":
        with run.serving() as server:

            def load(seconds: float) -> int:
                url = server.url(run.path)
                output = run.load(url, scenario.connections, seconds, scenario.script)
                return _right(output.as_json(), output.requests)

            yield server, load
    elif scenario.measure in ("upload", "download"):
        size = scenario.size
        with run.services.file(size) as file, run.serving(BENCH_FILE=file) as server:

            def load(seconds: float) -> int:
                ends, count = time.monotonic() + seconds, 0
                while time.monotonic() < ends:
                    said = client(scenario.measure, server.port, run.path, size, TRANSFERS)
                    count += _right(said, TRANSFERS)
                return count

            yield server, load
    else:
        raise Invalid(f"{scenario.title} is measured in a way that has no profile")


def _right(said: Metrics, requests: int) -> int:
    if said["errors"]:
        raise Invalid(f"errors: {said['errors']}")
    return requests


def _spent(pid: int) -> tuple[float, float]:
    """Seconds of a process, in its own code and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / _TICKS, int(fields[12]) / _TICKS


def table(records: Iterable[Record]) -> Iterator[str]:
    """Microseconds a request, a column for each profile."""
    records = list(records)
    yield "| µs a request | " + " | ".join(each["title"] for each in records) + " |"
    yield "|---" * (len(records) + 1) + "|"
    for name, _ in PARTS:
        yield from _line(name, [each["user"] * each["parts"].get(name, 0) for each in records])
    yield from _line("the kernel", [each["system"] for each in records])
    yield from _line("**in all**", [each["user"] + each["system"] for each in records])


def _line(name: str, times: list[float]) -> Iterator[str]:
    cells = [f"{each:,.0f}" if each >= 0.5 else "" for each in times]
    if any(cells):
        yield f"| {name} | " + " | ".join(cells) + " |"
