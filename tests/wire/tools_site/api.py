"""The same viewset twice: with coroutines, and without."""

from asyncio import sleep

from rest_framework import serializers, viewsets
from rest_framework.decorators import action
from rest_framework.response import Response

from .models import Book


class BookSerializer(serializers.ModelSerializer):
    class Meta:
        model = Book
        fields = ("id", "title", "year")


FILTERS = {"year": ["exact", "gte", "lt"], "title": ["icontains"]}


class Base(viewsets.GenericViewSet):
    queryset = Book.objects.all()
    serializer_class = BookSerializer
    filterset_fields = FILTERS


class AsyncBooks(Base):
    async def list(self, request):
        """All books, filtered."""
        await sleep(0)
        queryset = self.filter_queryset(self.get_queryset())
        return Response(self.get_serializer(queryset, many=True).data)

    async def create(self, request):
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        serializer.save()
        await sleep(0)
        return Response(serializer.data, status=201)

    async def retrieve(self, request, pk=None):
        await sleep(0)
        return Response(self.get_serializer(self.get_object()).data)

    @action(detail=False, filterset_fields=None)
    async def me(self, request):
        await sleep(0)
        return Response({"name": request.user.username, "place": request._request.place})


class Books(Base):
    def list(self, request):
        """All books, filtered."""
        queryset = self.filter_queryset(self.get_queryset())
        return Response(self.get_serializer(queryset, many=True).data)

    def create(self, request):
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        serializer.save()
        return Response(serializer.data, status=201)

    def retrieve(self, request, pk=None):
        return Response(self.get_serializer(self.get_object()).data)

    @action(detail=False, filterset_fields=None)
    def me(self, request):
        return Response({"name": request.user.username, "place": request._request.place})
