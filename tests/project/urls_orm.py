"""One pattern, behind which each test puts views of its own: see tests/unit/db/conftest.py."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import path

views: dict[str, Callable[[HttpRequest], Awaitable[Any] | Any]] = {}
results: dict[str, Any] = {}
errors: dict[str, BaseException] = {}


async def call(request: HttpRequest, name: str) -> HttpResponseBase:
    """What the view returns, or raises, is kept for the test."""
    try:
        result = await views[name](request)
    except BaseException as exc:
        errors[name] = exc
        raise
    results[name] = result
    return result if isinstance(result, HttpResponseBase) else HttpResponse()


def plain(request: HttpRequest, name: str) -> HttpResponseBase:
    """A plain view: `views[name]` is a function."""
    views[name](request)
    return HttpResponse()


urlpatterns = [path("call/<name>/", call), path("plain/<name>/", plain)]
