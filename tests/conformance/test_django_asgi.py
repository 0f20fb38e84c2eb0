"""Django's own tests of its ASGI handler, through our application."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conformance import suites

HERE = Path(__file__).resolve().parent

# Test -> why it rightly fails.
DIFFERENCES = {
    "test_assert_in_listen_for_disconnect": "a message of the server's that means nothing is "
    "passed over, not raised",
}

SUITES = os.environ.get("GREENROOM_CONFORMANCE_SUITES", "").split()

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        bool(SUITES) and not {"all", "asgi"}.intersection(SUITES),
        reason="other suites were asked for",
    ),
]


def test_as_django_s_own(tmp_path: Path) -> None:
    report = tmp_path / "report"
    ran = subprocess.run(
        [
            *(sys.executable, "runtests.py", "--settings=django_asgi_settings", "--parallel=1"),
            "asgi",
        ],
        cwd=suites.sources(),
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE), *(each for each in sys.path if each)]),
            "GREENROOM_REPORT": str(report),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    failed = set(re.findall(r"^(?:FAIL|ERROR): (\w+)", ran.stdout, re.MULTILINE))
    assert failed == set(DIFFERENCES), ran.stdout[-10000:]
    count = re.search(r"^Ran (\d+) tests", ran.stdout, re.MULTILINE)
    assert count is not None
    assert int(count[1]) > 30
    # Some tests call Django's handler by its name.
    assert int(report.read_text()) > 15
