"""Runs Django REST framework's own tests, stock or on a loop, and writes what came out.

A process of its own: `drf_runner.py --tests FOLDER --run NAME --result FILE --timeout SECONDS
[LABEL…]`, with GREENROOM_CONFORMANCE_DATABASES for its settings. FOLDER is what the source
distribution has beside the package. Nothing of DRF's tests is changed. The runs:

stock              pytest, Django's own handlers
thread             all of pytest in a bridge on the loop. Each request of DRF's test clients
                   goes through `AsyncDjangoApplication`, in a task of its own, as a server
                   calls it; the views are plain and run on threads
loop               the same; plain views and all around them are put into the request's
                   bridge on the loop, where no plain view would go by itself
coroutines-loop    what the tests have DRF call is made coroutine functions: handlers and other
                   methods of views, permissions, throttles, authentication, filters, pages,
                   serializers, fields; all code is said to be loop-safe
coroutines-thread  the same, and a thread is parked for each request

The requests are in the test's transaction: the scope of the test is theirs too.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import cache, partial, wraps
from http import HTTPMethod
from pathlib import Path
from typing import Any

import django.core.handlers.wsgi
import django.test.client
import pytest
import runner
from django.conf import LazySettings
from django.core.signals import request_finished, request_started
from django.db import close_old_connections, connections
from runner import Report, Run

from greenroom import application, bridge, exchange, handler
from greenroom.db import borrow
from greenroom.integrations import when_imported
from greenroom.loops import Home
from greenroom.placement import Judge
from greenroom.threads import Threads

RUNS = ("stock", "thread", "loop", "coroutines-loop", "coroutines-thread")
PLAIN_RUNS = ("stock", "thread", "loop")
ACTIONS = ("list", "create", "retrieve", "update", "partial_update", "destroy")
HANDLERS = frozenset(method.lower() for method in HTTPMethod).union(ACTIONS)
# By module and class: the methods that become coroutine functions in the tests' subclasses.
BENEATH = {
    ("authentication", "BaseAuthentication"): {"authenticate", "authenticate_header"},
    ("filters", "BaseFilterBackend"): {"filter_queryset"},
    ("generics", "GenericAPIView"): {"get_queryset", "get_object", "get_serializer_class"},
    ("fields", "Field"): {"to_internal_value", "to_representation"},
    ("mixins", "CreateModelMixin"): {"perform_create"},
    ("pagination", "BasePagination"): {"paginate_queryset"},
    ("permissions", "BasePermission"): {"has_permission", "has_object_permission"},
    ("serializers", "BaseSerializer"): {"create", "update", "validate"},
    ("throttling", "BaseThrottle"): {"allow_request", "wait", "get_cache_key"},
}


# Handlers, and what else was made a coroutine function, that were awaited.
Report.handlers_awaited = Report.others_awaited = 0


class Plugin:
    """Writes down each outcome."""

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        Run.test = nodeid

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A test's name ends where its subtest's begins.
        name = report.nodeid.replace(" ", "·")
        outcome = report.outcome if not hasattr(report, "wasxfail") else f"x{report.outcome}"
        if hasattr(report, "context"):
            if outcome == "passed":
                return
            name = f"{name} {report.context}"
        elif outcome == "passed" and report.when != "call":
            return
        elif outcome == "failed" and report.when != "call":
            outcome = "error"
        Report.outcomes[name] = outcome
        Report.details[name] = report.longreprtext


# The requests.


class _Handler:
    """A handler of Django's that has our application answer."""

    application: Any = None

    def serve(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        """One request, as a task: called by a test, which is in a bridge."""
        Report.through_ours += 1
        return bridge.await_(asyncio.create_task(self._serve(environ, start_response)))

    async def _serve(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        answer = await self.application({**environ, "wsgi.async": True}, start_response)
        try:
            return [part async for part in answer] if hasattr(answer, "__aiter__") else [*answer]
        finally:
            close = getattr(answer, "aclose", None)
            if close is not None:
                await close()
            # On a thread the response is closed after the answer.
            home = application.loops.current()
            assert home is not None
            while home.threads.busy:
                await asyncio.sleep(0)


class ClientHandler(_Handler, django.test.client.ClientHandler):
    """What Django's test client calls."""

    def __call__(self, environ: dict[str, Any]) -> Any:
        Report.requests += 1
        if self.application is None:
            self.application = application.AsyncDjangoApplication()
            # DRF's subclass wants to see the request.
            self.ours = self.application.handler.get_response
            self.application.handler.get_response = self._answer
            self.application.request_class = self._request
        parts = self.serve(environ, lambda status, headers: None)
        request, response = self.seen
        response.wsgi_request = request
        if response.streaming:
            response.streaming_content = parts
        return response

    def _request(self, environ: dict[str, Any]) -> Any:
        request = django.core.handlers.wsgi.WSGIRequest(environ)
        request._dont_enforce_csrf_checks = not self.enforce_csrf_checks
        return request

    def _answer(self, request: Any) -> Any:
        Report.on_loop += handler.ON_LOOP in request.__dict__
        response = self.get_response(request)
        django.test.client.conditional_content_removal(request, response)
        self.seen = request, response
        return response

    def get_response(self, request: Any) -> Any:
        return self.ours(request)


class WSGIHandler(_Handler):
    """What DRF's `RequestsClient` calls."""

    def __init__(self) -> None:
        self.application = application.AsyncDjangoApplication()
        self.ours = self.application.handler.get_response
        self.application.handler.get_response = self._answer

    def _answer(self, request: Any) -> Any:
        Report.on_loop += handler.ON_LOOP in request.__dict__
        return self.ours(request)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        Report.requests += 1
        return self.serve(environ, start_response)


def _count_requests() -> None:
    """Of Django's own handlers."""
    for kind in (django.test.client.ClientHandler, django.core.handlers.wsgi.WSGIHandler):

        def counted(*args: Any, original: Any = kind.__call__, **kwargs: Any) -> Any:
            Report.requests += 1
            return original(*args, **kwargs)

        kind.__call__ = counted


def _serve_requests() -> None:
    """By our application, before DRF imports the names of Django's handlers."""
    django.test.client.ClientHandler = ClientHandler
    django.core.handlers.wsgi.WSGIHandler = WSGIHandler
    # Requests are in the test's scope, which outlives them.
    begin = borrow.begin
    borrow.begin = lambda name, **kwargs: borrow.current() or begin(name)
    borrow.leave = exchange.tidy_connections = lambda *args: None
    for signal in (request_started, request_finished):
        signal.disconnect(close_old_connections)
    if Run.loop == "loop":
        Judge._kind = lambda self, view, method: (True, [])
        Judge.surroundings = lambda self: []


# Coroutine handlers.


def _coroutine(function: Any, counter: str) -> Any:
    """An `async def` that calls a plain function, or awaits what that hands on."""

    @wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        setattr(Report, counter, getattr(Report, counter) + 1)
        result = function(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result

    return call


_handler = partial(_coroutine, counter="handlers_awaited")
_other = partial(_coroutine, counter="others_awaited")


def _is_plain(attribute: Any) -> bool:
    return inspect.isfunction(attribute) and not inspect.iscoroutinefunction(attribute)


def _is_handler(name: str, attribute: Any) -> bool:
    """Whether it is a plain one, which `api_view` didn't make."""
    return (
        _is_plain(attribute)
        and (name in HANDLERS or hasattr(attribute, "mapping"))
        and attribute.__module__ != "rest_framework.decorators"
    )


@cache
def _with_coroutines(kind: Any) -> Any:
    """A view with its handlers, those that it has from DRF, as coroutine functions."""
    inherited = {name: getattr(kind, name) for name in dir(kind) if not name.startswith("__")}
    found = {name: _handler(each) for name, each in inherited.items() if _is_handler(name, each)}
    if not found:
        return kind
    own = {"__doc__": kind.__doc__, "__module__": kind.__module__, **found}
    return type(kind.__name__, (kind,), {**own, "__qualname__": kind.__qualname__})


def _coroutines() -> None:
    """All classes of the tests get coroutines, each before it is used."""

    def of_view(name: str, attribute: Any) -> Any:
        return _handler(attribute) if _is_handler(name, attribute) else None

    def views(module: Any) -> None:
        _subclasses(module.APIView, of_view)
        _as_view(module.APIView)

    def decorators(module: Any) -> None:
        api_view = module.api_view
        module.api_view = lambda *methods: lambda function: api_view(*methods)(_handler(function))

    when_imported("rest_framework.views", views)
    when_imported("rest_framework.viewsets", lambda module: _as_view(module.ViewSetMixin))
    when_imported("rest_framework.decorators", decorators)
    for (module, name), names in BENEATH.items():
        when_imported(f"rest_framework.{module}", partial(_beneath, name, names))


def _beneath(name: str, names: set[str], module: Any) -> None:
    made_up = ("validate_", "get_") if name == "BaseSerializer" else ()

    def replaced(key: str, attribute: Any) -> Any:
        called = key in names or key.startswith(made_up)
        return _other(attribute) if called and _is_plain(attribute) else None

    _subclasses(getattr(module, name), replaced)


def _subclasses(base: Any, replaced: Callable[[str, Any], Any]) -> None:
    """Replace attributes of the tests' classes by what `replaced` returns, if anything."""

    def init_subclass(cls: Any, **kwargs: Any) -> None:
        super(base, cls).__init_subclass__(**kwargs)
        if cls.__module__.startswith("tests."):
            for name, attribute in list(vars(cls).items()):
                value = replaced(name, attribute)
                if value is not None:
                    setattr(cls, name, value)

    base.__init_subclass__ = classmethod(init_subclass)


def _as_view(kind: Any) -> None:
    as_view = vars(kind)["as_view"].__func__

    @classmethod  # type: ignore[misc]
    @wraps(as_view)
    def of_coroutines(cls: Any, *args: Any, **kwargs: Any) -> Any:
        # It also sets attributes of the class, which tests look at.
        as_view(cls, *args, **kwargs)
        return as_view(_with_coroutines(cls), *args, **kwargs)

    kind.as_view = of_coroutines


# The run.


def _configure() -> None:
    """Change the settings of DRF's tests: our databases and, but in a stock run, our app."""
    configure = LazySettings.configure

    def with_ours(self: Any, **options: Any) -> None:
        options["DATABASES"] = json.loads(os.environ["GREENROOM_CONFORMANCE_DATABASES"])
        if Run.loop != "stock":
            options["INSTALLED_APPS"] = ("greenroom", *options["INSTALLED_APPS"])
            placement = "thread" if Run.loop.endswith("thread") else "auto"
            options["GREENROOM"] = {"PLACEMENT": placement, "LOOP_SAFE": ["*"]}
        configure(self, **options)

    LazySettings.configure = with_ours


def _run(labels: list[str]) -> int:
    runner.count_queries()
    arguments = ["-q", "-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:timeout", *labels]
    main = partial(pytest.main, arguments, plugins=[Plugin()])
    began = time.perf_counter()
    try:
        if Run.loop == "stock":
            _count_requests()
            return int(main())
        if Run.loop not in PLAIN_RUNS:
            _coroutines()
        _serve_requests()
        return int(_on_loop(main))
    finally:
        Report.seconds = time.perf_counter() - began
        runner.write()


def _on_loop(main: Callable[[], Any]) -> Any:
    def run() -> Any:
        try:
            return main()
        finally:
            connections.close_all()

    async def whole() -> Any:
        loop = asyncio.get_running_loop()
        home = Home(loop, Threads(loop, limit=4))
        home.register()
        try:
            return await runner.counted(bridge.run(run))
        finally:
            await home.aclose()

    with asyncio.Runner() as asyncio_runner:
        return asyncio_runner.run(whole())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", type=Path, required=True)
    parser.add_argument("--run", choices=RUNS, required=True)
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--timeout", type=float, required=True)
    parser.add_argument("labels", nargs="*", default=["tests"])
    options = parser.parse_args()
    Run.loop = options.run
    Run.result = options.result.resolve()
    watchdog = threading.Timer(options.timeout, runner.give_up)
    watchdog.daemon = True
    watchdog.start()
    # They configure their own settings.
    os.environ.pop("DJANGO_SETTINGS_MODULE", None)
    os.chdir(options.tests)
    sys.path.insert(0, os.getcwd())
    _configure()
    return _run(options.labels)


if __name__ == "__main__":
    sys.exit(main())
