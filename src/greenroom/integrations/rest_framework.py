"""Django REST framework: coroutines wherever it calls the project's code.

All around a coroutine stays DRF's own, synchronous code: it runs on a thread or,
on the loop, in a bridge, and where it calls something that is a coroutine, the
result is awaited before DRF sees it.

Rule 1: **results are tested, not functions**, for handlers, permissions, throttles,
authenticators, filters, validators and what checks a request: `@api_view`'s handler
is a plain function that returns a coroutine. A handler is awaited within dispatch's
own ``try``, so what it raises becomes DRF's error response.

Rule 2: **a coroutine that stands in the place of a plain method** (it overrides
one, or is called by a name that DRF makes up: ``validate_title``) is awaited too.

Rule 3: **who is a coroutine gets the coroutine.** ``await self.get_object()`` in
an `async def` handler awaits it as anywhere; called from plain code, DRF's or
others', the same method returns its result.

Rule 4: **instances are changed, never classes of the project**: its methods
found on the class or by `super()` are as they were written. Instances are changed as
they are made, whoever makes them: a permission that asks another, a schema.

Rule 5: **never granted unawaited.** A coroutine is true. A permission or throttle
that can't be awaited raises an error: `BridgeError` from `await_` on an event
loop outside of a bridge; `TypeError` where a plain method calls `super()`'s
coroutine, or a coroutine tests another without awaiting it.

Every name of DRF that is replaced, when its module is imported (3.18 was read):

=====================================  ==========================================
replaced                               why
=====================================  ==========================================
`APIView.__new__`                      makes the view's instance await
`APIView.dispatch`                     the same, after `initial()`, for the handler
                                       of the method
`APIView.view_is_async`                False: the coroutine was awaited inside; and
                                       Django's raises for handlers of both kinds
`BasePermission.__new__` and those     makes the instance await: see `BASES`
of other policies
`GenericAPIView.filter_queryset`       awaits each backend: some have no base class
`Request._authenticate`                for requests that are made by hand
`Field.__init__`                       serializers and fields with coroutines
`Field.run_validators`                 a coroutine validator would pass unawaited
`SerializerMethodField                 a method of any name
.to_representation`
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

import sys
from collections.abc import Iterator
from functools import partial, wraps
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

from .. import loops
from . import View, register, when_imported
from .awaiting import (
    Check,
    Found,
    Method,
    Proxy,
    Question,
    find,
    function,
    is_coroutine_function,
    made,
    refuse_super,
    settled,
)

PERMISSION = ("has_permission", "has_object_permission")
THROTTLE = ("allow_request", "wait")
AUTHENTICATION = ("authenticate", "authenticate_header")
FILTER = ("filter_queryset",)
ANSWERS = (*PERMISSION, "allow_request")

# By module: a class of which projects make policies, and the methods whose results are
# tested. Others are awaited by rule 2.
BASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "authentication": ("BaseAuthentication", AUTHENTICATION),
    "filters": ("BaseFilterBackend", FILTER),
    "metadata": ("BaseMetadata", ("determine_metadata",)),
    "negotiation": ("BaseContentNegotiation", ("select_parser", "select_renderer")),
    "pagination": ("BasePagination", ("paginate_queryset", "get_paginated_response")),
    "parsers": ("BaseParser", ("parse",)),
    "permissions": ("BasePermission", PERMISSION),
    "renderers": ("BaseRenderer", ("render",)),
    "throttling": ("BaseThrottle", THROTTLE),
    "versioning": ("BaseVersioning", ("determine_version",)),
}

# What a view makes, and the methods of it that DRF calls: policies that have no base too.
POLICIES = {
    "get_permissions": PERMISSION,
    "get_throttles": THROTTLE,
    "get_authenticators": AUTHENTICATION,
    "get_parsers": ("parse",),
    "get_renderers": ("render",),
}

# Of what a view makes one each, and without a method of its own for it.
SINGLE = ("content_negotiation_class", "metadata_class", "versioning_class")
# The attributes that name their classes.
SEVERAL = (
    "authentication_classes",
    "permission_classes",
    "throttle_classes",
    "parser_classes",
    "renderer_classes",
)

# Methods of a view that refuse a request by an error.
CHECKS = (
    "initial",
    "perform_authentication",
    "check_permissions",
    "check_object_permissions",
    "check_throttles",
    "permission_denied",
    "throttled",
)


def apply() -> None:
    """Replace what the table above names, each when its module is imported."""
    # What is awaited off our loops runs on the background loop.
    assert loops.wait is not None
    when_imported("rest_framework.views", _views)
    when_imported("rest_framework.generics", _generics)
    when_imported("rest_framework.request", _request)
    when_imported("rest_framework.fields", _fields)
    when_imported("rest_framework.urlpatterns", _urlpatterns)
    for name in BASES:
        when_imported(f"rest_framework.{name}", partial(_policies, *BASES[name]))
    when_imported("rest_framework.renderers", _renderers)


def _policies(base: str, names: tuple[str, ...], module: Any) -> None:
    made(getattr(module, base), lambda policy: _awaiting(policy, names))


def _views(module: Any) -> None:
    view = module.APIView
    if "__new__" in vars(view):
        return
    made(view, _prepare)
    view.view_is_async = False
    dispatch = view.dispatch

    @wraps(dispatch)
    def awaiting_dispatch(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        own = self.__dict__.get("initial")
        self.__dict__["initial"] = _Initial(self, "initial", own)
        try:
            return dispatch(self, request, *args, **kwargs)
        finally:
            _restore(self, "initial", own)

    view.dispatch = awaiting_dispatch
    register(methods, describe)


def _generics(module: Any) -> None:
    view = module.GenericAPIView

    @wraps(view.filter_queryset)
    def awaiting_filter(self: Any, queryset: Any) -> Any:
        for backend in list(self.filter_backends):
            backend = _awaiting(backend(), FILTER)
            queryset = backend.filter_queryset(self.request, queryset, self)
        return queryset

    view.filter_queryset = awaiting_filter


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
    field, method_field = module.Field, module.SerializerMethodField
    init, run_validators = field.__init__, field.run_validators
    represent = method_field.to_representation
    if hasattr(init, "__wrapped__"):
        return

    @wraps(init)
    def awaiting_init(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        for name in _of_field(type(self)):
            self.__dict__.setdefault(name, Method(self, name))

    @wraps(run_validators)
    def awaiting_validators(self: Any, value: Any) -> Any:
        if not all(map(_is_known_validator, self.validators)):
            self.validators = [
                each if _is_known_validator(each) else _Validator(each) for each in self.validators
            ]
        return run_validators(self, value)

    @wraps(represent)
    def awaiting_representation(self: Any, value: Any) -> Any:
        return settled(represent(self, value))

    field.__init__ = awaiting_init
    field.run_validators = awaiting_validators
    method_field.to_representation = awaiting_representation


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


class _Policies(Method):
    """A view's `get_permissions` and its like."""

    __slots__ = ()

    def finish(self, result: Any) -> Any:
        return [_awaiting(each, POLICIES[self.name]) for each in result]


class _ExceptionHandler(Method):
    """A view's `get_exception_handler`."""

    __slots__ = ()

    def finish(self, result: Any) -> Any:
        def handle(exc: Exception, context: Any) -> Any:
            return settled(result(exc, context))

        return handle


class _Initial(Method):
    """A view's `initial`, after which the handler of the request's method is called."""

    __slots__ = ()

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        view = self.owner
        result = settled(self.written()(*args, **kwargs))
        name = view.request.method.lower()
        if name not in view.http_method_names or not hasattr(view, name):
            name = "http_method_not_allowed"
        view.__dict__[name] = _Handler(view, name, view.__dict__.get(name))
        return result


class _Handler(Method):
    """The handler of the request's method, for its one call by `dispatch`."""

    __slots__ = ()

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        written = self.written()
        _restore(self.owner, self.name, self.own)
        return settled(written(*args, **kwargs))


class _Validator:
    """A validator that may be a coroutine, as a plain one."""

    def __init__(self, validator: Any) -> None:
        self._validator = validator

    def __call__(self, *args: Any) -> Any:
        return settled(self._validator(*args))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._validator, name)


def _prepare(view: Any) -> None:
    """Make a view await what it makes, what checks a request, and what it overrides."""
    for name, kind in _of_view(type(view)):
        view.__dict__[name] = kind(view, name)


def _awaiting(policy: Any, names: tuple[str, ...]) -> Any:
    """`policy`, whose methods of these names return results."""
    kind = type(policy)
    known = _policies_found.get(kind)
    found = known.get(names) if known is not None else None
    if found is None or not found.is_true_of(kind):
        return _looked_at(policy, names)
    for operand in found.operands:
        setattr(policy, operand, _awaiting(getattr(policy, operand), names))
    own = policy.__dict__
    for name, method in found.methods:
        there = own.get(name)
        if there is None or not isinstance(there, Method):
            own[name] = method(policy, name, there)
    return policy


def _looked_at(policy: Any, names: tuple[str, ...]) -> Any:
    """As `_awaiting`, of any policy: nothing is known of its class."""
    operands = _operands(policy)
    for operand in operands:
        # Replaced by itself, or by what stands for it.
        setattr(policy, operand, _awaiting(getattr(policy, operand), names))
    kind = type(policy)
    if kind is Proxy:
        return policy
    for name in names:
        refuse_super(kind, name, _is_of_drf)
    given = {name: Question if name in ANSWERS else Method for name in names}
    own = getattr(policy, "__dict__", None)
    wanted = {
        name: given.get(name, Method)
        for name in dict.fromkeys((*names, *_coroutines(kind)))
        if hasattr(policy, name)
    }
    if own is None:
        return Proxy(policy, wanted)
    for name, method in wanted.items():
        there = own.get(name)
        if not isinstance(there, Method):
            if there is None and find(kind, name) is None:
                # It is made by a __getattr__.
                there = getattr(policy, name)
            own[name] = method(policy, name, there)
    # A property, for one, is found before what stands in the dictionary.
    if not all(isinstance(getattr(policy, name), Method) for name in wanted):
        return Proxy(policy, wanted)
    known = _policies_found.setdefault(kind, {})
    if known.get(names, _NOT_YET) is not None:
        known[names] = Found.of(kind, wanted, operands) if wanted.keys() >= set(names) else None
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


# Classes: which of their methods are replaced in their instances.

_found: WeakKeyDictionary[type, tuple[str, ...]] = WeakKeyDictionary()
# By the names of `_awaiting`; None of a class whose instances are looked at, each of them.
_policies_found: WeakKeyDictionary[type, dict[tuple[str, ...], Found | None]] = WeakKeyDictionary()
_NOT_YET: Any = object()
_views_found: WeakKeyDictionary[type, tuple[tuple[str, type[Method]], ...]] = WeakKeyDictionary()
_fields_found: WeakKeyDictionary[type, tuple[str, ...]] = WeakKeyDictionary()


def _of_view(kind: type) -> tuple[tuple[str, type[Method]], ...]:
    found = _views_found.get(kind)
    if found is None:
        names: dict[str, type[Method]] = dict.fromkeys(_coroutines(kind), Method)
        names |= dict.fromkeys(POLICIES, _Policies)
        names["get_exception_handler"] = _ExceptionHandler
        for name in CHECKS:
            refuse_super(kind, name, _is_of_drf)
            if not _is_of_drf(find(kind, name)):
                names[name] = Check
        found = _views_found[kind] = tuple(names.items())
    return found


def _of_field(kind: type) -> tuple[str, ...]:
    found = _fields_found.get(kind)
    if found is None:
        names = dict.fromkeys(_coroutines(kind))
        for name in {name for each in kind.__mro__ for name in vars(each)}:
            if (name == "validate" or name.startswith("validate_")) and not _is_of_drf(
                method := function(find(kind, name))
            ):
                refuse_super(kind, name, _is_of_drf)
                if isinstance(method, FunctionType):
                    names[name] = None
        found = _fields_found[kind] = tuple(names)
    return found


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
        if is_coroutine_function(versions[0]) and (
            name.startswith(made_up)
            or any(callable(function(v)) and not is_coroutine_function(v) for v in versions)
        ):
            yield name


def _is_of_drf(attribute: Any) -> bool:
    """Whether DRF wrote it: the name of its module is copied by decorators."""
    code = function(attribute)
    return isinstance(code, FunctionType) and _is_drfs(code.__globals__.get("__name__"))


def _is_known_validator(validator: Any) -> bool:
    module = type(validator).__module__
    return isinstance(validator, _Validator) or _is_drfs(module) or module.startswith("django.")


def _is_drfs(module: str | None) -> bool:
    return (module or "").startswith("rest_framework.")


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
        (name.removesuffix("_class"), policy(name)) for name in SINGLE if policy(name)
    ]
    reasons = []
    for name in SEVERAL:
        found = policy(name) or ()
        if isinstance(found, list | tuple):
            classes += [(name.removesuffix("_classes"), each) for each in _operand_classes(found)]
        else:
            # A property, for one.
            reasons.append(f"its {name} are no list or tuple: they can't be known")
    if not is_coroutine_function(handler) and not hasattr(handler, "_greenroom_awaits"):
        waits = any(isinstance(each, type) and _waits(each) for _, each in classes)
        # It is on a thread, which is parked while one of these is awaited.
        others = {*kind.http_method_names, *(getattr(view, "actions", None) or {}).values()}
        return View(
            coroutine=waits or bool(set(_coroutines(kind)) - others),
            reasons=(f"its {method} is a plain function",),
            handler=handler,
        )
    if hasattr(handler, "_greenroom_awaits"):
        return View(coroutine=True, reasons=(f"its {method} is a @sync_view",))
    if getattr(kind, "_greenroom_on_thread", False):
        reasons.append("the view is marked @on_thread")
    return View(
        coroutine=True,
        code=(*classes, *_overrides(kind)),
        reasons=tuple(reasons),
        handler=handler,
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
    handler: Any = find(view.cls, name) if name else None
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
    return bool(_coroutines(kind)) or any(is_coroutine_function(find(kind, n)) for n in names)


def _overrides(kind: Any) -> Iterator[tuple[str, Any]]:
    """Plain code of the project in the place of what DRF calls around a handler."""
    base = sys.modules["rest_framework.views"].APIView
    handlers = {*base.http_method_names, "__doc__", "__module__"}
    for each in kind.__mro__:
        if each.__module__.startswith(("rest_framework.", "django.")) or each is object:
            continue
        for name, attribute in vars(each).items():
            if name in handlers or not callable(function(attribute)) or name.startswith("__"):
                continue
            if (
                hasattr(base, name)
                and isinstance(function(attribute), FunctionType)
                # What a coroutine makes is no more known.
                and (name in POLICIES or not is_coroutine_function(attribute))
            ):
                yield f"method {name}() of", each
