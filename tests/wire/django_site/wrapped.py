"""Our application inside of a plain WSGI wrapper, as tracing tools add it."""

from .wsgi import application as inner


def application(environ, start_response):
    environ["site.wrapped"] = True
    iterable = inner(environ, start_response)
    try:
        yield from iterable
    finally:
        if hasattr(iterable, "close"):
            iterable.close()
