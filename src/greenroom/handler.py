"""Django's request cycle with coroutine views, as synchronous code.

`Handler.get_response(request)` is Django's own, for both placements: on a thread
it runs as it always did; on the loop it runs in a bridge. Where it meets a
coroutine (a view, a middleware, an error handler) it calls `await_`, which parks
the thread or suspends the task.

What the placement foresaw is a hint. A plain view that turns up on the loop (a
middleware changed the URLconf or the language) is run on a thread; so is deferred
rendering, since templates call code that nobody read, unless an integration knows
what is called (`integrations.rendered`). Error responses and log records are made off
the loop: they render templates, read source files and send mail.

Django's converter of exceptions catches `Exception`. A cancellation or
`SystemExit` passes through all middlewares, and `close_unanswered` then does what
the response's `close()` would have done.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import update_wrapper
from io import BytesIO
from types import CoroutineType
from typing import Any, ParamSpec, TypeVar

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured, MiddlewareNotUsed
from django.core.handlers import exception
from django.core.handlers.asgi import ASGIRequest
from django.core.handlers.base import BaseHandler
from django.core.signals import request_finished
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import ResolverMatch, get_resolver
from django.utils.log import log_response
from django.utils.module_loading import import_string

from . import conf, integrations
from .bridge import await_, in_bridge, run
from .errors import Overloaded, ViewError
from .off_loop import off_loop
from .placement import Judge, atomic_aliases, is_coroutine_view

P = ParamSpec("P")
T = TypeVar("T")
GetResponse = Callable[[HttpRequest], HttpResponseBase]

logger = logging.getLogger("django.request")

_RESPONSE = "_greenroom_response"
_SOURCE = "_greenroom_source"
_HINT = "_greenroom_hint"
# Present on a request whose synchronous code runs on the loop: the view and the method for
# which that was decided.
ON_LOOP = "_greenroom_on_loop"


class Handler(BaseHandler):
    """The middleware chain and what is inside it.

    `judge` decides the placement of its views.
    """

    judge: Judge

    def __init__(self, sender: type) -> None:
        super().__init__()
        # Of the request signals.
        self._sender = sender

    def load_middleware(self, is_async: bool = False) -> None:
        """Build the chain from ``settings.MIDDLEWARE``.

        It is synchronous whatever `is_async` says: a coroutine middleware is
        called through `await_`.
        """
        self._view_middleware: list[Any] = []
        self._template_response_middleware: list[Any] = []
        self._exception_middleware: list[Any] = []
        used = []
        handler = _converted(self._get_response, "The view's render()")
        for path in reversed(settings.MIDDLEWARE):
            factory = import_string(path)
            can_sync = getattr(factory, "sync_capable", True)
            if not can_sync and not getattr(factory, "async_capable", False):
                raise RuntimeError(
                    f"Middleware {path} must have at least one of "
                    "sync_capable/async_capable set to True."
                )
            try:
                middleware = factory(handler if can_sync else _as_coroutine_function(handler))
            except MiddlewareNotUsed as exc:
                if settings.DEBUG:
                    if str(exc):
                        logger.debug("MiddlewareNotUsed(%r): %s", path, exc)
                    else:
                        logger.debug("MiddlewareNotUsed: %r", path)
                continue
            if middleware is None:
                raise ImproperlyConfigured(f"Middleware factory {path} returned None.")
            for name, hooks in (
                ("process_view", self._view_middleware),
                ("process_template_response", self._template_response_middleware),
                ("process_exception", self._exception_middleware),
            ):
                if hasattr(middleware, name):
                    hooks.append(_as_function(getattr(middleware, name)))
            handler = _converted(
                middleware if can_sync else _as_function(middleware), f"The middleware {path}"
            )
            used.append((path, factory))
        self._view_middleware.reverse()
        self.judge = Judge(used[::-1], self._sender)
        # Set last: Django takes it for the sign that all is loaded.
        self._middleware_chain = _logged(handler)

    # `get_response`, to be called in a bridge or on a thread, is Django's: tools that trace
    # replace it there.

    def set_hint(self, request: HttpRequest, path_info: str, match: ResolverMatch | None) -> None:
        """Spare the request a second look-up of its view, if nothing changes before it."""
        if match is not None:
            setattr(request, _HINT, (path_info, self.judge.language(), match))

    def resolve_request(self, request: HttpRequest) -> ResolverMatch:
        """The match for the request, which the placement has perhaps found already."""
        hint = request.__dict__.pop(_HINT, None)
        if (
            hint is not None
            and not hasattr(request, "urlconf")
            and hint[0] == request.path_info
            and hint[1] == self.judge.language()
        ):
            match: ResolverMatch = hint[2]
            request.resolver_match = match
        else:
            match = self._resolve(request)
        if getattr(match.func, "_greenroom_keep", not conf.settings().cancel_on_disconnect):
            request.META["coroutine_wsgi.cancel_on_disconnect"] = False
        return match

    def _resolve(self, request: HttpRequest) -> ResolverMatch:
        urlconf = getattr(request, "urlconf", None)
        if urlconf is not None and in_bridge():
            if self.judge.is_new(urlconf):
                # Its modules are imported now.
                off_loop(self.judge.learn, urlconf)
            if not self.judge.may_resolve():
                return off_loop(super().resolve_request, request)
        return super().resolve_request(request)

    def _get_response(self, request: HttpRequest) -> HttpResponseBase:
        response: Any = None
        match = self.resolve_request(request)
        view, args, kwargs = match.func, match.args, match.kwargs
        for hook in self._view_middleware:
            response = hook(request, view, args, kwargs)
            if response:
                break
        if response is None:
            try:
                response = self._call_view(view, request, args, kwargs)
            except Exception as exc:
                response = self.process_exception_by_middleware(exc, request)
                if response is None:
                    raise
        self.check_response(response, view)
        setattr(request, _RESPONSE, response)
        if getattr(response, "is_async", False):
            setattr(request, _SOURCE, getattr(response, "_iterator", None))
        if hasattr(response, "render") and callable(response.render):
            response = self._render(request, response)
            setattr(request, _RESPONSE, response)
        return response  # type: ignore[no-any-return]

    def _call_view(self, view: Any, request: HttpRequest, args: Any, kwargs: Any) -> Any:
        placed = request.__dict__.get(ON_LOOP) == (view, request.method)
        if not in_bridge():
            call = _call_on_thread
        elif placed or self.judge.fits_loop(view, request.method):
            call = _call_on_loop
        else:
            return off_loop(self._call_view, view, request, args, kwargs)
        for alias in atomic_aliases(view):
            call = transaction.atomic(using=alias)(call)
        return call(view, request, args, kwargs)

    def _render(self, request: HttpRequest, response: Any) -> Any:
        for hook in self._template_response_middleware:
            response = hook(request, response)
            name = f"{type(hook.__self__).__name__}.process_template_response"
            self.check_response(response, hook, name=name)
        try:
            if iscoroutinefunction(response.render):
                return await_(response.render())
            if in_bridge() and integrations.rendered(response):
                return response
            return off_loop(response.render)
        except Exception as exc:
            answer = self.process_exception_by_middleware(exc, request)
            if answer is None:
                raise
            return answer


def _logged(handler: GetResponse) -> GetResponse:
    """Log off the loop what `get_response` would log on it, which then doesn't again."""

    def inner(request: HttpRequest) -> HttpResponseBase:
        response = handler(request)
        setattr(request, _RESPONSE, response)
        if response.status_code >= 400 and not getattr(response, "_has_been_logged", False):
            off_loop(
                log_response,
                "%s: %s",
                response.reason_phrase,
                request.path,
                response=response,  # type: ignore[arg-type]
                request=request,
            )
        return response

    return update_wrapper(inner, handler)


def find(path_info: str) -> ResolverMatch:
    """The match for a path in the project's URLconf. Raises `Resolver404`."""
    return get_resolver(settings.ROOT_URLCONF).resolve(path_info)


def forget(request: HttpRequest) -> Any:
    """Drop what the request refers to: there is a response, which is to be closed.

    Returns the iterator that the view made, if it was a coroutine's stream.
    """
    request.__dict__.pop(_RESPONSE, None)
    return request.__dict__.pop(_SOURCE, None)


def closes_at_once(request: HttpRequest | None, response: HttpResponseBase | None) -> bool:
    """Whether `close()` runs no code but Django's own and the signals' receivers."""
    if request is None or request.__dict__.get("_files"):
        return False
    response = response or request.__dict__.get(_RESPONSE)
    if not isinstance(response, HttpResponseBase):
        return True
    if type(response).close is not HttpResponseBase.close or not _closes_at_once(request):
        return False
    for closer in response._resource_closers:  # type: ignore[attr-defined]
        if getattr(closer, "__self__", None) is not request:
            return False
    return True


def _closes_at_once(request: HttpRequest) -> bool:
    """Whether its own `close` runs no code but Django's, and waits for no disk."""
    close = type(request).close
    return close is HttpRequest.close or (
        close is ASGIRequest.close and isinstance(request._stream, BytesIO)
    )


def close_unanswered(request: HttpRequest | None, sender: type) -> None:
    """End a request that got no response: send `request_finished`, close its files.

    If the view had made a response, it is closed, which does both.
    """
    response = request.__dict__.pop(_RESPONSE, None) if request is not None else None
    if isinstance(response, HttpResponseBase):
        response._handler_class = sender  # type: ignore[attr-defined]
        response._resource_closers.append(request.close)  # type: ignore[attr-defined,union-attr]
        response.close()
        return
    try:
        if request is not None:
            request.close()
    finally:
        request_finished.send(sender=sender)


def _converted(get_response: GetResponse, name: str) -> GetResponse:
    """Make a response of every exception, and an exception of every None.

    What Django's `convert_exception_to_response` does, off the loop, and with
    the middleware's name in the error.
    """

    def inner(request: HttpRequest) -> HttpResponseBase:
        try:
            response = get_response(request)
            if response is None:
                raise ValueError(
                    f"{name} didn't return an HttpResponse object. It returned None instead."
                )
            if isinstance(response, CoroutineType):
                response.close()
                raise ValueError(
                    f"{name} didn't return an HttpResponse object. It returned an unawaited "
                    "coroutine instead. You may need to set sync_capable = False and "
                    "async_capable = True on it."
                )
        except Overloaded as exc:
            response = HttpResponse(status=503, headers={"Retry-After": str(exc.retry_after)})
            logger.warning("%s: %s", exc, request.path, extra={"request": request})
            # By the rule it would be logged on a thread, and there is none.
            response._has_been_logged = True  # type: ignore[attr-defined]
        except Exception as exc:
            response = off_loop(exception.response_for_exception, request, exc)
        return response

    return update_wrapper(inner, get_response)


def _as_coroutine_function(handler: GetResponse) -> Any:
    """`handler` as the `get_response` of a middleware that is a coroutine."""

    async def get_response(request: HttpRequest) -> HttpResponseBase:
        if in_bridge():
            # Called by the coroutine that is stepped in this very bridge.
            if _on_loop(request):
                return handler(request)
        elif _on_loop(request):
            return await run(handler, request)
        return await sync_to_async(handler)(request)

    return update_wrapper(get_response, handler)


def _on_loop(request: HttpRequest) -> bool:
    return ON_LOOP in request.__dict__


def _as_function(fn: Any) -> Any:
    """A coroutine function as a plain one; anything else as it is."""
    if not iscoroutinefunction(fn) and not iscoroutinefunction(getattr(fn, "__call__", None)):  # noqa: B004
        return fn

    def plain(*args: Any) -> Any:
        return await_(fn(*args))

    update_wrapper(plain, fn, updated=())
    plain.__self__ = getattr(fn, "__self__", fn)  # type: ignore[attr-defined]
    return plain


def _call_on_loop(view: Any, request: HttpRequest, args: Any, kwargs: Any) -> Any:
    return _settle(view, view(request, *args, **kwargs))


def _call_on_thread(view: Any, request: HttpRequest, args: Any, kwargs: Any) -> Any:
    """The answer of a view of any kind."""
    # A class's dispatch() is plain code around its coroutine, and may refuse the request.
    if is_coroutine_view(view) and not hasattr(view, "view_class"):
        # Called on the loop, which what it makes may want already.
        return await_(_call(view, request, args, kwargs))
    try:
        result = view(request, *args, **kwargs)
    except RuntimeError as exc:
        if str(exc).startswith(("no running event loop", "There is no current event loop")):
            raise ViewError(
                f"The view {_name(view)} wants the running event loop, but as a plain "
                "function it runs on a thread. If it returns an awaitable, mark it with "
                "asgiref.sync.markcoroutinefunction; otherwise make it `async def`."
            ) from exc
        raise
    return _settle(view, result)


async def _call(view: Any, request: HttpRequest, args: Any, kwargs: Any) -> Any:
    return _call_on_loop(view, request, args, kwargs)


def _settle(view: Any, result: Any) -> Any:
    if isinstance(result, HttpResponseBase):
        return result
    if type(result) is CoroutineType or inspect.isawaitable(result):
        return await_(result)
    if inspect.isgenerator(result):
        result.close()
        raise ViewError(
            f"The view {_name(view)} is a generator. If it is a coroutine, decorate it with "
            "@types.coroutine (or write it with async and await); if it makes the parts of the "
            "answer, return StreamingHttpResponse(parts())."
        )
    return result


def _name(view: Any) -> str:
    view = view if hasattr(view, "__qualname__") else type(view)
    return f"{view.__module__}.{view.__qualname__}"
