"""Other servers' tests of HTTP, against the worker.

`make conformance SUITES=wire` runs all; `make test` leaves out waitress's over Unix sockets.
GREENROOM_CONFORMANCE_SEED repeats the random pieces of a run.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from conformance import wire
from greenroom.worker import REFUSED
from serving import Server, serve

SUITES = os.environ.get("GREENROOM_CONFORMANCE_SUITES", "").split()
SEED = os.environ.get("GREENROOM_CONFORMANCE_SEED") or str(random.SystemRandom().randrange(1 << 32))

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        bool(SUITES) and not {"all", "wire"}.intersection(SUITES),
        reason="other suites were asked for",
    ),
]


class Servers:
    """A server for each set of settings, begun when it is first asked for."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._servers: dict[str, Server] = {}

    def get(self, settings: dict[str, Any]) -> Server:
        config = "".join(f"{name} = {value!r}\n" for name, value in sorted(settings.items()))
        if config not in self._servers:
            server = serve("wire_apps:echo", cwd=wire.HERE, extra_config=config)
            self._servers[config] = self._stack.enter_context(server)
        return self._servers[config]

    def calls(self) -> int:
        """How often the application was called, on all of them."""
        found = 0
        for server in self._servers.values():
            # Without fields, for there are servers that take none.
            got = asyncio.run(
                wire.exchange(server.address, [b"GET /how-many-calls HTTP/1.0\r\n\r\n"], 1)
            )
            found += int(got.answers[0].body)
        return found

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def servers() -> Iterator[Servers]:
    servers = Servers()
    yield servers
    servers.close()


@pytest.mark.parametrize("kind", ["valid", "invalid"])
def test_gunicorns_requests(servers: Servers, kind: str) -> None:
    answered = check(servers, kind, "gunicorn", lambda case: True, None)
    # No request reached the application but those that were answered.
    assert servers.calls() == answered


def test_the_validator_has_no_objection_to_gunicorns_requests() -> None:
    """The standard library's, around an application that gets all that needs no setting."""
    with serve("wire_apps:validated", cwd=wire.HERE, threads=4) as server:
        listed = wire.differences("gunicorn").keys() - wire.differences("validator").keys()
        assert check(
            server,
            "valid",
            "validator",
            lambda case: not case.settings and case.name not in listed,
            "whole",
        )
        server.stop()
        assert server.log().count("AssertionError") == 2 * len(wire.differences("validator"))


def check(
    servers: Servers | Server,
    kind: str,
    suite: str,
    wanted: Callable[[wire.Case], bool],
    only: str | None,
) -> int:
    """Send the cases of a kind; return how often the application answered."""
    cases = [case for case in wire.cases(kind) if wanted(case)]
    known = {name: each for name, each in wire.differences(suite).items() if name.startswith(kind)}
    problems: list[str] = [
        f"{name} is in {wire.DIFFERENCES.name}, but there is no such case"
        for name in known.keys() - {case.name for case in cases}
    ]
    answered = 0

    async def one(
        case: wire.Case, way: str, pieces: list[bytes], host: bool, address: Any, limit: Any
    ) -> None:
        nonlocal answered
        check = case if host else case.without_host()
        difference = known.get(case.name)
        # It isn't complete: no answer is waited for.
        wanted = 0 if difference and difference.outcome == "closed" else check.wanted
        async with limit:
            got = await wire.exchange(address, pieces, wanted)
        answered += sum("x-echo" in answer.headers for answer in got.answers)
        outcome, problem = wire.problem(check, got, host=host)
        if difference is not None:
            if not problem and check is case:
                problem = f"is as expected now: remove it from {wire.DIFFERENCES.name}"
            elif outcome == difference.outcome:
                problem = ""
        if problem:
            where = f"{case.name}, {way}{', with a Host' if host else ''}"
            problems.append(f"{where}: {outcome}: {problem}")

    async def main() -> None:
        limit = asyncio.Semaphore(wire.CONNECTIONS)
        tasks = []
        for case in cases:
            refused = sorted(REFUSED.keys() & case.settings.keys())
            if refused:
                difference = known.get(case.name)
                if difference is None or difference.outcome != "setting":
                    problems.append(f"{case.name}: the setting {refused} is refused")
                continue
            server = servers if isinstance(servers, Server) else servers.get(case.settings)
            for data in {case.data, case.with_host()}:
                host = data != case.data
                tasks += [
                    one(case, way, pieces, host, server.address, limit)
                    for way, pieces in wire.splits(data, f"{SEED} {case.name}").items()
                    if only in (None, way)
                ]
        print(f"\n{len(cases)} {kind} requests, {len(tasks)} connections, seed {SEED}")
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert not problems, f"{len(problems)} with GREENROOM_CONFORMANCE_SEED={SEED}:\n" + "\n".join(
        sorted(problems)
    )
    return answered


def test_waitresss_functional_tests(tmp_path: Path) -> None:
    sockets = ["Tcp", "Unix"] if SUITES else ["Tcp"]
    report = wire.waitress(sockets, tmp_path, processes=4)
    known = wire.differences("waitress")
    cases, problems = set(), []
    for name, outcome in sorted(report["outcomes"].items()):
        case = re.sub(r"^(Tcp|Unix)", "", name)
        cases.add(case)
        if outcome != "success" and case not in known:
            problems.append(f"{name}: {outcome}\n{report['details'].get(name, '')}")
        elif case in known and outcome != known[case].outcome:
            problems.append(f"{name}: {outcome}: remove it from {wire.DIFFERENCES.name}")
    problems += [f"{case}: waitress has no such test" for case in known.keys() - cases]
    print(f"\n{len(report['outcomes'])} tests of waitress's, {len(known)} differ")
    assert not problems, f"{len(problems)} differences:\n" + "\n".join(problems)
    assert len(report["outcomes"]) > 60 * len(sockets)
