"""Django's Redis cache on the loop: its waits leave the loop free, and nothing mixes up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from io import StringIO
from typing import Any

import blockbuster
import pytest
from asgiref.sync import sync_to_async
from django.core.cache import caches
from django.core.cache.backends import redis as backend
from django.core.management import call_command
from django.http import HttpResponse
from django.urls import path

import redis_server
from driver import Cancellable, Site, on_loop
from greenroom import bridge, placement, user_code

redis = pytest.importorskip("redis")

from greenroom.integrations import redis as ours  # noqa: E402

PLAIN, HIREDIS = "redis._parsers._RESP2Parser", "redis._parsers._HiredisParser"


@pytest.fixture(scope="module")
def server() -> Iterator[redis_server.Redis]:
    if redis_server.find() is None:
        (pytest.fail if redis_server.required() else pytest.skip)(redis_server.MISSING)
    with redis_server.server() as server:
        yield server


@pytest.fixture(params=[PLAIN, HIREDIS], ids=["python", "hiredis"])
def parser(request: pytest.FixtureRequest) -> str:
    if request.param == HIREDIS:
        pytest.importorskip("hiredis")
    return str(request.param)


@pytest.fixture(
    params=[("unix", PLAIN), ("unix", HIREDIS), ("tcp", PLAIN)],
    ids=["unix-python", "unix-hiredis", "tcp-python"],
)
def entered(request: pytest.FixtureRequest, server: redis_server.Redis) -> dict[str, Any]:
    kind, parser = request.param
    if parser == HIREDIS:
        pytest.importorskip("hiredis")
    return entry(server.location(kind), parser_class=parser)


def entry(location: str, **options: Any) -> dict[str, Any]:
    return {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": location,
        "OPTIONS": options,
    }


@contextlib.contextmanager
def site(caches_default: dict[str, Any], **more: Any) -> Iterator[Site]:
    with Site("auto", CACHES={"default": caches_default}, **more) as site:
        yield site


def run(caches_default: dict[str, Any], main: Callable[[Any], Any], **more: Any) -> Any:
    """Run `main(cache)` on a loop, beside nothing, and close what it connected."""

    async def whole(_: Site) -> Any:
        cache = caches["default"]
        try:
            return await main(cache)
        finally:
            if isinstance(cache, ours.WaitingCache):
                for pool in cache._cache._pools.values():
                    pool.disconnect()

    with site(caches_default, **more) as made:
        return made.run(whole)


def in_bridge(fn: Callable[..., Any], *args: Any) -> Coroutine[Any, Any, Any]:
    async def call() -> Any:
        return await bridge.run(fn, *args)

    return call()


# Whose answers they are.


def test_200_tasks_get_their_own_values(entered: dict[str, Any], loop_factory: Any) -> None:
    def one(cache: Any, number: int) -> None:
        for turn in range(2):
            key, value = f"{number}:{turn}", [number, turn, "x" * (number * 50)]
            cache.set(key, value)
            assert cache.get(key) == value
            assert cache.get_many([key, "none", f"{number}:0"])[key] == value
            cache.set_many({f"{key}a": number, f"{key}b": turn}, timeout=100)
            assert cache.incr(f"{key}a", 3) == number + 3
            assert not cache.add(key, "other")
            assert f"{key}b" in cache
            assert cache.touch(key, 50)
            assert cache.delete(key)
            assert cache.get(key, number) == number

    async def awaited(cache: Any, number: int) -> None:
        for turn in range(2):
            key, value = f"a{number}:{turn}", {"of": (number, turn)}
            await cache.aset(key, value)
            assert await cache.aget(key) == value
            assert await cache.aget_many([key]) == {key: value}
            await cache.aset_many({f"{key}a": number})
            assert await cache.aincr(f"{key}a") == number + 1
            assert await cache.ahas_key(key)
            assert await cache.aget_or_set(f"{key}c", partial(dict, value)) == value
            assert await cache.adelete(key)

    async def main(cache: Any) -> int:
        assert type(cache) is ours.WaitingCache
        assert isinstance(cache, backend.RedisCache)
        await asyncio.gather(
            *(in_bridge(one, cache, number) for number in range(100)),
            *(awaited(cache, number) for number in range(100)),
            # The client of the loop, and that of the thread.
            *(asyncio.to_thread(one, cache, 200 + number) for number in range(3)),
            *(sync_to_async(one)(caches["default"], 300 + number) for number in range(3)),
        )
        (pool,) = cache._cache._pools.values()
        assert not pool._in_use_connections
        return len(pool._available_connections)

    made = run(entered, main, loop_factory=loop_factory)
    # With those of six threads.
    assert 1 < made <= ours.CONNECTIONS + 6


def test_no_call_is_made_on_a_thread(server: redis_server.Redis, monkeypatch: Any) -> None:
    """But for those that connect."""
    connected = []
    off_loop = ours.off_loop
    monkeypatch.setattr(ours, "off_loop", lambda fn: [connected.append(1), off_loop(fn)][1])
    monkeypatch.setattr(user_code, "off_loop", None)
    seen = set()

    async def main(cache: Any) -> None:
        receive = ours.WaitingSocket.recv

        def recv(*args: Any) -> bytes:
            seen.add(threading.get_ident())
            return receive(*args)

        monkeypatch.setattr(ours.WaitingSocket, "recv", recv)
        await cache.aset("key", 1)
        for _ in range(10):
            assert await in_bridge(cache.get, "key") == 1
            assert await cache.aget("key") == 1
            assert await asyncio.create_task(cache.aget("key")) == 1

    run(entry(server.location("unix"), parser_class=PLAIN), main)
    assert len(connected) == 1
    assert seen == {threading.get_ident()}


def test_nothing_else_blocks_the_loop(entered: dict[str, Any]) -> None:
    """As a detector sees it: connecting, long values, and what redis-py reads in files."""

    async def main(cache: Any) -> None:
        # Once: Django's client reads redis-py's version.
        assert cache._cache
        with blockbuster.blockbuster_ctx():
            await cache.aset("a", 1)
            assert await asyncio.gather(*(cache.aget("a") for _ in range(10))) == [1] * 10
            await cache.aset_many({"b": b"x" * 500_000})
            assert len((await in_bridge(cache.get_many, ["a", "b"]))["b"]) == 500_000

    run(entered, main)


# Sessions.


async def visit(request: Any) -> HttpResponse:
    """Whose session it is, and how often it was visited."""
    session = request.session
    name = request.GET["name"]
    owner = session.setdefault("owner", name)
    session["visits"] = await session.aget("visits", 0) + 1
    await asyncio.sleep(0)
    assert on_loop()
    return HttpResponse(f"{owner} {await session.aget('owner')} {session['visits']}")


urlpatterns = [path("visit/", visit)]


def test_sessions_never_mix(server: redis_server.Redis, loop_factory: Any) -> None:
    """Those of 60 visitors, while half as many requests are cancelled at any moment."""
    chance = random.Random(7)

    async def main(site: Site) -> None:
        cookies: dict[str, str] = {}

        async def visitor(name: str) -> None:
            for turn in range(1, 4):
                answer = await site.ask(f"/visit/?name={name}", HTTP_COOKIE=cookies.get(name, ""))
                # (A cancelled one may have been counted.)
                owner, again, visits = answer.text.split()
                assert owner == again == name
                assert int(visits) >= turn
                cookies[name] = (answer.header("Set-Cookie") or cookies[name]).split(";")[0]

        async def leaves() -> None:
            for _ in range(40):
                await asyncio.sleep(chance.random() / 100)
                name = chance.choice(list(cookies) or ["nobody"])
                left = Cancellable(
                    site.app, f"/visit/?name={name}", HTTP_COOKIE=cookies.get(name, "")
                )
                await asyncio.sleep(chance.random() / 100)
                left.cancel()
                await asyncio.wait([left.task])
                assert left.answer.status in ("", "200 OK")

        await asyncio.gather(
            *(visitor(f"visitor{number}") for number in range(60)), leaves(), leaves()
        )
        await site.idle()
        (pool,) = caches["default"]._cache._pools.values()
        assert not pool._in_use_connections
        pool.disconnect()

    with site(
        entry(server.location("unix")),
        ROOT_URLCONF=__name__,
        middleware=("django.contrib.sessions.middleware.SessionMiddleware",),
        SESSION_ENGINE="django.contrib.sessions.backends.cache",
        loop_factory=loop_factory,
    ) as made:
        made.run(main)


def test_a_task_without_a_bridge(server: redis_server.Redis) -> None:
    """Its coroutine calls wait; a plain call blocks, and is answered."""

    async def main(cache: Any) -> list[Any]:
        async def both() -> list[Any]:
            await cache.aset("a", "aaa")
            return [cache.get("a"), await cache.aget("a")]

        return await asyncio.create_task(both())

    assert run(entry(server.location("unix")), main) == ["aaa", "aaa"]


def test_what_is_to_be_done_where_code_is_suspended_is_done(server: redis_server.Redis) -> None:
    """A borrowed connection of the database is given back while Redis is waited for."""
    done = []

    async def main(cache: Any) -> None:
        await cache.aset("a", "aaa")

        def suspended() -> None:
            bridge.when_suspended(lambda: done.append(1))
            cache.get("a")

        await in_bridge(suspended)

    run(entry(server.location("unix")), main)
    assert done == [1]


# Cancelled at each wait.


class Cancelled:
    """Cancels the current task at its n-th wait for the server."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
        self.left = -1
        self.late = late
        self.at: list[bool] = []
        wait = ours._Watch.wait

        def cancelling(watch: Any, limit: float | None) -> bool:
            if self.left == 0:
                self.at.append(watch.writes)
                if self.late:
                    # There is what it waits for: an answer that nobody will read.
                    poll = select.poll()
                    poll.register(watch.fileno, select.POLLOUT if watch.writes else select.POLLIN)
                    assert poll.poll(1000) or watch.writes
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            self.left -= 1
            return wait(watch, limit)

        monkeypatch.setattr(ours._Watch, "wait", cancelling)


@pytest.mark.parametrize("late", [False, True], ids=["before", "with an answer"])
def test_cancelled_at_each_wait(
    entered: dict[str, Any], late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is used again by the next command, which gets its own answer."""
    cancelled = Cancelled(monkeypatch, late)
    # It is read in many parts.
    long = b"x" * 700_000

    async def main(cache: Any) -> int:
        for key in ("a", "b", "c"):
            await cache.aset(key, key * 3)
        (pool,) = cache._cache._pools.values()

        async def command() -> None:
            await cache.aset_many({"d": "ddd", "e": long}, timeout=100)
            assert await cache.aget("a") == "aaa"
            assert await cache.aget("e") == long
            assert await cache.aget_many(["b", "c"]) == {"b": "bbb", "c": "ccc"}

        for number in range(300):
            if number % 2:
                # Also where it connects.
                pool.disconnect()
            cancelled.left = number // 2
            task = asyncio.create_task(command())
            await asyncio.wait([task])
            cancelled.left = -1
            assert not pool._in_use_connections
            assert pool._created_connections == 1
            assert await cache.aget("a") == "aaa"
            assert await in_bridge(cache.get_many, ["b", "c"]) == {"b": "bbb", "c": "ccc"}
            assert await cache.aget("none") is None
            if not task.cancelled():
                # It waited less often than that.
                task.result()
                if number % 2:
                    return number
        raise AssertionError("it waits for ever")

    entered["OPTIONS"]["max_connections"] = 1
    assert run(entered, main) > 10
    assert False in cancelled.at


def test_cancelled_while_it_sends(entered: dict[str, Any], server: redis_server.Redis) -> None:
    """Half of a command must not be the beginning of the next."""

    async def main(cache: Any) -> None:
        await cache.aset("a", "aaa")
        await cache.adelete("e")
        (pool,) = cache._cache._pools.values()
        (connection,) = pool._available_connections
        with server.silent():
            # Longer than what the system takes for a server that reads nothing.
            task = asyncio.create_task(cache.aset("e", b"x" * 30_000_000))
            async with asyncio.timeout(30):
                while not (connection._sock._watch and connection._sock._watch.writes):
                    await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await cache.aget("a") == "aaa"
        assert await cache.aget("e") is None
        assert pool._available_connections == [connection]

    run(entered, main)


def test_cancelled_while_it_connects_or_has_no_connection(server: redis_server.Redis) -> None:
    async def main(cache: Any) -> None:
        await cache.aset("a", "aaa")
        (pool,) = cache._cache._pools.values()
        for _ in range(5):
            pool.disconnect()
            task = asyncio.create_task(cache.aget("a"))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await cache.aget("a") == "aaa"
        with server.silent():
            tasks = [asyncio.create_task(cache.aget("a")) for _ in range(5)]
            await asyncio.sleep(0.05)
            for task in tasks[:4]:
                task.cancel()
        assert await tasks[4] == "aaa"
        assert not pool._in_use_connections
        assert await cache.aget("none") is None

    run(entry(server.location("unix"), max_connections=1), main)


@pytest.mark.parametrize("kind", [asyncio.CancelledError, GeneratorExit, KeyError])
def test_a_socket_whose_wait_was_interrupted_is_closed(kind: type[BaseException]) -> None:
    """Whatever redis-py does about it."""
    left, right = socket.socketpair()
    sock = ours.WaitingSocket.of(left)

    async def main() -> None:
        steps: Any = bridge.run(sock.recv, 10)
        steps.send(None)
        right.sendall(b"late")
        with pytest.raises(kind):
            steps.throw(kind())

    asyncio.run(main())
    with right:
        assert sock.fileno() == -1
        with pytest.raises(OSError):
            sock.recv(10)


# The server.


def test_the_loop_goes_on_while_the_server_does_not_answer(
    server: redis_server.Redis, parser: str, loop_factory: Any
) -> None:
    async def main(cache: Any) -> int:
        await cache.aset("a", "aaa")
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        ticking = asyncio.create_task(tick())
        with server.silent():
            began = time.monotonic()
            tasks = [
                asyncio.create_task(coroutine)
                for coroutine in (in_bridge(cache.get, "a"), cache.aget("a"))
            ]
            await asyncio.sleep(0.4)
            assert time.monotonic() - began < 5
            assert not any(task.done() for task in tasks)
        assert await asyncio.gather(*tasks) == ["aaa", "aaa"]
        ticking.cancel()
        return ticks

    assert (
        run(entry(server.location("tcp"), parser_class=parser), main, loop_factory=loop_factory)
        > 10
    )


def test_a_time_limit(server: redis_server.Redis, parser: str) -> None:
    """Of an answer, on the loop and on a thread, and of waiting for a connection."""

    async def main(cache: Any) -> None:
        await cache.aset("a", "aaa")
        with server.silent():
            began = time.monotonic()
            results = await asyncio.gather(
                in_bridge(cache.get, "a"),
                *(cache.aget("a") for _ in range(4)),
                asyncio.to_thread(cache.get, "a"),
                return_exceptions=True,
            )
            assert {type(each) for each in results} == {redis.TimeoutError}
            assert 0.2 < time.monotonic() - began < 10
        assert any("All 2 connections" in str(each) for each in results)
        assert await asyncio.gather(*(cache.aget("a") for _ in range(5))) == ["aaa"] * 5

    options = {"socket_timeout": 0.25, "max_connections": 3, "parser_class": parser}
    with pytest.MonkeyPatch.context() as patch:
        # One is left for the thread.
        make = ours.WaitingPool.__init__

        def limited(self: Any, *args: Any, **kwargs: Any) -> None:
            make(self, *args, **kwargs)
            self._limit = 2

        patch.setattr(ours.WaitingPool, "__init__", limited)
        # (On a Unix socket redis-py 5.0.1 has no limit.)
        run(entry(server.location("tcp"), **options), main)


def test_the_server_is_killed(parser: str) -> None:
    if redis_server.find() is None:
        pytest.skip(redis_server.MISSING)
    with redis_server.server() as server:

        async def main(cache: Any) -> None:
            await cache.aset("a", "aaa")
            with contextlib.suppress(redis.ConnectionError), server.silent():
                tasks = [asyncio.create_task(cache.aget("a")) for _ in range(20)]
                await asyncio.sleep(0.1)
                await asyncio.to_thread(server.kill)
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(each) for each in results} == {redis.ConnectionError}
            with pytest.raises(redis.ConnectionError):
                await cache.aget("a")
            await asyncio.to_thread(server.start)
            keys = [str(number) for number in range(40)]
            await asyncio.gather(*(cache.aset(key, key) for key in keys))
            assert await asyncio.gather(*(cache.aget(key) for key in keys)) == keys

        run(entry(server.location("tcp"), parser_class=parser), main)


@pytest.mark.parametrize("where", ["loop", "thread"])
def test_connections_that_are_closed_while_somebody_waits(
    server: redis_server.Redis, where: str, loop_factory: Any
) -> None:
    async def main(cache: Any) -> None:
        await cache.aset("a", "aaa")
        (pool,) = cache._cache._pools.values()
        with server.silent():
            task = asyncio.create_task(cache.aget("a"))
            await asyncio.sleep(0.05)
            if where == "loop":
                pool.disconnect()
            else:
                await asyncio.to_thread(pool.disconnect)
            # (redis-py 5 finds that its own buffer is closed.)
            with pytest.raises((redis.ConnectionError, ValueError)):
                await task
        assert await cache.aget("a") == "aaa"

    run(entry(server.location("unix")), main, loop_factory=loop_factory)


# Which caches.


def test_a_default_is_computed_on_a_thread(server: redis_server.Redis) -> None:
    def where() -> int:
        return threading.get_ident()

    async def main(cache: Any) -> list[int]:
        await cache.adelete_many(["a", "b"])
        return [await cache.aget_or_set("a", where), await in_bridge(cache.get_or_set, "b", where)]

    assert threading.get_ident() not in run(entry(server.location("unix")), main)


class Other(backend.RedisCache):
    pass


class Serializer(backend.RedisSerializer):
    pass


@placement.loop_safe
class Marked(backend.RedisSerializer):
    pass


def key_function(key: str, prefix: str, version: int) -> str:
    return key


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, None),
        ({"LOCATION": "unix:///tmp/nothing?db=3&socket_timeout=2"}, None),
        ({"LOCATION": ["redis://a", "redis://b:1/2"]}, None),
        ({"OPTIONS": {"db": 1, "health_check_interval": 5, "max_connections": 3}}, None),
        ({"OPTIONS": {"serializer": f"{__name__}.Marked"}}, None),
        ({"OPTIONS": {"parser_class": PLAIN}}, None),
        ({"BACKEND": f"{__name__}.Other"}, "test_redis.Other, which is not known"),
        ({"LOCATION": "rediss://a"}, "connects by SSLConnection"),
        ({"LOCATION": "a"}, "has a LOCATION that redis-py refuses"),
        ({"LOCATION": ["redis://a", "redis://b?cache=1"]}, "has the option 'cache'"),
        (
            {"OPTIONS": {"pool_class": "redis.BlockingConnectionPool"}},
            "has the option 'pool_class'",
        ),
        ({"OPTIONS": {"retry": None}}, "has the option 'retry'"),
        ({"OPTIONS": {"parser_class": object}}, "has a parser_class"),
        ({"OPTIONS": {"serializer": Serializer}}, "calls Serializer, which is not known"),
        ({"KEY_FUNCTION": key_function}, "calls key_function, which is not known"),
    ],
)
def test_what_holds_a_cache_on_threads(changed: dict[str, Any], reason: str | None) -> None:
    async def main(_: Site) -> tuple[type, str | None]:
        made = caches.create_connection("default")
        return type.__call__(type, caches["default"]), user_code.why_not_on_loop(made)

    with site({**entry("redis://127.0.0.1"), **changed}) as made:
        kind, found = made.run(main)
    if reason is None:
        assert (kind, found) == (ours.WaitingCache, None)
    else:
        assert kind is user_code.SlowCache
        assert reason in (found or "")


def test_the_command_says_so() -> None:
    def said(*args: str) -> str:
        out = StringIO()
        call_command("greenroom", *args, stdout=out)
        return out.getvalue()

    with site(entry("rediss://127.0.0.1")):
        assert "Calls of the cache 'default' are made on a thread: it connects by SSL" in said()
        assert "SSLConnection" in json.loads(said("--json"))["caches_on_threads"]["default"]
    with site(entry("redis://127.0.0.1")):
        assert "Calls of the cache" not in said()
        assert json.loads(said("--json"))["caches_on_threads"] == {}


def test_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_code, "REDIS", placement.Known("redis", "1.0", "1.1"))

    async def main(_: Site) -> tuple[type, str | None]:
        made = caches.create_connection("default")
        return type.__call__(type, caches["default"]), user_code.why_not_on_loop(made)

    with site(entry("redis://127.0.0.1")) as made:
        kind, found = made.run(main)
    assert kind is user_code.SlowCache
    assert "read from redis 1.0 to below 1.1" in (found or "")


def test_a_cache_on_threads_has_the_same_values(server: redis_server.Redis) -> None:
    async def main(cache: Any) -> list[Any]:
        await cache.aset("a", "aaa")
        return [await cache.aget("a"), await in_bridge(cache.get, "a"), "a" in cache.__dir__()]

    options = {"pool_class": "redis.BlockingConnectionPool"}
    assert run(entry(server.location("unix"), **options), main)[:2] == ["aaa", "aaa"]
