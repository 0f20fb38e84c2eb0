"""Synchronous code of the loop that is run on a thread, while the loop goes on.

`off_loop(fn)` is for code that nobody read: it has the context of its caller, the
exception that its caller is handling, the request's database connections, and
what its caller holds of them (see `greenroom.turns`).
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import CancelledError
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import ParamSpec, TypeVar

from asgiref.sync import sync_to_async

from . import turns
from .bridge import await_, in_bridge

P = ParamSpec("P")
T = TypeVar("T")


def off_loop(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `fn` on a thread if this is the loop's, with the context and `exc_info`.

    A cancellation waits until the thread is done: it uses the request.
    """
    if in_bridge():
        return await_(_to_its_end(partial(turns.acting, turns.actor(), fn, *args, **kwargs)))
    return fn(*args, **kwargs)


async def _to_its_end(fn: Callable[[], T]) -> T:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    # Taken by the thread when it begins, or by the cancellation: then it never does.
    turn = [None]

    def call() -> T:
        try:
            turn.pop()
        except IndexError:
            raise CancelledError from None
        try:
            return fn()
        finally:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_set, ended)

    handled = sys.exc_info()[1]
    traceback = handled.__traceback__ if handled is not None else None
    try:
        return await sync_to_async(call)()
    except CancelledError:
        try:
            turn.pop()
        except IndexError:
            while not ended.done():
                with suppress(CancelledError):
                    await asyncio.wait([ended])
        raise
    finally:
        if handled is not None:
            # asgiref raised it again on the thread, in a frame that refers to it.
            handled.__traceback__ = traceback
        del handled, traceback


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
