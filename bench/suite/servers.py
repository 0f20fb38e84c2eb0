"""Servers on loopback: started on their core, checked, looked at, and ended for certain.

Where there are two cores or more, what is measured has the last one, and this process, with
wrk, the database and all else that it starts, the others.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SITE = Path(__file__).resolve().parents[1] / "site"
START = 30.0
_CORES = sorted(os.sched_getaffinity(0))


class Invalid(Exception):
    """A figure that doesn't count, and why."""


def prepare() -> None:
    """Leave a core to what is measured; allow many sockets."""
    if len(_CORES) > 1:
        os.sched_setaffinity(0, _CORES[:-1])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextlib.contextmanager
def measured_core() -> Iterator[None]:
    """What is started in this block runs on the core of what is measured."""
    mine = os.sched_getaffinity(0)
    if len(_CORES) > 1:
        os.sched_setaffinity(0, _CORES[-1:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def backlog(connections: int) -> int:
    """All connections come at once. More than the kernel allows is refused by uWSGI."""
    most = int(Path("/proc/sys/net/core/somaxconn").read_text())
    return min(max(2048, connections), most)


class Server:
    """A running server; its processes are looked at through /proc."""

    def __init__(self, command: list[str], environment: Mapping[str, str], port: int) -> None:
        self.port = port
        self.began = time.perf_counter()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        with measured_core():
            self.process = subprocess.Popen(
                command,
                cwd=SITE,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,
            )

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def get(self, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path, headers=dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def wait(self, path: str, headers: Mapping[str, str], pause: float = 0.05) -> bytes:
        """The first answer to a GET of `path`. Raises `Invalid` unless it is 200."""
        while True:
            try:
                status, body = self.get(path, headers)
                break
            except (OSError, http.client.HTTPException) as exc:
                late = time.perf_counter() - self.began > START
                if late or self.process.poll() is not None:
                    what = "does not answer" if late else f"ended ({self.process.returncode})"
                    raise Invalid(f"the server {what}: {exc}: {_tail(self.log())}") from exc
                time.sleep(pause)
        if status != 200:
            raise Invalid(f"it answers {status}: {_tail(self.log() or repr(body))}")
        return body

    def pids(self) -> list[int]:
        """All its processes, the first one first."""
        found, left = [], [self.process.pid]
        while left:
            pid = left.pop(0)
            found.append(pid)
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    left += map(int, (task / "children").read_text().split())
        return found

    def worker(self) -> int:
        """The process that answers: of those that the first one started, that with most memory.

        (uWSGI's first has loaded the application too; granian and multiprocessing have helpers.)
        """
        first, *others = self.pids()
        large = [pid for pid in others if look(pid).rss > 20_000_000]
        return max(large, key=lambda pid: look(pid).rss) if large else first

    def stop(self) -> None:
        pids = self.pids()
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            # granian waits for all its threads, which takes longer the more there are.
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid in pids[1:]:
            # Those of a server that was killed. (No other process has its session.)
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(pid) == self.process.pid:
                    os.kill(pid, signal.SIGKILL)
        self._log.close()


@dataclass(frozen=True)
class Look:
    """`rss` in bytes."""

    rss: int = 0
    threads: int = 0


def look(pid: int) -> Look:
    """What /proc says of a process; nothing of one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return Look()
    said = dict(line.split(":", 1) for line in lines)
    rss = int(said["VmRSS"].split()[0]) * 1024 if "VmRSS" in said else 0
    return Look(rss, int(said["Threads"]))


@dataclass
class Watch:
    """The most memory and threads that a process was seen to have in the block."""

    pid: int
    rss: int = 0
    threads: int = 0
    # Of the memory, each with the seconds since the beginning.
    samples: list[tuple[float, int]] = field(default_factory=list)
    every: float = 0.25

    def __enter__(self) -> Watch:
        self._began = time.perf_counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            now = look(self.pid)
            self.rss, self.threads = max(self.rss, now.rss), max(self.threads, now.threads)
            self.samples.append((time.perf_counter() - self._began, now.rss))
            if self._stop.wait(self.every):
                return


def _tail(text: str, size: int = 600) -> str:
    return text.strip()[-size:]


def idle() -> float:
    """The part of the last second that the processors had nothing to do."""

    def times() -> tuple[int, int]:
        values = [int(each) for each in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
        return values[3] + values[4], sum(values[:8])

    before = times()
    time.sleep(1)
    after = times()
    return (after[0] - before[0]) / max(1, after[1] - before[1])
