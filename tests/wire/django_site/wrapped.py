"""Our application inside of a plain WSGI wrapper, as tracing tools add it."""

from .wsgi import application as inner


def application(environ, start_response):
    environ["site.wrapped"] = True
    yield from inner(environ, start_response)
