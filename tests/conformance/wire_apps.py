"""Applications that say what they see of a request."""

from __future__ import annotations

import json
from typing import Any
from wsgiref.validate import validator

calls = 0
HEADERS = [("Content-Type", "application/json"), ("X-Echo", "1")]


async def echo(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    global calls
    if environ["PATH_INFO"] == "/how-many-calls":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"%d" % calls]
    calls += 1
    body = environ["wsgi.input"].read()
    start_response("200 OK", HEADERS)
    return [seen(environ, body)]


def on_thread(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    size = int(environ.get("CONTENT_LENGTH") or 0)
    answer = seen(environ, environ["wsgi.input"].read(size))
    start_response("200 OK", [*HEADERS, ("Content-Length", str(len(answer)))])
    return [answer]


validated = validator(on_thread)


def seen(environ: dict[str, Any], body: bytes) -> bytes:
    strings = {key: value for key, value in environ.items() if type(value) is str}
    return json.dumps({**strings, "body": body.decode("latin-1")}).encode()
