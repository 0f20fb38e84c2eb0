"""Every name of another package that is replaced, or private and relied on.

Replaced by `apply()`, once per process, by ``AppConfig.ready()`` or by the
application. Each is inert outside of a bridge and of a thread that serves a
request: there the original runs.

=====================================  ==========================================
replaced                               why
=====================================  ==========================================
`asgiref.sync.AsyncToSync.__call__`    in a bridge it raises "You cannot use
                                       AsyncToSync in the same thread as an async
                                       event loop"; on a thread that serves a
                                       request it would block it in its place
                                       among the running ones
`django.urls.URLResolver               a coroutine handler404 … handler500 would
.resolve_error_handler`                return a coroutine in the place of a
                                       response
`django.core.cache.caches              it keeps clients in a context variable:
._connections`                         every request, having a context of its
                                       own, would make a new client
=====================================  ==========================================

=====================================  ==========================================
private, relied on                     for
=====================================  ==========================================
`asgiref.sync._restore_context`        the one function that re-homes `Local`
                                       storage, which is tagged with its thread
                                       since asgiref 3.13
`SyncToAsync.threadlocal`              its `main_event_loop`, `main_event_loop_pid`
                                       and `task_context`
`AsyncToSync.loop_thread_executors`    where thread-sensitive calls are sent to us
`asyncio._get_running_loop`            the running loop or None, with no exception
`Signal._live_receivers`,              which receivers the request signals have
`Signal.receivers`
`StreamingHttpResponse._iterator`      to close a coroutine view's generator
`HttpResponseBase._resource_closers`   as Django's own handlers do
`BaseHandler._view_middleware` …       as Django's own handlers do
=====================================  ==========================================

Those of Django REST framework are in `greenroom.integrations.rest_framework`.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

from asgiref.sync import AsyncToSync, iscoroutinefunction
from django.core.cache import caches
from django.urls import URLResolver

from . import bridge, loops

_applied = False


def apply() -> None:
    """Replace what the table above names. Calling it again does nothing."""
    global _applied
    if _applied:
        return
    _applied = True
    AsyncToSync.__call__ = _async_to_sync  # type: ignore[method-assign]
    URLResolver.resolve_error_handler = _resolve_error_handler  # type: ignore[method-assign]
    caches._connections = ThreadClients(caches._connections)  # type: ignore[attr-defined]


def can_await() -> bool:
    """Whether `await_` here waits within a request, on the loop or on a thread."""
    if asyncio._get_running_loop() is None:
        return bridge.thread_wait() is not None
    return bridge.in_bridge()


_async_to_sync_call = AsyncToSync.__call__


@wraps(_async_to_sync_call)  # type: ignore[arg-type]
def _async_to_sync(self: AsyncToSync[Any, Any], *args: Any, **kwargs: Any) -> Any:
    if self.force_new_loop or not can_await():
        return _async_to_sync_call(self, *args, **kwargs)
    if asyncio._get_running_loop() is not None:
        return bridge.await_(self.awaitable(*args, **kwargs))
    return bridge.await_(_as_asgiref(self.awaitable, sys.exc_info()[1], args, kwargs))


async def _as_asgiref(
    fn: Callable[..., Any], error: BaseException | None, args: Any, kwargs: Any
) -> Any:
    """Call `fn` on the loop, in the `except` block, if any, that its caller is in."""
    if error is None:
        return await fn(*args, **kwargs)
    try:
        raise error
    except BaseException:
        del error
        return await fn(*args, **kwargs)


_resolver_error_handler = URLResolver.resolve_error_handler


@wraps(_resolver_error_handler)
def _resolve_error_handler(self: URLResolver, view_type: int) -> Any:
    handler = _resolver_error_handler(self, view_type)
    if not iscoroutinefunction(handler) or not can_await():
        return handler

    @wraps(handler)
    def plain(*args: Any, **kwargs: Any) -> Any:
        return bridge.await_(handler(*args, **kwargs))

    return plain


class ThreadClients:
    """Cache clients: one per thread and alias where requests are served.

    Elsewhere they stay where Django keeps them.
    """

    def __init__(self, original: Any) -> None:
        self.__dict__["_original"] = original
        self.__dict__["_own"] = threading.local()

    def _clients(self) -> Any:
        serving = bridge.thread_wait() is not None or loops.current() is not None
        return self.__dict__["_own" if serving else "_original"]

    def __getattr__(self, alias: str) -> Any:
        return getattr(self._clients(), alias)

    def __setattr__(self, alias: str, client: Any) -> None:
        setattr(self._clients(), alias, client)

    def __delattr__(self, alias: str) -> None:
        delattr(self._clients(), alias)
