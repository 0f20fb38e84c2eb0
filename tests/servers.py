"""Start any of the servers that a Django project is deployed on, on a port of loopback.

    with start("uvicorn", "django_site", cwd=HERE) as server:
        httpx.get(server.url)

`KINDS` says how each is run and what it can do. A kind that isn't installed is skipped
by `require`. Every server has one process that answers; no process outlives the block.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serving import TIMEOUT, Server, reserved_port

# Threads of those servers that have some.
THREADS = 4


@dataclass(frozen=True)
class Kind:
    """How a server is run.

    `command` makes the command line from a module with an `application`, a port and a
    folder for what it writes; `module` or `program` is what has to be installed.
    """

    command: Callable[[str, int, Path], list[str]]
    module: str = ""
    program: str = ""
    # Whether it calls the ASGI application; and whether that gets the lifespan scope.
    asgi: bool = False
    lifespan: bool = True
    # Whether it is worth its time in every run of the tests.
    often: bool = True
    # Whether it answers more than one request at a time.
    concurrent: bool = True
    # Whether it hands on a request body in chunks.
    chunked: bool = True
    # Whether a client can see that a body ended before its time.
    shows_errors: bool = True
    # Whether it lets a stream wait for a slow client.
    waits: bool = True
    # What ends it in order, with what is registered for the end of the process.
    ends: int = signal.SIGTERM

    def is_installed(self) -> bool:
        if self.program:
            return _program(self.program) is not None
        return importlib.util.find_spec(self.module) is not None


def _program(name: str) -> str | None:
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


def _gunicorn(worker: str, *options: str) -> Callable[..., list[str]]:
    def command(app: str, port: int, folder: Path) -> list[str]:
        config = folder / "gunicorn.conf.py"
        # HOME may not be writable, and no test needs it.
        config.write_text(
            "import gunicorn.config\n"
            "if 'control_socket_disable' in gunicorn.config.make_settings():\n"
            "    control_socket_disable = True\n"
        )
        return [
            *(sys.executable, "-m", "gunicorn", "-c", str(config), "-k", worker),
            *("-b", f"127.0.0.1:{port}", "--graceful-timeout", "5", *options),
            f"{app}:application",
        ]

    return command


def _python(*arguments: str) -> Callable[..., list[str]]:
    def command(app: str, port: int, folder: Path) -> list[str]:
        filled = [each.format(app=app, port=port, folder=folder) for each in arguments]
        return [sys.executable, *filled]

    return command


def _beside(program: str, *arguments: str) -> Callable[..., list[str]]:
    def command(app: str, port: int, folder: Path) -> list[str]:
        found = _program(program)
        assert found is not None
        return [found, *_python(*arguments)(app, port, folder)[1:]]

    return command


# What `manage.py runserver` runs without us, and its threads.
_WSGIREF = """
from django.core.servers.basehttp import WSGIRequestHandler, run
from {app} import application
run("127.0.0.1", {port}, application, threading=True)
"""
# As its documentation says for tests: one process, which stays in the foreground.
_MOD_WSGI = (
    *("start-server", "--host", "127.0.0.1", "--port", "{port}", "--processes", "1"),
    *("--threads", str(THREADS), "--server-root", "{folder}/httpd", "--log-to-terminal"),
    *("--application-type", "module", "{app}"),
    *("--working-directory", ".", "--python-path", "."),
)


# Apache doesn't serve as root: as nobody then, who may read and write what root may, since the
# interpreter may be in root's home.
_NOBODY = (
    *("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"),
    *("--inh-caps=+dac_override", "--ambient-caps=+dac_override"),
)


def _mod_wsgi(app: str, port: int, folder: Path) -> list[str]:
    command = _beside("mod_wsgi-express", *_MOD_WSGI)(app, port, folder)
    return [*_NOBODY, *command] if os.geteuid() == 0 else command


def _can_be_nobody() -> bool:
    if os.geteuid() != 0:
        return True
    if shutil.which(_NOBODY[0]) is None:
        return False
    return subprocess.run([*_NOBODY, "true"], capture_output=True, check=False).returncode == 0


KINDS: dict[str, Kind] = {
    "worker": Kind(_gunicorn("greenroom.Worker", "--threads", str(THREADS)), "gunicorn"),
    "sync": Kind(_gunicorn("sync"), "gunicorn", often=False, concurrent=False),
    "gthread": Kind(_gunicorn("gthread", "--preload", "--threads", str(THREADS)), "gunicorn"),
    "waitress": Kind(
        _python(
            *("-m", "waitress", "--listen=127.0.0.1:{port}", f"--threads={THREADS}"),
            "{app}:application",
        ),
        "waitress",
        ends=signal.SIGINT,
    ),
    "wsgiref": Kind(
        _python("-c", _WSGIREF),
        "django",
        often=False,
        chunked=False,
        shows_errors=False,
        ends=signal.SIGINT,
    ),
    "granian-wsgi": Kind(
        _python(
            *("-m", "granian", "--interface", "wsgi", "--host", "127.0.0.1", "--port", "{port}"),
            *("--blocking-threads", str(THREADS), "{app}:application"),
        ),
        "granian",
    ),
    "uwsgi": Kind(
        _beside(
            "uwsgi",
            *("--http11-socket", "127.0.0.1:{port}", "--module", "{app}:application"),
            *("--master", "--processes", "1", "--enable-threads", "--threads", str(THREADS)),
            *("--die-on-term", "--need-app", "--buffer-size", "32768"),
        ),
        program="uwsgi",
        often=False,
        chunked=False,
        shows_errors=False,
    ),
    "mod_wsgi": Kind(
        _mod_wsgi,
        program="mod_wsgi-express",
        often=False,
        chunked=False,
        shows_errors=False,
    ),
    "uvicorn": Kind(
        _python(
            *("-m", "uvicorn", "--host", "127.0.0.1", "--port", "{port}"),
            *("--timeout-graceful-shutdown", "5", "{app}:application"),
        ),
        "uvicorn",
        asgi=True,
    ),
    "granian": Kind(
        _python(
            *("-m", "granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", "{port}"),
            "{app}:application",
        ),
        "granian",
        asgi=True,
    ),
    "hypercorn": Kind(
        _python(
            *("-m", "hypercorn", "-b", "127.0.0.1:{port}", "--graceful-timeout", "5"),
            "{app}:application",
        ),
        "hypercorn",
        asgi=True,
    ),
    "daphne": Kind(
        _python("-m", "daphne", "-b", "127.0.0.1", "-p", "{port}", "{app}:application"),
        "daphne",
        asgi=True,
        lifespan=False,
        shows_errors=False,
        waits=False,
    ),
    "gunicorn-asgi": Kind(_gunicorn("asgi"), "gunicorn.workers.gasgi", asgi=True, often=False),
}


def require(name: str) -> Kind:
    """The kind of this name; skips the test if it isn't installed."""
    kind = KINDS[name]
    if not kind.is_installed():
        pytest.skip(f"{name} isn't installed")
    if name == "mod_wsgi" and not _can_be_nobody():
        pytest.skip("Apache refuses to serve as root, and setpriv can't make it somebody else here")
    return kind


@contextlib.contextmanager
def start(
    name: str,
    project: str,
    *,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    module: str = "",
) -> Iterator[Server]:
    """Run a project (a package with modules `wsgi` and `asgi`, in `cwd`) for the block.

    `module` is another one of its modules that has an `application`.
    """
    kind = KINDS[name]
    module = module or ("asgi" if kind.asgi else "wsgi")
    search = [str(cwd), *(each for each in sys.path if each)]
    environment: dict[str, Any] = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(search),
        "DJANGO_SETTINGS_MODULE": f"{project}.settings",
        **(env or {}),
    }
    folder = Path(tempfile.mkdtemp(prefix="greenroom-servers-"))
    with reserved_port() as port:
        process = subprocess.Popen(
            kind.command(f"{project}.{module}", port, folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            cwd=cwd,
            start_new_session=True,
        )
        server = Server(process)
        server.address = ("127.0.0.1", port)
        try:
            _wait_until_it_listens(server)
            yield server
        finally:
            if process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.stop(signal.SIGTERM, timeout=10)
            server._kill()
            shutil.rmtree(folder, ignore_errors=True)


def _wait_until_it_listens(server: Server) -> None:
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            server.connect().close()
        except ConnectionRefusedError:
            if server.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"It doesn't listen:\n{server.log()}") from None
            time.sleep(0.05)
        else:
            return
