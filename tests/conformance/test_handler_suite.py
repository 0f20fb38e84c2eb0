"""Django's own tests of requests come out through our handler as they do through Django's.

Here in placement `loop`. GREENROOM_CONFORMANCE_SUITES="all" or "handler": more of them, in both
placements; "handler:cache handler:wsgi": those.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

import django
import pytest

from conformance import handler_suite, suites
from conformance.runs import Runs

ASKED = os.environ.get("GREENROOM_CONFORMANCE_SUITES", "").split()
LABELS = [each.removeprefix("handler:") for each in ASKED if each.startswith("handler:")]
if not ASKED:
    LABELS = handler_suite.SUITES
elif {"all", "handler"}.intersection(ASKED):
    LABELS = handler_suite.SUITES + handler_suite.MORE
PLACEMENTS = ["loop", "thread"] if ASKED else ["loop"]

pytestmark = [
    pytest.mark.timeout(2 * handler_suite.TIMEOUT + 120),
    pytest.mark.skipif(not LABELS, reason="other suites were asked for"),
]


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[Runs[suites.Run]]:
    suites.sources()
    runs = Runs(request, partial(handler_suite.run, LABELS), "handler", ("default", "other"))
    yield runs
    runs.close()


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("database", ["sqlite"])
def test_as_through_djangos(runs: Runs[suites.Run], database: str, placement: str) -> None:
    begun = [runs.begin(database, each) for each in ("stock", placement)]
    stock, ours = (each.result() for each in begun)
    for name, run in (("stock", stock), (placement, ours)):
        print(
            f"\nrequests, Django {django.__version__}, {database}, {name}: {len(run.by_test)} "
            f"tests: {run.counts()}; {run.requests} requests of test clients, "
            f"{run.through_djangos} through Django's handlers, {run.through_ours} through ours, "
            f"{run.on_loop} on the loop; {run.queries} queries; {run.seconds:.0f} s"
        )
    found = suites.differences(stock, ours, placement, handler_suite.DIFFERENCES)
    assert not found, f"{len(found)} differences:\n\n" + "\n\n".join(found)
    assert (stock.status, ours.status) == (0, 0), ours.output[-5000:]
    # That all of this was really done by Django's handler and by ours, and where it should be.
    assert "success" in stock.outcomes.values()
    assert stock.through_ours == stock.suspensions == 0
    assert bool(stock.not_through_ours) == bool(stock.requests)
    assert ours.not_through_ours == []
    assert ours.requests == pytest.approx(stock.requests, rel=0.1)
    assert ours.through_ours == pytest.approx(stock.through_djangos, rel=0.1, abs=4)
    # Of handlers that tests make of parts of Django's.
    assert ours.through_djangos <= 0.01 * ours.through_ours + 2
    assert ours.queries == pytest.approx(stock.queries, rel=0.1, abs=4)
    if placement == "loop":
        assert ours.on_loop >= 0.9 * ours.requests
        assert ours.queries_in_bridge >= 0.9 * ours.queries
    else:
        assert ours.on_loop == 0
