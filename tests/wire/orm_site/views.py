"""Views that query. What ends in "plain" is a plain view, which runs on a thread."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter as Tally
from functools import partial

from asgiref.sync import sync_to_async
from django.contrib import messages
from django.core.handlers.wsgi import WSGIRequest
from django.db import transaction
from django.db.models import F
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect
from django.template.response import TemplateResponse

from greenroom import atomic, bridged, loop_safe
from greenroom.bridge import _Bridge
from greenroom.db import borrow

from .models import Counter, Entry

# What the callbacks of `on_commit` add to: the keys of what was committed.
marks: list[str] = []


class RolledBack(Exception):
    pass


@loop_safe
def mark_here(key):
    marks.append(key)


def mark(key):
    """One in two callbacks is known to be loop-safe; the other gets a thread."""
    here = sum(key.encode()) % 2
    transaction.on_commit(partial(mark_here, key) if here else lambda: marks.append(key))


async def query(request):
    """By plain calls, by `a…` ones, and in tasks."""
    pk = Counter.objects.order_by("name").values_list("pk", flat=True).first()
    counter = await Counter.objects.aget(pk=pk)
    one, other = await asyncio.gather(
        bridged(a_count)(), sync_to_async(Counter.objects.filter(value__gte=0).count)()
    )
    return HttpResponse(f"{counter.name} {one} {other}")


async def a_count():
    return Counter.objects.count()


def query_plain(request):
    return HttpResponse(f"{Counter.objects.first().name} {Counter.objects.count()}")


async def twice(request, seconds):
    """A query, something else, and a query."""
    before = Counter.objects.count()
    await asyncio.sleep(float(seconds))
    after = await Counter.objects.acount()
    return HttpResponse(f"{before} {after}")


async def sleeps(request, seconds):
    await asyncio.sleep(float(seconds))
    return HttpResponse("slept")


async def write(request, key):
    try:
        async with atomic():
            Entry.objects.create(key=key)
            mark(key)
            await asyncio.sleep(0)
            await Entry.objects.filter(key=key).aupdate(key=F("key"))
            if "rollback" in request.GET:
                raise RolledBack
    except RolledBack:
        return HttpResponse("rolled back")
    return HttpResponse("written")


async def savepoints(request, key):
    with transaction.atomic():
        Entry.objects.create(key=key)
        mark(key)
        try:
            async with atomic():
                await Entry.objects.acreate(key=f"{key}-lost")
                mark(f"{key}-lost")
                raise RolledBack
        except RolledBack:
            pass
        await asyncio.gather(add(f"{key}-one"), add(f"{key}-other"))
        if "rollback" in request.GET:
            transaction.set_rollback(True)
    return HttpResponse("saved")


async def add(key):
    async with atomic():
        await Entry.objects.acreate(key=key)
        await asyncio.sleep(0)
        mark(key)


async def take(request, key):
    """A lost update would show: `value` is the number of entries."""
    name = f"c{sum(key.encode()) % 8}"
    async with atomic():
        counter = Counter.objects.select_for_update().get(name=name)
        counter.value += 1
        await asyncio.sleep(0.001)
        await Entry.objects.acreate(key=key, counter=counter)
        mark(key)
        counter.save()
        if "rollback" in request.GET:
            transaction.set_rollback(True)
    return HttpResponse("taken")


def take_plain(request, key):
    name = f"c{sum(key.encode()) % 8}"
    with transaction.atomic():
        counter = Counter.objects.select_for_update().get(name=name)
        counter.value += 1
        Entry.objects.create(key=key, counter=counter)
        mark(key)
        counter.save()
    return HttpResponse("taken")


async def increase(request, key):
    """In autocommit: one statement, and no transaction."""
    counter = await Counter.objects.aget(name="c0")
    await Counter.objects.filter(pk=counter.pk).aupdate(value=F("value") + 1)
    return HttpResponse("increased")


def increase_plain(request, key):
    Counter.objects.filter(name="c0").update(value=F("value") + 1)
    return HttpResponse("increased")


async def stream(request):
    """Items of a cursor in the server, and queries between them."""

    async def parts():
        async for counter in Counter.objects.order_by("name").aiterator(chunk_size=3):
            yield f"{counter.name} {await Counter.objects.filter(pk=counter.pk).acount()}\n"
        for counter in Counter.objects.order_by("name").iterator(chunk_size=3):
            yield f"{counter.name}\n"

    await Counter.objects.acount()
    return StreamingHttpResponse(parts())


async def stream_plain(request):
    """A coroutine view's synchronous stream: a thread makes its items."""

    def parts():
        for counter in Counter.objects.order_by("name").iterator(chunk_size=3):
            yield f"{counter.name} {Counter.objects.filter(pk=counter.pk).count()}\n"

    return StreamingHttpResponse(parts())


async def visit(request):
    """The session and the user, which only the view asks for."""
    visits = await request.session.aget("visits", 0)
    request.session["visits"] = visits + 1
    user = await request.auser()
    return HttpResponse(f"{request.user.username} {user.username} {await user.groups.acount()}")


async def profile(request):
    """A page of one who is logged in; POST leaves a note in the session and a message."""
    if not request.user.is_authenticated:
        return redirect("admin:login")
    if request.method == "POST":
        await request.session.aset("note", request.POST["note"])
        request.session["by"] = request.user.get_username()
        messages.success(request, f"Kept: {request.POST['note']}")
        return redirect("profile")
    return TemplateResponse(request, "orm_site/profile.html", {"again": await request.auser()})


async def numbers(request):
    """What this process has; it queries nothing. ``?collect`` collects first."""
    if "collect" in request.GET:
        gc.collect()
    return JsonResponse(figures())


async def pause(request):
    """How long the loop stood still, at most, since this was last asked."""
    clock = request.lifespan
    longest, clock.longest = clock.longest, 0.0
    return JsonResponse({"longest": longest})


def figures():
    kinds = {
        "requests": WSGIRequest,
        "responses": HttpResponseBase,
        "bridges": _Bridge,
        "scopes": borrow.Scope,
        "wrappers": borrow.Wrapper,
        "tasks": asyncio.Task,
    }
    tally = Tally()
    for each in gc.get_objects():
        for name, kind in kinds.items():
            # By the type: a lazy object would be evaluated by isinstance().
            if issubclass(type(each), kind):
                tally[name] += 1
    return {
        "threads": threading.active_count(),
        "pools": [pool.size for pool in borrow.pools()],
        "lent": [len(pool._loans) for pool in borrow.pools()],
        **{name: tally[name] for name in kinds},
    }


async def marked(request):
    return JsonResponse({"marks": marks})
