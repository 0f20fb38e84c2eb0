"""Django REST framework, with coroutines in every place where it calls the project."""

from __future__ import annotations

import asyncio

from django.contrib.auth.mixins import LoginRequiredMixin
from django.db import transaction
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import include, path
from django.views import View
from django.views.decorators.cache import cache_page
from rest_framework import (
    authentication,
    decorators,
    exceptions,
    filters,
    generics,
    metadata,
    mixins,
    negotiation,
    pagination,
    parsers,
    permissions,
    renderers,
    routers,
    serializers,
    throttling,
    versioning,
    viewsets,
)
from rest_framework.renderers import AdminRenderer, BrowsableAPIRenderer, JSONRenderer
from rest_framework.response import Response
from rest_framework.views import APIView

from greenroom import sync_view

from .views import place_now

events: list[str] = []


class Open(APIView):
    authentication_classes = ()
    permission_classes = ()


class Both(Open):
    async def get(self, request, **kwargs):
        """A coroutine."""
        await asyncio.sleep(0)
        return Response({"by": "coroutine", "on": place_now()})

    def post(self, request):
        return Response({"by": "plain", "on": place_now(), "data": request.data}, status=201)

    async def delete(self, request):
        await asyncio.sleep(0)
        raise exceptions.NotFound("none here")

    async def put(self, request):
        # Another handler of its own, awaited by hand.
        return await self.get(request)

    def patch(self, request):
        # A coroutine, handed on.
        return self.get(request)


class Place(Open):
    async def get(self, request):
        return Response(request._request.chain_place)


@decorators.api_view(["GET", "POST"])
@decorators.authentication_classes([])
@decorators.permission_classes([])
async def function(request):
    await asyncio.sleep(0)
    return Response({"method": request.method})


@decorators.api_view(["GET"])
@decorators.authentication_classes([])
@decorators.permission_classes([])
@sync_view
async def made_plain(request):
    await asyncio.sleep(0)
    return Response("plain")


@transaction.atomic
@sync_view
async def atomic(request):
    before = place_now()
    await asyncio.sleep(0)
    return HttpResponse(before)


@cache_page(60)
@sync_view
async def cached(request):
    events.append("cached")
    await asyncio.sleep(0)
    return HttpResponse("cached")


class Errors(Open):
    async def get(self, request, name):
        await asyncio.sleep(0)
        raise {
            "denied": exceptions.PermissionDenied("not you"),
            "invalid": exceptions.ValidationError({"field": ["wrong"]}),
            "error": ValueError("broken"),
        }[name]


class Missing(Open):
    async def get(self, request):
        return None


class Waits(Open):
    async def get(self, request):
        events.append("begun")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            events.append("cancelled")
            raise


# Policies.


class Yes(permissions.BasePermission):
    async def has_permission(self, request, view):
        await asyncio.sleep(0)
        return True

    async def has_object_permission(self, request, view, obj):
        await asyncio.sleep(0)
        return True


class No(permissions.BasePermission):
    message = "by a coroutine"

    async def has_permission(self, request, view):
        await asyncio.sleep(0)
        return False


class NotThisObject(permissions.BasePermission):
    async def has_object_permission(self, request, view, obj):
        await asyncio.sleep(0)
        return obj != "secret"


class ToPost(permissions.BasePermission):
    async def has_permission(self, request, view):
        await asyncio.sleep(0)
        return request.method == "POST"


class PlainYes(permissions.BasePermission):
    def has_permission(self, request, view):
        return True


class HandsOn(permissions.BasePermission):
    """A plain method that returns a coroutine."""

    def has_permission(self, request, view):
        return No().has_permission(request, view)


class TakesForTrue(No):
    """A plain method that takes its parent's coroutine for the answer."""

    def has_permission(self, request, view):
        return bool(super().has_permission(request, view)) and True


class AwaitsSuper(No):
    async def has_permission(self, request, view):
        return not await super().has_permission(request, view)


class Slots:
    __slots__ = ()

    async def has_permission(self, request, view):
        return False


class Duck:
    async def has_permission(self, request, view):
        return False


class NoThrottle(throttling.BaseThrottle):
    async def allow_request(self, request, view):
        await asyncio.sleep(0)
        return False

    async def wait(self):
        return 7


class KeyThrottle(throttling.SimpleRateThrottle):
    rate = "1/day"

    async def get_cache_key(self, request, view):
        await asyncio.sleep(0)
        return "rest-throttle"


class User:
    is_authenticated = True
    pk = 1

    def __init__(self, name):
        self.username = name


class Header(authentication.BaseAuthentication):
    async def authenticate(self, request):
        await asyncio.sleep(0)
        name = request.headers.get("X-User")
        if name == "bad":
            raise exceptions.AuthenticationFailed("bad one")
        return None if name is None else (User(name), "token")

    async def authenticate_header(self, request):
        await asyncio.sleep(0)
        return "Header"


class Policies(Open):
    async def get(self, request):
        await asyncio.sleep(0)
        return Response(getattr(request.user, "username", "nobody"))

    def post(self, request):
        return Response("plain")


class ChecksObject(Open):
    permission_classes = (NotThisObject,)

    async def get(self, request, name):
        self.check_object_permissions(request, name)
        return Response(name)


class ChecksAll(Open):
    """Async methods of the view itself."""

    async def check_permissions(self, request):
        await asyncio.sleep(0)
        if "deny" in request.query_params:
            self.permission_denied(request, message="by the view")

    async def get(self, request):
        return Response("passed")

    def post(self, request):
        return Response("passed")


class AnyOf(Open):
    """Its own loop over the permissions."""

    permission_classes = (
        No,
        No,
    )

    def check_permissions(self, request):
        if not any(each.has_permission(request, self) for each in self.get_permissions()):
            self.permission_denied(request)

    async def get(self, request):
        return Response("passed")


class Denies(Open):
    permission_classes = (permissions.IsAuthenticated & No,)

    async def permission_denied(self, request, message=None, code=None):
        await asyncio.sleep(0)
        raise exceptions.PermissionDenied("awaited")

    async def get(self, request):
        return Response("passed")


class Forgets(Open):
    """A coroutine that takes another for the answer."""

    permission_classes = (No,)

    async def check_permissions(self, request):
        for each in self.get_permissions():
            if not each.has_permission(request, self):
                self.permission_denied(request)

    async def get(self, request):
        return Response("passed")


class Versioning(versioning.QueryParameterVersioning):
    async def determine_version(self, request, *args, **kwargs):
        await asyncio.sleep(0)
        return "1"


class Negotiation(negotiation.DefaultContentNegotiation):
    async def select_renderer(self, request, renderers, format_suffix=None):
        await asyncio.sleep(0)
        return super().select_renderer(request, renderers, format_suffix)


class Metadata(metadata.SimpleMetadata):
    async def determine_metadata(self, request, view):
        await asyncio.sleep(0)
        return {"about": view.get_view_name()}


class Versioned(Open):
    versioning_class = Versioning
    content_negotiation_class = Negotiation
    metadata_class = Metadata

    async def get(self, request):
        return Response(request.version)


class Dispatched(Open):
    async def setup(self, request, *args, **kwargs):
        await asyncio.sleep(0)
        super().setup(request, *args, **kwargs)
        self.seen = ["set up"]

    async def dispatch(self, request, *args, **kwargs):
        await asyncio.sleep(0)
        self.seen.append("dispatched")
        return super().dispatch(request, *args, **kwargs)

    async def get(self, request):
        return Response(self.seen)


class Tells:
    def tell(self):
        raise NotImplementedError


class Gathers(Tells, Open):
    async def tell(self):
        await asyncio.sleep(0)
        return "awaited"

    async def get(self, request):
        told = await asyncio.gather(*(self.tell() for _ in range(2)))
        told += await asyncio.gather(*[self.tell() for _ in range(2)])
        task = asyncio.create_task(self.tell())
        return Response([*told, await task, await self.tell()])


class Streams(Gathers):
    async def get(self, request):
        async def parts():
            for _ in range(2):
                yield f"{await self.tell()}, "

        return StreamingHttpResponse(parts())


def policies(name, **given):
    return path(f"{name}/", Policies.as_view(**given))


# Serializers, filters, pages and viewsets, over a list.

STORE = [{"id": number, "title": f"title {number}"} for number in range(1, 6)]


async def no_digits(value):
    await asyncio.sleep(0)
    if value.isdigit():
        raise serializers.ValidationError("digits")


class Upper(serializers.CharField):
    async def to_representation(self, value):
        await asyncio.sleep(0)
        return value.upper()


class ItemSerializer(serializers.Serializer):
    id = serializers.IntegerField(read_only=True)
    title = serializers.CharField(max_length=20, validators=[no_digits])
    shout = Upper(source="title", read_only=True)
    length = serializers.SerializerMethodField()

    async def get_length(self, item) -> int:
        await asyncio.sleep(0)
        return len(item["title"])

    async def validate_title(self, value):
        await asyncio.sleep(0)
        if value == "taken":
            raise serializers.ValidationError("taken")
        return value.strip()

    async def validate(self, attrs):
        await asyncio.sleep(0)
        if attrs["title"] == "odd":
            raise serializers.ValidationError("odd")
        return attrs

    async def create(self, validated_data):
        await asyncio.sleep(0)
        return {"id": 99, **validated_data}

    async def update(self, instance, validated_data):
        await asyncio.sleep(0)
        return {**instance, **validated_data}


class Filter(filters.BaseFilterBackend):
    async def filter_queryset(self, request, queryset, view):
        await asyncio.sleep(0)
        least = int(request.query_params.get("least", 0))
        return [item for item in queryset if item["id"] >= least]


class PlainFilter(filters.BaseFilterBackend):
    def filter_queryset(self, request, queryset, view):
        return [item for item in queryset if item["id"] != 4]


class Pages(pagination.PageNumberPagination):
    page_size = 2

    async def paginate_queryset(self, queryset, request, view=None):
        await asyncio.sleep(0)
        return super().paginate_queryset(queryset, request, view)


class Items(viewsets.GenericViewSet):
    """DRF's own handlers over coroutines, and coroutine handlers beside them."""

    authentication_classes = ()
    permission_classes = (Yes,)
    serializer_class = ItemSerializer
    filter_backends = (
        Filter,
        PlainFilter,
    )
    pagination_class = Pages
    lookup_value_regex = r"\d+"

    async def get_queryset(self):
        await asyncio.sleep(0)
        return STORE

    async def get_object(self):
        await asyncio.sleep(0)
        found = [item for item in STORE if item["id"] == int(self.kwargs["pk"])]
        if not found:
            raise exceptions.NotFound()
        self.check_object_permissions(self.request, found[0])
        return found[0]

    async def perform_create(self, serializer):
        item = serializer.save()
        events.append(f"created {item['title']}")

    async def perform_destroy(self, instance):
        await asyncio.sleep(0)
        events.append(f"destroyed {instance['id']}")


class MixedItems(Items, mixins.CreateModelMixin, mixins.UpdateModelMixin, mixins.DestroyModelMixin):
    async def list(self, request):
        items = await self.get_queryset()
        page = self.paginate_queryset(self.filter_queryset(items))
        return self.get_paginated_response(self.get_serializer(page, many=True).data)

    async def retrieve(self, request, pk):
        item = await self.get_object()
        return Response(self.get_serializer(item).data)

    @decorators.action(detail=True, methods=["post"])
    async def wake(self, request, pk):
        await asyncio.sleep(0)
        return Response({"woken": pk, "action": self.action})

    @decorators.action(detail=False)
    def plain(self, request):
        return Response({"action": self.action})


class PlainItems(Items, mixins.ListModelMixin, mixins.RetrieveModelMixin):
    pass


class Generic(generics.ListCreateAPIView):
    authentication_classes = ()
    permission_classes = ()
    serializer_class = ItemSerializer

    async def get_queryset(self):
        await asyncio.sleep(0)
        return STORE[:1]


class Counted(pagination.LimitOffsetPagination):
    default_limit = 2

    async def get_count(self, queryset):
        await asyncio.sleep(0)
        return len(queryset)

    async def get_paginated_response(self, data):
        await asyncio.sleep(0)
        return Response({"of": self.count, "page": [item["title"] for item in data]})


class AsyncSearch(filters.SearchFilter):
    async def get_search_fields(self, view, request):
        await asyncio.sleep(0)


class CountedItems(generics.ListAPIView):
    authentication_classes = ()
    permission_classes = ()
    serializer_class = ItemSerializer
    pagination_class = Counted
    filter_backends = (AsyncSearch,)
    queryset = STORE

    def get_queryset(self):
        return self.queryset

    async def get(self, request, name):
        if name == "by-super":
            return super().get(request)
        page = self.paginate_queryset(self.filter_queryset(self.get_queryset()))
        return self.get_paginated_response(self.get_serializer(page, many=True).data)


class NamedSerializer(serializers.Serializer):
    doubled = serializers.SerializerMethodField(method_name="double")

    async def double(self, number):
        await asyncio.sleep(0)
        return 2 * number


class Named(Open):
    async def get(self, request):
        return Response(NamedSerializer([1, 2], many=True).data)


class Browsable(Open):
    renderer_classes = (
        BrowsableAPIRenderer,
        JSONRenderer,
    )
    permission_classes = (Yes,)

    async def get(self, request):
        await asyncio.sleep(0)
        return Response({"rendered": "by a template"})

    async def post(self, request):
        return Response("posted")


class Admin(Open):
    """Whose errors are shown beside what its `get` answers."""

    renderer_classes = (AdminRenderer, JSONRenderer)

    async def get(self, request):
        await asyncio.sleep(0)
        return Response({"shown": "beside the error"})

    async def post(self, request):
        raise exceptions.ValidationError({"field": ["wrong"]})


class HiddenAdmin(Admin):
    permission_classes = (ToPost,)


class Handled(Open):
    """An exception handler that is a coroutine."""

    def get_exception_handler(self):
        return handle

    async def get(self, request):
        raise exceptions.NotFound()


async def handle(exc, context):
    await asyncio.sleep(0)
    return Response({"handled": type(exc).__name__}, status=418)


class Lines(parsers.BaseParser):
    media_type = "text/plain"

    async def parse(self, stream, media_type=None, parser_context=None):
        await asyncio.sleep(0)
        return stream.read().decode().splitlines()


class Joined(renderers.BaseRenderer):
    media_type = "text/plain"
    format = "txt"

    async def render(self, data, accepted_media_type=None, renderer_context=None):
        await asyncio.sleep(0)
        return "|".join(data)


class Text(Open):
    parser_classes = (Lines,)
    renderer_classes = (Joined,)

    async def post(self, request):
        return Response(request.data)


class PartSerializer(serializers.Serializer):
    name = serializers.CharField()

    async def to_internal_value(self, data):
        await asyncio.sleep(0)
        return {"name": super().to_internal_value(data)["name"].upper()}

    async def create(self, validated_data):
        await asyncio.sleep(0)
        return validated_data


class WholeSerializer(serializers.Serializer):
    part = PartSerializer()
    parts = PartSerializer(many=True)
    prefix = serializers.SerializerMethodField()

    def get_prefix(self, whole):
        return self.context["prefix"]

    async def save(self, **kwargs):
        await asyncio.sleep(0)
        self.instance = {**self.validated_data, **kwargs}
        return self.instance


class Wholes(viewsets.GenericViewSet, mixins.CreateModelMixin):
    authentication_classes = ()
    permission_classes = ()
    serializer_class = WholeSerializer

    async def get_serializer_context(self):
        await asyncio.sleep(0)
        return {"prefix": "awaited"}

    @decorators.action(detail=False, methods=["put"])
    async def parts(self, request):
        serializer = PartSerializer(data=request.data, many=True)
        serializer.is_valid(raise_exception=True)
        return Response([part["name"] for part in serializer.save()])

    @parts.mapping.delete
    async def delete_parts(self, request):
        await asyncio.sleep(0)
        return Response({"deleted": self.action})

    @parts.mapping.patch
    def patch_parts(self, request):
        return Response({"patched": self.action})

    @decorators.action(detail=True, url_path=r"parts/(?P<number>\d+)", permission_classes=[No])
    async def one_part(self, request, pk, number):
        return Response("not to be seen")


class Enveloped(pagination.LimitOffsetPagination):
    default_limit = 2

    async def get_paginated_response(self, data):
        await asyncio.sleep(0)
        return Response({"page": data})


class EnvelopedItems(Items, mixins.ListModelMixin):
    pagination_class = Enveloped


class Members(LoginRequiredMixin, View):
    login_url = "/in/"

    async def get(self, request):
        await asyncio.sleep(0)
        return HttpResponse("member")


router = routers.DefaultRouter()
router.register("mixed", MixedItems, basename="mixed")
router.register("plain-items", PlainItems, basename="plain-items")
router.register("wholes", Wholes, basename="wholes")
router.register("enveloped", EnvelopedItems, basename="enveloped")

urlpatterns = [
    path("both/", Both.as_view()),
    path("place/", Place.as_view()),
    path("function/", function),
    path("made-plain/", made_plain),
    path("atomic/", atomic),
    path("cached/", cached),
    path("errors/<name>/", Errors.as_view()),
    path("missing/", Missing.as_view()),
    path("waits/", Waits.as_view()),
    policies("yes", permission_classes=[Yes]),
    policies("no", permission_classes=[No]),
    policies("hands-on", permission_classes=[HandsOn]),
    policies("takes-for-true", permission_classes=[TakesForTrue]),
    policies("awaits-super", permission_classes=[AwaitsSuper]),
    policies("slots", permission_classes=[Slots]),
    policies("duck", permission_classes=[Duck]),
    policies("and", permission_classes=[PlainYes & No]),
    policies("and-yes", permission_classes=[Yes & PlainYes]),
    policies("or", permission_classes=[No | HandsOn]),
    policies("or-yes", permission_classes=[No | Yes]),
    policies("not", permission_classes=[~Yes]),
    policies("not-no", permission_classes=[~No]),
    policies("nested", permission_classes=[PlainYes & (No | (Yes & ~Yes))]),
    policies("throttled", throttle_classes=[NoThrottle]),
    policies("key-throttled", throttle_classes=[KeyThrottle]),
    policies(
        "header",
        authentication_classes=[Header],
        permission_classes=[permissions.IsAuthenticated],
    ),
    path("object/<name>/", ChecksObject.as_view()),
    path("checks-all/", ChecksAll.as_view()),
    path("any-of/", AnyOf.as_view()),
    path("denies/", Denies.as_view()),
    path("forgets/", Forgets.as_view()),
    path("versioned/", Versioned.as_view()),
    path("gathers/", Gathers.as_view()),
    path("streams/", Streams.as_view()),
    path("dispatched/", Dispatched.as_view()),
    path("counted/<name>/", CountedItems.as_view()),
    path("named/", Named.as_view()),
    path("generic/", Generic.as_view()),
    path("browsable/", Browsable.as_view()),
    path("admin/", Admin.as_view()),
    path("hidden-admin/", HiddenAdmin.as_view()),
    path("handled/", Handled.as_view()),
    path("text/", Text.as_view()),
    path("members/", Members.as_view()),
    path("router/", include(router.urls)),
]
