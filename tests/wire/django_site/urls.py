from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
import threading
import time
import urllib.request
from contextvars import ContextVar

import httpx
from asgiref.sync import sync_to_async
from django.core.signals import request_finished, request_started
from django.db import connections
from django.http import FileResponse, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from greenroom import loop_safe

seen: list[str] = []


@loop_safe
def count_finished(**kwargs):
    seen.append("finished")


request_finished.connect(count_finished)


def whereabouts():
    return threading.get_ident(), id(connections["default"])


begun_at = ContextVar("begun_at")


@loop_safe
def note_begin(**kwargs):
    begun_at.set(whereabouts())
    seen.append("started")


request_started.connect(note_begin)


async def hello(request):
    return HttpResponse("Hello world!")


async def sleep(request, seconds):
    await asyncio.sleep(float(seconds))
    return HttpResponse("slept")


def plain(request):
    return HttpResponse("plain")


def plain_sleep(request, seconds):
    time.sleep(float(seconds))
    return HttpResponse("slept")


async def wait(request):
    response_closed = []
    seen.append("begun")
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        seen.append("cancelled")
        raise
    finally:
        seen.append("finally")
    return HttpResponse(str(response_closed))


async def stream(request):
    async def parts():
        try:
            while True:
                yield b"tick\n"
                await asyncio.sleep(0.05)
        finally:
            seen.append("stream closed")

    response = StreamingHttpResponse(parts())
    response._resource_closers.append(lambda: seen.append("response closed"))
    return response


def plain_ticks(request):
    def parts():
        try:
            while True:
                yield b"tick\n"
                time.sleep(0.05)
        finally:
            seen.append("stream closed")

    response = StreamingHttpResponse(parts())
    response._resource_closers.append(lambda: seen.append("response closed"))
    return response


async def flood(request):
    """Blocks without end, as fast as they are taken; their number is among the events."""

    async def parts():
        try:
            while True:
                seen.append("block")
                yield b"x" * 2**16
        finally:
            seen.append("flood closed")

    return StreamingHttpResponse(parts())


async def broken_stream(request):
    async def parts():
        yield b"first"
        raise ValueError("in the stream")

    return StreamingHttpResponse(parts())


def plain_stream(request):
    def parts():
        for index in range(3):
            yield f"{index} {threading.current_thread().name}\n"

    return StreamingHttpResponse(parts())


async def events(request):
    return JsonResponse(
        {
            "seen": seen,
            "threads": threading.active_count(),
            "pid": os.getpid(),
            "loop": id(asyncio.get_running_loop()),
        }
    )


async def fetch(request):
    """By the client that lasts."""
    answer = await request.lifespan.get(request.GET["url"])
    return HttpResponse(answer.content)


async def own(request):
    """Whether calls come back to where the request began: the thread, the connection."""
    thread, connection = begun_at.get()
    calls = [await sync_to_async(whereabouts)() for _ in range(3)]
    return JsonResponse(
        {
            "thread": {each for each, _ in calls} == {thread},
            "connection": {each for _, each in calls} == {connection, id(connections["default"])},
        }
    )


async def exits(request):
    raise SystemExit(7)


async def calls_back(request):
    """A page that asks its own server."""
    async with httpx.AsyncClient(timeout=30) as client:
        answer = await client.get(f"http://{request.get_host()}/{request.GET['to']}/")
    return HttpResponse(f"{answer.status_code} {answer.text}", status=answer.status_code)


def plain_calls_back(request):
    with urllib.request.urlopen(f"http://{request.get_host()}/hello/", timeout=30) as answer:
        return HttpResponse(answer.read())


def _file():
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the response closes it
    file.write(bytes(range(256)) * 4096)
    file.seek(0)
    return file


async def file(request):
    return FileResponse(_file(), filename="bytes.bin")


def plain_file(request):
    return FileResponse(_file(), filename="bytes.bin")


@csrf_exempt
async def upload(request):
    if request.FILES:
        (file,) = request.FILES.values()
        digest = hashlib.sha256(file.read()).hexdigest()
        return JsonResponse({"size": file.size, "sha256": digest})
    return JsonResponse({"size": len(request.body), "length": request.META["CONTENT_LENGTH"]})


urlpatterns = [
    path("hello/", hello),
    path("sleep/<seconds>/", sleep),
    path("plain/", plain),
    path("plain-sleep/<seconds>/", plain_sleep),
    path("wait/", wait),
    path("stream/", stream),
    path("broken-stream/", broken_stream),
    path("plain-stream/", plain_stream),
    path("plain-ticks/", plain_ticks),
    path("flood/", flood),
    path("fetch/", fetch),
    path("own/", own),
    path("events/", events),
    path("exits/", exits),
    path("calls-back/", calls_back),
    path("plain-calls-back/", plain_calls_back),
    path("file/", file),
    path("plain-file/", plain_file),
    path("upload/", upload),
]
