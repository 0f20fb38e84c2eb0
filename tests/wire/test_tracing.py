"""Sentry's SDK and OpenTelemetry: each request has its own trace, whatever else is under way.

A site is served in six ways, and asked for dozens of things at a time, which wait, query, go
to threads and ask another service in turn. What the tool sends goes to a server of ours.

loop       the tool's integration of Django, on the event loop
held       the same, with a middleware that nobody knows: all views are on threads
wrapper    the tool's plain WSGI wrapper around the application
waitress   the integration, by a server whose threads keep their context
gthread    the integration of Django's own application, by gunicorn's gthread
shared     as `loop`, but all requests share a context: here the checks must fail
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

import servers
from postgresql import PostgreSQL
from serving import Server, serve

from .collector import Collected, Span, collector

HERE = Path(__file__).resolve().parent
TOOLS = ("sentry", "opentelemetry")
WAYS = {
    "sentry": ("loop", "held", "wrapper", "waitress", "gthread", "shared"),
    # It has no part of ours that knows a thread, and the checks are the same.
    "opentelemetry": ("loop", "held", "wrapper", "gthread"),
}
# Those of a tool in which our application is used, and nothing is broken.
OURS = [(tool, way) for tool in TOOLS for way in WAYS[tool] if way not in ("gthread", "shared")]
# Those where the server sees that a client has left, and takes more requests at a time.
WORKER = ("loop", "held", "wrapper", "shared")
TIMES = 4

pytestmark = [pytest.mark.once, pytest.mark.timeout(180)]

# What the spans of a view are called, and what is above them.
WORK = {
    ("sleep", "server"): 1,
    ("query", "sleep"): 1,
    ("thread", "server"): 1,
    ("child", "server"): 2,
    ("fetch", "server"): 1,
}
PLAIN = {
    ("sleep", "server"): 1,
    ("query", "sleep"): 1,
    ("thread", "server"): 1,
    ("fetch", "server"): 1,
}
WAIT = {("sleep", "server"): 1}
# The client leaves while it sleeps, or a moment before.
LEFT = {("fetch", "server"): 1}


@dataclass(frozen=True)
class Kind:
    """A view: its status, its spans, whether its errors are reported."""

    route: str
    status: int
    spans: dict[tuple[str, str], int]
    error: bool = False
    says_who: bool = True


KINDS = {
    "coroutine": Kind("coroutine/{}/", 200, WORK),
    "plain": Kind("plain/{}/", 200, PLAIN),
    "fails": Kind("fails/{}/", 500, WORK, error=True),
    "failsplain": Kind("fails-plain/{}/", 500, PLAIN, error=True),
    "missing": Kind("missing/{}/", 404, WORK),
    "streams": Kind("streams/{}/", 200, WORK),
    "breaks": Kind("streams/{}/", 200, WORK, error=True),
    "member": Kind("member/{}/", 200, WAIT, says_who=False),
    "waits": Kind("waits/{}/", 0, LEFT),
    "quiet": Kind("quiet/", 500, {}, error=True, says_who=False),
    "quietplain": Kind("quiet-plain/", 500, {}, error=True, says_who=False),
}


@dataclass
class Asked:
    """A request of ours, with the trace that its client began."""

    kind: str
    token: str
    trace: str = field(default_factory=lambda: secrets.token_hex(16))
    parent: str = field(default_factory=lambda: secrets.token_hex(8))
    # That of the answer; 0 if it didn't come, or was cut off.
    status: int | None = None

    @property
    def path(self) -> str:
        path = f"/{KINDS[self.kind].route.format(self.token)}"
        return f"{path}?fail" if self.kind == "breaks" else path

    @property
    def headers(self) -> dict[str, str]:
        return {
            "sentry-trace": f"{self.trace}-{self.parent}-1",
            "traceparent": f"00-{self.trace}-{self.parent}-01",
        }


@dataclass
class Run:
    """What came of a site that was served in one way."""

    tool: str
    way: str
    asked: list[Asked]
    collected: Collected
    spans: dict[str, list[Span]]
    log: str
    sessions: dict[str, str]


@dataclass(frozen=True)
class Site:
    """The database of all of them, and who is logged in, by the key of the session."""

    database: dict[str, Any]
    sessions: dict[str, str]


@pytest.fixture(scope="module")
def traced_site(pg: PostgreSQL) -> Iterator[Site]:
    entry = pg.create("wire_traced")
    names = [f"member{index}t" for index in range(TIMES)]
    ran = subprocess.run(
        [sys.executable, "-m", "traced_site.prepare", *names],
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "traced_site.settings",
            "SITE_DATABASES": json.dumps({"default": entry}),
        },
        cwd=HERE,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    )
    yield Site(entry, dict(zip(names, ran.stdout.split(), strict=True)))
    pg.drop("wire_traced")


_runs: dict[str, dict[str, Run]] = {}


@pytest.fixture
def runs(traced_site: Site) -> Callable[[str], dict[str, Run]]:
    """All ways of a tool, by name. They are run once, at the same time."""

    def runs(tool: str) -> dict[str, Run]:
        if tool not in _runs:
            ways = WAYS[tool]
            with ThreadPoolExecutor(len(ways)) as pool:
                made = pool.map(lambda way: run(traced_site, tool, way), ways)
                _runs[tool] = dict(zip(ways, made, strict=True))
        return _runs[tool]

    return runs


def run(site: Site, tool: str, way: str) -> Run:
    asked = [
        Asked(kind, f"{kind}{index}t")
        for index in range(TIMES)
        for kind in KINDS
        if not kind.startswith("quiet") and (kind != "waits" or way in WORKER)
    ]
    with collector() as collected, start(site, tool, way, collected) as server:
        asyncio.run(ask_all(server.url, asked, site.sessions, collected))
        quiet = [Asked(kind, "") for kind in ("quiet", "quietplain") for _ in range(TIMES)]
        asyncio.run(ask_all(server.url, quiet, {}, collected))
        pipelined = [Asked("coroutine", "coroutine99t"), Asked("quiet", "")]
        if way in WORKER:
            pipeline(server, pipelined)
            asked += pipelined
        asked += quiet
        collected.wait(lambda: complete(tool, way, asked, collected), 3 if way == "shared" else 30)
        server.stop()
    return Run(tool, way, asked, collected, by_trace(tool, collected), server.log(), site.sessions)


def complete(tool: str, way: str, asked: list[Asked], collected: Collected) -> bool:
    """Whether as much was sent as will be; the end of a process doesn't wait for all of it."""
    kept = [each.kind for each in asked if is_kept(tool, way, each.kind)]
    if tool == "sentry":
        errors = sum(KINDS[kind].error for kind in kept)
        return len(collected.transactions) >= len(kept) and len(collected.errors) >= errors
    return sum(span.kind == "server" for span in list(collected.spans)) >= len(kept)


def is_kept(tool: str, way: str, kind: str) -> bool:
    """Whether the tool tells of such a request, all of it; docs/tools.md says when it doesn't."""
    return (tool, way, kind) not in (
        ("opentelemetry", "wrapper", "waits"),
        # Of an error in a stream it forgets whose it was.
        ("sentry", "gthread", "breaks"),
    )


def start(site: Site, tool: str, way: str, collected: Collected) -> AbstractContextManager[Server]:
    env = {
        "TRACED": tool,
        "TRACED_HOW": "wrapper" if way == "wrapper" else "integration",
        "SITE_DATABASES": json.dumps({"default": site.database}),
        "SITE_DSN": collected.dsn,
        "OTEL_EXPORTER_OTLP_ENDPOINT": collected.otlp,
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "SITE_UPSTREAM": collected.upstream,
        "DJANGO_SETTINGS_MODULE": "traced_site.settings",
    }
    if way not in WORKER:
        module = "stock" if way == "gthread" else "wsgi"
        return servers.start(way, "traced_site", cwd=HERE, env=env, module=module)
    if way == "held":
        env["SITE_MIDDLEWARE"] = json.dumps(["traced_site.foreign.middleware"])
    if way == "loop":
        env["SITE_LOOKS_FOR_BLOCKING"] = "1"
    if way == "shared":
        env["SITE_SHARES_A_CONTEXT"] = "1"
    return serve("traced_site.wsgi:application", threads=4, cwd=HERE, env=env)


async def ask_all(
    url: str, asked: list[Asked], sessions: dict[str, str], collected: Collected
) -> None:
    """All at once, on connections that are kept."""

    async def ask(each: Asked) -> None:
        headers = dict(each.headers)
        if each.token in sessions:
            headers["Cookie"] = f"sessionid={sessions[each.token]}"
        if each.kind == "waits":
            leaving = asyncio.create_task(client.get(url + each.path, headers=headers))
            while each.token not in collected.asked:
                await asyncio.sleep(0.02)
            leaving.cancel()
            return
        try:
            answer = await client.get(url + each.path, headers=headers)
            each.status = answer.status_code
        except httpx.RemoteProtocolError:
            each.status = 0

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(timeout=60, limits=limits, trust_env=False) as client:
        await asyncio.gather(*map(ask, asked))


def pipeline(server: Server, asked: list[Asked]) -> None:
    """One after the other on a connection, and sent at once."""
    lines = []
    for each in asked:
        fields = "".join(f"{name}: {value}\r\n" for name, value in each.headers.items())
        last = "Connection: close\r\n" if each is asked[-1] else ""
        lines.append(f"GET {each.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{fields}{last}\r\n")
    with server.connect() as sock:
        sock.sendall("".join(lines).encode())
        received = b""
        while data := sock.recv(65536):
            received += data
    assert received.count(b"HTTP/1.1 ") == len(asked)


# What the tools send, in one form.


def by_trace(tool: str, collected: Collected) -> dict[str, list[Span]]:
    found: dict[str, list[Span]] = {}
    spans = collected.spans if tool == "opentelemetry" else of_sentry(collected.transactions)
    for span in spans:
        found.setdefault(span.trace, []).append(span)
    return found


def of_sentry(transactions: list[dict[str, Any]]) -> Iterator[Span]:
    for each in transactions:
        trace = each["contexts"]["trace"]
        yield Span(
            each["transaction"],
            trace["span_id"],
            trace["parent_span_id"],
            trace["trace_id"],
            "server",
            trace.get("status", ""),
            {"token": each.get("tags", {}).get("token"), "user": each.get("user", {})},
        )
        for span in each["spans"]:
            yield Span(
                span.get("description", ""),
                span["span_id"],
                span["parent_span_id"],
                span["trace_id"],
                span["op"],
            )


def label(span: Span) -> str:
    """What a span is, in either tool; empty for what isn't looked at."""
    if span.kind == "server":
        return "server"
    if span.kind in ("http.client", "client") and span.name.startswith("GET"):
        return "fetch"
    if span.name.startswith("SELECT"):
        return "query"
    if span.kind in ("test", "internal"):
        return span.name.partition(" ")[0]
    # Sentry's of receivers, connecting, and tasks; and of its own sending, by a thread that it
    # started for the first request with something to send.
    return ""


def shape(spans: list[Span]) -> Counter[tuple[str, str]]:
    """How many there are of each, by what they are beneath: in the end, all by the server's."""
    ids = {span.id: span for span in spans}
    found: Counter[tuple[str, str]] = Counter()
    for span in spans:
        if span.kind == "server":
            continue
        above = ids[span.parent]
        while not label(above):
            above = ids[above.parent]
        if label(span):
            found[label(span), label(above)] += 1
        while above.kind != "server":
            above = ids[above.parent]
    return found


def tokens(text: str) -> set[str]:
    return set(re.findall(r"\b[a-z]+\d+t\b", text))


# The checks.


def the_server_span(run: Run, each: Asked) -> Span:
    found = [span for span in run.spans.get(each.trace, []) if span.kind == "server"]
    assert len(found) == 1, f"{len(found)} of {each}"
    return found[0]


def check_request(run: Run, each: Asked) -> None:
    """One trace, with its own name, status, user and spans, and nothing of another's."""
    kind = KINDS[each.kind]
    spans = run.spans.get(each.trace, [])
    root = the_server_span(run, each)
    assert root.parent == each.parent
    assert each.status in (None, status_of(run, each))
    assert root.name in names_of(run, each)
    if run.tool == "sentry":
        assert root.status in sentry_status(run, each)
        user = root.attributes["user"].get("username" if each.kind == "member" else "id")
        assert user == (each.token if kind.says_who or each.kind == "member" else None)
    elif not (run.way == "gthread" and each.kind == "breaks"):
        assert root.attributes.get("http.status_code") == (kind.status or 499)
    assert root.attributes.get("token") == (each.token if kind.says_who else None)
    said = {text for span in spans for text in (span.name, *span.events)}
    assert set().union(*map(tokens, said)) <= {each.token}
    found = shape(spans)
    if each.kind == "waits":
        found.pop(("sleep", "server"), None)
    if nests(run):
        assert found == kind.spans
    else:
        assert Counter(first for first, _ in found.elements()) == Counter(
            first for first, _ in Counter(kind.spans).elements()
        )
    if ("fetch", "server") in kind.spans:
        headers = run.collected.asked[each.token]
        name = "sentry-trace" if run.tool == "sentry" else "traceparent"
        trace, parent = headers[name].removeprefix("00-").split("-")[:2]
        assert trace == each.trace
        assert parent in {span.id for span in spans if label(span) == "fetch"}


def status_of(run: Run, each: Asked) -> int:
    if each.kind == "breaks":
        # Django makes a list of a coroutine's stream, and fails before the answer begins.
        return 500 if run.way == "gthread" else 0
    return KINDS[each.kind].status


def nests(run: Run) -> bool:
    """Sentry keeps tasks apart only where it can be told of the loop, which lasts here."""
    return not (run.tool == "sentry" and run.way == "gthread")


def names_of(run: Run, each: Asked) -> tuple[str, ...]:
    route = KINDS[each.kind].route.partition("?")[0]
    if run.tool == "sentry":
        return (f"/{route.format('{token}')}",)
    if run.way == "wrapper":
        return (f"GET /{route.format(each.token)}",)
    return (f"GET {route.format('<token>')}",)


def sentry_status(run: Run, each: Asked) -> tuple[str, ...]:
    if each.kind == "waits":
        # To the wrapper a cancellation is an error.
        return ("cancelled",) if run.way != "wrapper" else ("internal_error",)
    return ({200: "ok", 404: "not_found", 500: "internal_error"}[KINDS[each.kind].status],)


def check_error(run: Run, each: Asked) -> None:
    """Of a request that failed there is one report, which says what led to it."""
    if run.tool == "opentelemetry":
        events = the_server_span(run, each).events
        # Its integration records what a view raises, the wrapper what comes out of the site.
        raises = "raises" if run.way != "wrapper" else "breaks"
        expected = {
            "raises": each.kind in ("missing", "fails", "failsplain", "quiet", "quietplain"),
            "breaks": each.kind == "breaks",
        }[raises]
        assert events.count("exception") == expected
        if each.token and KINDS[each.kind].says_who:
            assert events[0] == f"begun {each.token}"
        return
    errors = [
        error
        for error in run.collected.errors
        if error["contexts"]["trace"]["trace_id"] == each.trace
    ]
    fails = KINDS[each.kind].error or (each.kind == "waits" and run.way == "wrapper")
    assert len(errors) == fails
    for error in errors:
        own = {each.token} if KINDS[each.kind].says_who else set()
        assert {error.get("tags", {}).get("token")} == (own or {None})
        assert {error.get("user", {}).get("id")} == (own or {None})
        if each.kind != "breaks":
            assert error["transaction"] in names_of(run, each)
        crumbs = [str(crumb.get("message", "")) for crumb in error["breadcrumbs"]["values"]]
        assert set().union(*map(tokens, crumbs)) == own
        if ("thread", "server") in KINDS[each.kind].spans:
            for word in ("begun", "thread", "ended"):
                assert f"{word} {each.token}" in crumbs


def checked(run: Run) -> list[str]:
    """The requests of which something is wrong."""
    wrong = []
    for each in run.asked:
        if not is_kept(run.tool, run.way, each.kind):
            continue
        try:
            check_request(run, each)
            check_error(run, each)
        except (AssertionError, KeyError) as exc:
            wrong.append(f"{each.kind} {each.token}: {exc!r}")
    return wrong


@pytest.mark.parametrize(("tool", "way"), OURS)
def test_each_request_has_a_trace_of_its_own(runs: Any, tool: str, way: str) -> None:
    run = runs(tool)[way]
    assert checked(run) == []


@pytest.mark.parametrize("tool", TOOLS)
def test_what_is_expected_is_so_under_gthread(runs: Any, tool: str) -> None:
    run = runs(tool)["gthread"]
    assert checked(run) == []


def test_where_requests_share_a_context_it_is_noticed(runs: Any) -> None:
    run = runs("sentry")["shared"]
    assert len(checked(run)) > len(run.asked) / 2


def mix_users(one: list[Span], other: list[Span]) -> None:
    one[0].attributes, other[0].attributes = other[0].attributes, one[0].attributes


def mix_spans(one: list[Span], other: list[Span]) -> None:
    """Each with its parent."""
    moved = next(span for span in one if label(span) == "sleep")
    gone = next(span for span in other if label(span) == "sleep")
    moved.name, gone.name = gone.name, moved.name


def mix_parents(one: list[Span], other: list[Span]) -> None:
    next(span for span in one if label(span) == "query").parent = one[0].id


def lose_a_span(one: list[Span], other: list[Span]) -> None:
    one.remove(next(span for span in one if label(span) == "child"))


def repeat_a_transaction(one: list[Span], other: list[Span]) -> None:
    one.append(one[0])


@pytest.mark.parametrize(
    "mix", [mix_users, mix_spans, mix_parents, lose_a_span, repeat_a_transaction]
)
@pytest.mark.parametrize("tool", TOOLS)
def test_a_little_that_is_mixed_is_noticed(
    runs: Any, tool: str, mix: Callable[[list[Span], list[Span]], None]
) -> None:
    run = runs(tool)["loop"]
    one, other = (each for each in run.asked if each.token in ("coroutine0t", "coroutine1t"))
    spans = deepcopy(run.spans)
    for each in (one, other):
        spans[each.trace].sort(key=lambda span: span.kind != "server")
    mix(spans[one.trace], spans[other.trace])
    mixed = replace(run, spans=spans)
    assert any(one.token in wrong for wrong in checked(mixed))


@pytest.mark.parametrize(("tool", "way"), OURS)
def test_there_is_nothing_but_what_was_asked_for(runs: Any, tool: str, way: str) -> None:
    run = runs(tool)[way]
    traces = {each.trace for each in run.asked}
    found = [span for spans in run.spans.values() for span in spans]
    assert {span.trace for span in found if span.kind == "server"} <= traces
    # At the start the worker looks whether the database waits on the loop.
    assert {span.name for span in found if span.trace not in traces} <= {"SELECT"}
    assert {error["contexts"]["trace"]["trace_id"] for error in run.collected.errors} <= traces


@pytest.mark.parametrize(("tool", "way"), OURS)
def test_the_tool_complains_of_nothing(runs: Any, tool: str, way: str) -> None:
    log = runs(tool)[way].log
    assert "detach" not in log
    assert not re.findall(r"^(?:WARNING|ERROR) (?:opentelemetry|sentry).*", log, re.MULTILINE)


@pytest.mark.parametrize("tool", TOOLS)
def test_views_are_where_they_should_be(runs: Any, tool: str) -> None:
    """The integrations hold no view on a thread."""
    said = {
        way: re.findall(r"coroutine views: (.*?);", runs(tool)[way].log) for way in ("loop", "held")
    }
    assert said["loop"] == ["7 on the loop"]
    (held,) = said["held"]
    assert held == (
        "7 on threads (held there by: the middleware traced_site.foreign.middleware is not known "
        "to be loop-safe (mark it @loop_safe if it is))"
    )


@pytest.mark.parametrize("tool", TOOLS)
def test_the_tool_blocks_no_loop(runs: Any, tool: str) -> None:
    """Nor does it wait for a lock, on the loop: what it sends goes to a thread of its own."""
    log = runs(tool)["loop"].log
    first, *blocked = re.findall(r"^BLOCKED in (.*)", log, re.MULTILINE)
    assert first == "time.sleep"
    # The report of an error on the loop, by the server's log, looks at files of its source.
    assert set(blocked) <= ({"os.path.abspath"} if tool == "sentry" else set()), log
