"""The GREENROOM setting: read once, checked, refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from greenroom.application import AsyncDjangoApplication
from greenroom.conf import Settings, pool_options, settings
from greenroom.db.borrow import check_settings
from greenroom.worker import _OPTIONS


def test_defaults() -> None:
    with override_settings(GREENROOM={}):
        assert settings() == Settings()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"PLACMENT": "thread"}, r"unknown key 'PLACMENT'\. Did you mean 'PLACEMENT'\?"),
        ({"max_parked": 3}, r"Did you mean 'MAX_PARKED'\?"),
        ({"XYZ": 1}, "Known keys: PLACEMENT, LOOP_SAFE"),
        ({"PLACEMENT": "loop"}, r'must be "auto" or "thread", not \'loop\''),
        ({"LOOP_SAFE": "project"}, "must be a list of dotted names"),
        ({"MAX_PARKED": 0}, "must be a positive integer"),
        ({"MAX_PARKED": True}, "must be a positive integer"),
        ({"QUEUE_TIMEOUT": "1"}, "must be a positive number of seconds"),
        ({"CANCEL_ON_DISCONNECT": 1}, "must be True or False"),
        ({"STALL_THRESHOLD": "0.1"}, "must be a number of seconds, 0.01 or more, or None"),
        ({"STALL_THRESHOLD": 0.001}, "must be a number of seconds, 0.01 or more, or None"),
        ({"STALL_THRESHOLD": True}, "must be a number of seconds, 0.01 or more, or None"),
        ({"PROBES": 8001}, 'must be one of gunicorn\'s binds, as "127.0.0.1:8001" or'),
        ({"PROBES": ""}, "must be one of gunicorn's binds"),
        ({"LIFESPAN": 1}, "must be a dotted name or None"),
        ({"MAX_BODY": 0}, "must be a positive number of bytes, or None"),
        ({"MAX_BODY": True}, "must be a positive number of bytes, or None"),
        ({"MAX_BODY": "1M"}, "must be a positive number of bytes, or None"),
        ({"DB_MAX_CONNECTIONS": 0}, "must be a positive integer"),
        ({"DB_TIMEOUT": {"default": "ten"}}, r"\['DB_TIMEOUT'\]\['default'\] must be a positive"),
        ({"DB_LEASE": {"default": "auto", "other": "view"}}, r"\['other'\] must be \"auto\" or"),
        ({"DB_TIMEOUT": {"elsewhere": 3}}, "names 'elsewhere', which is not in DATABASES"),
        ([], "GREENROOM must be a dict, not list"),
    ],
)
def test_refused(given: Any, message: str) -> None:
    with override_settings(GREENROOM=given):
        with pytest.raises(ImproperlyConfigured, match=message):
            settings()
            check_settings()
        with pytest.raises(ImproperlyConfigured, match=message):
            AsyncDjangoApplication()
        assert "greenroom.E001" in [message.id for message in run_checks()]


def test_accepted() -> None:
    given = {"LOOP_SAFE": ["a.*"], "QUEUE_TIMEOUT": 1.5, "LIFESPAN": "a.b", "SPOOL_QUOTA": 10}
    with override_settings(GREENROOM=given):
        assert settings() == Settings(
            loop_safe=("a.*",), queue_timeout=1.5, lifespan="a.b", spool_quota=10
        )


@pytest.mark.parametrize("threshold", [None, 0, 0.01, 2])
def test_what_the_server_is_told(threshold: Any) -> None:
    given = {"STALL_THRESHOLD": threshold, "PROBES": "unix:/run/p.sock", "MAX_PARKED": 7}
    with override_settings(GREENROOM=given):
        options = AsyncDjangoApplication().coroutine_wsgi_options
    assert options["stall_threshold"] == threshold
    assert options["probes"] == "unix:/run/p.sock"
    assert options["max_parked"] == 7
    assert set(options) == set(_OPTIONS)


@pytest.mark.parametrize("name", ["nowhere.at_all", "project.settings.USE_TZ"])
def test_a_lifespan_that_is_none_is_refused(name: str) -> None:
    with (
        override_settings(GREENROOM={"LIFESPAN": name}),
        pytest.raises(ImproperlyConfigured, match=f"names '{name}'"),
    ):
        AsyncDjangoApplication()


def test_by_alias() -> None:
    given = {"DB_MAX_CONNECTIONS": {"other": 5}, "DB_TIMEOUT": 2, "DB_LEASE": {"other": "request"}}
    with override_settings(GREENROOM=given):
        assert settings().db_max_connections_of("default") == 20
        assert settings().db_max_connections_of("other") == 5
        assert settings().db_timeout_of("default") == 2.0
        assert settings().db_lease_of("default") == "auto"
        assert settings().db_lease_of("other") == "request"
        assert len({settings(): None}) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "must be True or a dict"),
        ({"max_lifetime": 60}, "has the key 'max_lifetime', .* Known keys: max_size, min_size, ti"),
        ({"max_size": 0}, r"\['max_size'\] must be a positive number"),
        ({"timeout": True}, r"\['timeout'\] must be a positive number"),
        ({"max_size": 2, "min_size": 3}, "a max_size below its min_size"),
    ],
)
def test_pool_options_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=message):
        pool_options("default", options)


def test_pool_options_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from django.db import connections

    from greenroom.db.borrow import limits_of

    options = {"pool": {"max_size": 7, "min_size": 0, "timeout": 1.5}}
    monkeypatch.setitem(connections.settings["default"], "OPTIONS", options)
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", 60)
    limits = limits_of("default")
    assert (limits.limit, limits.timeout, limits.max_age, limits.keep) == (7, 1.5, 60, 0)
