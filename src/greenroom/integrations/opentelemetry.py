"""OpenTelemetry's middleware of Django: a span that ends, though its request is cancelled.

`opentelemetry-instrumentation-django` ends a request's span in `process_response`, which no
cancelled request comes to: the span would never be exported, the counter of active requests
never come down, and its context be left by the garbage collector. Under WSGI it never meets
a cancellation. Here it is given the answer that nobody gets any more, with the status by
which nginx knows such a request.

Replaced: `_DjangoMiddleware.__call__`.
"""

from __future__ import annotations

from asyncio import CancelledError
from functools import wraps
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from . import when_imported

CLIENT_CLOSED_REQUEST = 499


def apply() -> None:
    when_imported("opentelemetry.instrumentation.django.middleware.otel_middleware", _middleware)


def _middleware(module: Any) -> None:
    call = module._DjangoMiddleware.__call__

    @wraps(call)
    def __call__(self: Any, request: HttpRequest) -> HttpResponseBase:
        try:
            return call(self, request)  # type: ignore[no-any-return]
        except (CancelledError, GeneratorExit):
            self.process_response(
                request,
                HttpResponse(status=CLIENT_CLOSED_REQUEST, reason="Client Closed Request"),
            )
            raise

    module._DjangoMiddleware.__call__ = __call__
