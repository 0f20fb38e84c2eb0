"""`manage.py runserver` as a developer starts it: real processes, on loopback."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import serving

SETTINGS = """
SECRET_KEY = "for tests only"
DEBUG = True
INSTALLED_APPS = ["greenroom", "django.contrib.staticfiles"]
ROOT_URLCONF = "urls"
STATIC_URL = "static/"
STATICFILES_DIRS = ["assets"]
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": "db.sqlite3",
        "OPTIONS": {"transaction_mode": "IMMEDIATE"},
    }
}
WSGI_APPLICATION = "wsgi.application"
USE_TZ = True
TIME_ZONE = "UTC"
GREENROOM = {"LIFESPAN": "urls.lifespan"}
"""

URLS = """
import asyncio, contextlib, os, pathlib, threading, time
import django
from django.db import connection
from django.http import HttpResponse
from django.urls import path

WORD = "first"


@contextlib.asynccontextmanager
async def lifespan():
    yield "lasting"
    await asyncio.to_thread(pathlib.Path("left").write_text, "left")


async def sleep(request):
    await asyncio.sleep(0.5)
    return HttpResponse(f"{request.lifespan} {threading.current_thread().name}")


async def wait(request):
    print("waiting", flush=True)
    await asyncio.sleep(60)


def plain(request):
    return HttpResponse(WORD)


async def query(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 41 + 1")
        return HttpResponse(cursor.fetchone()[0])


async def stuck(request):
    print("stuck", flush=True)
    time.sleep(60)


def deaf(request):
    print("deaf", flush=True)
    time.sleep(60)


async def leave(request):
    raise SystemExit(3)


def error(request):
    raise ValueError("a mistake")



running = crowded = 0


async def crowd(request):
    global crowded
    crowded += 1
    await asyncio.sleep(0.5)
    most = crowded
    await asyncio.sleep(0.2)
    crowded -= 1
    return HttpResponse(most)


def one(request):
    global running
    running += 1
    most = running
    for _ in range(20):
        time.sleep(0.01)
        most = max(most, running)
    running -= 1
    return HttpResponse(most)


urlpatterns = [
    path("sleep/", sleep), path("plain/", plain), path("query/", query), path("stuck/", stuck),
    path("deaf/", deaf), path("leave/", leave), path("error/", error), path("one/", one),
    path("wait/", wait), path("crowd/", crowd),
]
"""

WSGI = """
import os
from greenroom import get_wsgi_application
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
application = get_wsgi_application()
"""

MANAGE = """
import os, signal, sys
# A shell that runs the tests in the background has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from django.core.management import execute_from_command_line
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
execute_from_command_line(sys.argv)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in {
        "settings.py": SETTINGS,
        "urls.py": URLS,
        "wsgi.py": WSGI,
        "manage.py": MANAGE,
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "site.css").write_text("body {}")
    return tmp_path


@contextlib.contextmanager
def runserver(project: Path, *options: str, ready: bool = True, **env: str) -> Iterator[Any]:
    """``manage.py runserver`` on a free port, or with a whole `addrport` in the options."""
    with contextlib.ExitStack() as stack:
        addrport = []
        if not any(re.search(r"\d{4}$", each) for each in options):
            addrport = [str(stack.enter_context(serving.reserved_port()))]
        process = subprocess.Popen(
            [sys.executable, "-u", "manage.py", "runserver", *addrport, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **env},
            cwd=project,
            start_new_session=True,
        )
        server = serving.Server(process)
        stack.callback(server._kill)
        if ready:
            found = server.wait_for(r"server at http://(\S+):(\d+)/$")
            server.address = (found[1], int(found[2]))
            server.wait_for("^Coroutine views: ")
        yield server


def get(server: Any, path: str, **kwargs: Any) -> httpx.Response:
    return httpx.get(f"{server.url}{path}", timeout=30, **kwargs)


def test_a_session(project: Path) -> None:
    """Views of both kinds, static files, errors, logs, and Ctrl-C."""
    with runserver(project, "--noreload") as server:
        log = server.log()
        assert "\nCoroutine views: 6 on the loop.\n" in log
        assert log.index("Performing system checks...") < log.index("no issues")
        assert "using settings 'settings'" in log
        assert "Quit the server with CONTROL-C." in log

        assert get(server, "/sleep/").text == "lasting greenroom-server"
        with ThreadPoolExecutor(20) as pool:
            assert max(pool.map(lambda _: int(get(server, "/crowd/").text), range(20))) > 5

        assert get(server, "/plain/").text == "first"
        assert get(server, "/query/").text == "42"
        css = get(server, "/static/site.css")
        assert (css.text, css.headers["content-type"]) == ("body {}", "text/css")
        assert httpx.head(f"{server.url}/static/site.css").headers["content-length"] == "7"
        since = {"If-Modified-Since": css.headers["last-modified"]}
        assert get(server, "/static/site.css", headers=since).status_code == 304
        assert get(server, "/static/none.css").status_code == 404
        assert "a mistake" in get(server, "/error/").text
        stamp = r"^\[\d\d/[A-Z][a-z]{2}/\d{4} \d\d:\d\d:\d\d\] "
        server.wait_for(stamp + r'"GET /plain/ HTTP/1.1" 200 5$')
        server.wait_for(stamp + r'"GET /static/none.css HTTP/1.1" 404 \d+$')
        server.wait_for(stamp + r'"GET /error/ HTTP/1.1" 500 \d+$')

        # One who leaves, and one who speaks another language.
        with server.connect() as sock:
            sock.sendall(b"GET /wait/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
            server.wait_for("^waiting$")
            # It is reset, not closed in an orderly way.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.wait_for(stamp + r"- Broken pipe from \('127.0.0.1', '\d+'\)$")
        with server.connect() as sock:
            sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
            assert sock.recv(100).startswith(b"HTTP/1.1 400 ")
        server.wait_for(stamp + r"You're accessing the development server over HTTPS")
        with server.connect() as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n")
            assert sock.recv(100).startswith(b"HTTP/1.1 400 ")
        server.wait_for(stamp + r"Invalid request from ip=127.0.0.1: ")

        # A request that ends the process elsewhere.
        with contextlib.suppress(httpx.TransportError):
            get(server, "/leave/")
        server.wait_for(r"The application raised SystemExit\(3\)")
        assert get(server, "/plain/").text == "first"

        traceback = server.log().count("Traceback")
        began = time.monotonic()
        assert server.stop(signal.SIGINT) == 0
        assert time.monotonic() - began < 15
        assert (project / "left").read_text() == "left"
        assert server.log().count("Traceback") == traceback


def test_a_change_is_served(project: Path) -> None:
    with runserver(project) as server:
        assert "Watching for file changes with StatReloader" in server.log()
        assert get(server, "/plain/").text == "first"
        with server.connect() as sock:
            # It holds nothing up.
            sock.sendall(b"GET /stuck/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
            server.wait_for("^stuck$")
            urls = project / "urls.py"
            server.save(urls, URLS.replace("first", "second"), r"urls\.py changed, reloading\.")
            server.wait_for(r"^Coroutine views: ", count=2)
        assert get(server, "/plain/").text == "second"
        # A mistake is shown, and its mend is served.
        server.save(urls, "boom", "NameError: name 'boom' is not defined")
        server.save(urls, URLS.replace("first", "third"), r"^Coroutine views: ", count=3)
        assert get(server, "/plain/").text == "third"
        began = time.monotonic()
        assert server.stop(signal.SIGTERM) == 0
        assert time.monotonic() - began < 20


@pytest.mark.parametrize(("sig", "path"), [(signal.SIGINT, "/stuck/"), (signal.SIGTERM, "/deaf/")])
def test_it_ends_at_once(project: Path, sig: int, path: str) -> None:
    """Whatever blocks the loop, or a thread."""
    with runserver(project, "--noreload") as server, server.connect() as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        server.wait_for(f"^{path.strip('/')}$")
        assert server.stop(sig, timeout=15) == 0
        assert "Traceback" not in server.log()


@pytest.mark.once
def test_ipv6(project: Path) -> None:
    with contextlib.ExitStack() as stack:
        try:
            port = stack.enter_context(serving.reserved_port("::1"))
        except OSError:
            pytest.skip("no IPv6 here")
        with runserver(project, "--noreload", "-6", str(port)) as server:
            assert f"http://[::1]:{port}/" in server.log()
            assert httpx.get(f"http://[::1]:{port}/plain/").text == "first"
        with runserver(project, "--noreload", f"[::1]:{port}") as server:
            assert httpx.get(f"http://[::1]:{port}/plain/").text == "first"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("127.0.0.1:{port}",), "Error: That port is already in use."),
        (("no.such.host.invalid:8000",), "Error: "),
        (("192.0.2.1:8000",), "Error: That IP address can't be assigned to."),
        (("nonsense:",), '"nonsense:" is not a valid port number or address:port pair.'),
    ],
)
def test_where_it_cannot_serve(project: Path, options: tuple[str], said: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = subprocess.run(
            [sys.executable, "manage.py", "runserver", "--noreload", options[0].format(port=port)],
            capture_output=True,
            text=True,
            cwd=project,
            timeout=60,
            check=False,
        )
    assert ran.returncode == 1
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.once
def test_one_plain_view_at_a_time(project: Path) -> None:
    with runserver(project, "--noreload", "--nothreading", "--nostatic") as server:
        with ThreadPoolExecutor(16) as pool:
            plain = [pool.submit(get, server, "/one/") for _ in range(4)]
            crowd = [pool.submit(get, server, "/crowd/") for _ in range(12)]
            # The others don't wait for it.
            assert max(int(each.result().text) for each in crowd) > 3
            assert {each.result().text for each in plain} == {"1"}
        assert get(server, "/static/site.css").status_code == 404


def test_djangos_own_application_is_served_as_it_is(project: Path) -> None:
    wsgi = project / "wsgi.py"
    wsgi.write_text(WSGI.replace("from greenroom import", "from django.core.wsgi import"))
    with runserver(project, "--noreload", ready=False) as server:
        server.address = ("127.0.0.1", int(server.wait_for(r"server at http://\S+:(\d+)/$")[1]))
        server.wait_for("wsgi.application is Django's own application")
        deadline = time.monotonic() + 20
        while True:
            try:
                assert get(server, "/plain/").text == "first"
                break
            except httpx.ConnectError:
                assert time.monotonic() < deadline
        assert get(server, "/static/site.css").text == "body {}"
        # Of Django's own, a request has no such attribute.
        assert get(server, "/sleep/").status_code == 500


@pytest.mark.once
def test_without_a_setting_it_is_ours(project: Path) -> None:
    settings = project / "settings.py"
    text = SETTINGS.replace("WSGI_APPLICATION", "NOTHING")
    settings.write_text(text.replace(', "django.contrib.staticfiles"', ""))
    with runserver(project, "--noreload") as server:
        assert get(server, "/sleep/").text == "lasting greenroom-server"


HIDDEN = """
from {base} import Command as Base

class Command(Base):
    {body}
"""


@pytest.mark.once
@pytest.mark.parametrize("serves", [True, False])
def test_the_commands_that_it_hides(project: Path, serves: bool) -> None:
    """whitenoise's, which leaves the serving to Django, has its way; daphne's can't."""
    package = project / "hidden" / "management" / "commands"
    package.mkdir(parents=True)
    base = "django.contrib.staticfiles.management.commands.runserver"
    if serves:
        body = "def inner_run(self, *args, **options): raise SystemExit('never')"
    else:
        body = """def add_arguments(self, parser):
        super().add_arguments(parser)
        parser.set_defaults(use_static_handler=False)"""
    (package / "runserver.py").write_text(HIDDEN.format(base=base, body=body))
    (project / "hidden" / "__init__.py").touch()
    (project / "hidden" / "management" / "__init__.py").touch()
    (package / "__init__.py").touch()
    settings = project / "settings.py"
    settings.write_text(SETTINGS.replace('"greenroom",', '"greenroom", "hidden",'))
    with runserver(project, "--noreload") as server:
        found = get(server, "/static/site.css").status_code
        assert found == (200 if serves else 404)


ABSENT = """
import os, socket, sys

# What Windows has not.
for module, names in ((os, ("fork", "register_at_fork", "sendfile")), (socket, ("MSG_DONTWAIT",))):
    for name in names:
        delattr(module, name)
for name in ("gunicorn", "uvloop", "fcntl", "resource", "pwd", "grp"):
    sys.modules[name] = None
sys.argv = ["manage.py", *sys.argv[1:]]
exec(open("manage.py").read())
"""


@pytest.mark.once
def test_it_needs_nothing_that_windows_has_not(project: Path) -> None:
    (project / "without.py").write_text(textwrap.dedent(ABSENT))
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(serving.reserved_port())
        process = subprocess.Popen(
            [sys.executable, "-u", "without.py", "runserver", "--noreload", str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=project,
            start_new_session=True,
        )
        server = serving.Server(process)
        stack.callback(server._kill)
        server.wait_for("^Coroutine views: ")
        server.address = ("127.0.0.1", port)
        assert get(server, "/sleep/").text == "lasting greenroom-server"
        assert get(server, "/static/site.css").text == "body {}"
        assert server.stop(signal.SIGINT) == 0
