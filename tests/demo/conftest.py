"""The demo site as its README starts it: the same commands, in processes of their own."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

DEMO = Path(__file__).resolve().parent.parent.parent / "demo"


@dataclass(frozen=True)
class Site:
    url: str
    pid: int
    env: dict
    log: Path

    def client(self, **options):
        return httpx.Client(base_url=self.url, trust_env=False, timeout=20, **options)

    def async_client(self, **options):
        return httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=20, **options)

    def manage(self, *command):
        return manage(self.env, *command)


def manage(env, *command):
    done = subprocess.run(
        [sys.executable, "manage.py", *command],
        cwd=DEMO,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="session")
def site(serve):
    with serve() as site:
        yield site


@pytest.fixture(scope="session")
def serve(tmp_path_factory):
    """A function: `with serve(MONTAGE_…="…") as site`."""
    filled = []

    def serve(**settings):
        directory = tmp_path_factory.mktemp("montage")
        env = environment(directory, settings)
        if "MONTAGE_POSTGRESQL" in env:
            fill(env)
        else:
            if not filled:
                made = environment(tmp_path_factory.mktemp("filled"), {})
                fill(made)
                filled.append(made["MONTAGE_DATABASE"])
            shutil.copy(filled[0], env["MONTAGE_DATABASE"])
        return serving(directory, env)

    return serve


def fill(env):
    manage(env, "migrate", "--verbosity=0")
    manage(env, "fill")


def environment(directory, settings):
    """Of a site of its own in this directory, with what is in `settings`."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DJANGO_", "MONTAGE_"))
    } | {
        "PORT": "0",
        "HOME": str(directory),  # gunicorn keeps its control socket there
        "MONTAGE_DATABASE": str(directory / "montage.sqlite3"),
        "MONTAGE_MEDIA": str(directory / "media"),
        "MONTAGE_SECRET_KEY": "the tests leave no file in the checkout",
    }
    return env | settings


@contextlib.contextmanager
def serving(directory, env):
    log = directory / "log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "montage.wsgi"],
            cwd=DEMO,
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        site = Site(_address(server, log), server.pid, env, log)
        with site.client() as client:
            client.get("/hello/now/").raise_for_status()
        yield site
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            status = server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
            raise
    assert status == 0, log.read_text()


def _address(server, log):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if found := re.search(r"^Montage is at (http://\S+)/$", log.read_text(), re.MULTILINE):
            return found[1]
        if server.poll() is not None:
            break
        time.sleep(0.05)
    raise AssertionError(f"The demo did not start:\n{log.read_text()}")


@pytest.fixture
def client(site):
    with site.client() as client:
        yield client
