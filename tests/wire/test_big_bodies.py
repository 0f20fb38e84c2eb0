"""Bodies of hundreds of megabytes, both ways, in a constant amount of memory.

    GREENROOM_BIG_MIB=1024 python -m pytest tests/wire/test_big_bodies.py -s

takes and sends bodies of 1 GiB, and prints what was seen.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving import Server, serve

APPS = Path(__file__).parent / "server_apps"
MIB = 1 << 20
SIZE = int(os.environ.get("GREENROOM_BIG_MIB", "200")) * MIB
ASYNCIO = "import sys\nsys.modules['uvloop'] = None\n"
BLOCK = b"x" * 65536

# A run of 1 GiB is more than the time limit of a test allows, and says how long it took.
pytestmark = [pytest.mark.once, pytest.mark.timeout(120 + SIZE // MIB)]


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def server(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Server]:
    config = ASYNCIO if request.param == "asyncio" else ""
    config += f"tmp_upload_dir = {str(tmp_path_factory.mktemp('spool'))!r}\n"
    app = "big" if request.param == "uvloop" else "async_big"
    with serve(f"apps:{app}", cwd=APPS, extra_config=config) as server:
        server.wait_for(f"loop {request.param}")
        # What is loaded by the first requests is no growth.
        for path in ("/", "/items?50", "/async-items?50"):
            download(server, path)
        upload(server, 3 * MIB, chunked=False)
        yield server


def ask(server: Server, path: str) -> Any:
    with server.connect(600) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
        return answer(sock)


def answer(sock: socket.socket) -> Any:
    data = b""
    while piece := sock.recv(65536):
        data += piece
    assert data.startswith(b"HTTP/1.1 200 "), data
    return json.loads(data.partition(b"\r\n\r\n")[2])


def download(server: Server, path: str) -> int:
    """The bytes that came, with the head and the sizes of chunks."""
    size = 0
    room = bytearray(1 << 18)
    with server.connect(600) as sock:
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
        while came := sock.recv_into(room):
            size += came
    return size


def upload(server: Server, size: int, *, chunked: bool) -> Any:
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    block = b"%x\r\n%b\r\n" % (len(BLOCK), BLOCK) if chunked else BLOCK
    with server.connect(600) as sock:
        head = f"POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{framing}\r\n\r\n"
        sock.sendall(head.encode())
        for _ in range(size // len(BLOCK)):
            sock.sendall(block)
        if chunked:
            sock.sendall(b"0\r\n\r\n")
        return answer(sock)


@pytest.mark.parametrize("what", ["length", "chunked", "file", "items", "async-items"])
def test_big_bodies_take_no_memory(server: Server, what: str, tmp_path: Path) -> None:
    before = ask(server, "/reset")["peak"]
    began = time.monotonic()
    if what in ("length", "chunked"):
        seen = upload(server, SIZE, chunked=what == "chunked")
        assert seen["size"] == SIZE
    elif what == "file":
        path = tmp_path / "file"
        with path.open("wb") as file:
            file.truncate(SIZE)
        assert SIZE < download(server, f"/file?{path}") < SIZE + 1000
    else:
        assert download(server, f"/{what}?{SIZE // len(BLOCK)}") > SIZE
    took = time.monotonic() - began
    growth = ask(server, "/")["peak"] - before
    print(f"{what}: {SIZE / MIB:.0f} MiB in {took:.1f} s; peak of RSS + {growth / MIB:.1f} MiB")
    assert growth < 20 * MIB
