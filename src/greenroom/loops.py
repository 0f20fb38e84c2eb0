"""The lasting event loop of a process, and what belongs to it.

Every loop that serves requests has a `Home`: its threads, and an exit stack for
what lives as long as the process (clients, pools, the project's lifespan).

Under the worker the loop is the worker's. Under an ASGI server it is the server's:
`here()` makes it a home when it is first needed, which ends with the loop. There may
be several loops in a process, one after the other or each in a thread of its own.

Everywhere else (another WSGI server, a management command, a shell) `background()`
makes a loop, in a daemon thread of the process, when it is first needed. It is never
shared over a fork: a child makes its own. It ends at exit, when
`greenroom.shutting_down` is set, its tasks are cancelled and its lifespan is left: on
the loop alone, since Python 3.12 starts no thread then, and executors have ended in
every version.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import threading
from collections.abc import AsyncGenerator, Awaitable
from contextvars import Context
from typing import Any, TypeVar, cast

from asgiref.sync import AsyncToSync, SyncToAsync

from . import bridge
from .shutdown import shutting_down
from .threads import Threads

T = TypeVar("T")

logger = logging.getLogger("greenroom.loops")

# Threads of the background loop that run at a time: under another WSGI server
# requests bring their own, and these serve the calls of tasks only.
BACKGROUND_THREADS = 4
# At exit, until tasks of the background loop are cancelled.
_LAST_TURNS = 0.1


class Home:
    """What one event loop of this process owns."""

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: Threads) -> None:
        self.loop = loop
        self.threads = threads
        # Left when the loop ends; entered into by whoever has something lasting.
        self.stack = contextlib.AsyncExitStack()
        # What the application keeps for this loop, by a key of its own.
        self.state: dict[Any, Any] = {}
        # Of a loop that is somebody else's: ended by the loop when that ends.
        self.end: AsyncGenerator[None, None] | None = None
        self.pid = os.getpid()
        # Tasks that end with the stack, in order, and are not to be cancelled before.
        self.lasting: set[asyncio.Task[Any]] = set()

    def register(self) -> None:
        """Make this the home of its loop, for `current` and for asgiref."""
        _homes[self.loop] = self
        AsyncToSync.loop_thread_executors[self.loop] = self.threads.calls  # type: ignore[assignment]

    async def aclose(self) -> None:
        """Leave the stack, then let the threads end. To be called on the loop."""
        try:
            await self.stack.aclose()
        finally:
            self.threads.close()
            _homes.pop(self.loop, None)
            AsyncToSync.loop_thread_executors.pop(self.loop, None)


def current() -> Home | None:
    """The home of the running loop, if it has one."""
    loop = asyncio._get_running_loop()
    return None if loop is None else _homes.get(loop)


async def here(**limits: Any) -> Home:
    """The home of the running loop, which is somebody else's; made if it has none.

    `limits` are those of its `Threads`. It is left when the loop shuts its async
    generators down, as all that is run by `asyncio.run` or a `Runner` does; for a
    loop that is only stopped, at exit.
    """
    home = current()
    if home is None:
        _forget_closed_loops()
        loop = asyncio.get_running_loop()
        home = Home(loop, Threads(loop, **limits))
        home.register()
        home.end = _until_the_loop_ends(home)
        await anext(home.end)
    return home


def background() -> Home:
    """The home of this process's background loop, which is started if need be."""
    global _background
    home = _background
    if home is None:
        with _starting:
            home = _background
            if home is None:
                home = _background = _start()
    return home


def of_thread() -> Home:
    """The home whose loop answers what this thread waits for."""
    loop = getattr(SyncToAsync.threadlocal, "main_event_loop", None)
    home = _homes.get(loop) if loop is not None else None
    return home if home is not None and bridge.thread_wait() is not None else background()


def wait(awaitable: Awaitable[T]) -> T:
    """Run `awaitable` on the background loop; wait for it on this thread.

    On a thread to which asgiref sent a call (``thread_sensitive=False``) it runs
    on the loop of the coroutine that made the call, as asgiref's own do.
    """
    local = SyncToAsync.threadlocal
    home = None
    if getattr(local, "main_event_loop_pid", None) == os.getpid():
        home = _homes.get(local.main_event_loop)
    if home is None or not home.loop.is_running():
        home = background()
    return cast("T", home.threads.adopt(bridge.await_, awaitable))


bridge.set_fallback(wait)

# A home refers to its loop: each is taken out when it ends.
_homes: dict[asyncio.AbstractEventLoop, Home] = {}
_background: Home | None = None
_thread: threading.Thread | None = None
_starting = threading.Lock()


async def _until_the_loop_ends(home: Home) -> AsyncGenerator[None, None]:
    """The one thing that any loop tells us about its end is that it closes this."""
    try:
        yield
    finally:
        await _end(home)


async def _end(home: Home) -> None:
    try:
        await home.aclose()
    except Exception:
        logger.exception("An error when a loop ended")


def _forget_closed_loops() -> None:
    """Those that were closed without a word: their threads have nothing to wait for."""
    for loop, home in list(_homes.items()):
        if loop.is_closed():
            _homes.pop(loop, None)
            AsyncToSync.loop_thread_executors.pop(loop, None)
            home.threads.close()


@atexit.register
def _end_stopped_loops() -> None:
    """At exit: of loops that servers stopped, and did not close, such as Twisted's."""
    for loop, home in list(_homes.items()):
        if home.end is None or home.pid != os.getpid():
            continue
        if not loop.is_closed() and not loop.is_running():
            loop.run_until_complete(home.end.aclose())


def _start() -> Home:
    global _thread
    loop = asyncio.new_event_loop()
    home = Home(loop, Threads(loop, limit=BACKGROUND_THREADS))
    home.register()
    _thread = threading.Thread(
        target=_serve, args=(loop,), name="greenroom-background", daemon=True
    )
    # In no request's context: see `greenroom.threads`.
    Context().run(_thread.start)
    atexit.register(_stop, home, _thread)
    return home


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    while True:
        try:
            loop.run_forever()
        except (SystemExit, KeyboardInterrupt):
            # Of a task that nobody awaits: it must not end the loop of others.
            logger.exception("A task on the background loop tried to end it")
            continue
        return


def _stop(home: Home, thread: threading.Thread) -> None:
    """Cancel what runs, leave the lifespan, end the loop."""
    if home is not _background or home.loop.is_closed():
        return

    shutting_down().set()

    async def end() -> None:
        tasks = asyncio.all_tasks() - home.lasting - {asyncio.current_task()}
        if tasks:
            # Those that wait for `shutting_down` end by themselves.
            _, tasks = await asyncio.wait(tasks, timeout=_LAST_TURNS)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5)
        try:
            await home.aclose()
            await home.loop.shutdown_asyncgens()
        except Exception:
            logger.exception("An error when the background loop ended")
        finally:
            home.loop.stop()

    asyncio.run_coroutine_threadsafe(end(), home.loop)
    thread.join(10)
    if not thread.is_alive():
        home.loop.close()


def _after_fork() -> None:
    global _background, _starting
    _background = None
    _starting = threading.Lock()
    # What the forking thread waited with is the parent's.
    bridge.set_thread_wait(None)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
