"""For code that was written for plain views and meets coroutines."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from asgiref.sync import iscoroutinefunction

from . import loops
from .bridge import await_

P = ParamSpec("P")
T = TypeVar("T")

# asgiref's mark (Python 3.11) and inspect's, which `wraps` copies.
MARKS = ("_is_coroutine", "_is_coroutine_mark")


def sync_view(view: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Make a plain function of a coroutine function: for old decorators above it.

    ``@transaction.atomic``, ``@cache_page`` or one of the project's own call what
    they decorate and take what it returns for the response. Put this decorator
    beneath them. The view is placed on a thread, parked while the coroutine runs.
    """
    if not iscoroutinefunction(view):
        raise TypeError(
            f"@sync_view is for coroutine functions, and {view!r} is none: take it away, or put "
            "it beneath the other decorators."
        )
    assert loops.wait is not None

    @wraps(view)
    def plain(*args: P.args, **kwargs: P.kwargs) -> T:
        return await_(view(*args, **kwargs))

    for mark in MARKS:
        plain.__dict__.pop(mark, None)
    plain._greenroom_awaits = True  # type: ignore[attr-defined]
    return plain
