"""Load before the first request what Django loads in it.

Import locks are reentrant for their thread: a second greenlet that meets a
module which the first is still importing would get it half made. So everything
that a request may import is imported here, while nothing else runs, and where
a query in a module's body may block.

A URLconf that can't be loaded is an error: no request could be answered. A
backend that can't be imported is not: the project may never use it.
"""

from __future__ import annotations

import logging

from django.conf import settings
from django.template import engines
from django.template.backends.django import DjangoTemplates
from django.urls import URLResolver, get_resolver
from django.utils.module_loading import import_string
from django.utils.translation import gettext, override

from . import user_code
from .integrations import sentry

logger = logging.getLogger("greenroom")


def up() -> None:
    """Load URLconfs, template engines and libraries, backends of every kind."""
    resolver = get_resolver(settings.ROOT_URLCONF)
    _load(resolver)
    for status in (400, 403, 404, 500):
        resolver.resolve_error_handler(status)
    for engine in engines.all():
        if isinstance(engine, DjangoTemplates):
            # The libraries of {% load %}, and the loaders.
            _ = engine.engine.template_libraries, engine.engine.template_loaders
    for name in (
        *settings.FILE_UPLOAD_HANDLERS,
        *settings.AUTHENTICATION_BACKENDS,
        *settings.PASSWORD_HASHERS,
        *(cache.get("BACKEND", "") for cache in settings.CACHES.values()),
        *(storage.get("BACKEND", "") for storage in settings.STORAGES.values()),
        settings.MESSAGE_STORAGE,
        settings.CSRF_FAILURE_VIEW,
        settings.SESSION_SERIALIZER,
        f"{settings.SESSION_ENGINE}.SessionStore",
        settings.DEFAULT_EXCEPTION_REPORTER,
        settings.DEFAULT_EXCEPTION_REPORTER_FILTER,
    ):
        try:
            import_string(name)
        except Exception as exc:
            # A session engine's model, for one, wants its app to be installed.
            logger.debug("Not loaded before the first request: %s: %s", name, exc)
    if settings.USE_I18N:
        # The others, up to a hundred, are read when they are first asked for.
        with override(settings.LANGUAGE_CODE):
            gettext("")
    # It imports redis-py, where there is a cache in Redis.
    user_code.slow_caches()
    sentry.warm_up()


def _load(resolver: URLResolver) -> None:
    _ = resolver.reverse_dict
    for entry in resolver.url_patterns:
        if isinstance(entry, URLResolver):
            _load(entry)
        else:
            # A view that was given by its dotted name is imported here.
            _ = entry.lookup_str
