"""Django REST framework: coroutines wherever it calls the project's code.

All around a coroutine stays DRF's own, synchronous code: it runs on a thread or,
on the loop, in a bridge, and where it calls something that is a coroutine, the
result is awaited before DRF sees it.

This module is long because it is one table of hooks into one package.

Rule 1: **results are tested, not functions**, for handlers, permissions,
throttles and authenticators: `@api_view`'s handler is a plain function that
returns a coroutine. A handler is awaited within dispatch's own ``try``, so what
it raises becomes DRF's error response.

Rule 2: **a coroutine that stands in the place of a plain method** (it overrides
one, or is called by a name that DRF makes up: ``validate_title``) is awaited too.

Rule 3: **who is a coroutine gets the coroutine.** ``await self.get_object()`` in
an `async def` handler awaits it as anywhere; called from plain code, DRF's or
others', the same method returns its result.

Rule 4: **instances are changed, never classes of the project**: its methods
found on the class, by `super()` or in a unit test, are as they were written.

Rule 5: **never granted unawaited.** A coroutine is true. A permission or throttle
that can't be awaited raises an error: `BridgeError` from `await_` on an event
loop outside of a bridge; `TypeError` where a plain method calls `super()`'s
coroutine, or a coroutine tests another without awaiting it.

Every name of DRF that is replaced, when its module is imported (3.18 was read):

=====================================  ==========================================
replaced                               why
=====================================  ==========================================
`APIView.dispatch`                     makes the view's instance await; after
                                       `initial()`, the handler of the method
`APIView.check_permissions`,           the same, for views that are checked without
`.check_object_permissions`,           a dispatch: by schemas, by the browsable API
`.check_throttles`
`APIView.view_is_async`                False: the coroutine was awaited inside; and
                                       Django's raises for handlers of both kinds
`GenericAPIView.filter_queryset`       awaits each backend, if one is a coroutine
`GenericAPIView.paginate_queryset`     awaits the paginator
`Request._authenticate`                for requests that are made by hand
`Field.__init__`                       serializers and fields with coroutines
`Field.run_validators`                 a coroutine validator would pass unawaited
`AdminRenderer.render`                 calls the view's ``get`` to show an error
`urlpatterns                           the converter of ``.json`` in a path is marked
._get_format_path_converter`           loop-safe: the class has no name to be known by
=====================================  ==========================================

=====================================  ==========================================
relied on                              for
=====================================  ==========================================
`AND`, `OR`, `NOT`: `op1`, `op2`       the operands of permissions are awaited
`OperandHolder`,                       the placement: the classes of operands
`SingleOperandHolder`: `op1_class` …
``func`` in the closure of             the placement: whether an @api_view is a
`@api_view`'s handler                  coroutine
``view.cls``, ``.actions``,            the placement: which handler answers a
``.initkwargs``                        method, and its policies
=====================================  ==========================================
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import wraps
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

from asgiref.sync import iscoroutinefunction

from .. import loops
from ..bridge import await_
from . import View, register, when_imported

PERMISSION = ("has_permission", "has_object_permission")
THROTTLE = ("allow_request", "wait")
AUTHENTICATION = ("authenticate", "authenticate_header")
ANSWERS = (*PERMISSION, "allow_request")

# What a view makes, and the methods of it that DRF calls.
POLICIES = {
    "get_permissions": PERMISSION,
    "get_throttles": THROTTLE,
    "get_authenticators": AUTHENTICATION,
    "get_parsers": ("parse",),
    "get_renderers": ("render",),
}

# Classes that DRF uses in places where nothing can be awaited.
PLAIN_ONLY = ("content_negotiation_class", "metadata_class", "versioning_class")


def apply() -> None:
    """Replace what the table above names, each when its module is imported."""
    # What is awaited off our loops runs on the background loop.
    assert loops.wait is not None
    when_imported("rest_framework.views", _views)
    when_imported("rest_framework.generics", _generics)
    when_imported("rest_framework.request", _request)
    when_imported("rest_framework.fields", _fields)
    when_imported("rest_framework.renderers", _renderers)
    when_imported("rest_framework.urlpatterns", _urlpatterns)


def _views(module: Any) -> None:
    view = module.APIView
    if "_greenroom" in view.__dict__:
        return
    view._greenroom = True
    view.view_is_async = False
    dispatch = view.dispatch

    @wraps(dispatch)
    def awaiting_dispatch(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_coroutines(self)
        _prepare(self)
        own = self.__dict__.get("initial")
        self.__dict__["initial"] = _Initial(self, "initial", own)
        try:
            return dispatch(self, request, *args, **kwargs)
        finally:
            _restore(self, "initial", own)

    view.dispatch = awaiting_dispatch
    for name in ("check_permissions", "check_object_permissions", "check_throttles"):
        setattr(view, name, _prepared(getattr(view, name)))
    register(methods, describe)


def _prepared(check: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(check)
    def prepared(self: Any, *args: Any) -> Any:
        _prepare(self)
        return check(self, *args)

    return prepared


def _generics(module: Any) -> None:
    view = module.GenericAPIView
    if "_greenroom" in view.__dict__:
        return
    view._greenroom = True
    filter_queryset, paginate_queryset = view.filter_queryset, view.paginate_queryset

    @wraps(filter_queryset)
    def awaiting_filter(self: Any, queryset: Any) -> Any:
        backends = list(self.filter_backends)
        if not any(_is_coroutine(backend, "filter_queryset") for backend in backends):
            return filter_queryset(self, queryset)
        for backend in backends:
            queryset = _settled(backend().filter_queryset(self.request, queryset, self))
        return queryset

    @wraps(paginate_queryset)
    def awaiting_paginate(self: Any, queryset: Any) -> Any:
        return _settled(paginate_queryset(self, queryset))

    view.filter_queryset = awaiting_filter
    view.paginate_queryset = awaiting_paginate


def _request(module: Any) -> None:
    request = module.Request
    authenticate = request._authenticate
    if hasattr(authenticate, "__wrapped__"):
        return

    @wraps(authenticate)
    def awaiting_authenticate(self: Any) -> Any:
        self.authenticators = [_awaiting(each, AUTHENTICATION) for each in self.authenticators]
        return authenticate(self)

    request._authenticate = awaiting_authenticate


def _fields(module: Any) -> None:
    field = module.Field
    init, run_validators = field.__init__, field.run_validators
    if hasattr(init, "__wrapped__"):
        return

    @wraps(init)
    def awaiting_init(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        for name in _coroutines(type(self)):
            self.__dict__.setdefault(name, _Method(self, name))

    @wraps(run_validators)
    def awaiting_validators(self: Any, value: Any) -> Any:
        validators = self.validators
        if any(map(_calls_coroutine, validators)):
            self.validators = [
                _Validator(each) if _calls_coroutine(each) else each for each in validators
            ]
        return run_validators(self, value)

    field.__init__ = awaiting_init
    field.run_validators = awaiting_validators


def _renderers(module: Any) -> None:
    renderer = module.AdminRenderer
    render = renderer.render
    if hasattr(render, "__wrapped__"):
        return

    @wraps(render)
    def awaiting_render(self: Any, data: Any, *args: Any, **kwargs: Any) -> Any:
        context = kwargs["renderer_context"] if "renderer_context" in kwargs else args[1]
        view = context["view"]
        own = view.__dict__.get("get")
        if hasattr(view, "get"):
            view.__dict__["get"] = _Handler(view, "get", own)
        try:
            return render(self, data, *args, **kwargs)
        finally:
            _restore(view, "get", own)

    renderer.render = awaiting_render


def _urlpatterns(module: Any) -> None:
    make = getattr(module, "_get_format_path_converter", None)
    if make is None or hasattr(make, "__wrapped__"):
        return

    @wraps(make)
    def known(*args: Any, **kwargs: Any) -> Any:
        converter = make(*args, **kwargs)
        # As `loop_safe` does. It strips the dot.
        converter._greenroom_loop_safe = converter
        return converter

    module._get_format_path_converter = known


# Instances that await.


class _Method:
    """A method of one instance, in its ``__dict__``: plain code gets its result.

    `own` is what stood in the instance's dictionary before, if anything.
    """

    __slots__ = ("name", "own", "owner")

    def __init__(self, owner: Any, name: str, own: Any = None) -> None:
        self.owner = owner
        self.name = name
        self.own = own

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        result = self.written()(*args, **kwargs)
        if not inspect.isawaitable(result):
            return self.finish(result)
        if sys._getframe(1).f_code.co_flags & inspect.CO_COROUTINE:
            if self.name in ANSWERS:
                return _Unanswered(self.owner, self.name, result)
            return self._later(result)
        return self.finish(await_(result))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.written(), name)

    def written(self) -> Any:
        """The method as the project wrote it."""
        if self.own is not None:
            return self.own
        kind = type(self.owner)
        attribute = _find(kind, self.name)
        bind = getattr(type(attribute), "__get__", None)
        return attribute if bind is None else bind(attribute, self.owner, kind)

    def finish(self, result: Any) -> Any:
        return result

    async def _later(self, result: Awaitable[Any]) -> Any:
        return self.finish(await result)


class _Unanswered:
    """What a coroutine gets that asks a permission: to be awaited, and no truth."""

    __slots__ = ("name", "owner", "result")

    def __init__(self, owner: Any, name: str, result: Awaitable[Any]) -> None:
        self.owner = owner
        self.name = name
        self.result = result

    def __await__(self) -> Any:
        return self.result.__await__()

    def __bool__(self) -> bool:
        if inspect.iscoroutine(self.result):
            self.result.close()
        raise TypeError(f"await {type(self.owner).__qualname__}.{self.name}(): it is a coroutine.")


class _Policies(_Method):
    """A view's `get_permissions` and its like."""

    __slots__ = ()

    def finish(self, result: Any) -> Any:
        return [_awaiting(each, POLICIES[self.name]) for each in result]


class _ExceptionHandler(_Method):
    """A view's `get_exception_handler`."""

    __slots__ = ()

    def finish(self, result: Any) -> Any:
        def handle(exc: Exception, context: Any) -> Any:
            return _settled(result(exc, context))

        return handle


class _Initial(_Method):
    """A view's `initial`, after which the handler of the request's method is called."""

    __slots__ = ()

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        view = self.owner
        result = _settled(self.written()(*args, **kwargs))
        name = view.request.method.lower()
        if name not in view.http_method_names or not hasattr(view, name):
            name = "http_method_not_allowed"
        view.__dict__[name] = _Handler(view, name, view.__dict__.get(name))
        return result


class _Handler(_Method):
    """The handler of the request's method, for its one call by `dispatch`."""

    __slots__ = ()

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        written = self.written()
        _restore(self.owner, self.name, self.own)
        return _settled(written(*args, **kwargs))


class _Validator:
    """A coroutine validator as a plain one."""

    def __init__(self, validator: Any) -> None:
        self._validator = validator

    def __call__(self, *args: Any) -> Any:
        return _settled(self._validator(*args))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._validator, name)


class _Proxy:
    """A policy whose instances can't be changed: it has slots and no dictionary."""

    def __init__(self, policy: Any, names: tuple[str, ...]) -> None:
        self._policy = policy
        for name in names:
            if hasattr(policy, name):
                self.__dict__[name] = _Method(policy, name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)


def _prepare(view: Any) -> None:
    """Make an instance of a view await what it makes and what it overrides."""
    own = view.__dict__
    for name in POLICIES:
        if not isinstance(own.get(name), _Method):
            own[name] = _Policies(view, name, own.get(name))
    if not isinstance(own.get("get_exception_handler"), _Method):
        name = "get_exception_handler"
        own[name] = _ExceptionHandler(view, name, own.get(name))
    for name in _coroutines(type(view)):
        if name not in own:
            own[name] = _Method(view, name)


def _awaiting(policy: Any, names: tuple[str, ...]) -> Any:
    """`policy`, whose methods of these names return results."""
    for operand in _operands(policy):
        # Replaced by itself, or by what stands for it.
        setattr(policy, operand, _awaiting(getattr(policy, operand), names))
    kind = type(policy)
    if kind is _Proxy:
        return policy
    for name in names:
        _refuse_super(kind, name)
    own = getattr(policy, "__dict__", None)
    if own is None:
        return _Proxy(policy, names)
    for name in (*names, *_coroutines(kind)):
        if isinstance(own.get(name), _Method) or not hasattr(policy, name):
            continue
        if name in own or not _is_of_drf(_find(kind, name)):
            own[name] = _Method(policy, name, own.get(name))
    return policy


def _operands(policy: Any) -> tuple[str, ...]:
    module = sys.modules.get("rest_framework.permissions")
    if module is None:
        return ()
    if isinstance(policy, (module.AND, module.OR)):
        return ("op1", "op2")
    return ("op1",) if isinstance(policy, module.NOT) else ()


def _restore(instance: Any, name: str, own: Any) -> None:
    if own is None:
        instance.__dict__.pop(name, None)
    else:
        instance.__dict__[name] = own


def _settled(result: Any) -> Any:
    return await_(result) if inspect.isawaitable(result) else result


# Classes: which of their methods are coroutines.

_found: WeakKeyDictionary[type, tuple[str, ...]] = WeakKeyDictionary()


def _coroutines(kind: type) -> tuple[str, ...]:
    """The coroutine functions of a class in the place of plain ones (rule 2)."""
    names = _found.get(kind)
    if names is None:
        names = _found[kind] = tuple(_search(kind))
    return names


def _search(kind: type) -> Iterator[str]:
    fields = sys.modules.get("rest_framework.fields")
    made_up = ("validate_", "get_") if fields and issubclass(kind, fields.Field) else ()
    for name in {name: None for each in kind.__mro__ for name in vars(each)}:
        if name.startswith("__"):
            continue
        versions = [vars(each)[name] for each in kind.__mro__ if name in vars(each)]
        if _is_coroutine_function(versions[0]) and (
            name.startswith(made_up)
            or any(callable(_function(v)) and not _is_coroutine_function(v) for v in versions)
        ):
            yield name


def _find(kind: type, name: str) -> Any:
    for each in kind.__mro__:
        if name in vars(each):
            return vars(each)[name]
    return None


def _function(attribute: Any) -> Any:
    return getattr(attribute, "__func__", attribute)


def _is_coroutine_function(attribute: Any) -> bool:
    return iscoroutinefunction(_function(attribute))


def _is_of_drf(attribute: Any) -> bool:
    module = getattr(_function(attribute), "__module__", None) or ""
    return isinstance(attribute, FunctionType) and module.startswith("rest_framework.")


def _is_coroutine(kind: Any, name: str) -> bool:
    return iscoroutinefunction(getattr(kind, name, None))


def _calls_coroutine(code: Any) -> bool:
    if isinstance(code, _Validator):
        return False
    return iscoroutinefunction(code) or iscoroutinefunction(_find(type(code), "__call__"))


def _refuse_super(kind: type, name: str) -> None:
    """Refuse a plain method that calls the coroutine it overrides."""
    versions = [each for each in kind.__mro__ if name in vars(each)]
    if not versions or _is_of_drf(vars(versions[0])[name]):
        return
    plain = None
    for each in versions:
        function = _function(vars(each)[name])
        if _is_coroutine_function(function):
            if plain is not None and {"super", each.__name__} & plain[1]:
                raise TypeError(
                    f"{plain[0].__qualname__}.{name} is a plain method over the coroutine "
                    f"{each.__qualname__}.{name}: what it gets from super() is always true. "
                    "Make it `async def` and await super()'s answer."
                )
            return
        code = getattr(inspect.unwrap(function), "__code__", None)
        plain = (each, set(code.co_names) if code is not None else set())


def _refuse_coroutines(view: Any) -> None:
    for attribute in PLAIN_ONLY:
        kind = getattr(view, attribute, None)
        names = _coroutines(kind) if isinstance(kind, type) else ()
        if names:
            raise TypeError(
                f"{kind.__module__}.{kind.__qualname__}.{names[0]} is a coroutine, which is not "  # type: ignore[union-attr]
                f"awaited in a {attribute}: make it a plain method, and wait in it with "
                "greenroom.await_()."
            )


# For the placement.


def methods(view: Any) -> tuple[str, ...] | None:
    """The methods of HTTP that a DRF view answers; None for another view."""
    views = sys.modules.get("rest_framework.views")
    if views is None or not _is_subclass(getattr(view, "cls", None), views.APIView):
        return None
    kind = view.cls
    actions = getattr(view, "actions", None)
    return tuple(
        name.upper()
        for name in kind.http_method_names
        if name not in ("head", "options")
        and (name in actions if actions is not None else hasattr(kind, name))
    )


def describe(view: Any, method: str) -> View:
    """Whether a coroutine answers this method, and what runs around it."""
    kind: Any = view.cls
    given = getattr(view, "initkwargs", {})

    def policy(name: str) -> Any:
        return given.get(name, getattr(kind, name, None))

    handler = _handler(view, method)
    classes: list[tuple[str, Any]] = [
        (name.removesuffix("_classes"), each)
        for name in (
            "authentication_classes",
            "permission_classes",
            "throttle_classes",
            "parser_classes",
            "renderer_classes",
        )
        for each in _operand_classes(policy(name) or ())
    ]
    if not _is_coroutine_function(handler) and not hasattr(handler, "_greenroom_awaits"):
        waits = any(isinstance(each, type) and _waits(each) for _, each in classes)
        # It is on a thread, which is parked while one of these is awaited.
        others = {*kind.http_method_names, *(getattr(view, "actions", None) or {}).values()}
        return View(
            coroutine=waits or bool(set(_coroutines(kind)) - others),
            reasons=(f"its {method} is a plain function",),
        )
    if hasattr(handler, "_greenroom_awaits"):
        return View(coroutine=True, reasons=(f"its {method} is a @sync_view",))
    classes += [(name.removesuffix("_class"), policy(name)) for name in PLAIN_ONLY if policy(name)]
    reasons = []
    if getattr(kind, "_greenroom_on_thread", False):
        reasons.append("the view is marked @on_thread")
    return View(
        coroutine=True,
        code=(*classes, *_overrides(kind)),
        reasons=tuple(reasons),
    )


def _is_subclass(kind: Any, base: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, base)


def _handler(view: Any, method: str) -> Any:
    name = method.lower()
    actions = getattr(view, "actions", None)
    if name == "head" and not hasattr(view.cls, "head"):
        name = "get"
    if actions is not None:
        name = actions.get(name, name if name == "options" else "")
    handler: Any = _find(view.cls, name) if name else None
    code = getattr(handler, "__code__", None)
    if code is not None and handler.__module__ == "rest_framework.decorators":
        # @api_view makes a plain handler, which calls the view.
        cells = dict(zip(code.co_freevars, handler.__closure__ or (), strict=False))
        return cells["func"].cell_contents if "func" in cells else handler
    return handler


def _operand_classes(classes: Any) -> Iterator[Any]:
    for each in classes:
        operands = [
            getattr(each, name) for name in ("op1_class", "op2_class") if hasattr(each, name)
        ]
        if operands and not isinstance(each, type):
            yield from _operand_classes(operands)
        else:
            yield each


def _waits(kind: type) -> bool:
    names = (*PERMISSION, *THROTTLE, *AUTHENTICATION)
    return bool(_coroutines(kind)) or any(_is_coroutine(kind, name) for name in names)


def _overrides(kind: Any) -> Iterator[tuple[str, Any]]:
    """Plain code of the project in the place of what DRF calls around a handler."""
    base = sys.modules["rest_framework.views"].APIView
    handlers = {*base.http_method_names, "__doc__", "__module__"}
    for each in kind.__mro__:
        if each.__module__.startswith(("rest_framework.", "django.")) or each is object:
            continue
        for name, attribute in vars(each).items():
            if name in handlers or not callable(_function(attribute)) or name.startswith("__"):
                continue
            if (
                hasattr(base, name)
                and isinstance(_function(attribute), FunctionType)
                and not _is_coroutine_function(attribute)
            ):
                yield f"method {name}() of", each
