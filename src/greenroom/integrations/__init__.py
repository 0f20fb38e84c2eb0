"""Other frameworks than Django: what they need to await coroutines, or to be on the loop.

An integration imports nothing of its framework before the project does: it waits
for the import of the modules it has to do with (`when_imported`). It describes
the framework's views to `greenroom.placement`, which judges them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


@dataclass(frozen=True, slots=True)
class View:
    """What an integration knows of a view, for one method of HTTP.

    `code` is the synchronous code that runs around the handler: what it is to the
    view, and the class or function. `reasons` hold it on a thread whatever that is.
    `handler` is the function that answers, as the project wrote it.
    """

    coroutine: bool
    code: tuple[tuple[str, Any], ...] = ()
    reasons: tuple[str, ...] = ()
    handler: Any = None


_applied = False


def apply() -> None:
    """Have all of them wait for what they have to do with. Calling it again does nothing."""
    global _applied
    if _applied:
        return
    _applied = True
    from . import (
        allauth,
        auth_mixins,
        debug_toolbar,
        json_responses,
        opentelemetry,
        rest_framework,
        whitenoise,
    )

    for each in (
        allauth,
        auth_mixins,
        debug_toolbar,
        json_responses,
        opentelemetry,
        rest_framework,
        whitenoise,
    ):
        each.apply()


# Each returns None for a view that is not of its framework, or the methods of one
# that is; the second describes such a view for one of them.
Describe = Callable[[Any, str], View]
Methods = Callable[[Any], "tuple[str, ...] | None"]
_frameworks: list[tuple[Methods, Describe]] = []


def register(methods: Methods, describe: Describe) -> None:
    if (methods, describe) not in _frameworks:
        _frameworks.append((methods, describe))


def describe(view: Any, method: str | None) -> tuple[tuple[str, View], ...] | None:
    """A view of one of the frameworks, by method: by this one, or by all it has."""
    for methods, described in _frameworks:
        names = methods(view)
        if names is not None:
            names = (method,) if method is not None else names
            return tuple((name, described(view, name)) for name in names)
    return None


_renderers: list[Callable[[Any], bool]] = []


def rendered_by(render: Callable[[Any], bool]) -> None:
    """Have `render` asked to render responses on the loop. It returns whether it has."""
    _renderers.append(render)


def rendered(response: Any) -> bool:
    """Render a response here, on the loop, if that runs known code only. Returns whether it was."""
    return any(render(response) for render in _renderers)


def when_imported(name: str, hook: Callable[[Any], None]) -> None:
    """Call `hook` with the module of this name: now, or right after its import."""
    module = sys.modules.get(name)
    if module is not None:
        hook(module)
    else:
        sys.meta_path.insert(0, _Watch(name, hook))


class _Watch(MetaPathFinder):
    def __init__(self, name: str, hook: Callable[[Any], None]) -> None:
        self.name = name
        self.hook = hook

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            self.hook(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
