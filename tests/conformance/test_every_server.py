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
SECONDS = 3600

pytestmark = [
    pytest.mark.timeout(SECONDS + 600),
    pytest.mark.skipif(
        not {"all", "servers"}.intersection(SUITES), reason="other suites were asked for"
    ),
]


def compiled() -> list[Path]:
    """A folder for each of `COMPILED` that this machine can compile."""
    base = suites.ROOT / ".venvs" / "servers" / sysconfig.get_python_version()
    # Not one for all: pip replaces the `bin` of a folder that it installs into.
    folders = {package: base / package.partition(">")[0] for package in COMPILED}
    for package, folder in folders.items():
        # Its programs name the interpreter that made them.
        made, stamp = f"{package} by {sys.executable}", folder / ".installed"
        if not stamp.exists() or stamp.read_text() != made:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--no-deps"]
            command = [*pip, "--target", str(folder), package]
            if subprocess.run(command, check=False, stdin=subprocess.DEVNULL).returncode:
                print(f"{package} can't be compiled here: it is left out")
            else:
                stamp.write_text(made)
    return [folder for folder in folders.values() if (folder / ".installed").exists()]


def test_every_server() -> None:
    folders = compiled()
    path = [*(str(folder / "bin") for folder in folders), os.environ.get("PATH", os.defpath)]
    search = [*(each for each in sys.path if each), *map(str, folders)]
    names = ("servers", "servers_database", "faces")
    tests = [str(suites.ROOT / "tests" / "wire" / f"test_{name}.py") for name in names]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "--timeout=300", *tests],
        cwd=suites.ROOT,
        env={
            **os.environ,
            "GREENROOM_SERVERS": "1",
            "PATH": os.pathsep.join(path),
            "PYTHONPATH": os.pathsep.join(search),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    print(ran.stdout[-5000:])
    assert ran.returncode == 0, ran.stdout[-20000:]
