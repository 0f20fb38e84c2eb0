"""Tests by pytest-django's fixtures, for tests/unit/test_clients.py."""

import urllib.request

import pytest
from django.db import connection

from greenroom.test import run_async

from . import views
from .models import Author


@pytest.fixture
def author(db):
    return Author.objects.create(name="Ada")


def test_client(client, author):
    assert client.get("/add/Eve/").json() == {"author": "Eve", "authors": 2}
    assert client.get("/in_block/").content == b"True"
    assert Author.objects.count() == 2


def test_a_clean_slate(client, author):
    assert client.get("/plain/").content == b"1"


def test_streams(client, author):
    assert client.get("/stream/").getvalue() == b"Ada 1;"


@run_async
async def test_async_client(async_client, author):
    await Author.objects.acreate(name="Bob")
    assert (await async_client.get("/add/Eve/")).json() == {"author": "Eve", "authors": 3}
    assert Author.objects.count() == 3


@run_async
async def test_factory(async_rf, author):
    assert (await views.add(async_rf.get("/"), "Eve")).status_code == 200
    assert await Author.objects.acount() == 2


def test_without_the_database(client):
    with pytest.raises(RuntimeError, match="Database access not allowed"):
        client.get("/twice/")


@pytest.mark.django_db(transaction=True)
def test_committed(client):
    client.get("/later/")
    assert Author.objects.get().name == "committed"


def test_live_server(live_server):
    Author.objects.create(name="Ada")
    with urllib.request.urlopen(f"{live_server.url}/add/Eve/", timeout=30) as answer:
        assert b'"authors": 2' in answer.read()
    with urllib.request.urlopen(f"{live_server.url}/where/", timeout=30) as answer:
        assert answer.read() == b"greenroom-server"
    assert Author.objects.count() == 2


def test_after_the_live_server(client, author):
    assert client.get("/add/Eve/").json()["authors"] == 2
    assert connection.in_atomic_block
