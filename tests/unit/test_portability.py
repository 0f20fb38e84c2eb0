"""What `manage.py greenroom` says of going back to plain Django."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from functools import partial, wraps
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import alogin, login
from django.contrib.auth.mixins import LoginRequiredMixin
from django.core.management import call_command
from django.db import connection, connections, transaction
from django.db.transaction import atomic
from django.http import HttpResponse
from django.shortcuts import aget_object_or_404, get_object_or_404
from django.test import override_settings
from django.urls import path
from django.views import View
from rest_framework.decorators import api_view
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

import greenroom
from greenroom import await_, portability
from greenroom.portability import needs_of
from project.shop.models import Customer

LINES = Path(__file__).read_text().splitlines()


def marked(mark: str) -> list[str]:
    """The lines of this file that end with ``# mark``."""
    return [str(n) for n, line in enumerate(LINES, 1) if line.endswith(f"  # {mark}")]


def found(view: Any) -> dict[str, list[str]]:
    needs = needs_of(view)
    assert needs.unread == []
    for places in needs.places.values():
        assert all(re.search(r"test_portability\.py:\d+$", place) for place in places)
    return {
        what: sorted(place.rpartition(":")[2] for place in places)
        for what, places in needs.places.items()
    }


def helper(name: str) -> int:
    return Customer.objects.filter(name=name).count()  # orm


async def coroutine_helper() -> None:
    with atomic():  # atomic
        pass


async def orm(request: Any) -> HttpResponse:
    customers = Customer.objects.filter(name="a")
    for customer in customers.exclude(name="b"):  # orm
        customer.save()  # orm
    names = [each.name for each in customers]  # orm
    first = await customers.afirst()
    first.delete()  # orm
    made = Customer(name="c")
    made.save()  # orm
    get_object_or_404(Customer, pk=1)  # orm
    list(customers[:3])  # orm
    customers[0]  # orm
    helper("d")
    await asyncio.gather(coroutine_helper(), *map(str, names))
    return HttpResponse(len(customers))  # orm


async def blocks(request: Any) -> HttpResponse:
    with transaction.atomic():  # atomic
        await coroutine_helper()
    with connection.cursor(), connections["default"].cursor():  # cursor
        pass
    async with greenroom.atomic():  # ours
        await greenroom.bridged(coroutine_helper)()  # bridged
    request.lifespan.get("/")  # lifespan
    return HttpResponse()


async def users(request: Any) -> HttpResponse:
    request.session["a"] = request.session.get("b")  # session
    login(request, request.user)  # auth
    return HttpResponse(request.user.username)  # user


async def portable(request: Any) -> HttpResponse:
    """All that plain Django has."""

    def in_thread() -> int:
        return Customer.objects.count()

    customers = Customer.objects.filter(name="a").order_by("name")
    customer = await customers.aget(pk=1)
    await customer.asave()
    await sync_to_async(in_thread)()
    await sync_to_async(helper)("a")
    await sync_to_async(lambda: Customer.objects.get())()
    async for each in customers.all():
        await each.adelete()
    names = [each.name async for each in customers]
    await alogin(request, await request.auser())
    await request.session.aset("a", 1)
    await aget_object_or_404(Customer, pk=1)
    return HttpResponse(names)


async def not_seen(request: Any, order: Any) -> HttpResponse:
    order.customer.save()
    return HttpResponse(order.customer.name)


def plain(request: Any) -> HttpResponse:
    return HttpResponse(helper("a"))


def decorated(view: Any) -> Any:
    @wraps(view)
    async def inner(*args: Any) -> Any:
        return await view(*args)

    return inner


@greenroom.atomic  # decorator
async def whole(request: Any) -> HttpResponse:
    return HttpResponse()


@greenroom.keep_on_disconnect  # keep
@greenroom.on_thread  # thread
async def marks(request: Any) -> HttpResponse:
    return HttpResponse()


class Account(LoginRequiredMixin, View):
    async def get(self, request: Any) -> HttpResponse:
        return HttpResponse(self.count())

    def count(self) -> int:
        return Customer.objects.count() + await_(self.acount())  # account

    async def acount(self) -> int:
        return await Customer.objects.acount()


class Both(APIView):
    def get(self, request: Any) -> Response:
        return Response(Customer.objects.count())

    async def post(self, request: Any) -> Response:
        Customer.objects.create(name=request.user.username)  # both
        return Response()


class Set(ViewSet):
    async def list(self, request: Any) -> Response:
        return Response()


@api_view(["GET"])
async def by_function(request: Any) -> Response:
    return Response(Customer.objects.count())  # function


class Callable:
    async def __call__(self, request: Any) -> HttpResponse:
        return HttpResponse(Customer.objects.count())  # call


def test_the_plain_orm() -> None:
    assert found(orm) == {
        portability.ORM: sorted(marked("orm")),
        portability.ATOMIC: [marked("atomic")[0]],
    }
    assert found(partial(decorated(orm))) == found(orm)
    assert found(Callable()) == {portability.ORM: marked("call")}


def test_blocks_and_ours() -> None:
    assert found(blocks) == {
        portability.ATOMIC: sorted(marked("atomic")),
        portability.CURSOR: marked("cursor"),
        portability.LIFESPAN: marked("lifespan"),
        "greenroom.atomic": marked("ours"),
        "greenroom.bridged": marked("bridged"),
    }
    assert found(whole) == {"greenroom.atomic": marked("decorator")}
    assert found(marks) == {
        "greenroom.keep_on_disconnect": marked("keep"),
        "greenroom.on_thread": marked("thread"),
    }


def test_users_and_sessions() -> None:
    with override_settings(SESSION_ENGINE="django.contrib.sessions.backends.db"):
        assert found(users) == {
            portability.SESSION: marked("session"),
            portability.AUTH: marked("auth"),
            portability.USER: marked("user"),
        }
    with override_settings(SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies"):
        assert portability.SESSION not in found(users)


@pytest.mark.parametrize("view", [portable, not_seen, plain])
def test_nothing(view: Any) -> None:
    assert found(view) == {}


def test_classes() -> None:
    assert found(Account.as_view()) == {
        portability.MIXIN: [],
        portability.ORM: marked("account"),
        "greenroom.await_": marked("account"),
    }
    assert found(Both.as_view()) == {
        portability.FRAMEWORK: [],
        portability.KINDS: [],
        portability.ORM: marked("both"),
    }
    assert found(Set.as_view({"get": "list"})) == {portability.FRAMEWORK: []}
    assert found(by_function) == {portability.FRAMEWORK: [], portability.ORM: marked("function")}


def test_atomic_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.settings["default"], "ATOMIC_REQUESTS", True)
    assert found(portable) == {portability.REQUESTS: []}
    assert found(plain) == {}
    assert found(transaction.non_atomic_requests(portable)) == {}


def test_what_has_no_source() -> None:
    namespace: dict[str, Any] = {}
    # The source of "<string>" may be that of `python -c`.
    exec(compile("async def made(request): pass", "<made>", "exec"), namespace)
    assert needs_of(namespace["made"]).unread == ["?.made has no source that can be read"]


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    urls: Any = ModuleType("project.portable_urls")
    urls.urlpatterns = [path("orm/", orm), path("portable/", portable), path("plain/", plain)]
    monkeypatch.setitem(sys.modules, "project.portable_urls", urls)
    out = StringIO()
    with override_settings(ROOT_URLCONF="project.portable_urls"):
        call_command("greenroom", stdout=out)
        lines = out.getvalue().splitlines()
        (line,) = [each for each in lines if each.startswith("  /orm/  ")]
        assert f"{portability.ORM} (" in line
        assert f"test_portability.py:{marked('orm')[0]}" in line
        (last,) = [each for each in lines if "use none of that" in each]
        assert last.startswith("1 of 2 coroutine views use none of that. Not seen are lazy ")
        out = StringIO()
        call_command("greenroom", "--json", stdout=out)
        views = {each["route"]: each for each in json.loads(out.getvalue())["views"]}
    assert list(views["orm/"]["needs"]) == [portability.ORM, portability.ATOMIC]
    assert views["portable/"]["needs"] == views["plain/"]["needs"] == {}
    assert views["orm/"]["unread"] == []
