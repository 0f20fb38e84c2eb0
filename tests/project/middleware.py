"""Middlewares of every style."""

from __future__ import annotations

from contextvars import ContextVar

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.exceptions import MiddlewareNotUsed, PermissionDenied
from django.http import HttpResponse
from django.urls import set_script_prefix
from django.utils import timezone, translation
from django.utils.decorators import sync_and_async_middleware
from django.utils.deprecation import MiddlewareMixin

from .views import place_now, variable

log: list[str] = []


class Place:
    """Says on the request where the chain ran."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        request.chain_place = place_now()
        return self.get_response(request)


class Method(MiddlewareMixin):
    """Another method than the one that was asked with."""

    def process_request(self, request):
        request.method = request.headers.get("X-Method", request.method)


def function(get_response):
    def middleware(request):
        log.append("function in")
        response = get_response(request)
        log.append(f"function out {response.status_code}")
        return response

    return middleware


class Mixin(MiddlewareMixin):
    def process_request(self, request):
        log.append("mixin in")

    def process_view(self, request, view, args, kwargs):
        log.append("mixin view")

    def process_exception(self, request, exception):
        log.append(f"mixin exception {type(exception).__name__}")

    def process_template_response(self, request, response):
        log.append("mixin template")
        response.context_data["word"] = "hook"
        return response

    def process_response(self, request, response):
        log.append(f"mixin out {response.status_code}")
        return response


class Coroutine:
    """Only a coroutine, with hooks of both kinds."""

    sync_capable = False
    async_capable = True

    def __init__(self, get_response):
        assert iscoroutinefunction(get_response)
        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request):
        log.append("coroutine in")
        response = await self.get_response(request)
        log.append(f"coroutine out {response.status_code}")
        return response

    async def process_view(self, request, view, args, kwargs):
        log.append("coroutine view")

    async def process_exception(self, request, exception):
        log.append(f"coroutine exception {type(exception).__name__}")

    async def process_template_response(self, request, response):
        log.append("coroutine template")
        return response


@sync_and_async_middleware
def either(get_response):
    if iscoroutinefunction(get_response):

        async def middleware(request):
            log.append("either (coroutine) in")
            return await get_response(request)

    else:

        def middleware(request):
            log.append("either in")
            response = get_response(request)
            log.append(f"either out {response.status_code}")
            return response

    return middleware


def not_used(get_response):
    raise MiddlewareNotUsed("not here")


def factory_of_none(get_response):
    return None


def returns_none(get_response):
    def middleware(request):
        get_response(request)

    return middleware


def refuses(get_response):
    def middleware(request):
        raise PermissionDenied("by the middleware")

    return middleware


class Answers(MiddlewareMixin):
    """Answers in the place of the view, from the hook that the query names."""

    def process_request(self, request):
        return HttpResponse("request hook") if request.GET.get("by") == "request" else None

    def process_view(self, request, view, args, kwargs):
        return HttpResponse("view hook") if request.GET.get("by") == "view" else None

    def process_exception(self, request, exception):
        return HttpResponse("exception hook") if request.GET.get("by") == "exception" else None


class Sets:
    """Sets all that is local to a request from the query, and notes it afterwards."""

    after: ContextVar[str]

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        word = request.GET.get("word")
        if word is None:
            return self.get_response(request)
        variable.set(word)
        translation.activate(word)
        timezone.activate({"de": "Europe/Berlin", "fr": "Europe/Paris"}[word])
        set_script_prefix(f"/{word}/")
        request.urlconf = f"project.urls_{word}"
        response = self.get_response(request)
        response["X-After"] = f"{variable.get()} {translation.get_language()}"
        return response


def other_urlconf(get_response):
    """Changes the URLconf after the placement was decided."""

    def middleware(request):
        request.urlconf = "project.urls_other"
        return get_response(request)

    return middleware
