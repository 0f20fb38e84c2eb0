"""The pages. None holds a thread while it waits, but for those that are there to compare."""

import asyncio
import contextlib
import json
import logging
import time
from datetime import UTC, datetime

from django.http import Http404, HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import render
from django.template.loader import render_to_string
from django.views.decorators.cache import never_cache

import greenroom

from . import counters, timings
from .answers import Asking
from .models import Board
from .upstreams import SERVICES

logger = logging.getLogger(__name__)


async def home(request):
    context = {"status": counters.status(), "lanes": timings.expected(SERVICES.values())}
    return render(request, "montage/home.html", context)


@never_cache
async def status(request):
    return JsonResponse(counters.status())


@never_cache
async def montage(request):
    boards = [board async for board in Board.objects.all()]
    board = _chosen(request, boards)
    tiles = [tile async for tile in board.tiles.all()]

    asking = Asking(_trouble(request))
    client = request.lifespan.client
    answers = await asyncio.gather(
        *(asking.ask(client, slot, tile) for slot, tile in enumerate(tiles, 1))
    )
    return _page(request, "concurrent", boards, board, asking, answers)


@never_cache
def montage_sync(request):
    boards = list(Board.objects.all())
    board = _chosen(request, boards)
    tiles = list(board.tiles.all())

    asking = Asking(_trouble(request))
    client = request.lifespan.sync_client
    answers = [asking.ask_and_wait(client, slot, tile) for slot, tile in enumerate(tiles, 1)]
    return _page(request, "serial", boards, board, asking, answers)


@never_cache
async def montage_stream(request):
    boards = [board async for board in Board.objects.all()]
    board = _chosen(request, boards)
    tiles = [tile async for tile in board.tiles.all()]
    page = render_to_string(
        "montage/stream.html",
        _context("stream", boards, board, request) | {"slots": list(enumerate(tiles, 1))},
        request,
    )
    return StreamingHttpResponse(_stream(request, page, tiles))


async def _stream(request, page, tiles):
    """The page up to its tiles, each tile as it arrives, and the rest.

    A tile's class names its place, so the style sheet puts it where it belongs in whatever order
    they come: no script takes part.
    """
    head, rest = page.split("<!-- tiles -->")
    end_of_tiles, tail = rest.split("<!-- total -->")
    asking = Asking(_trouble(request))
    client = request.lifespan.client
    with counters.counting("requests"):
        yield head
        tasks = [
            asyncio.create_task(asking.ask(client, slot, tile))
            for slot, tile in enumerate(tiles, 1)
        ]
        try:
            for place, arrival in enumerate(asyncio.as_completed(tasks), 1):
                context = {"answer": await arrival, "place": place}
                yield render_to_string("montage/tile.html", context)
            total = render_to_string("montage/streamed.html", {"took": asking.elapsed()})
            yield end_of_tiles + total + tail
        finally:
            # The client may have left: then nobody wants the rest.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def clock(request):
    return render(request, "montage/clock.html")


@never_cache
async def clock_events(request):
    return StreamingHttpResponse(
        _ticks(),
        content_type="text/event-stream",
        headers={"X-Accel-Buffering": "no"},  # nginx would collect the ticks
    )


async def _ticks():
    ticks, second = 0, int(time.time())
    ending = greenroom.shutting_down()
    with counters.counting("listeners"):
        try:
            yield "retry: 2000\n\n"
            while not ending.is_set():
                ticks += 1
                tick = {
                    "time": datetime.fromtimestamp(second, UTC).isoformat(),
                    "tick": ticks,
                    "listeners": counters.status()["listeners"],
                }
                yield f"event: tick\nid: {ticks}\ndata: {json.dumps(tick)}\n\n"
                # Counted and not read off the clock: a timer may fire a moment too early, and
                # the same second would be told twice.
                second = max(second + 1, int(time.time()))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(second - time.time()):
                        await ending.wait()
        finally:
            logger.info("clock: a client left after %d ticks", ticks)


async def hello(request):
    await asyncio.sleep(1)
    return HttpResponse("Hello world!")


async def hello_now(request):
    return HttpResponse("Hello world!")


def hello_sync(request):
    return HttpResponse("Hello world!")


def _chosen(request, boards):
    slug = request.GET.get("board")
    for board in boards:
        if slug in (None, board.slug):
            return board
    raise Http404("There is no such board. `manage.py fill` makes two.")


def _trouble(request):
    """`?fail=tide&slow=air`: which services are to misbehave."""
    return {
        name: kind
        for kind in ("slow", "fail")
        for name in request.GET.getlist(kind)
        if name in SERVICES
    }


def _page(request, kind, boards, board, asking, answers):
    took = asking.elapsed()
    if not any(answer.error for answer in answers):
        timings.remember(kind, board, answers, took)
    context = _context(kind, boards, board, request)
    comparison = context["comparison"]
    other = comparison["serial_spans" if kind == "concurrent" else "concurrent_spans"]
    context |= {
        "answers": answers,
        "took": took,
        "waited": sum(answer.took for answer in answers),
        "errors": sum(bool(answer.error) for answer in answers),
        "lanes": timings.score(answers, took, other, comparison["longest"]),
    }
    return render(request, "montage/montage.html", context)


def _context(kind, boards, board, request):
    return {
        "kind": kind,
        "boards": boards,
        "board": board,
        "query": request.GET.urlencode(),
        "comparison": timings.comparison(board),
    }
