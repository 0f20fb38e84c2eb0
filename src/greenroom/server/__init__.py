"""An HTTP/1.1 server for coroutine WSGI, on asyncio or uvloop.

It knows nothing of Django or of gunicorn. The specification of what an application
may be and gets is in `greenroom.server.app`.
"""

from __future__ import annotations

from .config import Config
from .lifecycle import Hooks, Server
from .probes import Group, Probes
from .watchdog import Watchdog

__all__ = ["Config", "Group", "Hooks", "Probes", "Server", "Watchdog"]
