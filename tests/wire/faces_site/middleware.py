"""Middlewares of each style; that they are loop-safe is said in the settings."""

from __future__ import annotations

from urllib.parse import quote

from asgiref.sync import iscoroutinefunction
from django.http import HttpResponse
from django.utils.decorators import sync_and_async_middleware
from django.utils.deprecation import MiddlewareMixin


class Outer(MiddlewareMixin):
    def process_request(self, request):
        if request.headers.get("X-Answer") == "outer":
            return HttpResponse("from the middleware", status=202)
        if request.headers.get("X-Raise") == "outer":
            raise ValueError("in process_request")
        return None

    def process_response(self, request, response):
        response["X-Outer"] = quote(request.path_info)
        return response


@sync_and_async_middleware
def coroutine(get_response):
    if iscoroutinefunction(get_response):

        async def middleware(request):
            response = await get_response(request)
            response["X-Inner"] = "seen"
            return response

    else:

        def middleware(request):
            response = get_response(request)
            response["X-Inner"] = "seen"
            return response

    return middleware


class Hooks(MiddlewareMixin):
    def process_view(self, request, view, args, kwargs):
        if request.headers.get("X-Answer") == "view":
            return HttpResponse("from process_view")
        return None

    def process_exception(self, request, exception):
        if isinstance(exception, LookupError):
            return HttpResponse(f"caught {exception}", status=418)
        return None

    def process_template_response(self, request, response):
        response.context_data["word"] += " of the middleware"
        return response
