"""Each view as a plain function and as a coroutine."""

from __future__ import annotations

import hashlib
import io
from datetime import UTC, datetime
from functools import wraps

from django.contrib import messages
from django.core.exceptions import BadRequest, PermissionDenied, SuspiciousOperation
from django.http import (
    FileResponse,
    Http404,
    HttpResponse,
    HttpResponseNotModified,
    HttpResponsePermanentRedirect,
    HttpResponseRedirect,
    JsonResponse,
    StreamingHttpResponse,
)
from django.template.response import SimpleTemplateResponse
from django.urls import path, re_path
from django.utils.translation import get_language
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import last_modified, require_http_methods

HEADERS = ("Host", "Cookie", "User-Agent", "Accept", "X-Custom", "X_Under", "X-Forwarded-Proto")


def echo(request, **kwargs):
    """All that a view can know of its request."""
    said = {
        "method": request.method,
        "path": request.path,
        "path_info": request.path_info,
        "full": request.get_full_path(),
        "uri": request.build_absolute_uri().partition("://")[2].partition("/")[2],
        "scheme": request.scheme,
        "query": request.META["QUERY_STRING"],
        "get": {key: request.GET.getlist(key) for key in request.GET},
        "cookies": request.COOKIES,
        "headers": {name: request.headers.get(name) for name in HEADERS},
        "type": [request.content_type, request.content_params, request.encoding],
        "length": request.META.get("CONTENT_LENGTH") or None,
        "script": request.META["SCRIPT_NAME"],
        "language": get_language(),
        "kwargs": kwargs,
    }
    said["post"] = {key: request.POST.getlist(key) for key in request.POST}
    said["files"] = {
        name: [file.name, file.size, file.content_type, hashlib.sha256(file.read()).hexdigest()]
        for name, file in request.FILES.items()
    }
    return JsonResponse(said)


def body(request):
    return HttpResponse(f"{len(request.body)} {hashlib.sha256(request.body).hexdigest()}")


def first_lines(request):
    return HttpResponse(repr([request.readline()[:20], request.read(10)]))


ERRORS = {
    "404": Http404("no such page"),
    "403": PermissionDenied("no"),
    "400": BadRequest("bad"),
    "suspicious": SuspiciousOperation("odd"),
    "error": ValueError("broken"),
    "lookup": LookupError("it"),
    "unicode": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "odd"),
}


def fails(request, name):
    error = ERRORS[name]
    raise type(error)(*error.args)


def nothing(request):
    return None


def status(request, code):
    return HttpResponse(b"a body" if code not in (204, 304) else b"", status=code)


def reason(request):
    return HttpResponse("odd", status=299, reason="Odd One")


def not_modified(request):
    return HttpResponseNotModified()


def headers(request):
    response = HttpResponse("headers", content_type="text/plain; charset=latin-1")
    response["X-Latin"] = "é"
    response["X-Utf"] = "日本"
    response["X-Empty"] = ""
    response["X-Long"] = "x" * 3000
    response["cache-control"] = "private"
    return response


def cookies(request):
    response = HttpResponse("cookies")
    response.set_cookie("one", "1", max_age=60, httponly=True, samesite="Lax")
    response.set_cookie("two", 'a "quoted" value; é', path="/p")
    response.set_cookie("three", "3", secure=True, domain="example.com")
    response.delete_cookie("four")
    return response


def redirect(request):
    return HttpResponseRedirect("/elsewhere/?a=é#b")


def permanent(request):
    return HttpResponsePermanentRedirect("//other.example/")


def session(request):
    request.session["count"] = request.session.get("count", 0) + 1
    return HttpResponse(str(request.session["count"]))


def message(request):
    messages.info(request, "hello")
    return HttpResponse(" ".join(str(each) for each in messages.get_messages(request)))


def long_text(request):
    return HttpResponse("a long text, over and over; " * 100)


class _Rendered(SimpleTemplateResponse):
    @property
    def rendered_content(self):
        return f"{self.context_data['word']} rendered"


def template(request):
    return _Rendered("none.html", {"word": "view"})


def file(request):
    return FileResponse(io.BytesIO(b"content of a file " * 5000), filename="a.txt")


def attachment(request):
    return FileResponse(io.BytesIO(b"\x00\xff" * 10), as_attachment=True, filename="é.bin")


def parts(request):
    return StreamingHttpResponse(iter(["one, ", b"two, ", "drei ü", ""]))


def no_parts(request):
    return StreamingHttpResponse(iter([]))


def sized_parts(request):
    return StreamingHttpResponse(iter([b"12345", b"67890"]), headers={"Content-Length": "10"})


def coroutine_parts(request):
    async def items():
        for each in ("one, ", b"two, ", "drei ü", ""):
            yield each

    return StreamingHttpResponse(items())


def host(request):
    return HttpResponse(request.get_host())


def changed(*args):
    return datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)


@last_modified(changed)
def dated(request):
    return HttpResponse("dated")


@require_http_methods(["GET", "POST"])
def some_methods(request):
    return HttpResponse("allowed")


def page_not_found(request, exception):
    return HttpResponse(f"nothing at {request.path}", status=404)


handler404 = page_not_found


def _coroutine(view):
    @wraps(view)
    async def call(request, **kwargs):
        return view(request, **kwargs)

    return call


def _both(route, view, make=path):
    """`/plain/…` and `/coroutine/…`; a POST needs no token but at `token/`."""
    views = {"plain": view, "coroutine": _coroutine(view)}
    for kind, each in views.items():
        prefix = f"^{kind}/" if make is re_path else f"{kind}/"
        yield make(prefix + route, each if route == "token/" else csrf_exempt(each))


urlpatterns = [
    *_both("echo/", echo),
    *_both("echo/<str:word>/", echo),
    *_both("rest/<path:rest>", echo),
    *_both(r"number/(?P<number>[0-9]+)/$", echo, re_path),
    *_both("body/", body),
    *_both("lines/", first_lines),
    *_both("fails/<name>/", fails),
    *_both("nothing/", nothing),
    *_both("status/<int:code>/", status),
    *_both("reason/", reason),
    *_both("not-modified/", not_modified),
    *_both("headers/", headers),
    *_both("cookies/", cookies),
    *_both("redirect/", redirect),
    *_both("permanent/", permanent),
    *_both("session/", session),
    *_both("message/", message),
    *_both("long/", long_text),
    *_both("template/", template),
    *_both("file/", file),
    *_both("attachment/", attachment),
    *_both("parts/", parts),
    *_both("no-parts/", no_parts),
    *_both("sized-parts/", sized_parts),
    *_both("coroutine-parts/", coroutine_parts),
    *_both("host/", host),
    *_both("dated/", dated),
    *_both("some-methods/", some_methods),
    *_both("token/", echo),
]
