import asyncio
import contextlib
import threading

from asgiref.sync import sync_to_async
from django.contrib.auth import login
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, transaction
from django.http import Http404, HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import redirect, render
from django.utils import translation
from rest_framework.permissions import IsAuthenticated
from rest_framework.response import Response
from rest_framework.views import APIView

import greenroom

from .models import Author, Book

entered: list[str] = []


@contextlib.asynccontextmanager
async def lifespan():
    entered.append("entered")
    yield asyncio.Lock()
    entered.append("left")


def plain(request):
    """Not a coroutine."""
    return HttpResponse(Author.objects.count())


async def add(request, name):
    """The plain ORM, a lazy relation, an `a…` call, each in the same transaction."""
    await asyncio.sleep(0)
    with transaction.atomic():
        author = Author.objects.create(name=name)
        Book.objects.create(title="first", author=author)
    book = await Book.objects.aget(author__name=name)
    return JsonResponse({"author": book.author.name, "authors": await Author.objects.acount()})


async def twice(request):
    """A savepoint is rolled back; what was done before stays."""
    Author.objects.create(name="once")
    try:
        async with greenroom.atomic():
            Author.objects.create(name="twice")
            await asyncio.sleep(0)
            Author.objects.create(name="once")
    except IntegrityError:
        pass
    return JsonResponse([*Author.objects.values_list("name", flat=True)], safe=False)


async def tasks(request):
    """Child tasks, and a thread."""

    async def count(name):
        Author.objects.create(name=name)
        await asyncio.sleep(0)
        return Author.objects.filter(name=name).count()

    async with asyncio.TaskGroup() as group:
        made = [group.create_task(greenroom.bridged(count)(name)) for name in "abc"]
    return JsonResponse(
        {"tasks": sum(task.result() for task in made), "thread": await sync_to_async(all_books)()}
    )


def all_books():
    assert not asyncio._get_running_loop()
    return Author.objects.count()


left: set[asyncio.Task[None]] = set()


async def leave(request):
    """A task goes on in a transaction when the request ends."""

    async def audit():
        async with greenroom.atomic():
            begun.set()
            await asyncio.sleep(0.1)
            await Author.objects.acreate(name="audited")

    begun = asyncio.Event()
    task = asyncio.create_task(audit())
    left.add(task)
    task.add_done_callback(left.discard)
    await begun.wait()
    return HttpResponse("left")


async def fail(request):
    Author.objects.create(name="lost")
    await asyncio.sleep(0)
    raise ValueError("a mistake")


async def mistake(request):
    raise ValueError("a mistake")


async def missing(request):
    await asyncio.sleep(0)
    raise Http404


async def later(request):
    Author.objects.create(name="later")
    transaction.on_commit(lambda: Author.objects.update(name="committed"))
    return HttpResponse("later")


async def page(request):
    return render(request, "books.html", {"count": Book.objects.count()})


async def enter(request):
    """Sessions and users."""
    await sync_to_async(login)(request, User.objects.get(username=request.GET["name"]))
    return redirect("who")


async def who(request):
    request.session["visits"] = request.session.get("visits", 0) + 1
    return HttpResponse(f"{request.user.username} {request.session['visits']}")


async def stream(request):
    async def parts():
        for author in Author.objects.order_by("name"):
            await asyncio.sleep(0)
            yield f"{author.name} {Author.objects.count()};"

    return StreamingHttpResponse(parts())


async def plain_stream(request):
    return StreamingHttpResponse(f"{each.name};" for each in Author.objects.order_by("name"))


async def endless(request):
    async def parts():
        try:
            while True:
                yield f"{Author.objects.count()};"
                await asyncio.sleep(0)
        finally:
            entered.append("closed")

    return StreamingHttpResponse(parts())


async def lasting(request):
    async with request.lifespan:
        return HttpResponse(f"{id(request.lifespan)}")


async def language(request):
    before = translation.get_language()
    translation.activate("fr")
    await asyncio.sleep(0)
    return HttpResponse(f"{before} {translation.get_language()}")


async def form(request):
    return HttpResponse(f"{request.POST['name']} {request.FILES['file'].read().decode()}")


meetings: dict[str, asyncio.Event] = {}


async def meet(request, name, other):
    """Waits for another request."""
    meetings.setdefault(name, asyncio.Event()).set()
    async with asyncio.timeout(10):
        await meetings.setdefault(other, asyncio.Event()).wait()
    return HttpResponse(Author.objects.count())


async def where(request):
    return HttpResponse(threading.current_thread().name)


async def sleep(request):
    await asyncio.sleep(0.3)
    return HttpResponse(Author.objects.count())


async def in_block(request):
    return HttpResponse(connection.in_atomic_block)


class Api(APIView):
    permission_classes = (IsAuthenticated,)

    def get(self, request):
        return Response({"user": request.user.username, "books": Book.objects.count()})

    async def post(self, request):
        await asyncio.sleep(0)
        author = Author.objects.create(name=request.data["name"])
        return Response({"user": request.user.username, "id": author.pk}, status=201)
