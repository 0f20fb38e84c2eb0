"""Sentry's SDK: a transaction and a scope for each request, where the request runs.

Its integration of Django wraps `WSGIHandler.__call__` in `SentryWsgiMiddleware`. Our
application is none, so `traced` calls that middleware around what answers: in the bridge of
a request on the loop, or on its thread. It is plain code that sets context variables, which
are the request's own in both.

What is wrapped differs from Django's handler in two things. A cancellation is no error to
report. And the scopes aren't left with the middleware: what comes after it (a stream, the
receivers of `request_finished`, the server's log of an error) is the same request's. So the
caller's context has to be the request's alone, and so has the scope in it: the one that the
process had when it began to serve is in the contexts of all requests, and a span that one of
them begins there would be the trace of what others report meanwhile.

The rest of the integration is reached where it was put: `BaseHandler.get_response`,
`response_for_exception`, cursors, receivers of signals. (Those get wrappers, which
`greenroom.placement` looks through.)

Used: `SentryWsgiMiddleware`, `DjangoIntegration`, `get_client`, `get_isolation_scope`,
`get_current_scope`, `get_current_span`, `Scope.fork`, `Scope.set_isolation_scope`,
`Scope.set_current_scope`, which are public; and if it is there `utils._get_installed_modules`.
"""

from __future__ import annotations

import sys
from asyncio import CancelledError
from collections.abc import Callable
from typing import Any, TypeVar

from django.conf import settings
from django.utils.module_loading import import_string

T = TypeVar("T")
Environ = dict[str, Any]


def is_loaded() -> bool:
    """Whether there may be something to call: no cost to projects that don't use it."""
    return "sentry_sdk.integrations.django" in sys.modules


def traced(answer: Callable[[], T], environ: Environ, head: Callable[[], tuple[Any, Any]]) -> T:
    """Call `answer` within a transaction; `head` then gives the status and the fields."""
    found = _integration()
    if found is None:
        return answer()
    sdk = sys.modules["sentry_sdk"]
    sdk.Scope.set_current_scope(sdk.get_current_scope().fork())
    made: T
    ended: BaseException | None = None
    scope = None

    def app(environ: Environ, start_response: Any) -> Any:
        nonlocal made, ended, scope
        scope = sdk.get_isolation_scope()
        try:
            made = answer()
        except (CancelledError, GeneratorExit) as exc:
            span = sdk.get_current_span()
            if span is not None:
                span.set_status("cancelled")
            ended = exc
        else:
            start_response(*head())
        return ()

    try:
        _middleware(found, app)(environ, _nothing)
        if ended is not None:
            raise ended
        return made
    finally:
        # The traceback refers to this frame.
        del app
        ended = None
        if scope is not None:
            sdk.Scope.set_isolation_scope(scope)


def wrapped(app: Callable[[Environ, Any], Any]) -> Callable[[Environ, Any], Any]:
    """`app` as the SDK would have it on a thread of another server's."""
    found = _integration()
    return app if found is None else _middleware(found, app)


def warm_up() -> None:
    """Read what the first report of an error would read, on the loop for up to a second.

    That is the versions of all packages, which the SDK then keeps.
    """
    read = getattr(sys.modules.get("sentry_sdk.utils"), "_get_installed_modules", None)
    if read is not None and _integration() is not None:
        read()


def _integration() -> Any:
    """Sentry's integration of Django, if the project has turned it on."""
    module = sys.modules.get("sentry_sdk.integrations.django")
    if module is None:
        return None
    return sys.modules["sentry_sdk"].get_client().get_integration(module.DjangoIntegration)


def _middleware(found: Any, app: Callable[[Environ, Any], Any]) -> Callable[[Environ, Any], Any]:
    middleware = import_string("sentry_sdk.integrations.wsgi.SentryWsgiMiddleware")
    made: Callable[[Environ, Any], Any] = middleware(
        app,
        use_x_forwarded_for=settings.USE_X_FORWARDED_HOST,
        span_origin=found.origin,
        http_methods_to_capture=found.http_methods_to_capture,
    )
    return made


def _nothing(*head: Any) -> None:
    """The answer is begun by whoever asked for it."""
