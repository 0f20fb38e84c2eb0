"""Transactions in coroutines: ``with transaction.atomic()``, and ``async with`` ours.

Django's `Atomic` is used as it is, for its rules about savepoints, durability and
broken transactions. Around it stands what tasks need:

- entering waits for the turn (see `greenroom.turns`) and opens a block, so that no
  other task's statement or block comes between;
- entering and leaving are shielded: cancelled in COMMIT, plain `Atomic` would
  leave the callbacks of `on_commit` behind, for the next transaction to run;
- a cancellation while BEGIN waits undoes it, since nobody would leave the block;
- a cancelled statement ends the transaction in the server, whoever catches the cancellation:
  the block is then left with an error, and never as if it had been committed;
- callbacks of `on_commit` run after the block has ended, all of them if it was
  committed, in the order of their registration, though the task was cancelled
  meanwhile.

If a child task has still a block open within when the block is left, its end is
waited for. When the time limit has passed, the connection is closed: what the
transaction did is rolled back, and the error names the child, which gets an error
too wherever it goes on in its block.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import CancelledError
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, overload

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.db import DEFAULT_DB_ALIAS, DatabaseError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import Atomic, TransactionManagementError

from greenroom import bridge, loops
from greenroom.turns import Block

from .borrow import Wrapper, entered_blocks

logger = logging.getLogger("django.db.backends.base")

F = TypeVar("F", bound=Callable[..., Any])

_enter = Atomic.__enter__
_exit = Atomic.__exit__


@wraps(_enter)
def enter(self: Atomic) -> None:
    """What ``Atomic.__enter__`` is replaced by."""
    wrapper = connections[self.using or DEFAULT_DB_ALIAS]
    if not isinstance(wrapper, Wrapper):
        _enter(self)
        entered_blocks.set((*entered_blocks.get(), (self, wrapper)))
        return
    entered = False

    def begin() -> None:
        nonlocal entered
        block = wrapper.turns.open()
        try:
            _enter(self)
        except BaseException:
            wrapper.turns.end(block)
            raise
        wrapper.blocks.append(block)
        entered_blocks.set((*entered_blocks.get(), (self, wrapper)))
        entered = True

    with wrapper.turns:
        if not wrapper.in_atomic_block:
            # May wait for a free one, which can be cancelled.
            wrapper.ensure_connection()
        try:
            bridge.shielded(begin)
        except BaseException as exc:
            if entered:
                leave(self, type(exc), exc, exc.__traceback__)
            raise


@wraps(_exit)
def leave(self: Atomic, exc_type: Any, exc_value: Any, traceback: Any) -> None:
    """What ``Atomic.__exit__`` is replaced by."""
    wrapper = _wrapper_of(self)
    block = wrapper.turns.entered() if isinstance(wrapper, Wrapper) else None
    if block is None:
        _exit(self, exc_type, exc_value, traceback)
    elif not block.open:
        # With the block around it, which did not wait any longer, or its request.
        wrapper.turns.end(block)
        if exc_type is None:
            raise wrapper.turns.aborted()
    else:
        bridge.shielded(_leave, self, wrapper, block, exc_type, exc_value, traceback)


def _leave(
    self: Atomic, wrapper: Any, block: Block, exc_type: Any, exc_value: Any, traceback: Any
) -> None:
    expired: DatabaseError | None = None
    turns = wrapper.turns
    wrapper._remember()
    try:
        turns.take()
        if not block.open:
            # Since then.
            turns.release()
            turns.end(block)
            if exc_type is None:
                raise turns.aborted()
            return
    except DatabaseError as exc:
        if not block.open:
            raise
        # Somebody else is in the middle of it, and stays there.
        expired = exc
        BaseDatabaseWrapper.close.__wrapped__(wrapper)  # type: ignore[attr-defined]
        # What Django noted of the blocks within, which it would take for this one's.
        depth = wrapper.blocks.index(block)
        del wrapper.savepoint_ids[depth:], wrapper.atomic_blocks[depth + 1 :]
    hooks: list[Any] = []
    outermost = wrapper.blocks[0] is block
    lost = outermost and exc_type is None and wrapper.is_lost()
    if lost:
        # Else it would be committed, as far as Django knows.
        wrapper.needs_rollback = True
    try:
        wrapper.hooks_held = outermost
        _exit(self, exc_type, exc_value, traceback)
    finally:
        wrapper.hooks_held = False
        if wrapper.hooks_due:
            wrapper.hooks_due = False
            # Before the next block, which may have its own, can begin.
            hooks, wrapper.run_on_commit = wrapper.run_on_commit, []
        del wrapper.blocks[wrapper.blocks.index(block) :]
        turns.end(block)
        if expired is None:
            turns.release()
    wrapper.after_work()
    if expired is not None:
        raise expired
    if lost:
        raise TransactionManagementError(
            f"The transaction on the database {wrapper.alias!r} was rolled back: a statement in it "
            "was cancelled, and the block went on to its end. Catch the cancellation, or the "
            "TimeoutError, around the atomic block and not within."
        )
    _run(hooks)


def _wrapper_of(atomic: Atomic) -> Any:
    """The wrapper on which it was entered; after the end of the request code sees another."""
    blocks = entered_blocks.get()
    for place in range(len(blocks) - 1, -1, -1):
        if blocks[place][0] is atomic:
            entered_blocks.set(blocks[:place] + blocks[place + 1 :])
            return blocks[place][1]
    return connections[atomic.using or DEFAULT_DB_ALIAS]


def _run(hooks: list[Any]) -> None:
    """As Django's `run_and_clear_commit_hooks`."""
    for _, func, robust in hooks:
        try:
            func()
        except Exception as exc:
            if not robust:
                raise
            logger.exception(
                "Error calling %s in on_commit() during transaction (%s).",
                getattr(func, "__qualname__", func),
                exc,
            )


class CoroutineAtomic(Atomic):
    """Django's `Atomic`, also as an asynchronous context manager."""

    async def __aenter__(self) -> None:
        if bridge.in_bridge():
            self.__enter__()
        elif loops.current() is not None:
            await bridge.run(self.__enter__)
        else:
            # A loop of somebody else's, on which Django's calls run on one thread.
            await _on_its_thread(self.__enter__, undo=self.__exit__)

    async def __aexit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        if bridge.in_bridge():
            self.__exit__(exc_type, exc_value, traceback)
        elif loops.current() is not None:
            await bridge.run(self.__exit__, exc_type, exc_value, traceback)
        else:
            await _on_its_thread(self.__exit__, exc_type, exc_value, traceback)

    def __call__(self, func: Any) -> Any:
        if not iscoroutinefunction(func):
            return super().__call__(func)

        @wraps(func)
        async def inner(*args: Any, **kwargs: Any) -> Any:
            again = CoroutineAtomic(self.using, self.savepoint, self.durable)  # type: ignore[attr-defined]
            async with again:
                return await func(*args, **kwargs)

        return markcoroutinefunction(inner)


async def _on_its_thread(fn: Callable[..., Any], *args: Any, undo: Any = None) -> None:
    """`fn` where `sync_to_async` runs, to its end; then `undo`, if it was cancelled."""
    call = asyncio.ensure_future(sync_to_async(fn)(*args))
    cancelled: CancelledError | None = None
    while not call.done():
        try:
            await asyncio.wait([call])
        except CancelledError as exc:
            cancelled = exc
    call.result()
    if cancelled is not None:
        if undo is not None:
            await _on_its_thread(undo, CancelledError, cancelled, None)
        raise cancelled


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
