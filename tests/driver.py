"""Drives the application as a server of coroutine WSGI does, without a socket."""

from __future__ import annotations

import asyncio
import inspect
import io
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from django.test import override_settings

from greenroom.application import AsyncDjangoApplication
from greenroom.db import borrow
from greenroom.loops import Home
from greenroom.threads import Threads

T = TypeVar("T")


@dataclass
class Answer:
    status: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)
    on_part: Callable[[], object] = bool
    closing: bool = False
    cancel_later: bool = False

    @property
    def code(self) -> int:
        return int(self.status.split()[0])

    @property
    def body(self) -> bytes:
        return b"".join(self.parts)

    @property
    def text(self) -> str:
        return self.body.decode()

    def header(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key.lower() == name.lower()]
        return found[0] if found else None


def environ_of(path: str, method: str = "GET", body: bytes = b"", **extra: Any) -> dict[str, Any]:
    path, _, query = path.partition("?")
    environ = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path.encode().decode("latin-1"),
        "QUERY_STRING": query,
        "CONTENT_LENGTH": str(len(body)),
        "SERVER_NAME": "testserver",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "testserver",
        "REMOTE_ADDR": "127.0.0.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.async": True,
    }
    environ.update(extra)
    return environ


async def ask(app: Any, path: str, method: str = "GET", body: bytes = b"", **extra: Any) -> Answer:
    """One request, in the current task, as the server calls the application."""
    return await _ask(Answer(), app, environ_of(path, method, body, **extra))


async def _ask(answer: Answer, app: Any, environ: dict[str, Any]) -> Answer:
    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
        answer.status, answer.headers = status, headers

    result = app(environ, start_response)
    if inspect.isawaitable(result):
        result = await result
    try:
        if hasattr(result, "__aiter__"):
            async for part in result:
                answer.parts.append(part)
                answer.on_part()
        else:
            answer.parts.extend(result)
    finally:
        answer.closing = True
        if hasattr(result, "aclose"):
            await result.aclose()
        elif hasattr(result, "close"):
            result.close()
        answer.closing = False
        if answer.cancel_later:
            raise asyncio.CancelledError
    return answer


class Cancellable:
    """A request in a task of its own, which is never cancelled while it is closed."""

    def __init__(self, app: Any, path: str, **extra: Any) -> None:
        self.answer = Answer()
        self.task = asyncio.create_task(_ask(self.answer, app, environ_of(path, **extra)))

    def cancel(self) -> None:
        if self.answer.closing:
            self.answer.cancel_later = True
        else:
            self.task.cancel()


class Site:
    """The test project under one loop with threads, in one placement.

    `run(main)` runs `main(self)` on the loop; `get(path)` is one request.
    """

    def __init__(
        self,
        placement: str = "loop",
        *,
        middleware: tuple[str, ...] = (),
        threads: int = 2,
        max_parked: int = 40,
        queue_timeout: float = 5.0,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
        **settings: Any,
    ) -> None:
        self.placement = placement
        greenroom = {
            "PLACEMENT": "thread" if placement == "thread" else "auto",
            "LOOP_SAFE": ["project.*"],
            **settings.pop("GREENROOM", {}),
        }
        self._override = override_settings(
            GREENROOM=greenroom, MIDDLEWARE=list(middleware), **settings
        )
        self._limits = {"limit": threads, "max_parked": max_parked, "queue_timeout": queue_timeout}
        self._loop_factory = loop_factory
        self._app: AsyncDjangoApplication | None = None

    def __enter__(self) -> Site:
        self._override.enable()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._override.disable()

    def use(self, *middleware: str) -> None:
        """Choose the middlewares; before the first request."""
        self._override.disable()
        self._override.options["MIDDLEWARE"] = list(middleware)
        self._override.enable()
        self._app = None

    @property
    def app(self) -> AsyncDjangoApplication:
        if self._app is None:
            self._app = AsyncDjangoApplication()
        return self._app

    def run(self, main: Callable[[Site], Coroutine[Any, Any, T]]) -> T:
        async def whole() -> T:
            loop = asyncio.get_running_loop()
            self.home = Home(loop, Threads(loop, **self._limits))
            self.home.register()
            try:
                return await main(self)
            finally:
                await self.idle()
                await self.home.aclose()
                borrow.drain()

        with asyncio.Runner(loop_factory=self._loop_factory) as runner:
            return runner.run(whole())

    async def idle(self) -> None:
        """Wait for what runs after the answers: request_finished."""
        async with asyncio.timeout(10):
            while self.home.threads.busy:
                await asyncio.sleep(0.001)

    async def ask(self, path: str, method: str = "GET", body: bytes = b"", **extra: Any) -> Answer:
        """A request as a task of its own, as under a server."""
        return await asyncio.create_task(ask(self.app, path, method, body, **extra))

    def get(self, path: str, method: str = "GET", body: bytes = b"", **extra: Any) -> Answer:
        return self.run(lambda site: site.ask(path, method, body, **extra))


def on_loop() -> bool:
    """Whether this is the thread of a running loop (and so not one of the pool's)."""
    return (
        asyncio._get_running_loop() is not None
        or not threading.current_thread().name.startswith("greenroom-")
    )
