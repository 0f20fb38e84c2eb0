"""The paths of `project.urls`, with views of the other kind."""

from django.urls import path

from . import views

urlpatterns = [
    path("hello/", views.plain),
    path("plain/", views.hello),
]
