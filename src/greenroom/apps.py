"""The Django app: applies the patches and the integrations, registers the checks."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from django.apps import AppConfig

# What is read of them is in `greenroom.clients`, which a process that tests nothing doesn't load.
TESTS = (
    "django.test.utils",
    "django.test.client",
    "django.test.testcases",
    "rest_framework.test",
)


class GreenroomConfig(AppConfig):
    name = "greenroom"
    verbose_name = "Greenroom"

    def ready(self) -> None:
        from . import checks, integrations, patches

        patches.apply()
        integrations.apply()
        checks.register()
        for name in TESTS:
            integrations.when_imported(name, _in_tests)


def _in_tests(module: Any) -> None:
    """A module for tests was imported."""
    from . import clients

    clients.HOOKS[module.__name__](module)
    if module.__name__ == "django.test.testcases" and "greenroom.test" not in sys.modules:
        # Otherwise it is what imports it.
        import_module("greenroom.test")
