from __future__ import annotations

from django.db import models


class Counter(models.Model):
    name = models.CharField(max_length=40, unique=True)
    value = models.IntegerField(default=0)

    def __str__(self):
        return self.name


class Entry(models.Model):
    """What a transaction adds; `counter` counts those that have it."""

    key = models.CharField(max_length=60, unique=True)
    counter = models.ForeignKey(Counter, models.CASCADE, null=True, blank=True)

    def __str__(self):
        return self.key
