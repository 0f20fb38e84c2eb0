"""Run the test suite on the newest releases, pre-releases too, of what Greenroom leans on.

What pyproject.toml admits is no limit: a release is tried here before it is admitted. The
environment is .venvs/canary, made anew each time. Says which versions were found, and then
first what has changed of the names that are replaced, or private and relied on
(tests/unit/test_patches.py). Exits with the status of pytest's whole run; what is given goes
to it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matrix

# Of these the newest is taken, whatever it is called.
WATCHED = [
    "Django",
    "asgiref",
    "djangorestframework",
    "greenlet",
    "gunicorn",
    "psycopg[binary,pool]",
]

_PATCHES = "tests/unit/test_patches.py"
# In the environment: names and versions of `WATCHED`, and whether each is a pre-release.
_VERSIONS = """
import sys
from importlib.metadata import version
from pip._vendor.packaging.version import Version
for name in sys.argv[1:]:
    found = version(name)
    print(f"{name:20} {found}", "(a pre-release)" if Version(found).is_prerelease else "")
"""


def main() -> int:
    interpreter = newest()
    if interpreter is None:
        print("no interpreter of the versions in scripts/matrix.py is here", file=sys.stderr)
        return 1
    binary = environment(interpreter)
    names = [each.partition("[")[0] for each in WATCHED]
    print("== the newest that there are, for", interpreter, flush=True)
    subprocess.check_call([binary, "-c", _VERSIONS, *names])
    print("== what their packages, and ours, say of that", flush=True)
    subprocess.call([binary, "-m", "pip", "check"])
    print("== names that are replaced, or relied on", flush=True)
    print(changed_names(binary), flush=True)
    print("== the suite", flush=True)
    command = [binary, "-m", "pytest", "-q", *sys.argv[1:]]
    return subprocess.call(command, cwd=matrix.ROOT, env=matrix.clean_environment())


def newest() -> str | None:
    for python in dict.fromkeys(python for python, _, _ in reversed(matrix.PAIRS)):
        found = matrix.interpreter(python)
        if found is not None:
            return found
    return None


def environment(interpreter: str) -> str:
    """Make the environment; return its interpreter."""
    path = matrix.ROOT / ".venvs" / "canary"
    shutil.rmtree(path, ignore_errors=True)
    subprocess.check_call([interpreter, "-m", "venv", str(path)])
    binary = str(path / "bin" / "python")
    pip = [binary, "-m", "pip", "install", "--quiet"]
    subprocess.check_call([*pip, "--upgrade", "pip"])
    groups = ["--group", "test", "--group", "demo"]
    subprocess.check_call([*pip, *groups, *others()], cwd=matrix.ROOT)
    # What is there already asks for nothing here, and only what they need is changed.
    subprocess.check_call([*pip, "--pre", "--upgrade", *WATCHED])
    subprocess.check_call([*pip, "--no-deps", "-e", "."], cwd=matrix.ROOT)
    return binary


def others() -> list[str]:
    """Our dependencies but those that are watched."""
    project = tomllib.loads((matrix.ROOT / "pyproject.toml").read_text())["project"]
    watched = {each.partition("[")[0].lower() for each in WATCHED}
    return [
        each
        for each in project["dependencies"]
        if re.split(r"[^\w.-]", each, maxsplit=1)[0].lower() not in watched
    ]


def changed_names(binary: str) -> str:
    """What fails in the checks of names, a few lines each."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [binary, "-m", "pytest", "-q", "-p", "no:randomly", f"--junitxml={report}"]
        ran = subprocess.run(
            [*command, _PATCHES],
            cwd=matrix.ROOT,
            env=matrix.clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if not report.exists():
            return ran.stdout
        return readable(ElementTree.parse(report).getroot())


def readable(report: ElementTree.Element) -> str:
    cases = list(report.iter("testcase"))
    lines = []
    for case in cases:
        for what in (*case.findall("failure"), *case.findall("error")):
            lines.append(f"CHANGED {case.get('name')}")
            # What pytest marks so is what it says of the error.
            said = re.findall(r"^E +(\S.*)", what.text or "", re.MULTILINE)
            lines += [f"        {each}" for each in (said or [what.get("message", "")])[:6]]
    count = sum(line.startswith("CHANGED") for line in lines)
    return "\n".join([f"{count} of {len(cases)} checks see a change", *lines])


if __name__ == "__main__":
    sys.exit(main())
