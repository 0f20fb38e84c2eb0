"""The Django app: applies the patches and the integrations, registers the checks."""

from __future__ import annotations

from django.apps import AppConfig


class GreenroomConfig(AppConfig):
    name = "greenroom"
    verbose_name = "Greenroom"

    def ready(self) -> None:
        from . import checks, integrations, patches

        patches.apply()
        integrations.apply()
        checks.register()
