"""Applications that say what they see of a request."""

from __future__ import annotations

import json
from typing import Any

calls = 0


async def echo(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    global calls
    if environ["PATH_INFO"] == "/how-many-calls":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"%d" % calls]
    calls += 1
    seen = {key: value for key, value in environ.items() if type(value) is str}
    seen["body"] = environ["wsgi.input"].read().decode("latin-1")
    start_response("200 OK", [("Content-Type", "application/json"), ("X-Echo", "1")])
    return [json.dumps(seen).encode()]
