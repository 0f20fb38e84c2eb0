"""The server that the tests of the database run on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import ConnectionHandler

import postgresql
from postgresql import PostgreSQL

TESTS = Path(__file__).resolve().parent.parent


@pytest.fixture
def database(pg: PostgreSQL) -> Iterator[dict[str, Any]]:
    yield pg.create("fixture")
    pg.drop("fixture")


def connect(settings: dict[str, Any]) -> psycopg.Connection[Any]:
    return psycopg.connect(
        host=settings["HOST"], user=settings["USER"], dbname=settings["NAME"], autocommit=True
    )


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_settings_lead_to_the_database(database: dict[str, Any]) -> None:
    with connect(database) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == ("fixture",)
    django = ConnectionHandler({"default": database})
    with django["default"].cursor() as cursor:
        cursor.execute("SHOW fsync")
        assert cursor.fetchone() == ("off",)
    django.close_all()


def test_only_its_socket_leads_there(pg: PostgreSQL) -> None:
    assert pg.execute("SHOW listen_addresses") == [("",)]
    assert pg.execute("SHOW unix_socket_directories") == [(str(pg.folder),)]
    assert len(str(pg.folder / ".s.PGSQL.5432")) < 100
    assert pg.folder.stat().st_mode & 0o077 == 0


def test_rows_are_named(pg: PostgreSQL, database: dict[str, Any]) -> None:
    assert pg.execute("CREATE TABLE one (id int)", "fixture") == []
    assert pg.execute("INSERT INTO one VALUES (%s)", "fixture", [7]) == []
    [row] = pg.execute("SELECT id FROM one", "fixture")
    assert row.id == 7


def test_connections_are_those_of_others(pg: PostgreSQL, database: dict[str, Any]) -> None:
    assert pg.connections("fixture") == []
    with connect(database) as connection:
        connection.execute("SELECT 'look at me'")
        [row] = pg.connections("fixture")
        assert (row.state, row.query) == ("idle", "SELECT 'look at me'")
        assert row.pid == connection.info.backend_pid
        assert row in pg.connections()
    wait_until(lambda: pg.connections("fixture") == [])


@pytest.mark.parametrize("mode", ["immediate", "fast"])
def test_stop_and_start(pg: PostgreSQL, database: dict[str, Any], mode: str) -> None:
    pg.execute("CREATE TABLE kept (id int)", "fixture")
    with connect(database) as connection:
        pg.stop(mode)
        try:
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
            with pytest.raises(psycopg.OperationalError):
                connect(database)
        finally:
            pg.start()
    with connect(database) as connection:
        assert connection.execute("SELECT * FROM kept").fetchall() == []


def test_drop_does_not_ask_who_is_there(pg: PostgreSQL) -> None:
    with connect(pg.create("busy")) as connection:
        pg.drop("busy")
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    pg.drop("busy")


@pytest.mark.usefixtures("pg")
def test_it_ends_with_a_process_that_is_killed() -> None:
    code = """
import sys, time, postgresql
with postgresql.server() as pg:
    print(pg.folder, (pg.folder / "data/postmaster.pid").read_text().split()[0], flush=True)
    time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=TESTS, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        folder, pid = process.stdout.readline().split()
        assert Path(folder).exists()
        os.kill(int(pid), 0)
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not Path(folder).exists())
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_without_binaries_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "find", lambda: None)
    with pytest.raises(postgresql.Unavailable, match="apt-get install postgresql"):
        postgresql.server().__enter__()
