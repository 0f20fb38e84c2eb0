"""A GraphQL schema made with strawberry: resolvers of both kinds."""

from __future__ import annotations

import asyncio

import strawberry
from django.contrib.sessions.models import Session
from django.urls import path
from django.utils import timezone
from strawberry.django.views import AsyncGraphQLView, GraphQLView

from greenroom import atomic, bridged


@strawberry.type
class Row:
    key: str

    @strawberry.field
    def older(self) -> int:
        # A plain resolver, beneath another: it queries straight on.
        return Session.objects.filter(pk__lt=self.key).count()


@strawberry.type
class Query:
    @strawberry.field
    def rows(self) -> list[Row]:
        return [Row(key=session.pk) for session in Session.objects.order_by("pk")]

    @strawberry.field
    async def count(self) -> int:
        await asyncio.sleep(0)
        return await Session.objects.acount()

    @strawberry.field
    async def first(self) -> str:
        # Resolvers that are coroutines are child tasks: for plain calls they want a bridge.
        return await bridged(_first)()


async def _first() -> str:
    await asyncio.sleep(0)
    return Session.objects.order_by("pk").first().pk


@strawberry.type
class Mutation:
    @strawberry.mutation
    async def make(self, key: str) -> Row:
        async with atomic():
            await Session.objects.acreate(
                session_key=key, session_data="", expire_date=timezone.now()
            )
            if key == "bad":
                raise ValueError("refused")
        return Row(key=key)


schema = strawberry.Schema(Query, Mutation)
urlpatterns = [
    path("graphql/", AsyncGraphQLView.as_view(schema=schema)),
    path("plain/", GraphQLView.as_view(schema=strawberry.Schema(Query))),
]
