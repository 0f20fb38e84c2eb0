"""Synchronous code of the loop that is run on a thread, while the loop goes on.

`off_loop(fn)` is for code that nobody read: it has the context of its caller, the
exception that its caller is handling, the request's database connections, and
what its caller holds of them (see `greenroom.turns`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

from asgiref.sync import sync_to_async

from . import turns
from .bridge import await_, in_bridge
from .crossing import ToItsEnd

P = ParamSpec("P")
T = TypeVar("T")


def off_loop(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `fn` on a thread if this is the loop's, with the context and `exc_info`.

    A cancellation waits until the thread is done: it uses the request.
    """
    if not in_bridge():
        return fn(*args, **kwargs)
    handled = sys.exc_info()[1]
    traceback = handled.__traceback__ if handled is not None else None
    call = ToItsEnd(partial(turns.acting, turns.actor(), fn, *args, **kwargs))
    try:
        return await_(sync_to_async(call)())  # type: ignore[no-any-return]
    finally:
        if handled is not None:
            # asgiref raised it again on the thread, in a frame that refers to it.
            handled.__traceback__ = traceback
        del handled, traceback
