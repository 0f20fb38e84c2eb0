"""Django REST framework's own tests come out with our application as they do without.

Here with coroutines on the loop, on SQLite. GREENROOM_CONFORMANCE_SUITES="all" or
"rest_framework": in all ways, on both databases.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from conformance import drf_suite
from conformance.runs import Runs

SUITES = os.environ.get("GREENROOM_CONFORMANCE_SUITES", "").split()
RUNS = ["coroutines-loop"]
DATABASES = ["sqlite"]
if SUITES:
    RUNS += ["coroutines-thread", "loop", "thread"]
    DATABASES += ["postgresql"]

pytestmark = [
    pytest.mark.timeout(4 * drf_suite.TIMEOUT),
    pytest.mark.skipif(
        bool(SUITES) and not {"all", "rest_framework"}.intersection(SUITES),
        reason="other suites were asked for",
    ),
]


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[Runs[drf_suite.Run]]:
    drf_suite.packages()
    runs = Runs(request, drf_suite.run, "rest", ("default", "secondary"))
    yield runs
    runs.close()


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("database", DATABASES)
def test_as_without_us(runs: Runs[drf_suite.Run], database: str, name: str) -> None:
    stock, ours = (each.result() for each in [runs.begin(database, n) for n in ("stock", name)])
    for kind, run in (("stock", stock), (name, ours)):
        print(
            f"\nDRF, {database}, {kind}: {run.counts()}; {run.queries} queries, "
            f"{run.queries_in_bridge} in a bridge; {run.requests} requests, {run.through_ours} "
            f"through ours, {run.on_loop} on the loop; {run.handlers_awaited} handlers awaited, "
            f"{run.others_awaited} others; {run.seconds:.0f} s"
        )
    found = drf_suite.differences(stock, ours, database)
    assert not found, f"{len(found)} differences:\n\n" + "\n\n".join(found)
    # That all of this was really done by the stock code and ours, and where it should be.
    assert len(stock.outcomes) > 1600
    assert stock.status == 0, stock.output[-5000:]
    assert stock.queries_in_bridge == stock.suspensions == stock.through_ours == 0
    assert ours.requests == stock.requests > 200
    assert ours.through_ours == ours.requests
    assert ours.queries == pytest.approx(stock.queries, rel=0.02)
    assert ours.queries_in_bridge > 0.9 * ours.queries
    assert ours.suspensions > 0.5 * ours.queries_in_bridge
    if name.endswith("loop"):
        assert ours.on_loop > 0.9 * ours.requests
    else:
        assert ours.on_loop == 0
    if name.startswith("coroutines"):
        assert ours.handlers_awaited > 500
        assert ours.others_awaited > 200
    else:
        assert ours.handlers_awaited == ours.others_awaited == 0
