from django.conf import settings
from django.contrib import admin
from django.contrib.staticfiles.views import serve
from django.urls import include, path
from django.views.generic import RedirectView
from django.views.static import serve as serve_from

from . import views
from .counters import counted
from .upstreams import upstream

urlpatterns = [
    path("", views.home, name="home"),
    path("status", views.status, name="status"),
    path("montage/", counted(views.montage), name="montage"),
    path("montage/sync/", counted(views.montage_sync), name="montage-sync"),
    path("montage/stream/", views.montage_stream, name="montage-stream"),
    path("clock/", views.clock, name="clock"),
    path("clock/events", views.clock_events, name="clock-events"),
    path("hello/", counted(views.hello), name="hello"),
    path("hello/now/", views.hello_now, name="hello-now"),
    path("hello/sync/", views.hello_sync, name="hello-sync"),
    path("upstream/<slug:name>/", counted(upstream), name="upstream"),
    path("api/", include("boxoffice.urls")),
    path("admin/", admin.site.urls),
    path("favicon.ico", RedirectView.as_view(url="/static/montage/icon.svg")),
    # Elsewhere a proxy or WhiteNoise serves these. Here one process has to be everything, with
    # DEBUG off and the admin's own files among them; "insecure" is Django's word for doing so.
    path("static/<path:path>", serve, {"insecure": True}),
    path("media/<path:path>", serve_from, {"document_root": settings.MEDIA_ROOT}),
]
