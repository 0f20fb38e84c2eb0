"""For tests: a live server, and async tests without a test case.

Django's own tools need no change: with ``greenroom`` in `INSTALLED_APPS`, its clients and its
test cases serve coroutine views as production does (see `greenroom.clients`), and its
`LiveServerTestCase`, and pytest-django's ``live_server``, use the thread that is here.
"""

from __future__ import annotations

import socket
from typing import Any

from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.exceptions import ImproperlyConfigured
from django.test import testcases

from . import development
from .application import get_wsgi_application
from .clients import run_async
from .db import borrow

__all__ = ["LiveServerTestCase", "LiveServerThread", "StaticLiveServerTestCase", "run_async"]

# Seconds that requests, the lifespan and threads have to end after the last test of a class.
END = 10.0


class LiveServerThread(testcases.LiveServerThread):
    """Django's, with the project's own server, which has a thread of its own."""

    server: development.ServerThread | None = None

    def run(self) -> None:
        """Start the server. It goes on until `terminate`."""
        if type(self)._create_server is not LiveServerThread._create_server:  # type: ignore[attr-defined]
            # The project makes another.
            super().run()
            return
        try:
            self._lend()
            application: Any = get_wsgi_application()
            for files in (testcases._MediaFilesHandler, self.static_handler):
                application = development.with_files(application, files)
            sock = socket.create_server((self.host, self.port), backlog=128)
            self.port = sock.getsockname()[1]
            log = development.Log()
            log.quiet = True
            self.server = development.ServerThread(application, [sock], log=log)
            self.server.start()
        except Exception as exc:
            self.error = exc  # type: ignore[assignment]
        finally:
            self.is_ready.set()

    def terminate(self) -> None:
        """End the server, and all that it runs."""
        if hasattr(self, "httpd"):
            super().terminate()
            return
        self.join()
        if self.server is not None:
            self.server.stop(END)
        for alias in self.connections_override or {}:
            borrow.lent.pop(alias, None)

    def _lend(self) -> None:
        """The test's connections to databases in memory."""
        for alias, connection in (self.connections_override or {}).items():
            if not isinstance(connection, borrow.Wrapper):
                raise ImproperlyConfigured(
                    f"The connection to the database {alias!r} was made before the tests began, "
                    "and can't be shared with a live server: put greenroom first in "
                    "INSTALLED_APPS, and query no database while Django is set up."
                )
            borrow.lent[alias] = connection


class LiveServerTestCase(testcases.LiveServerTestCase):
    """Django's, on the project's own server."""

    server_thread_class = LiveServerThread


class StaticLiveServerTestCase(LiveServerTestCase):
    """Serves static files without `collectstatic`, as that of django.contrib.staticfiles."""

    static_handler = StaticFilesHandler


# In the place of Django's, for its own test cases and for pytest-django.
testcases.LiveServerThread = LiveServerThread  # type: ignore[misc]
testcases.LiveServerTestCase.server_thread_class = LiveServerThread
