"""An HTTP/1.1 server for coroutine WSGI, on asyncio or uvloop.

It knows nothing of Django or of gunicorn. The specification of what an application
may be and gets is in `greenroom.server.app`. What only a worker uses is imported from its
module: Windows, where the development server runs, hasn't all that `probes` needs.
"""

from __future__ import annotations

from .config import Config
from .lifecycle import Hooks, Server

__all__ = ["Config", "Hooks", "Server"]
