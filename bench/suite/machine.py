"""What a figure was measured with, and when."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = (
    *("Django", "asgiref", "greenlet", "httptools", "uvloop", "gunicorn", "gevent", "uvicorn"),
    *("granian", "hypercorn", "daphne", "uWSGI", "django-bolt", "psycopg", "psycopg-pool"),
    *("djangorestframework", "adrf", "redis"),
)
_PROGRAMS = {
    "wrk": (["wrk", "-v"], r"wrk \S*?(\d[\d.]*)"),
    "PostgreSQL": (["psql", "--version"], r"(\d[\d.]*)"),
    "Redis": (["redis-server", "--version"], r"v=(\d[\d.]*)"),
    "nginx": (["/usr/sbin/nginx", "-v"], r"nginx/(\d[\d.]*)"),
}


def now() -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **_revision(),
        "machine": _machine(),
        "versions": _versions(),
    }


def _revision() -> dict[str, Any]:
    """`changed`: whether what is measured differs from that commit."""
    revision = _output(["git", "-C", str(ROOT), "rev-parse", "HEAD"]).strip()
    status = ["git", "-C", str(ROOT), "status", "--porcelain", "--", "src", "bench/site"]
    return {"revision": revision, "changed": bool(_output(status).strip())}


def _machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", info)
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    return {
        "cpu": model[1].strip() if model else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(int(memory[1]) / 2**20) if memory else None,
        "system": f"{platform.system()} {platform.release()}",
    }


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    for name, (command, pattern) in _PROGRAMS.items():
        if said := re.search(pattern, _output(command)):
            found[name] = said[1]
    return found


def _output(command: list[str]) -> str:
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except OSError:
        return ""
    return ran.stdout + ran.stderr
