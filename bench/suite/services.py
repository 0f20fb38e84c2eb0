"""What a scenario needs besides a server: PostgreSQL, Redis, nginx, a file. All private."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .peers import program
from .servers import SITE, Invalid, free_port

# The tests have one that ends for certain.
sys.path.insert(0, str(SITE.parents[1] / "tests"))

import postgresql

# Debian's place.
_SBIN = ":/usr/sbin"

_NGINX = """\
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 2048; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream site {{ server 127.0.0.1:{to}; keepalive 256; }}
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/certificate.pem;
        ssl_certificate_key {folder}/key.pem;
        keepalive_requests 1000000;
        location / {{
            proxy_pass http://site;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
        }}
    }}
}}
"""


class Services:
    """Started when they are first asked for, ended with the block."""

    def __enter__(self) -> Services:
        self._stack = contextlib.ExitStack()
        self._database: dict[str, Any] | None = None
        self._redis: str | None = None
        self._cookies: dict[tuple[str, ...], str] = {}
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    @staticmethod
    def missing(needs: tuple[str, ...]) -> str | None:
        for need in needs:
            if need == "postgresql":
                found = postgresql.find() is not None
            else:
                name = {"redis": "redis-server"}.get(need, need)
                found = _find(name) is not None
            if not found:
                return f"{need} is not installed"
        return None

    def environment(self, needs: tuple[str, ...], database: Mapping[str, object]) -> dict[str, str]:
        result = {}
        if "postgresql" in needs:
            result["BENCH_DATABASE"] = json.dumps({**self.database(), **database})
        if "redis" in needs:
            result["BENCH_REDIS"] = self.redis()
        return result

    def database(self) -> dict[str, Any]:
        if self._database is None:
            pg = self._stack.enter_context(postgresql.server())
            self._database = pg.create("bench")
            # All that need it have the same rows.
            self.cookie(("postgresql",))
        return self._database

    def cookie(self, needs: tuple[str, ...]) -> str:
        """Of a session, in what keeps sessions there."""
        if needs not in self._cookies:
            variables = self.environment(needs, {})
            if needs in self._cookies:
                return self._cookies[needs]
            ran = subprocess.run(
                [sys.executable, "fill.py"],
                cwd=SITE,
                env=os.environ | variables | {"DJANGO_SETTINGS_MODULE": "settings"},
                capture_output=True,
                text=True,
                check=False,
            )
            if ran.returncode != 0:
                raise RuntimeError(f"the site can't be filled: {ran.stderr}")
            self._cookies[needs] = ran.stdout.strip()
        return self._cookies[needs]

    def redis(self) -> str:
        """The address of a server on a Unix socket, which keeps nothing on disk."""
        if self._redis is None:
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp"))
            path = f"{folder}/redis.sock"
            command = [_find("redis-server") or "redis-server", "--port", "0"]
            command += ["--unixsocket", path, "--save", "", "--dir", folder]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            self._stack.callback(process.wait)
            self._stack.callback(process.terminate)
            for _ in range(200):
                with socket.socket(socket.AF_UNIX) as probe:
                    if probe.connect_ex(path) == 0:
                        break
                time.sleep(0.02)
            else:
                raise RuntimeError("redis-server does not start")
            self._redis = f"unix://{path}?db=0"
        return self._redis

    @contextlib.contextmanager
    def file(self, size: int) -> Iterator[str]:
        """A file of so many bytes. It was read: not the disk is measured."""
        with tempfile.NamedTemporaryFile() as file:
            block = os.urandom(1 << 20)
            for at in range(0, size, len(block)):
                file.write(block[: size - at])
            file.flush()
            yield file.name

    @contextlib.contextmanager
    def nginx(self, to: int) -> Iterator[int]:
        """An nginx with TLS in front of a port; its own."""
        port = free_port()
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:
            subprocess.run(
                [
                    *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
                    *("-subj", "/CN=localhost", "-keyout", f"{folder}/key.pem"),
                    *("-out", f"{folder}/certificate.pem"),
                ],
                check=True,
                capture_output=True,
            )
            # Its worker runs as nobody.
            os.chmod(folder, 0o755)
            conf = Path(folder, "nginx.conf")
            conf.write_text(_NGINX.format(folder=folder, port=port, to=to))
            command = [_find("nginx") or "nginx", "-e", f"{folder}/error.log", "-c", str(conf)]
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            try:
                for _ in range(200):
                    with socket.socket() as probe:
                        if probe.connect_ex(("127.0.0.1", port)) == 0:
                            break
                    time.sleep(0.02)
                else:
                    raise Invalid("nginx does not start")
                yield port
            finally:
                process.terminate()
                process.wait(10)


def _find(name: str) -> str | None:
    return program(name) or shutil.which(name, path=os.environ.get("PATH", "") + _SBIN)
