"""What scripts/matrix.py runs again, and what has failed for good."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parents[1]
PAIR = ("3.13", "6.1", False)

# Fails the first time.
FLAKY = """
def test_flaky(tmp_path_factory, request):
    name = __file__ + request.node.name.replace("/", "")
    with open(name, "a") as file:
        file.write("ran")
    assert open(name).read() != "ran"
"""
CRASH = """
import os
def test_crash():
    if not os.path.exists(__file__ + "died"):
        open(__file__ + "died", "w").close()
        os.kill(os.getpid(), 9)
"""
ALONE = """
import os, pytest
@pytest.mark.alone
def test_alone():
    assert "PYTEST_XDIST_WORKER" not in os.environ
def test_together():
    assert os.environ["PYTEST_XDIST_WORKER"]
"""
ENDS = """
import pytest
@pytest.fixture
def ends():
    yield
    name = __file__ + "ended"
    with open(name, "a") as file:
        file.write("ran")
    assert open(name).read() != "ran"
def test_its_end_is_flaky(ends):
    pass
"""
MANY = 'import pytest\n@pytest.mark.parametrize("n", ["a b[::]", *range(5)])' + FLAKY.replace(
    "(tmp_path_factory, ", "(n, "
)

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("modules", "processes", "passed", "again"),
    [
        ((FLAKY,), 1, True, ["test_0.py::test_flaky"]),
        ((FLAKY, "def test_bad(): assert 0"), 1, False, ["test_0.py::test_flaky"]),
        ((ENDS,), 1, True, ["test_0.py::test_its_end_is_flaky"]),
        ((MANY,), 1, False, []),
        ((FLAKY, "import nothing_of_this_name"), 1, False, []),
        ((CRASH,), 1, False, []),
        ((CRASH, FLAKY), 2, False, []),
        ((ALONE, FLAKY), 2, True, ["test_1.py::test_flaky"]),
    ],
    ids=[
        *("flaky", "one for good", "at its end", "too many", "no import", "a crash"),
        *("a crash of one of two", "alone"),
    ],
)
def test_what_is_run_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    modules: tuple[str, ...],
    processes: int,
    passed: bool,
    again: list[str],
) -> None:
    spec = importlib.util.spec_from_file_location("matrix", TESTS.parent / "scripts" / "matrix.py")
    assert spec is not None
    assert spec.loader is not None
    matrix: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "matrix", matrix)
    spec.loader.exec_module(matrix)
    monkeypatch.setattr(matrix, "ROOT", tmp_path)
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)
    hooks = "from crashes import pytest_sessionfinish, pytest_testnodedown\n"
    (tmp_path / "conftest.py").write_text(hooks)
    # Others take a second to load.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (tmp_path / "pytest.ini").write_text(
        f"[pytest]\nmarkers =\n  alone\n  once\naddopts = -p xdist.plugin\npythonpath = {TESTS}\n"
    )
    for number, text in enumerate(modules):
        (tmp_path / f"test_{number}.py").write_text(text)
    result = matrix.run(PAIR, sys.executable, [], processes, True)
    assert (result.passed, result.again) == (passed, again)
