"""Django's test tools, with coroutine views: a project's tests are run in processes of their own.

The project is tests/tested. Its tests are not greenroom's: they are what a project has, and
they have to pass on every database, whatever they run in.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[1] / "tested"
SOURCES = PROJECT.parents[1] / "src"

SQLITE = {"ENGINE": "django.db.backends.sqlite3"}


@pytest.fixture(
    params=["memory", "file", "postgresql", pytest.param("pool", marks=pytest.mark.once)]
)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """To be parametrized: a database of a project, whose tests make another beside it."""
    if request.param == "memory":
        return {**SQLITE, "NAME": str(tmp_path / "site.sqlite3")}
    if request.param == "file":
        test = {"NAME": str(tmp_path / "test.sqlite3")}
        options = {"transaction_mode": "IMMEDIATE"}
        return {**SQLITE, "NAME": str(tmp_path / "site.sqlite3"), "TEST": test, "OPTIONS": options}
    pg = request.getfixturevalue("pg")
    name = f"tested_{request.param}"
    test = {"NAME": f"{name}_by_{os.getpid()}"}
    if request.param == "pool":
        return pg.settings("postgres", OPTIONS={"pool": True}, TEST=test)  # type: ignore[no-any-return]
    return pg.settings("postgres", CONN_MAX_AGE=60, TEST=test)  # type: ignore[no-any-return]


def run(
    database: dict[str, Any], *arguments: str, warnings: str = "error", path: Path = PROJECT
) -> str:
    ran = subprocess.run(
        [sys.executable, "-W", warnings, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=PROJECT,
        env={
            **os.environ,
            "TESTED_DATABASES": json.dumps({"default": database}),
            "DJANGO_SETTINGS_MODULE": "settings",
            "PYTHONPATH": os.pathsep.join(
                [str(SOURCES), str(PROJECT), str(path), os.environ.get("PYTHONPATH", "")]
            ),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        timeout=110,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


def test_by_djangos_runner(database: dict[str, Any]) -> None:
    said = run(database, "manage.py", "test", "--noinput", "--shuffle", "--traceback")
    found = re.search(r"^Ran (\d+) tests in", said, re.MULTILINE)
    assert found is not None, said
    assert int(found[1]) >= 50
    # Nothing was left that the server would not have let go, and nothing was logged.
    assert "Traceback" not in said
    assert "ResourceWarning" not in said


@pytest.mark.once
def test_in_processes_side_by_side(tmp_path: Path) -> None:
    database = {**SQLITE, "NAME": str(tmp_path / "site.sqlite3")}
    tests = [f"library.tests.{name}" for name in ("ClientTests", "AsyncTests", "CommittedTests")]
    said = run(database, "manage.py", "test", "--parallel=2", *tests, warnings="default")
    assert "OK" in said


@pytest.mark.once
@pytest.mark.parametrize("database", ["memory", "postgresql"], indirect=True)
def test_in_a_browser(database: dict[str, Any]) -> None:
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed; on Debian: apt-get install chromium")
    said = run(database, "manage.py", "test", "--noinput", "library.with_browser")
    assert "Ran 1 test" in said


PYTEST = ("-m", "pytest", "-q", "--rootdir=.", "-c", os.devnull, "-p", "no:cacheprovider")


@pytest.mark.once
@pytest.mark.parametrize("database", ["memory", "postgresql"], indirect=True)
def test_by_pytest_django(database: dict[str, Any]) -> None:
    if find_spec("pytest_django") is None:
        pytest.skip("pytest-django is not installed")
    said = run(database, *PYTEST, "-p", "no:asyncio", "library/with_pytest.py")
    assert "9 passed" in said


@pytest.mark.once
@pytest.mark.parametrize("database", ["file"], indirect=True)
def test_by_pytest_asyncio(database: dict[str, Any]) -> None:
    if find_spec("pytest_django") is None or find_spec("pytest_asyncio") is None:
        pytest.skip("pytest-django or pytest-asyncio is not installed")
    options = ("-o", "asyncio_default_fixture_loop_scope=function")
    said = run(database, *PYTEST, *options, "library/with_asyncio.py")
    assert "3 passed" in said


def test_the_examples_in_the_docs(tmp_path: Path) -> None:
    text = (PROJECT.parents[1] / "docs" / "development.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names = "from library.models import Author\nfrom library.views import add\n"
    with_pytest = [block for block in blocks if "import pytest" in block]
    (tmp_path / "examples.py").write_text(names + "\n".join(set(blocks) - set(with_pytest)))
    (tmp_path / "pytest_examples.py").write_text(names + "\n".join(with_pytest))
    database = {**SQLITE, "NAME": str(tmp_path / "site.sqlite3")}
    said = run(database, "manage.py", "test", "examples", path=tmp_path)
    assert "Ran 5 tests" in said
    if find_spec("pytest_django") is not None:
        file = str(tmp_path / "pytest_examples.py")
        options = ("-p", "no:asyncio", "--import-mode=importlib")
        said = run(database, *PYTEST, *options, file, path=tmp_path)
        assert "1 passed" in said
