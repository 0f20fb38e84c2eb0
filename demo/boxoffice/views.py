"""The API. What waits for the database or for services is a coroutine, the rest is plain.

The handlers of Django REST framework, its policies and serializers are those that come with it:
in a coroutine their queries wait on the event loop.
"""

import logging
from decimal import Decimal
from functools import partial

from django.db import transaction
from django.db.models import F, ProtectedError
from django.http import Http404
from django.shortcuts import get_object_or_404
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, viewsets
from rest_framework.decorators import action, api_view
from rest_framework.parsers import MultiPartParser
from rest_framework.permissions import IsAuthenticated, IsAuthenticatedOrReadOnly
from rest_framework.response import Response

import greenroom

from . import serializers
from .errors import Conflict
from .filters import BookingFilter, PerformanceFilter
from .models import Booking, Performance, Show
from .permissions import ManagesShow
from .services import ask

logger = logging.getLogger(__name__)


class Shows(viewsets.ModelViewSet):
    """What is played. Whoever adds a show manages it."""

    queryset = Show.objects.prefetch_related("performances")
    serializer_class = serializers.ShowSerializer
    permission_classes = [IsAuthenticatedOrReadOnly, ManagesShow]
    lookup_value_converter = "int"
    search_fields = ["title", "about"]
    ordering_fields = ["title"]
    ordering = ["title"]

    async def list(self, request):
        return super().list(request)

    async def retrieve(self, request, pk):
        return super().retrieve(request, pk)

    async def create(self, request):
        return super().create(request)

    async def update(self, request, pk):
        return super().update(request, pk)

    async def partial_update(self, request, pk):
        return super().update(request, pk, partial=True)

    def perform_destroy(self, show):
        try:
            show.delete()
        except ProtectedError:
            raise Conflict("Somebody has booked: the show must go on.") from None

    @extend_schema(responses=serializers.ShowSerializer)
    @action(
        detail=True,
        methods=["put"],
        parser_classes=[MultiPartParser],
        serializer_class=serializers.PosterSerializer,
    )
    async def poster(self, request, pk):
        """Upload a PNG or a JPEG of 256 KiB at most, in the place of what was there."""
        show = self.get_object()
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        file = serializer.validated_data["poster"]
        show.poster.delete(save=False)  # storages block, so both leave the loop by themselves
        show.poster.save(file.name, file)
        context = self.get_serializer_context()
        return Response(serializers.ShowSerializer(show, context=context).data)

    @extend_schema(request=None, responses={204: None})
    @poster.mapping.delete
    def remove_poster(self, request, pk):
        self.get_object().poster.delete()
        return Response(status=204)


class Performances(viewsets.ReadOnlyModelViewSet):
    """The evenings that can be booked."""

    queryset = Performance.objects.select_related("show")
    serializer_class = serializers.PerformanceSerializer
    lookup_value_converter = "int"
    filterset_class = PerformanceFilter
    search_fields = ["show__title"]
    ordering_fields = ["starts_at", "price"]
    ordering = ["starts_at"]
    throttle_scope = None

    async def list(self, request):
        return super().list(request)

    async def retrieve(self, request, pk):
        return super().retrieve(request, pk)

    @extend_schema(responses={201: serializers.BookingSerializer})
    @action(
        detail=True,
        methods=["post"],
        permission_classes=[IsAuthenticated],
        serializer_class=serializers.BookingSerializer,
        throttle_scope="booking",
        filter_backends=[],
    )
    async def book(self, request, pk):
        """Book seats. The price in the currency is that of the moment."""
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        wanted = serializer.validated_data
        async with greenroom.atomic():
            # Locked to the end, so that no seat is sold twice. PostgreSQL lets all others book
            # other performances meanwhile; SQLite has one writer at a time.
            performance = get_object_or_404(
                self.get_queryset().select_for_update(of=["self"]), pk=pk
            )
            if wanted["seats"] > performance.free:
                raise Conflict(f"There are {performance.free} seats left.")
            market, evening = await ask(
                request.lifespan.client,
                "currency",
                "stage",
                failing=request.query_params.getlist("fail"),
            )
            currency = wanted.get("currency", Booking.Currency.EUR)
            rate = Decimal(dict(market["rates"])[currency])
            booking = serializer.save(
                performance=performance,
                customer=request.user,
                total=round(performance.price * wanted["seats"] * rate, 2),
                doors=evening["rows"][0][0],
            )
            performance.sold += booking.seats
            performance.save(update_fields=["sold"])
            transaction.on_commit(partial(_send_ticket, booking))
        return Response(serializer.data, status=201)


def _send_ticket(booking):
    """Runs on a thread, once the booking is committed. It might send mail."""
    logger.info("ticket %s for %s: %s", booking.reference, booking.customer, booking)


class Bookings(
    mixins.ListModelMixin,
    mixins.RetrieveModelMixin,
    mixins.DestroyModelMixin,
    viewsets.GenericViewSet,
):
    """One's own bookings. Deleting one gives the seats back."""

    queryset = Booking.objects.select_related("performance__show")
    permission_classes = [IsAuthenticated]
    lookup_value_converter = "uuid"
    filterset_class = BookingFilter
    search_fields = ["performance__show__title"]
    ordering_fields = ["booked_at", "seats"]
    ordering = ["-booked_at"]

    def get_queryset(self):
        return super().get_queryset().filter(customer=self.request.user.pk)

    def get_serializer_class(self):
        if self.action == "partial_update":
            return serializers.BookingNoteSerializer
        return serializers.BookingSerializer

    async def list(self, request):
        return super().list(request)

    async def retrieve(self, request, pk):
        return super().retrieve(request, pk)

    async def partial_update(self, request, pk):
        serializer = self.get_serializer(self.get_object(), data=request.data, partial=True)
        serializer.is_valid(raise_exception=True)
        serializer.save()
        return Response(serializer.data)

    async def destroy(self, request, pk):
        booking = self.get_object()
        async with greenroom.atomic():
            removed, _ = await booking.adelete()
            if removed:  # not so if it was asked for twice at once
                evenings = Performance.objects.filter(pk=booking.performance_id)
                await evenings.aupdate(sold=F("sold") - booking.seats)
        return Response(status=204)


@extend_schema(exclude=True)
@api_view(["GET", "POST", "PUT", "PATCH", "DELETE"])
def nowhere(request):
    """So that it is JSON too."""
    raise Http404
