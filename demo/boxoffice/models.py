import uuid
from decimal import Decimal

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models


class Show(models.Model):
    """What is played, and who may change it."""

    title = models.CharField(max_length=80, unique=True)
    about = models.TextField(blank=True, max_length=2000)
    poster = models.FileField(upload_to="posters", blank=True, editable=False)
    managers = models.ManyToManyField(settings.AUTH_USER_MODEL, related_name="shows", blank=True)

    class Meta:
        ordering = ["title"]

    def __str__(self):
        return self.title


class Performance(models.Model):
    """One evening of a show."""

    show = models.ForeignKey(Show, models.CASCADE, related_name="performances")
    starts_at = models.DateTimeField(db_index=True)
    price = models.DecimalField(
        "price in EUR", max_digits=6, decimal_places=2, validators=[MinValueValidator(Decimal(0))]
    )
    seats = models.PositiveSmallIntegerField(validators=[MaxValueValidator(5000)])
    sold = models.PositiveSmallIntegerField(default=0, editable=False)

    class Meta:
        ordering = ["starts_at", "pk"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(sold__lte=models.F("seats")), name="never_oversold"
            )
        ]

    @property
    def free(self):
        return self.seats - self.sold

    def __str__(self):
        return f"{self.show}, {self.starts_at:%d %B, %H:%M}"


class Booking(models.Model):
    """Seats that were sold. `Performance.sold` counts them."""

    class Currency(models.TextChoices):
        EUR = "EUR"
        GBP = "GBP"
        JPY = "JPY"

    reference = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    performance = models.ForeignKey(Performance, models.PROTECT, related_name="bookings")
    customer = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, related_name="bookings")
    seats = models.PositiveSmallIntegerField(
        validators=[MinValueValidator(1), MaxValueValidator(10)]
    )
    currency = models.CharField(max_length=3, choices=Currency, default=Currency.EUR)
    total = models.DecimalField(max_digits=12, decimal_places=2)
    doors = models.CharField("doors open at", max_length=5)
    note = models.CharField(max_length=200, blank=True)
    booked_at = models.DateTimeField(auto_now_add=True, db_index=True)

    class Meta:
        ordering = ["-booked_at"]

    def __str__(self):
        return f"{self.seats} × {self.performance}"
