from django.db import transaction
from rest_framework import serializers

from .models import Booking, Performance, Show

POSTER_BYTES = 256 * 1024
# By how they begin: the client's word for the type of a file is not taken.
POSTER_KINDS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpg"}


class PerformanceOfShow(serializers.ModelSerializer):
    """A performance as part of its show. With an id it is one that is there already."""

    id = serializers.IntegerField(required=False)

    class Meta:
        model = Performance
        fields = ["id", "starts_at", "price", "seats", "sold"]


class ShowSerializer(serializers.ModelSerializer):
    performances = PerformanceOfShow(many=True, max_length=50)

    class Meta:
        model = Show
        fields = ["id", "title", "about", "poster", "performances"]

    def validate_performances(self, performances):
        ids = [each["id"] for each in performances if "id" in each]
        if len(set(ids)) < len(ids):
            raise serializers.ValidationError("A performance is given twice.")
        return performances

    @transaction.atomic
    def create(self, data):
        performances = data.pop("performances")
        show = super().create(data)
        show.managers.add(self.context["request"].user)
        self._save_performances(show, performances)
        return show

    @transaction.atomic
    def update(self, show, data):
        performances = data.pop("performances", None)
        show = super().update(show, data)
        if performances is not None:
            self._save_performances(show, performances)
        return show

    def _save_performances(self, show, performances):
        """Those given are made or changed, those not given are removed."""
        # Locked, for somebody may be booking.
        there = {each.pk: each for each in show.performances.select_for_update()}
        for fields in performances:
            pk = fields.pop("id", None)
            if pk is not None and pk not in there:
                _refuse(f"The show has no performance {pk}.")
            if pk is None and (missing := {"starts_at", "price", "seats"} - fields.keys()):
                # A PATCH requires no field, and that reaches to the fields of fields.
                _refuse(f"A new performance needs {' and '.join(sorted(missing))}.")
            performance = there.pop(pk, None) or Performance(show=show)
            for name, value in fields.items():
                setattr(performance, name, value)
            if performance.free < 0:
                _refuse(f"{performance.sold} seats are sold already.")
            performance.save()
        for performance in there.values():
            if performance.bookings.exists():
                _refuse(f"Performance {performance.pk} has bookings: it can't be removed.")
            performance.delete()
        show._prefetched_objects_cache = {}


def _refuse(message):
    raise serializers.ValidationError({"performances": [message]})


class PosterSerializer(serializers.Serializer):
    poster = serializers.FileField(write_only=True)

    def validate_poster(self, file):
        if file.size > POSTER_BYTES:
            raise serializers.ValidationError(f"At most {POSTER_BYTES // 1024} KiB, please.")
        head = file.read(8)
        for start, suffix in POSTER_KINDS.items():
            if head.startswith(start):
                file.seek(0)
                file.name = f"poster.{suffix}"
                return file
        raise serializers.ValidationError("A poster is a PNG or a JPEG.")


class TitleOfShow(serializers.ModelSerializer):
    class Meta:
        model = Show
        fields = ["id", "title"]


class PerformanceSerializer(serializers.ModelSerializer):
    show = TitleOfShow(read_only=True)
    free = serializers.IntegerField(read_only=True)

    class Meta:
        model = Performance
        fields = ["id", "show", "starts_at", "price", "seats", "free"]


class BookingSerializer(serializers.ModelSerializer):
    performance = PerformanceSerializer(read_only=True)

    class Meta:
        model = Booking
        fields = [
            "reference",
            "performance",
            "seats",
            "currency",
            "total",
            "doors",
            "note",
            "booked_at",
        ]
        read_only_fields = ["total", "doors"]


class BookingNoteSerializer(BookingSerializer):
    """What may be changed of a booking that is made."""

    class Meta(BookingSerializer.Meta):
        read_only_fields = [name for name in BookingSerializer.Meta.fields if name != "note"]
