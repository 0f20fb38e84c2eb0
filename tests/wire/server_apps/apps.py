"""Applications for the wire tests: no framework but Flask, no Django."""

import asyncio
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from flask import Flask, request

from greenroom import loops


def note(what: str) -> None:
    sys.stderr.write(f"note: {what}\n")
    sys.stderr.flush()


async def bare(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    path = environ["PATH_INFO"]
    if path == "/sleep":
        note("sleeping")
        await asyncio.sleep(float(environ["QUERY_STRING"]))
    elif path == "/until":
        # There is a file of this name.
        note("waiting")
        while not os.path.exists(environ["QUERY_STRING"]):
            await asyncio.sleep(0.02)
    elif path == "/hang":
        if environ["QUERY_STRING"] == "keep":
            environ["coroutine_wsgi.cancel_on_disconnect"] = False
        note("hanging")
        try:
            await asyncio.sleep(2.5 if environ["QUERY_STRING"] == "keep" else 3600)
        except asyncio.CancelledError:
            note("cancelled")
            raise
        note("finished")
    elif path == "/exit":
        raise SystemExit(7)
    elif path == "/exit-in-child":

        async def leave() -> None:
            raise SystemExit(7)

        environ["task"] = asyncio.create_task(leave())
        await asyncio.sleep(3600)
    elif path == "/stuck":
        time.sleep(3600)
    elif path == "/hints":
        environ["wsgi.early_hints"]([("Link", "</a.css>; rel=preload")])
    elif path == "/interrupt-in-child":

        async def interrupt() -> None:
            raise KeyboardInterrupt

        environ["task"] = asyncio.create_task(interrupt())
        await asyncio.sleep(3600)
    body = environ["wsgi.input"].read()
    seen = {k: v for k, v in environ.items() if isinstance(v, (str, bool, tuple))}
    seen |= {"body": len(body), "pid": os.getpid(), "thread": threading.current_thread().name}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(seen).encode()]


class Late(list[bytes]):
    """Has much to do once it was sent."""

    def close(self) -> None:
        note("closing")
        time.sleep(1)
        note("closed")


def plain(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    path = environ["PATH_INFO"]
    if path == "/sleep":
        note("sleeping")
        time.sleep(float(environ["QUERY_STRING"]))
    elif path == "/exit":
        raise SystemExit(7)
    elif path == "/hints":
        environ["wsgi.early_hints"]([("Link", "</a.css>; rel=preload")])
    elif path == "/late":
        start_response("200 OK", [])
        return Late([b"late"])
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("X-Thread", threading.current_thread().name)])
    return [b"%d" % len(body)]


def generator(environ: dict[str, Any], start_response: Any) -> Any:
    start_response("200 OK", [])
    try:
        for number in range(int(environ["QUERY_STRING"] or 3)):
            yield b"%d\n" % number
        if environ["PATH_INFO"] == "/fail":
            raise RuntimeError("failed on purpose")
    finally:
        note("generator closed")


class Stream:
    """Async items; `/slow` waits between them."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.number = 0

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> bytes:
        self.number += 1
        if self.path == "/fail" and self.number == 3:
            raise RuntimeError("failed on purpose")
        if self.path == "/big":
            if self.number % 100 == 0:
                note(f"made {self.number}")
            return b"x" * 65536
        if self.path == "/slow" and self.number > 1:
            await asyncio.sleep(3600)
        if self.number > 3:
            raise StopAsyncIteration
        return b"%d\n" % self.number

    async def aclose(self) -> None:
        await asyncio.sleep(0.01)
        note(f"aclose after {self.number}")


async def stream(environ: dict[str, Any], start_response: Any) -> Stream:
    start_response("200 OK", [])
    return Stream(environ["PATH_INFO"])


def file(environ: dict[str, Any], start_response: Any) -> Any:
    opened = open(environ["QUERY_STRING"], "rb")  # noqa: SIM115
    start_response("200 OK", [])
    return environ["wsgi.file_wrapper"](opened)


async def async_file(environ: dict[str, Any], start_response: Any) -> Any:
    return file(environ, start_response)


class Big:
    """Takes and sends what doesn't fit into memory; says how much that has grown."""

    coroutine_wsgi_options = {"max_body": None, "spool_quota": None}  # noqa: RUF012

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
        if path == "/file":
            return file(environ, start_response)
        start_response("200 OK", [])
        if path == "/items":
            return (b"x" * 65536 for _ in range(int(query)))
        if path == "/async-items":
            return self.items(int(query))
        if path == "/reset":
            # proc(5): the peak begins anew.
            Path("/proc/self/clear_refs").write_text("5")
        size = 0
        while data := environ["wsgi.input"].read(65536):
            size += len(data)
        status = Path("/proc/self/status").read_text()
        peak = status.partition("VmHWM:")[2].split()[0]
        return [json.dumps({"size": size, "peak": int(peak) * 1024}).encode()]

    async def items(self, number: int) -> Any:
        for _ in range(number):
            yield b"x" * 65536


class AsyncBig(Big):
    async def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        return super().__call__(environ, start_response)


big, async_big = Big(), AsyncBig()
flask = Flask(__name__)


@flask.post("/upload")
def upload() -> dict[str, Any]:
    return {"files": {n: len(f.read()) for n, f in request.files.items()}, "form": request.form}


@flask.get("/")
def index() -> str:
    return "from flask"


class Starting:
    """An application whose start-up fails, or works, as the environment says."""

    coroutine_wsgi_options = {"max_parked": 11, "spool_quota": 0}  # noqa: RUF012

    async def coroutine_wsgi_startup(self) -> str:
        await asyncio.sleep(0)
        if "FAIL" in os.environ:
            raise RuntimeError("no database today")
        self.started = True
        if "ENDLESS" in os.environ:
            home = loops.current()
            assert home is not None
            home.stack.push_async_callback(self.end)
        return "9 coroutine views on the loop"

    async def end(self) -> None:
        note("ending")
        await asyncio.sleep(3600)

    async def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [str(self.started).encode()]


starting = Starting()
