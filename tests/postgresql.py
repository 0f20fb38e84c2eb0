"""A private PostgreSQL for one test run, ended for certain.

    with server() as pg:
        DATABASES = {"default": pg.create("site")}

It listens on a Unix socket in its own folder, and only there, and ends when we do (`keeper`).

PostgreSQL refuses to run as root. Where we are root it runs as `postgres`, or else as
`nobody`; authentication is `trust`, and only the folder's owner and root reach the socket.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keeper

SUPERUSER = "postgres"
MISSING = "PostgreSQL's server is not installed; on Debian: apt-get install postgresql"

# By which `connections` knows the sessions that are ours.
_OURS = "greenroom-tests"

# Nothing here must outlive a crash of the machine. But what was committed must outlive
# stop("immediate"), so synchronous_commit stays on; it costs no more than a write.
_OPTIONS = {
    "listen_addresses": "",
    # initdb would take it from TZ, which Django sets.
    "timezone": "UTC",
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
}

_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class Unavailable(Exception):
    """PostgreSQL is not installed here."""


class PostgreSQL:
    """A running server; all its methods may be called from any thread."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self.binaries = binaries
        self.folder = folder
        self._keeper: subprocess.Popen[bytes] | None = None
        self._owner = _unprivileged()
        if self._owner is not None:
            os.chown(folder, self._owner.pw_uid, self._owner.pw_gid)
        self._initdb()

    def settings(self, name: str, **more: Any) -> dict[str, Any]:
        """An entry of Django's DATABASES, with all its keys; JSON can carry it."""
        from django.db.utils import DEFAULT_DB_ALIAS, ConnectionHandler

        entry = {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": name,
            "USER": SUPERUSER,
            "HOST": str(self.folder),
            **more,
        }
        return ConnectionHandler({DEFAULT_DB_ALIAS: entry}).settings[DEFAULT_DB_ALIAS]

    def create(self, name: str, **more: Any) -> dict[str, Any]:
        """Create an empty database; return its settings."""
        self.execute(f'CREATE DATABASE "{name}"')
        return self.settings(name, **more)

    def drop(self, name: str) -> None:
        """Drop a database if it exists, whoever is connected to it."""
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def execute(
        self, sql: str, db: str = "postgres", params: Sequence[Any] | None = None
    ) -> list[Any]:
        """Run a statement on a connection of its own; return its rows, as named tuples."""
        with self._connect(db) as connection:
            cursor = connection.execute(sql, params)
            return cursor.fetchall() if cursor.description else []

    def connections(self, db: str | None = None) -> list[Any]:
        """The rows of pg_stat_activity of clients other than this class, oldest first."""
        return self.execute(
            "SELECT pid, datname, application_name, state, query, backend_start, xact_start,"
            " query_start, state_change, wait_event_type, wait_event FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND application_name <> %s"
            " AND (datname = %s::text OR %s::text IS NULL) ORDER BY backend_start",
            params=(_OURS, db, db),
        )

    def stop(self, mode: str = "immediate") -> None:
        """End the server ("smart", "fast" or "immediate"); its data stays for `start`."""
        kept = self._keeper
        assert kept is not None, "the server does not run"
        pid = int((self._data / "postmaster.pid").read_text().split()[0])
        os.kill(pid, _SIGNALS[mode])
        kept.wait(keeper.TIMEOUT)
        self._end()

    def start(self) -> None:
        """Start the server on the same socket; returns when it accepts connections."""
        assert self._keeper is None, "the server runs already"
        command = [str(self.binaries / "postgres"), "-D", str(self._data)]
        command += ["-c", f"unix_socket_directories={self.folder}"]
        for name, value in _OPTIONS.items():
            command += ["-c", f"{name}={value}"]
        self._keeper = keeper.start(self.folder, command, self._log, self._owner)
        try:
            self._wait_ready(self._keeper)
        except BaseException:
            self._end()
            raise

    def log(self) -> str:
        """All that the server has logged."""
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        """End the server, whatever it does, and remove its folder."""
        self._end()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def _log(self) -> Path:
        return self.folder / "log"

    def _connect(self, db: str) -> Any:
        import psycopg
        from psycopg.rows import namedtuple_row

        return psycopg.connect(
            host=str(self.folder),
            user=SUPERUSER,
            dbname=db,
            autocommit=True,
            application_name=_OURS,
            row_factory=namedtuple_row,
        )

    def _initdb(self) -> None:
        options: dict[str, Any] = {}
        if self._owner is not None:
            options = {"user": self._owner.pw_uid, "group": self._owner.pw_gid, "extra_groups": []}
        command = [str(self.binaries / "initdb"), "-D", str(self._data), "-U", SUPERUSER]
        command += ["-A", "trust", "--no-sync", "--locale=C", "--encoding=UTF8"]
        ran = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            cwd=self.folder,
            **options,
        )
        if ran.returncode != 0:
            raise RuntimeError(f"initdb failed:\n{ran.stdout}")

    def _wait_ready(self, kept: subprocess.Popen[bytes]) -> None:
        import psycopg

        deadline = time.monotonic() + keeper.TIMEOUT
        while True:
            try:
                self._connect("postgres").close()
            except psycopg.OperationalError as exc:
                # No socket yet, or "the database system is starting up".
                if kept.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"PostgreSQL did not start: {exc}\n{self.log()}") from exc
                time.sleep(0.02)
            else:
                return

    def _end(self) -> None:
        kept, self._keeper = self._keeper, None
        if kept is not None:
            keeper.end(kept)


@contextlib.contextmanager
def server() -> Iterator[PostgreSQL]:
    """A new server for the block. Raises `Unavailable` where none is installed."""
    binaries = find()
    if binaries is None:
        raise Unavailable(MISSING)
    # In /tmp whatever TMPDIR says: the path of a socket must be short (107 bytes), and
    # PostgreSQL's user must be allowed to get there.
    folder = Path(tempfile.mkdtemp(prefix="greenroom-pg-", dir="/tmp"))
    try:
        pg = PostgreSQL(binaries, folder)
        try:
            pg.start()
            yield pg
        finally:
            pg.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def find() -> Path | None:
    """The folder of `initdb` and `postgres`, if this machine has one."""
    candidates: list[Path] = []
    if (pg_config := shutil.which("pg_config")) is not None:
        ran = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
        candidates.append(Path(ran.stdout.strip()))
    if (initdb := shutil.which("initdb")) is not None:
        candidates.append(Path(initdb).resolve().parent)
    debian = Path("/usr/lib/postgresql").glob("[0-9]*/bin")
    candidates += sorted(debian, key=lambda each: int(each.parent.name), reverse=True)
    for each in candidates:
        # pg_config may be that of the client's headers alone.
        if all(os.access(each / name, os.X_OK) for name in ("initdb", "postgres")):
            return each
    return None


def required() -> bool:
    """Whether tests that need PostgreSQL must fail without it, rather than be skipped."""
    return any(os.environ.get(name) for name in ("CI", "GREENROOM_REQUIRE_POSTGRESQL"))


def _unprivileged() -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise RuntimeError("PostgreSQL can't run as root, and there is no user postgres or nobody.")
