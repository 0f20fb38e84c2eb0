"""Applications that are told of the end, that block the loop, and that have probes."""

import asyncio
import itertools
import os
import sys
import time
from typing import Any

from greenroom import await_, bridge, shutting_down


def note(what: str) -> None:
    sys.stderr.write(f"note: {what}\n")
    sys.stderr.flush()


note("imported")


async def events(environ: dict[str, Any], start_response: Any) -> Any:
    """Server-sent events. `/deaf` doesn't listen to the end."""
    path = environ["PATH_INFO"]
    if path == "/exit":
        raise SystemExit(7)
    start_response("200 OK", [("Content-Type", "text/event-stream")])
    if path == "/hello":
        return [b"hello"]
    return _deaf() if path == "/deaf" else _ticks()


async def _ticks() -> Any:
    ending = shutting_down()
    while not ending.is_set():
        yield b"data: tick\n\n"
        try:
            async with asyncio.timeout(3600):
                await ending.wait()
        except TimeoutError:
            continue
    note("told")
    yield b"data: bye\n\n"


async def _deaf() -> Any:
    try:
        yield b"data: tick\n\n"
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        note("cancelled")
        raise


def plain_events(environ: dict[str, Any], start_response: Any) -> Any:
    """The same on a thread: it asks, or waits."""
    start_response("200 OK", [("Content-Type", "text/event-stream")])
    if environ["PATH_INFO"] == "/wait":
        yield b"data: tick\n\n"
        await_(shutting_down().wait())
    else:
        while not shutting_down().is_set():
            yield b"data: tick\n\n"
            time.sleep(0.05)
    yield b"data: bye\n\n"


async def blocking(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    path = environ["PATH_INFO"]
    if path == "/block":
        block(float(environ["QUERY_STRING"].partition("&")[0]))
    elif path == "/suspended":
        note("suspended")
        await bridge.run(wait_in_a_bridge)
    elif path == "/sleep":
        note("sleeping")
        await asyncio.sleep(float(environ["QUERY_STRING"]))
    elif path == "/until":
        # There is a file of this name.
        note(f"waiting in {os.getpid()}")
        while not os.path.exists(environ["QUERY_STRING"]):
            await asyncio.sleep(0.02)
    elif path == "/in-c":
        note("in C")
        keep_the_lock()
    elif path == "/busy":
        note("busy")
        ends = time.monotonic() + float(environ["QUERY_STRING"])
        while time.monotonic() < ends:
            spin(0.005)
            await asyncio.sleep(0)
    elif path == "/child":

        async def child() -> None:
            block(0.5)

        await asyncio.create_task(child())
    start_response("200 OK", [])
    return [b"%d" % os.getpid()]


def block(seconds: float) -> None:
    time.sleep(seconds)


def spin(seconds: float) -> None:
    ends = time.thread_time() + seconds
    while time.thread_time() < ends:
        pass


def wait_in_a_bridge() -> None:
    await_(asyncio.sleep(3600))


def keep_the_lock() -> None:
    all(itertools.repeat(True))


class Optional:
    """`blocking`, with options from the environment."""

    @property
    def coroutine_wsgi_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if "PROBES" in os.environ:
            options["probes"] = os.environ["PROBES"]
        if "UNWATCHED" in os.environ:
            options["stall_threshold"] = None
        return options

    async def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        return await blocking(environ, start_response)


optional = Optional()
