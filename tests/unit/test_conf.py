"""The GREENROOM setting: read once, checked, refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from greenroom.application import AsyncDjangoApplication
from greenroom.conf import Settings, settings


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
        ({"LIFESPAN": 1}, "must be a dotted name or None"),
        ([], "GREENROOM must be a dict, not list"),
    ],
)
def test_refused(given: Any, message: str) -> None:
    with override_settings(GREENROOM=given):
        with pytest.raises(ImproperlyConfigured, match=message):
            settings()
        with pytest.raises(ImproperlyConfigured, match=message):
            AsyncDjangoApplication()
        assert "greenroom.E001" in [message.id for message in run_checks()]


def test_accepted() -> None:
    given = {"LOOP_SAFE": ["a.*"], "QUEUE_TIMEOUT": 1.5, "LIFESPAN": "a.b", "SPOOL_QUOTA": 10}
    with override_settings(GREENROOM=given):
        assert settings() == Settings(
            loop_safe=("a.*",), queue_timeout=1.5, lifespan="a.b", spool_quota=10
        )


@pytest.mark.parametrize("name", ["nowhere.at_all", "project.settings.USE_TZ"])
def test_a_lifespan_that_is_none_is_refused(name: str) -> None:
    with (
        override_settings(GREENROOM={"LIFESPAN": name}),
        pytest.raises(ImproperlyConfigured, match=f"names '{name}'"),
    ):
        AsyncDjangoApplication()
