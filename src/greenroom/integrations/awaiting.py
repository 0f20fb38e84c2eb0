"""Instances that await: plain code that calls their coroutines gets results.

A `Method` stands in an instance's ``__dict__`` and is found before the class's own.

Rule 1: **results are tested, not functions.** A decorated coroutine function is often a
plain one. What an awaitable returns is awaited too, if it can be: a coroutine that ends
with ``return super().has_permission(…)`` returns another.

Rule 2: **who is a coroutine gets the coroutine**: the calling frame decides, and a
comprehension's is that of the code around it.

Rule 3: **never granted unawaited.** A coroutine is true. What a `Question` hands to a
coroutine has no truth, and a `Check` is done when it has returned.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from types import CodeType, FrameType, FunctionType, GetSetDescriptorType, MethodType, NoneType
from typing import Any
from weakref import ref

from asgiref.sync import iscoroutinefunction

from ..bridge import await_, in_bridge

_OF_COROUTINES = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_ITERABLE_COROUTINE
_COMPREHENSIONS = ("<genexpr>", "<listcomp>", "<setcomp>", "<dictcomp>")

# Most answers are of these, and told without the microsecond of `isawaitable`.
_NEVER_AWAITABLE = frozenset({NoneType, bool, int, float, str, bytes, tuple, list, dict})


def settled(result: Any) -> Any:
    """What comes of it in the end, if it is awaitable."""
    if type(result) in _NEVER_AWAITABLE:
        return result
    while inspect.isawaitable(result):
        result = await_(result)
    return result


class Method:
    """A method of one instance: plain code gets its result.

    `own` is what stood in the instance's dictionary before, if anything. All else that
    is asked of it is what it was written with: schemas are made of that.
    """

    __slots__ = ("name", "own", "owner")
    __doc__ = property(lambda self: self.written().__doc__)

    def __init__(self, owner: Any, name: str, own: Any = None) -> None:
        self.owner = owner
        self.name = name
        self.own = own

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        result = self.written()(*args, **kwargs)
        if type(result) in _NEVER_AWAITABLE or not inspect.isawaitable(result):
            return self.finish(result)
        if _is_of_coroutine(sys._getframe(1)):
            return self.later(result)
        return self.finish(settled(result))

    def __getattr__(self, name: str) -> Any:
        if name in Method.__slots__:
            # Of a copy that is being made.
            raise AttributeError(name)
        return getattr(self.written(), name)

    def written(self) -> Any:
        """The method as the project wrote it."""
        if self.own is not None:
            return self.own
        kind = type(self.owner)
        attribute = find(kind, self.name)
        if type(attribute) is FunctionType:
            return MethodType(attribute, self.owner)
        bind = getattr(type(attribute), "__get__", None)
        return attribute if bind is None else bind(attribute, self.owner, kind)

    def finish(self, result: Any) -> Any:
        return result

    def later(self, result: Awaitable[Any]) -> Any:
        """What a coroutine gets that calls this."""
        return self._later(result)

    async def _later(self, result: Any) -> Any:
        while inspect.isawaitable(result):
            result = await result
        return self.finish(result)


class Question(Method):
    """A method whose answer is taken for true or false."""

    __slots__ = ()

    def finish(self, result: Any) -> Any:
        if inspect.isgenerator(result) or inspect.isasyncgen(result):
            raise TypeError(
                f"{type(self.owner).__qualname__}.{self.name}() is a generator, which is always "
                "true: return the answer, do not yield it."
            )
        return result

    def later(self, result: Awaitable[Any]) -> Any:
        return _Answer(self, result)


class Check(Method):
    """A method that raises an error if the request is refused, and returns nothing.

    A coroutine that forgets to await it has called it all the same.
    """

    __slots__ = ()

    def later(self, result: Awaitable[Any]) -> Any:
        return _Done(self.finish(settled(result))) if in_bridge() else self._later(result)


class Proxy:
    """An instance that can't be changed: it has no dictionary, or does not look there."""

    def __init__(self, instance: Any, methods: dict[str, type[Method]]) -> None:
        self._instance = instance
        for name, kind in methods.items():
            self.__dict__[name] = kind(instance, name, getattr(instance, name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._instance, name)


class _Answer(Coroutine[Any, Any, Any]):
    """What a coroutine gets that asks a question: to be awaited, and no truth."""

    __slots__ = ("question", "result", "steps")

    def __init__(self, question: Question, result: Awaitable[Any]) -> None:
        self.question = question
        self.result = result
        self.steps: Generator[Any, Any, Any] | None = None

    def __await__(self) -> Generator[Any, Any, Any]:
        result: Any = self.result
        while inspect.isawaitable(result):
            result = yield from result.__await__()
        return self.question.finish(result)

    def send(self, value: Any) -> Any:
        if self.steps is None:
            self.steps = self.__await__()
        return self.steps.send(value)

    def throw(self, *error: Any) -> Any:
        if self.steps is None:
            self.steps = self.__await__()
        return self.steps.throw(*error)

    def close(self) -> None:
        if self.steps is not None:
            self.steps.close()
        elif inspect.iscoroutine(self.result):
            self.result.close()

    def __bool__(self) -> bool:
        self.close()
        owner, name = type(self.question.owner).__qualname__, self.question.name
        raise TypeError(f"await {owner}.{name}(): it is a coroutine.")


class _Done:
    """What was awaited already."""

    __slots__ = ("result",)

    def __init__(self, result: Any) -> None:
        self.result = result

    def __await__(self) -> Generator[None, None, Any]:
        yield from ()
        return self.result


def _is_of_coroutine(frame: FrameType) -> bool:
    while frame.f_code.co_name in _COMPREHENSIONS and frame.f_back is not None:
        frame = frame.f_back
    return bool(frame.f_code.co_flags & _OF_COROUTINES)


def made(kind: Any, prepare: Callable[[Any], object]) -> None:
    """Have `prepare` called with each instance of a class, before its ``__init__``."""
    if "__new__" in vars(kind):
        return

    def __new__(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if (args or kwargs) and cls.__init__ is object.__init__:
            raise TypeError(f"{cls.__name__}() takes no arguments")
        new = super(kind, cls).__new__
        self = new(cls) if new is object.__new__ else new(cls, *args, **kwargs)
        prepare(self)
        return self

    kind.__new__ = __new__


# Classes: which of their methods are coroutines.


def find(kind: type, name: str) -> Any:
    for each in kind.__mro__:
        own = each.__dict__
        if name in own:
            return own[name]
    return None


class Found:
    """What was found of a class, for as long as it is true.

    It is true while the class and its bases have the same functions by the names of `methods`,
    which its instances are given: tests replace functions, for one. They are referred to
    weakly: a class may be made for one request, and its functions may refer to it.
    """

    __slots__ = ("_bases", "_functions", "methods", "operands")

    @classmethod
    def of(
        cls, kind: type, methods: dict[str, type[Method]], operands: tuple[str, ...]
    ) -> Found | None:
        """None of a class whose instances have to be looked at, each of them."""
        if (
            find(kind, "__getattribute__") is not vars(object)["__getattribute__"]
            or find(kind, "__class__") is not vars(object)["__class__"]
            or type(find(kind, "__dict__")) is not GetSetDescriptorType
            or any(type(find(kind, name)) is not FunctionType for name in methods)
            or not all(_is_looked_up_plainly(each, methods) for each in kind.__mro__)
        ):
            return None
        # `object` has none of them, and never will.
        functions = [
            (place, name, getattr(each, name, _MISSING))
            for place, each in enumerate(kind.__mro__[:-1])
            for name in methods
        ]
        if not all(type(each) is FunctionType or each is _MISSING for *_, each in functions):
            return None
        return cls(kind, methods, operands, functions)

    def __init__(
        self,
        kind: type,
        methods: dict[str, type[Method]],
        operands: tuple[str, ...],
        functions: list[tuple[int, str, Any]],
    ) -> None:
        self.methods = tuple(methods.items())
        self.operands = operands
        self._bases = len(kind.__mro__)
        self._functions = tuple(
            (place, name, _missing if each is _MISSING else ref(each))
            for place, name, each in functions
        )

    def is_true_of(self, kind: type) -> bool:
        bases = kind.__mro__
        if len(bases) != self._bases:
            return False
        # Of each base too: a plain method may call, by super(), what became a coroutine.
        for place, name, function in self._functions:
            if getattr(bases[place], name, _MISSING) is not function():
                return False
        return True


_MISSING: Any = object()


def _missing() -> Any:
    return _MISSING


def _is_looked_up_plainly(kind: type, names: Iterable[str]) -> bool:
    """Whether ``getattr(kind, name)`` is what it or a base has by that name."""
    meta = type(kind)
    return (
        find(meta, "__getattribute__") is vars(type)["__getattribute__"]
        and find(meta, "__getattr__") is None
        and all(find(meta, name) is None for name in names)
    )


def function(attribute: Any) -> Any:
    return getattr(attribute, "__func__", attribute)


def is_coroutine_function(attribute: Any) -> bool:
    return iscoroutinefunction(function(attribute))


def refuse_super(kind: type, name: str, known: Callable[[Any], bool] | None = None) -> None:
    """Refuse a plain method that calls the coroutine it overrides.

    `known` says which functions hand on what they get.
    """
    plain: tuple[type, set[str]] | None = None
    for each in kind.__mro__:
        if name not in vars(each):
            continue
        method = function(vars(each)[name])
        if is_coroutine_function(method):
            if plain is not None and {"super", each.__name__} & plain[1]:
                raise TypeError(
                    f"{plain[0].__qualname__}.{name} is a plain method over the coroutine "
                    f"{each.__qualname__}.{name}: what it gets from super() is not awaited, and "
                    "always true. Make it `async def` and await super()'s answer."
                )
            return
        plain = (each, set() if known is not None and known(method) else _names(method))


def _names(method: Any) -> set[str]:
    """What a function refers to, with the functions in it and those it wraps."""
    found: set[str] = set()
    seen: list[Any] = []
    rest = [method]
    while rest:
        each = rest.pop()
        if any(each is other for other in seen):
            continue
        seen.append(each)
        if isinstance(each, FunctionType):
            rest.append(each.__code__)
            cells = (cell.cell_contents for cell in each.__closure__ or () if _is_full(cell))
            rest += [inner for inner in cells if isinstance(inner, FunctionType)]
            rest.append(getattr(each, "__wrapped__", None))
        elif isinstance(each, CodeType):
            found.update(each.co_names, each.co_freevars)
            rest += each.co_consts
    return found


def _is_full(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
