"""wrk: how it is called, and what it prints."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3, "h": 3600e3}


@dataclass(frozen=True)
class Output:
    """`percentiles`: of the latencies, in milliseconds. `errors`: each kind that occurred."""

    rate: float
    requests: int
    percentiles: dict[int, float]
    errors: dict[str, int]

    def as_json(self) -> dict[str, Any]:
        return {
            "rate": self.rate,
            "requests": self.requests,
            **{f"p{percent}": value for percent, value in self.percentiles.items()},
            "errors": self.errors,
        }


def is_missing() -> bool:
    return shutil.which("wrk") is None


def command(
    url: str,
    connections: int,
    seconds: float,
    headers: tuple[str, ...] = (),
    script: str | None = None,
) -> list[str]:
    """A minute's time limit: what waits for its turn is slow, not wrong."""
    options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
    options += ["--timeout", "60s", "--latency"]
    for header in headers:
        options += ["-H", header]
    if script is not None:
        options += ["-s", str(SCRIPTS / script)]
    return ["wrk", *options, url]


def run(
    url: str,
    connections: int,
    seconds: float,
    headers: tuple[str, ...] = (),
    script: str | None = None,
) -> Output:
    ran = subprocess.run(
        command(url, connections, seconds, headers, script),
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds + 120,
    )
    if ran.returncode != 0:
        raise RuntimeError(f"wrk failed: {ran.stdout}{ran.stderr}")
    return parse(ran.stdout)


def parse(text: str) -> Output:
    """What `wrk --latency` printed. Raises `ValueError` where it is something else."""
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", text, re.MULTILINE)
    requests = re.search(r"^\s+(\d+) requests in ", text, re.MULTILINE)
    if rate is None or requests is None:
        raise ValueError(f"wrk printed something else: {text!r}")
    found = re.findall(r"^\s+(50|75|90|99)%\s+([\d.]+)(us|ms|s|m|h)\s*$", text, re.MULTILINE)
    percentiles = {int(percent): float(value) * _UNITS[unit] for percent, value, unit in found}
    errors: dict[str, int] = {}
    for kind, count in re.findall(r"\b(connect|read|write|timeout) (\d+)", text):
        errors[kind] = int(count)
    if other := re.search(r"Non-2xx or 3xx responses: (\d+)", text):
        errors["not 2xx"] = int(other[1])
    errors = {kind: count for kind, count in errors.items() if count}
    if int(requests[1]) == 0:
        errors["no answer"] = 1
    return Output(float(rate[1]), int(requests[1]), percentiles, errors)
