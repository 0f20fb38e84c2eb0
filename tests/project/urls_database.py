"""Views that use the ORM as plain Django offers it to coroutines."""

from __future__ import annotations

import asyncio
import threading

from asgiref.sync import sync_to_async
from django.contrib.sessions.models import Session
from django.db import connection, transaction
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.utils import timezone

from .views import place_now


async def create(request, key, end):
    await Session.objects.acreate(session_key=key, session_data="", expire_date=timezone.now())
    # A child task's calls are in the transaction too.
    counted = await asyncio.create_task(Session.objects.filter(pk=key).acount())
    if end == "raise":
        raise ValueError("after the insert")
    return HttpResponse(str(counted))


async def which(request):
    """The connection that the chain has, and the one of the view's calls."""

    def seen():
        return [id(connection._connections[connection._alias]), threading.get_ident()]

    calls = [await sync_to_async(seen)() for _ in range(3)]
    calls.append(await asyncio.create_task(sync_to_async(seen)()))
    return JsonResponse({"chain": getattr(request, "seen", None), "calls": calls})


async def leave_open(request):
    def begin():
        connection.ensure_connection()
        transaction.set_autocommit(False)
        Session.objects.create(session_key="open", session_data="", expire_date=timezone.now())

    await sync_to_async(begin)()
    return HttpResponse(place_now())


async def stream(request):
    async def parts():
        for _ in range(3):
            yield f"{await Session.objects.acount()},"

    await Session.objects.acount()
    return StreamingHttpResponse(parts())


def sees_connection(get_response):
    def middleware(request):
        if place_now() == "thread":
            request.seen = [
                id(connection._connections[connection._alias]),
                threading.get_ident(),
            ]
        return get_response(request)

    return middleware


urlpatterns = [
    path("create/<key>/<end>/", create),
    path("which/", which),
    path("leave-open/", leave_open),
    path("stream/", stream),
]
