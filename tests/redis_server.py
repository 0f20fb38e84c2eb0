"""A private Redis for tests, which ends when we do (`keeper`).

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
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import keeper
from postgresql import required

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
        self._keeper = keeper.start(self.folder, command, self.folder / "log")
        deadline = time.monotonic() + keeper.TIMEOUT
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
        kept, self._keeper = self._keeper, None
        assert kept is not None, "the server does not run"
        self._signal(signal.SIGKILL)
        # A keeper whose pipe ends first takes the folder away.
        kept.wait(keeper.TIMEOUT)
        keeper.end(kept)

    def _signal(self, number: int) -> None:
        os.kill(int((self.folder / "pid").read_text()), number)

    def close(self) -> None:
        kept, self._keeper = self._keeper, None
        if kept is not None:
            keeper.end(kept)
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
