"""Where requests run, and a place for them to meet."""

import asyncio
from collections import defaultdict

from django.contrib.auth.backends import BaseBackend

from greenroom import await_, loop_safe
from greenroom.bridge import in_bridge


@loop_safe
def middleware(get_response):
    """The innermost: notes where the synchronous code around the view runs."""

    @loop_safe
    def noted(request):
        request.place = "loop" if in_bridge() else "thread"
        return get_response(request)

    return noted


_meetings = defaultdict(dict)


async def meet(name, count):
    """Wait until as many are here as are expected."""
    meeting = _meetings[name]
    full = meeting.setdefault("full", asyncio.Event())
    meeting["here"] = meeting.get("here", 0) + 1
    if meeting["here"] == count:
        full.set()
        del _meetings[name]
    async with asyncio.timeout(50):
        await full.wait()


@loop_safe
class Waits(BaseBackend):
    """Knows nobody; before it says so it has whoever asks meet others, and wait."""

    def authenticate(self, request, **credentials):
        if request is not None and "meet" in request.GET:
            await_(meet("log-ins", int(request.GET["meet"])))
            await_(asyncio.sleep(float(request.GET["wait"])))
