"""A URLconf that queries while it is imported."""

from __future__ import annotations

from django.urls import path

from . import urls_orm
from .shop.models import Customer

names = list(Customer.objects.values_list("name", flat=True))
urlpatterns = [path("call/<name>/", urls_orm.call)]
