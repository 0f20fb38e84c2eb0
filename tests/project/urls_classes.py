"""Class-based coroutine views behind Django's own mixins, and old decorators over them."""

from __future__ import annotations

import asyncio

from django.contrib.auth.decorators import login_required
from django.contrib.auth.mixins import (
    LoginRequiredMixin,
    PermissionRequiredMixin,
    UserPassesTestMixin,
)
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.http import HttpResponse
from django.urls import path
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import cache_page, never_cache
from django.views.decorators.http import require_POST
from django.views.generic import TemplateView

from greenroom import sync_view

from .views import place_now


class Private(LoginRequiredMixin, View):
    async def get(self, request):
        await asyncio.sleep(0)
        # A lazy user, loaded by a plain query.
        return HttpResponse(f"{request.user.username} {place_now()}")


class Permitted(PermissionRequiredMixin, View):
    permission_required = "auth.view_user"
    raise_exception = True

    async def get(self, request):
        return HttpResponse(f"{await User.objects.acount()} {place_now()}")


class Tested(UserPassesTestMixin, View):
    raise_exception = True

    def test_func(self):
        return self.request.user.groups.filter(name="testers").exists()

    async def get(self, request):
        return HttpResponse("tested")


class Decorated(View):
    @method_decorator([never_cache, login_required])
    async def get(self, request):
        return HttpResponse(request.user.username)


class Page(TemplateView):
    template_name = "page.html"

    async def get(self, request, *args, **kwargs):
        await asyncio.sleep(0)
        return super().get(request, *args, **kwargs)


counted: list[int] = []


@cache_page(60)
@sync_view
async def cached(request):
    await asyncio.sleep(0)
    counted.append(1)
    return HttpResponse(str(len(counted)))


@require_POST
@transaction.atomic
@sync_view
async def in_transaction(request):
    await asyncio.sleep(0)
    await User.objects.acreate(username="made")
    if request.GET.get("fail"):
        raise ValueError("after the insert")
    return HttpResponse(str(connection.in_atomic_block))


urlpatterns = [
    path("private/", Private.as_view()),
    path("permitted/", Permitted.as_view()),
    path("tested/", Tested.as_view()),
    path("decorated/", Decorated.as_view()),
    path("page/", Page.as_view()),
    path("cached/", cached),
    path("in-transaction/", in_transaction),
]
