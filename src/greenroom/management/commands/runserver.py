"""``manage.py runserver``: Django's, with this project's server in the place of its own.

All that Django's command does before and after it serves is Django's: options, checks,
migrations, autoreload, messages. With django.contrib.staticfiles it is that app's command
that is extended; and so is any other in the project that leaves the serving to Django
(whitenoise's, which turns static files off).

`--nothreading`: plain views run one at a time.
"""

from __future__ import annotations

import os
import signal
import socketserver
import sys
import threading
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.conf import settings
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.management import find_commands
from django.core.management.commands.runserver import Command as DjangoCommand
from django.core.servers.basehttp import WSGIServer

from greenroom import development
from greenroom.application import AsyncDjangoApplication, get_wsgi_application


def _below() -> Iterator[type[DjangoCommand]]:
    """The commands of this name that this one hides, the first that is hidden first."""
    configs = list(apps.get_app_configs())
    names = [config.name for config in configs]
    for config in configs[names.index("greenroom") + 1 :]:
        if "runserver" in find_commands(os.path.join(config.path, "management")):
            yield import_module(f"{config.name}.management.commands.runserver").Command
    yield DjangoCommand


def _serves_by_django(command: type[DjangoCommand]) -> bool:
    return (command.run, command.inner_run) == (DjangoCommand.run, DjangoCommand.inner_run)


if TYPE_CHECKING:
    from django.contrib.staticfiles.management.commands.runserver import Command as _Base
else:
    _Base = next(filter(_serves_by_django, _below()))


class Command(_Base):
    def get_handler(self, *args: Any, **options: Any) -> Any:
        """The application of ``WSGI_APPLICATION``; without that setting, this project's."""
        handler: Any = super().get_handler(*args, **options)
        static = type(handler) is StaticFilesHandler
        application = handler.application if static else handler
        if settings.WSGI_APPLICATION is None:
            application = get_wsgi_application()
        elif type(application) is WSGIHandler:
            self.stdout.write(
                self.style.WARNING(
                    f"{settings.WSGI_APPLICATION} is Django's own application, and is served as "
                    "such: each coroutine view waits on a thread, and may use the ORM by its a… "
                    "methods only. Make it by greenroom.get_wsgi_application()."
                )
            )
        return development.with_files(application) if static else application

    def run(self, **options: Any) -> None:
        self.server_cls = type("GreenroomServer", (_Server,), {"command": self})
        if threading.current_thread() is threading.main_thread() and not options["use_reloader"]:
            # As the reloader has it.
            signal.signal(signal.SIGTERM, lambda *args: sys.exit(0))
        try:
            super().run(**options)
        finally:
            # The process ends, or is started again by the reloader.
            development.stop_all()


class _Server(WSGIServer):
    """Binds as Django's does; `ServerThread` serves."""

    command: Command
    request_queue_size = 128

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        many = isinstance(self, socketserver.ThreadingMixIn)
        server = development.ServerThread(
            self.get_app(),
            [self.socket],
            threads=development.THREADS if many else 1,
            started=self._started,
        )
        server.start()
        try:
            server.wait()
        finally:
            server.stop()

    def _started(self) -> None:
        application = self.get_app()
        application = getattr(application, "application", application)
        if isinstance(application, AsyncDjangoApplication):
            said = application.placements()
            self.command.stdout.write(f"{said[0].upper()}{said[1:]}.")
