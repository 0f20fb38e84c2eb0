"""The same answers, log records and signals as Django's own handler gives over WSGI."""

from __future__ import annotations

import asyncio
import io
import logging
import re
import sys
import traceback
from typing import Any

import pytest
from django.core.exceptions import (
    RequestDataTooBig,
    SuspiciousOperation,
    TooManyFieldsSent,
)
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import got_request_exception, request_finished, request_started
from django.http import FileResponse, HttpResponse, JsonResponse, StreamingHttpResponse
from django.template import Context, Template
from django.template.response import SimpleTemplateResponse
from django.test import override_settings
from django.urls import include, path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import never_cache
from django.views.decorators.http import condition, require_POST
from django.views.decorators.vary import vary_on_headers

import driver
from driver import Answer, Site
from greenroom import loop_safe
from project import middleware, urls

POST = {"method": "POST", "CONTENT_TYPE": "application/x-www-form-urlencoded"}


async def posted(request: Any) -> HttpResponse:
    return JsonResponse(request.POST.dict())


async def cookies(request: Any) -> HttpResponse:
    response = HttpResponse("cookies", status=201, reason="Made", headers={"X-A": "b"})
    response.set_cookie("a", "b c", httponly=True, samesite="Lax")
    response.set_signed_cookie("d", "e")
    response.delete_cookie("f")
    return response


class Rendered(SimpleTemplateResponse):
    @property
    def rendered_content(self) -> str:
        return Template("{{ word }}").render(Context(self.context_data))


async def post_render(request: Any) -> HttpResponse:
    response = Rendered("none.html", {"word": "rendered"})
    response.add_post_render_callback(lambda made: made.headers.setdefault("X-Post", "called"))
    return response


async def is_rendered(request: Any) -> HttpResponse:
    return Rendered("none.html", {"word": "rendered before"}).render()


async def large_stream(request: Any) -> StreamingHttpResponse:
    return StreamingHttpResponse(b"x" * 300 for _ in range(4))


async def file(request: Any) -> FileResponse:
    return FileResponse(io.BytesIO(b"file" * 100), as_attachment=True, filename="f.txt")


@condition(etag_func=lambda request: '"tag"')
async def tagged(request: Any) -> HttpResponse:
    return HttpResponse("tagged")


@require_POST
async def only_post(request: Any) -> HttpResponse:
    return HttpResponse("posted")


@method_decorator([never_cache, vary_on_headers("X-B")], name="get")
class Decorated(View):
    async def get(self, request: Any) -> HttpResponse:
        return HttpResponse("decorated")


class Options(View):
    async def get(self, request: Any) -> HttpResponse:
        return HttpResponse("get")

    async def options(self, request: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        return HttpResponse("own options")


async def raises(request: Any, kind: str) -> HttpResponse:
    await asyncio.sleep(0)
    if kind == "dirty":
        raise SuspiciousOperation("line\nbreak")
    if kind == "chained":
        try:
            raise KeyError("first")
        except KeyError as exc:
            raise ValueError("second") from exc
    raise {"big": RequestDataTooBig, "fields": TooManyFieldsSent}[kind]("limit")


def handler400(request: Any, exception: Any) -> HttpResponse:
    """It looks at what could not be read."""
    return HttpResponse(f"own 400 {request.POST.dict()}", status=400)


urlpatterns = [
    *urls.urlpatterns,
    path("posted/", posted),
    path("cookies/", cookies),
    path("post-render/", post_render),
    path("is-rendered/", is_rendered),
    path("large-stream/", large_stream),
    path("attachment/", file),
    path("tagged/", tagged),
    path("only-post/", only_post),
    path("decorated/", Decorated.as_view()),
    path("options/", Options.as_view()),
    path("more/<kind>/", raises),
    path("sub/", include([path("page/", urls.views.hello, name="page")])),
]

REQUESTS: list[tuple[str, dict[str, Any]]] = [
    *(
        (path, {})
        for path in (
            "/hello/",
            "/plain/",
            "/class/",
            "/none/",
            "/template-error/",
            "/raise/404/",
            "/raise/403/",
            "/raise/400/",
            "/raise/suspicious/",
            "/raise/error/",
            "/status/204/",
            "/status/304/",
            "/status/418/",
            "/status/503/",
            "/nowhere/",
            "/hello",
            "//hello/",
            "/cookies/",
            "/post-render/",
            "/is-rendered/",
            "/large-stream/",
            "/attachment/",
            "/tagged/",
            "/only-post/",
            "/decorated/",
            "/options/",
            "/more/dirty/",
            "/more/chained/",
            "/more/big/",
            "/more/fields/",
            "/sub/page/",
            "/sub/page",
            "/%0a/",
            "/n\nl/",
        )
    ),
    ("/hello/", {"method": "HEAD"}),
    ("/hello/", {"method": "OPTIONS"}),
    ("/hello/", {"method": "POST"}),
    ("/options/", {"method": "OPTIONS"}),
    ("/class/", {"method": "OPTIONS"}),
    ("/class/", {"method": "DELETE"}),
    ("/only-post/", POST),
    ("/posted/", {**POST, "body": b"a=b&c=d"}),
    ("/posted/", {**POST, "body": b"a=b&c=d&e=f&g=h&i=j"}),
    ("/posted/", {**POST, "body": b"a=" + b"b" * 300}),
    ("/posted/", {"method": "POST", "CONTENT_TYPE": "multipart/form-data", "body": b"x"}),
    ("/tagged/", {"HTTP_IF_NONE_MATCH": '"tag"'}),
    ("/large-stream/", {"HTTP_ACCEPT_ENCODING": "gzip"}),
    ("/hello/", {"HTTP_HOST": "evil.example"}),
    ("/hello/", {"HTTP_HOST": "evil.example", "PATH_INFO": "/hello"}),
    ("/hello/", {"SCRIPT_NAME": "/prefix"}),
    ("/hello/", {"PATH_INFO": ""}),
    ("/hello/", {"PATH_INFO": "/\xff/"}),
    ("/hello/", {"HTTP_COOKIE": "a=b; sessionid=bad"}),
]

SETS = {
    "none": (),
    "django": (
        "django.middleware.security.SecurityMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.locale.LocaleMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
        "django.middleware.clickjacking.XFrameOptionsMiddleware",
        "django.middleware.http.ConditionalGetMiddleware",
    ),
    "gzip": (
        "django.middleware.gzip.GZipMiddleware",
        "django.middleware.http.ConditionalGetMiddleware",
    ),
    "own": (
        "project.middleware.function",
        "project.middleware.Mixin",
        "project.middleware.either",
        "project.middleware.not_used",
    ),
    "refuses": ("project.middleware.function", "project.middleware.refuses"),
    "urlconf": ("project.middleware.no_urlconf",),
    "falsy": ("project.middleware.Falsy", "project.middleware.function"),
    "broken": ("project.middleware.function", "project.middleware.BrokenHooks"),
    "template": ("project.middleware.NoTemplate",),
}


def no_urlconf(get_response: Any) -> Any:
    def inner(request: Any) -> Any:
        request.urlconf = None
        return get_response(request)

    return inner


class Falsy:
    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        return self.get_response(request)

    def process_view(self, request: Any, *args: Any) -> Any:
        # Not None, so that Django takes it for the response.
        return False if "posted" in request.path else None

    def process_exception(self, request: Any, exception: Any) -> Any:
        return 0


class BrokenHooks(Falsy):
    def process_exception(self, request: Any, exception: Any) -> Any:
        raise LookupError("in the hook")


class NoTemplate(Falsy):
    def process_view(self, request: Any, *args: Any) -> Any:
        return None

    def process_template_response(self, request: Any, response: Any) -> Any:
        return None


for _each in (no_urlconf, Falsy, BrokenHooks, NoTemplate):
    _each.__module__ = "project.middleware"
    setattr(middleware, _each.__name__, _each)

SETTINGS: dict[str, Any] = {
    "ROOT_URLCONF": __name__,
    "SESSION_ENGINE": "django.contrib.sessions.backends.signed_cookies",
    "DATA_UPLOAD_MAX_NUMBER_FIELDS": 4,
    "DATA_UPLOAD_MAX_MEMORY_SIZE": 200,
}


class Seen:
    """What a handler answered, logged and sent."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.caplog = caplog
        self.signals: list[str] = []
        self.receivers = []
        for signal, name in (
            (request_started, "started"),
            (got_request_exception, "exception"),
            (request_finished, "finished"),
        ):
            self.receivers.append((signal, loop_safe(self.receiver(name))))

    def receiver(self, name: str) -> Any:
        return lambda **kwargs: self.signals.append(name)

    def __enter__(self) -> Seen:
        self.caplog.clear()
        for signal, receiver in self.receivers:
            signal.connect(receiver)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for signal, receiver in self.receivers:
            signal.disconnect(receiver)

    def report(self, answer: Answer | BaseException) -> Any:
        logged = [
            (
                record.name,
                record.levelname,
                record.getMessage(),
                getattr(record, "status_code", None),
                repr(record.exc_info[1]) if record.exc_info else None,
            )
            for record in self.caplog.records
            if record.name.startswith("django.")
            # Which Django's handler adapted, and ours doesn't.
            and "handler adapted" not in record.getMessage()
        ]
        if isinstance(answer, BaseException):
            return repr(answer), logged, self.signals
        headers = sorted(
            # Django 5.2 leaves a space before a cookie.
            (name, re.sub(r"(?<==)[^;]+:[^;]+", "signed", value.strip()))
            for name, value in answer.headers
        )
        body: Any = answer.body
        if answer.header("Content-Encoding") == "gzip" or b"<title>" in body:
            # Salted, or a technical page with the stack.
            body = re.findall(rb"<title>.*?</title>", body, re.DOTALL)
            headers = [each for each in headers if each[0] not in ("Content-Length", "ETag")]
        return answer.status, headers, body, logged, self.signals


def plain_django(path: str, **request: Any) -> Answer:
    answer = Answer()

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
        answer.status, answer.headers = status, headers

    environ = driver.environ_of(path, **request)
    del environ["wsgi.async"]
    result = WSGIHandler()(environ, start_response)
    try:
        answer.parts.extend(result)
    finally:
        result.close()
    return answer


def _attempt(fn: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        return fn(*args, **kwargs)
    except Exception as exc:
        return exc


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
@pytest.mark.parametrize("names", SETS)
def test_the_same_as_django(
    placement: str, names: str, debug: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "django.request")
    different = []
    with (
        Site(placement, middleware=SETS[names], **SETTINGS) as site,
        override_settings(DEBUG=debug),
    ):
        _ = site.app

        async def main(site: Site) -> None:
            for path, request in REQUESTS:
                with Seen(caplog) as seen:
                    ours: Any
                    try:
                        ours = await site.ask(path, **request)
                    except Exception as exc:
                        ours = exc
                    await site.idle()
                    report = seen.report(ours)
                with Seen(caplog) as seen:
                    theirs = await asyncio.to_thread(_attempt, plain_django, path, **request)
                    if isinstance(theirs, BaseException):
                        # Django never ends a request that it could not answer.
                        seen.signals.append("finished")
                    wanted = seen.report(theirs)
                if report != _without_loading(wanted):
                    different.append((path, request, report, wanted))

        site.run(main)
    for where, request, report, wanted in different:
        print(where, request, f"  ours   {report}", f"  django {wanted}", sep="\n", file=sys.stderr)
    assert not different


def _without_loading(report: Any) -> Any:
    """Without what is logged when middlewares are loaded: here for each request of Django's."""
    *first, logged, signals = report
    return (*first, [each for each in logged if "MiddlewareNotUsed" not in each[2]], signals)


def test_a_middleware_that_is_not_used_is_logged_as_django_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "django.request")
    said = []
    with (
        Site("auto", middleware=("project.middleware.not_used",)) as site,
        override_settings(DEBUG=True),
    ):
        for make in (lambda: site.app, WSGIHandler):
            caplog.clear()
            make()
            said.append([(r.msg, str(r.args)) for r in caplog.records if "NotUsed" in r.msg])
    assert said[0] == said[1] != []


def test_exceptions_are_propagated_where_django_does(placement: str) -> None:
    with (
        Site(placement, DEBUG_PROPAGATE_EXCEPTIONS=True, **SETTINGS) as site,
        pytest.raises(ValueError, match="second") as caught,
    ):
        site.get("/more/chained/")
    assert isinstance(caught.value.__cause__, KeyError)
    assert "raise KeyError" in "".join(traceback.format_exception(caught.value))


def test_a_forced_script_name(placement: str) -> None:
    with Site(placement, FORCE_SCRIPT_NAME="/forced", **SETTINGS) as site:
        answer = site.get("/plain-crossing/")
    assert '"prefix": "/forced/"' in answer.text
