"""Django's ``GREENROOM`` setting, read and checked once.

==========================  =======  ==================================================
key                         default  meaning
==========================  =======  ==================================================
``PLACEMENT``               auto     ``"thread"``: no synchronous code runs on the loop
``LOOP_SAFE``               []       dotted names, with ``*``, of code that may run on
                                     the loop though it isn't in the table of known code
``MAX_PARKED``              40       requests of coroutine views that hold a thread at a
                                     time, each with its own database connection
``QUEUE_TIMEOUT``           30       seconds a request waits for a place among them until
                                     it gets 503
``CANCEL_ON_DISCONNECT``    True     cancel a coroutine view when its client is gone
``LIFESPAN``                None     dotted name of a function that returns an async
                                     context manager, entered once per process; what it
                                     yields is ``request.lifespan``
``SPOOL_QUOTA``             2**30    bytes of request bodies that one process keeps on disk
==========================  =======  ==================================================

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
    max_parked: int = 40
    queue_timeout: float = 30.0
    cancel_on_disconnect: bool = True
    lifespan: str | None = None
    spool_quota: int = 2**30


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
    match key:
        case "PLACEMENT":
            good, wanted = value in ("auto", "thread"), '"auto" or "thread"'
        case "LOOP_SAFE":
            good = isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
            value, wanted = tuple(value) if good else value, "a list of dotted names"
        case "MAX_PARKED" | "SPOOL_QUOTA":
            good = isinstance(value, int) and not isinstance(value, bool) and value > 0
            wanted = "a positive integer"
        case "QUEUE_TIMEOUT":
            good = isinstance(value, int | float) and not isinstance(value, bool)
            good = good and 0 < value < math.inf
            wanted = "a positive number of seconds"
        case "CANCEL_ON_DISCONNECT":
            good, wanted = isinstance(value, bool), "True or False"
        case _:
            good, wanted = value is None or isinstance(value, str), "a dotted name or None"
    if not good:
        raise ImproperlyConfigured(f"GREENROOM[{key!r}] must be {wanted}, not {value!r}.")
    return value


def _reset(*, setting: str, **kwargs: Any) -> None:
    if setting == "GREENROOM":
        settings.cache_clear()


setting_changed.connect(_reset)
