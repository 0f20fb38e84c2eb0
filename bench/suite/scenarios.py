"""What is measured: each scenario, and the rows of its table.

A row is a peer with the form of the view that suits it, coroutine or plain. gevent runs the
plain form, since coroutines fail there, and counts among those that run coroutines. Where
requests wait, servers with threads run the plain form, which is faster there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .peers import LIMIT, OURS, PEERS

# How connections to the database are kept. ASGI servers would leak one a request with
# CONN_MAX_AGE; Django's documentation advises the driver's pool there.
KEPT = {"CONN_MAX_AGE": 60}
POOL = {"CONN_MAX_AGE": 0, "OPTIONS": {"pool": {"min_size": 4, "max_size": 20}}}
CLOSED = {"CONN_MAX_AGE": 0}


@dataclass(frozen=True)
class Row:
    """`threads`: not swept, but this many. A `reference` is no peer that we compete with."""

    peer: str
    form: str = "coroutine"
    variant: str = ""
    threads: int | None = None
    database: Mapping[str, object] = field(default_factory=dict)
    greenroom: Mapping[str, object] = field(default_factory=dict)
    reference: bool = False

    @property
    def key(self) -> str:
        return f"{self.peer}:{self.form}{f':{self.variant}' if self.variant else ''}"

    @property
    def title(self) -> str:
        if self.peer == LIMIT:
            return PEERS[LIMIT].title
        form = {"coroutine": "coroutine view", "plain": "plain view", "adrf": "adrf's view"}
        parts = [PEERS[self.peer].title]
        if self.peer != "bolt":
            parts.append(form[self.form])
        return ", ".join([*parts, self.variant] if self.variant else parts)


@dataclass(frozen=True)
class Scenario:
    """`measure` names a function of `measures`; `metric` is what the table is about.

    `body` is how the answer begins, or where it is long, what is in it.
    """

    title: str
    path: str
    rows: tuple[Row, ...]
    body: str = "Hello world!"
    measure: str = "rate"
    metric: str = "rate"
    connections: int = 64
    seconds: float = 5
    middleware: str = "seven"
    needs: tuple[str, ...] = ()
    # Loads the site's API, with Django REST framework.
    api: bool = False
    # Sends the cookie of a session.
    cookie: bool = False
    script: str | None = None
    # Requests wait: it is warmed with few, so that the memory at rest can be told.
    waits: bool = False
    # Another path that is asked meanwhile, its connections and script.
    beside: tuple[str, int, str | None] | None = None
    workers: int = 1
    # A number of clients, or bytes, for clients other than wrk.
    size: int = 0
    # Of `make bench-quick`.
    quick: bool = False
    # Left out unless it is named.
    by_hand: bool = False


def _rows(*peers: str, **more: object) -> tuple[Row, ...]:
    return tuple(replace(row, **more) for peer in peers for row in [Row(peer)])  # type: ignore[arg-type]


# Our coroutine views take no thread, so that there is nothing to sweep.
_OURS = Row(OURS, threads=4)
_GEVENT = Row("gevent", "plain")
_LIMIT = Row(LIMIT, "plain", reference=True)
_BOLT = Row("bolt", reference=True)

_WSGI = ("gthread", "granian-wsgi", "uwsgi")
_ASGI = ("uvicorn", "gunicorn-asgi", "granian-asgi", "hypercorn", "daphne")

_COROUTINES = (_OURS, *_rows(*_ASGI), *_rows("sync", *_WSGI), _GEVENT)
_MAIN_COROUTINES = (_OURS, *_rows("uvicorn", "granian-asgi"), *_rows(*_WSGI), _GEVENT)
_PLAIN = (*_rows(OURS, "sync", *_WSGI, "gevent", *_ASGI, form="plain"),)
_MAIN_PLAIN = _rows(OURS, *_WSGI, "gevent", "uvicorn", form="plain")

_WAITING = (
    _OURS,
    _GEVENT,
    *_rows(*_WSGI, form="plain"),
    *_rows("uvicorn", "granian-asgi"),
)

_QUERYING = (
    replace(_OURS, database=KEPT),
    Row(OURS, "plain", database=KEPT),
    Row("uvicorn", variant="pool", database=POOL),
    Row("uvicorn", variant="no pool", database=CLOSED),
    Row("gunicorn-asgi", variant="pool", database=POOL),
    Row("granian-asgi", variant="pool", database=POOL),
    *(Row(peer, database=KEPT) for peer in _WSGI),
    Row("gevent", "plain", database=KEPT),
    *(Row(peer, "plain", database=KEPT) for peer in _WSGI),
    replace(_LIMIT, database=KEPT),
)


def _hello(form: str, title: str, rows: tuple[Row, ...], middleware: str = "seven") -> Scenario:
    return Scenario(
        f"{form} hello, {title}",
        "/{form}/hello/",
        rows,
        middleware=middleware,
        quick=middleware == "seven",
    )


def _sleep(milliseconds: int, connections: int, seconds: float, rows: tuple[Row, ...]) -> Scenario:
    said = f"{milliseconds} ms" if milliseconds < 1000 else "1 s"
    return Scenario(
        f"sleep {said}, {connections:,} connections",
        f"/{{form}}/sleep/{milliseconds}/",
        rows,
        connections=connections,
        seconds=seconds,
        waits=True,
    )


def _query(count: int) -> Scenario:
    return Scenario(
        f"{count} ORM quer{'y' if count == 1 else 'ies'} on PostgreSQL, 16 connections",
        f"/{{form}}/query/{count}/",
        _QUERYING,
        body=f"Article {count}",
        connections=16,
        needs=("postgresql",),
        quick=count == 1,
    )


_SESSION = (
    replace(_OURS, database=KEPT),
    Row("uvicorn", variant="pool", database=POOL),
    Row("granian-asgi", variant="pool", database=POOL),
    *(Row(peer, database=KEPT) for peer in _WSGI),
    Row("gevent", "plain", database=KEPT),
)

# What has to receive and to send much: threads are no matter.
_MOVING = (
    _OURS,
    Row(OURS, "plain", threads=8),
    *(Row(peer, "plain", threads=8) for peer in _WSGI),
    _GEVENT,
)
_EIGHT = (
    replace(_OURS, threads=8),
    Row("gthread", threads=8),
    Row("granian-wsgi", threads=8),
    Row("uvicorn"),
    Row("granian-asgi"),
)

SCENARIOS: dict[str, Scenario] = {
    "hello-coroutine": _hello(
        "coroutine", "seven middlewares", (*_COROUTINES, _BOLT, _LIMIT), "seven"
    ),
    "hello-plain": _hello("plain", "seven middlewares", (*_PLAIN, _LIMIT), "seven"),
    "hello-coroutine-none": _hello(
        "coroutine", "no middleware", (*_MAIN_COROUTINES, _LIMIT), "none"
    ),
    "hello-plain-none": _hello("plain", "no middleware", (*_MAIN_PLAIN, _LIMIT), "none"),
    "hello-coroutine-third": _hello(
        "coroutine",
        "a third-party sync middleware beneath the seven",
        (Row(OURS), *_MAIN_COROUTINES[1:]),
        "third",
    ),
    "hello-plain-third": _hello(
        "plain", "a third-party sync middleware beneath the seven", _MAIN_PLAIN, "third"
    ),
    "sleep-50ms-64": _sleep(50, 64, 5, _WAITING),
    "sleep-50ms-256": _sleep(50, 256, 5, _WAITING),
    # wrk counts what was answered when its time is over, so the second that the last
    # requests wait is lost: 1/30 of the figure.
    "sleep-1s-1000": replace(
        _sleep(
            1000,
            1000,
            30,
            (
                *_WAITING,
                Row("gthread", "plain", variant="fixed", threads=256),
                *_rows("gunicorn-asgi", "hypercorn"),
            ),
        ),
        quick=True,
    ),
    "sleep-1s-5000": _sleep(1000, 5000, 30, (_OURS, _GEVENT, *_rows("uvicorn", "granian-asgi"))),
    "sleep-1s-1000-third": replace(
        _sleep(
            1000,
            1000,
            30,
            (
                # All of them wait for one of 40 threads: 25 s, and more of some.
                Row(
                    OURS,
                    variant="MAX_PARKED 40",
                    threads=8,
                    greenroom={"MAX_PARKED": 40, "QUEUE_TIMEOUT": 60},
                ),
                Row(OURS, variant="MAX_PARKED 1,000", threads=8, greenroom={"MAX_PARKED": 1000}),
                _GEVENT,
                Row("gthread", "plain", threads=1000),
                Row("uvicorn"),
            ),
        ),
        title="sleep 1 s, 1,000 connections, beneath a third-party sync middleware",
        middleware="third",
    ),
    "queries-1": _query(1),
    "queries-20": _query(20),
    "page-coroutine": Scenario(
        "a template page with session and user, coroutine",
        "/{form}/page/",
        _SESSION,
        body="Hello Ada Lovelace, you were here 7 times.",
        connections=16,
        needs=("postgresql",),
        cookie=True,
    ),
    "page-plain": Scenario(
        "a template page with session and user, plain",
        "/{form}/page/",
        tuple(Row(peer, "plain", database=KEPT) for peer in (OURS, *_WSGI, "gevent")),
        body="Hello Ada Lovelace, you were here 7 times.",
        connections=16,
        needs=("postgresql",),
        cookie=True,
    ),
    "list": Scenario(
        "Django REST framework: a list of 20",
        "/{form}/list/",
        (
            replace(_OURS, database=KEPT),
            Row(OURS, "plain", database=KEPT),
            Row("uvicorn", "adrf", variant="pool", database=POOL),
            *(Row(peer, "plain", database=KEPT) for peer in (*_WSGI, "gevent")),
        ),
        body='"title":"Article 20"',
        connections=16,
        needs=("postgresql",),
        api=True,
    ),
    "events": Scenario(
        "server-sent events to 5,000 clients, one tick a second",
        "/{form}/ticks/",
        (_OURS, _GEVENT, *_rows("uvicorn", "gunicorn-asgi", "granian-asgi", "hypercorn")),
        body="",
        measure="ticks",
        metric="per_client",
        connections=5000,
        seconds=15,
        size=5000,
    ),
    "download-file": Scenario(
        "100 MB down: a file",
        "/{form}/file/",
        _MOVING,
        body="",
        measure="download",
        metric="mb_per_s",
        size=100_000_000,
    ),
    "download-stream": Scenario(
        "100 MB down: a stream of blocks of 64 KiB",
        "/{form}/stream/",
        (*_MOVING, *_rows("uvicorn", "gunicorn-asgi", "granian-asgi", "hypercorn")),
        body="",
        measure="download",
        metric="mb_per_s",
        size=100_000_000,
    ),
    "upload": Scenario(
        "100 MB up: a form with a file",
        "/{form}/upload/",
        (*_MOVING, *_rows("uvicorn", "gunicorn-asgi", "granian-asgi", "hypercorn")),
        body="",
        measure="upload",
        metric="mb_per_s",
        size=100_000_000,
    ),
    "mixed": Scenario(
        "mixed load: coroutine views while plain ones that take 200 ms fill all of 8 threads",
        "/coroutine/hello/",
        _EIGHT,
        measure="beside",
        metric="p99",
        connections=8,
        seconds=10,
        beside=("/plain/sleep/200/", 16, None),
        quick=True,
    ),
    "beside-rendering": Scenario(
        "light coroutine views beside one that renders for 100 ms, twice a second",
        "/coroutine/hello/",
        _EIGHT,
        measure="beside",
        metric="p99",
        connections=8,
        seconds=10,
        beside=("/coroutine/heavy/", 1, "pause.lua"),
    ),
    "redis": Scenario(
        "session and throttle in Redis, Django REST framework, 16 connections",
        "/{form}/limited/",
        (
            _OURS,
            Row(OURS, "plain"),
            *_rows("gthread", "granian-wsgi", "gevent", form="plain"),
            # What awaits a handler without us.
            *_rows("uvicorn", "gthread", form="adrf"),
        ),
        body='{"visits":7}',
        connections=16,
        needs=("redis",),
        api=True,
        cookie=True,
        script="addresses.lua",
    ),
    "workers": Scenario(
        "four workers, 256 connections: the busiest of them",
        "/coroutine/hello/",
        (_OURS, Row("gthread", threads=64)),
        measure="balance",
        metric="busiest",
        connections=256,
        workers=4,
    ),
    "tls": Scenario(
        "coroutine hello through nginx with TLS",
        "/{form}/hello/",
        (_OURS, *_rows("uvicorn", "granian-asgi"), *_rows(*_WSGI), _GEVENT),
        measure="through_nginx",
        needs=("nginx",),
    ),
    "start": Scenario(
        "start: memory after 200 requests, and the time until the first answer",
        "/{form}/hello/",
        (
            replace(_OURS, threads=8),
            *(
                Row(peer, threads=8 if PEERS[peer].swept else None)
                for peer in ("sync", *_WSGI, *_ASGI)
            ),
            _GEVENT,
        ),
        measure="start",
        metric="rss",
        connections=8,
        seconds=1,
        quick=True,
    ),
    "hour": Scenario(
        "one hour of mixed load",
        "/coroutine/hello/",
        (replace(_OURS, threads=8, database=KEPT),),
        measure="hour",
        metric="slope",
        seconds=3600,
        needs=("postgresql",),
        cookie=True,
        by_hand=True,
    ),
}
