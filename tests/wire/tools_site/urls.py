from __future__ import annotations

import asyncio
import time

from allauth.account.adapter import get_adapter
from allauth.account.decorators import reauthentication_required
from allauth.account.models import EmailAddress
from allauth.core import context
from allauth.core.exceptions import ImmediateHttpResponse, ReauthenticationRequired
from debug_toolbar.toolbar import debug_toolbar_urls
from django.core.cache import cache
from django.http import HttpResponse, JsonResponse
from django.shortcuts import render
from django.tasks import task
from django.urls import include, path, re_path
from drf_spectacular.views import SpectacularAPIView
from rest_framework.permissions import AllowAny
from rest_framework.routers import SimpleRouter
from rest_framework_simplejwt.views import TokenObtainPairView, TokenRefreshView

from greenroom import sync_view

from . import api
from .models import Book
from .places import meet


async def hello(request):
    return HttpResponse("Hello world!")


async def whoami(request):
    """The user by all ways, before and after a wait; and what allauth takes for the request."""
    lazy = request.user.username
    await asyncio.sleep(0)
    user = await request.auser()
    return JsonResponse(
        {
            "names": [lazy, user.username],
            "in_context": context.request is request,
            "emails": [each.email async for each in EmailAddress.objects.filter(user_id=user.pk)],
            "place": request.place,
        }
    )


async def together(request, name, count):
    """What is known of the user and the request, while others are here with theirs."""
    seen = []
    for turn in range(3):
        seen.append(
            [
                (await request.auser()).username,
                request.user.username,
                request.session.get("_auth_user_id"),
                context.request.GET["mine"],
            ]
        )
        await meet(f"{name} {turn}", count)
    return JsonResponse({"seen": seen, "place": request.place})


async def page(request, year):
    """A page with queries, one of them plain and two in tasks, and a cache.

    It may wait for others.
    """
    mine = Book.objects.get(year=year)
    cache.set(f"key {year}", mine.title)
    if "count" in request.GET:
        await meet("pages", int(request.GET["count"]))
    same = Book.objects.filter(title=mine.title)
    count, _ = await asyncio.gather(same.acount(), same.aexists())
    await cache.aget(f"key {year}")
    return HttpResponse(f"<html><body><p>{mine.title}: {count}</p></body></html>")


@task
def shelve(title):
    """Runs when it is enqueued."""


async def rendered(request, year):
    shelve.enqueue(f"book {year}")
    if "count" in request.GET:
        await meet("rendered", int(request.GET["count"]))
    return render(request, "tools_site/book.html", {"book": Book.objects.get(year=year)})


async def raises(request, what):
    if what == "immediate":
        raise ImmediateHttpResponse(HttpResponse("at once"))
    raise ReauthenticationRequired


async def authenticates(request, name):
    """Who that is, by allauth: also one who may not log in."""
    user = get_adapter().authenticate(request, username=name, password=request.GET["password"])
    return JsonResponse({"name": user and user.username, "place": request.place})


@reauthentication_required
@sync_view
async def guarded(request):
    await asyncio.sleep(0)
    return JsonResponse({"name": request.user.username, "place": request.place})


async def app(request):
    """A page that answers for all paths below it, as those of single-page applications do."""
    return HttpResponse("the app")


def nap():
    time.sleep(0.001)


async def blocks(request, how):
    """Blocks the loop by one of several ways, or sleeps where it may."""
    if how == "in a greenlet":
        nap()
    elif how == "in a task":
        await asyncio.create_task(naps())
    elif how == "by a file":
        read()
    else:
        await asyncio.to_thread(nap)
    return HttpResponse("done")


def read():
    with open(__file__) as file:
        file.read()


async def naps():
    nap()


def open_view(kind):
    return kind.as_view(permission_classes=[AllowAny], authentication_classes=[])


def schema_of(viewset):
    router = SimpleRouter()
    router.register("books", viewset, basename="book")
    patterns = [path("api/", include(router.urls))]
    return SpectacularAPIView.as_view(
        urlconf=patterns, permission_classes=[AllowAny], authentication_classes=[]
    )


async_router = SimpleRouter()
async_router.register("books", api.AsyncBooks, basename="book")
plain_router = SimpleRouter()
plain_router.register("books", api.Books, basename="plain-book")

urlpatterns = [
    path("accounts/", include("allauth.urls")),
    path("api/token/", TokenObtainPairView.as_view()),
    path("api/token/refresh/", TokenRefreshView.as_view()),
    path("api/", include(async_router.urls)),
    path("api/plain/", include(plain_router.urls)),
    path("schema/async/", schema_of(api.AsyncBooks)),
    path("schema/plain/", schema_of(api.Books)),
    re_path("^app/.*$", app),
    path("authenticates/<name>/", authenticates),
    path("blocks/<how>/", blocks),
    path("guarded/", guarded),
    path("hello/", hello),
    path("page/<int:year>/", page),
    path("raises/<what>/", raises),
    path("rendered/<int:year>/", rendered),
    path("together/<name>/<int:count>/", together),
    path("whoami/", whoami),
    *debug_toolbar_urls(),
]
