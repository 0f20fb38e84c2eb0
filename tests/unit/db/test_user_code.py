"""Code of the project that Django calls from beneath: where it runs, and what it sees."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth import alogin, signals
from django.contrib.auth.models import User
from django.contrib.sessions.backends.file import SessionStore
from django.core.cache import cache, caches
from django.core.cache.backends.filebased import FileBasedCache
from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage
from django.db import connection, transaction
from django.db.backends.signals import connection_created
from django.db.models.signals import post_delete, post_init, post_save, pre_save
from django.dispatch import Signal
from django.template.response import SimpleTemplateResponse
from django.utils import translation

import greenroom
from orm import Ask, Pulse
from project.shop.models import Article, Audited, Customer, Document
from project.views import place_now

word: ContextVar[str] = ContextVar("word", default="unset")


@pytest.fixture
def connect() -> Iterator[Callable[..., None]]:
    """Connects receivers for the test."""
    connected: list[tuple[Signal, Any, Any]] = []

    def connect(signal: Signal, receiver: Any, sender: Any = None) -> None:
        signal.connect(receiver, sender=sender, weak=False)
        connected.append((signal, receiver, sender))

    yield connect
    for signal, receiver, sender in connected:
        signal.disconnect(receiver, sender=sender)


def facts() -> tuple[Any, ...]:
    """Where this runs, and what of the request it sees."""
    return (
        place_now(),
        translation.get_language(),
        word.get(),
        connection.in_atomic_block,
        Customer.objects.count(),
    )


# Receivers.


@pytest.mark.parametrize("how", ["save", "asave", "bulk"])
def test_receivers(database: Any, placement: str, connect: Any, how: str) -> None:
    seen: list[Any] = []

    def receiver(sender: Any, **named: Any) -> None:
        seen.append(facts())
        word.set("changed by the receiver")

    connect(post_save, receiver, Customer)

    async def view(request: Any) -> None:
        translation.activate("de")
        word.set("of the view")
        with pytest.raises(LookupError), transaction.atomic():
            if how == "save":
                Customer(name="a").save()
            elif how == "asave":
                await Customer(name="a").asave()
            else:
                _, created = await Customer.objects.aget_or_create(name="a")
                assert created
            assert word.get() == "changed by the receiver"
            raise LookupError

    database.request(view, placement)
    # Where a plain call stands in a coroutine, Django's code runs on the loop: the receiver not.
    assert seen == [("thread", "de", "of the view", True, 1)]
    assert not Customer.objects.exists()


def test_receivers_of_all_signals(database: Any, connect: Any) -> None:
    places: dict[str, str] = {}

    def receiver_of(name: str) -> Any:
        def receiver(**named: Any) -> None:
            places[name] = place_now()
            Document.objects.count()

        return receiver

    for name, signal in (
        ("pre_save", pre_save),
        ("post_save", post_save),
        ("post_delete", post_delete),
        ("post_init", post_init),
    ):
        connect(signal, receiver_of(name), Customer)
    connect(connection_created, receiver_of("connection_created"))
    connect(signals.user_logged_in, receiver_of("user_logged_in"))

    async def view(request: Any) -> None:
        customer = await Customer.objects.acreate(name="a")
        await customer.adelete()
        user = await User.objects.acreate(username="u")
        request.session = {}
        await alogin(Request(request), user)

    class Request:
        def __init__(self, request: Any) -> None:
            from django.contrib.sessions.backends.db import SessionStore

            self.META = request.META
            self.session = SessionStore()

    database.request(view)
    assert set(places) == {
        "pre_save",
        "post_save",
        "post_delete",
        "post_init",
        "connection_created",
        "user_logged_in",
    }
    assert set(places.values()) == {"thread"}


def test_a_coroutine_as_receiver(database: Any, placement: str, connect: Any) -> None:
    seen: list[Any] = []

    async def receiver(sender: Any, **named: Any) -> None:
        seen.append((place_now(), translation.get_language(), connection.in_atomic_block))
        await asyncio.sleep(0)
        seen.append(await Customer.objects.acount())
        await Document.objects.acreate(title="by the receiver")

    connect(post_save, receiver, Customer)

    async def view(request: Any) -> None:
        translation.activate("de")
        with pytest.raises(LookupError):
            async with greenroom.atomic():
                await Customer.objects.acreate(name="a")
                Customer.objects.create(name="b")
                raise LookupError

    database.request(view, placement)
    assert seen == [("loop", "de", True), 1, ("loop", "de", True), 2]
    assert not Document.objects.exists()


def test_a_receiver_that_raises(database: Any, placement: str, connect: Any) -> None:
    def receiver(sender: Any, **named: Any) -> None:
        raise LookupError("in the receiver")

    connect(post_save, receiver, Customer)

    async def view(request: Any) -> None:
        with pytest.raises(LookupError, match="in the receiver"):
            await Customer.objects.acreate(name="a")
        with pytest.raises(LookupError, match="in the receiver"):
            Customer.objects.create(name="b")
        with pytest.raises(LookupError), transaction.atomic():
            Customer.objects.create(name="c")

    database.request(view, placement)


def test_a_receiver_that_is_marked_stays_on_the_loop(database: Any, connect: Any) -> None:
    seen: list[Any] = []

    @greenroom.loop_safe
    def receiver(sender: Any, **named: Any) -> None:
        seen.append((place_now(), Customer.objects.count()))

    connect(post_save, receiver, Customer)

    async def view(request: Any) -> None:
        await Customer.objects.acreate(name="a")

    database.request(view)
    assert seen == [("loop", 1)]


def test_a_cancelled_receiver_is_waited_for(database: Any, placement: str, connect: Any) -> None:
    """It uses the request's connection: nothing of the request goes on meanwhile."""
    events: list[str] = []

    def receiver(sender: Any, **named: Any) -> None:
        events.append("begun")
        time.sleep(0.1)
        Customer.objects.count()
        events.append("ended")

    connect(post_save, receiver, Customer)

    async def view(request: Any) -> None:
        try:
            async with greenroom.atomic():
                await Customer.objects.acreate(name="a")
                await asyncio.sleep(0)
        finally:
            events.append("left")

    async def main(ask: Ask) -> None:
        task = asyncio.create_task(ask(view))
        while not events:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    database.run(main, placement)
    assert events == ["begun", "ended", "left"]
    assert not Customer.objects.exists()


# Hooks of a commit.


def test_hooks_of_a_commit(database: Any, placement: str) -> None:
    seen: list[Any] = []

    def hook() -> None:
        time.sleep(0.3)
        seen.append(facts())

    async def view(request: Any) -> float:
        translation.activate("fr")
        word.set("of the view")
        await Customer.objects.acreate(name="before")
        async with Pulse() as pulse:
            async with greenroom.atomic():
                await Customer.objects.acreate(name="a")
                transaction.on_commit(hook)
            with transaction.atomic():
                Customer.objects.create(name="b")
                transaction.on_commit(hook)
        return pulse.longest

    assert database.request(view, placement) < 0.2
    assert seen == [
        ("thread", "fr", "of the view", False, 2),
        ("thread", "fr", "of the view", False, 3),
    ]


# Methods that the project overrides.


def test_a_call_that_runs_the_project_s_methods(database: Any, placement: str) -> None:
    async def view(request: Any) -> None:
        async with greenroom.atomic():
            first = await Audited.objects.acreate(name="a")
            assert first.saved_by == "thread"
            second = Audited(name="b")
            await second.asave()
            assert second.saved_by == "thread"
            # What is called directly runs where it is written.
            third = Audited(name="c")
            third.save()
            assert third.saved_by == "loop"
            article = await Article.objects.acreate(name="a")
            found = await Article.objects.aget(pk=article.pk)
            assert found.got_by == "thread"
            assert Article.objects.get(pk=article.pk).got_by == "loop"
            assert await Audited.objects.acount() == 3

    database.request(view, placement)


# Files.


class SlowStorage(FileSystemStorage):
    """Notes where it is called, and blocks."""

    calls: list[tuple[str, str, bool]]

    def _note(self, name: str) -> None:
        time.sleep(0.3)
        self.calls.append((name, place_now(), connection.in_atomic_block))

    def _save(self, name: str, content: Any) -> str:
        self._note("save")
        return super()._save(name, content)

    def _open(self, name: str, mode: str = "rb") -> Any:
        self._note("open")
        return super()._open(name, mode)

    def size(self, name: str) -> int:
        self._note("size")
        return super().size(name)

    def delete(self, name: str) -> None:
        self._note("delete")
        super().delete(name)


def test_files(
    database: Any, placement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = SlowStorage(location=str(tmp_path))
    storage.calls = []
    monkeypatch.setattr(Document._meta.get_field("file"), "storage", storage)

    async def view(request: Any) -> float:
        async with Pulse() as pulse:
            async with greenroom.atomic():
                document = Document(title="a")
                document.file.save("a.txt", ContentFile(b"content"), save=True)
                found = await Document.objects.aget()
                assert found.file.size == 7
                with found.file.open() as file:
                    assert file.read() == b"content"
                found.file.delete(save=True)
            # By the model's own save.
            await Document.objects.acreate(title="b", file=ContentFile(b"more", name="b.txt"))
        return pulse.longest

    assert database.request(view, placement) < 0.2
    assert storage.calls == [
        (name, "thread", True) for name in ("save", "size", "open", "delete")
    ] + [("save", "thread", storage.calls[-1][2])]
    assert [each.title for each in Document.objects.order_by("title")] == ["a", "b"]


@pytest.mark.parametrize("vendor", ["sqlite"], indirect=True)
def test_caches_of_files(database: Any, placement: str, tmp_path: Path) -> None:
    caches = {
        "default": {
            "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
            "LOCATION": str(tmp_path / "cache"),
        }
    }

    async def view(request: Any) -> None:
        cache.set("a", 1)
        assert cache.get("a") == 1
        assert "a" in cache
        assert cache.incr("a") == 2
        await cache.aset("b", 5)
        assert await cache.aget("b") == 5
        assert await cache.aget_many(["a", "b"]) == {"a": 2, "b": 5}
        assert cache.get_or_set("c", lambda: 7) == 7
        assert await sync_to_async(cache.get)("c") == 7
        assert await asyncio.gather(*(cache.aget("a") for _ in range(4))) == [2] * 4

    async def sets_attributes(request: Any) -> None:
        cache.key_func, before = lambda key, *args: f"mine:{key}", cache.key_func
        cache.set("a", "other")
        assert cache.get("a") == await cache.aget("a") == "other"
        cache.key_func = before
        assert cache.get("a") == await cache.aget("a") == 2
        with mock.patch.object(cache, "get", return_value="mocked"):
            assert cache.get("a") == await cache.aget("a") == "mocked"
        with mock.patch.object(cache, "aget", return_value="mocked"):
            assert await cache.aget("a") == "mocked"
        assert cache.get("a") == await cache.aget("a") == 2
        # Other clients have none of it.
        cache.key_prefix, before = "mine", cache.key_prefix
        assert cache.get("a") is None
        assert await asyncio.to_thread(lambda: cache.get("a")) == 2
        cache.key_prefix = before

    async def in_a_task_without_a_bridge(request: Any) -> None:
        async def task() -> Any:
            cache.set("d", 1)
            return cache.get("d"), await cache.aget("d"), "d" in cache

        assert await asyncio.create_task(task()) == (1, 1, True)
        with mock.patch.object(cache, "key_func", lambda key, *args: f"mine:{key}"):
            assert await asyncio.create_task(task()) == (1, 1, True)
        cache.delete("d")
        assert cache.get("d") is None

    database.request(view, placement, CACHES=caches)
    database.request(sets_attributes, placement, CACHES=caches)
    database.request(in_a_task_without_a_bridge, placement, CACHES=caches)


@pytest.mark.parametrize("vendor", ["sqlite"], indirect=True)
def test_the_first_call_of_a_cache_leaves_the_loop_too(
    database: Any, placement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[bool] = []
    backend = "django.core.cache.backends.filebased.FileBasedCache"
    original = FileBasedCache.set

    def noted(self: Any, *args: Any, **kwargs: Any) -> None:
        places.append(asyncio._get_running_loop() is not None)
        original(self, *args, **kwargs)

    monkeypatch.setattr(FileBasedCache, "set", noted)

    async def view(request: Any) -> None:
        caches["fresh"].set("a", 1)
        caches["fresh"].set("a", 2)

    fresh = {"BACKEND": backend, "LOCATION": str(tmp_path / "cache")}
    database.request(view, placement, CACHES={"fresh": fresh})
    assert places == [False, False]


@pytest.mark.parametrize("vendor", ["sqlite"], indirect=True)
def test_sessions_of_files(database: Any, placement: str, tmp_path: Path) -> None:
    async def view(request: Any) -> None:
        session = SessionStore()
        session["a"] = 1
        session.save()
        assert SessionStore(session.session_key)["a"] == 1
        again = SessionStore(session.session_key)
        assert await again.aget("a") == 1
        await again.aset("b", 2)
        await again.asave()
        assert await SessionStore().aexists(session.session_key)
        assert SessionStore(session.session_key)["b"] == 2
        await again.adelete()
        assert not SessionStore().exists(session.session_key)

    database.request(view, placement, SESSION_FILE_PATH=str(tmp_path))


def test_sessions_of_the_database(database: Any, placement: str) -> None:
    """With Django's middlewares, which save in the response phase."""
    middleware = (
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    )

    async def logs_in(request: Any) -> str:
        user = await User.objects.acreate(username="u")
        user.backend = "django.contrib.auth.backends.ModelBackend"
        await alogin(request, user)
        await request.session.aset("a", 1)
        return str(request.session.session_key)

    async def reads(request: Any) -> Any:
        assert request.user.username == "u"
        assert (await request.auser()).pk == request.user.pk
        return await request.session.aget("a")

    async def main(ask: Ask) -> Any:
        key = await ask(logs_in)
        return await ask(reads, HTTP_COOKIE=f"sessionid={key}")

    assert database.run(main, placement, middleware=middleware) == 1


# Rendering.


class Rendered(SimpleTemplateResponse):
    @property
    def rendered_content(self) -> str:
        place, language, *_, count = facts()
        return f"{count} {language} {place}"


def test_a_deferred_response_that_queries(database: Any, placement: str) -> None:
    async def view(request: Any) -> Any:
        translation.activate("de")
        await Customer.objects.acreate(name="a")
        return Rendered("none.html")

    assert database.request(view, placement).text == "1 de thread"
