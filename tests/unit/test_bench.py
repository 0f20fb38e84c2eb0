"""The machinery of the benchmarks: what wrk says, statistics, targets, files, tables."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"


@pytest.fixture(scope="module", autouse=True)
def path() -> Iterator[None]:
    sys.path.insert(0, str(BENCH))
    yield
    sys.path.remove(str(BENCH))
    # Others have a `run` and a `suite` of their own, maybe.
    for name in [name for name in sys.modules if name.partition(".")[0] == "suite"]:
        del sys.modules[name]


RIGHT = """\
Running 6s test @ http://127.0.0.1:53201/coroutine/hello/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   181.34ms   40.12ms 511.98ms   88.66%
    Req/Sec     1.36k   210.53     1.71k    71.67%
  Latency Distribution
     50%   62.50us
     75%    1.25ms
     90%  944.00ms
     99%    1.02s
  8122 requests in 6.01s, 2.67MB read
Requests/sec:   1351.20
Transfer/sec:    454.98KB
"""
WRONG = (
    RIGHT.replace("Requests/sec", "  Socket errors: connect 3, read 0, write 0, timeout 12\nX")
    .replace("X:", "  Non-2xx or 3xx responses: 40\nRequests/sec:")
    .replace("1351.20", "135.20")
)


def test_what_wrk_says() -> None:
    from suite import wrk

    output = wrk.parse(RIGHT)
    assert (output.rate, output.requests, output.errors) == (1351.2, 8122, {})
    assert output.percentiles == {50: 0.0625, 75: 1.25, 90: 944.0, 99: 1020.0}
    assert output.as_json()["p99"] == 1020.0
    assert wrk.parse(WRONG).errors == {"connect": 3, "timeout": 12, "not 2xx": 40}
    assert wrk.parse(WRONG).rate == 135.2
    # A rate of nothing is no figure.
    assert wrk.parse(RIGHT.replace("8122 requests", "0 requests")).errors == {"no answer": 1}
    with pytest.raises(ValueError, match="something else"):
        wrk.parse("unable to connect to 127.0.0.1:53201 Connection refused")


def row(*values: float, metric: str = "rate", **more: Any) -> dict[str, Any]:
    rounds = [{metric: value, "errors": {}} for value in values]
    return {"title": "a server", "rounds": rounds, **more}


def test_figures_and_ratios() -> None:
    from suite import figures

    assert figures.figure(row(3, 1, 2), "rate") == figures.Figure(2, 1, 3)
    assert figures.figure(row(3, 1, 2), "p99") is None
    # Of the medians 20 and 5; of the rounds 2, 4 and 6.
    found = figures.ratio(row(10, 20, 30), row(5, 5, 5), "rate")
    assert found == figures.Figure(4, 2, 6)
    assert figures.ratio(row(1), row(0), "rate") == figures.Figure(math.inf, math.inf, math.inf)


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 1e6), min_size=1))
def test_a_server_is_as_fast_as_itself(values: list[float]) -> None:
    from suite import figures

    found = figures.ratio(row(*values), row(*values), "rate")
    assert found == figures.Figure(1, 1, 1)


def test_an_error_in_one_round_makes_a_figure_invalid() -> None:
    from suite import figures

    wrong = row(1, 2, 3)
    wrong["rounds"][1]["errors"] = {"timeout": 3}
    assert figures.failures(wrong) == ["round 2: 3 timeout"]
    assert figures.figure(wrong, "rate") is None
    assert figures.ratio(row(1, 2, 3), wrong, "rate") is None
    failed = row(1)
    failed["rounds"].append({"failed": "it answers 500"})
    assert figures.failures(failed) == ["round 2: it answers 500"]
    assert figures.failures(row()) == ["no round"]
    assert figures.failures(row(skipped="uwsgi is not installed")) == ["uwsgi is not installed"]
    assert figures.is_valid(row(1))


@settings(max_examples=20, deadline=None)
@given(rise=st.floats(-50, 50), noise=st.floats(0, 2))
def test_the_slope_of_memory(rise: float, noise: float) -> None:
    from suite import figures

    # The first fifth, when everything is loaded, doesn't count.
    samples = [
        (at, (5e6 if at < 700 else 50e6) + rise * 1e6 * at / 3600 + (-1) ** at * noise * 1e6)
        for at in range(3600)
    ]
    found = figures.slope(samples)
    assert found.per_hour == pytest.approx(rise, abs=0.1 + noise / 5)
    assert found.noise >= 0
    assert abs(found.per_hour - rise) <= found.noise + 0.1 + noise / 5


@pytest.mark.once
def test_what_a_worker_notes_of_its_memory(tmp_path: Path) -> None:
    from suite.measures import Run, since_first
    from suite.scenarios import SCENARIOS, Row
    from suite.services import Services

    # The last line is still being written.
    assert since_first(["5.5 700\n", "10.5 720.0\n", "15.5 7"]) == [(0, 700), (5, 720)]
    assert since_first([]) == []
    noted = tmp_path / "blocks"
    run = Run(Services(), SCENARIOS["hello-coroutine"], Row("greenroom"), 4, 1)
    noted.touch()
    until = time.monotonic() + 10
    with run.serving(BENCH_BLOCKS=str(noted)):
        while (
            not (found := since_first(noted.read_text().splitlines(True)))
            and time.monotonic() < until
        ):
            time.sleep(0.02)
    assert found[0][0] == 0
    assert 50_000 < found[0][1] < 5_000_000


def test_keys_of_peers_scenarios_and_targets_exist() -> None:
    from suite import measures, tables, targets
    from suite.peers import PEERS
    from suite.scenarios import SCENARIOS

    for key, scenario in SCENARIOS.items():
        assert {row.peer for row in scenario.rows} <= PEERS.keys(), key
        assert scenario.measure in measures.MEASURES, key
        assert scenario.metric in tables.COLUMNS, key
        assert len({row.key for row in scenario.rows}) == len(scenario.rows), key
        # gevent can't run coroutines.
        assert all(row.form == "plain" for row in scenario.rows if row.peer == "gevent"), key
    for target in targets.TARGETS:
        keys = {row.key for row in SCENARIOS[target.scenario].rows}
        assert target.ours in keys, target
        assert target.against in (None, targets.BEST) or target.against in keys, target
        assert target.at_least or target.bound is None or target.against != targets.BEST, target
    # What is measured has a target, but where others are there to compare with.
    free = {"hello-coroutine-none", "hello-plain-none", "hello-plain-third"}
    free |= {"sleep-50ms-64", "sleep-50ms-256", "page-coroutine", "page-plain"}
    assert SCENARIOS.keys() - {target.scenario for target in targets.TARGETS} == free


def test_each_command_is_filled() -> None:
    from suite.measures import Run
    from suite.scenarios import SCENARIOS
    from suite.services import Services

    for scenario in SCENARIOS.values():
        for each in scenario.rows:
            run = Run(Services(), scenario, each, 8, 1)
            command = run.command(8000)
            assert not [part for part in command if "{" in part], command
            assert "{" not in run.path


def record(rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "title": "a scenario",
        "quick": False,
        "seconds": 5,
        "date": "2026-01-02T03:04:05+00:00",
        "revision": "0123456789abcdef",
        "changed": False,
        "machine": {"cpu": "A | B", "cores": 2, "memory_gb": 8, "system": "Linux"},
        "versions": {"Python": "3.13.0"},
        "rows": rows,
        **more,
    }


def verdict(rows: dict[str, Any], scenario: str, **wanted: Any) -> Any:
    from suite import targets

    wanted = {"same_view": False} | wanted
    (found,) = [
        each
        for each in targets.TARGETS
        if each.scenario == scenario
        and all(getattr(each, name) == value for name, value in wanted.items())
    ]
    return targets.judge(found, {scenario: record(rows)})


def test_a_target_beside_a_peer() -> None:
    rows = {"greenroom:coroutine": row(1200, 1300, 1250), "uvicorn:coroutine": row(100, 100, 100)}
    found = verdict(rows, "hello-coroutine", against="uvicorn:coroutine")
    assert (found.figure.value, found.met) == (12.5, True)
    assert found.by == pytest.approx(0.5 / 12)
    rows["uvicorn:coroutine"] = row(200, 200, 200)
    found = verdict(rows, "hello-coroutine", against="uvicorn:coroutine")
    assert (found.figure.value, found.met) == (6.25, False)
    assert found.by == pytest.approx(-5.75 / 12)


def test_the_best_peer_is_one_that_counts() -> None:
    from suite.targets import BEST

    rows = {
        "greenroom:coroutine": row(3000),
        "uwsgi:coroutine": row(900),
        "granian-wsgi:coroutine": row(1000, title="granian"),
        # Neither a reference, nor what has errors, nor ourselves.
        "limit:plain": row(4500),
        "bolt:coroutine": row(9000),
        "gthread:coroutine": {"title": "g", "rounds": [{"rate": 5000, "errors": {"read": 1}}]},
    }
    found = verdict(rows, "hello-coroutine", against=BEST)
    assert (found.figure.value, found.than, found.met) == (3, "granian", True)
    # gevent's plain view stands for its coroutines.
    found = verdict(
        rows | {"gevent:plain": row(1500, title="gevent")}, "hello-coroutine", against=BEST
    )
    assert (found.figure.value, found.than, found.met) == (2, "gevent", False)
    rows = {
        "greenroom:coroutine": row(300),
        "gthread:coroutine": row(200),
        "gthread:plain": row(900),
    }
    # Plain views of others are no peers of a coroutine view's.
    assert verdict(rows, "queries-1", against=BEST).figure.value == 1.5
    # … but gevent's are.
    rows["gevent:plain"] = row(250)
    assert verdict(rows, "queries-1", against=BEST).figure.value == 1.2
    # Nor where only those that run the same view are to count.
    assert verdict(rows, "queries-1", same_view=True).figure.value == 1.5
    rows = {"greenroom:coroutine": row(300), "gthread:plain": row(200), "uvicorn:adrf:pool": row(9)}
    assert verdict(rows, "list", against=BEST).figure.value == 1.5


def test_targets_of_which_less_is_better() -> None:
    rows = {
        "greenroom:coroutine": row(10, 20, metric="p99"),
        "gthread:coroutine": row(40, 20, metric="p99"),
    }
    found = verdict(rows, "mixed", against="gthread:coroutine")
    assert (found.figure.value, found.met, found.by) == (0.5, True, 0)
    rows = {
        "greenroom:coroutine": row(62e6, metric="rss"),
        "gthread:coroutine": row(43e6, metric="rss"),
    }
    found = verdict(rows, "start")
    assert (found.figure.value, found.met) == (19, False)
    rows = {"greenroom:coroutine": row(3, metric="threads_more")}
    found = verdict(rows, "sleep-1s-5000", metric="threads_more")
    assert (found.met, found.by) == (False, -3)
    hour = {"slope": 1.5, "noise": 2.0, "errors": {}}
    found = verdict({"greenroom:coroutine": {"title": "", "rounds": [hour]}}, "hour")
    assert (found.figure.value, found.met) == (0, True)
    hour["noise"] = 0.5
    found = verdict({"greenroom:coroutine": {"title": "", "rounds": [hour]}}, "hour")
    assert (found.figure.value, found.met, found.by) == (1, False, -1)


def test_targets_that_cannot_be_judged() -> None:
    from suite import targets

    assert targets.judge(targets.TARGETS[0], {}).missing == "not measured"
    ours = {"greenroom:coroutine": row(1)}
    found = verdict(ours, "hello-coroutine", against="uvicorn:coroutine")
    assert (found.met, found.missing) == (None, "the peer was not measured")
    rows = ours | {"uvicorn:coroutine": row(skipped="uvicorn is not installed")}
    found = verdict(rows, "hello-coroutine", against="uvicorn:coroutine")
    assert (found.met, found.missing) == (None, "the peer's is invalid: uvicorn is not installed")
    # Ours with errors has missed.
    ours["greenroom:coroutine"]["rounds"][0]["errors"] = {"read": 2}
    found = verdict(ours | {"uvicorn:coroutine": row(1)}, "hello-coroutine", against=targets.BEST)
    assert (found.met, found.missing) == (False, "invalid: round 1: 2 read")


def test_files_are_merged_by_scenario(tmp_path: Path) -> None:
    from suite import results

    file = tmp_path / "folder" / "results.json"
    assert results.load(file) == {}
    results.add(file, "one", record({}))
    results.add(file, "two", record({}))
    results.add(file, "one", record({"a": row(1)}))
    assert list(results.load(file)) == ["one", "two"]
    assert results.load(file)["one"]["rows"] == {"a": row(1)}
    file.write_text(json.dumps({"format": 0}))
    with pytest.raises(ValueError, match="remove it"):
        results.load(file)


def test_what_is_done_needs_no_other_run() -> None:
    from suite import results

    done = record({"a": row(1, 2), "b": row(skipped="not installed")})
    assert results.is_done(done, 2, "0123456789abcdef", quick=False)
    assert not results.is_done(None, 2, "0123456789abcdef", quick=False)
    assert not results.is_done(done, 3, "0123456789abcdef", quick=False)
    assert not results.is_done(done, 2, "another", quick=False)
    assert not results.is_done(done, 2, "0123456789abcdef", quick=True)
    changed = done | {"changed": True}
    assert not results.is_done(changed, 2, "0123456789abcdef", quick=False)


def test_the_table_of_a_scenario() -> None:
    from suite import tables

    def full(*rates: float, **more: Any) -> dict[str, Any]:
        rounds = [
            {"rate": rate, "p50": 1.0, "p99": 2.0, "threads": 3, "rss": 50e6, "errors": {}}
            for rate in rates
        ]
        return {"title": "a server", "rounds": rounds, **more}

    wrong = full(1, 2, 3, title="wrong")
    wrong["rounds"][2]["errors"] = {"not 2xx": 7}
    rows = {
        "greenroom:plain": full(2000, 2400, 2200, title="ours", threads=8),
        "gthread:plain": full(1000, 1100, 1200, threads=1),
        "uwsgi:plain": {"title": "uWSGI", "rounds": [], "skipped": "uwsgi is not installed"},
        "sync:plain": wrong,
    }
    lines = list(tables.of_scenario("hello-plain", record(rows)))
    assert lines[4:8] == [
        "| ours, 8 threads | 2,200 (2,000-2,400) |  | 1.0 | 2.0 | 3 | 50 |",
        "| a server, 1 thread | 1,100 (1,000-1,200) | 2.00 × (1.83-2.18) | 1.0 | 2.0 | 3 | 50 |",
        "| uWSGI | uwsgi is not installed |  |  |  |  |  |",
        "| wrong | invalid: round 3: 7 not 2xx |  |  |  |  |  |",
    ]
    assert len({line.count("|") for line in lines[2:8]}) == 1
    assert "3 rounds of 5 s" in lines[-1]


def test_the_page_has_each_target_and_scenario() -> None:
    from suite import plots, tables, targets

    rows = {"greenroom:coroutine": row(1200, 1300), "uvicorn:coroutine": row(100, 130)}
    scenarios = {"hello-coroutine": record(rows)}
    page = tables.document(scenarios, plots.PLOTS)
    for target in targets.TARGETS:
        assert f"| {target.text} |" in page
    beside_uvicorn = "| ≥ 12 × a server | 10.9 × (10.0-12.0) | **missed** by 9% |"
    assert beside_uvicorn in page
    assert page.count("not measured") > 20
    assert "### a scenario" in page
    # Of what the page says, and the plots show, nothing is left open.
    assert "None" not in page
    assert re.search(r"!\[.+\]\(benchmarks\.svg\)", page)
    quick = {"hello-coroutine": record(rows, quick=True)}
    assert "quick run" in tables.document(quick)


def test_what_is_published_is_what_the_page_says() -> None:
    from suite import plots, results, tables

    page = ROOT / "docs" / "benchmarks.md"
    scenarios = results.load(results.PUBLISHED)
    assert page.exists() == bool(scenarios)
    if scenarios:
        assert page.read_text() == tables.document(
            scenarios, plots.PLOTS, results.load(results.PROFILES)
        ), "make it again: bench/report.py"
        for name in ("benchmarks.svg", "benchmarks.png"):
            assert (ROOT / "docs" / name).exists()


STACKS = """\
main (/e/gunicorn/app.py:9);run (/g/src/greenroom/worker.py:7) 10
get (/e/site-packages/django/db/x.py:7);put (/g/src/greenroom/db/y.py:1) 20
<lambda> (/e/site-packages/django/x.py:7);<genexpr> (/e/site-packages/psycopg/_queries.py) 30
run (/g/src/greenroom/bridge.py:7);view (/g/bench/site/views.py:70) 25
f (/e/lib/python3.13/json/encoder.py:200) 15
"""


def test_a_profile_is_by_whose_code_runs() -> None:
    from suite import profile

    found = profile.shares(STACKS.splitlines())
    assert found == {
        "psycopg": 0.3,
        "the view": 0.25,
        "Greenroom: database": 0.2,
        "Python's library": 0.15,
        "uvloop, gunicorn, granian": 0.1,
    }
    with pytest.raises(profile.Invalid, match="nothing that runs"):
        profile.shares([])
    one = {"title": "one", "user": 1000.0, "system": 50.0, "parts": found}
    other = {"title": "other", "user": 10.0, "system": 2.0, "parts": {"Django": 1.0}}
    assert list(profile.table([one, other])) == [
        "| µs a request | one | other |",
        "|---|---|---|",
        "| uvloop, gunicorn, granian | 100 |  |",
        "| Greenroom: database | 200 |  |",
        "| Django |  | 10 |",
        "| psycopg | 300 |  |",
        "| the view | 250 |  |",
        "| Python's library | 150 |  |",
        "| the kernel | 50 | 2 |",
        "| **in all** | 1,050 | 12 |",
    ]


def test_the_profiles_of_the_page_exist() -> None:
    import profiles
    from suite.scenarios import SCENARIOS

    for each in profiles.SHOWN:
        scenario, row, _ = profiles.parts(each)
        assert row in [one.key for one in SCENARIOS[scenario].rows], each


def test_rows_can_be_chosen() -> None:
    from suite.scenarios import SCENARIOS
    from suite.turns import Options, estimate

    scenario = SCENARIOS["queries-1"]
    some = Options(peers=frozenset({"greenroom", "gthread:plain"}))
    keys = [each.key for each in some.rows_of(scenario)]
    assert keys == ["greenroom:coroutine", "greenroom:plain", "gthread:plain"]
    assert Options().rows_of(scenario) == scenario.rows
    more = dataclasses.replace(some, rounds=10)
    assert estimate(scenario, more) > estimate(scenario, some) > 60


def test_an_unforeseen_failure_is_one_of_that_figure_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from suite import measures, turns
    from suite.scenarios import Row
    from suite.services import Services

    def fail(run: Any) -> Any:
        raise {"greenroom": ZeroDivisionError("unforeseen"), "sync": turns.Invalid("500")}[
            run.row.peer
        ]

    monkeypatch.setitem(measures.MEASURES, "rate", fail)
    scenario = turns.SCENARIOS["hello-coroutine"]
    with Services() as services:
        for peer, said in [("greenroom", "ZeroDivisionError('unforeseen')"), ("sync", "500")]:
            run = measures.Run(services, scenario, Row(peer), 4, 1)
            assert turns._measured(run) == {"failed": said}
    assert capsys.readouterr().err.count("Traceback") == 1


def test_the_fewest_threads_that_are_as_good() -> None:
    from suite.turns import best_of

    assert best_of({1: 100, 8: 1000, 64: 1020, 256: 900}, "rate") == 8
    assert best_of({1: 100, 8: 1000, 64: 1040, 256: 900}, "rate") == 64
    assert best_of({1: 100, 8: 50, 64: 49.5}, "p99") == 8


def test_the_client_of_events() -> None:
    """It counts what came, what came late, and what didn't, over a real connection."""
    from suite import client

    async def serve(reader: Any, writer: Any) -> None:
        handlers.append(asyncio.current_task())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nda")
        await asyncio.sleep(0.01)
        writer.write(b"ta: 0\n\n")
        if next(clients) != 1:
            await asyncio.sleep(1)
            writer.write(b"data: 1\n\n")
        # Until the client has left.
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    async def main() -> Any:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            found = await client.ticks(port, "/", 3, 2)
            await asyncio.wait(handlers)
            return found

    handlers: list[Any] = []
    clients = itertools.count()
    found = asyncio.run(main())
    assert (found["clients"], found["errors"]) == (3, {})
    # The first, that is due at once, has come to all; the next to two.
    assert found["missing"] >= 1
    assert 0 <= found["late_p50"] <= found["late_p99"]


@pytest.mark.once
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_a_run(tmp_path: Path) -> None:
    """A second of Greenroom, and one of Django without a server."""
    file = tmp_path / "results.json"
    command = [sys.executable, str(BENCH / "run.py"), "hello-coroutine", "--out", str(file)]
    command += ["--rounds", "1", "--seconds", "1", "--peers", "greenroom", "limit"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr
    rows = json.loads(file.read_text())["scenarios"]["hello-coroutine"]["rows"]
    assert list(rows) == ["greenroom:coroutine", "limit:plain"]
    for each in rows.values():
        (metrics,) = each["rounds"]
        assert metrics["errors"] == {}
        assert metrics["rate"] > 0
    assert rows["greenroom:coroutine"]["rounds"][0]["rss"] > 20e6
    assert "| Greenroom, coroutine view, 4 threads |" in ran.stdout
