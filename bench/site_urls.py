import asyncio
import time

from django.http import HttpResponse
from django.urls import path


async def coroutine_wait(request):
    await asyncio.sleep(1)
    return HttpResponse("Hello world!")


def plain_wait(request):
    time.sleep(1)
    return HttpResponse("Hello world!")


urlpatterns = [path("coroutine/", coroutine_wait), path("plain/", plain_wait)]
