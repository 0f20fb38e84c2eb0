"""An application that keeps a journal of what reaches it, for the test behind a proxy."""

from __future__ import annotations

import hashlib
import json
from typing import Any

journal: list[dict[str, Any]] = []


async def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    if environ["PATH_INFO"] == "/journal" and environ.get("HTTP_X_READ") == "yes":
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(journal).encode()]
    body = environ["wsgi.input"].read()
    identity = environ.get("HTTP_X_PROXY_ID", "")
    seen = {
        "id": identity,
        "method": environ["REQUEST_METHOD"],
        "target": environ["RAW_URI"],
        "length": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
        "declared": environ.get("CONTENT_LENGTH"),
        "mark": environ.get("HTTP_X_MARK"),
    }
    journal.append(seen)
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Seen-Id", identity)])
    return [json.dumps(seen).encode()]
