"""Apps that many projects have, around coroutine views: docs/tools.md says what comes of it.

The worker that serves most of these requests runs beneath a detector of what blocks its loop
(`tools_site.detector`), which has to find nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest

from postgresql import PostgreSQL
from serving import Server, serve

pytestmark = pytest.mark.once

HERE = Path(__file__).resolve().parent
STATIC = HERE / "tools_site" / "static" / "tools_site"
DETECTOR = """
def post_worker_init(worker):
    from tools_site import detector
    detector.activate()
"""
USERS = [f"user{index}" for index in range(6)]
ORIGIN = {"Origin": "https://shop.example"}


def environment(database: dict[str, Any], **more: str) -> dict[str, str]:
    given = {"DJANGO_SETTINGS_MODULE": "tools_site.settings", **more}
    return {**given, "SITE_DATABASES": json.dumps(database)}


def python(database: dict[str, Any], *arguments: str, **more: str) -> str:
    """The output of a Python in the project."""
    path = os.pathsep.join((str(HERE), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=HERE,
        env={**os.environ, "PYTHONPATH": path, **environment(database, **more)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def site(
    database: dict[str, Any], *, threads: int = 1, config: str = "", **more: str
) -> AbstractContextManager[Server]:
    return serve(
        "tools_site.wsgi:application",
        threads=threads,
        cwd=HERE,
        env=environment(database, **more),
        extra_config=config,
    )


@dataclass
class Prepared:
    database: dict[str, Any]
    sessions: list[str]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A database with users, and a session for each of them."""
    database = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(tmp_path_factory.mktemp("tools") / "site.sqlite3"),
        "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20},
    }
    return Prepared(database, python(database, "-m", "tools_site.prepare").split())


@dataclass
class Watched:
    """A server, and how often its loop was blocked, as is known."""

    server: Server
    known: int = 0

    @property
    def url(self) -> str:
        return self.server.url

    def check(self) -> None:
        found = re.findall(
            r"^BLOCKED by .*?^BLOCKED: end", self.server.log(), re.MULTILINE | re.DOTALL
        )
        new, self.known = found[self.known :], len(found)
        assert not new, "\n".join(new)


@pytest.fixture(scope="module")
def _watched(prepared: Prepared) -> Iterator[Watched]:
    with site(prepared.database, config=DETECTOR) as server:
        watched = Watched(server)
        yield watched
        server.stop()
        watched.check()


@pytest.fixture
def watched(_watched: Watched) -> Iterator[Watched]:
    """The site on one loop and one thread, beneath the detector."""
    yield _watched
    _watched.check()


@pytest.fixture
def client(watched: Watched) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=watched.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def toolbar(prepared: Prepared) -> Iterator[Server]:
    """The site in development: the toolbar holds all of it on threads."""
    with site(prepared.database, SITE_TOOLBAR="1") as server:
        yield server


def together(url: str, *requests: tuple[str, dict[str, Any]]) -> list[httpx.Response]:
    """The answers to requests at once: paths, and what httpx is given."""

    async def all_of_them() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
            return await asyncio.gather(*(client.get(path, **more) for path, more in requests))

    return asyncio.run(all_of_them())


# Where it runs.


@pytest.fixture(scope="module")
def judged(prepared: Prepared) -> dict[str, Any]:
    """What `manage.py greenroom` says, and what would hold views on threads."""
    return dict(json.loads(python(prepared.database, "-m", "django", "judged")))


def test_where_it_runs(judged: dict[str, Any]) -> None:
    said = judged["manage.py greenroom"]
    assert said["held_on_threads_by"] == []
    plain = {view["route"] for view in said["views"] if not view["coroutine"]}
    assert {route.partition("/")[0] for route in plain} == {"accounts", "api", "schema"}
    held = {view["route"]: view["reason"] for view in said["views"] if view["coroutine"]}
    assert held.pop("guarded/") == "the view is a @sync_view"
    assert set(held.values()) == {""}
    assert "api/^books/$" in held


def test_what_holds_views_on_threads(judged: dict[str, Any]) -> None:
    held = dict(judged["held"])
    for case in ("as they are", "ACCOUNT_ADAPTER", "ACCOUNT_ADAPTER named"):
        assert held.pop(case) == [], case
    here = "tools_site.management.commands.judged"
    toolbar = "the middleware debug_toolbar.middleware.DebugToolbarMiddleware"
    allauth = "the middleware allauth.account.middleware.AccountMiddleware"
    cors = "the middleware corsheaders.middleware.CorsMiddleware"
    unknown = "not known to be loop-safe"
    assert {case: "; ".join(reasons) for case, reasons in held.items()} == {
        "DEBUG": f"{toolbar} shows its panels, since DEBUG is on",
        "DEBUG_TOOLBAR_CONFIG": f"{toolbar} asks {here}.receiver whether it shows its panels",
        "ACCOUNT_ADAPTER get_phone": f"{allauth} calls {here}.Telephones, which is {unknown}",
        "a subclass": f"the middleware {here}.Own is {unknown} (mark it @loop_safe if it is)",
        "check_request_enabled": f"{cors} calls {here}.receiver, which is {unknown}",
    }


def test_more_of_them_than_threads(watched: Watched) -> None:
    """Beneath all their middlewares, with one thread, thirty views wait for each other."""
    answers = together(watched.url, *[("/together/many/30/?mine=it", {})] * 30)
    assert {answer.json()["place"] for answer in answers} == {"loop"}


@pytest.mark.parametrize("how", ["in a greenlet", "in a task", "by a file"])
def test_the_detector_finds_what_blocks(watched: Watched, client: httpx.Client, how: str) -> None:
    watched.known += 1
    assert client.get(f"/blocks/{how}/").status_code == 500
    assert client.get("/blocks/on a thread/").status_code == 200
    # What the server wrote may be read a moment after its answer.
    said = watched.server.wait_for(r"^BLOCKED by ((?s:.*?))^BLOCKED: end", count=watched.known)
    stack = said[1]
    assert ("time.sleep" if "file" not in how else "builtins.open") in stack.partition("\n")[0]
    assert "tools_site/urls.py" in stack


# WhiteNoise.


@pytest.mark.parametrize("autorefresh", [False, True])
def test_whitenoise(watched: Watched, prepared: Prepared, autorefresh: bool) -> None:
    if autorefresh:
        with site(prepared.database, config=DETECTOR, SITE_AUTOREFRESH="1") as server:
            check_files(server.url)
            Watched(server).check()
    else:
        check_files(watched.url)


def check_files(url: str) -> None:
    digits = (STATIC / "digits.txt").read_bytes()
    with httpx.Client(base_url=f"{url}/static/tools_site/", timeout=30) as client:
        whole = client.get("digits.txt")
        assert (whole.status_code, whole.content) == (200, digits)
        assert whole.headers["content-type"] == 'text/plain; charset="utf-8"'
        assert whole.headers["cache-control"] == "max-age=60, public"
        head = client.head("digits.txt")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(digits))
        for name, value in (
            ("If-None-Match", whole.headers["etag"]),
            ("If-Modified-Since", whole.headers["last-modified"]),
        ):
            unchanged = client.get("digits.txt", headers={name: value})
            assert (unchanged.status_code, unchanged.content) == (304, b"")
        part = client.get("digits.txt", headers={"Range": "bytes=5-24"})
        assert (part.status_code, part.content) == (206, digits[5:25])
        assert part.headers["content-range"] == f"bytes 5-24/{len(digits)}"
        beyond = client.get("digits.txt", headers={"Range": f"bytes={len(digits)}-"})
        assert (beyond.status_code, beyond.content) == (416, b"")
        assert client.post("digits.txt").status_code == 405
        assert client.get("absent.txt").status_code == 404
        assert client.get("site.css").headers["content-type"].startswith("text/css")
    # Its path is that of a coroutine view too, so that the middleware is on the loop.
    with httpx.Client(base_url=f"{url}/app/", timeout=30) as client:
        assert client.get("file.txt").text == "a file beneath the app\n"
        assert client.get("file.txt", headers={"Range": "bytes=2-5"}).text == "file"
        assert client.get("other.txt").text == "the app"


# django-cors-headers.


def test_cors(client: httpx.Client) -> None:
    preflight = {**ORIGIN, "Access-Control-Request-Method": "GET"}
    answer = client.options("/whoami/", headers=preflight)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["access-control-allow-origin"] == ORIGIN["Origin"]
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert "GET" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-max-age"] == "86400"
    simple = client.get("/whoami/", headers=ORIGIN)
    assert simple.json()["place"] == "loop"
    assert simple.headers["access-control-allow-origin"] == ORIGIN["Origin"]
    assert "origin" in simple.headers["vary"]
    other = client.get("/whoami/", headers={"Origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers
    # CORS_URLS_REGEX says where.
    assert "access-control-allow-origin" not in client.get("/hello/", headers=ORIGIN).headers
    # DRF's answers to who is not let in have them too.
    refused = client.get("/api/books/", headers=ORIGIN)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == ORIGIN["Origin"]


# django-allauth.


def post(client: httpx.Client, path: str, **fields: str) -> httpx.Response:
    """A form, as a browser sends it."""
    form = client.get(path)
    found = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', form.text)
    assert found is not None, form.text
    return client.post(path, data={**fields, "csrfmiddlewaretoken": found[1]})


def names(client: httpx.Client) -> list[str]:
    return list(client.get("/whoami/").json()["names"])


def test_allauth_sign_up_log_out_and_log_in(client: httpx.Client) -> None:
    assert names(client) == ["", ""]
    answer = post(client, "/accounts/signup/", username="newcomer", password1="long enough!")
    assert (answer.status_code, answer.headers["location"]) == (302, "/whoami/")
    seen = client.get("/whoami/").json()
    assert seen == {
        "names": ["newcomer"] * 2,
        "in_context": True,
        "emails": [],
        "place": "loop",
    }
    assert client.get("/accounts/login/").headers["location"] == "/whoami/"
    assert post(client, "/accounts/logout/").status_code == 302
    assert names(client) == ["", ""]
    wrong = post(client, "/accounts/login/", login="newcomer", password="wrong")
    assert wrong.status_code == 200
    assert "not correct" in unescape(wrong.text)
    inactive = post(client, "/accounts/login/", login="inactive", password="secret")
    assert inactive.headers["location"] == "/accounts/inactive/"
    assert names(client) == ["", ""]
    right = post(client, "/accounts/login/", login="newcomer", password="long enough!")
    assert right.headers["location"] == "/whoami/"
    assert names(client) == ["newcomer"] * 2
    # Its decorator, above @sync_view.
    again = client.get("/guarded/").headers["location"]
    assert again == "/accounts/reauthenticate/?next=%2Fguarded%2F"
    assert post(client, again, password="long enough!").headers["location"] == "/guarded/"
    assert client.get("/guarded/").json() == {"name": "newcomer", "place": "thread"}


def test_allauth_its_middleware(client: httpx.Client, prepared: Prepared) -> None:
    assert client.get("/raises/immediate/").text == "at once"
    to = "/?next=%2Fraises%2Fagain%2F"
    assert client.get("/raises/again/").headers["location"] == f"/accounts/login{to}"
    # A path that its URLs are below, and which is no view.
    assert client.get("/accounts/").headers["location"] == "/accounts/login/"
    assert client.get("/nowhere/").status_code == 404
    client.cookies["sessionid"] = prepared.sessions[0]
    assert client.get("/raises/again/").headers["location"] == f"/accounts/reauthenticate{to}"
    assert client.get("/accounts/").headers["location"] == "/accounts/email/"


def check_nobody_is_another(url: str, sessions: list[str], place: str) -> None:
    requests = [
        (f"/together/{place}/6/?mine={name}", {"headers": {"Cookie": f"sessionid={key}"}})
        for name, key in zip(USERS, sessions, strict=True)
    ]
    for name, answer in zip(USERS, together(url, *requests), strict=True):
        said = answer.json()
        assert said["place"] == place
        assert len(said["seen"]) == 3
        for first, second, key, mine in said["seen"]:
            assert [first, second, mine] == [name] * 3
            assert key == said["seen"][0][2]


def test_allauth_nobody_is_another(watched: Watched, prepared: Prepared) -> None:
    check_nobody_is_another(watched.url, prepared.sessions, "loop")


def test_allauth_log_ins_do_not_mix(watched: Watched) -> None:
    """Its backend keeps a user who may not log in until all backends were asked."""

    async def both() -> list[Any]:
        async with httpx.AsyncClient(base_url=watched.url, timeout=60) as client:
            # It meets the other, who comes later, is kept meanwhile, and ends last.
            wrong = asyncio.create_task(
                client.get("/authenticates/user1/?password=wrong&meet=2&wait=0"),
            )
            await asyncio.sleep(0.3)
            right = await client.get(
                "/authenticates/inactive/?password=secret&meet=2&wait=0.3",
            )
            return [(await wrong).json(), right.json()]

    wrong, right = asyncio.run(both())
    assert wrong == {"name": None, "place": "loop"}
    assert right == {"name": "inactive", "place": "loop"}


# REST framework: simplejwt, django-filter, drf-spectacular.


def test_jwt(client: httpx.Client) -> None:
    assert client.get("/api/books/me/").status_code == 401
    refused = client.post("/api/token/", json={"username": "user1", "password": "wrong"})
    assert refused.status_code == 401
    pair = client.post("/api/token/", json={"username": "user1", "password": "secret"}).json()
    for access in (
        pair["access"],
        client.post("/api/token/refresh/", json={"refresh": pair["refresh"]}).json()["access"],
    ):
        client.headers["Authorization"] = f"Bearer {access}"
        assert client.get("/api/books/me/").json() == {"name": "user1", "place": "loop"}
        assert client.get("/api/plain/books/me/").json() == {"name": "user1", "place": "thread"}
    for bad in (pair["refresh"], f"{pair['access']}x", "x.y.z"):
        client.headers["Authorization"] = f"Bearer {bad}"
        answer = client.get("/api/books/me/")
        assert (answer.status_code, answer.json()["code"]) == (401, "token_not_valid")


def test_filters(client: httpx.Client) -> None:
    pair = client.post("/api/token/", json={"username": "user2", "password": "secret"}).json()
    client.headers["Authorization"] = f"Bearer {pair['access']}"
    for query, years in (
        ("year=1993", [1993]),
        ("year__gte=1997&year__lt=1999", [1997, 1998]),
        ("title__icontains=K%201995", [1995]),
    ):
        found, plain = (client.get(f"/api/{way}books/?{query}") for way in ("", "plain/"))
        assert [book["year"] for book in found.json()] == years
        assert found.json() == plain.json()
    wrong, plain = (client.get(f"/api/{way}books/?year=x") for way in ("", "plain/"))
    assert wrong.status_code == 400
    assert wrong.json() == plain.json() == {"year": ["Enter a number."]}
    made = client.post("/api/books/", json={"title": "new", "year": 2001})
    assert made.status_code == 201
    assert client.get(f"/api/books/{made.json()['id']}/").json() == made.json()
    assert client.get("/api/books/0/").status_code == 404


def test_the_schema_of_coroutines_is_that_of_plain_views(client: httpx.Client) -> None:
    schema, plain = (
        client.get(f"/schema/{kind}/?format=json").json() for kind in ("async", "plain")
    )
    assert schema == plain
    listed = schema["paths"]["/api/books/"]["get"]
    assert {each["name"] for each in listed["parameters"]} == {
        "title__icontains",
        "year",
        "year__gte",
        "year__lt",
    }
    assert listed["security"] == [{"jwtAuth": []}]
    assert listed["description"] == "All books, filtered."


# django-debug-toolbar.


def panel(server: Server, answer: httpx.Response, name: str) -> str:
    """What a panel of the toolbar shows of a request."""
    query = {"request_id": answer.headers["djdt-request-id"], "panel_id": name}
    shown = httpx.get(f"{server.url}/__debug__/render_panel/", params=query, timeout=30)
    return unescape(re.sub(r"<[^>]*>", "", shown.json()["content"]))


def books_in(text: str) -> set[str]:
    """The years of the books that are named in it, or looked for."""
    return set(re.findall(r"\b(?:book|key|year\" =) (\d{4})\b", text))


def test_the_toolbar(toolbar: Server) -> None:
    page = httpx.get(f"{toolbar.url}/page/1991/", timeout=30)
    assert page.status_code == 200
    assert "<p>book 1991: 1</p>" in page.text
    assert 'id="djDebug"' in page.text
    assert page.headers["content-length"] == str(len(page.content))
    queries = panel(toolbar, page, "SQLPanel")
    # The plain query, and those of tasks.
    assert "3 queries" in queries
    assert queries.count("tools_site/urls.py in page") == 1
    assert books_in(queries) == {"1991"}
    assert panel(toolbar, page, "CachePanel").count("'key 1991'") == 2
    # What is no page has none, and is in the history.
    other = httpx.get(f"{toolbar.url}/together/alone/1/?mine=it", timeout=30)
    assert other.json()["place"] == "thread"
    assert "djDebug" not in other.text
    history = panel(toolbar, other, "HistoryPanel")
    assert "/page/1991/" in history
    assert "/together/alone/1/" in history
    assert "tools_site.urls.together" in panel(toolbar, other, "RequestPanel")


def test_the_toolbar_shows_each_request_its_own(toolbar: Server) -> None:
    years = [str(year) for year in range(1990, 1998)]
    for path, panels in (
        ("page", ("SQLPanel", "CachePanel")),
        ("rendered", ("SQLPanel", "TasksPanel", "TemplatesPanel")),
    ):
        requests = [(f"/{path}/{year}/?count={len(years)}", {}) for year in years]
        answers = together(toolbar.url, *requests)
        for year, answer in zip(years, answers, strict=True):
            assert answer.status_code == 200
            assert f"<p>book {year}" in answer.text
            for name in panels:
                assert books_in(panel(toolbar, answer, name)) == {year}, (path, name)


def test_the_toolbar_nobody_is_another(toolbar: Server, prepared: Prepared) -> None:
    check_nobody_is_another(toolbar.url, prepared.sessions, "thread")


def test_the_toolbar_profiles_what_is_on_the_thread(toolbar: Server) -> None:
    profiled = {"Cookie": "djdtProfilingPanel=on"}
    page = httpx.get(f"{toolbar.url}/page/1992/", headers=profiled, timeout=30)
    profile = panel(toolbar, page, "ProfilingPanel")
    assert "/corsheaders/middleware.py" in profile
    assert "tools_site/urls.py" not in profile


def test_the_toolbar_on_postgresql(pg: PostgreSQL) -> None:
    database = pg.create("wire_tools")
    try:
        python(database, "-m", "tools_site.prepare", "books")
        with site(database, SITE_TOOLBAR="1") as server:
            answers = together(
                server.url, *[(f"/page/{year}/?count=3", {}) for year in (1991, 1992, 1993)]
            )
            for year, answer in zip((1991, 1992, 1993), answers, strict=True):
                assert answer.status_code == 200, answer.text
                queries = panel(server, answer, "SQLPanel")
                assert "3 queries" in queries
                assert books_in(queries) == {str(year)}
    finally:
        pg.drop("wire_tools")
