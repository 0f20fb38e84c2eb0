"""Django's ``GREENROOM`` setting, read and checked once.

==========================  =======  ==================================================
key                         default  meaning
==========================  =======  ==================================================
``PLACEMENT``               auto     ``"thread"``: no synchronous code runs on the loop
``LOOP_SAFE``               []       dotted names, with ``*``, of code that may run on
                                     the loop though it isn't in the table of known code
``THREADS``                 8        requests that run synchronous code at a time under an
                                     ASGI server; under gunicorn its own setting says it
``MAX_PARKED``              40       requests of coroutine views that hold a thread at a
                                     time, each with its own database connection
``QUEUE_TIMEOUT``           30       seconds a request waits for a place among them until
                                     it gets 503
``CANCEL_ON_DISCONNECT``    True     cancel a coroutine view when its client is gone
``LIFESPAN``                None     dotted name of a function that returns an async
                                     context manager, entered once per process; what it
                                     yields is ``request.lifespan``
``MAX_BODY``                100 MiB  bytes of a request's body, past which it gets 413;
                                     ``None``: any number
``SPOOL_QUOTA``             2**30    bytes of request bodies that one process keeps on disk
``STALL_THRESHOLD``         0.1      seconds that the loop may not turn until the log says so
                                     and why; None or 0: the loop isn't watched
``PROBES``                  None     one of gunicorn's binds, where ``/livez`` and ``/readyz``
                                     are answered in the place of the site
``DB_MAX_CONNECTIONS``      20       connections that requests on the loop share, a database
                                     and process
``DB_TIMEOUT``              10       seconds that one waits for a connection, or for its turn
                                     on it
``DB_LEASE``                auto     ``"request"``: a request keeps its connection to the end
==========================  =======  ==================================================

Those that begin with ``DB_`` may also be a dict, of the values by database alias,
in which an alias that isn't there has the default.

Django's ``OPTIONS["pool"]`` comes before the first two: `max_size`, `timeout`, and
`min_size` connections that are kept open.

An unknown key or a value of the wrong kind is an `ImproperlyConfigured`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed


@dataclass(frozen=True, slots=True)
class Settings:
    placement: str = "auto"
    loop_safe: tuple[str, ...] = ()
    threads: int = 8
    max_parked: int = 40
    queue_timeout: float = 30.0
    cancel_on_disconnect: bool = True
    lifespan: str | None = None
    max_body: int | None = 100 * 2**20
    spool_quota: int = 2**30
    stall_threshold: float | None = 0.1
    probes: str | None = None
    db_max_connections: Any = 20
    db_timeout: Any = 10.0
    db_lease: Any = "auto"

    def db_max_connections_of(self, alias: str) -> int:
        return int(_of_alias(self.db_max_connections, alias, 20))

    def db_timeout_of(self, alias: str) -> float:
        return float(_of_alias(self.db_timeout, alias, 10.0))

    def db_lease_of(self, alias: str) -> str:
        return str(_of_alias(self.db_lease, alias, "auto"))


def _of_alias(value: Any, alias: str, default: Any) -> Any:
    return dict(value).get(alias, default) if isinstance(value, tuple) else value


POOL_OPTIONS = ("max_size", "min_size", "timeout")


def pool_options(alias: str, options: Any) -> dict[str, Any]:
    """``OPTIONS["pool"]`` of a database, checked. Raises `ImproperlyConfigured`."""
    where = f"DATABASES[{alias!r}]['OPTIONS']['pool']"
    if not isinstance(options, dict):
        raise ImproperlyConfigured(f"{where} must be True or a dict, not {options!r}.")
    for key, value in options.items():
        if key not in POOL_OPTIONS:
            raise ImproperlyConfigured(
                f"{where} has the key {key!r}, which the pool of greenroom doesn't know. "
                f"Known keys: {', '.join(POOL_OPTIONS)}."
            )
        least = 0 if key == "min_size" else 1e-3
        if isinstance(value, bool) or not isinstance(value, int | float) or value < least:
            raise ImproperlyConfigured(f"{where}[{key!r}] must be a positive number.")
    if options.get("max_size", math.inf) < options.get("min_size", 0):
        raise ImproperlyConfigured(f"{where} has a max_size below its min_size.")
    return options


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The checked settings. Raises `ImproperlyConfigured`."""
    given = getattr(django_settings, "GREENROOM", {})
    if not isinstance(given, dict):
        raise ImproperlyConfigured(f"GREENROOM must be a dict, not {type(given).__name__}.")
    known = [field.name.upper() for field in fields(Settings)]
    values = {}
    for key, value in given.items():
        if key not in known:
            near = get_close_matches(str(key).upper(), known, 1)
            mend = f"Did you mean {near[0]!r}?" if near else f"Known keys: {', '.join(known)}."
            raise ImproperlyConfigured(f"GREENROOM has an unknown key {key!r}. {mend}")
        values[key.lower()] = _checked(key, value)
    return Settings(**values)


def _checked(key: str, value: Any) -> Any:
    if key.startswith("DB_") and isinstance(value, dict):
        return tuple((alias, _checked_one(key, each, alias)) for alias, each in value.items())
    return _checked_one(key, value)


def _checked_one(key: str, value: Any, alias: str | None = None) -> Any:
    match key:
        case "PLACEMENT":
            good, wanted = value in ("auto", "thread"), '"auto" or "thread"'
        case "LOOP_SAFE":
            good = isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
            value, wanted = tuple(value) if good else value, "a list of dotted names"
        case "THREADS" | "MAX_PARKED" | "SPOOL_QUOTA" | "DB_MAX_CONNECTIONS":
            good = isinstance(value, int) and not isinstance(value, bool) and value > 0
            wanted = "a positive integer"
        case "MAX_BODY":
            good = value is None or (isinstance(value, int) and not isinstance(value, bool))
            good = good and (value is None or value > 0)
            wanted = "a positive number of bytes, or None for any number"
        case "QUEUE_TIMEOUT" | "DB_TIMEOUT":
            good = isinstance(value, int | float) and not isinstance(value, bool)
            good = good and 0 < value < math.inf
            wanted = "a positive number of seconds"
        case "STALL_THRESHOLD":
            good = value is None or (
                isinstance(value, int | float)
                and not isinstance(value, bool)
                and (value == 0 or 0.01 <= value < math.inf)
            )
            wanted = "a number of seconds, 0.01 or more, or None"
        case "PROBES":
            good = value is None or (isinstance(value, str) and value != "")
            wanted = 'one of gunicorn\'s binds, as "127.0.0.1:8001" or "unix:/run/probes.sock"'
        case "DB_LEASE":
            good, wanted = value in ("auto", "request"), '"auto" or "request"'
        case "CANCEL_ON_DISCONNECT":
            good, wanted = isinstance(value, bool), "True or False"
        case _:
            good, wanted = value is None or isinstance(value, str), "a dotted name or None"
    if not good:
        where = f"[{key!r}]" if alias is None else f"[{key!r}][{alias!r}]"
        raise ImproperlyConfigured(f"GREENROOM{where} must be {wanted}, not {value!r}.")
    return value


def _reset(*, setting: str, **kwargs: Any) -> None:
    if setting == "GREENROOM":
        settings.cache_clear()


setting_changed.connect(_reset)
