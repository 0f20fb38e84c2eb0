"""Views of every kind."""

from __future__ import annotations

import asyncio
import io
import threading
import types
from contextvars import ContextVar
from functools import partial, wraps

from asgiref.sync import async_to_sync, markcoroutinefunction, sync_to_async
from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.core.exceptions import BadRequest, PermissionDenied, SuspiciousOperation
from django.http import FileResponse, Http404, HttpResponse, JsonResponse, StreamingHttpResponse
from django.template.response import SimpleTemplateResponse, TemplateResponse
from django.urls import get_script_prefix, get_urlconf
from django.utils import timezone, translation
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from greenroom import await_, keep_on_disconnect, on_thread
from greenroom.bridge import in_bridge

events: list[str] = []
variable: ContextVar[str] = ContextVar("variable", default="unset")


async def hello(request):
    await asyncio.sleep(0)
    return HttpResponse("Hello world!")


def plain(request):
    return HttpResponse("plain")


@types.coroutine
def generator_coroutine(request):
    yield from asyncio.sleep(0).__await__()
    return HttpResponse("generator")


@markcoroutinefunction
def future(request):
    made = asyncio.get_running_loop().create_future()
    made.get_loop().call_soon(made.set_result, HttpResponse("future"))
    return made


def unmarked_future(request):
    return asyncio.ensure_future(hello(request))


def undecorated_generator(request):
    yield from asyncio.sleep(0).__await__()
    return HttpResponse("never")


class Async(View):
    async def get(self, request):
        await asyncio.sleep(0)
        return HttpResponse("class")


async def _with_word(request, word):
    await asyncio.sleep(0)
    return HttpResponse(word)


partial_view = partial(_with_word, word="partial")


class Callable:
    async def __call__(self, request):
        await asyncio.sleep(0)
        return HttpResponse("callable")


callable_view = Callable()


def _old_decorator(view):
    @wraps(view)
    def inner(request, *args, **kwargs):
        return view(request, *args, **kwargs)

    return inner


old_decorated = _old_decorator(hello)
passed_through = markcoroutinefunction(_old_decorator(hello))
exempt = csrf_exempt(hello)
needs_login = login_required(hello, login_url="/in/")


async def nothing(request):
    return None


ERRORS = {
    "404": Http404("no such page"),
    "403": PermissionDenied("no"),
    "400": BadRequest("bad"),
    "suspicious": SuspiciousOperation("odd"),
    "error": ValueError("broken"),
    "exit": SystemExit(3),
}


async def raises(request, name):
    await asyncio.sleep(0)
    error = ERRORS[name]
    raise type(error)(*error.args)


def place_now():
    name = threading.current_thread().name
    return "thread" if name.startswith("greenroom-") else "loop"


async def where(request):
    """Where the chain ran, and where the view runs."""
    return JsonResponse({"chain": getattr(request, "chain_place", None), "view": place_now()})


def place(request):
    return HttpResponse(place_now())


def state():
    return {
        "language": translation.get_language(),
        "zone": timezone.get_current_timezone_name(),
        "prefix": get_script_prefix(),
        "urlconf": get_urlconf(),
        "variable": variable.get(),
    }


async def crossing(request):
    """Report the state around the view at several awaits; then change it."""
    seen = [state()]
    for _ in range(3):
        await asyncio.sleep(0)
        seen.append(state())
    seen.append(await sync_to_async(state)())
    seen.append(await asyncio.create_task(_state()))
    if "set" in request.GET:
        word = request.GET["set"]
        variable.set(word)
        translation.activate(word)
        await asyncio.sleep(0)
    return JsonResponse({"seen": seen})


async def _state():
    await asyncio.sleep(0)
    return state()


def plain_crossing(request):
    return JsonResponse({"seen": [state()]})


class _Rendered(SimpleTemplateResponse):
    """Deferred rendering without a template file."""

    @property
    def rendered_content(self):
        return f"{self.context_data['word']} rendered on {place_now()}"


async def template(request):
    return _Rendered("none.html", {"word": "view"})


class _Broken(TemplateResponse):
    @property
    def rendered_content(self):
        raise ValueError("template")


async def template_error(request):
    return _Broken(request, "none.html")


async def stream(request):
    async def parts():
        try:
            for index in range(3):
                events.append(f"make {index}")
                yield f"{index},"
                await asyncio.sleep(0)
        finally:
            events.append("stream closed")

    return StreamingHttpResponse(parts())


async def sync_stream(request):
    def parts():
        try:
            for index in range(3):
                events.append(f"make {index} on {place_now()}")
                yield f"{index},"
        finally:
            events.append("stream closed")

    return StreamingHttpResponse(parts())


async def stream_error(request):
    async def parts():
        yield "first"
        raise ValueError("in the stream")

    return StreamingHttpResponse(parts())


waiting: list[asyncio.Event] = []


async def wait(request):
    """Wait until cancelled; say how it ended."""
    started = asyncio.Event()
    waiting.append(started)
    try:
        await asyncio.sleep(30)
    except asyncio.CancelledError:
        events.append("cancelled")
        await asyncio.sleep(0)
        raise
    finally:
        events.append("finally")
    return HttpResponse("waited")


@keep_on_disconnect
async def keep(request):
    return HttpResponse(str(request.META.get("coroutine_wsgi.cancel_on_disconnect")))


@on_thread
async def held_on_thread(request):
    return HttpResponse(f"{getattr(request, 'chain_place', None)}")


async def file(request):
    return FileResponse(io.BytesIO(b"file content"), filename="file.txt")


async def upload(request):
    return JsonResponse({name: file.read().decode() for name, file in request.FILES.items()})


async def size(request):
    return HttpResponse(str(len(request.body)))


async def calls(request):
    """The calls of one request run one at a time, in order, and may wait in turn."""
    order = []

    def call(index):
        order.append(f"begin {index}")
        await_(asyncio.sleep(0.001))
        order.append(f"end {index}")
        return threading.current_thread().name

    names = await asyncio.gather(*(sync_to_async(call)(index) for index in range(4)))
    return JsonResponse({"order": order, "threads": len(set(names))})


def _inner(word):
    async def inner():
        await asyncio.sleep(0)
        return word

    return async_to_sync(inner)()


async def async_to_sync_view(request):
    return HttpResponse(_inner("inner" if in_bridge() else "no bridge"))


def plain_async_to_sync(request):
    return HttpResponse(_inner("inner"))


async def lifespan(request):
    return HttpResponse(str(request.lifespan))


cache_clients = []


def cache_client(request):
    from django.core.cache import caches

    # Kept: of one that is gone another has the id.
    cache_clients.append(caches["default"])
    return HttpResponse()


outlived: list[str] = []


async def outlive(request):
    """Start a task that outlives the request and then needs a thread."""
    gate = asyncio.get_running_loop().create_future()

    async def later():
        await gate
        outlived.append(await sync_to_async(place_now)())

    task = asyncio.create_task(later())
    settings_gate.append((gate, task))
    return HttpResponse("gone")


settings_gate: list[tuple[asyncio.Future[None], asyncio.Task[None]]] = []


async def status(request, code):
    return HttpResponse(status=int(code))


def debug(request):
    return HttpResponse(str(settings.DEBUG))


gates: dict[str, asyncio.Event] = {}
gate_waiters = 0


async def gate(request, name):
    """Wait until the test opens the gate."""
    global gate_waiters
    gate_waiters += 1
    await gates[name].wait()
    return HttpResponse("through")
