"""The project's paths with error handlers of its own, coroutines."""

from __future__ import annotations

import asyncio

from django.http import HttpResponse

from .urls import urlpatterns as urlpatterns
from .views import place_now


async def _answer(status):
    await asyncio.sleep(0)
    return HttpResponse(f"own {status} on {place_now()}", status=status)


async def handler400(request, exception):
    return await _answer(400)


async def handler403(request, exception):
    return await _answer(403)


async def handler404(request, exception):
    return await _answer(404)


async def handler500(request):
    return await _answer(500)
