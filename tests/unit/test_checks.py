"""Each system check: what it finds, that its hint mends it, and the table in the docs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.core.checks import run_checks
from django.core.signals import request_started
from django.db import connections
from django.test import override_settings

from greenroom import conf
from greenroom.checks import CHECKS
from greenroom.placement import OTHERS, Known

DOCS = Path(__file__).resolve().parents[2] / "docs" / "settings.md"
POSTGRESQL = "django.db.backends.postgresql"

Found = dict[str, Any]


def found() -> Found:
    """The messages by their number; each has one."""
    messages = run_checks(tags=["greenroom"])
    by_number = {str(message.id).removeprefix("greenroom."): message for message in messages}
    assert len(by_number) == len(messages)
    assert {message.id for message in messages} <= set(CHECKS)
    for message in messages:
        assert message.hint or message.id == "greenroom.E001"
    return by_number


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A project that no check has anything against."""
    monkeypatch.delenv("DJANGO_ALLOW_ASYNC_UNSAFE", raising=False)
    default = connections.settings["default"]
    monkeypatch.setitem(default, "OPTIONS", {"transaction_mode": "IMMEDIATE"})
    with override_settings(GREENROOM={"LOOP_SAFE": ["project.*"]}, MIDDLEWARE=[]):
        yield


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def change(**values: Any) -> None:
        for name, value in values.items():
            monkeypatch.setitem(connections.settings["default"], name, value)

    return change


@contextmanager
def greenroom(**values: Any) -> Iterator[None]:
    with override_settings(GREENROOM={"LOOP_SAFE": ["project.*"], **values}):
        yield


def test_nothing() -> None:
    assert found() == {}


def test_e001() -> None:
    with greenroom(MAX_PARKD=3):
        messages = found()
    assert set(messages) == {"E001"}
    assert "Did you mean 'MAX_PARKED'?" in messages["E001"].msg


def test_e002() -> None:
    with greenroom(LIFESPAN="project.nowhere.lifespan"):
        assert "'project.nowhere.lifespan', which can't be imported" in found()["E002"].msg
    with greenroom(LIFESPAN="project.lifespans.lifespan"):
        assert found() == {}


def test_w001(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, known in list(OTHERS.items()):
        if known.distribution == "djangorestframework":
            monkeypatch.setitem(OTHERS, name, Known(known.distribution, "1.0", "1.1"))
    message = found()["W001"]
    assert "was read from 1.0 to below 1.1" in message.msg
    with greenroom(LOOP_SAFE=["project.*", "rest_framework.*"]):
        assert found() == {}


def test_w001_only_for_what_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OTHERS, "unused.middleware.Some", Known("Django", "1.0", "1.1"))
    assert found() == {}


def test_w002(monkeypatch: pytest.MonkeyPatch) -> None:
    configs = list(apps.get_app_configs())
    monkeypatch.setattr(apps, "get_app_configs", lambda: [*configs[1:3], configs[0], *configs[3:]])
    messages = found()
    assert set(messages) == {"W002"}
    assert messages["W002"].msg.startswith(f"{configs[1].name}, {configs[2].name} stand before")


def test_w003() -> None:
    def receiver(**kwargs: Any) -> None:
        pass

    path = "project.middleware.function"
    request_started.connect(receiver)
    try:
        with override_settings(MIDDLEWARE=[path], GREENROOM={}):
            messages = found()
    finally:
        request_started.disconnect(receiver)
    assert set(messages) == {"W003"}
    message = messages["W003"].msg
    assert re.match(r"\d+ coroutine views are on threads", message)
    # Once, and by name.
    assert message.count(path) == 1
    assert "test_w003.<locals>.receiver of request_started" in message
    with override_settings(MIDDLEWARE=[path], GREENROOM={"LOOP_SAFE": ["project.*"]}):
        assert found() == {}
    with override_settings(MIDDLEWARE=[path], GREENROOM={"PLACEMENT": "thread"}):
        assert found() == {}


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [
        ("AUTHENTICATION_BACKENDS", ["project.backends.Own"], "project.backends.Own"),
        ("SESSION_ENGINE", "django.contrib.sessions.backends.own", "sessions.backends.own"),
        ("MESSAGE_STORAGE", "project.storage.Own", "project.storage.Own"),
    ],
)
def test_w003_names_backends(setting: str, value: Any, named: str) -> None:
    middleware = [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ]
    settings: dict[str, Any] = {setting: value, "MIDDLEWARE": middleware, "GREENROOM": {}}
    with override_settings(**settings):
        messages = found()
    assert set(messages) == {"W003"}
    assert named in messages["W003"].msg


def test_w003_says_nothing_without_coroutine_views_or_with_a_broken_url_configuration() -> None:
    path = "project.middleware.function"
    with override_settings(MIDDLEWARE=[path], GREENROOM={}, ROOT_URLCONF="project.urls_other"):
        assert set(found()) <= {"W003"}
    with override_settings(MIDDLEWARE=["project.nowhere.Some"], GREENROOM={}):
        assert found() == {}


def test_w004(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    assert set(found()) == {"W004"}


def test_w005(database: Callable[..., None]) -> None:
    database(OPTIONS={})
    messages = found()
    assert set(messages) == {"W005"}
    assert "['transaction_mode'] = 'IMMEDIATE'" in messages["W005"].hint
    database(OPTIONS={"transaction_mode": "EXCLUSIVE"})
    assert found() == {}
    database(OPTIONS={}, NAME=":memory:")
    assert "W005" not in found()


def test_w006(database: Callable[..., None]) -> None:
    database(ENGINE=POSTGRESQL, CONN_MAX_AGE=60, OPTIONS={"pool": True})
    assert set(found()) == {"W006"}
    database(CONN_MAX_AGE=0)
    assert found() == {}
    database(CONN_MAX_AGE=60, OPTIONS={})
    assert found() == {}


def test_w007(database: Callable[..., None]) -> None:
    database(ENGINE=POSTGRESQL, OPTIONS={"pool": {"max_size": 50, "timeout": 5}})
    assert found() == {}
    with greenroom(DB_MAX_CONNECTIONS=30):
        messages = found()
        assert set(messages) == {"W007"}
        assert "is 30 for the database 'default'" in messages["W007"].msg
        assert "['max_size'] is 50, which counts" in messages["W007"].msg
    with greenroom(DB_TIMEOUT={"default": 3}):
        assert "['timeout'] is 5" in found()["W007"].msg
    with greenroom(DB_MAX_CONNECTIONS=50, DB_TIMEOUT=5):
        assert found() == {}


def test_w008(database: Callable[..., None]) -> None:
    database(ENGINE=POSTGRESQL, OPTIONS={"pool": {"max_size": 4}})
    with override_settings(MIDDLEWARE=["project.middleware.function"], GREENROOM={}):
        messages = found()
        assert set(messages) == {"W003", "W008"}
        assert "has 4 connections, and 40 requests" in messages["W008"].msg
        database(OPTIONS={"pool": {"max_size": 40}})
        assert set(found()) == {"W003"}
    # Nothing is on threads.
    database(OPTIONS={"pool": {"max_size": 4}})
    assert found() == {}


def test_w009() -> None:
    with greenroom(LOOP_SAFE=["project.*", "project.midleware.function"]):
        messages = found()
        assert set(messages) == {"W009"}
        assert "'project.midleware.function', which can't be imported" in messages["W009"].msg
    with greenroom(LOOP_SAFE=["project.*", "project.middleware", "project.middleware.function"]):
        assert found() == {}


def test_w010(monkeypatch: pytest.MonkeyPatch) -> None:
    class Daphne:
        name = "daphne"

    configs = list(apps.get_app_configs())
    monkeypatch.setattr(apps, "get_app_configs", lambda: [*configs, Daphne])
    assert set(found()) == {"W010"}


def test_every_check_has_a_test_here() -> None:
    tests = {name.upper()[5:9] for name in globals() if re.match(r"test_[ew]\d{3}", name)}
    assert tests == {number.removeprefix("greenroom.") for number in CHECKS}


def test_the_table_in_the_docs() -> None:
    text = DOCS.read_text()
    table = text.partition("| check | finds |\n|---|---|\n")[2].partition("\n\n")[0]
    assert table == "\n".join(f"| `{number}` | {what} |" for number, what in CHECKS.items())


def test_the_defaults_are_those_that_w007_knows() -> None:
    assert (conf.Settings().db_max_connections, conf.Settings().db_timeout) == (20, 10.0)
