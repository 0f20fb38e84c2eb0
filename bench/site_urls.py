import asyncio
import os
import time

from django.contrib.auth.models import Group
from django.http import HttpResponse
from django.urls import path

QUERIES = int(os.environ.get("BENCH_QUERIES", "1"))


async def coroutine_wait(request):
    await asyncio.sleep(1)
    return HttpResponse("Hello world!")


def plain_wait(request):
    time.sleep(1)
    return HttpResponse("Hello world!")


async def coroutine_query(request):
    for _ in range(QUERIES):
        group = await Group.objects.aget(pk=1)
    return HttpResponse(group.name)


def plain_query(request):
    for _ in range(QUERIES):
        group = Group.objects.get(pk=1)
    return HttpResponse(group.name)


urlpatterns = [
    path("coroutine/", coroutine_wait),
    path("plain/", plain_wait),
    path("coroutine/query/", coroutine_query),
    path("plain/query/", plain_query),
]
