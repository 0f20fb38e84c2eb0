"""Runs Django's own tests, stock or in a bridge on an event loop, and writes what came out.

A process of its own: `runner.py --tests FOLDER --loop stock|asyncio|uvloop [--handler]
--result FILE --timeout SECONDS LABEL…`, with GREENROOM_CONFORMANCE_DATABASES for its settings.
FOLDER is `tests` of Django's source distribution, whose `runtests` does all but what is here: it
calls a `DiscoverRunner`, ours, which makes the test databases as ever and then runs the suite as
one task, in one bridge; without a loop as ever. Nothing of Django's tests is changed.

With `--handler`, ``greenroom`` is in `INSTALLED_APPS`: so requests of Django's test clients go
through our handler (see `greenroom.clients`), and what tests call as `WSGIHandler` and
`ASGIHandler` are our applications. In a run on a loop, all of a request is in a bridge, plain
views too, which would not go there by themselves; in a run without, it is on a thread, as the
setting says: that of the test, but for what async tests ask.
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
from django.core.handlers import wsgi
from django.core.handlers.base import BaseHandler
from django.db import connections
from django.db.backends.utils import CursorWrapper
from django.test import client
from django.test.runner import DiscoverRunner

import greenroom.patches
from greenroom import bridge, handler
from greenroom.application import AsyncDjangoApplication
from greenroom.asgi import AsyncDjangoASGIApplication
from greenroom.bodies import Parts
from greenroom.db import borrow
from greenroom.loops import Home
from greenroom.placement import Judge
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
    # Those of the test clients; all that Django's handlers were asked, those of test clients
    # among them; all that our handler was asked, and of that what was placed on the loop; the
    # tests whose requests were answered without it.
    requests = 0
    through_djangos = 0
    through_ours = 0
    on_loop = 0
    not_through_ours: list[str] = []  # noqa: RUF012
    seconds = 0.0


class Run:
    """The run under way."""

    loop = "stock"
    event_loop: asyncio.AbstractEventLoop | None = None
    home: Home | None = None
    # Those that there were before the test.
    tasks: set[asyncio.Task[Any]] = set()  # noqa: RUF012
    test = "(none began)"
    result = Path("result.json")


class Result(unittest.TextTestResult):
    """Writes down each outcome, and shows what unittest shows."""

    def startTest(self, test: Any) -> None:
        Run.test = test.id()
        if Run.home is not None:
            Run.tasks = asyncio.all_tasks()
        super().startTest(test)

    def stopTest(self, test: Any) -> None:
        super().stopTest(test)
        if Run.home is not None:
            bridge.await_(end_of_test(Run.home))

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
            Run.event_loop = loop = asyncio.get_running_loop()
            home = Run.home = Home(loop, Threads(loop, limit=4))
            home.register()
            try:
                return await counted(bridge.run(run))
            finally:
                await home.aclose()
                # PostgreSQL drops no database that somebody is connected to.
                borrow.drain()

        with asyncio.Runner(loop_factory=_loop_factory(Run.loop)) as runner:
            return runner.run(main())


async def end_of_test(home: Home) -> None:
    """End what a test left, as the end of its own loop does without us."""
    tasks = asyncio.all_tasks() - Run.tasks - home.lasting
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=10)


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


# The requests that tests make.


def count_requests() -> None:
    """Count what the test clients ask, and what our handler answers."""
    call, acall = client.ClientHandler.__call__, client.AsyncClientHandler.__call__

    @wraps(call)
    def counted(*args: Any) -> Any:
        Report.requests += 1
        before = Report.through_ours
        response = call(*args)
        if Report.through_ours == before:
            Report.not_through_ours.append(Run.test)
        return response

    @wraps(acall)
    async def acounted(*args: Any) -> Any:
        Report.requests += 1
        before = Report.through_ours
        response = await acall(*args)
        if Report.through_ours == before:
            Report.not_through_ours.append(Run.test)
        return response

    client.ClientHandler.__call__ = counted
    client.AsyncClientHandler.__call__ = acounted
    get_response = handler.Handler.get_response

    @wraps(get_response)
    def answer(self: handler.Handler, request: Any) -> Any:
        Report.through_ours += 1
        Report.on_loop += handler.ON_LOOP in request.__dict__
        return get_response(self, request)

    handler.Handler.get_response = answer
    get_django_s, aget_django_s = BaseHandler.get_response, BaseHandler.get_response_async

    @wraps(get_django_s)
    def django_s(self: BaseHandler, request: Any) -> Any:
        Report.through_djangos += 1
        return get_django_s(self, request)

    @wraps(aget_django_s)
    async def adjango_s(self: BaseHandler, request: Any) -> Any:
        Report.through_djangos += 1
        return await aget_django_s(self, request)

    BaseHandler.get_response = django_s
    BaseHandler.get_response_async = adjango_s


class WSGIHandler(AsyncDjangoApplication):
    """Our application, for tests that call Django's; on the loop in a task of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._get_response = self.handler.get_response
        self.handler.get_response = self._answer

    def _answer(self, request: Any) -> Any:
        self._response = self._get_response(request)
        return self._response

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if not bridge.in_bridge():
            return super().__call__(environ, start_response)
        answer = super().__call__({**environ, "wsgi.async": True}, start_response)
        body = bridge.await_(asyncio.create_task(answer))
        # Tests look at the response, which is what Django's returns.
        return self._response if isinstance(body, Parts) else body


class ASGIHandler(AsyncDjangoASGIApplication):
    """Our application, for tests that call Django's."""


def use_handler(runtests: Any) -> None:
    """Have requests answered by us: on a loop, in a bridge wherever they come from."""
    # The test clients; see `greenroom.clients`.
    runtests.ALWAYS_INSTALLED_APPS.insert(0, "greenroom")
    # Before tests import them, and after what else extends or calls them.
    import django.contrib.staticfiles.handlers
    import django.core.asgi
    import django.core.handlers.asgi
    import django.core.servers.basehttp
    import django.core.wsgi

    wsgi.WSGIHandler = WSGIHandler
    django.core.wsgi.get_wsgi_application = WSGIHandler
    django.core.handlers.asgi.ASGIHandler = ASGIHandler
    django.core.asgi.get_asgi_application = ASGIHandler
    kind, surroundings = Judge._kind, Judge.surroundings
    Judge._kind = lambda *args: (True, []) if _on_loop_of_suite() else kind(*args)
    Judge.surroundings = lambda *args: [] if _on_loop_of_suite() else surroundings(*args)


def _on_loop_of_suite() -> bool:
    """And not on that of a live server, say."""
    loop = asyncio._get_running_loop()
    return loop is not None and loop is Run.event_loop


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
    parser.add_argument("--handler", action="store_true")
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
    os.environ["GREENROOM_CONFORMANCE_PLACEMENT"] = "thread" if Run.loop == "stock" else "auto"
    os.chdir(options.tests)
    sys.path.insert(0, os.getcwd())
    import runtests

    count_queries()
    if options.handler:
        use_handler(runtests)
    count_requests()
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
