"""The bodies of answers: complete, streamed, or pulled by a server that knows no streams.

Each is closed exactly once, by who sends it: `aclose()` for a server of coroutine
WSGI, `close()` for any other. Streams go item by item, and are never consumed
whole first.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import Any

from asgiref.sync import _restore_context, sync_to_async
from django.http import FileResponse
from django.http.response import StreamingHttpResponse

from . import bridge, loops
from .crossing import Held, ToItsEnd

# Takes an item; returns whether the next one is wanted at once.
Offer = Callable[[bytes], bool]

# As Django's ASGI handler reads them.
_FILE_BLOCK = 1 << 16
# Whose iteration is that of their `_iterator`; a subclass may have its own.
_KNOWN_STREAMS = frozenset({StreamingHttpResponse, FileResponse})


class Parts(list[bytes]):
    """A complete body; `aclose`, if it is set, closes its response once it is written."""

    __slots__ = ("aclose",)

    aclose: Callable[[], Awaitable[Any]]


class Stream:
    """An async iterator over a body, closed exactly once by the server.

    Or pushed, which spares a change of greenlet or thread per item: see
    `greenroom.server.app` for `coroutine_wsgi_push`.
    """

    __slots__ = ("_close", "_iterator", "_source", "coroutine_wsgi_push")

    def __init__(
        self,
        iterator: AsyncIterator[bytes],
        source: Any,
        close: Callable[[], Awaitable[Any]],
        push: Callable[[Offer], Awaitable[bool]],
    ) -> None:
        self._iterator = iterator
        self._source = source
        self._close = close
        self.coroutine_wsgi_push = push

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._iterator

    async def aclose(self) -> None:
        # Closed here, from the outside in, not whenever they are collected: their
        # finally runs now and in this task. Each is, whatever the others raise.
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._close)
            for each in (*(self._source or ()), self._iterator):
                if inspect.isasyncgen(each) and not each.ag_running:
                    stack.push_async_callback(each.aclose)


class FileParts:
    """An open file, read in blocks on threads: for a server that sends no files itself.

    No thread is held between two blocks.
    """

    __slots__ = ("_read", "aclose")

    def __init__(self, file: Any, block_size: int) -> None:
        read = ToItsEnd(partial(file.read, max(block_size, _FILE_BLOCK)))
        self._read: Callable[[], Awaitable[bytes]] = sync_to_async(read)

    def __aiter__(self) -> FileParts:
        return self

    async def __anext__(self) -> bytes:
        data = await self._read()
        if not data:
            raise StopAsyncIteration
        return data


def stream(response: Any, source: Any, close: Callable[[], Awaitable[Any]]) -> Any:
    """A coroutine view's stream: its generator's steps run in the request's task."""
    outer = response._iterator if type(response) in _KNOWN_STREAMS else response

    async def parts() -> AsyncIterator[bytes]:
        iterator = aiter(outer)
        while True:
            try:
                # In a bridge: it may use the ORM as the view did.
                part = await bridge.run(_next, iterator)
            except StopAsyncIteration:
                return
            yield response.make_bytes(part)

    pushed: AsyncIterator[Any] | None = None

    async def push(offer: Offer) -> bool:
        nonlocal pushed
        if pushed is None:
            pushed = aiter(outer)
        return await bridge.run(_push, pushed, response.make_bytes, offer)

    return Stream(parts(), (source, getattr(response, "_iterator", None)), close, push)


def _next(iterator: AsyncIterator[Any]) -> Any:
    return bridge.await_(anext(iterator))


def _push(iterator: AsyncIterator[Any], make_bytes: Callable[[Any], bytes], offer: Offer) -> bool:
    """Items as long as they are wanted; returns whether there may be more."""
    while True:
        try:
            part = bridge.await_(anext(iterator))
        except StopAsyncIteration:
            return False
        if not offer(make_bytes(part)):
            return True


async def parts_of(held: Held) -> AsyncIterator[bytes]:
    """A synchronous stream, item by item on its thread."""
    while (part := await held.call(next, held.value, None)) is not None:
        yield part


def push_of(iterator: Iterator[bytes], offer: Offer) -> bool:
    """As `_push`, of a synchronous stream on its thread."""
    return any(not offer(part) for part in iterator)


class Nothing:
    """No body, of a response that is closed all the same."""

    def __init__(self, close: Callable[[], object]) -> None:
        self.close = close

    def __iter__(self) -> Iterator[bytes]:
        return iter(())


def once(close: Callable[[], object]) -> Callable[[], None]:
    """`close`, which must not be called twice, for those who do.

    In a wrapper, ``yield from`` closes what it delegates to, if that is an iterator with a
    `close`, and ``finally`` does it again.
    """
    closed = False

    def inner() -> None:
        nonlocal closed
        if not closed:
            closed = True
            close()

    return inner


class Pulled:
    """A coroutine stream as a plain iterator, for a server that knows no others.

    One task on the loop pulls it, item by item as they are asked for: cancel
    scopes inside of a generator insist on one task.
    """

    def __init__(self, home: loops.Home, stream: Stream, close: Callable[[], object]) -> None:
        self._home = home
        self._stream = stream
        self._close = close
        # With what is local to this thread: language, time zone, URLconf.
        self._context = copy_context()
        self._items: SimpleQueue[Any] = SimpleQueue()
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ended = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._ended:
            raise StopIteration
        if self._waits_here():
            # The request's own task pulls.
            item = bridge.await_(self._next())
        else:
            self._home.loop.call_soon_threadsafe(self._want)
            item = self._items.get()
        if isinstance(item, bytes):
            return item
        self._ended = True
        if item is None:
            raise StopIteration
        raise item

    def close(self) -> None:
        try:
            if self._waits_here():
                bridge.await_(self._stream.aclose())
            elif not self._ended:
                self._home.loop.call_soon_threadsafe(self._cancel)
                while isinstance(self._items.get(), bytes):
                    pass
        finally:
            self._ended = True
            self._close()

    def _waits_here(self) -> bool:
        """Whether the code here waits within a task of the loop, and must not block it."""
        if bridge.thread_wait() is not None:
            # On a thread of the worker, beneath a plain wrapper: it is parked.
            return True
        # The test client in an async test.
        return bridge.in_bridge() and loops.current() is self._home

    async def _next(self) -> bytes | None:
        async for part in self._stream:
            return part
        return None

    def _want(self) -> None:
        self._wanted.set()
        if self._task is None:
            self._task = self._home.loop.create_task(self._pull(), context=self._context)

    def _cancel(self) -> None:
        if self._task is None:
            self._items.put(None)
        else:
            self._task.cancel()

    async def _pull(self) -> None:
        _restore_context(self._context)
        end: BaseException | None = None
        try:
            parts = aiter(self._stream)
            while True:
                await self._wanted.wait()
                self._wanted.clear()
                self._items.put(await anext(parts))
        except StopAsyncIteration:
            end = None
        except BaseException as exc:
            end = exc
        try:
            await self._stream.aclose()
        finally:
            self._items.put(end)


async def nothing() -> None:
    """The response of a pulled stream is closed on the thread that pulls."""
