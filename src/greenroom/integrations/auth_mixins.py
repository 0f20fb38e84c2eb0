"""Django's own `UserPassesTestMixin` and `PermissionRequiredMixin`.

Their plain `dispatch` takes an ``async def test_func`` or ``has_permission`` for true, with
no coroutine awaited. It is awaited, or raises `BridgeError` where it can't be.

Replaced: `UserPassesTestMixin.__new__`, `PermissionRequiredMixin.__new__`.
"""

from __future__ import annotations

from typing import Any

from . import when_imported
from .awaiting import Method, Question, made, refuse_super


def apply() -> None:
    when_imported("django.contrib.auth.mixins", _mixins)


def _mixins(module: Any) -> None:
    made(module.UserPassesTestMixin, _tests)
    made(module.PermissionRequiredMixin, _has_permission)


class _TestFunction(Method):
    """A view's `get_test_func`."""

    __slots__ = ()

    def finish(self, result: Any) -> Any:
        return Question(self.owner, "test_func", result)


def _tests(view: Any) -> None:
    refuse_super(type(view), "test_func")
    view.__dict__["get_test_func"] = _TestFunction(view, "get_test_func")


def _has_permission(view: Any) -> None:
    refuse_super(type(view), "has_permission")
    view.__dict__["has_permission"] = Question(view, "has_permission")
