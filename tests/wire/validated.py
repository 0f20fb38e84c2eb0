"""Applications of every kind beneath the standard library's validator of WSGI.

`app` sends a request to the one that the first segment of its path names, each in a
validator of its own. The validator is a `def` wrapper: all of them run on threads, and what
is a coroutine inside parks its thread. `coroutine` runs on the loop, and uses the parts of
the validator that a coroutine can.
"""

from __future__ import annotations

import os
import sys
import tempfile
from typing import Any
from wsgiref import validate

from flask import Flask, Response, request

os.environ["DJANGO_SETTINGS_MODULE"] = "django_site.settings"

from django_site.stock import application as stock
from django_site.wsgi import application as django

TEXT = [("Content-Type", "text/plain")]


def plain(environ: dict[str, Any], start_response: Any) -> Any:
    path = environ["PATH_INFO"]
    body = environ["wsgi.input"]
    if path == "/read":
        data = body.read(int(environ.get("CONTENT_LENGTH") or 0)) + body.read(1)
    elif path == "/readline":
        data = body.readline(3) + body.readline()
    elif path == "/readlines":
        data = b"".join(body.readlines(1) + body.readlines())
    elif path == "/iterate":
        data = b"".join(body)
    else:
        data = b"nothing"
    environ["wsgi.errors"].write("")
    environ["wsgi.errors"].flush()
    if path == "/write":
        write = start_response("200 OK", TEXT)
        write(b"written ")
        write(b"twice")
        return []
    if path == "/empty":
        start_response("204 No Content", [])
        return []
    if path == "/not-modified":
        start_response("304 Not Modified", [])
        return []
    if path == "/generator":
        start_response("200 OK", TEXT)
        return (b"%d\n" % number for number in range(1000))
    if path == "/late-start":

        def late() -> Any:
            start_response("200 OK", TEXT)
            yield b"late"

        return late()
    if path == "/long":
        start_response("200 OK", [*TEXT, ("Content-Length", "3")])
        return (b"%d" % number for number in range(10))
    if path == "/replaced":
        start_response("200 OK", TEXT)
        try:
            raise RuntimeError("before the head was sent")
        except RuntimeError:
            start_response("500 Internal Server Error", TEXT, sys.exc_info())
        return [b"replaced"]
    if path == "/file":
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the server closes it
        file.write(b"x" * 300_000)
        file.seek(0)
        start_response("200 OK", TEXT)
        return environ["wsgi.file_wrapper"](file, 4096)
    if path == "/broken":
        # What a validator is for.
        start_response("200 OK", [])
        return [b""]
    start_response("200 OK", TEXT)
    return [data]


flask = Flask(__name__)


@flask.route("/", methods=["GET", "POST"])
def index() -> str:
    return f"{request.method} {len(request.get_data())}"


@flask.get("/stream")
def stream() -> Response:
    return Response((f"{number}\n" for number in range(100)), mimetype="text/plain")


APPS = {
    name: validate.validator(each)
    for name, each in {"plain": plain, "flask": flask, "django": django, "stock": stock}.items()
}


def app(environ: dict[str, Any], start_response: Any) -> Any:
    _, name, path = environ["PATH_INFO"].split("/", 2)
    environ["SCRIPT_NAME"] = f"/{name}"
    environ["PATH_INFO"] = f"/{path}"
    if name == "flask":
        # With it Werkzeug calls read() without a size, which the validator forbids.
        del environ["wsgi.input_terminated"]
    return APPS[name](environ, start_response)


async def coroutine(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    validate.check_environ(environ)
    body = validate.InputWrapper(environ["wsgi.input"])
    data = body.read(int(environ.get("CONTENT_LENGTH") or 0))
    validate.ErrorWrapper(environ["wsgi.errors"]).flush()
    write = start_response("200 OK", TEXT)
    assert callable(write)
    return [data or b"nothing"]
