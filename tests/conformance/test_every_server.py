"""The site of the wire tests under every server that can be had here, one after the other.

Only where GREENROOM_CONFORMANCE_SUITES says "servers" or "all": uWSGI and mod_wsgi are
compiled. They go into a folder of .venvs; one that can't be compiled is skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from conformance import suites

SUITES = os.environ.get("GREENROOM_CONFORMANCE_SUITES", "").split()
# mod_wsgi wants Apache's `apxs`, both a C compiler.
COMPILED = ["uwsgi>=2.0.31", "mod_wsgi>=5.0.2"]
SECONDS = 1800

pytestmark = [
    pytest.mark.timeout(SECONDS + 600),
    pytest.mark.skipif(
        not {"all", "servers"}.intersection(SUITES), reason="other suites were asked for"
    ),
]


def compiled() -> Path:
    """A folder with those of `COMPILED` that this machine can compile."""
    folder = suites.ROOT / ".venvs" / "servers" / sysconfig.get_python_version()
    stamp = folder / ".installed"
    if not stamp.exists() or stamp.read_text() != str(COMPILED):
        for package in COMPILED:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--no-deps"]
            command = [*pip, "--target", str(folder), package]
            if subprocess.run(command, check=False, stdin=subprocess.DEVNULL).returncode:
                print(f"{package} can't be compiled here: it is left out")
        folder.mkdir(parents=True, exist_ok=True)
        stamp.write_text(str(COMPILED))
    return folder


def test_every_server() -> None:
    folder = compiled()
    path = os.pathsep.join([str(folder / "bin"), os.environ.get("PATH", os.defpath)])
    search = os.pathsep.join([*(each for each in sys.path if each), str(folder)])
    tests = [
        str(suites.ROOT / "tests" / "wire" / f"test_{name}.py") for name in ("servers", "faces")
    ]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "--timeout=300", *tests],
        cwd=suites.ROOT,
        env={**os.environ, "GREENROOM_SERVERS": "1", "PATH": path, "PYTHONPATH": search},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    print(ran.stdout[-5000:])
    assert ran.returncode == 0, ran.stdout[-20000:]
