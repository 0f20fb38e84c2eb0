"""Models with all that a project writes of its own.

`Customer`, `Order` and `Counter` are plain: Django's code all the way.
`Document` has a file; `Audited` overrides `save`, `Article` has a queryset of its own.
"""

from __future__ import annotations

from typing import Any

from django.db import models


class Customer(models.Model):
    name = models.CharField(max_length=50)
    tenant = models.CharField(max_length=50, default="")


class Order(models.Model):
    customer = models.ForeignKey(Customer, models.CASCADE, related_name="orders")
    note = models.CharField(max_length=50, default="")


class Counter(models.Model):
    name = models.CharField(max_length=50, unique=True)
    value = models.IntegerField(default=0)


class Document(models.Model):
    title = models.CharField(max_length=50)
    file = models.FileField(upload_to="documents")


class Audited(models.Model):
    name = models.CharField(max_length=50)
    saved_by = models.CharField(max_length=50, default="")

    def save(self, *args: Any, **kwargs: Any) -> None:
        from project.views import place_now

        self.saved_by = place_now()
        super().save(*args, **kwargs)


class ArticleQuerySet(models.QuerySet["Article"]):
    def get(self, *args: Any, **kwargs: Any) -> Article:
        from project.views import place_now

        found = super().get(*args, **kwargs)
        found.got_by = place_now()
        return found


class Article(models.Model):
    name = models.CharField(max_length=50)
    objects = ArticleQuerySet.as_manager()
    got_by = ""
