from django.db import models

from .upstreams import SERVICES


class Board(models.Model):
    """What a montage page shows."""

    name = models.CharField(max_length=60)
    slug = models.SlugField(unique=True)
    is_default = models.BooleanField("default", default=False)

    class Meta:
        ordering = ["-is_default", "name"]
        constraints = [
            models.UniqueConstraint(
                fields=["is_default"],
                condition=models.Q(is_default=True),
                name="one_default_board",
                violation_error_message="Another board is the default one.",
            )
        ]

    def __str__(self):
        return self.name


class Tile(models.Model):
    """One service on a board."""

    board = models.ForeignKey(Board, models.CASCADE, related_name="tiles")
    service = models.CharField(
        max_length=20, choices=[(service.name, service.label) for service in SERVICES.values()]
    )
    title = models.CharField(max_length=40, blank=True, help_text="Empty: the service's own name.")
    position = models.PositiveSmallIntegerField(default=0)

    class Meta:
        ordering = ["position", "pk"]
        constraints = [
            models.UniqueConstraint(fields=["board", "service"], name="a_service_once_a_board")
        ]

    @property
    def details(self):
        return SERVICES[self.service]

    def __str__(self):
        return self.title or self.get_service_display()
