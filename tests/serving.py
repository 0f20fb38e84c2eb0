"""Start a real gunicorn with `greenroom.Worker` for a test, and stop it for certain.

    with serve("apps:hello", cwd=tmp_path) as server:
        httpx.get(server.url)

The port is asked of the kernel. `serve` returns when every worker has logged that it
accepts; no wait is without a bound, and no process outlives the block.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

TIMEOUT = 30.0

_READY = re.compile(r"greenroom: threads ")
_LISTENING = re.compile(r"Listening at: (\S+)")
_BOOTING = re.compile(r"Booting worker with pid: (\d+)")

_CONFIG = """\
bind = {bind!r}
workers = {workers}
threads = {threads}
worker_class = "greenroom.Worker"
proc_name = "greenroom-test"
# HOME may not be writable, and no test needs it.
import gunicorn.config
if "control_socket_disable" in gunicorn.config.make_settings():
    control_socket_disable = True
"""


class Server:
    """A running gunicorn."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid
        self.address: tuple[str, int] | str = ""
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def url(self) -> str:
        """The root of the server, without a slash at its end."""
        assert isinstance(self.address, tuple), "a Unix socket has no URL"
        return f"http://{self.address[0]}:{self.address[1]}"

    def log(self) -> str:
        """All that was written to stdout and stderr up to now."""
        with self._changed:
            return "".join(self._lines)

    def wait_for(self, pattern: str, *, count: int = 1, timeout: float = TIMEOUT) -> re.Match[str]:
        """Wait until the log matches for the `count`-th time; return that match."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                matches = list(re.finditer(pattern, "".join(self._lines), re.MULTILINE))
                if len(matches) >= count:
                    return matches[count - 1]
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    why = "gunicorn ended" if self._ended else f"not within {timeout:g} s"
                    raise AssertionError(
                        f"{pattern!r} is not in the log ({why}):\n{''.join(self._lines)}"
                    )
                self._changed.wait(left)

    def save(self, path: Path, text: str, then: str, *, count: int = 1) -> None:
        """Write a file that a reloader watches, until the log matches.

        Reloaders take what they find at their first look, some time after the server
        answers, for what was there at the start.
        """
        for _ in range(10):
            path.write_text(text)
            with contextlib.suppress(AssertionError):
                self.wait_for(then, count=count, timeout=3)
                return
        self.wait_for(then, count=count)

    def connect(self, timeout: float = TIMEOUT) -> socket.socket:
        """A new connection."""
        family = socket.AF_INET if isinstance(self.address, tuple) else socket.AF_UNIX
        sock = socket.socket(family)
        sock.settimeout(timeout)
        try:
            sock.connect(self.address)
        except BaseException:
            sock.close()
            raise
        return sock

    def workers(self) -> list[int]:
        """The ids of all workers that were ever started, oldest first."""
        return [int(each) for each in _BOOTING.findall(self.log())]

    @property
    def ended(self) -> bool:
        """Whether no process of this server holds its output open any more."""
        return self._ended

    def send_signal(self, sig: int) -> None:
        self.process.send_signal(sig)

    def stop(self, sig: int = signal.SIGTERM, timeout: float = TIMEOUT) -> int:
        """Send a signal and wait for the end; returns the exit status."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(sig)
        return self.wait(timeout)

    def wait(self, timeout: float = TIMEOUT) -> int:
        """Wait for the end; returns the exit status."""
        status = self.process.wait(timeout)
        self._reader.join(timeout)
        return status

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _kill(self) -> None:
        # Its own session: workers that outlived the master are in the group too.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextlib.contextmanager
def reserved_port(host: str = "127.0.0.1") -> Iterator[int]:
    """A free port for a server that has to be told which; for as long as the block lasts.

    It is bound here, and doesn't listen: the kernel gives it to nobody who asks for any, and lets
    servers have it who say SO_REUSEADDR, as all do.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, 0))
        yield sock.getsockname()[1]


@contextlib.contextmanager
def serve(
    app: str,
    *,
    threads: int = 1,
    workers: int = 1,
    unix: bool = False,
    extra_config: str = "",
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    ready: bool = True,
    options: tuple[str, ...] = (),
) -> Iterator[Server]:
    """Run gunicorn on `app` ("module:name", importable from `cwd`) for the block.

    `extra_config` is Python, added to gunicorn's configuration file. With `ready`
    False it isn't waited for the workers: for what must fail to start.
    """
    directory = Path(tempfile.mkdtemp(prefix="greenroom-serving-"))
    bind = f"unix:{directory}/socket" if unix else "127.0.0.1:0"
    config = directory / "gunicorn.conf.py"
    config.write_text(_CONFIG.format(bind=bind, workers=workers, threads=threads) + extra_config)
    environment: dict[str, Any] = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "-c", str(config), *options, app],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=cwd,
        start_new_session=True,
    )
    server = Server(process)
    try:
        if ready:
            _wait_ready(server, workers, unix)
        yield server
    finally:
        if process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.stop(timeout=5)
        server._kill()
        shutil.rmtree(directory, ignore_errors=True)


def _wait_ready(server: Server, workers: int, unix: bool) -> None:
    # The first of several.
    listening = server.wait_for(_LISTENING.pattern)[1].partition(",")[0]
    if unix:
        server.address = listening.removeprefix("unix:")
    else:
        host, _, port = listening.rpartition("//")[2].rpartition(":")
        server.address = (host, int(port))
    server.wait_for(_READY.pattern, count=workers)
