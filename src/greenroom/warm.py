"""Load before the first request what Django loads in it.

Import locks are reentrant for their thread: a second greenlet that meets a
module which the first is still importing would get it half made. So everything
that a request may import is imported here, while nothing else runs, and where
a query in a module's body may block.
"""

from __future__ import annotations

from importlib import import_module

from django.conf import settings
from django.core.cache import caches
from django.core.files.storage import storages
from django.template import engines
from django.template.backends.django import DjangoTemplates
from django.urls import URLResolver, get_resolver
from django.utils.module_loading import import_string
from django.utils.translation import override

from .errors import GreenroomError


class NotWarm(GreenroomError):
    """Something that requests need can't be loaded."""


def up() -> None:
    """Load URLconfs, templates' engines and libraries, backends, translations."""
    resolver = get_resolver(settings.ROOT_URLCONF)
    _load(resolver)
    for status in (400, 403, 404, 500):
        resolver.resolve_error_handler(status)
    for engine in engines.all():
        if isinstance(engine, DjangoTemplates):
            # The libraries of {% load %}, and the loaders.
            _ = engine.engine.template_libraries, engine.engine.template_loaders
    for alias in settings.CACHES:
        _ = caches[alias]
    for alias in settings.STORAGES:
        _ = storages[alias]
    for name in (
        *settings.FILE_UPLOAD_HANDLERS,
        *getattr(settings, "AUTHENTICATION_BACKENDS", ()),
        settings.MESSAGE_STORAGE,
        settings.CSRF_FAILURE_VIEW,
        settings.SESSION_SERIALIZER,
        settings.DEFAULT_EXCEPTION_REPORTER,
        settings.DEFAULT_EXCEPTION_REPORTER_FILTER,
        settings.EMAIL_BACKEND,
    ):
        import_string(name)
    if "django.contrib.sessions" in settings.INSTALLED_APPS:
        import_module(settings.SESSION_ENGINE)
    if settings.USE_I18N:
        for language, _name in settings.LANGUAGES:
            if language == settings.LANGUAGE_CODE:
                with override(language):
                    pass


def _load(resolver: URLResolver) -> None:
    _ = resolver.reverse_dict
    for entry in resolver.url_patterns:
        if isinstance(entry, URLResolver):
            _load(entry)
        else:
            # A view that was given by its dotted name is imported here.
            _ = entry.lookup_str
