"""How a row is measured once. Each function returns metrics, as JSON has them.

`rate` in requests a second; `p50`, `p90`, `p99` in ms; `rss`, `rest` (before the load) and what is
made of them in bytes; `errors` by kind. A figure with errors doesn't count.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from . import figures, wrk
from .peers import LIMIT, PEERS, program
from .scenarios import Row, Scenario
from .servers import SITE, Invalid, Server, Watch, backlog, free_port, look, measured_core
from .services import Services

Metrics = dict[str, Any]
TRANSFERS = 5


class Run:
    """One measurement of one row."""

    def __init__(
        self, services: Services, scenario: Scenario, row: Row, threads: int, seconds: float
    ) -> None:
        self.services = services
        self.scenario = scenario
        self.row = row
        self.threads = threads
        self.seconds = seconds
        self.path = scenario.path.format(form=row.form)

    def measure(self) -> Metrics:
        """Raises `Invalid`."""
        if self.row.peer == LIMIT:
            return in_process(self)
        return MEASURES[self.scenario.measure](self)

    def environment(self) -> dict[str, str]:
        scenario, row = self.scenario, self.row
        drop = ("GUNICORN_CMD_ARGS", "VIRTUAL_ENV")
        result = {key: value for key, value in os.environ.items() if key not in drop}
        result["DJANGO_SETTINGS_MODULE"] = "settings"
        result["BENCH_APPLICATION"] = PEERS[row.peer].application
        result["BENCH_MIDDLEWARE"] = scenario.middleware
        result["BENCH_GREENROOM"] = json.dumps(dict(row.greenroom))
        if scenario.api:
            result["BENCH_API"] = "1"
        return result | self.services.environment(scenario.needs, row.database)

    def command(self, port: int) -> list[str]:
        values = {
            "python": sys.executable,
            "port": port,
            "threads": self.threads,
            "workers": self.scenario.workers,
            "backlog": backlog(self.scenario.connections),
            "room": max(1000, self.scenario.connections) + 100,
        }
        filled = [part.format(**values) for part in PEERS[self.row.peer].command]
        return [program(filled[0]) or filled[0], *filled[1:]]

    @property
    def headers(self) -> dict[str, str]:
        if not self.scenario.cookie:
            return {}
        return {"Cookie": self.services.cookie(self.scenario.needs)}

    @contextlib.contextmanager
    def serving(self, pause: float = 0.05, **more: str) -> Iterator[Server]:
        """The row's server, which has answered rightly."""
        port = free_port()
        server = Server(self.command(port), self.environment() | more, port)
        try:
            # What never ends, or is large, is checked by its client.
            path = self.path if self.scenario.body else f"/{self.row.form}/hello/"
            body = server.wait(path, self.headers, pause).decode(errors="replace")
            wanted = self.scenario.body or "Hello world!"
            if wanted not in body:
                raise Invalid(f"it answers {body[:200]!r}, without {wanted!r}")
            yield server
        finally:
            server.stop()

    def load(self, url: str, connections: int, seconds: float, script: str | None) -> wrk.Output:
        headers = tuple(f"{name}: {value}" for name, value in self.headers.items())
        return wrk.run(url, connections, seconds, headers, script)


def rate(run: Run) -> Metrics:
    scenario = run.scenario
    with run.serving() as server:
        url = server.url(run.path)
        # Modules are imported, and connections to the database are made.
        few = min(8, scenario.connections) if scenario.waits else scenario.connections
        run.load(url, few, 1, scenario.script)
        worker = server.worker()
        rest = look(worker)
        with Watch(worker) as watch:
            output = run.load(url, scenario.connections, run.seconds, scenario.script)
    return output.as_json() | {
        "rest": rest.rss,
        "rss": watch.rss,
        "per_request": (watch.rss - rest.rss) / scenario.connections,
        "threads": watch.threads,
        "threads_more": watch.threads - rest.threads,
    }


def beside(run: Run) -> Metrics:
    """The latencies of some requests while others are made."""
    scenario = run.scenario
    assert scenario.beside is not None
    path, connections, script = scenario.beside
    with run.serving() as server:
        run.load(server.url(run.path), scenario.connections, 1, None)
        command = wrk.command(server.url(path), connections, run.seconds + 2, script=script)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as others:
            try:
                time.sleep(1)
                output = run.load(server.url(run.path), scenario.connections, run.seconds, None)
                said, _ = others.communicate(timeout=run.seconds + 60)
            finally:
                others.kill()
    other = wrk.parse(said)
    errors = output.errors | {f"{kind} of the others": n for kind, n in other.errors.items()}
    return output.as_json() | {"others": other.rate, "errors": errors}


def ticks(run: Run) -> Metrics:
    scenario = run.scenario
    with run.serving() as server:
        run.load(server.url(f"/{run.row.form}/hello/"), 8, 1, None)
        worker = server.worker()
        rest = look(worker)
        with Watch(worker) as watch:
            said = client("ticks", server.port, run.path, scenario.size, round(run.seconds))
    return said | {
        "rest": rest.rss,
        "rss": watch.rss,
        "per_client": (watch.rss - rest.rss) / scenario.size,
        "threads": watch.threads,
        "threads_more": watch.threads - rest.threads,
    }


def transfer(run: Run) -> Metrics:
    kind, size = run.scenario.measure, run.scenario.size
    with run.services.file(size) as file, run.serving(BENCH_FILE=file) as server:
        client(kind, server.port, run.path, size, 1)
        worker = server.worker()
        rest = look(worker)
        with Watch(worker) as watch:
            said = client(kind, server.port, run.path, size, TRANSFERS)
    return said | {"rest": rest.rss, "rss": watch.rss, "threads": watch.threads}


def start(run: Run) -> Metrics:
    with run.serving(pause=0.005) as server:
        seconds = time.perf_counter() - server.began
        for _ in range(200):
            server.get(run.path, run.headers)
        worker = look(server.worker())
        everything = sum(look(pid).rss for pid in server.pids())
    return {
        "seconds": seconds,
        "rss": worker.rss,
        "rss_of_all": everything,
        "threads": worker.threads,
        "errors": {},
    }


def balance(run: Run) -> Metrics:
    """Among the workers of a gunicorn; its configuration counts for us."""
    with tempfile.TemporaryDirectory() as folder:
        with run.serving(BENCH_COUNTS=folder) as server:
            # All of them serve, not only the first.
            time.sleep(2)
            output = run.load(
                server.url(run.path), run.scenario.connections, run.seconds, run.scenario.script
            )
        counts = [int(file.read_text()) for file in Path(folder).iterdir()]
    if len(counts) != run.scenario.workers:
        raise Invalid(f"{len(counts)} workers have counted")
    most = max(counts) / (sum(counts) / len(counts))
    return output.as_json() | {"busiest": most, "counts": sorted(counts)}


def through_nginx(run: Run) -> Metrics:
    with run.serving() as server, run.services.nginx(server.port) as port:
        url = f"https://127.0.0.1:{port}{run.path}"
        run.load(url, run.scenario.connections, 1, None)
        output = run.load(url, run.scenario.connections, run.seconds, None)
    return output.as_json()


def in_process(run: Run) -> Metrics:
    """The limit: what Django's own handler does with no server."""
    command = [sys.executable, "limit.py", run.path, str(run.seconds)]
    with measured_core():
        ran = subprocess.run(
            command,
            cwd=SITE,
            env=run.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=run.seconds + 60,
        )
    if ran.returncode != 0:
        raise Invalid(ran.stderr.strip()[-600:])
    return {"rate": float(ran.stdout.split()[0]), "errors": {}}


def hour(run: Run) -> Metrics:
    """Memory over a long time of everything: queries, pages, waits, uploads, clients that leave.

    `slope` is of the process's memory, which grows too where free blocks lie scattered;
    `blocks`, in thousands an hour, of what Python has in use: only what is kept makes it grow.
    """
    scenario, seconds = run.scenario, run.seconds
    headers = tuple(f"{name}: {value}" for name, value in run.headers.items())
    loads = [
        ("/coroutine/query/1/", 8),
        ("/plain/query/1/", 4),
        ("/coroutine/page/", 4),
        ("/plain/page/", 4),
        ("/coroutine/sleep/50/", 32),
    ]
    errors: dict[str, int] = {}
    with (
        tempfile.NamedTemporaryFile("r") as blocks,
        run.services.file(scenario.size) as file,
        run.serving(BENCH_FILE=file, BENCH_BLOCKS=blocks.name) as server,
    ):
        watch = Watch(server.worker(), every=5)
        with contextlib.ExitStack() as stack, watch:
            commands = [wrk.command(server.url(path), n, seconds, headers) for path, n in loads]
            started = [
                stack.enter_context(subprocess.Popen(each, stdout=subprocess.PIPE, text=True))
                for each in commands
            ]
            for each in started:
                stack.callback(each.kill)
            ends = time.perf_counter() + seconds
            while time.perf_counter() < ends:
                for said in (
                    client("ticks", server.port, "/coroutine/ticks/", 50, 5),
                    client("upload", server.port, "/coroutine/upload/", 5_000_000, 2),
                ):
                    for kind, count in said["errors"].items():
                        errors[kind] = errors.get(kind, 0) + count
                # Clients that leave while they wait, and while they are answered.
                wrk.run(server.url("/coroutine/sleep/5000/"), 50, 1)
                wrk.run(server.url("/coroutine/stream/"), 4, 1)
            outputs = [wrk.parse(each.communicate(timeout=120)[0]) for each in started]
        counted = since_first(blocks)
        if server.worker() != watch.pid:
            raise Invalid("another worker has taken its place")
    for output in outputs:
        for kind, count in output.errors.items():
            errors[kind] = errors.get(kind, 0) + count
    line, kept = figures.slope(watch.samples), figures.slope(counted)
    return {
        "slope": line.per_hour,
        "noise": line.noise,
        "blocks": 1000 * kept.per_hour,
        "blocks_noise": 1000 * kept.noise,
        "requests": sum(output.requests for output in outputs),
        "rss": watch.rss,
        "samples": [[round(at), rss] for at, rss in watch.samples],
        "errors": errors,
    }


def since_first(lines: Iterable[str]) -> list[tuple[float, float]]:
    """Seconds since the first line, and the count of each: of what a worker wrote.

    Its last line may be in the middle of being written.
    """
    found = [tuple(map(float, line.split())) for line in lines if line.endswith("\n")]
    return [(at - found[0][0], count) for at, count in found]


def client(kind: str, *arguments: Any) -> Metrics:
    command = [sys.executable, str(Path(__file__).with_name("client.py")), kind]
    command += [str(each) for each in arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if ran.returncode != 0:
        raise Invalid(f"the client failed: {ran.stderr.strip()[-600:]}")
    said: Metrics = json.loads(ran.stdout)
    if "failed" in said:
        raise Invalid(said["failed"])
    return said


MEASURES: dict[str, Callable[[Run], Metrics]] = {
    "rate": rate,
    "beside": beside,
    "ticks": ticks,
    "download": transfer,
    "upload": transfer,
    "start": start,
    "balance": balance,
    "through_nginx": through_nginx,
    "hour": hour,
}
