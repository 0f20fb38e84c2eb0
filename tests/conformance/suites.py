"""Django's own tests: which, where they come from, one run of them, and what may differ.

A run is a process of `runner.py`. What it reports in a bridge is compared with what it
reports without, test by test: a test that Django itself skips or fails on a database must
be skipped or fail here too.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import django

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

# What `make test` runs, on the newest pair of Python and Django.
SUITES = [
    "aggregation",
    "async",
    "backends",
    "basic",
    "lookup",
    "prefetch_related",
    "queries",
    "select_for_update",
    "transactions",
]

# What `make conformance` runs besides.
MORE = [
    "aggregation_regress",
    "annotations",
    "bulk_create",
    "composite_pk",
    "constraints",
    "custom_columns",
    "custom_managers",
    "custom_pk",
    "datatypes",
    "dates",
    "datetimes",
    "db_functions",
    "db_utils",
    "defer",
    "defer_regress",
    "delete",
    "delete_regress",
    "expressions",
    "expressions_case",
    "expressions_window",
    "extra_regress",
    "filtered_relation",
    "force_insert_update",
    "foreign_object",
    "from_db_value",
    "generic_relations",
    "get_or_create",
    "introspection",
    "known_related_objects",
    "m2m_regress",
    "m2m_through",
    "m2m_through_regress",
    "many_to_many",
    "many_to_one",
    "model_fields",
    "model_forms",
    "model_formsets",
    "model_inheritance",
    "model_regress",
    "multiple_database",
    "one_to_one",
    "ordering",
    "pagination",
    "proxy_models",
    "raw_query",
    "save_delete_hooks",
    "select_related",
    "select_related_regress",
    "serializers",
    "signals",
    "timezones",
    "transaction_hooks",
    "update",
    "update_only_fields",
]

# Tests that come out differently, by their id (and " on postgresql" where it is there only),
# and why this is right.
DIFFERENCES: dict[str, str] = {
    "async.tests.AsyncUnsafeTest.test_async_unsafe": (
        "It wants SynchronousOnlyOperation in a coroutine. In a bridge, where it runs here, there "
        "is nothing unsafe; without one it is raised (tests/unit/test_patches.py)."
    ),
    "async.tests.DatabaseConnectionTest.test_get_async_connection": (
        "It wants SynchronousOnlyOperation where a loop runs. In a bridge the query waits; the "
        "test gets as far as the ban on queries in a SimpleTestCase."
    ),
    "async.tests.ViewTests.test_http_method_not_allowed_responds_correctly": (
        "It calls asyncio.run(), which no code can where a loop runs."
    ),
    "async.tests.ViewTests.test_options_handler_responds_correctly": (
        "It calls asyncio.run(), which no code can where a loop runs."
    ),
    **{
        f"backends.base.test_base.ConnectionHealthChecksTests.{name} on postgresql": (
            "It wants another connection object after the request; here it is the "
            "pool's, which lends the same one again, and checks its health."
        )
        for name in (
            "test_health_checks_disabled",
            "test_health_checks_enabled",
            "test_health_checks_enabled_errors_occurred",
            "test_set_autocommit_health_checks_enabled",
        )
    },
    **{
        f"backends.postgresql.tests.Tests.{name} on postgresql": (
            "It looks into psycopg's own pool, in whose place there is another one here, which has "
            "its own options and keeps connections with CONN_MAX_AGE too."
        )
        for name in (
            "test_connect_pool",
            "test_connect_pool_set_to_true",
            "test_pool_check_can_be_overridden",
            "test_pool_options_not_mutated",
            "test_pooling_health_checks",
            "test_pooling_not_support_persistent_connections",
        )
    },
}

# The most seconds of one run.
TIMEOUT = 1200


@dataclass(frozen=True)
class Run:
    """What came out of one run."""

    outcomes: dict[str, str]
    details: dict[str, str]
    queries: int
    queries_in_bridge: int
    suspensions: int
    requests: int
    through_djangos: int
    through_ours: int
    on_loop: int
    not_through_ours: list[str]
    seconds: float
    # Of the process, and what it wrote.
    status: int
    output: str

    @property
    def by_test(self) -> dict[str, dict[str, str]]:
        """The outcomes of each test: its own, and those of subtests that didn't succeed."""
        tests: dict[str, dict[str, str]] = {}
        for name, outcome in self.outcomes.items():
            head, _, rest = name.partition(" ")
            # "setUpClass (backends.tests.Some)" is no subtest.
            test = name if head in {"setUpClass", "tearDownClass"} or not rest else head
            tests.setdefault(test, {})[name] = outcome
        return tests

    def counts(self) -> str:
        outcomes = list(self.outcomes.values())
        return ", ".join(f"{outcomes.count(each)} {each}" for each in sorted(set(outcomes)))


def sources() -> Path:
    """The `tests` of the source distribution of the Django that is installed, kept in .venvs."""
    return unpacked("django", django.__version__) / "tests"


def unpacked(name: str, version: str, without: str | None = None) -> Path:
    """A source distribution, kept in .venvs; `without` the package, if that is given."""
    folder = ROOT / ".venvs" / name / version
    folder.parent.mkdir(parents=True, exist_ok=True)
    # One of several processes brings it, and the others wait.
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            temporary = Path(made)
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            pip += ["--no-binary", ":all:", "--dest", made, f"{name}=={version}"]
            subprocess.run(pip, check=True, stdin=subprocess.DEVNULL)
            [archive] = temporary.glob("*.tar.gz")
            with tarfile.open(archive) as tar:
                tar.extractall(temporary / "unpacked", filter="data")
            [found] = (temporary / "unpacked").iterdir()
            if without is not None:
                shutil.rmtree(found / without)
            found.rename(folder)
    return folder


def run(labels: list[str], loop: str, databases: dict[str, Any], folder: Path) -> Run:
    """Run Django's tests `labels` on `databases`, with `folder` for what they write.

    `loop`: "asyncio" or "uvloop", or "stock" for plain Django without a loop.
    """
    command = [str(HERE / "runner.py"), "--tests", str(sources()), "--loop", loop, *labels]
    return Run(**process(command, databases, folder, TIMEOUT))


def process(
    command: list[str], databases: dict[str, Any], folder: Path, timeout: float, **environ: str
) -> dict[str, Any]:
    """Run a runner with Python; return what it reports, for a `Run`."""
    result = folder / "result.json"
    command = [sys.executable, *command, "--result", str(result), "--timeout", str(timeout)]
    ran = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout + 60,
        check=False,
        env={
            **os.environ,
            "GREENROOM_CONFORMANCE_DATABASES": json.dumps(databases),
            "TMPDIR": str(folder),
            **environ,
        },
    )
    if not result.exists():
        raise RuntimeError(f"no result of {' '.join(command)}:\n{ran.stdout[-20_000:]}")
    report = json.loads(result.read_text())
    return {**report, "status": ran.returncode, "output": ran.stdout}


def differences(
    stock: Run, ours: Run, database: str, expected: dict[str, str] = DIFFERENCES
) -> list[str]:
    """What came out differently and is not among those expected, or is there and did not."""
    found = []
    theirs, here = stock.by_test, ours.by_test
    for test in sorted({*theirs, *here}):
        before, after = theirs.get(test, {}), here.get(test, {})
        known = test in expected or f"{test} on {database}" in expected
        if before == after and known:
            found.append(f"{test}\n  is as without us now: remove it from DIFFERENCES")
        if before == after or known:
            continue
        names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        for name in names:
            detail = ours.details.get(name) or stock.details.get(name, "")
            found.append(
                f"{name}\n  {before.get(name, 'absent')} without us, {after.get(name, 'absent')} "
                f"here\n{detail.strip()}"
            )
    return found
