"""Coroutine views for Django projects that are deployed over WSGI.

The public names are loaded when they are first used: importing this package
imports neither Django's models nor gunicorn.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .application import AsyncDjangoApplication, get_wsgi_application
    from .asgi import AsyncDjangoASGIApplication, get_asgi_application
    from .bridge import await_, bridged
    from .db.transaction import atomic
    from .decorators import sync_view
    from .placement import keep_on_disconnect, loop_safe, on_thread
    from .shutdown import shutting_down
    from .worker import Worker

__version__ = "0.1.0.dev0"

__all__ = [
    "AsyncDjangoASGIApplication",
    "AsyncDjangoApplication",
    "Worker",
    "atomic",
    "await_",
    "bridged",
    "get_asgi_application",
    "get_wsgi_application",
    "keep_on_disconnect",
    "loop_safe",
    "on_thread",
    "shutting_down",
    "sync_view",
]

_HOMES = {
    "AsyncDjangoASGIApplication": "asgi",
    "AsyncDjangoApplication": "application",
    "Worker": "worker",
    "atomic": "db.transaction",
    "await_": "bridge",
    "bridged": "bridge",
    "get_asgi_application": "asgi",
    "get_wsgi_application": "application",
    "keep_on_disconnect": "placement",
    "loop_safe": "placement",
    "on_thread": "placement",
    "shutting_down": "shutdown",
    "sync_view": "decorators",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'greenroom' has no attribute {name!r}")
    value = getattr(import_module(f"greenroom.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
