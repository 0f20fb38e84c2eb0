"""Make .venvs/bench, the environment of `make bench`, if it isn't there, and print its interpreter.

It has the newest Python here of those that are tested. What can't be installed there (uWSGI
wants a compiler) is named, and left out of what is measured.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

from matrix import PAIRS, ROOT, interpreter

PATH = ROOT / ".venvs" / "bench"
REQUIREMENTS = ROOT / "bench" / "requirements.txt"


def main() -> int:
    binary = PATH / "bin" / "python"
    stamp = PATH / ".installed"
    wanted = (ROOT / "pyproject.toml").read_text() + REQUIREMENTS.read_text()
    if not (stamp.exists() and stamp.read_text() == wanted):
        make(binary)
        stamp.write_text(wanted)
    print(binary.relative_to(ROOT))
    return 0


def make(binary: object) -> None:
    for python in sorted({pair[0] for pair in PAIRS}, key=lambda each: int(each[2:]), reverse=True):
        if (found := interpreter(python)) is not None:
            break
    else:
        sys.exit(f"no Python of {', '.join(pair[0] for pair in PAIRS)} is here")
    print(f"making {PATH.relative_to(ROOT)} with Python {python}", file=sys.stderr)
    shutil.rmtree(PATH, ignore_errors=True)
    subprocess.check_call([found, "-m", "venv", str(PATH)])
    pip = [str(binary), "-m", "pip", "install", "--quiet"]
    subprocess.check_call([*pip, "--upgrade", "pip"], stdout=sys.stderr)
    subprocess.check_call([*pip, "-e", str(ROOT)], stdout=sys.stderr)
    if subprocess.call([*pip, "-r", str(REQUIREMENTS)], stdout=sys.stderr) == 0:
        return
    for line in REQUIREMENTS.read_text().splitlines():
        if line and not line.startswith("#") and subprocess.call([*pip, line], stdout=sys.stderr):
            print(f"{line} can't be installed: what needs it is left out", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
