"""Where `sync_to_async` calls of a coroutine run: Django's own need no thread.

``await Article.objects.aget()`` is ``sync_to_async(queryset.get)()``. Where the
database can be waited for, such a call is made in the task's bridge. It must be
Django's code all the way: a project that overrides `save`, or a method of its
querysets, has that run on a thread, as in plain Django.

All else that is sent to a thread has the request's wrapper there, and what the
call borrowed is given back when it ends.
"""

from __future__ import annotations

import asyncio
import inspect
from asyncio import CancelledError
from collections.abc import Callable
from contextvars import copy_context
from functools import lru_cache, partial
from typing import Any

from asgiref.sync import SyncToAsync
from asgiref.sync import sync_to_async as asgiref_sync_to_async
from django.contrib.sessions.backends.base import SessionBase
from django.db.models import Manager, Model, QuerySet

from greenroom import bridge
from greenroom.crossing import Holding, ToItsEnd

from . import borrow


def route(fn: Callable[[], Any]) -> Any:
    """What `greenroom.crossing.Calls` does with a call: see there."""
    call = _target(fn)
    scope = borrow.current()
    if scope is None:
        return ToItsEnd(fn) if isinstance(call, ToItsEnd) else fn
    if call is not None and is_djangos(call) and borrow.waits_on_loop() and scope.is_ours():
        return _here(fn)
    in_block = scope.is_in_block()
    held = in_block or scope.suspend()
    to_its_end = in_block or isinstance(call, ToItsEnd)
    if scope.own:
        return ToItsEnd(fn, held=held, in_block=in_block) if to_its_end else fn
    context = copy_context()

    def on_thread() -> Any:
        try:
            return fn()
        finally:
            context.run(scope.suspend)

    if to_its_end:
        return ToItsEnd(on_thread, held=held, in_block=in_block)
    return Holding(on_thread) if held else on_thread


def is_djangos(call: Any) -> bool:
    """Whether a call runs Django's ORM or sessions, and nothing of the project's."""
    if isinstance(call, partial):
        call = call.func
    module = getattr(call, "__module__", None) or ""
    if not module.startswith(_MODULES):
        return False
    owner = getattr(call, "__self__", None)
    if owner is None:
        return inspect.isfunction(call)
    kind: Any = type(owner)
    if isinstance(owner, _QUERIES):
        model: Any = owner.model
        return not _overrides(kind) and not _overrides(model)
    if isinstance(owner, Model):
        return not _overrides(kind)
    return isinstance(owner, SessionBase) and kind.__module__ in _SESSIONS


_QUERIES = (QuerySet, Manager)


_SESSIONS = tuple(
    f"django.contrib.sessions.backends.{name}"
    for name in ("cache", "cached_db", "db", "signed_cookies")
)
_MODULES = ("django.db.models.", "django.contrib.contenttypes.fields", *_SESSIONS)

# What a project may define, under a name of Django's, and no call here runs it.
_HARMLESS = frozenset({"__eq__", "__hash__", "__repr__", "__str__", "get_queryset", "natural_key"})


@lru_cache(maxsize=4096)
def _overrides(kind: type) -> bool:
    """Whether a class of the project replaces a method of Django's."""
    django = [each for each in kind.__mro__ if each.__module__.startswith("django.")]
    return any(
        name not in _HARMLESS
        and (inspect.isroutine(value) or isinstance(value, property))
        and any(name in vars(each) for each in django)
        for each in kind.__mro__
        if each not in django and each is not object
        for name, value in vars(each).items()
    )


def _target(fn: Any) -> Any:
    """The function within what asgiref submits."""
    handler = getattr(fn, "func", None)
    if getattr(handler, "__func__", None) is SyncToAsync.thread_handler and len(fn.args) == 5:
        return getattr(fn.args[4], "func", None)
    return None


def sync_to_async(fn: Any, *args: Any, **kwargs: Any) -> Any:
    """In the place of asgiref's, where Django's ``a…`` calls find it.

    What would be called here all the same (see `route`) is called without what asgiref does
    to bring a call to a thread, and a context back: a quarter of a simple query's time.
    """
    if not args and not kwargs and bridge.in_bridge() and is_djangos(fn):
        scope = borrow.current()
        if scope is not None and borrow.waits_on_loop() and scope.is_ours():
            return partial(_call, fn)
    return asgiref_sync_to_async(fn, *args, **kwargs)


async def _call(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return fn(*args, **kwargs)


def _here(fn: Callable[[], Any]) -> asyncio.Future[Any]:
    loop = asyncio.get_running_loop()
    if not bridge.in_bridge():
        # A child task without a bridge.
        return loop.create_task(_bridged(fn))
    future: asyncio.Future[Any] = loop.create_future()
    try:
        future.set_result(fn())
    except (CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit):
        raise
    except StopIteration:
        future.set_exception(RuntimeError("synchronous code raised StopIteration"))
    except BaseException as exc:
        future.set_exception(exc)
    finally:
        SyncToAsync.threadlocal.task_context = None
    return future


async def _bridged(fn: Callable[[], Any]) -> Any:
    return await bridge.run(fn)
