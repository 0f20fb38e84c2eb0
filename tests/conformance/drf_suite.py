"""Django REST framework's own tests: where they come from, one run of them, what may differ."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from conformance import suites
from conformance.suites import HERE, ROOT

# What its tests import, beside what ours do. They are put into a folder of their own, since
# pytest-django would change our tests.
PACKAGES = [
    "charset-normalizer",
    "dj-database-url",
    "django-guardian>=2.4,<3.6",
    "legacy-cgi; python_version >= '3.13'",
    "markdown>=3.3.7",
    "pytest-django>=4.5.2,<5",
    "requests",
    "urllib3",
]

# The most seconds of one run.
TIMEOUT = 600


@dataclass(frozen=True)
class Run(suites.Run):
    """What came out of one run; see `drf_runner`."""

    handlers_awaited: int
    others_awaited: int


def sources() -> Path:
    """The source distribution of the installed DRF without the package, kept in .venvs."""
    installed = version("djangorestframework")
    return suites.unpacked("djangorestframework", installed, without="rest_framework")


def packages() -> Path:
    """A folder with `PACKAGES`, kept in .venvs."""
    folder = sources().parent / f"packages-{sysconfig.get_python_version()}"
    stamp = folder / ".installed"
    if not stamp.exists() or stamp.read_text() != str(PACKAGES):
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--no-deps"]
        command = [*pip, "--target", str(folder), *PACKAGES]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        stamp.write_text(str(PACKAGES))
    return folder


def run(name: str, databases: dict[str, Any], folder: Path) -> Run:
    """Run DRF's tests on `databases`, with `folder` for what they write.

    `name`: one of `drf_runner.RUNS`.
    """
    command = [str(HERE / "drf_runner.py"), "--tests", str(sources()), "--run", name]
    path = f"{ROOT / 'src'}{os.pathsep}{packages()}"
    return Run(**suites.process(command, databases, folder, TIMEOUT, PYTHONPATH=path))


def differences(stock: Run, ours: Run, database: str) -> list[str]:
    """What came out differently. Nothing may."""
    return suites.differences(stock, ours, database, {})
