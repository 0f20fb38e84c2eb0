"""Transactions in coroutines: ``with transaction.atomic()``, and ``async with`` ours.

Django's `Atomic` is used as it is, for its rules about savepoints, durability and
broken transactions. Around it stands what tasks need:

- entering waits for the turn (see `greenroom.turns`) and opens a block, so that no
  other task's statement or block comes between;
- entering and leaving are shielded: cancelled in COMMIT, plain `Atomic` would
  leave the callbacks of `on_commit` behind, for the next transaction to run;
- a cancellation while BEGIN waits undoes it, since nobody would leave the block;
- callbacks of `on_commit` run after the block has ended, all of them if it was
  committed, in the order of their registration, though the task was cancelled
  meanwhile.

If a child task has still a block open within when the block is left, its end is
waited for. When the time limit has passed, the connection is closed: what the
transaction did is rolled back, and the error names the child.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, overload

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import Atomic

from greenroom import bridge

from .borrow import Wrapper

F = TypeVar("F", bound=Callable[..., Any])

_enter = Atomic.__enter__
_exit = Atomic.__exit__


@wraps(_enter)
def enter(self: Atomic) -> None:
    """What ``Atomic.__enter__`` is replaced by."""
    wrapper = connections[self.using or DEFAULT_DB_ALIAS]
    if not isinstance(wrapper, Wrapper):
        _enter(self)
        return
    entered = False

    def begin() -> None:
        nonlocal entered
        with wrapper.turns:
            block = wrapper.turns.open()
            try:
                _enter(self)
            except BaseException:
                wrapper.turns.end(block)
                raise
            wrapper.blocks.append(block)
            entered = True

    try:
        bridge.shielded(begin)
    except BaseException as exc:
        if entered:
            leave(self, type(exc), exc, exc.__traceback__)
        raise


@wraps(_exit)
def leave(self: Atomic, exc_type: Any, exc_value: Any, traceback: Any) -> None:
    """What ``Atomic.__exit__`` is replaced by."""
    wrapper = connections[self.using or DEFAULT_DB_ALIAS]
    if not isinstance(wrapper, Wrapper) or not wrapper.blocks:
        _exit(self, exc_type, exc_value, traceback)
        return
    bridge.shielded(_leave, self, wrapper, exc_type, exc_value, traceback)


def _leave(self: Atomic, wrapper: Any, exc_type: Any, exc_value: Any, traceback: Any) -> None:
    block = wrapper.blocks[-1]
    expired: DatabaseError | None = None
    turns = wrapper.turns
    try:
        turns.take()
    except DatabaseError as exc:
        # Somebody else is in the middle of it, and stays there.
        expired = exc
        BaseDatabaseWrapper.close.__wrapped__(wrapper)  # type: ignore[attr-defined]
    outermost = len(wrapper.blocks) == 1
    try:
        wrapper.hooks_held = outermost
        _exit(self, exc_type, exc_value, traceback)
    finally:
        wrapper.hooks_held = False
        due, wrapper.hooks_due = wrapper.hooks_due, False
        wrapper.blocks.remove(block)
        turns.end(block)
        if expired is None:
            turns.release()
    if expired is not None:
        raise expired
    if due:
        wrapper.run_and_clear_commit_hooks()


class CoroutineAtomic(Atomic):
    """Django's `Atomic`, also as an asynchronous context manager."""

    async def __aenter__(self) -> None:
        if bridge.in_bridge():
            self.__enter__()
        else:
            await bridge.run(self.__enter__)

    async def __aexit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        if bridge.in_bridge():
            self.__exit__(exc_type, exc_value, traceback)
        else:
            await bridge.run(self.__exit__, exc_type, exc_value, traceback)

    def __call__(self, func: Any) -> Any:
        if not iscoroutinefunction(func):
            return super().__call__(func)

        @wraps(func)
        async def inner(*args: Any, **kwargs: Any) -> Any:
            again = CoroutineAtomic(self.using, self.savepoint, self.durable)  # type: ignore[attr-defined]
            async with again:
                return await func(*args, **kwargs)

        return markcoroutinefunction(inner)


@overload
def atomic(using: F) -> F: ...
@overload
def atomic(
    using: str | None = None, savepoint: bool = True, durable: bool = False
) -> CoroutineAtomic: ...
def atomic(using: Any = None, savepoint: bool = True, durable: bool = False) -> Any:
    """`django.db.transaction.atomic`, also for ``async with`` and coroutine functions.

    The arguments are Django's. All that a task does in the block, and the child
    tasks that it starts there, is one transaction on its connection.

    Raises `OperationalError` if another task of the request has a block open for
    longer than ``GREENROOM["DB_TIMEOUT"]``, and `RuntimeError` for a durable block
    within another.
    """
    if callable(using):
        return CoroutineAtomic(DEFAULT_DB_ALIAS, savepoint, durable)(using)
    return CoroutineAtomic(using, savepoint, durable)
