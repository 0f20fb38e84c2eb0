"""What the coroutine views of a project use that plain Django lacks: what going back costs.

Some of it is known from the objects: handlers that plain Django or DRF refuses, transactions
around coroutines, marks of this package. The rest is read from the source, without running
it: the coroutine functions of a view, and what they call by name in the same top-level
package, plain functions and methods among them.

Reading is honest about little. Seen are names that lead to a model, to `django.db`, to
`django.shortcuts`, to `django.contrib.auth`, or to this package, and local variables that
were made from them. **Not seen** are lazy relations (``order.customer.name``), objects that
were passed in, what is called through variables, and other packages. So what is listed is
there; what isn't listed may be there.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import os
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.contrib import auth
from django.contrib.auth.mixins import AccessMixin
from django.db import connection, connections, models, transaction
from django.shortcuts import aget_object_or_404, get_list_or_404, get_object_or_404

from . import integrations
from .placement import atomic_aliases, is_coroutine_view

ORM = "the plain ORM in a coroutine"
ATOMIC = "transaction.atomic in a coroutine"
CURSOR = "a database cursor in a coroutine"
USER = "request.user, loaded in a coroutine"
SESSION = "request.session, loaded in a coroutine"
AUTH = "django.contrib.auth's plain functions in a coroutine"
REQUESTS = "ATOMIC_REQUESTS around a coroutine"
FRAMEWORK = "coroutines that its framework doesn't await by itself"
KINDS = "handlers of both kinds in one class"
MIXIN = "a plain mixin around a coroutine handler"
LIFESPAN = "request.lifespan"
GREENROOM = "greenroom."

# Of a queryset: what runs a query at once.
_QUERIES = frozenset(
    {
        *("aggregate", "bulk_create", "bulk_update", "contains", "count", "create", "delete"),
        *("earliest", "exists", "explain", "first", "get", "get_or_create", "in_bulk"),
        *("iterator", "last", "latest", "update", "update_or_create"),
    }
)
# Those that return an instance, and their twins.
_MAKES = frozenset({"create", "earliest", "first", "get", "last", "latest"})
_MAKES_ASYNC = frozenset(f"a{name}" for name in _MAKES)
# Of an instance.
_OF_INSTANCE = frozenset({"delete", "full_clean", "refresh_from_db", "save", "validate_unique"})
_CONSUME = frozenset({"all", "any", "bool", "dict", "len", "list", "max", "min", "next", "set"})
_CONSUMERS = _CONSUME | {"sorted", "sum", "tuple"}
_AUTH = frozenset({"authenticate", "get_user", "login", "logout", "update_session_auth_hash"})
_IN_DATABASE = ("django.contrib.sessions.backends.db", "django.contrib.sessions.backends.cached_db")


@dataclass(slots=True)
class Needs:
    """What one view uses. `places`: "file:line" by what it is; `unread`: why not all was read."""

    places: dict[str, list[str]] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)

    def add(self, what: str, where: str | None = None) -> None:
        found = self.places.setdefault(what, [])
        if where is not None and where not in found:
            found.append(where)


def needs_of(view: Any) -> Needs:
    """What a view uses that plain Django lacks; nothing, if it isn't a coroutine view."""
    needs = Needs()
    kind = getattr(view, "view_class", None) or getattr(view, "cls", None)
    described = [each for _, each in integrations.describe(view, None) or ()]
    functions = [*_coroutines_of(view, kind), *filter(iscoroutinefunction, _handlers(described))]
    if not functions and not is_coroutine_view(view):
        return needs
    if atomic_aliases(view):
        needs.add(REQUESTS)
    for mark, name in (
        ("_greenroom_awaits", "sync_view"),
        ("_greenroom_on_thread", "on_thread"),
        ("_greenroom_keep", "keep_on_disconnect"),
    ):
        if any(hasattr(each, mark) for each in (view, *functions)):
            needs.add(f"{GREENROOM}{name}")
    if described:
        needs.add(FRAMEWORK)
        if {iscoroutinefunction(each) for each in _handlers(described)} == {True, False}:
            needs.add(KINDS)
    elif isinstance(kind, type) and issubclass(kind, AccessMixin):
        needs.add(MIXIN)
    if not functions:
        needs.unread.append(f"{_name(view)} has no source that is known to be its own")
    module = getattr(functions[0] if functions else kind or _plain(view), "__module__", None)
    package = (module or "").partition(".")[0]
    # DRF's request has its user before the handler is called.
    reader = _Reader(needs, package, loads_user=not described)
    for function in functions:
        reader.read(function, kind)
    return needs


def _coroutines_of(view: Any, kind: Any) -> Iterator[Any]:
    """The coroutine functions that answer requests, or that are called for it."""
    if kind is None:
        function = _plain(view)
        if iscoroutinefunction(function):
            yield function
        elif iscoroutinefunction(call := type(function).__call__):
            yield call
        return
    for name in dir(kind):
        function = inspect.getattr_static(kind, name, None)
        function = inspect.unwrap(function) if callable(function) else None
        module = getattr(function, "__module__", None) or ""
        if iscoroutinefunction(function) and not module.startswith(("django.", "rest_framework.")):
            yield function


def _plain(view: Any) -> Any:
    """A view without its decorators."""
    while isinstance(view, partial):
        view = view.func
    return inspect.unwrap(view)


def _handlers(described: list[integrations.View]) -> list[Any]:
    return [each.handler for each in described if each.handler is not None]


def _name(code: Any) -> str:
    code = code if hasattr(code, "__qualname__") else type(code)
    return f"{code.__module__ or '?'}.{code.__qualname__}"


class _Reader:
    """Reads functions, and what they call, each once."""

    def __init__(self, needs: Needs, package: str, *, loads_user: bool) -> None:
        self.needs = needs
        self._package = package
        self.loads_user = loads_user
        self._seen: set[Any] = set()

    def read(self, function: Any, kind: Any = None) -> None:
        function = inspect.unwrap(function)
        code = getattr(function, "__code__", None)
        if code is None or code in self._seen:
            return
        self._seen.add(code)
        try:
            lines, first = inspect.getsourcelines(function)
            tree = ast.parse(textwrap.dedent("".join(lines)))
        except (OSError, SyntaxError, TypeError):
            self.needs.unread.append(f"{_name(function)} has no source that can be read")
            return
        definition = tree.body[0]
        if not isinstance(definition, ast.AsyncFunctionDef | ast.FunctionDef):
            self.needs.unread.append(f"{_name(function)} is no plain definition")
            return
        path = os.path.relpath(code.co_filename)
        where = code.co_filename if path.startswith("..") else path
        _Body(self, function, kind, where, first - 1).read(definition)

    def follow(self, function: Any, kind: Any) -> None:
        """Read what is called, if it is the project's."""
        module = getattr(function, "__module__", None) or ""
        if inspect.isfunction(function) and module.partition(".")[0] == self._package:
            self.read(function, kind)


_MODEL, _QUERYSET, _INSTANCE, _REQUEST = "model", "queryset", "instance", "request"


class _Body(ast.NodeVisitor):
    """One function: what it does itself, on the loop or in a plain function called from there.

    Functions and lambdas within are not read, since nobody knows where they run; coroutine
    functions within are.
    """

    def __init__(self, reader: _Reader, function: Any, kind: Any, path: str, offset: int) -> None:
        self._reader = reader
        self._kind = kind
        self._path = path
        self._offset = offset
        closure = inspect.getclosurevars(function)
        self._names: dict[str, Any] = {
            **vars(builtins),
            **function.__globals__,
            **closure.nonlocals,
        }
        # What is known of local variables.
        self._locals: dict[str, str | None] = {}

    def read(self, definition: ast.AsyncFunctionDef | ast.FunctionDef) -> None:
        names = [each.arg for each in definition.args.posonlyargs + definition.args.args]
        for name in names:
            self._locals[name] = _REQUEST if name == "request" else None
        for each in definition.decorator_list:
            self._of_greenroom(
                self._object(each.func if isinstance(each, ast.Call) else each), each
            )
        for statement in definition.body:
            self.visit(statement)

    def _found(self, what: str, node: ast.AST) -> None:
        line = getattr(node, "lineno", 0) + self._offset
        self._reader.needs.add(what, f"{self._path}:{line}")

    # What an expression is.

    def _object(self, node: ast.expr) -> Any:
        """What a dotted name leads to, if that can be known; None otherwise."""
        if isinstance(node, ast.Name):
            return None if node.id in self._locals else self._names.get(node.id)
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                return inspect.getattr_static(self._kind, node.attr, None) if self._kind else None
            owner = self._object(node.value)
            if isinstance(owner, ModuleType):
                return getattr(owner, node.attr, None)
            if isinstance(owner, type):
                return inspect.getattr_static(owner, node.attr, None)
        return None

    def _what(self, node: ast.expr) -> str | None:
        """A queryset, an instance or a request, as far as is known."""
        if isinstance(node, ast.Await):
            call = node.value
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                made = call.func.attr in _MAKES_ASYNC
                return _INSTANCE if made and self._what(call.func.value) == _QUERYSET else None
            return None
        if isinstance(node, ast.Name):
            return self._locals.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self._object(node.value)
            if isinstance(owner, type) and issubclass(owner, models.Model):
                managers = {each.name for each in owner._meta.managers}
                return _QUERYSET if node.attr in managers else None
            if node.attr == "request" and isinstance(node.value, ast.Name):
                return _REQUEST if node.value.id == "self" else None
            return None
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and self._what(node.func.value) == _QUERYSET:
                name = node.func.attr
                if name in _MAKES:
                    return _INSTANCE
                return (
                    None if name in _QUERIES or (name[:1] == "a" and name != "all") else _QUERYSET
                )
            made = self._object(node.func)
            if made is get_object_or_404 or made is aget_object_or_404:
                return _INSTANCE
            if isinstance(made, type) and issubclass(made, models.Model):
                return _INSTANCE
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
            return self._what(node.value)
        return None

    # Statements and expressions.

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._locals[node.name] = None

    def visit_Lambda(self, node: ast.Lambda) -> None:
        pass

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._locals[node.name] = None
        for argument in node.args.posonlyargs + node.args.args:
            self._locals[argument.arg] = None
        for statement in node.body:
            self.visit(statement)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        what = self._what(node.value)
        for target in node.targets:
            if isinstance(target, ast.Name):
                self._locals[target.id] = what
            else:
                self.visit(target)

    def visit_For(self, node: ast.For) -> None:
        self._iterated(node.iter)
        if isinstance(node.target, ast.Name):
            over = self._what(node.iter) == _QUERYSET
            self._locals[node.target.id] = _INSTANCE if over else None
        self.generic_visit(node)

    def visit_AsyncFor(self, node: ast.AsyncFor) -> None:
        if isinstance(node.target, ast.Name):
            over = self._what(node.iter) == _QUERYSET
            self._locals[node.target.id] = _INSTANCE if over else None
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        if not node.is_async:
            self._iterated(node.iter)
        self.generic_visit(node)

    def visit_Starred(self, node: ast.Starred) -> None:
        self._iterated(node.value)
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if not isinstance(node.slice, ast.Slice):
            self._iterated(node.value)
        if self._is_session(node.value):
            self._found(SESSION, node)
        self.generic_visit(node)

    def _iterated(self, node: ast.expr) -> None:
        if self._what(node) == _QUERYSET:
            self._found(ORM, node)

    def visit_Await(self, node: ast.Await) -> None:
        call = node.value
        if not isinstance(call, ast.Call):
            self.generic_visit(node)
            return
        made = self._object(call.func)
        self._of_greenroom(made, call)
        self._reader.follow(_function(made), self._kind)
        # What is awaited is no plain call; what it is called with may be.
        if isinstance(call.func, ast.Attribute):
            self._inner(call.func)
        elif not isinstance(call.func, ast.Name):
            self.visit(call.func)
        for each in (*call.args, *(keyword.value for keyword in call.keywords)):
            self.visit(each)

    def _inner(self, func: ast.Attribute) -> None:
        """What a method is looked up on; not `request.user.aget…()`, which awaits."""
        if not self._is_session(func.value):
            self.visit(func.value)

    def visit_Call(self, node: ast.Call) -> None:
        made = self._object(node.func)
        self._of_greenroom(made, node)
        if made is transaction.atomic:
            self._found(ATOMIC, node)
        elif made in (get_object_or_404, get_list_or_404):
            self._found(ORM, node)
        elif getattr(made, "__module__", None) == auth.__name__ and made.__name__ in _AUTH:
            self._found(AUTH, node)
        elif isinstance(node.func, ast.Attribute):
            self._method(node, node.func)
        elif isinstance(node.func, ast.Name) and node.func.id in _CONSUMERS and node.args:
            self._iterated(node.args[0])
        self._reader.follow(_function(made), self._kind)
        self.generic_visit(node)

    def _method(self, node: ast.Call, func: ast.Attribute) -> None:
        what = self._what(func.value)
        owner = self._object(func.value)
        queries = {_QUERYSET: _QUERIES, _INSTANCE: _OF_INSTANCE}.get(what or "", ())
        if func.attr in queries:
            self._found(ORM, node)
        elif func.attr == "cursor" and (owner is connection or _is_connection(func.value, self)):
            self._found(CURSOR, node)
        elif self._is_session(func.value) and not func.attr.startswith("a"):
            self._found(SESSION, node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        inner = node.value
        if (
            isinstance(inner, ast.Attribute)
            and inner.attr == "user"
            and self._what(inner.value) == _REQUEST
            and self._reader.loads_user
        ):
            self._found(USER, node)
        if node.attr == "lifespan" and self._what(inner) == _REQUEST:
            self._found(LIFESPAN, node)
        self.generic_visit(node)

    def _is_session(self, node: ast.expr) -> bool:
        return (
            isinstance(node, ast.Attribute)
            and node.attr == "session"
            and self._what(node.value) == _REQUEST
            and settings.SESSION_ENGINE in _IN_DATABASE
        )

    def _of_greenroom(self, made: Any, node: ast.AST) -> None:
        module = getattr(made, "__module__", None) or ""
        if module.partition(".")[0] == "greenroom" and hasattr(made, "__name__"):
            self._found(f"{GREENROOM}{made.__name__}", node)


def _function(made: Any) -> Any:
    return made.__func__ if isinstance(made, classmethod | staticmethod) else made


def _is_connection(node: ast.expr, body: _Body) -> bool:
    """``connections["default"]``"""
    return isinstance(node, ast.Subscript) and body._object(node.value) is connections
