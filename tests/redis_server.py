"""A private Redis for tests, ended for certain: as `postgresql.py` does it, by its keeper.

It keeps nothing on disk, and listens on a Unix socket in its own folder and, on loopback, on a
port that the kernel chose.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from postgresql import _KEEPER, required

TIMEOUT = 30.0
MISSING = "Redis's server is not installed; on Debian: apt-get install redis-server"

__all__ = ["MISSING", "Redis", "find", "required", "server"]


def find() -> str | None:
    return shutil.which("redis-server")


class Redis:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = str(folder / "socket")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        self._keeper: subprocess.Popen[bytes] | None = None

    def location(self, kind: str) -> str:
        """A LOCATION of Django's CACHES: "unix" or "tcp"."""
        return f"unix://{self.path}?db=1" if kind == "unix" else f"redis://127.0.0.1:{self.port}/1"

    def start(self) -> None:
        assert self._keeper is None, "the server runs already"
        command = [find() or "redis-server", "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--unixsocket", self.path, "--save", "", "--dir", str(self.folder)]
        command += ["--pidfile", str(self.folder / "pid"), "--daemonize", "no"]
        with (self.folder / "log").open("ab") as log:
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _KEEPER, str(self.folder), "", *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
            )
        deadline = time.monotonic() + TIMEOUT
        while True:
            with socket.socket(socket.AF_UNIX) as unix, socket.socket() as tcp:
                if not unix.connect_ex(self.path) and not tcp.connect_ex(("127.0.0.1", self.port)):
                    return
            if self._keeper.poll() is not None or time.monotonic() > deadline:
                log_text = (self.folder / "log").read_text(errors="replace")
                self.close()
                raise RuntimeError(f"Redis did not start:\n{log_text}")
            time.sleep(0.02)

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """It answers nobody in the block: it is stopped."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, as by a crash; `start` starts it again, empty."""
        keeper, self._keeper = self._keeper, None
        assert keeper is not None, "the server does not run"
        self._signal(signal.SIGKILL)
        keeper.wait(TIMEOUT)
        assert keeper.stdin is not None
        keeper.stdin.close()

    def _signal(self, number: int) -> None:
        os.kill(int((self.folder / "pid").read_text()), number)

    def close(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            assert keeper.stdin is not None
            keeper.stdin.close()
            try:
                keeper.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                os.killpg(keeper.pid, signal.SIGKILL)
                keeper.wait()
                raise
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def server() -> Iterator[Redis]:
    """A new server for the block."""
    # In /tmp: the path of a socket must be short.
    redis = Redis(Path(tempfile.mkdtemp(prefix="greenroom-redis-", dir="/tmp")))
    try:
        redis.start()
        yield redis
    finally:
        redis.close()
