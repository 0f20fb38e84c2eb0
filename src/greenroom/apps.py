"""The Django app: applies the patches and the integrations, registers the checks."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig


class GreenroomConfig(AppConfig):
    name = "greenroom"
    verbose_name = "Greenroom"

    def ready(self) -> None:
        from . import checks, integrations, patches

        patches.apply()
        integrations.apply()
        checks.register()
        for name in ("utils", "client", "testcases"):
            integrations.when_imported(f"django.test.{name}", _in_tests)


def _in_tests(module: Any) -> None:
    """A module of `django.test` was imported."""
    from . import clients

    clients.HOOKS[module.__name__](module)
    if module.__name__ == "django.test.testcases":
        from . import test

        test.use_live_server(module)
