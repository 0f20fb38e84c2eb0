"""Locks that tasks on the loop and threads wait for alike, first come, first served.

An *actor* is what may hold one: a task (its code in a bridge waits, and the loop
goes on) or a thread. A thread that `off_loop` sent a task's code to acts for that
task, so it may use what the task holds.

`Turn` is a lock with one holder, reentrant for its actor. `Turns` is that of one
database wrapper: it is held for each statement, and knows about blocks.

A *block* is what `atomic` opens. They nest, and a context variable says in which
one code runs: a child task is in the block that it was started in. Rule: **only
code of the innermost open block may use the connection**, one statement at a
time. So the children of a task in a transaction may query in it, and one that
opens a block of its own (a savepoint) has the connection to itself until it
ends; a task that was started before the transaction waits for its end. Two
blocks never interleave, and no statement slips into a block of another task.

Waits have a time limit, since a task may wait for its own child, and an error
that names who holds what is waited for.
"""

from __future__ import annotations

import asyncio
import threading
import time
from asyncio import _get_running_loop, current_task
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from threading import get_ident
from typing import Any, ParamSpec, TypeVar

from . import bridge
from .errors import BridgeError

P = ParamSpec("P")
T = TypeVar("T")

Actor = Any  # a task, or a thread's ident


def actor() -> Actor:
    """Who runs here: the task whose bridge this is, or this thread."""
    if _get_running_loop() is not None:
        return current_task()
    ident = get_ident()
    return _acting.get(ident, ident)


# The task that a thread acts for, by the thread's ident: several times faster to read than
# a `threading.local`.
_acting: dict[int, Actor] = {}


def acting(actor: Actor, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `fn` on this thread as `actor`, who waits for it meanwhile."""
    ident = get_ident()
    before = _acting.get(ident)
    _acting[ident] = actor
    try:
        return fn(*args, **kwargs)
    finally:
        if before is None:
            del _acting[ident]
        else:
            _acting[ident] = before


def name_of(actor: Actor) -> str:
    """For an error that names a holder."""
    if isinstance(actor, asyncio.Task):
        return f"the task {actor.get_name()} ({actor.get_coro()!r})"
    return f"the thread {actor}"


class Parking:
    """Where one actor waits until somebody wakes it.

    Raises `BridgeError` on the loop outside of a bridge, which would block it.
    """

    __slots__ = ("_event", "_future", "_loop", "actor", "block", "value")

    def __init__(self, event: Callable[[], Any] = threading.Event) -> None:
        # `event` makes what a thread waits on.
        self.actor = actor()
        # What it waited for, once it is handed over.
        self.value: Any = None
        self.block: Block | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        if (loop := _get_running_loop()) is not None:
            if not bridge.in_bridge():
                raise BridgeError(
                    "Synchronous code would have to wait here for another task's use of the "
                    "database, outside of a bridge of this task: start the task with "
                    "greenroom.bridged(), or use async with greenroom.atomic()."
                )
            self._loop = loop
            self._future: asyncio.Future[bool] = self._loop.create_future()
        else:
            self._event = event()

    def wait(self, timeout: float) -> bool:
        """Whether it was woken within `timeout` seconds. May raise `CancelledError`."""
        if self._loop is None:
            return bool(self._event.wait(timeout))
        timer = self._loop.call_later(timeout, self._set, False)
        try:
            return bridge.pause(self._future)
        finally:
            timer.cancel()

    def is_lost(self) -> bool:
        """Whether the loop of whoever waits here was closed."""
        return self._loop is not None and self._loop.is_closed()

    def wake(self) -> None:
        """From any thread."""
        if self._loop is None:
            self._event.set()
        elif _get_running_loop() is self._loop:
            self._set(True)
        else:
            # A closed loop took whoever waited with it.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._set, True)

    def _set(self, woken: bool) -> None:
        if not self._future.done():
            self._future.set_result(woken)


class Turn:
    """A lock with one holder at a time, in the order in which it was asked for.

    `describe` makes the error of a wait that took `timeout` seconds, of the holder.

    It is taken three times a query, so where nobody waits there is no lock: who pops the token
    of `_free`, as one can, has the turn. Those who wait are given the token under the lock. None
    is overlooked: who waits is in `_waiting` before the token is tried for once more, and the
    token is in `_free` before `_waiting` is looked at once more.
    """

    def __init__(
        self, timeout: float | Callable[[], float], describe: Callable[[str], Exception]
    ) -> None:
        # Asked for where somebody has to wait.
        self._timeout = timeout
        self.holder: Actor = None
        self._describe = describe
        self._free = [True]
        self._lock = threading.Lock()
        self._waiting: deque[Parking] = deque()
        self._depth = 0
        self._when_free: Callable[[], object] | None = None
        # The block whose code alone may have it: of `Turns`.
        self.innermost: Block | None = None

    def take(self) -> None:
        """Wait for the turn. Raises what `describe` makes, and `CancelledError`."""
        # (`actor` and `_may`, without calls.)
        if _get_running_loop() is not None:
            me: Actor = current_task()
        else:
            ident = get_ident()
            me = _acting.get(ident, ident)
        block = self._block_that_takes() if _blocks.get() else None
        holder = self.holder
        if holder is not None and holder == me:
            self._depth += 1
            return
        try:
            self._free.pop()
        except IndexError:
            pass
        except BaseException:
            # A Ctrl-C, before or after: the turn is this thread's rather than nobody's.
            if self.holder is None and not self._free:
                self.holder, self._depth = me, 1
            raise
        else:
            if self.innermost is block or self._may(block):
                self.holder = me
                self._depth = 1
                return
            self._give_back()
        self._wait(block)

    __enter__ = take

    def try_take(self) -> bool:
        """Take it if that needs no waiting; says whether it did. It isn't reentrant.

        Nobody's: when a task suspends, a thread may have begun to act for it.
        """
        if not self._pop():
            return False
        if not self._may(self._block()):
            self._give_back()
            return False
        self.holder, self._depth = "what gives it back", 1
        return True

    def release(self, *exc_info: object) -> None:
        """Also as a context manager's `__exit__`."""
        depth = self._depth - 1
        self._depth = depth
        if not depth:
            self.holder = None
            # (`_give_back`, without a call.)
            if self._waiting or self._when_free is not None:
                self._hand_on()
                return
            self._free.append(True)
            if self._waiting or self._when_free is not None:
                self._look_again()

    __exit__ = release

    def is_mine(self) -> bool:
        return self.holder is not None and self.holder == actor()

    def when_free(self, call: Callable[[], object]) -> None:
        """Call it, which must not wait, once nobody has the turn: at once if nobody has."""
        with self._lock:
            self._when_free = call
            if not self._pop():
                return
            self._when_free = None
            self._free.append(True)
        call()

    def _parking(self) -> Parking:
        return Parking()

    def _block(self) -> Block | None:
        return None

    def _block_that_takes(self) -> Block | None:
        return None

    def _may(self, block: Block | None) -> bool:
        """Whether code in that block may have the turn, which is free."""
        return True

    def _who(self) -> str:
        return "nobody" if self.holder is None else name_of(self.holder)

    def _wait(self, block: Block | None) -> None:
        with self._lock:
            parking = self._parking()
            parking.block = block
            self._waiting.append(parking)
            # It may have come free meanwhile.
            self._next()
            if parking.value is not None:
                return
        try:
            woken = parking.wait(self._timeout() if callable(self._timeout) else self._timeout)
        except BaseException:
            if not self._withdraw(parking):
                self.release()
            raise
        # It may have been given in the last moment.
        if not woken and self._withdraw(parking):
            raise self._describe(self._who())

    # The token.

    def _pop(self) -> bool:
        try:
            self._free.pop()
        except IndexError:
            return False
        return True

    def _give_back(self) -> None:
        if self._waiting or self._when_free is not None:
            self._hand_on()
            return
        self._free.append(True)
        if self._waiting or self._when_free is not None:
            self._look_again()

    def _look_again(self) -> None:
        """Somebody began to wait while it was given back; if it was taken, who has it sees them."""
        if self._pop():
            self._hand_on()

    def _hand_on(self) -> None:
        """Give it to who waits for it."""
        with self._lock:
            call, self._when_free = self._when_free, None
            if call is None:
                self._give()
                return
            self._free.append(True)
        try:
            call()
        finally:
            with self._lock:
                self._next()

    def _next(self) -> None:
        """Give it to who waits, if it is free. Needs the lock."""
        if self._waiting and self._pop():
            self._give()

    def _give(self) -> None:
        """Give it to the first who may have it. Needs the lock."""
        for parking in self._waiting:
            if self._may(parking.block) and not parking.is_lost():
                self._waiting.remove(parking)
                self.holder, self._depth = parking.actor, 1
                parking.value = self
                parking.wake()
                return
        self._free.append(True)

    def _withdraw(self, parking: Parking) -> bool:
        """Wait no more. False if the turn had been given."""
        with self._lock:
            if parking.value is None:
                self._waiting.remove(parking)
                return True
            return False


class Block:
    """One `atomic` block that is open on a wrapper."""

    __slots__ = ("aborted", "actor", "began", "open", "parent")

    def __init__(self, parent: Block | None) -> None:
        self.parent = parent
        self.actor = actor()
        self.open = True
        # Whether the block around it ended before it did.
        self.aborted = False
        self.began = time.monotonic()


# The innermost block that the code here is in, on each wrapper.
_blocks: ContextVar[dict[Turns, Block] | None] = ContextVar("greenroom.blocks", default=None)


class Turns(Turn):
    """The turns of one wrapper; see the rule above.

    `aborted` makes the error for the code of a block that ended with the one around it.
    """

    def __init__(
        self,
        timeout: float | Callable[[], float],
        describe: Callable[[str], Exception],
        aborted: Callable[[], Exception],
    ) -> None:
        super().__init__(timeout, describe)
        self.aborted = aborted
        # Whether who has the turn may call code on a thread before it is released.
        self.calls_out = False

    def entered(self) -> Block | None:
        """The block that the code here entered last, and hasn't left."""
        blocks = _blocks.get()
        return blocks.get(self) if blocks else None

    def open(self) -> Block:
        """Begin a block within the one that the caller is in, whose turn it is."""
        block = self.innermost = Block(self._block())
        _blocks.set({**(_blocks.get() or {}), self: block})
        return block

    def end(self, block: Block) -> None:
        """End a block, and with it those within that somebody left open."""
        if block.open:
            inner = self.innermost
            while inner is not None and inner is not block:
                inner.open = False
                inner.aborted = True
                inner = inner.parent
            block.open = False
            self.innermost = block.parent
        blocks = dict(_blocks.get() or {})
        if block.parent is not None:
            blocks[self] = block.parent
        else:
            blocks.pop(self, None)
        _blocks.set(blocks)
        with self._lock:
            self._next()

    def is_in_block(self) -> bool:
        """Whether the code here is in a block that is open."""
        return self._block() is not None

    def was_left_open(self) -> bool:
        """Whether the code here is in a block that is open, or was ended from without."""
        block = self.entered()
        while block is not None and not (block.open or block.aborted):
            block = block.parent
        return block is not None

    def is_inside(self) -> bool:
        """Whether the code here is in the innermost block."""
        return self.innermost is self._block()

    def abort(self) -> None:
        """End all blocks, for code that is still in them."""
        while (block := self.innermost) is not None:
            block.open = False
            block.aborted = True
            self.innermost = block.parent

    def _parking(self) -> Parking:
        # A statement takes a moment; a block of others may have calls to make on threads.
        return Parking(partial(_thread.event, self.calls_out or not self.is_inside()))

    def _block(self) -> Block | None:
        return _still_open(self.entered())

    def _block_that_takes(self) -> Block | None:
        block = self.entered()
        if block is not None and block.aborted:
            raise self.aborted()
        return _still_open(block)

    def _may(self, block: Block | None) -> bool:
        return self.innermost is (None if block is None else _still_open(block))

    def _who(self) -> str:
        if self.holder is not None or self.innermost is None:
            return super()._who()
        seconds = time.monotonic() - self.innermost.began
        return f"{name_of(self.innermost.actor)}, in an atomic block for {seconds:.1f} s"


def _still_open(block: Block | None) -> Block | None:
    while block is not None and not block.open:
        block = block.parent
    return block


def set_event(event: Callable[[bool], Any]) -> Callable[[bool], Any]:
    """Set what makes the event that this thread waits on for others' use of a wrapper.

    It is told whether they may have calls to make on threads. Returns what it was.
    """
    before, _thread.event = _thread.event, event
    return before


class _Thread(threading.local):
    def __init__(self) -> None:
        self.event: Callable[[bool], Any] = lambda calls: threading.Event()


_thread = _Thread()
