"""System checks: settings that are wrong or contradict each other, and what costs placement.

Their ids and what they mean are in `CHECKS`, of which docs/settings.md has the table. Each
message names what it is about, and its hint mends it. ``manage.py check --tag greenroom``
runs them alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.base import BaseHandler
from django.db import connections
from django.utils.module_loading import import_string

from . import conf
from .db import borrow
from .placement import OTHERS, Judge, views, why_unsafe

CHECKS = {
    "greenroom.E001": 'the `GREENROOM` setting, or `OPTIONS["pool"]` of a database, has an unknown '
    "key or a bad value",
    "greenroom.E002": "`LIFESPAN` names what can't be imported",
    "greenroom.W001": "code that is known to be loop-safe is installed in a version that wasn't "
    "read: views that use it run on threads",
    "greenroom.W002": "`greenroom` isn't first in `INSTALLED_APPS`",
    "greenroom.W003": "what holds all coroutine views on threads, by name",
    "greenroom.W004": "`DJANGO_ALLOW_ASYNC_UNSAFE` is set",
    "greenroom.W005": "SQLite without `transaction_mode` IMMEDIATE",
    "greenroom.W006": '`CONN_MAX_AGE` beside `OPTIONS["pool"]`, which Django refuses in commands',
    "greenroom.W007": '`DB_MAX_CONNECTIONS` or `DB_TIMEOUT` beside `OPTIONS["pool"]`, which says '
    "otherwise",
    "greenroom.W008": '`OPTIONS["pool"]` has fewer connections than `MAX_PARKED` requests may hold',
    "greenroom.W009": "`LOOP_SAFE` names what can't be imported",
    "greenroom.W010": "the runserver of `daphne` is hidden",
}

Messages = Iterator[checks.CheckMessage]


def register() -> None:
    for check in (check_settings, check_versions, check_apps, check_placement, check_databases):
        checks.register(_listed(check), "greenroom")


def _listed(check: Callable[[], Messages]) -> Any:
    def run(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
        return list(check())

    return run


def _error(number: int, message: str, hint: str | None = None) -> checks.CheckMessage:
    return checks.Error(message, hint=hint, id=f"greenroom.E{number:03}")


def _warning(number: int, message: str, hint: str) -> checks.CheckMessage:
    return checks.Warning(message, hint=hint, id=f"greenroom.W{number:03}")


def _settings() -> conf.Settings | None:
    """The setting, if E001 has nothing against it."""
    try:
        borrow.check_settings()
        return conf.settings()
    except ImproperlyConfigured:
        return None


def check_settings() -> Messages:
    try:
        given = conf.settings()
        borrow.check_settings()
    except ImproperlyConfigured as exc:
        yield _error(1, str(exc))
        return
    if given.lifespan is not None and not _exists(given.lifespan):
        yield _error(
            2,
            f"GREENROOM['LIFESPAN'] names {given.lifespan!r}, which can't be imported.",
            "Give the dotted name of a function that is decorated with "
            "contextlib.asynccontextmanager.",
        )
    for name in given.loop_safe:
        if not set("*?[") & set(name) and not _exists(name):
            yield _warning(
                9,
                f"GREENROOM['LOOP_SAFE'] names {name!r}, which can't be imported: it changes "
                "nothing.",
                "Give the dotted name of a class, a function or a module, as `manage.py "
                "greenroom` prints it; `*` stands for any part of one.",
            )
    if os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"):
        yield _warning(
            4,
            "DJANGO_ALLOW_ASYNC_UNSAFE is set in the environment: a query that would block the "
            "event loop is not refused.",
            "Remove it. In coroutine views the ORM may be used as it is; in a child task, "
            "greenroom.bridged() allows it.",
        )


def _exists(name: str) -> bool:
    for load in (import_string, import_module):
        try:
            load(name)
        except Exception:
            continue
        return True
    return False


def check_versions() -> Messages:
    """Each distribution that is used once: by a middleware, or as an app."""
    used = {config.name.partition(".")[0] for config in apps.get_app_configs()}
    used |= {path.partition(".")[0] for path in settings.MIDDLEWARE}
    seen: set[str] = set()
    for name, known in OTHERS.items():
        package = name.partition(".")[0]
        installed = known.outside()
        if package not in used or installed is None or known.distribution in seen:
            continue
        if _may_run(name):
            continue
        seen.add(known.distribution)
        yield _warning(
            1,
            f"{known.distribution} {installed} is installed, and was read from {known.first} to "
            f"below {known.below}: coroutine views that use it run on threads.",
            "Install a version in that range, or add what was read by you to "
            f'GREENROOM["LOOP_SAFE"] ("{package}.*" for all of it).',
        )


def _may_run(name: str) -> bool:
    """Whether the project says that it is loop-safe."""
    try:
        return why_unsafe(import_string(name)) is None
    except (ImportError, ImproperlyConfigured):
        return False


def check_apps() -> Messages:
    names = [config.name for config in apps.get_app_configs()]
    if "greenroom" not in names:
        return
    before = names[: names.index("greenroom")]
    if before:
        yield _warning(
            2,
            f"{', '.join(before)} {'stands' if len(before) == 1 else 'stand'} before greenroom in "
            "INSTALLED_APPS: what they do when Django starts, and their runserver, come first.",
            'Put "greenroom" first.',
        )
    if "daphne" in names[names.index("greenroom") :]:
        yield _warning(
            10,
            "greenroom's runserver hides that of daphne: it serves WSGI_APPLICATION.",
            'Remove "daphne" from INSTALLED_APPS, and start daphne itself to try ASGI_APPLICATION.',
        )


def check_placement() -> Messages:
    given = _settings()
    if given is None or given.placement == "thread":
        return
    try:
        used = [(path, import_string(path)) for path in settings.MIDDLEWARE]
        judge = Judge(used, BaseHandler)
        held = judge.surroundings()
        coroutines = sum(judge.place(view).coroutine for *_, view in views())
    except Exception:
        # Of a middleware or the URLconf, which Django reports when it loads it.
        return
    if not coroutines or not held:
        return
    noun = "view is" if coroutines == 1 else "views are"
    yield _warning(
        3,
        f"{coroutines} coroutine {noun} on threads, each of which waits while the view does: "
        f"{'; '.join(held)}.",
        "If you have read the code that is named, and it doesn't block, mark it "
        '@greenroom.loop_safe or name it in GREENROOM["LOOP_SAFE"]. With GREENROOM["PLACEMENT"] '
        '= "thread" it is as you want it.',
    )
    for alias in connections:
        pool = connections.settings[alias]["OPTIONS"].get("pool")
        limit = borrow.limits_of(alias).limit
        if pool and limit < given.max_parked:
            yield _warning(
                8,
                f"The pool of the database {alias!r} has {limit} connections, and "
                f"{given.max_parked} requests may be on threads, each with one: they would wait "
                "for each other.",
                f"Raise DATABASES[{alias!r}]['OPTIONS']['pool']['max_size'], lower "
                "GREENROOM['MAX_PARKED'], or mend greenroom.W003.",
            )


def check_databases() -> Messages:
    given = _settings()
    for alias in connections:
        database = connections.settings[alias]
        engine, options = database["ENGINE"], database["OPTIONS"]
        deferred = options.get("transaction_mode") not in ("IMMEDIATE", "EXCLUSIVE")
        if engine.endswith(".sqlite3") and deferred and borrow.why_not(alias) is None:
            yield _warning(
                5,
                f"The transactions of the database {alias!r} are deferred: one that has read "
                'and then writes is refused ("database is locked") if another has written.',
                f"Set DATABASES[{alias!r}]['OPTIONS']['transaction_mode'] = 'IMMEDIATE'.",
            )
        pool = options.get("pool")
        if not pool:
            continue
        if database["CONN_MAX_AGE"] != 0:
            yield _warning(
                6,
                f"The database {alias!r} has CONN_MAX_AGE and OPTIONS['pool']: outside of "
                "requests, in commands, Django refuses to connect.",
                f"Remove CONN_MAX_AGE from DATABASES[{alias!r}].",
            )
        if given is None or not isinstance(pool, dict):
            continue
        for option, key, default in (
            ("max_size", "db_max_connections", 20),
            ("timeout", "db_timeout", 10.0),
        ):
            ours = getattr(given, f"{key}_of")(alias)
            if option in pool and ours not in (default, pool[option]):
                yield _warning(
                    7,
                    f"GREENROOM[{key.upper()!r}] is {ours:g} for the database {alias!r}, and "
                    f"OPTIONS['pool'][{option!r}] is {pool[option]:g}, which counts.",
                    "Remove one of them.",
                )
