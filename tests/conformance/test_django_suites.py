"""Django's own tests, in a bridge on the event loop, come out as they do without.

GREENROOM_CONFORMANCE_SUITES names others than those of `suites.SUITES`, or says "all";
"rest_framework" and "wire" are not Django's, "handler" is not of the database, and "servers" are
real ones (`test_every_server`), not its suite of that name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

import pytest

from conformance import suites
from conformance.runs import Runs

ASKED = os.environ.get("GREENROOM_CONFORMANCE_SUITES", "").split() or suites.SUITES
OTHERS = {"handler", "rest_framework", "servers", "wire"}
LABELS = [each for each in ASKED if each.split(":")[0] not in OTHERS]
if LABELS == ["all"]:
    LABELS = suites.SUITES + suites.MORE
ALIASES = ("default", "other")

pytestmark = [
    pytest.mark.timeout(2 * suites.TIMEOUT + 120),
    pytest.mark.skipif(not LABELS, reason="other suites were asked for"),
]


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[Runs[suites.Run]]:
    suites.sources()
    runs = Runs(request, partial(suites.run, LABELS), "django", ALIASES)
    yield runs
    runs.close()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_as_without_a_loop(runs: Runs[suites.Run], database: str, loop: str) -> None:
    stock, ours = (each.result() for each in [runs.begin(database, n) for n in ("stock", loop)])
    for name, run in (("stock", stock), (loop, ours)):
        print(
            f"\n{database}, {name}: {run.counts()}; {run.queries} queries, "
            f"{run.queries_in_bridge} in the bridge, {run.suspensions} suspensions; "
            f"{run.seconds:.0f} s"
        )
    found = suites.differences(stock, ours, database)
    assert not found, f"{len(found)} differences:\n\n" + "\n\n".join(found)
    assert (stock.status, ours.status) == (0, 0), ours.output[-5000:]
    # That all of this was really done by the stock code and ours, and on the loop.
    assert "success" in stock.outcomes.values()
    assert stock.queries_in_bridge == stock.suspensions == 0
    assert ours.queries == pytest.approx(stock.queries, rel=0.02)
    assert ours.queries_in_bridge > 0.9 * ours.queries
    assert ours.suspensions > 0.5 * ours.queries_in_bridge
