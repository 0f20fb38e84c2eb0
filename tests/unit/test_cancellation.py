"""A client that goes away: the view is cancelled, everything is closed once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from django.core.signals import request_finished
from django.http import HttpResponse

import driver
from driver import Site
from project import middleware, views


@pytest.fixture
def finished() -> Iterator[list[str]]:
    sent: list[str] = []

    def receiver(**kwargs: Any) -> None:
        sent.append(views.place_now())

    receiver.__module__ = "project.tests"
    request_finished.connect(receiver)
    yield sent
    request_finished.disconnect(receiver)


async def ticks(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


def test_the_view_is_cancelled(site: Site, finished: list[str]) -> None:
    site.use("project.middleware.Coroutine", "project.middleware.function")

    async def main(site: Site) -> None:
        views.waiting.clear()
        views.events.clear()
        task = asyncio.create_task(driver.ask(site.app, "/wait/"))
        await until(lambda: views.waiting)
        await ticks(3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    site.run(main)
    assert views.events == ["cancelled", "finally"]
    assert finished == [site.placement]


class _Slow:
    """An async response phase, in which the request is cancelled."""

    sync_capable = False
    async_capable = True
    closed: ClassVar[list[str]] = []

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        middleware.markcoroutinefunction(self)

    async def __call__(self, request: Any) -> HttpResponse:
        response = await self.get_response(request)
        response._resource_closers.append(lambda: self.closed.append("closed"))
        middleware.log.append("slow")
        await asyncio.sleep(30)
        return response


middleware.Slow = _Slow


def test_a_response_that_was_made_is_closed(site: Site, finished: list[str]) -> None:
    site.use("project.middleware.Slow")
    middleware.log.clear()
    _Slow.closed.clear()

    async def main(site: Site) -> None:
        task = asyncio.create_task(driver.ask(site.app, "/hello/"))
        await until(lambda: middleware.log)
        await ticks(3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    site.run(main)
    assert _Slow.closed == ["closed"]
    assert len(finished) == 1


@pytest.mark.parametrize("path", ["/stream/", "/sync-stream/"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_stream_is_closed(site: Site, finished: list[str], path: str, after: int) -> None:
    """Cancelled after that many parts, as a server does whose client is gone."""

    async def main(site: Site) -> None:
        views.events.clear()
        result = await site.app(driver.environ_of(path), lambda *args: None)
        parts = aiter(result)
        for _ in range(after):
            await anext(parts)
        await result.aclose()

    site.run(main)
    assert len(finished) == 1
    # A generator that was not begun has nothing to close.
    assert views.events.count("stream closed") == (1 if after else 0)
    assert len([event for event in views.events if event.startswith("make")]) == after


@pytest.mark.parametrize("steps", range(12))
def test_cancelled_anywhere_finishes_once(site: Site, finished: list[str], steps: int) -> None:
    """After any number of turns of the loop."""
    site.use("project.middleware.Mixin", "project.middleware.Coroutine")

    async def main(site: Site) -> bool:
        _ = site.app
        started: list[int] = []
        signal = driver_started(started)
        task = asyncio.create_task(driver.ask(site.app, "/stream/"))
        await ticks(steps)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        signal()
        return bool(started)

    began = site.run(main)
    assert len(finished) == (1 if began else 0)


def driver_started(started: list[int]) -> Any:
    from django.core.signals import request_started

    def receiver(**kwargs: Any) -> None:
        started.append(1)

    receiver.__module__ = "project.tests"
    request_started.connect(receiver)
    return lambda: request_started.disconnect(receiver)


def test_a_task_that_outlives_its_request(site: Site) -> None:
    async def main(site: Site) -> None:
        views.outlived.clear()
        assert (await site.ask("/outlive/")).text == "gone"
        gate, task = views.settings_gate.pop()
        await asyncio.to_thread(lambda: None)
        gate.set_result(None)
        await task

    site.run(main)
    assert views.outlived == ["thread"]
