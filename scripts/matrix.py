"""Run the test suite on each pair of Python and Django that this machine has.

`--newest` runs the newest pair only. Environments are kept in .venvs, by pair. Tests that are
marked `once` (other people's suites, long loads) run on the newest pair only, and those that are
marked `alone` (they measure time) with nothing beside them, after the others, which several
processes share: most of them wait.

A test that failed is run once more at the end of its pair, alone. If it passes then, the pair
has passed, and the test is listed at the end of all that is printed. The reason: thousands of
tests of real servers, by real clocks, on a machine that may have no time for them just then. One
that fails now and then is a mistake all the same, of the test or of what it tests. Nothing is run
again if more than a few failed, if a process crashed, or if the tests couldn't be collected.

`--whole` runs what pytest is told on each pair, in one process, whatever it is marked.

Exits with 1 if any pair failed or if there was none.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
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
# More failures than this have one cause, which doesn't go away.
MOST_AGAIN = 5

_ENDS_ONLY = ("tests/demo", "tests/unit/server", "tests/wire")
# Of pytest.
_OK, _FAILED, _NONE_SELECTED = 0, 1, 5


@dataclass
class Result:
    name: str
    passed: bool = True
    seconds: float = 0.0
    # The tests that passed only when they were run again.
    again: list[str] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--newest", action="store_true", help="only the newest pair")
    parser.add_argument(
        "--processes",
        type=int,
        # Half of the time of a test is spent waiting.
        default=min(2 * (os.cpu_count() or 1), 8),
        help="how many share the tests of a pair",
    )
    parser.add_argument("--whole", action="store_true", help="whatever the tests are marked")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest")
    options = parser.parse_args()
    versions = {python for python, _, _ in PAIRS}
    found = {python: path for python in versions if (path := interpreter(python))}
    pairs = [pair for pair in PAIRS if pair[0] in found]
    results = []
    for pair in pairs[-1:] if options.newest else pairs:
        python, django, floor = pair
        binary = environment(found[python], python, django, floor)
        if options.whole:
            results.append(run_whole(pair, binary, options.pytest))
        else:
            results.append(run(pair, binary, options.pytest, options.processes, pair == pairs[-1]))
    print("== pairs that ran")
    for each in results:
        print(f"{'ok    ' if each.passed else 'FAILED'} {each.name} ({each.seconds:.0f} s)")
    for python, django, _ in PAIRS:
        if python not in found:
            print(f"absent Python {python} × Django {django}: no such interpreter here")
    if any(each.again for each in results):
        print("== PASSED ONLY WHEN RUN AGAIN, alone: to be mended")
        for each in results:
            for test in each.again:
                print(f"{each.name}: {test}")
    return 0 if results and all(each.passed for each in results) else 1


def run(
    pair: tuple[str, str, bool], binary: str, arguments: list[str], processes: int, newest: bool
) -> Result:
    """Test a pair."""
    result = Result(name_of(pair))
    # Not the one of those who call pytest themselves; and not that of another pair.
    cache = ROOT / ".pytest_cache" / Path(binary).parents[1].name
    command = [binary, "-m", "pytest", "-q", "-o", f"cache_dir={cache}"]
    selected = [*command, *arguments]
    if not newest and not pair[2]:
        # What knows no Django, real servers and the demo: the oldest pair and the newest
        # are enough.
        selected += [f"--ignore={path}" for path in _ENDS_ONLY]
    once = "" if newest else " and not once"
    began = monotonic()
    failed: list[str] = []
    for name, more in (
        ("", ["-m", f"not alone{once}", *in_processes(processes)]),
        (", tests that want to be alone", ["-m", f"alone{once}"]),
    ):
        print(f"== {result.name}{name}", flush=True)
        tests = pytest([*selected, *more], cache)
        if tests is None:
            result.passed = False
        else:
            failed += tests
    if failed and result.passed and len(failed) <= MOST_AGAIN:
        print(f"== {result.name}, what failed, again", flush=True)
        still = pytest([*command, *failed], cache)
        if still is not None:
            result.again = [test for test in failed if test not in still]
            failed = still
    result.passed = result.passed and not failed
    result.seconds = monotonic() - began
    return result


def run_whole(pair: tuple[str, str, bool], binary: str, arguments: list[str]) -> Result:
    """Run pytest on a pair as it is."""
    result = Result(name_of(pair))
    print(f"== {result.name}", flush=True)
    began = monotonic()
    command = [binary, "-m", "pytest", "-q", *arguments]
    result.passed = subprocess.call(command, cwd=ROOT, env=clean_environment()) == _OK
    result.seconds = monotonic() - began
    return result


def name_of(pair: tuple[str, str, bool]) -> str:
    python, django, floor = pair
    return f"Python {python} × Django {django}{' at the floors' if floor else ''}"


def pytest(command: list[str], cache: Path) -> list[str] | None:
    """The tests that failed, or None if something else did."""
    shutil.rmtree(cache, ignore_errors=True)
    status = subprocess.call(command, cwd=ROOT, env=clean_environment())
    if status in (_OK, _NONE_SELECTED):
        return []
    if status != _FAILED:
        return None
    found = list(json.loads((cache / "v" / "cache" / "lastfailed").read_text()))
    # The others are modules that couldn't be imported, and processes that found other tests.
    return found if all("::" in each for each in found) else None


def in_processes(count: int) -> list[str]:
    if count < 2:
        return []
    # A module to one of them, for there are servers that a module shares; the order is
    # that of tests/conftest.py. A process that dies has failed.
    return [
        *("-n", str(count), "--dist", "loadfile", "--no-loadscope-reorder"),
        *("--max-worker-restart", "0"),
    ]


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
