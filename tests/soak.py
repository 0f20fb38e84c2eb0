"""Many requests to a site with a database, some of which end early; then all is counted.

    python tests/soak.py --requests 100000

Half of them come over sockets to gunicorn, with clients that hang up at a random moment.
The other half are made in one process, where the task of a request is cancelled at a random
one of its awaits. Afterwards

- every row that was committed has one mark of `on_commit`, and no other has one;
- a counter that transactions read and then write has counted each of its rows;
- no connection is in a transaction, and the pool knows of all that there are;
- no request, scope, wrapper, task or thread is left;
- nothing unexpected is in the log.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import random
import re
import subprocess
import sys
import time
import types
from collections import Counter as Tally
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from serving import Server, serve

HERE = Path(__file__).resolve().parent
WIRE = HERE / "wire"

# Of the site's superuser, whose name is admin.
PASSWORD = "a password that nobody guesses"

# At a time; more than there are connections.
CLIENTS = 40
DISCONNECTS = 0.05
CANCELLATIONS = 0.25

# How often each is asked for, and whether it can be asked to roll back.
MIX = {
    "query": (5, False),
    "query-plain": (1, False),
    "write": (4, True),
    "savepoints": (3, True),
    "take": (3, True),
    "take-plain": (1, False),
    "stream": (2, False),
    "stream-plain": (1, False),
    "visit": (3, False),
}
KEYED = ("write", "savepoints", "take", "take-plain")

# Expected: what Django says of a request that its client left.
EXPECTED = re.compile(r"^(INFO|DEBUG) |^\[.*\[INFO\]|^$")


def paths(run: str, seed: int) -> Iterator[tuple[str, str]]:
    """Kinds of requests, and their paths, for ever."""
    chance = random.Random(seed)
    kinds, weights = list(MIX), [weight for weight, _ in MIX.values()]
    number = 0
    while True:
        (kind,) = chance.choices(kinds, weights)
        number += 1
        path = f"/{kind}/{run}-{number}/" if kind in KEYED else f"/{kind}/"
        if MIX[kind][1] and chance.random() < 0.2:
            path += "?rollback"
        yield kind, path


# Over sockets.


class Client:
    """A connection that is kept alive."""

    def __init__(self, address: Any, cookie: str) -> None:
        self.address = address
        self.cookie = cookie
        self._writer: asyncio.StreamWriter | None = None

    async def get(self, path: str) -> tuple[int, bytes]:
        await self.send(path)
        return await self.receive()

    async def send(self, path: str) -> None:
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(*self.address)
        head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: sessionid={self.cookie}\r\n\r\n"
        self._writer.write(head.encode())

    async def receive(self) -> tuple[int, bytes]:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        body = b""
        if "transfer-encoding: chunked" in head:
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                body += (await self._reader.readexactly(size + 2))[:-2]
            await self._reader.readexactly(2)
        else:
            length = re.search(r"content-length: (\d+)", head)
            assert length is not None, head
            body = await self._reader.readexactly(int(length[1]))
        if "connection: close" in head:
            self.hang_up()
        return int(head.split()[1]), body

    def hang_up(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None


async def over_sockets(
    address: Any, cookies: list[str], count: int, seed: int
) -> tuple[Tally[str], list[str]]:
    """Ask for `count` pages; returns how many had which end, and answers that were wrong."""
    chance = random.Random(seed)
    requests = paths(f"s{seed}", seed)
    ends: Tally[str] = Tally()
    wrong: list[str] = []
    left = count

    async def ask(client: Client) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            kind, path = next(requests)
            if chance.random() < DISCONNECTS:
                await client.send(path)
                await asyncio.sleep(chance.choice((0, 0.001, 0.01, 0.04)) * chance.random())
                client.hang_up()
                ends["left by their client"] += 1
                continue
            status, body = await asyncio.wait_for(client.get(path), 60)
            ends[f"{kind} {status}"] += 1
            if status != 200 or not is_right(kind, body):
                wrong.append(f"{path} {status} {body[:200]!r}")

    clients = [Client(address, cookies[index % len(cookies)]) for index in range(CLIENTS)]
    await asyncio.gather(*map(ask, clients))
    for client in clients:
        client.hang_up()
    return ends, wrong


def is_right(kind: str, body: bytes) -> bool:
    text = body.decode()
    match kind:
        case "query":
            return text == "c0 8 8"
        case "stream":
            items = [f"c{index}" for index in range(8)]
            return text.splitlines() == [f"{item} 1" for item in items] + items
        case "stream-plain":
            return text.splitlines() == [f"c{index} 1" for index in range(8)]
        case "visit":
            one, other, groups = text.split(" ")
            return one == other and one.startswith("user") and groups == "0"
        case _:
            return True


async def numbers(address: Any, path: str = "/numbers/?collect") -> dict[str, Any]:
    client = Client(address, "")
    try:
        return dict(json.loads((await client.get(path))[1]))
    finally:
        client.hang_up()


# In one process.


def counted(coroutine: Any, at: int, then: Callable[[], object], steps: list[int]) -> Any:
    """Run a coroutine, and call `then` right after it has suspended for the `at`-th time."""

    @types.coroutine
    def run() -> Any:
        send, value = coroutine.send, None
        while True:
            try:
                value = send(value)
            except StopIteration as stop:
                return stop.value
            steps[0] += 1
            if steps[0] == at:
                asyncio.get_running_loop().call_soon(then)
            try:
                value = yield value
            except BaseException as exc:
                send, value = coroutine.throw, exc
            else:
                send = coroutine.send

    async def whole() -> Any:
        try:
            return await run()
        finally:
            coroutine.close()

    return whole()


async def with_cancellations(
    site: Any, cookies: list[str], count: int, seed: int, run: str
) -> tuple[Tally[str], list[str]]:
    """As `over_sockets`, straight to the application; requests are cancelled."""
    from driver import Answer, Cancellable, _ask, environ_of

    class Stepped(Cancellable):
        def __init__(self, path: str, at: int, **extra: Any) -> None:
            self.steps = [0]
            self.answer = Answer()
            asking = _ask(self.answer, site.app, environ_of(path, **extra))
            self.task = asyncio.create_task(counted(asking, at, self.cancel, self.steps))

    chance = random.Random(seed)
    requests = paths(f"{run}{seed}", seed)
    ends: Tally[str] = Tally()
    wrong: list[str] = []
    most = dict.fromkeys(MIX, 1)
    left = count

    async def ask(cookie: str) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            kind, path = next(requests)
            at = chance.randint(1, most[kind]) if chance.random() < CANCELLATIONS else 0
            one = Stepped(path, at, HTTP_COOKIE=f"sessionid={cookie}")
            async with asyncio.timeout(60):
                await asyncio.wait([one.task])
            if one.task.cancelled():
                ends[f"cancelled {'' if at else 'though nobody did'}".strip()] += 1
                continue
            if (error := one.task.exception()) is not None:
                wrong.append(f"{path} {error!r}")
                continue
            ends[f"{kind} {one.answer.code}"] += 1
            if not at:
                most[kind] = max(most[kind], one.steps[0])
            if one.answer.code != 200 or not is_right(kind, one.answer.body):
                wrong.append(f"{path} {one.answer.status} {one.answer.text[:200]!r}")

    await asyncio.gather(*(ask(cookies[index % len(cookies)]) for index in range(CLIENTS)))
    return ends, wrong


class Kept(logging.Handler):
    """Keeps the records above INFO."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(logging.Formatter("%(levelname)s %(name)s: %(message)s").format(record))


def inside(count: int, seed: int) -> dict[str, Any]:
    """The half without sockets, in a process of its own; see `_main_inside`."""
    import django

    sys.path.insert(0, str(WIRE))
    django.setup(set_prefix=False)
    from django.conf import settings
    from orm_site import views
    from orm_site.models import Entry

    from driver import Site

    kept = Kept()
    logging.getLogger().addHandler(kept)
    cookies = json.loads(os.environ["SOAK_COOKIES"])
    report: dict[str, Any] = {"wrong": []}
    # Placement thread cancels what is parked; the third part is what shows leaks.
    parts = [("auto", count * 5 // 10), ("thread", count * 3 // 10), ("auto", count * 2 // 10)]
    for number, (placement, share) in enumerate(parts):
        middleware = tuple(settings.MIDDLEWARE)
        with Site(
            placement, middleware=middleware, GREENROOM={"LIFESPAN": settings.GREENROOM["LIFESPAN"]}
        ) as site:

            async def main(site: Site, number: int = number, share: int = share) -> Any:
                began = time.monotonic()
                ends, wrong = await with_cancellations(
                    site, cookies, share, seed + number, "abc"[number]
                )
                seconds = time.monotonic() - began
                await site.idle()
                await settled(lambda: _here())
                return {
                    "seconds": round(seconds, 1),
                    "ends": ends,
                    "numbers": await _here(),
                    "wrong": wrong,
                    # Now, while the pool lives.
                    "connections": _connections(),
                }

            part = site.run(main)
        report["wrong"] += part.pop("wrong")
        report[f"{number} {placement}"] = part
    report["marks"] = views.marks
    report["rows"] = list(Entry.objects.values_list("key", flat=True))
    report["log"] = kept.lines
    return report


async def _here() -> dict[str, Any]:
    import gc

    from orm_site.views import figures

    gc.collect()
    return figures()


def _connections() -> list[str | None]:
    """The states of this process's connections, as the server sees them."""
    import psycopg
    from django.conf import settings

    database = settings.DATABASES["default"]
    with psycopg.connect(
        host=database["HOST"], user=database["USER"], dbname=database["NAME"], autocommit=True
    ) as connection:
        return [
            state
            for (state,) in connection.execute(
                "SELECT state FROM pg_stat_activity WHERE datname = current_database()"
                " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
                " AND application_name <> 'greenroom-tests'"
            )
        ]


async def settled(numbers: Callable[[], Awaitable[dict[str, Any]]], seconds: float = 15) -> None:
    """Wait until nothing is lent."""
    deadline = time.monotonic() + seconds
    while any((await numbers())["lent"]) and time.monotonic() < deadline:
        await asyncio.sleep(0.1)


# Both.


class Soak:
    """One run, on a PostgreSQL of `postgresql.server`."""

    def __init__(self, pg: Any, requests: int, seed: int) -> None:
        self.pg = pg
        self.requests = requests
        self.seed = seed
        self.faults: list[str] = []
        self.report: dict[str, Any] = {"requests": requests, "seed": seed}

    def run(self) -> None:
        for name in ("sockets", "inside"):
            database = f"soak_{name}"
            entry = self.pg.create(database)
            try:
                environment = environment_of(entry)
                cookies = prepare(environment)
                getattr(self, f"_{name}")(environment, cookies, database)
            finally:
                self.pg.drop(database)

    def _fault(self, wrong: Any, *said: Any) -> None:
        if wrong:
            self.faults.append(" ".join(map(str, (*said, wrong)))[:2000])

    def _sockets(self, environment: dict[str, str], cookies: list[str], database: str) -> None:
        count = self.requests // 2
        with serve("orm_site.wsgi:application", threads=2, cwd=WIRE, env=environment) as server:
            ends: Tally[str] = Tally()
            seconds = 0.0
            before: dict[str, Any] = {}
            # The first part warms everything up; the second is what shows leaks.
            for number, share in enumerate((count // 2, count - count // 2)):
                began = time.monotonic()
                more, wrong = asyncio.run(
                    over_sockets(server.address, cookies, share, self.seed + number)
                )
                seconds += time.monotonic() - began
                ends += more
                self._fault(wrong, "sockets:")
                asyncio.run(settled(lambda: numbers(server.address)))
                after = asyncio.run(numbers(server.address))
                self._leaks("sockets", before, after)
                before = after
            states = [row.state for row in self.pg.connections(database)]
            self._clean("sockets", states, asyncio.run(numbers(server.address)))
            marks = asyncio.run(numbers(server.address, "/marked/"))["marks"]
            self._judge_rows("sockets", marks, self._rows(database), database)
            self._judge_log("sockets", server)
        self.report["sockets"] = {
            "seconds": round(seconds, 1),
            "a second": round(count / seconds),
            "ends": dict(sorted(ends.items())),
            "numbers": after,
            "connections": Tally(states),
        }

    def _inside(self, environment: dict[str, str], cookies: list[str], database: str) -> None:
        ran = subprocess.run(
            [
                sys.executable,
                __file__,
                "--inside",
                str(self.requests // 2),
                "--seed",
                str(self.seed),
            ],
            env={**environment, "SOAK_COOKIES": json.dumps(cookies)},
            cwd=WIRE,
            stdout=subprocess.PIPE,
            check=True,
        )
        report = json.loads(ran.stdout)
        self._fault(report.pop("wrong"), "inside:")
        self._fault(report.pop("log"), "inside, logged:")
        rows, marks = report.pop("rows"), report.pop("marks")
        self._judge_rows("inside", marks, rows, database)
        for name, part in report.items():
            self._clean(name, part["connections"], part["numbers"])
            part["connections"] = Tally(part["connections"])
        first, _, last = report.values()
        self._leaks("inside", first["numbers"], last["numbers"])
        self.report["inside"] = report

    def _rows(self, database: str) -> list[str]:
        return [row.key for row in self.pg.execute("SELECT key FROM orm_site_entry", database)]

    def _judge_rows(self, where: str, marks: list[str], rows: list[str], database: str) -> None:
        self.report[f"rows, {where}"] = len(rows)
        self._fault([key for key, times in Tally(marks).items() if times > 1], where, "twice:")
        self._fault(sorted(set(rows) - set(marks)), where, "rows without a mark:")
        self._fault(sorted(set(marks) - set(rows)), where, "marks without a row:")
        lost = self.pg.execute(
            "SELECT name, value, count(e.id) FROM orm_site_counter c LEFT JOIN orm_site_entry e"
            " ON e.counter_id = c.id GROUP BY c.id HAVING value <> count(e.id)",
            database,
        )
        self._fault(lost, where, "counted wrongly:")

    def _clean(self, where: str, states: list[str | None], numbers: dict[str, Any]) -> None:
        self._fault([state for state in states if state != "idle"], where, "states:")
        if len(states) != sum(numbers["pools"]):
            self._fault((len(states), numbers["pools"]), where, "the server's and the pool's size:")
        self._fault(sum(numbers["lent"]), where, "still lent:")

    def _leaks(self, where: str, before: dict[str, Any], after: dict[str, Any]) -> None:
        for name in ("requests", "responses", "scopes", "wrappers", "tasks", "threads"):
            # Threads and greenlets that are idle, and clients that hang up, keep a few; of
            # thousands of requests many more would be left.
            if before and after[name] > before[name] + CLIENTS:
                self._fault((before[name], after[name]), where, "left:", name)

    def _judge_log(self, where: str, server: Server) -> None:
        lines = [line for line in server.log().splitlines() if not EXPECTED.match(line)]
        self._fault(lines[:40], where, "logged:")


def environment_of(entry: dict[str, Any], **greenroom: Any) -> dict[str, str]:
    """What the site reads, for a database."""
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "orm_site.settings",
        "SITE_DATABASES": json.dumps({"default": entry}),
        # A stall is no fault of theirs: the machine may be busy.
        "SITE_GREENROOM": json.dumps({"STALL_THRESHOLD": None, **greenroom}),
    }


def prepare(environment: dict[str, str]) -> list[str]:
    """Make the site's tables; returns the keys of sessions."""
    ran = subprocess.run(
        [sys.executable, "-m", "orm_site.prepare", PASSWORD],
        env=environment,
        cwd=WIRE,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return ran.stdout.split()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--inside", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is not None:
        # What is printed is the report, whatever logs to the standard output.
        with contextlib.redirect_stdout(sys.stderr):
            report = inside(options.inside, options.seed)
        print(json.dumps(report))
        return 0
    import postgresql

    with postgresql.server() as pg:
        soak = Soak(pg, options.requests, options.seed)
        soak.run()
    print(json.dumps(soak.report, indent=1))
    for fault in soak.faults:
        print("FAULT", fault)
    return 1 if soak.faults else 0


if __name__ == "__main__":
    sys.exit(main())
