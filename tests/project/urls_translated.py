"""A path that means another view in another language."""

from django.http import HttpResponse
from django.urls import path, re_path
from django.utils.functional import lazystr
from django.utils.translation import get_language


async def here(request):
    return HttpResponse(f"here {get_language()}")


async def there(request):
    return HttpResponse(f"there {get_language()}")


class _Translated:
    def __init__(self, route):
        self.route = route

    def __str__(self):
        return self.route if get_language() == "de" else "nowhere/"


urlpatterns = [
    path(lazystr(_Translated("route/")), here),
    path("route/", there),
    re_path(lazystr(_Translated("^pattern/$")), here),
    re_path("^pattern/$", there),
]
