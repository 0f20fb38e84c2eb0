"""Run the test suite on each pair of Python and Django that this machine has.

`--newest` runs the newest pair only. Environments are kept in .venvs, by pair. Tests that are
marked `once` (other people's suites, long loads) run on the newest pair only.
Exits with 1 if any pair failed or if there was none.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic

ROOT = Path(__file__).resolve().parent.parent
# Python, Django, whether all dependencies are at their floors; the oldest first.
PAIRS = [
    ("3.11", "5.2", True),
    ("3.12", "6.0", False),
    ("3.13", "6.1", False),
    ("3.14", "6.1", False),
]

_ENDS_ONLY = ("tests/demo", "tests/unit/server", "tests/wire")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--newest", action="store_true", help="only the newest pair")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest")
    options = parser.parse_args()
    versions = {python for python, _, _ in PAIRS}
    found = {python: path for python in versions if (path := interpreter(python))}
    pairs = [pair for pair in PAIRS if pair[0] in found]
    if options.newest:
        pairs = pairs[-1:]
    *others, newest = pairs or [None]
    results = []
    for python, django, floor in others:
        environment(found[python], python, django, floor)
    if others:
        # At once: they wait, for clocks mostly. The newest pair runs alone: it has the long tests.
        with ThreadPoolExecutor() as executor:
            runs = [executor.submit(run, pair, found, options.pytest, False) for pair in others]
            results = [each.result() for each in runs]
    if newest is not None:
        results.append(run(newest, found, options.pytest, True))
    print("== pairs that ran")
    for name, status, seconds in results:
        print(f"{'ok    ' if status == 0 else 'FAILED'} {name} ({seconds:.0f} s)")
    for python, django, _ in PAIRS:
        if python not in found:
            print(f"absent Python {python} × Django {django}: no such interpreter here")
    return 0 if results and all(status == 0 for _, status, _ in results) else 1


def run(
    pair: tuple[str, str, bool], found: dict[str, str], arguments: list[str], newest: bool
) -> tuple[str, int, float]:
    """Test a pair; its name, pytest's exit status, the seconds that it took.

    What those print that run beside others is shown when they end.
    """
    python, django, floor = pair
    name = f"Python {python} × Django {django}{' at the floors' if floor else ''}"
    began = monotonic()
    command = [environment(found[python], python, django, floor), "-m", "pytest", "-q", *arguments]
    if newest:
        print(f"== {name}", flush=True)
        status = subprocess.call(command, cwd=ROOT, env=clean_environment())
        return name, status, monotonic() - began
    command += ["-m", "not once"]
    if not floor:
        # What knows no Django, real servers and the demo: the oldest pair and the newest
        # are enough.
        command += [f"--ignore={path}" for path in _ENDS_ONLY]
    ran = subprocess.run(
        command,
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(f"== {name}\n{ran.stdout}", flush=True)
    return name, ran.returncode, monotonic() - began


def interpreter(python: str) -> str | None:
    """The path of an interpreter of this version that runs and can make environments."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [sys.executable, shutil.which(f"python{python}")]
    candidates += sorted(map(str, pyenv.glob(f"{python}.*/bin/python")), reverse=True)
    test = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    for candidate in candidates:
        if candidate is None:
            continue
        ran = subprocess.run([candidate, "-c", test], capture_output=True, text=True, check=False)
        if ran.returncode == 0 and ran.stdout.strip() == python:
            return candidate
    return None


def environment(interpreter: str, python: str, django: str, floor: bool) -> str:
    """Make the environment of a pair, if it isn't there; return its interpreter."""
    path = ROOT / ".venvs" / f"py{python}-dj{django}{'-floor' if floor else ''}"
    binary = str(path / "bin" / "python")
    stamp = path / ".installed"
    wanted = (ROOT / "pyproject.toml").read_text() + (
        (ROOT / "tests" / "requirements-floor.txt").read_text() if floor else django
    )
    if stamp.exists() and stamp.read_text() == wanted:
        return binary
    shutil.rmtree(path, ignore_errors=True)
    subprocess.check_call([interpreter, "-m", "venv", str(path)])
    pip = [binary, "-m", "pip", "install", "--quiet"]
    subprocess.check_call([*pip, "--upgrade", "pip"])
    pins = ["-c", "tests/requirements-floor.txt"] if floor else []
    subprocess.check_call(
        [*pip, "-e", ".", "--group", "test", "--group", "demo", f"Django~={django}.0", *pins],
        cwd=ROOT,
    )
    stamp.write_text(wanted)
    return binary


def clean_environment() -> dict[str, str]:
    drop = ("DJANGO_SETTINGS_MODULE", "GUNICORN_CMD_ARGS", "VIRTUAL_ENV")
    return {key: value for key, value in os.environ.items() if key not in drop}


if __name__ == "__main__":
    sys.exit(main())
