"""Servers for tests that end for certain.

A server is the child of a small keeper process that reads a pipe which only we can write to:
when we end in whatever way, by SIGKILL too, the pipe does, and the keeper ends the server and
removes its folder.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
from pathlib import Path

# Seconds for a start, or an end.
TIMEOUT = 30.0

_PROGRAM = """
import shutil, signal, subprocess, sys, threading

folder, user, *command = sys.argv[1:]
options = {"user": user, "group": int(command.pop(0)), "extra_groups": []} if user else {}
server = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)
orphaned = False

def watch():
    global orphaned
    sys.stdin.read()
    orphaned = True
    server.send_signal(signal.SIGQUIT)
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()

threading.Thread(target=watch, daemon=True).start()
status = server.wait()
if orphaned:
    shutil.rmtree(folder, ignore_errors=True)
sys.exit(status)
"""


def start(
    folder: Path, command: list[str], log: Path, owner: pwd.struct_passwd | None = None
) -> subprocess.Popen[bytes]:
    """Start a server in its folder, as `owner` if one is given; its keeper."""
    user = [""] if owner is None else [owner.pw_name, str(owner.pw_gid)]
    with log.open("ab") as output:
        return subprocess.Popen(
            # Isolated and without site: no coverage, no path of ours.
            [sys.executable, "-I", "-S", "-c", _PROGRAM, str(folder), *user, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            cwd=folder,
            start_new_session=True,
        )


def end(kept: subprocess.Popen[bytes]) -> None:
    """End a keeper and its server, whatever they do."""
    assert kept.stdin is not None
    kept.stdin.close()
    try:
        kept.wait(TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(kept.pid, signal.SIGKILL)
        kept.wait()
        raise
