"""Paths with a language prefix."""

from django.conf.urls.i18n import i18n_patterns
from django.http import HttpResponse
from django.urls import path
from django.utils.translation import get_language


async def hello(request):
    return HttpResponse(f"hello {get_language()}")


urlpatterns = i18n_patterns(path("hello/", hello))
