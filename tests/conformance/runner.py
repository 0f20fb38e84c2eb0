"""Runs Django's own tests, stock or in a bridge on an event loop, and writes what came out.

A process of its own: `runner.py --tests FOLDER --loop stock|asyncio|uvloop --result FILE
--timeout SECONDS LABEL…`, with GREENROOM_CONFORMANCE_DATABASES for its settings. FOLDER is
`tests` of Django's source distribution, whose `runtests` does all but what is here: it calls a
`DiscoverRunner`, ours, which makes the test databases as ever and then runs the suite as
one task, in one bridge. Nothing of Django's tests is changed.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import json
import os
import re
import sys
import threading
import time
import traceback
import types
import unittest
from collections.abc import Callable, Generator
from functools import partial, wraps
from pathlib import Path
from typing import Any

import greenlet
from django.db import connections
from django.db.backends.utils import CursorWrapper
from django.test.runner import DiscoverRunner

import greenroom.patches
from greenroom import bridge
from greenroom.db import borrow
from greenroom.loops import Home
from greenroom.threads import Threads

# Of an object that a subtest's description shows.
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Report:
    """What the run is judged by; its attributes are what is written."""

    # By the test's id; those of subtests only if they failed or were skipped.
    outcomes: dict[str, str] = {}  # noqa: RUF012
    details: dict[str, str] = {}  # noqa: RUF012
    queries = 0
    queries_in_bridge = 0
    # How often the task of the suite waited for the loop.
    suspensions = 0
    seconds = 0.0


class Run:
    """The run under way."""

    loop = "stock"
    test = "(none began)"
    result = Path("result.json")


class Result(unittest.TextTestResult):
    """Writes down each outcome, and shows what unittest shows."""

    def startTest(self, test: Any) -> None:
        Run.test = test.id()
        super().startTest(test)

    def addSuccess(self, test: Any) -> None:
        super().addSuccess(test)
        self._note(test, "success")

    def addError(self, test: Any, err: Any) -> None:
        super().addError(test, err)
        self._note(test, "error", self.errors[-1][1])

    def addFailure(self, test: Any, err: Any) -> None:
        super().addFailure(test, err)
        self._note(test, "failure", self.failures[-1][1])

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            failed = issubclass(err[0], test.failureException)
            group = self.failures if failed else self.errors
            self._note(subtest, "failure" if failed else "error", group[-1][1])

    def addSkip(self, test: Any, reason: str) -> None:
        super().addSkip(test, reason)
        self._note(test, "skipped", reason)

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        super().addExpectedFailure(test, err)
        self._note(test, "expected failure", self.expectedFailures[-1][1])

    def addUnexpectedSuccess(self, test: Any) -> None:
        super().addUnexpectedSuccess(test)
        self._note(test, "unexpected success")

    @staticmethod
    def _note(test: Any, outcome: str, detail: str = "") -> None:
        name = _ADDRESS.sub("", test.id())
        Report.outcomes[name] = outcome
        Report.details[name] = detail


class Runner(DiscoverRunner):
    """The test databases outside of the loop, the tests in a bridge on it."""

    def get_resultclass(self) -> type[Result]:
        return Result

    def run_suite(self, suite: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        # Not those that made the databases.
        Report.queries = Report.queries_in_bridge = 0
        try:
            if Run.loop == "stock":
                return super().run_suite(suite, **kwargs)
            return self._run_on_loop(suite, kwargs)
        finally:
            Report.seconds = time.perf_counter() - began
            write()

    def _run_on_loop(self, suite: Any, kwargs: dict[str, Any]) -> Any:
        # Those of this thread made the databases; tests on the loop have their own.
        serialized = {
            connection.alias: connection._test_serialized_contents
            for connection in connections.all()
            if hasattr(connection, "_test_serialized_contents")
        }
        connections.close_all()
        run_suite = super().run_suite

        def run() -> Any:
            for alias, contents in serialized.items():
                connections[alias]._test_serialized_contents = contents
            try:
                return run_suite(suite, **kwargs)
            finally:
                # PostgreSQL drops no database that somebody is connected to.
                connections.close_all()

        async def main() -> Any:
            loop = asyncio.get_running_loop()
            home = Home(loop, Threads(loop, limit=4))
            home.register()
            try:
                return await counted(bridge.run(run))
            finally:
                await home.aclose()
                # PostgreSQL drops no database that somebody is connected to.
                borrow.drain()

        with asyncio.Runner(loop_factory=_loop_factory(Run.loop)) as runner:
            return runner.run(main())


@types.coroutine
def counted(steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """Await what `bridge.run` returned, and count how often it suspends."""
    step: Callable[[], Any] = partial(steps.send, None)
    while True:
        try:
            value = step()
        except StopIteration as stop:
            return stop.value
        Report.suspensions += 1
        try:
            sent = yield value
        except BaseException as exc:
            step = partial(steps.throw, exc)
        else:
            step = partial(steps.send, sent)


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    return asyncio.new_event_loop


def count_queries() -> None:
    """Count what Django sends to databases, and what of it from within a bridge."""

    def counting(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def counted(*args: Any, **kwargs: Any) -> Any:
            Report.queries += 1
            Report.queries_in_bridge += bridge.in_bridge()
            return method(*args, **kwargs)

        return counted

    for name in ("_execute", "_executemany"):
        setattr(CursorWrapper, name, counting(getattr(CursorWrapper, name)))


def write() -> None:
    report = {key: value for key, value in vars(Report).items() if not key.startswith("_")}
    Run.result.write_text(json.dumps(report, indent=1))


def give_up() -> None:
    """Say where the run hangs, which no debugger shows: greenlets that wait are on no stack."""
    print(f"\n\nTimeout in {Run.test}", flush=True)
    for each in gc.get_objects():
        if isinstance(each, greenlet.greenlet) and each.gr_frame is not None:
            print(f"\n{each!r}:")
            traceback.print_stack(each.gr_frame, file=sys.stdout)
    sys.stdout.flush()
    faulthandler.dump_traceback(all_threads=True)
    os._exit(3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", type=Path, required=True)
    parser.add_argument("--loop", choices=["stock", "asyncio", "uvloop"], default="stock")
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--timeout", type=float, required=True)
    parser.add_argument("labels", nargs="+")
    options = parser.parse_args()
    Run.loop = options.loop
    Run.result = options.result.resolve()
    watchdog = threading.Timer(options.timeout, give_up)
    watchdog.daemon = True
    watchdog.start()
    os.environ["DJANGO_SETTINGS_MODULE"] = "django_settings"
    os.chdir(options.tests)
    sys.path.insert(0, os.getcwd())
    import runtests

    count_queries()
    setup = runtests.setup_run_tests

    def setup_run_tests(*args: Any) -> Any:
        done = setup(*args)
        if options.loop != "stock":
            greenroom.patches.apply()
        return done

    runtests.setup_run_tests = setup_run_tests
    runtests.django_tests(
        verbosity=1,
        interactive=False,
        failfast=False,
        keepdb=False,
        reverse=False,
        test_labels=options.labels,
        debug_sql=False,
        parallel=1,
        tags=None,
        exclude_tags=None,
        test_name_patterns=None,
        start_at=None,
        start_after=None,
        pdb=False,
        buffer=False,
        timing=False,
        shuffle=False,
    )


if __name__ == "__main__":
    main()
