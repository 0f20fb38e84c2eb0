"""The items of a body on their way from a thread, or a bridge, to the socket.

Parking the thread for each item would cost two changes of thread; here the thread
leaves an item and goes on, and the loop sends all that it finds. The contract is
that of `Response.send`, one item late:

- order is kept: nothing is sent past the queue;
- at most `_AHEAD` bytes are under way between thread and loop. Past that, or while
  the client is slow, the thread parks until all before it was taken;
- the first item parks too: when it returns, the head is sent, and
  ``start_response(…, exc_info)`` knows it;
- what went wrong on the loop is raised by the next `put`, or by `finish`; a request
  that was cancelled parks, for that is where a cancellation is delivered.

A body that pushes (see `app`) offers its items. That never parks: it returns False where
`put` would, the push ends, and `catch_up` waits in the task before the next one. So
nothing is ever waited for with a body's frames on the stack, and an error or a
cancellation is the task's, which closes the body.

`_put` and `_taken` are each written by one side only, and a `deque` needs no lock.
`_told` is cleared before the queue is emptied, never after: an item that was added
while it was still set is found.
"""

from __future__ import annotations

import asyncio
from asyncio import _get_running_loop
from collections import deque
from typing import TYPE_CHECKING

from ..bridge import await_
from ..errors import ApplicationError

if TYPE_CHECKING:
    from .app import Exchange

# Between thread and loop; what is under way counts besides the transport's buffer. Some
# of the blocks in which files and archives are read, for one change of thread.
_AHEAD = 1 << 18
# An item counts as this much besides its bytes.
_ITEM = 1 << 9


class Pump:
    """Sends the items of one body. `put` is the thread's, `offer` of both, all else the loop's."""

    __slots__ = (
        "_error",
        "_exchange",
        "_put",
        "_queue",
        "_taken",
        "_told",
        "_wanted",
    )

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._queue: deque[bytes] = deque()
        self._put = 0
        self._taken = 0
        self._told = False
        self._wanted = True
        self._error: BaseException | None = None

    def put(self, item: bytes) -> bool:
        """Send an item; returns whether more is wanted."""
        if not isinstance(item, bytes):
            raise ApplicationError(f"A body's items must be bytes, not {type(item).__name__}.")
        if not item:
            return self._wanted
        exchange = self._exchange
        response = exchange.response
        size = len(item) + _ITEM
        if (
            not response.headers_sent
            or exchange.cancelled
            or exchange.connection.write_paused
            or self._error is not None
            or self._put - self._taken + size > _AHEAD
        ):
            return await_(self._send(item))
        self._put += size
        self._queue.append(item)
        if not self._told:
            self._told = True
            exchange.connection.server.loop.call_soon_threadsafe(self._take)
        return self._wanted

    def offer(self, item: bytes) -> bool:
        """Send an item; returns whether the next one is wanted at once. Never waits."""
        exchange = self._exchange
        connection = exchange.connection
        if _get_running_loop() is not None:
            return exchange.response.offer(item)
        if not isinstance(item, bytes):
            raise ApplicationError(f"A body's items must be bytes, not {type(item).__name__}.")
        if item:
            self._put += len(item) + _ITEM
            self._queue.append(item)
            if not self._told:
                self._told = True
                connection.server.loop.call_soon_threadsafe(self._take)
        return (
            self._wanted
            and self._error is None
            and not (exchange.cancelled or connection.write_paused)
            and self._put - self._taken < _AHEAD
        )

    async def catch_up(self) -> bool:
        """After a push: wait while the client is slow; returns whether more is wanted."""
        self._take()
        self.finish()
        response = self._exchange.response
        if self._wanted:
            await response.breathe()
        return self._wanted and response.wanted

    def finish(self) -> None:
        """On the loop, when the thread is done: raise what went wrong since the last item."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                # The traceback refers to this frame.
                del error

    async def _send(self, item: bytes) -> bool:
        self._take()
        self.finish()
        if self._exchange.cancelled:
            # Delivered where the task suspends, which sending needn't.
            await asyncio.sleep(0)
        if self._wanted:
            self._wanted = await self._exchange.response.send(item)
        return self._wanted

    def _take(self) -> None:
        """Send all that the thread has left."""
        self._told = False
        queue, response = self._queue, self._exchange.response
        while queue:
            item = queue.popleft()
            self._taken += len(item) + _ITEM
            if self._error is None and self._wanted:
                try:
                    self._wanted = response.post(item, gather=bool(queue))
                except Exception as exc:
                    self._error = exc
        response.flush()
