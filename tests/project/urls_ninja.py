"""An API made with django-ninja: operations of both kinds, auth, throttles, pages."""

from __future__ import annotations

import asyncio
from typing import Any

from django.contrib.sessions.models import Session
from django.db import connection, transaction
from django.http import HttpRequest
from django.urls import path
from django.utils import timezone
from ninja import NinjaAPI, Schema
from ninja.errors import HttpError
from ninja.pagination import LimitOffsetPagination, paginate
from ninja.security import APIKeyHeader, HttpBearer
from ninja.throttling import AnonRateThrottle

from greenroom import atomic

from .views import place_now

api = NinjaAPI(urls_namespace="project")


class Row(Schema):
    session_key: str


class Bearer(HttpBearer):
    """A plain one, that queries."""

    def authenticate(self, request: HttpRequest, token: str) -> Any:
        return Session.objects.filter(pk=token).first()


class Key(APIKeyHeader):
    """A coroutine, that queries."""

    param_name = "X-Key"

    async def authenticate(self, request: HttpRequest, key: str | None) -> Any:
        await asyncio.sleep(0)
        return await Session.objects.filter(pk=key).afirst()


def make(key: str) -> Session:
    return Session.objects.create(session_key=key, session_data="", expire_date=timezone.now())


@api.get("/rows/async/{key}")
async def coroutine(request, key: str):
    session = Session.objects.get(pk=key)
    await asyncio.sleep(0)
    return {"key": session.pk, "place": place_now()}


@api.get("/rows/plain/{key}")
def plain(request, key: str):
    return {"key": Session.objects.get(pk=key).pk, "place": place_now()}


@api.get("/both/{key}")
async def both_get(request, key: str):
    return {"count": await Session.objects.acount(), "place": place_now()}


@api.post("/both/{key}", response=Row)
def both_post(request, key: str):
    return make(key)


@api.post("/move/{key}", response={200: Row})
async def move(request, key: str, fails: bool = False):
    async with atomic():
        row = make(key)
        await asyncio.sleep(0)
        if fails:
            raise HttpError(409, f"in a transaction: {connection.in_atomic_block}")
        transaction.on_commit(lambda: make(f"{key}-done"))
    return row


@api.get("/plain-auth", auth=Bearer())
async def with_plain_auth(request):
    return {"by": request.auth.pk}


@api.get("/async-auth", auth=Key())
async def with_async_auth(request):
    return {"by": request.auth.pk}


@api.get("/throttled", throttle=[AnonRateThrottle("2/m")])
async def throttled(request):
    return {"ok": True}


@api.get("/pages", response=list[Row])
@paginate(LimitOffsetPagination)
async def pages(request):
    return Session.objects.order_by("pk")


@api.get("/errors")
async def errors(request):
    await Session.objects.aget(pk="nobody")


@api.exception_handler(Session.DoesNotExist)
def absent(request, exc):
    return api.create_response(request, {"absent": True}, status=404)


urlpatterns = [path("api/", api.urls)]
