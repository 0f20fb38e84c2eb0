"""What runs on the loop is known by more than a name that anything can take."""

from __future__ import annotations

import asyncio
import threading
from functools import update_wrapper, wraps
from types import FunctionType
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.signals import request_finished, request_started
from django.db import close_old_connections
from django.dispatch import Signal
from django.http import HttpResponse, StreamingHttpResponse
from django.middleware.common import CommonMiddleware
from django.urls import path
from django.utils.module_loading import import_string

from driver import Site
from greenroom import AsyncDjangoApplication, conf, loop_safe, placement
from greenroom.placement import Known, why_unsafe
from greenroom.user_code import is_loop_safe
from project import middleware, views


def reasons(*paths: str, **settings: Any) -> list[str]:
    with Site("auto", middleware=paths, **settings) as site:
        return list(site.app.handler.judge.surroundings())


def test_a_wrapper_that_took_the_name_of_known_code() -> None:
    @wraps(close_old_connections)
    def wrapper(**kwargs: Any) -> None:
        pass

    class Traced(CommonMiddleware):
        pass

    Traced.__module__ = CommonMiddleware.__module__
    Traced.__qualname__ = CommonMiddleware.__qualname__
    assert why_unsafe(close_old_connections) is None
    assert why_unsafe(CommonMiddleware) is None
    assert why_unsafe(wrapper) is not None
    assert why_unsafe(Traced) is not None


def test_receivers_are_seen_through_the_spans_of_sentry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its SDK wraps each receiver of a signal, at each call."""
    module = {**globals(), "__name__": placement.SENTRY_RECEIVERS}

    def patch(receiver: Any) -> Any:
        @wraps(receiver)
        def wrapper(**kwargs: Any) -> Any:
            return receiver(**kwargs)

        return wraps(receiver)(FunctionType(wrapper.__code__, module, closure=wrapper.__closure__))

    def unknown(**kwargs: Any) -> None:
        pass

    live = Signal._live_receivers
    monkeypatch.setattr(
        Signal, "_live_receivers", lambda self, sender: ([*map(patch, live(self, sender)[0])], [])
    )
    for first, why in (("1.0", []), ("99.0", ["close_old_connections", "reset_queries"])):
        monkeypatch.setattr(placement, "SENTRY", Known("Django", first, "100.0"))
        placement._sentry_was_read.cache_clear()
        assert (why_unsafe(patch(close_old_connections)) is None) == (not why)
        assert is_loop_safe(patch(close_old_connections)) == (not why)
        assert why_unsafe(patch(unknown)) is not None
        assert not is_loop_safe(patch(unknown))
        held = " ".join(reasons())
        assert all(name in held for name in why)
        assert bool(held) == bool(why)
    placement._sentry_was_read.cache_clear()


def test_the_hooks_of_opentelemetry_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"{placement.OPENTELEMETRY}.otel_middleware._DjangoMiddleware"
    kind = import_string(path)

    def hook(span: Any, request: Any) -> None:
        pass

    assert why_unsafe(kind) is None
    monkeypatch.setattr(kind, "_otel_request_hook", hook)
    assert "hook, which is not known to be loop-safe" in str(why_unsafe(kind))
    monkeypatch.setattr(kind, "_otel_request_hook", loop_safe(hook))
    assert why_unsafe(kind) is None


def test_a_mark_belongs_to_what_was_marked() -> None:
    @loop_safe
    def marked() -> None:
        pass

    @wraps(marked)
    def wrapper() -> None:
        pass

    @loop_safe
    class Marked:
        def __call__(self) -> None: ...

        @loop_safe
        def method(self) -> None: ...

        def other(self) -> None: ...

    class Inherits(Marked):
        pass

    class Anything:
        def __getattr__(self, name: str) -> Any:
            return True

    assert [why_unsafe(code) for code in (marked, Marked, Marked(), Marked().method)] == [None] * 4
    wrapped = update_wrapper(lambda: None, marked)
    for code in (wrapper, wrapped, Inherits, Inherits(), Anything(), Marked().other):
        assert why_unsafe(code) is not None


def test_receivers_of_our_own_sender() -> None:
    def receiver(**kwargs: Any) -> None:
        pass

    class Weak:
        def method(self, **kwargs: Any) -> None:
            pass

    weak = Weak()
    with Site("auto") as site:
        judge = site.app.handler.judge
        for code, sender, held in (
            (receiver, AsyncDjangoApplication, True),
            (receiver, CommonMiddleware, False),
            (weak.method, None, True),
        ):
            request_started.connect(code, sender=sender, dispatch_uid="uid")
            try:
                assert bool(judge.surroundings()) is held
            finally:
                request_started.disconnect(sender=sender, dispatch_uid="uid")
        assert judge.surroundings() == []


def test_another_receiver_with_the_same_uid_is_judged() -> None:
    def receiver(**kwargs: Any) -> None:
        pass

    with Site("auto") as site:
        judge = site.app.handler.judge
        request_finished.connect(loop_safe(lambda **kw: None), weak=False, dispatch_uid="uid")
        assert judge.surroundings() == []
        request_finished.disconnect(dispatch_uid="uid")
        request_finished.connect(receiver, dispatch_uid="uid")
        try:
            assert judge.surroundings() != []
        finally:
            request_finished.disconnect(dispatch_uid="uid")


@pytest.mark.parametrize(
    ("path", "settings", "reason"),
    [
        (
            "django.middleware.cache.CacheMiddleware",
            {"CACHES": {"default": {"BACKEND": "a.B", "KEY_FUNCTION": "json.dumps"}}},
            "calls json.dumps",
        ),
        (
            "django.middleware.cache.CacheMiddleware",
            {
                "CACHES": {
                    "default": {
                        "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
                        "KEY_FUNCTION": "json.dumps",
                    }
                }
            },
            "calls json.dumps",
        ),
        (
            "django.middleware.csrf.CsrfViewMiddleware",
            {"CSRF_FAILURE_VIEW": "nowhere.view"},
            "calls nowhere.view",
        ),
        (
            "django.middleware.csrf.CsrfViewMiddleware",
            {
                "TEMPLATES": [
                    {
                        "BACKEND": "django.template.backends.django.DjangoTemplates",
                        "OPTIONS": {
                            "loaders": [
                                ("django.template.loaders.locmem.Loader", {"403_csrf.html": "own"})
                            ]
                        },
                    }
                ]
            },
            "renders the template 403_csrf.html",
        ),
        (
            "django.contrib.sessions.middleware.SessionMiddleware",
            {
                "SESSION_ENGINE": "django.contrib.sessions.backends.signed_cookies",
                "SESSION_SERIALIZER": "json.JSONEncoder",
            },
            "calls json.JSONEncoder",
        ),
        (
            "django.contrib.messages.middleware.MessageMiddleware",
            {"SIGNING_BACKEND": "project.signing.Own"},
            "calls project.signing.Own",
        ),
    ],
)
def test_settings_that_bring_in_other_code(path: str, settings: Any, reason: str) -> None:
    (held,) = reasons(path, **settings)
    assert reason in held


@pytest.mark.parametrize(
    "settings",
    [{"TEMPLATES": []}, {"USE_I18N": False}, {"CACHES": {}}, {"STORAGES": {}}],
    ids=str,
)
def test_odd_settings_start_and_answer(placement: str, settings: Any) -> None:
    used = ("django.middleware.csrf.CsrfViewMiddleware", "project.middleware.Mixin")
    with Site(placement, middleware=used, **settings) as site:
        assert site.get("/hello/").text == "Hello world!"


class Slow:
    """A converter that may block: it says where it runs."""

    regex = "[a-z]+"
    places: list[str] = []  # noqa: RUF012

    def to_python(self, value: str) -> str:
        self.places.append(views.place_now())
        return value


async def echo(request: Any, word: str) -> HttpResponse:
    return HttpResponse(word)


def test_a_urlconf_that_a_middleware_chose_is_judged(tmp_path: Any) -> None:
    import sys
    import types

    from django.urls import register_converter

    module = types.ModuleType("chosen_urls")
    Slow.__module__ = "elsewhere"
    register_converter(Slow, "slow")
    module.urlpatterns = [path("<slow:word>/", echo)]  # type: ignore[attr-defined]
    sys.modules["chosen_urls"] = module

    def chooses(get_response: Any) -> Any:
        def inner(request: Any) -> Any:
            request.urlconf = "chosen_urls"
            return get_response(request)

        return inner

    middleware.chooses = chooses

    async def main(site: Site) -> None:
        for _ in range(3):
            assert (await site.ask("/hello/")).text == "hello"

    chooses.__module__ = "project.middleware"
    with Site("auto", middleware=("project.middleware.chooses",)) as site:
        site.run(main)
    assert Slow.places == ["thread"] * 3


wrapped_events: list[Any] = []


async def wrapped_stream(request: Any) -> StreamingHttpResponse:
    async def parts() -> Any:
        task = asyncio.current_task()
        try:
            while True:
                yield "part"
        finally:
            wrapped_events.append(asyncio.current_task() is task)

    return StreamingHttpResponse(parts())


urlpatterns = [path("wrapped-stream/", wrapped_stream)]


def test_a_wrapped_stream_is_closed_in_its_task(placement: str) -> None:
    """GZip's generator wraps the view's: both are closed before the request ends."""
    import driver

    async def main(site: Site) -> None:
        environ = driver.environ_of("/wrapped-stream/", HTTP_ACCEPT_ENCODING="gzip")
        result = await site.app(environ, lambda *args: None)
        parts = aiter(result)
        for _ in range(3):
            # The first is the header of gzip.
            await anext(parts)
        await result.aclose()
        assert wrapped_events == [True]

    wrapped_events.clear()
    used = ("django.middleware.gzip.GZipMiddleware",)
    with Site(placement, middleware=used, ROOT_URLCONF=__name__) as site:
        site.run(main)


def test_async_to_sync_in_an_except_block(placement: str) -> None:
    """As with asgiref, the coroutine finds the exception that is being handled."""
    import sys

    seen: list[Any] = []

    def middle(get_response: Any) -> Any:
        def inner(request: Any) -> Any:
            async def report() -> None:
                await asyncio.sleep(0)
                seen.append(repr(sys.exc_info()[1]))

            try:
                raise ValueError("handled")
            except ValueError:
                async_to_sync(report)()
            return get_response(request)

        return inner

    middleware.middle = middle
    with Site(placement, middleware=("project.middleware.middle",)) as site:
        site.get("/plain/")
        site.get("/hello/")
    assert seen == ["ValueError('handled')"] * 2


@pytest.mark.parametrize("how", ["wait_for", "gather", "shield", "twice"])
@pytest.mark.parametrize("path", ["/hello/", "/plain/", "/template/", "/raise/error/"])
def test_a_coroutine_middleware_calls_the_rest_in_any_way(
    placement: str, how: str, path: str
) -> None:
    class Odd(middleware.Coroutine):
        async def __call__(self, request: Any) -> Any:
            if how == "wait_for":
                return await asyncio.wait_for(self.get_response(request), 5)
            if how == "shield":
                return await asyncio.shield(asyncio.ensure_future(self.get_response(request)))
            if how == "twice":
                await self.get_response(request)
                return await self.get_response(request)
            first, second = await asyncio.gather(
                self.get_response(request), self.get_response(request)
            )
            assert first.status_code == second.status_code
            return second

    middleware.Odd = Odd
    names = ("project.middleware.Mixin", "project.middleware.Odd", "project.middleware.either")

    async def main(site: Site) -> list[int]:
        async with asyncio.timeout(20):
            answers = await asyncio.gather(*(site.ask(path) for _ in range(5)))
        return [answer.code for answer in answers]

    with Site(placement, middleware=names, threads=1, max_parked=2) as site:
        assert site.run(main) == [500 if "error" in path else 200] * 5


def test_a_coroutine_that_is_not_marked_is_named(
    placement: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Unmarked:
        def __init__(self, get_response: Any) -> None:
            pass

        async def __call__(self, request: Any) -> Any: ...

    middleware.Unmarked = Unmarked
    with Site(placement, middleware=("project.middleware.Unmarked",)) as site:
        assert site.get("/hello/").code == 500
    assert "set sync_capable = False" in str([r.exc_info for r in caplog.records])


def test_the_line_for_the_log(placement: str) -> None:
    async def main(site: Site) -> str:
        return await site.app.coroutine_wsgi_startup()

    with Site(placement, ROOT_URLCONF="project.urls_other") as site:
        said = site.run(main)
    assert said.endswith("; at most 84 connections per database of threads, and 20 of the loop")
    assert ("held there by: GREENROOM" in said) is (placement == "thread")
    assert threading.main_thread().is_alive()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_time_limit_is_a_number_of_seconds(value: float) -> None:
    from django.core.exceptions import ImproperlyConfigured
    from django.test import override_settings

    with override_settings(GREENROOM={"QUEUE_TIMEOUT": value}), pytest.raises(ImproperlyConfigured):
        conf.settings()
