"""What is measured. The two forms of a view do the same."""

import asyncio
import itertools
import os
import time

from articles.models import Article
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.shortcuts import render
from django.views.decorators.csrf import csrf_exempt

HELLO = "Hello world!"
ROWS = [{"title": f"Article {n}", "price": n * 1.25, "tags": ["new", "blue"]} for n in range(20)]


async def coroutine_hello(request):
    return HttpResponse(HELLO)


def plain_hello(request):
    return HttpResponse(HELLO)


async def coroutine_sleep(request, milliseconds):
    await asyncio.sleep(milliseconds / 1000)
    return HttpResponse(HELLO)


def plain_sleep(request, milliseconds):
    time.sleep(milliseconds / 1000)
    return HttpResponse(HELLO)


async def coroutine_query(request, count):
    for pk in range(1, count + 1):
        article = await Article.objects.aget(pk=pk)
    return HttpResponse(article.title)


def plain_query(request, count):
    for pk in range(1, count + 1):
        article = Article.objects.get(pk=pk)
    return HttpResponse(article.title)


async def coroutine_page(request):
    context = {
        "user": await request.auser(),
        "visits": await request.session.aget("visits"),
        "rows": ROWS,
    }
    return render(request, "page.html", context)


def plain_page(request):
    # (Not lazily either.)
    context = {"user": request.user, "visits": request.session.get("visits"), "rows": ROWS}
    return render(request, "page.html", context)


async def coroutine_heavy(request):
    """A page that takes a tenth of a second of the processor to render."""
    began = time.thread_time()
    while time.thread_time() - began < 0.1:
        response = render(request, "rows.html", {"rows": ROWS})
    return response


async def coroutine_ticks(request):
    async def ticks():
        begin = time.monotonic()
        for number in itertools.count():
            await asyncio.sleep(max(0, begin + number - time.monotonic()))
            yield f"data: {number}\n\n"

    return StreamingHttpResponse(ticks(), content_type="text/event-stream")


def plain_ticks(request):
    def ticks():
        begin = time.monotonic()
        for number in itertools.count():
            time.sleep(max(0, begin + number - time.monotonic()))
            yield f"data: {number}\n\n"

    return StreamingHttpResponse(ticks(), content_type="text/event-stream")


SIZE = 100_000_000
BLOCK = b"x" * 65_536


async def coroutine_file(request):
    return FileResponse(open(os.environ["BENCH_FILE"], "rb"))  # noqa: ASYNC230


def plain_file(request):
    return FileResponse(open(os.environ["BENCH_FILE"], "rb"))


async def coroutine_stream(request):
    async def blocks():
        for at in range(0, SIZE, len(BLOCK)):
            yield BLOCK[: SIZE - at]

    return StreamingHttpResponse(blocks())


def plain_stream(request):
    def blocks():
        for at in range(0, SIZE, len(BLOCK)):
            yield BLOCK[: SIZE - at]

    return StreamingHttpResponse(blocks())


@csrf_exempt
async def coroutine_upload(request):
    return HttpResponse(str(size_of(request.FILES["file"])))


@csrf_exempt
def plain_upload(request):
    return HttpResponse(str(size_of(request.FILES["file"])))


def size_of(file):
    return sum(len(chunk) for chunk in file.chunks())
