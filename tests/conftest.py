"""One Django project for the whole run; each test that serves makes its own application."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell has it in the background: some of the servers that are started end by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

import django

django.setup(set_prefix=False)

import driver  # noqa: E402
import postgresql  # noqa: E402
from crashes import pytest_sessionfinish, pytest_testnodedown  # noqa: E402, F401
from greenroom.db import borrow  # noqa: E402

# What takes longest, a module at a time, is begun first where processes share the tests.
_FIRST = ("conformance", "test_database.py", "demo", "wire", "db")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if {"conformance", "demo"} & set(item.path.parts):
            item.add_marker("once")
    if hasattr(config, "workerinput"):

        def turn(item: pytest.Item) -> int:
            parts = item.path.parts
            return next((n for n, each in enumerate(_FIRST) if each in parts), len(_FIRST))

        items.sort(key=turn)


def pytest_collection_finish() -> None:
    """What is there before the first test is not looked through after each of them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=["asyncio", "uvloop"])
def loop_factory(request: pytest.FixtureRequest) -> Any:
    """Both event loops."""
    if request.param == "uvloop":
        uvloop = pytest.importorskip("uvloop")
        return uvloop.new_event_loop
    return asyncio.new_event_loop


@pytest.fixture(params=["loop", "thread"])
def placement(request: pytest.FixtureRequest) -> str:
    """Both places for the synchronous code around a coroutine view."""
    return str(request.param)


@pytest.fixture
def site(placement: str) -> Iterator[driver.Site]:
    with driver.Site(placement) as site:
        yield site


@pytest.fixture(scope="session")
def pg() -> Iterator[postgresql.PostgreSQL]:
    """A real PostgreSQL, the same for all tests; each makes its own databases."""
    if postgresql.find() is None:
        (pytest.fail if postgresql.required() else pytest.skip)(postgresql.MISSING)
    with postgresql.server() as pg:
        yield pg


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    """What a test leaves in cycles is reported in that test, not in a later one.

    So is a request whose wrappers the thread would go on with.
    """
    yield
    gc.collect()
    scope = borrow._scope.get()
    borrow._scope.set(None)
    assert scope is None or scope.closed, f"{scope.name} was not left"
