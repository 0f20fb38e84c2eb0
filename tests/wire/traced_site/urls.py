"""Views that interleave: each waits, queries, goes to a thread, and asks another service."""

from __future__ import annotations

import asyncio
import os
import time

import httpx
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.http import Http404, HttpResponse, StreamingHttpResponse
from django.urls import path

from . import tracing

UPSTREAM = os.environ.get("SITE_UPSTREAM", "")


def on_thread(token):
    with tracing.span(f"thread {token}"):
        tracing.note("thread", token)
        time.sleep(0.005)


async def child(token):
    with tracing.span(f"child {token}"):
        await asyncio.sleep(0.01)
        tracing.note("child", token)


async def fetch(request, token):
    """By the client that lasts, where there is one."""
    client = getattr(request, "lifespan", None)
    if client is not None:
        return await client.get(f"{UPSTREAM}/{token}")
    async with httpx.AsyncClient(timeout=30) as client:
        return await client.get(f"{UPSTREAM}/{token}")


async def work(request, token):
    tracing.whose(token)
    tracing.note("begun", token)
    with tracing.span(f"sleep {token}"):
        await asyncio.sleep(0.02)
        await User.objects.filter(username=token).acount()
    await sync_to_async(on_thread)(token)
    await asyncio.sleep(0.01)
    await asyncio.gather(child(token), child(token))
    await fetch(request, token)
    tracing.note("ended", token)


async def coroutine(request, token):
    await work(request, token)
    return HttpResponse(token)


def plain(request, token):
    tracing.whose(token)
    tracing.note("begun", token)
    with tracing.span(f"sleep {token}"):
        time.sleep(0.01)
        User.objects.filter(username=token).count()
    on_thread(token)
    httpx.get(f"{UPSTREAM}/{token}", timeout=30)
    tracing.note("ended", token)
    return HttpResponse(token)


async def fails(request, token):
    await work(request, token)
    raise ValueError(f"failed {token}")


def fails_plain(request, token):
    plain(request, token)
    raise ValueError(f"failed {token}")


async def missing(request, token):
    await work(request, token)
    raise Http404


async def waits(request, token):
    """Longer than its client."""
    tracing.whose(token)
    tracing.note("begun", token)
    await fetch(request, token)
    with tracing.span(f"sleep {token}"):
        await asyncio.sleep(60)


async def streams(request, token):
    await work(request, token)

    async def parts():
        for index in range(3):
            await asyncio.sleep(0.01)
            yield f"{index} {token}\n"
        if "fail" in request.GET:
            raise ValueError(f"failed {token}")

    return StreamingHttpResponse(parts())


async def member(request, token):
    """Nobody but the tool asks who it is."""
    with tracing.span(f"sleep {token}"):
        await asyncio.sleep(0.02)
    return HttpResponse(token)


async def quiet(request):
    """Says nothing of itself: whatever a tool knows more was left by somebody else."""
    await asyncio.sleep(0)
    raise ValueError("quiet")


def quiet_plain(request):
    raise ValueError("quiet")


urlpatterns = [
    path("coroutine/<token>/", coroutine),
    path("plain/<token>/", plain),
    path("fails/<token>/", fails),
    path("fails-plain/<token>/", fails_plain),
    path("missing/<token>/", missing),
    path("waits/<token>/", waits),
    path("streams/<token>/", streams),
    path("member/<token>/", member),
    path("quiet/", quiet),
    path("quiet-plain/", quiet_plain),
]
