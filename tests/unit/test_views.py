"""Every kind of view, in both placements."""

from __future__ import annotations

import json

import pytest

from driver import Site
from project import views


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/hello/", "Hello world!"),
        ("/plain/", "plain"),
        ("/generator/", "generator"),
        ("/future/", "future"),
        ("/class/", "class"),
        ("/partial/", "partial"),
        ("/callable/", "callable"),
        ("/passed-through/", "Hello world!"),
        ("/old-decorator/", "Hello world!"),
        ("/exempt/", "Hello world!"),
        ("/async-to-sync/", "inner"),
        ("/plain-async-to-sync/", "inner"),
        ("/template/", "view rendered on thread"),
    ],
)
def test_a_view_answers(site: Site, path: str, text: str) -> None:
    answer = site.get(path)
    assert (answer.status, answer.text) == ("200 OK", text)


def test_login_required_passes_the_coroutine_through(site: Site) -> None:
    site.use(
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    )
    answer = site.get("/login/")
    assert (answer.code, answer.header("Location")) == (302, "/in/?next=/login/")


def test_placement_of_the_chain(site: Site) -> None:
    site.use("project.middleware.Place")
    answer = json.loads(site.get("/where/").text)
    assert answer == {"chain": site.placement, "view": "loop"}
    assert site.get("/place/").text == "thread"
    assert site.get("/on-thread/").text == "thread"


def test_streams_item_by_item(site: Site) -> None:
    for path, made in (("/stream/", "make {}"), ("/sync-stream/", "make {} on thread")):
        views.events.clear()
        answer = site.get(path)
        assert answer.parts == [b"0,", b"1,", b"2,"]
        assert views.events == [*(made.format(index) for index in range(3)), "stream closed"]


def test_file(site: Site) -> None:
    answer = site.get("/file/")
    assert answer.body == b"file content"
    assert answer.header("Content-Length") == "12"


def test_upload(site: Site) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="a"; filename="a.txt"\r\n'
        b"Content-Type: text/plain\r\n\r\nletter\r\n--x--\r\n"
    )
    answer = site.get(
        "/upload/", method="POST", body=body, CONTENT_TYPE="multipart/form-data; boundary=x"
    )
    assert json.loads(answer.text) == {"a": "letter"}


def test_thread_sensitive_calls_in_order(site: Site) -> None:
    answer = json.loads(site.get("/sync-to-async/").text)
    assert answer["order"] == [f"{what} {i}" for i in range(4) for what in ("begin", "end")]
    if site.placement == "thread":
        # On the loop they run on whichever thread is free.
        assert answer["threads"] == 1


def test_keep_on_disconnect(site: Site) -> None:
    assert site.get("/keep/").text == "False"
