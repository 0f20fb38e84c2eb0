"""What goes wrong in naive ways to have the ORM on an event loop, and must not here.

=============================================  ==============================================
hazard                                         tested
=============================================  ==============================================
cancelled in COMMIT, the hook of a dead        test_atomic: `..._no_hook_is_left_...`,
transaction runs in the next                   `test_timeout_in_commit`
SQLite cancelled while BEGIN IMMEDIATE waits   test_atomic
`atomic` on a thread, the ORM on the loop      here, and test_atomic
a receiver that blocks                         here
a lock around a query                          here
an RLock around read, query, write             here
a thread-local around a query                  here
`functools.cached_property` that queries       here
a log handler that queries                     here
one thread: A in a transaction, B wants its    here; test_threads:
row                                            `test_resuming_never_queues`
more pages than threads, that call back        test_threads: `test_pages_that_call_back...`
`break` out of ``.iterator()``                 here
cursors left open on a connection used again   here
`set_config`, then another's query             test_session_state
a URLconf that queries at its import           here
bad Host with mail to admins                   test_errors: `test_bad_host_is_logged...`
a child that waits for its parent's statement  test_atomic
a task that outlives the response              here; test_cancellation
a cache client for each request                test_application: `test_one_cache_client...`, a
                                               thread's and the loop's
idle greenlets that keep requests              test_bridge: `test_nothing_is_left_behind`, by
                                               their context, result, error or arguments;
                                               test_ends: `test_nothing_keeps_a_request`, by
                                               anything else, a cycle included
50 writers of SQLite                           here
`i18n_patterns`, resolved before the language  test_application:
is known                                       `test_i18n_patterns_are_found_...`
`check_password`'s setter saves                here
=============================================  ==============================================
"""

from __future__ import annotations

import asyncio
import functools
import gc
import hashlib
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.db.models import F
from django.db.models.signals import post_save

import greenroom
from greenroom import logs
from greenroom.db import sqlite
from orm import Ask, Pulse, turns
from project import urls_orm
from project.shop.models import Counter, Customer

# Of the loop, in seconds. A machine that runs tests pauses by itself, too: the best of some.
STALL = 0.05


@pytest.fixture
def receive() -> Iterator[Callable[..., None]]:
    """Connects receivers of `post_save` for the test."""
    connected: list[tuple[Any, Any]] = []

    def receive(receiver: Any, sender: Any = Customer) -> None:
        post_save.connect(receiver, sender=sender, weak=False)
        connected.append((receiver, sender))

    yield receive
    for receiver, sender in connected:
        post_save.disconnect(receiver, sender=sender)


def query(sender: Any = None, **named: Any) -> int:
    return Counter.objects.count()


# Receivers that were written for threads.


@pytest.mark.parametrize("how", ["save", "asave"])
def test_a_receiver_that_blocks_stalls_nobody(
    database: Any, placement: str, receive: Any, how: str
) -> None:
    receive(lambda **named: time.sleep(0.2))

    async def view(request: Any) -> None:
        if how == "save":
            Customer(name="a").save()
        else:
            await Customer(name="a").asave()

    async def main(ask: Ask) -> float:
        await Customer.objects.acount()
        stalls = []
        for _ in range(5):
            async with Pulse() as pulse:
                await ask(view)
            stalls.append(pulse.longest)
            if pulse.longest < STALL:
                break
        return min(stalls)

    assert database.run(main, placement) < STALL


def test_a_lock_around_a_query_in_a_receiver(
    database: Any, receive: Any, loop_factory: Any
) -> None:
    lock = threading.Lock()

    def receiver(**named: Any) -> None:
        with lock:
            query()

    receive(receiver)

    async def view(request: Any) -> None:
        await Customer.objects.acreate(name="a")
        Customer.objects.create(name="b")

    async def main(ask: Ask) -> None:
        async with asyncio.timeout(20):
            await asyncio.gather(*(ask(view) for _ in range(20)))

    database.run(main, loop_factory=loop_factory)
    assert Customer.objects.count() == 40


def test_an_rlock_around_read_query_write_loses_no_update(database: Any, receive: Any) -> None:
    lock = threading.RLock()
    total = 0

    def receiver(**named: Any) -> None:
        nonlocal total
        with lock:
            before = total
            query()
            total = before + 1

    receive(receiver)

    async def view(request: Any) -> None:
        await Customer.objects.acreate(name="a")

    async def main(ask: Ask) -> None:
        await asyncio.gather(*(ask(view) for _ in range(20)))

    database.run(main)
    assert total == 20


def test_an_rlock_in_a_view_that_is_held_on_a_thread(database: Any) -> None:
    """A plain function beneath `sync_to_async` has threads of its own, as it was written."""
    lock = threading.RLock()
    total = 0

    def locked() -> None:
        nonlocal total
        with lock:
            before = total
            query()
            total = before + 1

    async def view(request: Any) -> None:
        await sync_to_async(locked)()

    async def main(ask: Ask) -> None:
        await asyncio.gather(*(ask(view) for _ in range(20)))

    database.run(main, threads=4)
    assert total == 20


def test_a_thread_local_around_a_query_in_a_receiver(database: Any, receive: Any) -> None:
    local = threading.local()
    wrong: list[Any] = []

    def receiver(instance: Any, **named: Any) -> None:
        local.name = instance.name
        query()
        if local.name != instance.name:
            wrong.append(instance.name)

    receive(receiver)

    async def main(ask: Ask) -> None:
        def view_of(name: str) -> Any:
            async def view(request: Any) -> None:
                await Customer.objects.acreate(name=name)

            return view

        await asyncio.gather(*(ask(view_of(f"{index}")) for index in range(50)))

    database.run(main, threads=4)
    assert wrong == []


@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="functools.cached_property holds no lock from 3.12 on"
)
def test_cached_property_of_functools_in_a_receiver(database: Any, receive: Any) -> None:
    class Thing:
        @functools.cached_property
        def value(self) -> int:
            return query()

    receive(lambda **named: Thing().value)

    async def view(request: Any) -> None:
        await Customer.objects.acreate(name="a")

    async def main(ask: Ask) -> float:
        async with Pulse() as pulse, asyncio.timeout(20):
            await asyncio.gather(*(ask(view) for _ in range(20)))
        return pulse.longest

    assert database.run(main) < 0.5


def test_a_log_handler_that_queries(database: Any) -> None:
    seen: list[str] = []

    class Handler(logging.Handler):
        # Its lock, an RLock, is held around this.
        def emit(self, record: logging.LogRecord) -> None:
            query()
            seen.append(record.getMessage())

    log = logging.getLogger("project.shop")
    handler = Handler()
    log.addHandler(handler)
    log.setLevel(logging.INFO)

    async def view(request: Any) -> None:
        for index in range(5):
            log.info("%s", index)
            await Customer.objects.acount()

    async def main(ask: Ask) -> float:
        listener = logs.take_off_loop()
        assert listener is not None
        try:
            async with Pulse() as pulse, asyncio.timeout(20):
                await asyncio.gather(*(ask(view) for _ in range(20)))
        finally:
            await asyncio.to_thread(listener.stop)
        return pulse.longest

    try:
        stall = database.run(main)
    finally:
        log.handlers.clear()
        log.setLevel(logging.NOTSET)
    assert sorted(seen) == sorted(f"{index}" for index in range(5) for _ in range(20))
    assert stall < 0.5


# Threads and the loop, one connection.


def test_atomic_on_a_thread_around_the_orm_of_a_coroutine(database: Any, placement: str) -> None:
    """One wrapper: else the request would wait for its own row's lock."""

    async def coroutine() -> None:
        assert await Counter.objects.filter(name="a").aupdate(value=F("value") + 1) == 1
        await Customer.objects.acreate(name="lost")

    def on_thread() -> None:
        with pytest.raises(LookupError), transaction.atomic():
            Counter.objects.select_for_update().get(name="a")
            Counter.objects.filter(name="a").update(value=5)
            greenroom.await_(coroutine())
            assert Counter.objects.get().value == 6
            raise LookupError

    async def view(request: Any) -> None:
        await Counter.objects.acreate(name="a")
        await sync_to_async(on_thread)()
        assert (await Counter.objects.aget()).value == 0

    database.request(view, placement)
    assert not Customer.objects.exists()


@pytest.mark.parametrize("vendor", ["postgresql"], indirect=True)
def test_one_thread_a_transaction_parked_and_another_that_wants_its_row(database: Any) -> None:
    Counter.objects.create(name="a")

    async def parks(request: Any) -> None:
        async with greenroom.atomic():
            await sync_to_async(Counter.objects.filter(name="a").update)(value=1)
            gate.set()
            await asyncio.sleep(0.05)
            await sync_to_async(Counter.objects.filter(name="a").update)(value=2)

    def blocks(request: Any) -> None:
        # Waits on the only thread for the row that the other has locked.
        Counter.objects.filter(name="a").update(value=F("value") + 10)

    async def main(ask: Ask) -> None:
        nonlocal gate
        gate = asyncio.Event()
        first = asyncio.create_task(ask(parks))
        await gate.wait()
        second = asyncio.create_task(ask(blocks, pattern="plain"))
        async with asyncio.timeout(5):
            await asyncio.gather(first, second)

    gate: asyncio.Event
    database.run(main, "thread", threads=1)
    assert Counter.objects.get().value == 12


# Cursors.


def chunked(model: Any = Customer) -> Any:
    return model.objects.order_by("pk").iterator(chunk_size=2)


def fill(count: int = 500) -> None:
    Customer.objects.bulk_create(Customer(name=f"{index}") for index in range(count))


@pytest.mark.parametrize("in_block", [False, True])
def test_break_out_of_iterator(database: Any, placement: str, in_block: bool) -> None:
    fill()

    async def view(request: Any) -> list[str]:
        found = []

        async def take() -> None:
            for each in chunked():
                found.append(each.name)
                if each.name == "4":
                    break
            async for each in Customer.objects.order_by("pk").aiterator(chunk_size=2):
                found.append(each.name)
                break

        if in_block:
            async with greenroom.atomic():
                await take()
                await Customer.objects.acount()
        else:
            await take()
            await asyncio.sleep(0)
        assert Customer.objects.count() == 500
        return found

    assert database.request(view, placement) == ["0", "1", "2", "3", "4", "0"]


@pytest.mark.parametrize("undone", [False, True])
def test_a_cursor_that_ended_with_its_transaction_is_not_closed_again(
    database: Any, placement: str, undone: bool
) -> None:
    fill(10)

    async def view(request: Any) -> int:
        with transaction.atomic():
            assert len(list(chunked())) == 10
            transaction.set_rollback(undone)
        # On the same connection: nothing else was waited for.
        return Customer.objects.count()

    assert database.request(view, placement) == 10


def test_an_iterator_in_a_cycle_is_collected_in_another_request(database: Any) -> None:
    """Its finaliser does no I/O, least of all on the connection of whom it interrupts."""
    fill()

    class Box:
        pass

    async def leaves(request: Any) -> Any:
        box: Any = Box()
        box.self = box
        box.rows = chunked()
        next(box.rows)
        return weakref.ref(box)

    async def collects(request: Any) -> int:
        async with greenroom.atomic():
            count = Customer.objects.count()
            gc.collect()
            assert Customer.objects.count() == count
        return count

    async def main(ask: Ask) -> None:
        gc.disable()
        try:
            boxes = [await ask(leaves) for _ in range(3)]
            assert await ask(collects) == 500
            assert all(box() is None for box in boxes)
        finally:
            gc.enable()
        assert await ask(collects) == 500

    database.run(main, GREENROOM={"DB_MAX_CONNECTIONS": 2, "DB_TIMEOUT": 1})


def test_cancelled_in_an_iterator(database: Any) -> None:
    """`CancelledError` comes out, whenever; and the connection is as new for the next."""
    fill(50)

    async def view(request: Any) -> int:
        count = 0
        for _ in chunked():
            count += 1
            await asyncio.sleep(0)
        return count

    async def main(ask: Ask) -> int:
        cancelled = 0
        for count in range(0, 120, 3):
            task = asyncio.create_task(ask(view))
            await turns(count)
            task.cancel()
            await asyncio.wait([task])
            cancelled += task.cancelled()
            if not task.cancelled():
                assert task.result() == 50
        assert await ask(view) == 50
        return cancelled

    assert database.run(main, GREENROOM={"DB_MAX_CONNECTIONS": 1, "DB_TIMEOUT": 1}) > 3


def test_cursors_left_open_on_a_connection_that_is_used_again(database: Any) -> None:
    fill()
    kept = []

    async def view(request: Any) -> int:
        rows = [chunked() for _ in range(3)]
        for each in rows:
            next(each)
        kept.extend(rows)
        with connection.cursor() as cursor:
            if connection.vendor == "postgresql":
                cursor.execute("SELECT count(*) FROM pg_cursors")
                (count,) = cursor.fetchone()
                assert count == 3
        return Customer.objects.count()

    async def main(ask: Ask) -> None:
        for _ in range(4):
            assert await ask(view) == 500

    database.run(main, GREENROOM={"DB_MAX_CONNECTIONS": 1, "DB_TIMEOUT": 1})
    # The generators end, long after their connections.
    kept.clear()
    gc.collect()


def test_after_an_iterator_the_connection_is_given_back(database: Any) -> None:
    fill(10)
    done = []

    async def view(request: Any) -> None:
        assert len(list(chunked())) == 10
        done.append(1)
        await asyncio.sleep(0.4)

    async def main(ask: Ask) -> None:
        task = asyncio.create_task(ask(view))
        while not done:
            await asyncio.sleep(0.005)
        assert await ask(counts) == 10
        assert not task.done()
        await task

    async def counts(request: Any) -> int:
        return await Customer.objects.acount()

    database.run(main, GREENROOM={"DB_MAX_CONNECTIONS": 1, "DB_TIMEOUT": 0.3})


# Imports.


def test_a_urlconf_that_queries_when_it_is_imported(database: Any) -> None:
    Customer.objects.create(name="a")
    sys.modules.pop("project.urls_import", None)
    urls_orm.views["imported"] = _nothing

    async def main(site: Any) -> list[int]:
        answers = await asyncio.gather(*(site.ask("/call/imported/") for _ in range(20)))
        return [each.code for each in answers]

    with database.site() as site:
        site._override.options["ROOT_URLCONF"] = "project.urls_import"
        site.use()
        # Made before the loop runs, as by a worker.
        assert site.app is not None
        assert site.run(main) == [200] * 20
    assert sys.modules["project.urls_import"].names == ["a"]


class ChoosesUrlconf:
    """A middleware that names a URLconf that nobody has imported yet."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        request.urlconf = "project.urls_import"
        return self.get_response(request)


async def _nothing(request: Any) -> None:
    pass


def test_a_urlconf_that_a_middleware_chooses_and_that_queries(
    database: Any, placement: str
) -> None:
    sys.modules.pop("project.urls_import", None)
    urls_orm.views["imported"] = _nothing

    async def main(site: Any) -> list[int]:
        answers = await asyncio.gather(*(site.ask("/call/imported/") for _ in range(20)))
        return [each.code for each in answers]

    middleware = (f"{__name__}.ChoosesUrlconf",)
    sys.modules.setdefault(__name__, sys.modules[ChoosesUrlconf.__module__])
    with database.site(
        placement, middleware=middleware, GREENROOM={"LOOP_SAFE": [f"{__name__}.*"]}
    ) as site:
        assert site.run(main) == [200] * 20


# Tasks that outlive their request.


def test_a_task_that_outlives_its_request(database: Any, placement: str) -> None:
    async def view(request: Any) -> Any:
        gate = asyncio.Event()

        async def later() -> int:
            await gate.wait()
            await Customer.objects.acreate(name="a")
            async with greenroom.atomic():
                await Customer.objects.acreate(name="b")
                await sync_to_async(Customer.objects.create)(name="c")
            return await Customer.objects.acount()

        async def in_a_bridge() -> int:
            await gate.wait()
            with transaction.atomic():
                Customer.objects.create(name="d")
                await asyncio.sleep(0)
            return 1

        await Customer.objects.acount()
        tasks = asyncio.create_task(later()), asyncio.create_task(greenroom.bridged(in_a_bridge)())
        await asyncio.sleep(0)
        return gate, tasks

    async def main(ask: Ask) -> None:
        gate, tasks = await ask(view)
        gate.set()
        async with asyncio.timeout(5):
            await asyncio.gather(*tasks)
        # Their connections are back: with one, the next request finds it free.
        assert (await ask(view))[0] is not gate

    database.run(main, placement, GREENROOM={"DB_MAX_CONNECTIONS": 2, "DB_TIMEOUT": 1})
    assert Customer.objects.count() == 4


# SQLite.


@pytest.mark.parametrize("vendor", ["sqlite"], indirect=True)
@pytest.mark.parametrize("where", ["coroutines", "with threads"])
@pytest.mark.parametrize("how", ["reads and writes", "autocommit"])
def test_50_writers_of_sqlite(database: Any, loop_factory: Any, how: str, where: str) -> None:
    """In the order in which they asked, so that none starves. SQLite would refuse the second."""
    database.change(OPTIONS={"transaction_mode": "IMMEDIATE", "timeout": 0})
    Counter.objects.create(name="a")
    queue = sqlite._writers_of(database.settings["NAME"])
    wrote: list[int] = []

    def write(number: int) -> None:
        if how == "autocommit":
            Counter.objects.filter(name="a").update(value=F("value") + 1)
            wrote.append(number)
            return
        with transaction.atomic():
            wrote.append(number)
            row = Counter.objects.get(name="a")
            row.value += 1
            row.save()

    def view_of(number: int) -> Any:
        async def view(request: Any) -> None:
            write(number)

        return view if where == "coroutines" or number % 2 else lambda request: write(number)

    async def main(ask: Ask) -> float:
        async def holder(request: Any) -> None:
            async with greenroom.atomic():
                wrote.append(0)
                row = await Counter.objects.aget(name="a")
                inside.set()
                await everybody.wait()
                row.value += 1
                await row.asave()

        async def turn() -> None:
            wrote.clear()
            inside.clear()
            everybody.clear()
            async with asyncio.TaskGroup() as group:
                group.create_task(ask(holder))
                await inside.wait()
                for number in range(1, 50):
                    plain = where != "coroutines" and number % 2 == 0
                    group.create_task(ask(view_of(number), pattern="plain" if plain else "call"))
                    while len(queue._waiting) < number:
                        await asyncio.sleep(0.001)
                everybody.set()

        inside, everybody = asyncio.Event(), asyncio.Event()
        stalls = []
        for count in range(1, 6):
            async with asyncio.timeout(20), Pulse() as pulse:
                await turn()
            assert wrote == list(range(50))
            assert (await Counter.objects.aget()).value == 50 * count
            stalls.append(pulse.longest)
            if pulse.longest < STALL:
                break
        return min(stalls)

    limits = {"DB_MAX_CONNECTIONS": 60}
    assert database.run(main, loop_factory=loop_factory, threads=30, GREENROOM=limits) < STALL


@pytest.mark.parametrize("vendor", ["sqlite"], indirect=True)
def test_writers_of_sqlite_on_the_loop_and_on_threads(database: Any) -> None:
    """Without a transaction, with the options that Django has by itself."""

    async def view(request: Any) -> None:
        await Customer.objects.acreate(name="a")
        await sync_to_async(Customer.objects.create)(name="b")

    def plain(request: Any) -> None:
        Customer.objects.create(name="c")

    async def main(ask: Ask) -> None:
        async with asyncio.timeout(20):
            await asyncio.gather(
                *(ask(view) for _ in range(20)), *(ask(plain, pattern="plain") for _ in range(20))
            )

    database.run(main, threads=4)
    assert Customer.objects.count() == 60


# Passwords.


def test_the_setter_of_check_password_saves_in_the_transaction(
    database: Any, placement: str
) -> None:
    """An old hash is made anew: hashing is off the loop, the save is the request's."""
    user = User(username="u")
    user.password = "md5$salt$" + hashlib.md5(b"saltsecret").hexdigest()
    user.save()
    hashers = [
        "project.shop.hashers.Slow",
        "django.contrib.auth.hashers.MD5PasswordHasher",
    ]

    async def view(request: Any) -> str:
        with pytest.raises(LookupError):
            async with greenroom.atomic():
                found = await User.objects.select_for_update().aget(username="u")
                assert await found.acheck_password("secret")
                now = await User.objects.aget(username="u")
                assert now.password.startswith("pbkdf2_sha256$")
                raise LookupError
        return (await User.objects.aget(username="u")).password

    async def main(ask: Ask) -> str:
        async with Pulse() as pulse:
            password = await ask(view)
        assert pulse.longest < 0.15
        return str(password)

    assert database.run(main, placement, PASSWORD_HASHERS=hashers).startswith("md5$")
