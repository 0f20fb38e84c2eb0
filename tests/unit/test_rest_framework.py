"""Coroutines wherever Django REST framework calls the project, under every server."""

from __future__ import annotations

import asyncio
import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock
from uuid import UUID

import pytest
from django.test import AsyncClient, Client, override_settings
from django.urls import path
from django.utils.functional import lazystr
from rest_framework import renderers
from rest_framework.response import Response
from rest_framework.test import APIClient, APIRequestFactory
from rest_framework.utils.serializer_helpers import ReturnDict
from rest_framework.views import APIView

from driver import Cancellable, Site
from greenroom import sync_view
from greenroom.bridge import in_bridge
from greenroom.errors import BridgeError, Overloaded
from project import urls_rest

SETTINGS: dict[str, Any] = {"ROOT_URLCONF": "project.urls_rest"}
Ask = Callable[..., Any]


@pytest.fixture
def rest(placement: str) -> Iterator[Site]:
    urls_rest.events.clear()
    with Site(placement, **SETTINGS) as site:
        yield site


@pytest.fixture(params=["loop", "thread", "wsgi", "asgi"])
def ask(request: pytest.FixtureRequest) -> Iterator[Ask]:
    """A request under our application in both placements, and under plain Django's."""
    urls_rest.events.clear()
    if request.param in ("loop", "thread"):
        with Site(request.param, **SETTINGS) as site:

            def ask(path: str, method: str = "GET", data: Any = None, **extra: Any) -> Any:
                body = b"" if data is None else json.dumps(data).encode()
                answer = site.get(path, method, body, CONTENT_TYPE="application/json", **extra)
                return answer.code, _loaded(answer.body)

            yield ask
    else:
        with override_settings(**SETTINGS):

            def ask(path: str, method: str = "GET", data: Any = None, **extra: Any) -> Any:
                body = b"" if data is None else json.dumps(data).encode()
                sent = {"data": body, "content_type": "application/json"}
                if request.param == "wsgi":
                    answer = Client().generic(method, path, **sent, **extra)
                else:
                    headers = {key[5:].replace("_", "-"): value for key, value in extra.items()}
                    client = AsyncClient()
                    answer = asyncio.run(client.generic(method, path, **sent, headers=headers))
                return answer.status_code, _loaded(answer.content)

            yield ask


def test_a_method_that_a_middleware_changes_decides_anew(rest: Site) -> None:
    rest.use("project.middleware.Method")
    assert json.loads(rest.get("/both/").body) == {"by": "coroutine", "on": "loop"}
    found = json.loads(rest.get("/both/", HTTP_X_METHOD="POST").body)
    assert (found["by"], found["on"]) == ("plain", "thread")


def _loaded(body: bytes) -> Any:
    return json.loads(body) if body[:1] in b'{["' and body else body.decode()


# Handlers.


def test_handlers_of_both_kinds_in_one_class(ask: Ask) -> None:
    code, answer = ask("/both/")
    assert (code, answer["by"]) == (200, "coroutine")
    code, answer = ask("/both/", "POST", {"a": 1})
    assert (code, answer["by"], answer["data"]) == (201, "plain", {"a": 1})
    assert ask("/both/", "PUT")[1]["by"] == "coroutine"
    assert ask("/both/", "PATCH")[1]["by"] == "coroutine"
    assert ask("/both/", "DELETE") == (404, {"detail": "none here"})
    assert ask("/both/", "TRACE")[0] == 405
    code, answer = ask("/both/", "OPTIONS")
    assert (code, answer["name"]) == (200, "Both")


def test_function(ask: Ask) -> None:
    assert ask("/function/") == (200, {"method": "GET"})
    assert ask("/function/", "POST") == (200, {"method": "POST"})
    assert ask("/function/", "PUT")[0] == 405
    assert ask("/made-plain/") == (200, "plain")


def test_errors_are_answered_by_drf(ask: Ask) -> None:
    assert ask("/errors/denied/") == (403, {"detail": "not you"})
    assert ask("/errors/invalid/") == (400, {"field": ["wrong"]})


def test_other_errors_are_raised(rest: Site) -> None:
    assert rest.get("/errors/error/").code == 500
    assert rest.get("/missing/").code == 500


def test_router_with_handlers_of_both_kinds(ask: Ask) -> None:
    code, answer = ask("/router/mixed/?least=2&page=2")
    assert (code, answer["count"]) == (200, 3)
    assert answer["results"] == [{"id": 5, "title": "title 5", "shout": "TITLE 5", "length": 7}]
    assert ask("/router/mixed/3/")[1]["title"] == "title 3"
    assert ask("/router/mixed/77/")[0] == 404
    assert ask("/router/mixed/3/wake/", "POST") == (200, {"woken": "3", "action": "wake"})
    assert ask("/router/mixed/plain/") == (200, {"action": "plain"})
    assert ask("/router/mixed/3/", "PUT", {"title": "new"})[1]["title"] == "new"
    assert ask("/router/mixed/3/", "PATCH", {"title": "newer"})[1]["title"] == "newer"
    assert ask("/router/mixed/3/", "DELETE")[0] == 204
    assert ask("/router/mixed/", "POST", {"title": " made "})[0] == 201
    assert urls_rest.events == ["destroyed 3", "created made"]
    assert set(ask("/router/")[1]) == {"mixed", "plain-items", "wholes", "enveloped"}


def test_handlers_of_drf_over_coroutines(ask: Ask) -> None:
    assert [item["id"] for item in ask("/router/plain-items/?least=3")[1]["results"]] == [3, 5]
    assert ask("/router/plain-items/2/")[1]["shout"] == "TITLE 2"
    assert [item["id"] for item in ask("/generic/")[1]] == [1]


@pytest.mark.parametrize(
    ("title", "answer"),
    [
        ("taken", {"title": ["taken"]}),
        ("odd", {"non_field_errors": ["odd"]}),
        ("12", {"title": ["digits"]}),
        ("x" * 21, {"title": ["Ensure this field has no more than 20 characters."]}),
    ],
)
def test_coroutines_of_a_serializer_are_awaited(ask: Ask, title: str, answer: Any) -> None:
    assert ask("/generic/", "POST", {"title": title}) == (400, answer)


def test_a_serializer_saves(ask: Ask) -> None:
    code, answer = ask("/generic/", "POST", {"title": "good"})
    assert (code, answer["id"], answer["title"]) == (201, 99, "good")


def test_nested_serializers(ask: Ask) -> None:
    data = {"part": {"name": "a"}, "parts": [{"name": "b"}, {"name": "c"}]}
    made = {"part": {"name": "A"}, "parts": [{"name": "B"}, {"name": "C"}]}
    assert ask("/router/wholes/", "POST", data) == (201, {**made, "prefix": "awaited"})
    assert ask("/router/wholes/", "POST", {**data, "parts": [{}]}) == (
        400,
        {"parts": {"0": {"name": ["This field is required."]}}},
    )


def test_extra_actions(ask: Ask) -> None:
    path = "/router/wholes/parts/"
    assert ask(path, "PUT", [{"name": "a"}, {"name": "b"}]) == (200, ["A", "B"])
    assert ask(path, "DELETE") == (200, {"deleted": "delete_parts"})
    assert ask(path, "PATCH") == (200, {"patched": "patch_parts"})
    assert ask("/router/wholes/1/parts/2/")[0] == 403
    assert place(path, "DELETE").on_loop
    assert place(path, "PATCH").reason == "its PATCH is a plain function"


def test_the_response_of_a_paginator(ask: Ask) -> None:
    code, answer = ask("/router/enveloped/?offset=1")
    assert (code, [item["id"] for item in answer["page"]]) == (200, [2, 3])


def test_pages_of_a_coroutine_handler(ask: Ask) -> None:
    """A paginator and a filter whose other methods are coroutines, called as they are."""
    for name in ("called", "by-super"):
        assert ask(f"/counted/{name}/") == (200, {"of": 5, "page": ["title 1", "title 2"]})


def test_a_method_field_of_any_name(ask: Ask) -> None:
    assert ask("/named/") == (200, [{"doubled": 2}, {"doubled": 4}])


def test_versions_negotiation_and_metadata(ask: Ask) -> None:
    assert ask("/versioned/") == (200, "1")
    assert ask("/versioned/", "OPTIONS") == (200, {"about": "Versioned"})


def test_tasks_and_streams_of_a_coroutine(rest: Site) -> None:
    """They get the coroutine too."""
    assert json.loads(rest.get("/gathers/").text) == ["awaited"] * 6
    assert rest.get("/streams/").text == "awaited, awaited, "


def test_an_async_dispatch_and_setup(ask: Ask) -> None:
    assert ask("/dispatched/") == (200, ["set up", "dispatched"])
    assert ask("/dispatched/", "POST") == (405, {"detail": 'Method "POST" not allowed.'})


def test_an_exception_handler(ask: Ask) -> None:
    assert ask("/handled/") == (418, {"handled": "NotFound"})


def test_parsers_and_renderers(rest: Site) -> None:
    answer = rest.get("/text/", "POST", b"one\ntwo", CONTENT_TYPE="text/plain")
    assert (answer.code, answer.text) == (200, "one|two")


@pytest.mark.parametrize(
    ("data", "body"),
    [
        ({"a": [1, None, "é"]}, '{"a":[1,null,"é"]}'),
        (None, ""),
        ([datetime(2026, 1, 2, tzinfo=UTC), Decimal("1.5")], '["2026-01-02T00:00:00Z",1.5]'),
        (ReturnDict({"a": UUID(int=1)}, serializer=None), f'{{"a":"{UUID(int=1)}"}}'),
    ],
)
def test_json_is_rendered_on_the_loop(data: Any, body: str) -> None:
    assert rendered(data) == (body, [True])


def test_types_that_are_not_known_are_rendered_on_a_thread() -> None:
    class Lazy:
        def __iter__(self):
            yield in_bridge()

    assert rendered([1, Lazy()]) == ("[1,[false]]", [True, False])
    assert rendered([lazystr("lazy")]) == ('["lazy"]', [True, False])
    # What can't be rendered raises the same error.
    with pytest.raises(TypeError, match="not JSON serializable"):
        rendered([object()])
    with pytest.raises(ValueError, match="Out of range float"):
        rendered([float("nan")])


class Shouting(renderers.JSONRenderer):
    def render(self, data, accepted_media_type=None, renderer_context=None):
        return super().render(str(data).upper())


def own_method() -> Any:
    renderer = renderers.JSONRenderer()
    renderer.render = lambda *args: b"own"  # type: ignore[method-assign]
    return renderer


@pytest.mark.parametrize(
    ("more", "body"),
    [
        ({"HTTP_ACCEPT": "application/json; indent=1"}, '[\n "a"\n]'),
        ({"renderer": Shouting}, "\"['A']\""),
        ({"renderer": own_method}, "own"),
        ({"response": type("Own", (Response,), {})}, '["a"]'),
        ({"callback": lambda response: None}, '["a"]'),
    ],
)
def test_other_responses_are_rendered_on_a_thread(more: dict[str, Any], body: str) -> None:
    assert rendered(["a"], **more) == (body, [False])


def test_what_renders_json_may_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    class Encoder(renderers.JSONRenderer.encoder_class):  # type: ignore[name-defined,misc]
        def encode(self, o):
            return "encoded"

    monkeypatch.setattr(renderers.JSONRenderer, "encoder_class", Encoder)
    assert rendered([]) == ("encoded", [False])
    monkeypatch.undo()
    monkeypatch.setattr(renderers.JSONRenderer, "render", lambda *args: b"replaced")
    assert rendered([]) == ("replaced", [False])


def rendered(data: Any, **more: Any) -> tuple[str, list[bool]]:
    """What a coroutine view on the loop answers; and each time it was rendered, whether there."""
    renderer = more.pop("renderer", renderers.JSONRenderer)
    kind = more.pop("response", Response)
    callback = more.pop("callback", None)
    places = []

    class Noted(APIView):
        authentication_classes = ()
        renderer_classes = (renderer,)

        async def get(self, request):
            response = kind(data)
            if callback is not None:
                response.add_post_render_callback(callback)
            return response

    def content(response: Any) -> Any:
        places.append(in_bridge())
        return written.fget(response)

    written: Any = Response.rendered_content
    urls = ModuleType("urls")
    urls.urlpatterns = [path("", Noted.as_view())]  # type: ignore[attr-defined]
    with (
        mock.patch.object(Response, "rendered_content", property(content)),
        Site("loop", ROOT_URLCONF=urls, DEBUG_PROPAGATE_EXCEPTIONS=True) as site,
    ):
        answer = site.get("/", **more)
    assert answer.code == 200
    return answer.text, places


def test_options_say_what_may_be_done(ask: Ask) -> None:
    code, answer = ask("/router/mixed/3/", "OPTIONS")
    assert (code, set(answer["actions"])) == (200, {"PUT"})
    assert set(answer["actions"]["PUT"]) == {"id", "title", "shout", "length"}
    # The object is looked for, by a coroutine.
    assert "actions" not in ask("/router/mixed/77/", "OPTIONS")[1]
    assert ask("/no/", "OPTIONS")[0] == 403


def test_head_is_answered_by_get(rest: Site) -> None:
    answer = rest.get("/router/mixed/1/", "HEAD")
    assert answer.code == 200


TEMPLATES: dict[str, Any] = {
    "TEMPLATES": [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {"context_processors": ["django.template.context_processors.request"]},
        }
    ],
    "STATIC_URL": "static/",
}


def test_the_browsable_api_of_a_coroutine(placement: str) -> None:
    with Site(placement, **TEMPLATES, **SETTINGS) as site:
        answer = site.get("/browsable/", HTTP_ACCEPT="text/html")
    assert answer.code == 200
    assert "by a template" in answer.text
    # The form was offered after the permission was awaited, on a thread.
    assert 'method="POST"' in answer.text


def test_the_admin_renderer_shows_an_error_beside_the_answer_of_get(placement: str) -> None:
    html = {"HTTP_ACCEPT": "text/html"}
    with Site(placement, **TEMPLATES, **SETTINGS) as site:
        assert "beside the error" in site.get("/admin/", **html).text
        answer = site.get("/admin/", "POST", **html)
        assert (answer.code, "beside the error" in answer.text) == (400, True)
        answer = site.get("/hidden-admin/", "POST", **html)
        assert (answer.code, "beside the error" in answer.text) == (400, False)


def test_cancellation_reaches_the_handler(rest: Site) -> None:
    async def main(site: Site) -> None:
        running = Cancellable(site.app, "/waits/")
        async with asyncio.timeout(10):
            while not urls_rest.events:
                await asyncio.sleep(0.001)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running.task

    rest.run(main)
    assert urls_rest.events == ["begun", "cancelled"]


def test_many_at_a_time(rest: Site) -> None:
    async def main(site: Site) -> set[int]:
        answers = await asyncio.gather(*(site.ask("/router/mixed/1/") for _ in range(50)))
        return {answer.code for answer in answers}

    assert rest.run(main) == {200}


# Never granted unawaited.

DENIED = [
    "no",
    "hands-on",
    "slots",
    "duck",
    "and",
    "or",
    "not",
    "nested",
    "any-of",
    "denies",
    "checks-all/?deny=1&",
    "object/secret",
]


@pytest.mark.parametrize("path", DENIED)
def test_denied(ask: Ask, path: str) -> None:
    assert ask(f"/{path}/".replace("&/", ""))[0] == 403


@pytest.mark.parametrize("path", ["no", "hands-on", "and", "or", "not", "nested"])
def test_denied_to_plain_handlers(ask: Ask, path: str) -> None:
    assert ask(f"/{path}/", "POST")[0] == 403


@pytest.mark.parametrize(
    "path", ["yes", "and-yes", "or-yes", "not-no", "awaits-super", "checks-all", "object/open"]
)
def test_granted(ask: Ask, path: str) -> None:
    assert ask(f"/{path}/")[0] == 200


def test_the_message_of_a_permission(ask: Ask) -> None:
    assert ask("/no/")[1] == {"detail": "by a coroutine"}
    assert ask("/denies/")[1] == {"detail": "awaited"}


def test_a_throttle_is_awaited(rest: Site) -> None:
    answer = rest.get("/throttled/")
    assert (answer.code, answer.header("Retry-After")) == (429, "7")


def test_the_key_of_a_throttle_is_awaited(ask: Ask) -> None:
    from django.core.cache import cache

    cache.clear()
    assert [ask("/key-throttled/")[0] for _ in range(2)] == [200, 429]


def test_authentication(ask: Ask) -> None:
    assert ask("/header/")[0] == 401
    assert ask("/header/", HTTP_X_USER="bad") == (401, {"detail": "bad one"})
    assert ask("/header/", HTTP_X_USER="me") == (200, "me")


def test_the_authenticate_header_is_awaited(rest: Site) -> None:
    assert rest.get("/header/").header("WWW-Authenticate") == "Header"


def test_what_takes_a_coroutine_for_true_is_refused() -> None:
    with override_settings(**SETTINGS), pytest.raises(TypeError, match="TakesForTrue") as caught:
        Client().get("/takes-for-true/")
    assert "await super()'s answer" in str(caught.value)


def test_a_coroutine_that_forgets_to_await_is_refused(rest: Site) -> None:
    answer = rest.get("/forgets/")
    assert answer.code == 500
    with override_settings(**SETTINGS), pytest.raises(TypeError, match=r"await .*No\.has_perm"):
        Client().get("/forgets/")


@pytest.mark.parametrize("name", ["Both", "No", "NoThrottle", "Header"])
def test_on_a_loop_outside_of_a_bridge_nothing_is_granted(name: str) -> None:
    given = {
        "No": {"permission_classes": [urls_rest.No]},
        "NoThrottle": {"throttle_classes": [urls_rest.NoThrottle]},
        "Header": {"authentication_classes": [urls_rest.Header]},
    }.get(name, {})
    view = urls_rest.Policies.as_view(**given)

    async def main() -> None:
        with pytest.raises(BridgeError):
            view(APIRequestFactory().get("/"))

    asyncio.run(main())


def test_permissions_are_awaited_where_no_view_is_dispatched() -> None:
    """As schemas do, which leave out what isn't permitted."""
    from rest_framework.exceptions import PermissionDenied
    from rest_framework.request import Request

    view = urls_rest.Policies(permission_classes=[urls_rest.PlainYes & urls_rest.No])
    view.request = Request(APIRequestFactory().get("/"))
    with pytest.raises(PermissionDenied):
        view.check_permissions(view.request)
    view = urls_rest.ChecksObject(permission_classes=[urls_rest.NotThisObject])
    with pytest.raises(PermissionDenied):
        view.check_object_permissions(Request(APIRequestFactory().get("/")), "secret")


def test_a_request_made_by_hand_awaits_its_authenticators() -> None:
    from rest_framework.request import Request

    request = Request(
        APIRequestFactory().get("/", HTTP_X_USER="me"), authenticators=[urls_rest.Header()]
    )
    assert request.user.username == "me"


def test_a_direct_call_and_drfs_own_client() -> None:
    response = urls_rest.Both.as_view()(APIRequestFactory().get("/"))
    assert response.data["by"] == "coroutine"
    with override_settings(**SETTINGS):
        assert APIClient().get("/both/").data["by"] == "coroutine"
        assert APIClient().get("/and/").status_code == 403


def test_classes_stay_as_they_were_written() -> None:
    async def main() -> bool:
        return bool(await urls_rest.Yes().has_permission(None, None))

    assert asyncio.run(main())
    view = urls_rest.Policies(permission_classes=[urls_rest.Yes])
    view.check_permissions(None)
    assert isinstance(view.get_permissions()[0], urls_rest.Yes)


# Placement.


def place(path: str, method: str | None = None, **settings: Any) -> Any:
    from django.urls import resolve

    with Site("auto", **{**SETTINGS, **settings}) as site:
        judge = site.app.handler.judge
        return judge.place(resolve(path, "project.urls_rest").func, method)


UNKNOWN = {"GREENROOM": {"LOOP_SAFE": []}}


def test_the_method_decides() -> None:
    assert place("/both/", "GET").on_loop
    assert place("/both/", "HEAD").on_loop
    assert place("/both/", "POST").reason == "the view is a plain function"
    assert not place("/both/", "OPTIONS").coroutine
    assert place("/function/", "GET").on_loop
    assert place("/router/mixed/", "GET").on_loop
    assert place("/router/mixed/1/", "HEAD").on_loop


def test_a_plain_handler_that_waits_for_a_policy_is_counted() -> None:
    placement = place("/no/", "POST")
    assert (placement.on_loop, placement.coroutine) == (False, True)
    assert placement.reason == "its POST is a plain function"
    assert place("/router/mixed/", "POST").coroutine
    assert place("/made-plain/", "GET").reason == "its GET is a @sync_view"
    assert place("/atomic/").reason == "the view is a @sync_view"


def test_the_chain_is_where_it_was_placed(rest: Site) -> None:
    rest.use("project.middleware.Place")
    assert json.loads(rest.get("/place/").text) == rest.placement


def test_policies_of_coroutines_and_of_drf_are_safe() -> None:
    assert place("/both/", "GET", **UNKNOWN).on_loop
    for name in ("yes", "not-no", "header", "throttled"):
        assert place(f"/{name}/", "GET", **UNKNOWN).on_loop, name
    for name in ("hands-on", "or"):
        reason = place(f"/{name}/", "GET", **UNKNOWN).reason
        assert "the permission project.urls_rest.HandsOn is not known" in reason
    assert "method check_permissions() of" in place("/any-of/", "GET", **UNKNOWN).reason


def test_what_is_called_beneath_holds_the_view() -> None:
    from rest_framework import authentication, permissions, throttling

    def reason(**given: Any) -> str:
        with Site("auto", **SETTINGS, **UNKNOWN) as site:
            view = urls_rest.Policies.as_view(**given)
            return str(site.app.handler.judge.place(view, "GET").reason)

    session = {"authentication_classes": [authentication.SessionAuthentication]}
    assert reason(**session) == ""
    with override_settings(AUTHENTICATION_BACKENDS=["project.backends.Own"]):
        assert "uses the authentication backend project.backends.Own" in reason(**session)
    assert reason(permission_classes=[permissions.DjangoModelPermissions]) == ""

    class Burst(throttling.UserRateThrottle):
        scope = "burst"
        rate = "10/s"

    assert reason(throttle_classes=[Burst]) == ""
    keyed = {"BACKEND": "django.core.cache.backends.dummy.DummyCache", "KEY_FUNCTION": "json.dumps"}
    with override_settings(CACHES={"default": keyed}):
        assert "calls json.dumps" in reason(throttle_classes=[Burst])


def test_decorators_around_a_view_are_judged() -> None:
    from django.views.decorators.cache import cache_page, never_cache

    def reason(view: Any, *loop_safe: str) -> str:
        with Site("auto", **SETTINGS, GREENROOM={"LOOP_SAFE": [*loop_safe]}) as site:
            placement = site.app.handler.judge.place(view, "GET")
            assert placement.coroutine
            return str(placement.reason)

    def around(view: Any) -> Any:
        @functools.wraps(view)
        def inner(request: Any) -> Any:
            return view(request)

        return inner

    class Around:
        """As tools that trace put in the place of a view."""

        def __init__(self, view: Any) -> None:
            self.view = view

        def __getattr__(self, name: str) -> Any:
            return getattr(self.view, name)

        def __call__(self, request: Any) -> Any:
            return self.view(request)

    view = urls_rest.Both.as_view()
    assert reason(never_cache(cache_page(60)(view))) == ""
    name = f"{__name__}.test_decorators_around_a_view_are_judged.<locals>.around.<locals>.inner"
    assert reason(around(view)).startswith(f"the decorator {name} is not known")
    assert name in reason(never_cache(around(view)))
    assert reason(around(view), f"{__name__}.*.inner") == ""
    # The name of what is around is not that of the view.
    assert name in reason(around(view), "project.*")
    assert "Around is not known" in reason(Around(view))


def test_policies_that_are_made_by_code_hold_the_view() -> None:
    class Made(urls_rest.Policies):
        @property
        def permission_classes(self) -> Any:
            return [urls_rest.No]

        async def get_throttles(self) -> Any:
            return []

    with Site("auto", **SETTINGS, GREENROOM={"LOOP_SAFE": []}) as site:
        reason = site.app.handler.judge.place(Made.as_view(), "GET").reason
    assert "its permission_classes are no list or tuple" in reason
    assert "the method get_throttles() of" in reason
    assert Made.as_view()(APIRequestFactory().get("/")).status_code == 403


def test_without_a_method_the_most_restricted_is_named() -> None:
    assert place("/both/").on_loop
    assert place("/no/").reason == "POST: its POST is a plain function"


def test_methods_that_a_class_leaves_out_are_not_listed() -> None:
    from rest_framework import viewsets

    from greenroom.integrations.rest_framework import methods

    class Patched(viewsets.ModelViewSet):
        http_method_names = ["get", "patch", "head"]  # noqa: RUF012

    actions = {"get": "list", "put": "update", "patch": "partial_update"}
    assert methods(Patched.as_view(actions)) == ("GET", "PATCH")


def test_parked_threads_are_counted() -> None:
    """A place among MAX_PARKED is taken for the coroutine of a view that is on a thread."""
    with Site("thread", max_parked=1, queue_timeout=0.2, **SETTINGS) as site:

        async def main(site: Site) -> None:
            first = Cancellable(site.app, "/waits/")
            async with asyncio.timeout(10):
                while not urls_rest.events:
                    await asyncio.sleep(0.001)
                with pytest.raises(Overloaded):
                    await site.ask("/both/")
                first.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await first.task

        urls_rest.events.clear()
        site.run(main)


# Old decorators and class-based views.


def test_old_decorators_over_sync_view(rest: Site) -> None:
    from django.core.cache import cache

    cache.clear()
    assert rest.get("/atomic/").text == "loop"
    assert [rest.get("/cached/").text for _ in range(2)] == ["cached", "cached"]
    assert urls_rest.events == ["cached"]


def test_sync_view_wants_a_coroutine_function() -> None:
    with pytest.raises(TypeError, match="is for coroutine functions"):
        sync_view(lambda request: None)  # type: ignore[arg-type]


def test_login_required_mixin_over_a_coroutine(rest: Site) -> None:
    rest.use(
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    )
    answer = rest.get("/members/")
    assert (answer.code, answer.header("Location")) == (302, "/in/?next=/members/")


def test_login_required_mixin_on_the_loop(placement: str) -> None:
    class Stranger:
        is_authenticated = False

    class Known:
        is_authenticated = True

    def enters(user: Any) -> Any:
        def middleware(get_response: Any) -> Any:
            def inner(request: Any) -> Any:
                request.user = user
                return get_response(request)

            return inner

        return middleware

    from project import middleware

    for user, code in ((Stranger(), 302), (Known(), 200)):
        middleware.enters = enters(user)  # type: ignore[attr-defined]
        try:
            with Site(placement, middleware=("project.middleware.enters",), **SETTINGS) as site:
                site._override.options["GREENROOM"]["LOOP_SAFE"].append("*enters*")
                assert site.get("/members/").code == code
        finally:
            del middleware.enters


# The integration itself.

IMPORTS = """
import sys
import django
from django.conf import settings

settings.configure(
    INSTALLED_APPS=["greenroom", "django.contrib.auth", "django.contrib.contenttypes"]
)
django.setup()
assert not [name for name in sys.modules if name.startswith("rest_framework")]
from rest_framework import authentication, filters, generics, metadata, negotiation, pagination
from rest_framework import parsers, permissions, renderers, request, serializers, throttling
from rest_framework import urlpatterns, versioning, views
import django.contrib.auth.mixins

assert views.APIView.view_is_async is False
for code in (
    views.APIView.dispatch,
    generics.GenericAPIView.filter_queryset,
    serializers.SerializerMethodField.to_representation,
    request.Request._authenticate,
    serializers.Field.run_validators,
    renderers.AdminRenderer.render,
    urlpatterns._get_format_path_converter,
):
    assert hasattr(code, "__wrapped__"), code
watched = [each.name for each in sys.meta_path if type(each).__module__.startswith("greenroom")]
# And what is for tests.
assert [name for name in watched if name.startswith("rest_framework")] == ["rest_framework.test"]
"""


def test_drf_is_not_imported_for_nothing_and_never_missed() -> None:
    """Whether or not it is in INSTALLED_APPS."""
    subprocess.run([sys.executable, "-W", "error", "-c", IMPORTS], check=True, timeout=60)


def test_the_schema_is_that_of_plain_handlers() -> None:
    spectacular = pytest.importorskip("drf_spectacular.generators")
    from django.urls import path
    from drf_spectacular.openapi import AutoSchema
    from rest_framework import generics, serializers, viewsets
    from rest_framework.response import Response
    from rest_framework.routers import SimpleRouter
    from rest_framework.views import APIView

    def schema(kind: str, public: bool) -> Any:
        source = f"""
class ItemSerializer(serializers.Serializer):
    title = serializers.CharField()
    length = serializers.SerializerMethodField()
    {kind} get_length(self, item) -> int:
        return 1

class Items(viewsets.GenericViewSet):
    schema = AutoSchema()
    serializer_class = ItemSerializer
    {kind} get_queryset(self):
        return []
    {kind} list(self, request):
        "All of them."
        return Response([])
    {kind} create(self, request):
        return Response({{}})

class Generic(generics.ListCreateAPIView):
    schema = AutoSchema()
    {kind} get_queryset(self):
        return []
    {kind} get_serializer_class(self):
        return ItemSerializer
    {kind} get(self, request):
        "All of them, too."
        return Response([])

class Single(APIView):
    schema = AutoSchema()
    {kind} get_serializer(self):
        return ItemSerializer()
    {kind} get(self, request):
        "One."
        return Response({{}})
"""
        names: dict[str, Any] = {
            "__name__": "project",
            "viewsets": viewsets,
            "APIView": APIView,
            "AutoSchema": AutoSchema,
            "Response": Response,
            "generics": generics,
            "serializers": serializers,
        }
        exec(compile(source, kind, "exec"), names)
        router = SimpleRouter()
        router.register("items", names["Items"], basename="items")
        single, generic = names["Single"].as_view(), names["Generic"].as_view()
        patterns = [*router.urls, path("one/", single), path("generic/", generic)]
        return spectacular.SchemaGenerator(patterns=patterns).get_schema(None, public=public)

    with override_settings(ROOT_URLCONF="project.urls_rest"):
        for public in (True, False):
            plain, coroutines = schema("def", public), schema("async def", public)
            assert len(plain["paths"]) == 3
            assert plain["paths"]["/generic/"]["get"]["description"] == "All of them, too."
            assert coroutines == plain


def test_the_documentation() -> None:
    source = (Path(__file__).resolve().parents[2] / "docs" / "rest-framework.md").read_text()
    views, report = re.findall(r"```python\n(.*?)```", source, flags=re.DOTALL)
    names: dict[str, Any] = {"__name__": "project.documentation"}
    exec(compile(views, "documentation", "exec"), names)
    exec(compile(report, "documentation", "exec"), names)
    orders, factory = names["Orders"], APIRequestFactory()
    everything = orders.as_view({"get": "list", "post": "create"})
    assert everything(factory.get("/")).status_code == 403
    assert everything(factory.get("/", HTTP_X_SUBSCRIBER="1")).data == [{"title": "one"}]
    made = everything(factory.post("/", {"title": " new "}, HTTP_X_SUBSCRIBER="1"))
    assert (made.status_code, made.data) == (201, {"title": "new"})
    paid = orders.as_view({"post": "pay"})(factory.post("/", HTTP_X_SUBSCRIBER="1"), pk=3)
    assert paid.data == {"paid": 3}
    assert names["report"](factory.get("/report/")).content == b"report"
