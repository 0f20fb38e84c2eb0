"""On the loops of pytest-asyncio, where Django's own calls run on a thread of asgiref's."""

import pytest

from .models import Author


@pytest.mark.asyncio
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("unknown", [False, True])
async def test_async_client(async_client, settings, unknown):
    if unknown:
        settings.MIDDLEWARE = ["library.middleware.unknown"]
    await Author.objects.acreate(name="Bob")
    assert (await async_client.get("/add/Eve/")).json() == {"author": "Eve", "authors": 2}
    assert await Author.objects.acount() == 2
    assert (await async_client.get("/plain/")).content == b"2"
    assert (await async_client.get("/tasks/")).json() == {"tasks": 3, "thread": 5}
    answer = await async_client.get("/stream/")
    assert len([part async for part in answer.streaming_content]) == 5


@pytest.mark.asyncio
async def test_errors(async_client):
    with pytest.raises(Exception, match="a mistake"):
        await async_client.get("/mistake/")
    assert (await async_client.get("/missing/")).status_code == 404
