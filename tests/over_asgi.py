"""Drives the ASGI application as a server does, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from driver import Answer
from greenroom.asgi import AsyncDjangoASGIApplication


def scope_of(path: str, method: str = "GET", **extra: Any) -> dict[str, Any]:
    path, _, query = path.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"testserver")],
        "client": ("127.0.0.1", 50000),
        "server": ("testserver", 80),
        **extra,
    }


class Exchange:
    """One request and what is sent in answer; it begins when it is made.

    `body` is an item or several, each a message; with None there is none yet.
    `on_send` is awaited before a message is taken.
    """

    def __init__(
        self,
        app: Any,
        path: str,
        method: str = "GET",
        body: bytes | Iterable[bytes] | None = b"",
        on_send: Callable[[Any], Awaitable[object]] | None = None,
        **scope: Any,
    ) -> None:
        self.sent: list[Any] = []
        self._app = app
        self._on_send = on_send
        self._messages: asyncio.Queue[Any] = asyncio.Queue()
        if body is not None:
            items = [body] if isinstance(body, bytes) else list(body)
            for index, item in enumerate(items):
                more = index + 1 < len(items)
                self.give({"type": "http.request", "body": item, "more_body": more})
        self.task = asyncio.create_task(
            app(scope_of(path, method, **scope), self._messages.get, self._send)
        )

    def give(self, message: Any) -> None:
        self._messages.put_nowait(message)

    def leave(self) -> None:
        """The client leaves."""
        self.give({"type": "http.disconnect"})

    @property
    def parts(self) -> list[bytes]:
        return [message["body"] for message in self.sent[1:] if message.get("body")]

    async def answer(self) -> Answer:
        """Wait for the end; what was sent, which must be a complete answer."""
        await self.task
        start, *rest = self.sent
        assert start["type"] == "http.response.start"
        assert {message["type"] for message in rest} == {"http.response.body"}
        assert [bool(message.get("more_body")) for message in rest] == [True] * (len(rest) - 1) + [
            False
        ]
        answer = Answer(str(start["status"]))
        answer.headers = [
            (name.decode(), value.decode("latin-1")) for name, value in start["headers"]
        ]
        answer.parts = self.parts
        return answer

    async def _send(self, message: Any) -> None:
        if self._on_send is not None:
            await self._on_send(message)
        self.sent.append(message)


async def ask(app: Any, path: str, method: str = "GET", **more: Any) -> Answer:
    """One complete request."""
    return await Exchange(app, path, method, **more).answer()


class Lifespan:
    """The lifespan scope, as a server drives it."""

    def __init__(self, app: AsyncDjangoASGIApplication) -> None:
        self.sent: list[Any] = []
        self._messages: asyncio.Queue[Any] = asyncio.Queue()
        self._changed = asyncio.Event()
        self.task = asyncio.create_task(
            app({"type": "lifespan", "asgi": {"version": "3.0"}}, self._messages.get, self._send)
        )

    async def __aenter__(self) -> Lifespan:
        assert (await self.tell("startup"))["type"] == "lifespan.startup.complete"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert (await self.tell("shutdown"))["type"] == "lifespan.shutdown.complete"
        await self.task

    async def tell(self, what: str) -> Any:
        """Send an event; the application's answer."""
        self._changed.clear()
        self._messages.put_nowait({"type": f"lifespan.{what}"})
        async with asyncio.timeout(10):
            await self._changed.wait()
        return self.sent[-1]

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        self._changed.set()
