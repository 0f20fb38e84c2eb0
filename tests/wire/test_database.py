"""The database beneath real gunicorn processes: PostgreSQL, and SQLite in a file."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

import soak
from postgresql import PostgreSQL
from serving import Server, serve

HERE = Path(__file__).resolve().parent
SQLITE = "django.db.backends.sqlite3"

_numbers = iter(range(10**6))


@pytest.fixture(scope="module")
def _postgres_template(pg: PostgreSQL) -> Iterator[str]:
    """A database with tables and users, to be copied."""
    soak.prepare(soak.environment_of(pg.create("wire_template")))
    yield "wire_template"
    pg.drop("wire_template")


@pytest.fixture
def postgres(pg: PostgreSQL, _postgres_template: str) -> Iterator[dict[str, Any]]:
    """The entry of a database of PostgreSQL."""
    name = f"wire_{next(_numbers)}"
    pg.execute(f"CREATE DATABASE {name} TEMPLATE {_postgres_template}")
    try:
        yield pg.settings(name)
    finally:
        pg.drop(name)


@pytest.fixture(scope="module")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("wire") / "template.sqlite3"
    soak.prepare(soak.environment_of({"ENGINE": SQLITE, "NAME": str(file)}))
    return file


@pytest.fixture
def sqlite(tmp_path: Path, _sqlite_template: Path) -> dict[str, Any]:
    """The entry of a database of SQLite, whose transactions begin by writing."""
    return {
        "ENGINE": SQLITE,
        "NAME": shutil.copy(_sqlite_template, tmp_path / "site.sqlite3").as_posix(),
        "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20},
    }


@pytest.fixture(params=["postgres", "sqlite"])
def entry(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Both."""
    return dict(request.getfixturevalue(request.param))


def site(entry: dict[str, Any], **greenroom: Any) -> AbstractContextManager[Server]:
    """The site on a database that has its tables."""
    return serve(
        "orm_site.wsgi:application",
        threads=2,
        cwd=HERE,
        env=soak.environment_of(entry, **greenroom),
        extra_config="worker_connections = 2000\n",
    )


def numbers(server: Server) -> dict[str, Any]:
    return dict(httpx.get(f"{server.url}/numbers/").raise_for_status().json())


def faults_in(server: Server) -> list[str]:
    return [line for line in server.log().splitlines() if not soak.EXPECTED.match(line)]


async def get_all(
    server: Server, paths: list[str], apart: float = 0.0
) -> tuple[Tally[tuple[int, bytes]], float]:
    """Ask for all at once, each on a connection of its own; and how many seconds it took.

    `apart`: seconds between the beginning of one and of the next.
    """

    async def ask(client: soak.Client, path: str, wait: float) -> tuple[int, bytes]:
        await asyncio.sleep(wait)
        try:
            return await client.get(path)
        finally:
            client.hang_up()

    began = time.monotonic()
    answers = await asyncio.gather(
        *(
            ask(soak.Client(server.address, ""), path, apart * index)
            for index, path in enumerate(paths)
        )
    )
    return Tally(answers), time.monotonic() - began


# A thousand that wait.


@contextmanager
def sampled(pg: PostgreSQL, database: str) -> Iterator[list[list[str]]]:
    """The states of the connections that the server has, again and again."""
    samples: list[list[str]] = []
    over = threading.Event()

    def sample() -> None:
        while not over.wait(0.05):
            samples.append([row.state for row in pg.connections(database)])

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def test_a_thousand_requests_share_twenty_connections(
    pg: PostgreSQL, postgres: dict[str, Any], record_property: Callable[[str, object], None]
) -> None:
    with site(postgres) as server:
        with sampled(pg, postgres["NAME"]) as samples:
            answers, seconds = asyncio.run(get_all(server, ["/twice/1/"] * 1000))
        assert answers == {(200, b"8 8"): 1000}
        assert max(map(len, samples)) <= 20
        # Held while they wait, they would take 50 s.
        assert seconds < 30
        record_property("seconds", seconds)
        after = numbers(server)
        states = [row.state for row in pg.connections(postgres["NAME"])]
        assert states == ["idle"] * len(states)
        assert (after["pools"], after["lent"]) == ([len(states)], [0])
        assert faults_in(server) == []


# Many requests, many of which end early.


@pytest.mark.once
@pytest.mark.timeout(300)
def test_a_soak(pg: PostgreSQL) -> None:
    run = soak.Soak(pg, 2000, seed=next(_numbers))
    run.run()
    assert run.faults == []


# The server goes away.


class Answer(NamedTuple):
    """`status` 0: it broke off after its head."""

    began: float
    ended: float
    status: int
    path: str


@dataclass
class Load:
    """Clients that ask without a pause."""

    server: Server
    answers: list[Answer] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Load:
        paths = ["/query/", "/query-plain/", "/write/{}/", "/take/{}/", "/stream/"]
        self._threads = [
            threading.Thread(target=self._ask, args=(paths[index % len(paths)],))
            for index in range(10)
        ]
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        for each in self._threads:
            each.join()

    def _ask(self, path: str) -> None:
        with httpx.Client(base_url=self.server.url, timeout=60) as client:
            while not self._over.is_set():
                began = time.monotonic()
                try:
                    status = client.get(path.format(f"load-{next(_numbers)}")).status_code
                except httpx.RemoteProtocolError:
                    # A stream, after its head.
                    status = 0
                self.answers.append(Answer(began, time.monotonic(), status, path))
                time.sleep(0.01)

    def wait(self, count: int = 40) -> None:
        """Wait for more answers."""
        before = len(self.answers)
        deadline = time.monotonic() + 30
        while len(self.answers) < before + count:
            assert time.monotonic() < deadline, "requests hang"
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("place", "checks", "mode"),
    [
        ("auto", True, "immediate"),
        ("auto", False, "fast"),
        ("auto", False, "immediate"),
        ("thread", True, "fast"),
        ("thread", False, "immediate"),
    ],
)
def test_the_server_stops_and_starts_again(
    pg: PostgreSQL, postgres: dict[str, Any], mode: str, checks: bool, place: str
) -> None:
    postgres |= {"CONN_HEALTH_CHECKS": checks, "CONN_MAX_AGE": 600}
    with site(postgres, PLACEMENT=place) as server:
        with Load(server) as load:
            load.wait()
            going = time.monotonic()
            try:
                pg.stop(mode)
                down = time.monotonic()
                load.wait()
                up = time.monotonic()
            finally:
                pg.start()
            started = time.monotonic()
            load.wait(80)
        before = [each for each in load.answers if each.ended < going]
        while_down = [each for each in load.answers if each.began > down and each.ended < up]
        after = [each for each in load.answers if each.began > started]
        assert {each.status for each in before} <= {200}
        assert {each.status for each in while_down} <= {500, 0}
        assert while_down
        assert max(each.ended - each.began for each in load.answers) < 15
        assert {each.status for each in after} <= {200, 500}
        failed = [each for each in after if each.status != 200]
        # A thread has a connection of its own: unchecked, the first request to come across a
        # stale one gets an error, as under every WSGI server. The pool looks at the socket.
        assert len(failed) <= (0 if checks else numbers(server)["threads"])
        if place == "auto":
            assert {each.path for each in failed} <= {"/query-plain/"}
        assert len(server.workers()) == 1
        asyncio.run(soak.settled(lambda: soak.numbers(server.address)))
        states = [row.state for row in pg.connections(postgres["NAME"])]
        assert set(states) <= {"idle"}


# SQLite has one writer at a time.


def pause_while_writing(
    entry: dict[str, Any], server: Server, paths: list[str], answer: bytes
) -> float:
    """Ask for all while another process writes; returns how long the loop stood still."""
    httpx.get(f"{server.url}/pause/")

    async def ask() -> Tally[tuple[int, bytes]]:
        with closing(sqlite3.connect(entry["NAME"], isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            asking = asyncio.create_task(get_all(server, paths, apart=0.005))
            await asyncio.sleep(0.4)
            other.execute("ROLLBACK")
            return (await asking)[0]

    assert asyncio.run(ask()) == {(200, answer): len(paths)}
    return float(httpx.get(f"{server.url}/pause/").json()["longest"])


def counted(entry: dict[str, Any]) -> dict[str, int]:
    """The counters of a file of SQLite."""
    with closing(sqlite3.connect(entry["NAME"])) as connection:
        return dict(connection.execute("SELECT name, value FROM orm_site_counter"))


@pytest.mark.alone
@pytest.mark.parametrize(("kind", "answer"), [("take", b"taken"), ("increase", b"increased")])
def test_writers_on_sqlite_take_turns(sqlite: dict[str, Any], kind: str, answer: bytes) -> None:
    """Fifty that read and then write in one transaction, or write in autocommit.

    First all are coroutine views; then every other one is a plain view, on a thread.
    """
    pauses = {"coroutines": 1.0, "with threads": 1.0}
    rounds = 0
    with site(sqlite) as server:
        for where in pauses:
            # The best of three: the machine may be busy too.
            for number in range(3):
                paths = [f"/{kind}/{where[0]}{number}-{index}/" for index in range(50)]
                if where == "with threads":
                    paths[::2] = [path.replace(kind, f"{kind}-plain") for path in paths[::2]]
                pause = pause_while_writing(sqlite, server, paths, answer)
                pauses[where] = min(pause, pauses[where])
                rounds += 1
                if pause < 0.05:
                    break
        assert not any(numbers(server)["lent"])
        assert faults_in(server) == []
    assert sum(counted(sqlite).values()) == 50 * rounds
    assert max(pauses.values()) < 0.05


# The admin, and what a coroutine view has of the same middlewares.


class Browser:
    """A client that fills in forms as they come, with their token."""

    def __init__(self, server: Server) -> None:
        self.client = httpx.Client(base_url=server.url, follow_redirects=True, timeout=30)

    def get(self, path: str) -> str:
        return self.client.get(path).raise_for_status().text

    def post(self, path: str, **data: str) -> str:
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', self.get(path))
        assert token is not None
        filled = {"csrfmiddlewaretoken": token[1], **data}
        return self.client.post(path, data=filled).raise_for_status().text

    def log_in(self) -> str:
        return self.post("/admin/login/?next=/admin/", username="admin", password=soak.PASSWORD)


@pytest.fixture
def browser(entry: dict[str, Any]) -> Iterator[Browser]:
    with site(entry) as server:
        server.wait_for(r"coroutine views: \d+ on the loop; ")
        browser = Browser(server)
        with browser.client:
            yield browser
        assert [line for line in faults_in(server) if "Forbidden" not in line] == []


def test_the_admin(browser: Browser) -> None:
    assert browser.client.post("/admin/login/", data={"username": "admin"}).status_code == 403
    assert "Please enter the correct" in browser.post(
        "/admin/login/?next=/admin/", username="admin", password="wrong"
    )
    assert "Site administration" in browser.log_in()
    added = browser.post("/admin/orm_site/counter/add/", name="new", value="7")
    assert "was added successfully" in added
    number = re.search(r"/admin/orm_site/counter/(\d+)/change/\">new<", added)
    assert number is not None
    page = f"/admin/orm_site/counter/{number[1]}"
    entry = browser.post("/admin/orm_site/entry/add/", key="of new", counter=number[1])
    assert "was added successfully" in entry
    changed = browser.post(f"{page}/change/", name="newer", value="8")
    assert "was changed successfully" in changed
    # A message is told once.
    assert "was changed successfully" not in browser.get("/admin/orm_site/counter/")
    history = browser.get(f"{page}/history/")
    assert "Added." in history
    assert "Changed Name and Value." in history
    # With what refers to it.
    assert "of new" in browser.get(f"{page}/delete/")
    assert "was deleted successfully" in browser.post(f"{page}/delete/", post="yes")
    assert "of new" not in browser.get("/admin/orm_site/entry/")
    assert "newer" in browser.get("/admin/")
    browser.post("/admin/password_change/", old_password="wrong")
    browser.post("/profile/", note="before")
    token = browser.client.cookies["csrftoken"]
    out = browser.client.post("/admin/logout/", data={"csrfmiddlewaretoken": token})
    assert "Logged out" in out.text
    assert "Log in" in browser.get("/admin/")


def test_a_coroutine_view_has_the_session_the_user_and_messages(browser: Browser) -> None:
    assert "Log in" in browser.get("/profile/")
    browser.log_in()
    assert "user admin, again admin, note  by" in browser.get("/profile/")
    assert browser.client.post("/profile/", data={"note": "forged"}).status_code == 403
    kept = browser.post("/profile/", note="from the loop")
    assert "note from the loop by admin" in kept
    assert "message success Kept: from the loop" in kept
    again = browser.get("/profile/")
    assert "note from the loop by admin" in again
    assert "Kept:" not in again
    # One tells what the other left: the admin, on a thread, and the view, on the loop.
    browser.client.post(
        "/profile/",
        data={"note": "told there", "csrfmiddlewaretoken": browser.client.cookies["csrftoken"]},
        follow_redirects=False,
    )
    assert "Kept: told there" in browser.get("/admin/")


def test_the_command_says_that_coroutine_views_are_on_the_loop(entry: dict[str, Any]) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "django", "greenroom", "--json"],
        env=soak.environment_of(entry),
        cwd=HERE,
        stdout=subprocess.PIPE,
        check=True,
    )
    said = json.loads(ran.stdout)
    assert said["held_on_threads_by"] == []
    places = {view["placement"] for view in said["views"] if view["coroutine"]}
    assert places == {"loop"}
    assert {view["placement"] for view in said["views"] if not view["coroutine"]} == {"thread"}
