"""Loop or thread, and why."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.management import call_command
from django.core.signals import request_finished
from django.test import override_settings
from django.views.decorators.csrf import csrf_exempt

from driver import Site
from greenroom import integrations, loop_safe, on_thread
from greenroom.placement import DJANGO, Known, why_unsafe
from project import middleware

SEVEN = (
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
)
COOKIES = "django.contrib.sessions.backends.signed_cookies"


def reasons(*paths: str, **settings: Any) -> list[str]:
    with Site("auto", middleware=paths, **settings) as site:
        return list(site.app.handler.judge.surroundings())


def test_without_middleware_nothing_holds_a_view() -> None:
    assert reasons() == []


def test_nothing_holds_a_view_beneath_the_default_seven() -> None:
    assert reasons(*SEVEN) == []


def test_a_database_that_cannot_wait_on_the_loop_holds_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from django.db import connections

    monkeypatch.setitem(connections.settings["default"], "NAME", ":memory:")
    assert reasons() == ["the database 'default' is in memory, where connections don't share it"]
    monkeypatch.setitem(connections.settings["default"], "ENGINE", "a.b")
    monkeypatch.setattr("greenroom.db.borrow.load_backend", lambda name: BaseBackend)
    assert reasons() == [
        "the database 'default' has the engine a.b, which can't wait on the loop",
    ]


class BaseBackend:
    DatabaseWrapper = object


def test_signed_cookies_are_no_database() -> None:
    paths = [path for path in SEVEN if "auth" not in path]
    assert reasons(*paths, SESSION_ENGINE=COOKIES) == []


@pytest.mark.parametrize(
    ("path", "settings", "reason"),
    [
        (
            "django.middleware.csrf.CsrfViewMiddleware",
            {"CSRF_FAILURE_VIEW": "json.dumps"},
            "calls json.dumps, which is not known",
        ),
        (
            "django.contrib.messages.middleware.MessageMiddleware",
            {"MESSAGE_STORAGE": "project.storage.Own"},
            "uses the storage project.storage.Own",
        ),
        (
            "django.middleware.cache.CacheMiddleware",
            {
                "CACHES": {
                    "default": {
                        "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
                        "LOCATION": "/nowhere",
                        "KEY_FUNCTION": "project.storage.key",
                    }
                }
            },
            "calls project.storage.key, which is not known",
        ),
    ],
)
def test_what_a_known_middleware_calls_is_judged(
    path: str, settings: dict[str, Any], reason: str
) -> None:
    assert reasons(path, **settings)[0].endswith(reason) or reason in reasons(path, **settings)[0]
    assert reasons(path) == []


def test_unknown_until_said() -> None:
    path = "project.middleware.function"
    unknown = {"GREENROOM": {"LOOP_SAFE": []}}
    assert "is not known to be loop-safe" in reasons(path, **unknown)[0]
    assert reasons(path, GREENROOM={"LOOP_SAFE": ["project.middleware.func*"]}) == []


def test_a_mark_is_not_inherited() -> None:
    @loop_safe
    class Marked:
        pass

    class Inherits(Marked):
        pass

    assert why_unsafe(Marked) is None
    assert why_unsafe(Inherits) is not None


def test_a_subclass_of_known_code_is_unknown() -> None:
    from django.middleware.common import CommonMiddleware

    class Own(CommonMiddleware):
        pass

    assert why_unsafe(CommonMiddleware) is None
    assert why_unsafe(Own) is not None


def test_only_coroutines_run_on_the_loop_anyway() -> None:
    assert reasons("project.middleware.Coroutine", GREENROOM={"LOOP_SAFE": []}) == []


def test_receivers_of_the_request_signals() -> None:
    def receiver(**kwargs: Any) -> None:
        pass

    with Site("auto") as site:
        judge = site.app.handler.judge
        assert judge.surroundings() == []
        request_finished.connect(receiver)
        try:
            assert "of request_finished is not known" in judge.surroundings()[0]
        finally:
            request_finished.disconnect(receiver)
        assert judge.surroundings() == []


def test_a_path_converter_of_the_project() -> None:
    with Site("auto", ROOT_URLCONF="project.urls_converter") as site:
        assert site.app.handler.judge.surroundings() == []
        assert site.get("/word/hello/").text == "hello True"
    with Site("auto", ROOT_URLCONF="project.urls_converter", GREENROOM={"LOOP_SAFE": []}) as site:
        assert "project.urls_converter.Word" in site.app.handler.judge.surroundings()[0]
        assert site.get("/word/hello/").text == "hello False"


def test_every_name_in_the_tables_exists() -> None:
    import django
    from django.utils.module_loading import import_string

    absent = {
        name
        for name in DJANGO
        # New in Django 6.0.
        if not (django.VERSION < (6, 0) and ".csp." in name) and not _found(import_string, name)
    }
    assert absent == set()


def _found(import_string: Any, name: str) -> bool:
    try:
        return bool(import_string(name))
    except ImportError:
        return False
    except RuntimeError:
        # A model's app is not installed here.
        return True


def test_versions_of_third_party_code() -> None:
    import django

    version = django.get_version()
    assert Known("Django", "4.0", "99.0").why_unsafe() is None
    assert f"{version} is installed" in str(Known("Django", "99.0", "100.0").why_unsafe())
    assert "no version is installed" in str(Known("no-such-thing", "1.0", "2.0").why_unsafe())
    assert Known("Django", "4.0", "99.0", lambda: "reads").why_unsafe() == "reads"


def test_a_check_reports_an_unread_version(monkeypatch: pytest.MonkeyPatch) -> None:
    from greenroom import placement

    path = "project.middleware.function"
    known = Known("Django", "99.0", "100.0")
    monkeypatch.setitem(placement.OTHERS, "project.middleware.function", known)
    with override_settings(MIDDLEWARE=[path], GREENROOM={}):
        (message,) = [message for message in run_checks() if message.id == "greenroom.W001"]
    assert "is installed, and was read from 99.0 to below 100.0" in message.msg
    with override_settings(MIDDLEWARE=[path], GREENROOM={"LOOP_SAFE": ["project.*"]}):
        assert [message for message in run_checks() if message.id == "greenroom.W001"] == []


def test_the_command_prints_each_pattern() -> None:
    backends = ["project.backends.Own"]
    with override_settings(MIDDLEWARE=list(SEVEN), GREENROOM={}, AUTHENTICATION_BACKENDS=backends):
        out = StringIO()
        call_command("greenroom", stdout=out)
        lines = out.getvalue().splitlines()
        assert "thread /hello/" in [line.rstrip() for line in lines]
        assert any("/plain/" in line and "the view is a plain function" in line for line in lines)
        assert any("AuthenticationMiddleware uses the auth" in line for line in lines)
        out = StringIO()
        call_command("greenroom", "--json", stdout=out)
        answer = json.loads(out.getvalue())
        assert len(answer["held_on_threads_by"]) == 1
    with override_settings(MIDDLEWARE=[], GREENROOM={}):
        out = StringIO()
        call_command("greenroom", "--json", stdout=out)
        answer = json.loads(out.getvalue())
    (hello,) = [view for view in answer["views"] if view["route"] == "hello/"]
    assert hello == {
        "route": "hello/",
        "name": "",
        "coroutine": True,
        "placement": "loop",
        "reason": "",
        "needs": {},
        "unread": [],
    }
    assert [view["placement"] for view in answer["views"] if view["route"] == "on-thread/"] == [
        "thread"
    ]


def test_interleaved_placements_use_their_own_middleware_log() -> None:
    """The judge belongs to one handler: two applications of a process don't mix."""
    with Site("auto", middleware=("project.middleware.function",)) as one:
        assert one.app.handler.judge._middleware[0][1] is middleware.function
        with Site("auto") as other:
            assert other.app.handler.judge._middleware == []


def test_a_view_is_described_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from rest_framework.views import APIView

    asked = []

    def describe(view: Any, method: str | None) -> Any:
        asked.append(method)
        return described(view, method)

    described = integrations.describe
    monkeypatch.setattr(integrations, "describe", describe)
    view, other = APIView.as_view(), APIView.as_view()
    with Site("auto") as site:
        judge = site.app.handler.judge
        for _ in range(2):
            assert not judge.place(view, "GET").coroutine
            assert not judge.fits_loop(view, "GET")
        judge.place(other, "GET")
        judge.place(view)
        assert asked == ["GET", "GET", None]
        # With other settings it may be another.
        with override_settings(GREENROOM={"LOOP_SAFE": ["a.b"]}):
            judge.place(view, "GET")
        assert asked[3:] == ["GET"]
        # Whoever sends requests makes methods up: they are not remembered.
        for _ in range(2):
            judge.place(view, "MADE-UP")
        assert asked[4:] == ["MADE-UP", "MADE-UP"]
        # A mark counts at once.
        assert judge.fits_loop(coroutine_view, "GET")
        on_thread(coroutine_view)
        assert not judge.fits_loop(coroutine_view, "GET")
        del coroutine_view._greenroom_on_thread  # type: ignore[attr-defined]


@csrf_exempt
async def coroutine_view(request: Any) -> None: ...
