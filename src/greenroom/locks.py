"""Module-level locks and thread-locals of a project: what to look at before the loop.

On the loop every query is a switch point. A lock that is held around one stops
the loop when a second request wants it; a reentrant lock lets the second request
in, being of the same thread; a thread-local is shared by all requests there.
What is listed is no error: it matters only where code on the loop queries while
it holds the lock, or between writing and reading the thread-local.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from django.apps import apps

_KINDS: tuple[tuple[type, str], ...] = (
    (type(threading.Lock()), "Lock"),
    (type(threading.RLock()), "RLock"),
    (threading.Condition, "Condition"),
    (threading.Semaphore, "Semaphore"),
    (threading.local, "local"),
)

# Read: Django's own hold no lock over a query, and keep nothing in a thread-local over one.
_READ = ("django.", "greenroom.")


@dataclass(frozen=True, slots=True)
class Found:
    """A module-level lock or thread-local. `name` is its dotted name."""

    name: str
    kind: str


def find() -> Iterator[Found]:
    """Those in the loaded modules of the project and of its installed apps."""
    packages = _packages()
    seen: set[int] = set()
    for module_name, module in sorted(sys.modules.items()):
        package = module_name.partition(".")[0]
        if package not in packages or f"{module_name}.".startswith(_READ):
            continue
        for name, value in sorted(vars(module).items()):
            for kind, called in _KINDS:
                # A name that was imported from another module is listed there.
                if isinstance(value, kind) and id(value) not in seen:
                    seen.add(id(value))
                    yield Found(f"{module_name}.{name}", f"threading.{called}")
                    break


def _packages() -> set[str]:
    """The top-level packages of the project's URLs, settings and apps."""
    from django.conf import settings

    names = {config.name for config in apps.get_app_configs()}
    names |= {settings.ROOT_URLCONF, settings.SETTINGS_MODULE or ""}
    names |= set(settings.MIDDLEWARE)
    return {name.partition(".")[0] for name in names if name}
