"""System checks: settings that are wrong, and known code in an unread version.

``greenroom.E001``  the ``GREENROOM`` setting, or ``OPTIONS["pool"]`` of a database, has an
unknown key or a bad value
``greenroom.W001``  a middleware is known to be loop-safe in other versions than
the one installed, so that it holds coroutine views on threads
"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from . import conf
from .db import borrow
from .placement import OTHERS, dotted_name, why_unsafe


def register() -> None:
    checks.register(check_settings)
    checks.register(check_versions)


def check_settings(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    try:
        conf.settings()
        borrow.check_settings()
    except ImproperlyConfigured as exc:
        return [checks.Error(str(exc), id="greenroom.E001")]
    return []


def check_versions(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    messages: list[checks.CheckMessage] = []
    for path in settings.MIDDLEWARE:
        try:
            middleware = import_string(path)
            known = OTHERS.get(dotted_name(middleware))
            reason = why_unsafe(middleware)
        except (ImportError, ImproperlyConfigured):
            # Reported by Django when it loads the middleware, or by E001.
            continue
        if known is not None and reason is not None and known.outside():
            messages.append(
                checks.Warning(
                    f"The middleware {path} {reason}: coroutine views run on threads.",
                    hint=f"Install a version in that range, or add {path!r} to "
                    'GREENROOM["LOOP_SAFE"] after reading its code.',
                    id="greenroom.W001",
                )
            )
    return messages
