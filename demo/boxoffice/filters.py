from django.db.models import F
from django_filters import rest_framework as filters

from .models import Booking, Performance


class PerformanceFilter(filters.FilterSet):
    after = filters.IsoDateTimeFilter("starts_at", "gte", label="Starts at or after")
    before = filters.IsoDateTimeFilter("starts_at", "lt", label="Starts before")
    price_max = filters.NumberFilter("price", "lte", label="Costs at most")
    free = filters.NumberFilter(method="with_free_seats", label="So many free seats at least")

    class Meta:
        model = Performance
        fields = ["show"]

    def with_free_seats(self, queryset, name, value):
        return queryset.filter(seats__gte=F("sold") + value)


class BookingFilter(filters.FilterSet):
    class Meta:
        model = Booking
        fields = ["performance", "performance__show", "currency"]
