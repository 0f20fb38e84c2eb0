"""Each view in both forms: ``/coroutine/…/`` and ``/plain/…/``."""

import views
from django.conf import settings
from django.urls import path

urlpatterns = [
    path("coroutine/hello/", views.coroutine_hello),
    path("plain/hello/", views.plain_hello),
    path("coroutine/sleep/<int:milliseconds>/", views.coroutine_sleep),
    path("plain/sleep/<int:milliseconds>/", views.plain_sleep),
    path("coroutine/query/<int:count>/", views.coroutine_query),
    path("plain/query/<int:count>/", views.plain_query),
    path("coroutine/page/", views.coroutine_page),
    path("plain/page/", views.plain_page),
    path("coroutine/heavy/", views.coroutine_heavy),
    path("coroutine/ticks/", views.coroutine_ticks),
    path("plain/ticks/", views.plain_ticks),
    path("coroutine/file/", views.coroutine_file),
    path("plain/file/", views.plain_file),
    path("coroutine/stream/", views.coroutine_stream),
    path("plain/stream/", views.plain_stream),
    path("coroutine/upload/", views.coroutine_upload),
    path("plain/upload/", views.plain_upload),
]
if settings.API:
    import api

    urlpatterns += [
        path("coroutine/list/", api.CoroutineArticles.as_view()),
        path("plain/list/", api.PlainArticles.as_view()),
        path("coroutine/limited/", api.CoroutineLimited.as_view()),
        path("plain/limited/", api.PlainLimited.as_view()),
    ]
    if settings.APPLICATION == "django":
        # Its views don't work beside ours, and nobody has both.
        import adrf_api

        urlpatterns += [
            path("adrf/list/", adrf_api.Articles.as_view()),
            path("adrf/limited/", adrf_api.Limited.as_view()),
        ]
