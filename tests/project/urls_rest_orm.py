"""Django REST framework over the database: its own and others' policies, in coroutine views."""

from __future__ import annotations

from django.urls import include, path
from django_filters import rest_framework as django_filters
from rest_framework import (
    authentication,
    exceptions,
    filters,
    pagination,
    permissions,
    routers,
    serializers,
    viewsets,
)
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework_simplejwt.authentication import (
    JWTAuthentication,
    JWTStatelessUserAuthentication,
)

from .shop.models import Counter, Customer, Order

# Where the code around coroutine handlers ran.
places: list[str] = []


class WhoAmI(APIView):
    permission_classes = (permissions.IsAuthenticated,)

    async def get(self, request):
        places.append(request.chain_place)
        return Response(str(getattr(request.user, "username", "")) or request.user.pk)

    async def post(self, request):
        return await self.get(request)


def who(name, kind):
    return path(f"{name}/", WhoAmI.as_view(authentication_classes=[kind]))


class CounterSerializer(serializers.ModelSerializer):
    class Meta:
        model = Counter
        fields = ("id", "name", "value")


class ByName(pagination.CursorPagination):
    page_size = 2
    ordering = "name"


class Counters(viewsets.ModelViewSet):
    """DRF's own handlers, called by coroutines."""

    queryset = Counter.objects.all()
    serializer_class = CounterSerializer
    authentication_classes = (authentication.SessionAuthentication,)
    permission_classes = (permissions.DjangoModelPermissionsOrAnonReadOnly,)
    pagination_class = ByName
    filter_backends = (filters.SearchFilter,)
    search_fields = ("name",)

    async def list(self, request):
        places.append(request.chain_place)
        return super().list(request)

    async def create(self, request):
        places.append(request.chain_place)
        return super().create(request)

    async def update(self, request, *args, **kwargs):
        return super().update(request, *args, **kwargs)

    async def destroy(self, request, *args, **kwargs):
        places.append(request.chain_place)
        return super().destroy(request, *args, **kwargs)


class OrderSerializer(serializers.ModelSerializer):
    name = serializers.CharField(source="customer.name", read_only=True)

    class Meta:
        model = Order
        fields = ("id", "note", "customer", "name")


class OrderFilter(django_filters.FilterSet):
    class Meta:
        model = Order
        fields = {"customer": ["exact"], "note": ["exact", "startswith"]}  # noqa: RUF012


class Orders(viewsets.ModelViewSet):
    queryset = Order.objects.order_by("pk")
    serializer_class = OrderSerializer
    authentication_classes = ()
    permission_classes = ()
    pagination_class = pagination.PageNumberPagination
    filter_backends = (
        django_filters.DjangoFilterBackend,
        filters.OrderingFilter,
    )
    filterset_class = OrderFilter

    async def list(self, request):
        places.append(request.chain_place)
        return super().list(request)

    async def create(self, request):
        response = super().create(request)
        if request.data["note"] == "not this":
            raise exceptions.ValidationError({"note": ["not this"]})
        return response


class Add(APIView):
    """Makes a customer and refuses it."""

    authentication_classes = ()
    permission_classes = ()

    async def post(self, request):
        Customer.objects.create(name="refused")
        raise exceptions.ValidationError("refused")


router = routers.DefaultRouter()
router.register("counters", Counters)
router.register("orders", Orders)

urlpatterns = [
    who("session", authentication.SessionAuthentication),
    who("token", authentication.TokenAuthentication),
    who("basic", authentication.BasicAuthentication),
    who("jwt", JWTAuthentication),
    who("jwt-stateless", JWTStatelessUserAuthentication),
    path("add/", Add.as_view()),
    path("", include(router.urls)),
]
