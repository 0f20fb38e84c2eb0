"""An async permission, throttle or check is never granted unawaited: each way that was found.

Each view would answer 200 if a coroutine were taken for true. It is asked under our
application in both placements, under plain Django's handlers, and called directly.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import weakref
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from django.contrib.auth.mixins import PermissionRequiredMixin, UserPassesTestMixin
from django.http import HttpResponse
from django.test import AsyncClient, Client, RequestFactory, override_settings
from django.urls import path
from django.views import View
from rest_framework import exceptions, permissions, serializers, throttling
from rest_framework.response import Response
from rest_framework.test import APIRequestFactory
from rest_framework.views import APIView

from driver import Site
from greenroom.errors import BridgeError

Ask = Callable[..., int]
REFUSED = (401, 403, 429)


@pytest.fixture(params=["loop", "thread", "wsgi", "asgi", "direct"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """The status of a request to a view; raises what the view raises."""

    def ask(view: Any, method: str = "GET") -> int:
        if request.param == "direct":
            return int(view(APIRequestFactory().generic(method, "/")).status_code)
        urls = ModuleType("urls")
        urls.urlpatterns = [path("", view)]  # type: ignore[attr-defined]
        if request.param in ("loop", "thread"):
            with Site(request.param, ROOT_URLCONF=urls, DEBUG_PROPAGATE_EXCEPTIONS=True) as site:
                return site.get("/", method).code
        with override_settings(ROOT_URLCONF=urls):
            if request.param == "wsgi":
                return int(Client().generic(method, "/").status_code)
            return int(asyncio.run(AsyncClient().generic(method, "/")).status_code)

    return ask


class Open(APIView):
    authentication_classes = ()
    permission_classes: Any = ()

    async def get(self, request):
        await asyncio.sleep(0)
        return Response("granted")

    def post(self, request):
        return Response("granted")


class No(permissions.BasePermission):
    async def has_permission(self, request, view):
        await asyncio.sleep(0)
        return False

    async def has_object_permission(self, request, view, obj):
        await asyncio.sleep(0)
        return False


def unmarked(fn):
    """A decorator of the old kind."""

    def plain(*args, **kwargs):
        return fn(*args, **kwargs)

    return plain


def traced(fn):
    @functools.wraps(fn)
    async def inner(self, request, view):
        return False

    return inner


# Permissions.


class HandsOnASecondCoroutine(No):
    async def has_permission(self, request, view):
        return super().has_permission(request, view)


class HasTheNameOfDRFs(permissions.IsAuthenticated):
    has_permission = traced(permissions.BasePermission.has_permission)


class Decorated(permissions.BasePermission):
    @unmarked
    async def has_permission(self, request, view):
        return False


class Partial(permissions.BasePermission):
    async def _asked(self, answer, request, view):
        return answer

    has_permission = functools.partialmethod(_asked, False)


class Property(permissions.BasePermission):
    @property
    def has_permission(self):
        async def asked(request, view):
            return False

        return asked


class Static(permissions.BasePermission):
    @staticmethod
    async def has_permission(request, view):
        return False


class OfTheInstance(permissions.BasePermission):
    def __init__(self):
        self.has_permission = functools.partial(No().has_permission)


class Later:
    def __await__(self):
        yield from asyncio.sleep(0).__await__()
        return False


class Awaitable(permissions.BasePermission):
    def has_permission(self, request, view):
        return Later()


class Callable_:
    async def __call__(self, request, view):
        return False


class CallableObject(permissions.BasePermission):
    has_permission = Callable_()


class AsksAnother(permissions.BasePermission):
    def has_permission(self, request, view):
        return all(kind().has_permission(request, view) for kind in (No,))


class AsksAnotherFirst(permissions.BasePermission):
    def has_permission(self, request, view):
        if not No().has_permission(request, view):
            raise exceptions.PermissionDenied
        return True


class AsksInTasks(permissions.BasePermission):
    async def has_permission(self, request, view):
        one = asyncio.create_task(No().has_permission(request, view))
        answers = await asyncio.gather(*(No().has_permission(request, view) for _ in range(2)))
        return await one or any(answers)


class AnyOf:
    """An operator of one's own."""

    def __init__(self, *permissions):
        self.permissions = permissions

    def __call__(self):
        return AnyOf(*(each() for each in self.permissions))

    def has_permission(self, request, view):
        return any(each.has_permission(request, view) for each in self.permissions)


class Delegates:
    def __init__(self):
        self.delegate = No()

    def __getattr__(self, name):
        return getattr(self.delegate, name)


def mocked():
    return mock.Mock(has_permission=mock.AsyncMock(return_value=False))


PERMISSIONS = [
    HandsOnASecondCoroutine,
    HasTheNameOfDRFs,
    Decorated,
    Partial,
    Property,
    Static,
    OfTheInstance,
    Awaitable,
    CallableObject,
    AsksAnother,
    AsksAnotherFirst,
    AsksInTasks,
    AnyOf(No, Decorated),
    Delegates,
    mocked,
    No & permissions.AllowAny,
    permissions.AllowAny & ~(~No | permissions.AllowAny),
]


def named(permission: Any) -> str:
    """Without an address, so that each process that runs some of the tests has the same names."""
    return getattr(permission, "__name__", type(permission).__name__)


@pytest.mark.parametrize("permission", PERMISSIONS, ids=named)
def test_permissions(ask: Ask, permission: Any) -> None:
    view = Open.as_view(permission_classes=[permission])
    assert ask(view) in REFUSED
    assert ask(view, "POST") in REFUSED


# Methods of views.


class PermissionsOfACoroutine(Open):
    @unmarked
    async def get_permissions(self):
        return [No()]


class ChecksDecorated(Open):
    @unmarked
    async def check_permissions(self, request):
        self.permission_denied(request)


class ThrottlesDecorated(Open):
    @unmarked
    async def check_throttles(self, request):
        self.throttled(request, 3)


class AuthenticatesDecorated(Open):
    @unmarked
    async def perform_authentication(self, request):
        raise exceptions.NotAuthenticated


class InitialDecorated(Open):
    @unmarked
    async def initial(self, request, *args, **kwargs):
        super().initial(request, *args, **kwargs)
        raise exceptions.PermissionDenied


class DeniesDecorated(Open):
    permission_classes = (No,)

    @unmarked
    async def permission_denied(self, request, message=None, code=None):
        raise exceptions.PermissionDenied


class NoThrottle(throttling.SimpleRateThrottle):
    rate = "1/day"

    async def allow_request(self, request, view):
        await asyncio.sleep(0)
        return False

    async def wait(self):
        return 3


class Scoped(throttling.ScopedRateThrottle, NoThrottle):
    """Here DRF's own method hands on a coroutine of the project."""

    THROTTLE_RATES: Any = {"scope": "1/day"}  # noqa: RUF012


class ThrottledByScope(Open):
    throttle_classes = (Scoped,)
    throttle_scope = "scope"


class ThrottledDecorated(Open):
    throttle_classes = (NoThrottle,)

    @unmarked
    async def throttled(self, request, wait):
        raise exceptions.Throttled(wait)


class OwnDispatch(Open):
    """It asks before all that DRF does."""

    permission_classes = (No,)

    def dispatch(self, request, *args, **kwargs):
        if not all(each.has_permission(request, self) for each in self.get_permissions()):
            return HttpResponse(status=403)
        return HttpResponse("granted")


class AsyncDispatch(Open):
    permission_classes = (No,)

    async def dispatch(self, request, *args, **kwargs):
        await asyncio.sleep(0)
        return super().dispatch(request, *args, **kwargs)


class ForgetsToAwaitADenial(DeniesDecorated):
    """A coroutine that calls another which is to raise an error, and awaits it not."""

    permission_classes = ()

    async def get(self, request):
        self.permission_denied(request)
        return Response("granted")

    post = get


class OfAnObject(Open):
    permission_classes = (permissions.AllowAny & No,)

    def check_permissions(self, request):
        pass

    async def get(self, request):
        self.check_object_permissions(request, "an object")
        return Response("granted")

    def post(self, request):
        self.check_object_permissions(request, "an object")
        return Response("granted")


class WithoutInit(Open):
    permission_classes = (No,)

    def __init__(self, **kwargs):
        """Does not call super's."""

    def dispatch(self, request, *args, **kwargs):
        try:
            self.check_permissions(self.initialize_request(request))
        except exceptions.APIException:
            return HttpResponse(status=403)
        return HttpResponse("granted")


VIEWS = [
    PermissionsOfACoroutine,
    ChecksDecorated,
    ThrottlesDecorated,
    AuthenticatesDecorated,
    InitialDecorated,
    DeniesDecorated,
    ThrottledByScope,
    ThrottledDecorated,
    OwnDispatch,
    AsyncDispatch,
    ForgetsToAwaitADenial,
    OfAnObject,
    WithoutInit,
]


@pytest.mark.parametrize("kind", VIEWS)
def test_views(ask: Ask, kind: Any) -> None:
    view = kind.as_view()
    assert ask(view) in REFUSED
    assert ask(view, "POST") in REFUSED


def test_those_who_may_are_let_in(ask: Ask) -> None:
    """So what refuses above is the answer, and no error."""
    granted = [~No, AnyOf(No, ~No), ~HandsOnASecondCoroutine, ~AsksAnother, ~AsksInTasks]
    for permission in granted:
        assert ask(Open.as_view(permission_classes=[permission])) == 200


# What is refused, since it can't be awaited.


def local() -> Any:
    class Base(permissions.BasePermission):
        async def has_permission(self, request, view):
            return False

    class OverLocal(Base):
        def has_permission(self, request, view):
            return bool(Base.has_permission(self, request, view))

    return OverLocal


class SuperInAGenerator(No):
    def has_permission(self, request, view):
        return any(super(SuperInAGenerator, self).has_permission(request, view) for _ in (1,))


class SuperDecorated(No):
    @unmarked
    def has_permission(self, request, view):
        return bool(super().has_permission(request, view))


class Yields(permissions.BasePermission):
    async def has_permission(self, request, view):
        yield False


class PlainYields(permissions.BasePermission):
    def has_permission(self, request, view):
        yield False


@pytest.mark.parametrize(
    "permission", [local(), SuperInAGenerator, SuperDecorated, Yields, PlainYields]
)
def test_permissions_that_are_always_true(ask: Ask, permission: Any) -> None:
    with pytest.raises(TypeError, match="always true"):
        ask(Open.as_view(permission_classes=[permission]))


class AsyncChecks(Open):
    async def check_permissions(self, request):
        self.permission_denied(request)

    async def initial(self, request, *args, **kwargs):
        super().initial(request, *args, **kwargs)
        raise exceptions.PermissionDenied


class PlainOverChecks(AsyncChecks):
    def check_permissions(self, request):
        super().check_permissions(request)


class PlainOverInitial(AsyncChecks):
    def initial(self, request, *args, **kwargs):
        super().initial(request, *args, **kwargs)


@pytest.mark.parametrize("kind", [PlainOverChecks, PlainOverInitial])
def test_a_plain_check_over_a_coroutine(ask: Ask, kind: Any) -> None:
    with pytest.raises(TypeError, match="Make it `async def`"):
        ask(kind.as_view())


# What was found of a class is true until the class is changed.


class Plain(permissions.BasePermission):
    def has_permission(self, request, view):
        return False


class PlainOverPlain(Plain):
    def has_permission(self, request, view):
        return super().has_permission(request, view) and True


@pytest.fixture
def known(ask: Ask) -> Callable[[], int]:
    """Asks a view whose permission was asked before."""
    view = Open.as_view(permission_classes=[PlainOverPlain])
    assert ask(view) in REFUSED
    assert ask(view) in REFUSED
    return lambda: ask(view)


def test_a_base_that_is_changed(known: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plain, "has_permission", No.has_permission)
    with pytest.raises(TypeError, match="always true"):
        known()
    monkeypatch.setattr(PlainOverPlain, "has_permission", No.has_permission)
    assert known() in REFUSED


def test_a_base_that_is_added(known: Callable[[], int]) -> None:
    PlainOverPlain.__bases__ = (type("Between", (No, Plain), {}),)
    try:
        with pytest.raises(TypeError, match="always true"):
            known()
    finally:
        PlainOverPlain.__bases__ = (Plain,)
    assert known() in REFUSED


def test_a_base_that_has_one_at_last(
    known: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(PlainOverPlain, "has_permission")
    monkeypatch.setattr(
        PlainOverPlain, "has_permission", property(lambda self: functools.partial(asked, self))
    )
    assert known() in REFUSED


async def asked(*args: object) -> bool:
    return False


@pytest.mark.parametrize("name", ["has_permission", "has_object_permission"])
def test_a_method_that_is_mocked(
    known: Callable[[], int], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    denied = mock.AsyncMock(return_value=False)
    with mock.patch.object(PlainOverPlain, name, denied):
        assert known() in REFUSED
        assert PlainOverPlain().has_object_permission(None, None, None) is (
            name == "has_permission"
        )
    assert known() in REFUSED
    assert PlainOverPlain().has_object_permission(None, None, None)


def test_a_class_made_for_one_request_is_freed() -> None:
    def made() -> weakref.ref[Any]:
        class Once(No):
            async def has_permission(self, request, view):
                return await super().has_permission(request, view)

        for _ in range(2):
            assert Once().has_permission(None, None) is False
        return weakref.ref(Once)

    kind = made()
    gc.collect()
    assert kind() is None


class ForgetsToAwait(permissions.BasePermission):
    async def has_permission(self, request, view):
        return any([No().has_permission(request, view)])


def test_a_coroutine_that_tests_another(ask: Ask) -> None:
    with pytest.raises(TypeError, match=r"await No\.has_permission\(\)"):
        ask(Open.as_view(permission_classes=[ForgetsToAwait]))


# Validation.


class Title(serializers.Serializer):  # type: ignore[type-arg]
    title = serializers.CharField(validators=[unmarked(lambda value: refuse(value))])


class DecoratedMethod(serializers.Serializer):  # type: ignore[type-arg]
    title = serializers.CharField()

    @unmarked
    async def validate_title(self, value):
        await refuse(value)


class DecoratedWhole(serializers.Serializer):  # type: ignore[type-arg]
    title = serializers.CharField()

    @unmarked
    async def validate(self, attrs):
        await refuse(attrs)


async def refuse(value):
    await asyncio.sleep(0)
    raise serializers.ValidationError("no")


@pytest.mark.parametrize("kind", [Title, DecoratedMethod, DecoratedWhole])
def test_validators(kind: Any) -> None:
    assert not kind(data={"title": "a"}).is_valid()


class PlainOverValidate(Title):
    async def validate(self, attrs):
        await refuse(attrs)


class PlainOverBoth(PlainOverValidate):
    def validate(self, attrs):
        super().validate(attrs)
        return attrs


def test_a_plain_validation_over_a_coroutine() -> None:
    with pytest.raises(TypeError, match="Make it `async def`"):
        PlainOverBoth(data={})


# Where no view is dispatched.


class ChecksItself(Open):
    permission_classes = (No,)

    def check_permissions(self, request):
        if not any(each.has_permission(request, self) for each in self.get_permissions()):
            self.permission_denied(request)


@pytest.mark.parametrize("kind", [ChecksItself, ChecksDecorated, Open])
def test_schemas_leave_out_what_is_forbidden(kind: Any) -> None:
    generators = pytest.importorskip("drf_spectacular.generators")
    from drf_spectacular.openapi import AutoSchema
    from drf_spectacular.settings import spectacular_settings

    kind = type(kind.__name__, (kind,), {"schema": AutoSchema()})
    generator = generators.SchemaGenerator(patterns=[path("x/", kind.as_view())])
    with mock.patch.object(spectacular_settings, "DISABLE_ERRORS_AND_WARNINGS", True):
        paths = generator.get_schema(None, public=False)["paths"]
    assert bool(paths) is (kind.__name__ == "Open")


def test_policies_that_are_made_by_hand() -> None:
    assert No().has_permission(None, None) is False
    assert NoThrottle().allow_request(None, None) is False
    with pytest.raises(TypeError, match="takes no arguments"):
        No("an argument")

    async def main() -> None:
        assert await No().has_permission(None, None) is False
        with pytest.raises(BridgeError):
            AsksAnother().has_permission(None, None)

    asyncio.run(main())


# Django's mixins.


class WithTest(UserPassesTestMixin, View):
    raise_exception = True

    async def test_func(self):
        await asyncio.sleep(0)
        return "yes" in self.request.GET

    async def get(self, request):
        return HttpResponse("granted")


class OwnTest(WithTest):
    def get_test_func(self):
        return unmarked(self.test_func)


class Permitted(PermissionRequiredMixin, View):
    raise_exception = True

    async def has_permission(self):
        await asyncio.sleep(0)
        return "yes" in self.request.GET

    async def get(self, request):
        return HttpResponse("granted")


@pytest.fixture
def site(placement: str) -> Iterator[Site]:
    urls = ModuleType("urls")
    urls.urlpatterns = [  # type: ignore[attr-defined]
        path(f"{kind.__name__}/", kind.as_view()) for kind in (WithTest, OwnTest, Permitted)
    ]
    with Site(placement, ROOT_URLCONF=urls) as site:
        yield site


@pytest.mark.parametrize("name", ["WithTest", "OwnTest", "Permitted"])
def test_mixins(site: Site, name: str) -> None:
    assert site.get(f"/{name}/").code == 403
    assert site.get(f"/{name}/?yes").text == "granted"


@pytest.mark.parametrize("kind", [WithTest, OwnTest, Permitted])
def test_mixins_outside_of_a_bridge(kind: Any) -> None:
    async def main() -> None:
        with pytest.raises(BridgeError):
            kind.as_view()(RequestFactory().get("/"))

    asyncio.run(main())


class PlainOverTest(WithTest):
    def test_func(self):
        return bool(super().test_func())


class PlainOverPermission(Permitted):
    def has_permission(self):
        return super().has_permission() and True


@pytest.mark.parametrize("kind", [PlainOverTest, PlainOverPermission])
def test_a_plain_test_over_a_coroutine(kind: Any) -> None:
    with pytest.raises(TypeError, match="always true"):
        kind.as_view()(RequestFactory().get("/"))
