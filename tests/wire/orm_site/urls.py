from __future__ import annotations

from django.contrib import admin
from django.urls import path

from . import views

urlpatterns = [
    path("admin/", admin.site.urls),
    path("query/", views.query),
    path("query-plain/", views.query_plain),
    path("twice/<seconds>/", views.twice),
    path("sleeps/<seconds>/", views.sleeps),
    path("write/<key>/", views.write),
    path("savepoints/<key>/", views.savepoints),
    path("take/<key>/", views.take),
    path("take-plain/<key>/", views.take_plain),
    path("increase/<key>/", views.increase),
    path("increase-plain/<key>/", views.increase_plain),
    path("stream/", views.stream),
    path("stream-plain/", views.stream_plain),
    path("visit/", views.visit),
    path("profile/", views.profile, name="profile"),
    path("numbers/", views.numbers),
    path("pause/", views.pause),
    path("marked/", views.marked),
]
