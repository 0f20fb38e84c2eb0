"""Applications that tell what the tests of settings want to know."""

import asyncio
import json
import os
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

IMPORTED_IN = os.getpid()


def note(what: str) -> None:
    sys.stderr.write(f"note: {what}\n")
    sys.stderr.flush()


def spool_of(body: Any) -> str:
    """Where the file of a body was, before it was unlinked."""
    try:
        return os.readlink(f"/proc/self/fd/{body.fileno()}")
    except OSError:
        return ""


def backlogs() -> list[int]:
    """Of the listening sockets of this process (tcp_info's sacked says it, for those)."""
    found = []
    for each in os.listdir("/proc/self/fd"):
        try:
            sock = socket.socket(fileno=os.dup(int(each)))
        except OSError:
            continue
        with sock:
            if sock.family == socket.AF_UNIX or not sock.getsockopt(
                socket.SOL_SOCKET, socket.SO_ACCEPTCONN
            ):
                continue
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
            found.append(struct.unpack("8B24I", info)[13])
    return found


async def tell(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Its environ, and things of its process."""
    if environ["PATH_INFO"] == "/hang":
        note("hanging")
        try:
            await asyncio.sleep(float(environ["QUERY_STRING"]))
        except asyncio.CancelledError:
            note("cancelled")
            raise
    seen = {k: v for k, v in environ.items() if isinstance(v, str | bool)}
    seen |= {
        "pid": os.getpid(),
        "imported_in": IMPORTED_IN,
        "spool": spool_of(environ["wsgi.input"]),
        "backlogs": backlogs() if environ["PATH_INFO"] == "/backlogs" else [],
    }
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(seen).encode()]


class Crowd:
    """How many threads are here at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = self.most = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.3)
        with self.lock:
            self.now -= 1
        start_response("200 OK", [])
        return [b"%d" % self.most]


crowd = Crowd()


def logged(environ: dict[str, Any], start_response: Any) -> Any:
    """Answers of every kind, whose lines in the access log are compared."""
    kind = environ["PATH_INFO"].strip("/")
    body = environ["wsgi.input"].read()
    headers = [("X-Kind", kind), ("Content-Type", "text/plain")]
    if kind == "none":
        start_response("204 No Content", headers)
        return []
    if kind == "stream":
        start_response("200 OK", headers)
        return iter([b"a" * 10, b"", b"b" * 1000])
    if kind == "long":
        start_response("200 OK", [*headers, ("Content-Length", "3")])
        return iter([b"ab", b"cd", b"ef"])
    if kind == "file":
        file = Path(__file__).open("rb")  # noqa: SIM115
        start_response("200 OK", [*headers, ("Content-Length", str(os.path.getsize(__file__)))])
        return environ["wsgi.file_wrapper"](file)
    if kind == "missing":
        start_response("404 Not Found, at all", headers)
        return [b"no"]
    start_response("200 OK", [*headers, ("Content-Length", str(len(body) + 2))])
    return [b"<", body, b">"]
