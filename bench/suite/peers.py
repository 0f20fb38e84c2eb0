"""The servers that are compared: how each is started, at its best.

In a command, {port}, {threads}, {workers}, {backlog} and {room} are filled in: `room` is
for the connections of a scenario, and some more. A server with `threads` is tried with each
of these numbers before it is measured, and measured with what was fastest.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

SWEPT = (1, 8, 64, 256, 1000)

OURS = "greenroom"
LIMIT = "limit"


@dataclass(frozen=True)
class Peer:
    title: str
    command: tuple[str, ...]
    # Of BENCH_APPLICATION: whose application the site's modules give.
    application: str = "django"
    swept: bool = False
    # What has to be installed.
    module: str = ""
    program: str = ""
    asgi: bool = False

    def missing(self) -> str | None:
        """What isn't installed, if anything."""
        if self.program and program(self.program) is None:
            return self.program
        if self.module and importlib.util.find_spec(self.module) is None:
            return self.module
        return None


def program(name: str) -> str | None:
    """The path of a program in this environment, or else on the PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


def _gunicorn(worker: str, *options: str, app: str = "wsgi") -> tuple[str, ...]:
    return (
        *("{python}", "-m", "gunicorn", f"{app}:application", "--worker-class", worker),
        *("--bind", "127.0.0.1:{port}", "--workers", "{workers}"),
        *("--backlog", "{backlog}", "--worker-connections", "{room}", *options),
    )


def _granian(interface: str, *options: str) -> tuple[str, ...]:
    return (
        *("{python}", "-m", "granian", "--interface", interface, "--workers", "{workers}"),
        *("--host", "127.0.0.1", "--port", "{port}", "--backlog", "{backlog}", "--no-ws"),
        # Else it would answer no more than its backlog at a time.
        *("--log-level", "error", "--backpressure", "{room}", *options),
        f"{interface}:application",
    )


_THREADS = ("--threads", "{threads}")

PEERS: dict[str, Peer] = {
    OURS: Peer(
        "Greenroom",
        _gunicorn("greenroom.Worker", *_THREADS),
        application="greenroom",
        swept=True,
        module="gunicorn",
    ),
    "sync": Peer("gunicorn sync", _gunicorn("sync"), module="gunicorn"),
    "gthread": Peer(
        "gunicorn gthread", _gunicorn("gthread", *_THREADS), swept=True, module="gunicorn"
    ),
    "gevent": Peer("gunicorn gevent", _gunicorn("gevent"), module="gevent"),
    "gunicorn-asgi": Peer(
        "gunicorn asgi",
        # An application of WSGI has no lifespan, and Django's of ASGI neither.
        _gunicorn("asgi", "--asgi-lifespan", "off", "--asgi-loop", "uvloop", app="asgi"),
        module="gunicorn.workers.gasgi",
        asgi=True,
    ),
    "uvicorn": Peer(
        "uvicorn",
        (
            *("{python}", "-m", "uvicorn", "asgi:application", "--host", "127.0.0.1"),
            *("--port", "{port}", "--workers", "{workers}", "--backlog", "{backlog}"),
            *("--no-access-log", "--log-level", "error", "--lifespan", "off"),
            *("--loop", "uvloop", "--http", "httptools"),
        ),
        module="uvicorn",
        asgi=True,
    ),
    "granian-wsgi": Peer(
        "granian WSGI",
        _granian("wsgi", "--blocking-threads", "{threads}"),
        swept=True,
        module="granian",
    ),
    "granian-asgi": Peer(
        "granian ASGI", _granian("asgi", "--loop", "uvloop"), module="granian", asgi=True
    ),
    "hypercorn": Peer(
        "hypercorn",
        (
            *("{python}", "-m", "hypercorn", "asgi:application", "--bind", "127.0.0.1:{port}"),
            *("--workers", "{workers}", "--worker-class", "uvloop", "--backlog", "{backlog}"),
            *("--log-level", "ERROR"),
        ),
        module="hypercorn",
        asgi=True,
    ),
    "daphne": Peer(
        "daphne",
        (
            *("{python}", "-m", "daphne", "-b", "127.0.0.1", "-p", "{port}", "-v", "0"),
            "asgi:application",
        ),
        module="daphne",
        asgi=True,
    ),
    "uwsgi": Peer(
        "uWSGI",
        (
            # With a socket of HTTP in the worker (--http11-socket) a thread stays with one
            # connection as long as that is kept, and others are never answered.
            *("uwsgi", "--http", "127.0.0.1:{port}", "--http-keepalive", "--http-auto-chunked"),
            *("--http-timeout", "120", "--module", "wsgi:application", "--master"),
            *("--processes", "{workers}", "--enable-threads", *_THREADS, "--listen", "{backlog}"),
            *("--disable-logging", "--die-on-term", "--need-app", "--buffer-size", "32768"),
        ),
        swept=True,
        program="uwsgi",
    ),
    "bolt": Peer(
        "django-bolt, its own kind of view",
        (
            *("{python}", "-m", "django", "runbolt", "--host", "127.0.0.1", "--port", "{port}"),
            *("--processes", "{workers}", "--backlog", "{backlog}", "--no-admin"),
        ),
        application="bolt",
        module="django_bolt",
    ),
    LIMIT: Peer("Django in-process, no server", ("{python}", "limit.py"), module="django"),
}
