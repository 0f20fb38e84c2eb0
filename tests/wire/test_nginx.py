"""Behind a real nginx: both sides see the same requests.

Whatever a client sends, each request that nginx forwards is seen by the worker once, with
the same method, target and body, or is refused; and each answer goes to its request. What
one of the two takes for one request and the other for two is how requests are smuggled.

nginx's side is its log, the worker's a journal of the application, and both have the id
that nginx gives to a request. Several ways to forward are tried, among them nginx's default
(HTTP/1.0), bodies that are passed on as they come, and nginx at its least strict.
"""

from __future__ import annotations

import asyncio
import collections
import hashlib
import json
import os
import random
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serving import Server, serve

NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
MISSING = "nginx is missing. On Debian: apt-get install nginx"
SEED = os.environ.get("GREENROOM_SEED") or str(random.SystemRandom().randrange(1 << 32))
TIMEOUT = 20.0

pytestmark = [pytest.mark.timeout(120), pytest.mark.once]

CONFIG = """\
daemon off;
master_process off;
{user}
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 1024; }}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    log_format sides escape=json '{{"id":"$request_id","front":"$server_name",'
        '"line":"$request","method":"$request_method","target":"$request_uri",'
        '"status":"$status","upstream":"$upstream_status","length":"$request_length",'
        '"body":"$request_body","mark":"$http_x_mark"}}';
    access_log {folder}/access.log sides;
    client_body_buffer_size 4m;
    client_max_body_size 8m;
    client_body_timeout 5s;
    client_header_timeout 5s;
    lingering_close off;
    proxy_next_upstream off;
    proxy_read_timeout 15s;
    proxy_set_header X-Proxy-Id $request_id;
    proxy_set_header Host $http_host;
    upstream tcp {{ server {tcp}; keepalive 16; }}
    upstream unix {{ server unix:{unix}; keepalive 16; }}
{servers}
}}
"""
SERVER = """\
    server {{
        listen unix:{folder}/{name}.sock;
        server_name {name};
        add_header X-Proxy-Id $request_id always;
        {more}
    }}
"""
KEPT = 'proxy_http_version 1.1; proxy_set_header Connection "";'
# Fields set in a location take the place of all that were inherited.
FIELDS = "proxy_set_header X-Proxy-Id $request_id; proxy_set_header Host $http_host;"
FRONTS = {
    "buffered": f"location / {{ proxy_pass http://tcp; {FIELDS} {KEPT} }}",
    "streamed": (
        f"location / {{ proxy_pass http://tcp; proxy_request_buffering off; {FIELDS} {KEPT} }}"
    ),
    "unix": (
        f"location / {{ proxy_pass http://unix; proxy_request_buffering off; {FIELDS} {KEPT} }}"
    ),
    "oldest": "location / { proxy_pass http://tcp; }",
    # All that may be made laxer; connections are "upgraded", as for WebSockets.
    "lax": (
        "ignore_invalid_headers off; underscores_in_headers on; merge_slashes off; "
        f"location / {{ proxy_pass http://unix; {FIELDS} proxy_http_version 1.1; "
        'proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade"; }'
    ),
}


@dataclass
class Proxy:
    folder: Path
    process: subprocess.Popen[bytes]

    def address(self, front: str) -> str:
        return f"{self.folder}/{front}.sock"

    def log(self) -> list[dict[str, str]]:
        """The requests that were forwarded."""
        # What isn't UTF-8 is logged as it is.
        lines = (self.folder / "access.log").read_text(encoding="latin-1").split("\n")
        return [json.loads(line) for line in lines if line]


@pytest.fixture(scope="module")
def workers() -> Iterator[dict[str, Server]]:
    # nginx keeps connections to it: they must not end just as it sends.
    config = "keepalive = 75\naccesslog = None\n"
    here = Path(__file__).parent
    with (
        serve("proxied:app", cwd=here, extra_config=config) as tcp,
        serve("proxied:app", cwd=here, extra_config=config, unix=True) as unix,
    ):
        yield {"tcp": tcp, "unix": unix}


@pytest.fixture(scope="module")
def proxy(workers: dict[str, Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    if NGINX is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(MISSING)
    # A socket's path is short.
    folder = tmp_path_factory.mktemp("nginx")
    tcp = workers["tcp"].address
    config = folder / "nginx.conf"
    config.write_text(
        CONFIG.format(
            folder=folder,
            user="user root;" if os.geteuid() == 0 else "",
            tcp=f"{tcp[0]}:{tcp[1]}",
            unix=workers["unix"].address,
            servers="".join(
                SERVER.format(folder=folder, name=name, more=more) for name, more in FRONTS.items()
            ),
        )
    )
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            [NGINX, "-p", str(folder), "-c", str(config), "-e", f"{folder}/error.log"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + TIMEOUT
        while not all((folder / f"{name}.sock").exists() for name in FRONTS):
            said = (folder / "output").read_text() + (
                (folder / "error.log").read_text() if (folder / "error.log").exists() else ""
            )
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.02)
        yield Proxy(folder, process)
    finally:
        process.terminate()
        process.wait(TIMEOUT)


# What is sent.


@dataclass
class Stream:
    """What one client sends, and the bodies of those of its requests that are valid."""

    data: bytes
    bodies: dict[str, bytes]
    # Stops here and leaves, if that is given.
    leaves: int | None = None


CORPUS = {
    "plain": b"GET /a?b=c HTTP/1.1\r\nHost: h\r\n\r\n",
    "old": b"GET /old HTTP/1.0\r\n\r\n",
    "oldest": b"GET /oldest\r\n",
    "absolute": b"GET http://other.example/x?y=%20 HTTP/1.1\r\nHost: h\r\n\r\n",
    "absolute without a path": b"GET http://other.example HTTP/1.1\r\nHost: h\r\n\r\n",
    "absolute with a query only": b"GET http://other.example?q HTTP/1.1\r\nHost: h\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
    "authority": b"CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n",
    "dots": b"GET /a/../b//c/./d HTTP/1.1\r\nHost: h\r\n\r\n",
    "escapes": b"GET /%2e%2e/%2F%00%ff%0d%0a?%0d%0aX:y HTTP/1.1\r\nHost: h\r\n\r\n",
    "high bytes in the target": b"GET /\xc3\xa9 HTTP/1.1\r\nHost: h\r\n\r\n",
    "fragment": b"GET /a#b?c HTTP/1.1\r\nHost: h\r\n\r\n",
    "odd target": b'GET /"<>\\^`{|} HTTP/1.1\r\nHost: h\r\n\r\n',
    "space in the target": b"GET /a b HTTP/1.1\r\nHost: h\r\n\r\n",
    "tab in the target": b"GET /a\tb HTTP/1.1\r\nHost: h\r\n\r\n",
    "spaces in the line": b"GET  /a  HTTP/1.1 \r\nHost: h\r\n\r\n",
    "own method": b"FROB /a HTTP/1.1\r\nHost: h\r\n\r\n",
    "lower method": b"get /a HTTP/1.1\r\nHost: h\r\n\r\n",
    "version 1.2": b"GET /a HTTP/1.2\r\nHost: h\r\n\r\n",
    "version 2": b"GET /a HTTP/2.0\r\nHost: h\r\n\r\n",
    "no host": b"GET /a HTTP/1.1\r\n\r\n",
    "empty host": b"GET /a HTTP/1.1\r\nHost:\r\n\r\n",
    "two hosts": b"GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "bad host": b"GET /a HTTP/1.1\r\nHost: a b/c@d\r\n\r\n",
    "length and chunks": (
        b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
    ),
    "chunks and length": (
        b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 40\r\n\r\n"
        b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
    ),
    "two lengths": (
        b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: 37\r\n\r\n"
        b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
    ),
    **{
        f"length {length!r}": b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: %b\r\n\r\nhello"
        % length
        for length in (
            b"+5",
            b"-5",
            b"0x5",
            b"5,5",
            b"5 5",
            b"05",
            b" 5 ",
            b"5\x0b",
            b"",
            b"5" * 30,
        )
    },
    **{
        f"coding {coding!r}": (
            b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: %b\r\n\r\n"
            b"5\r\nhello\r\n0\r\n\r\n" % coding
        )
        for coding in (
            *(
                b"Chunked",
                b"chunked ",
                b"\tchunked",
                b"\x0bchunked",
                b"xchunked",
                b"chunked, chunked",
            ),
            *(
                b"identity",
                b"gzip, chunked",
                b"chunked, identity",
                b"chunked;q=1",
                b'"chunked"',
                b"",
            ),
        )
    },
    "two codings": (
        b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n"
        b"Transfer-Encoding: identity\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    ),
    "coding with a space before the colon": (
        b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n"
    ),
    "coding with an underscore": (
        b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\n"
        b"0\r\n\r\n"
    ),
    "length with an underscore": (
        b"POST /a HTTP/1.1\r\nHost: h\r\nContent_Length: 0\r\nContent-Length: 5\r\n\r\nhello"
    ),
    "id with an underscore": (
        b"GET /a HTTP/1.1\r\nHost: h\r\nX_Proxy_Id: forged\r\nX-Proxy-Id: forged\r\n\r\n"
    ),
    "chunked in 1.0": (
        b"POST /a HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    ),
    "folded": b"GET /a HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n",
    "folded coding": (
        b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"
    ),
    "bare LF": b"GET /a HTTP/1.1\nHost: h\n\n",
    "bare LF in a field": b"GET /a HTTP/1.1\r\nHost: h\r\nX: a\nY: b\r\n\r\n",
    "bare CR in a field": b"GET /a HTTP/1.1\r\nHost: h\r\nX: a\rY: b\r\n\r\n",
    "NUL in a field": b"GET /a HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n",
    "controls in a field": b"GET /a HTTP/1.1\r\nHost: h\r\nX: a\x07\x7fb\r\n\r\n",
    "high bytes in a field": b"GET /a HTTP/1.1\r\nHost: h\r\nX-Mark: \xe9\xff\r\n\r\n",
    "no colon": b"GET /a HTTP/1.1\r\nHost: h\r\nNonsense\r\n\r\n",
    "no name": b"GET /a HTTP/1.1\r\nHost: h\r\n: x\r\n\r\n",
    "odd name": b"GET /a HTTP/1.1\r\nHost: h\r\nX(y): z\r\nX y: z\r\n\r\n",
    "space first": b"GET /a HTTP/1.1\r\n Host: h\r\n\r\n",
    "line first": b"\r\n\r\nGET /a HTTP/1.1\r\nHost: h\r\n\r\n",
    "upgrade": (
        b"POST /a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Content-Length: 37\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
    ),
    "h2c": (
        b"GET /a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n"
    ),
    "preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "expect": (
        b"POST /a HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello"
    ),
    "expects more": b"POST /a HTTP/1.1\r\nHost: h\r\nExpect: x\r\nContent-Length: 5\r\n\r\nhello",
    "connection names a field": (
        b"POST /a HTTP/1.1\r\nHost: h\r\nConnection: Content-Length\r\nContent-Length: 5\r\n\r\n"
        b"hello"
    ),
    "connection names the id": b"GET /a HTTP/1.1\r\nHost: h\r\nConnection: X-Proxy-Id\r\n\r\n",
    "body of GET": b"GET /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
    "body of HEAD": b"HEAD /a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
    "extensions": (
        b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        b'5;a=b\r\nhello\r\n6 ; q="x;y"\r\n world\r\n0;z\r\nX-Mark: trailer\r\n\r\n'
    ),
    **{
        f"chunk {chunk!r}": b"POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n%b"
        % chunk
        for chunk in (
            *(b"5\nhello\n0\n\n", b"5\r\nhelloXX0\r\n\r\n", b"0x5\r\nhello\r\n0\r\n\r\n"),
            *(b"-5\r\nhello\r\n0\r\n\r\n", b" 5\r\nhello\r\n0\r\n\r\n"),
            *(b"5 \r\nhello\r\n0\r\n\r\n", b"\r\n5\r\nhello\r\n0\r\n\r\n"),
            *(b"5;\nhello\r\n0\r\n\r\n", b"5;\r\r\nhello\r\n0\r\n\r\n"),
            *(b"0000000000000005\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
            *(b"10000000000000005\r\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n0\r\n: x\r\n\r\n"),
            *(b"5\r\nhello\r\n0\r\nContent-Length: 9\r\nHost: x\r\n\r\n", b"5\r\nhello\r\n0\r\n"),
            b"5\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n",
        )
    },
    "many fields": b"GET /a HTTP/1.1\r\nHost: h\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    "long field": b"GET /a HTTP/1.1\r\nHost: h\r\nX: " + b"y" * 8180 + b"\r\n\r\n",
    "long target": b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: h\r\n\r\n",
}
PROBE = b"GET /probe HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


def valid(rng: random.Random, mark: str, size: int) -> tuple[bytes, bytes]:
    """A request that both sides must understand, and its body."""
    method = rng.choice(["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
    target = rng.choice(["/", "/a/b%20c", "/x?y=z&%41", "/%E4%B8%AD", "/long/" + "p" * 300])
    fields = [b"Host: h", f"X-Mark: {mark}".encode()]
    fields += rng.sample(
        [
            *(b"Cookie: a=b; c=d", b"X-Empty:", b"Accept:\t*/* ", b"Connection: keep-alive"),
            *(b"Upgrade: websocket", b"TE: trailers", b"x-lower: 1", b"X_Under: 1"),
            *(b"X-Forwarded-For: 1.2.3.4", b"Expect: 100-continue", b"Range: bytes=0-1"),
        ],
        rng.randint(0, 4),
    )
    body = rng.choice([b"", rng.randbytes(rng.randint(1, 200)), b"0\r\n\r\n" + PROBE])
    if size:
        body = rng.randbytes(size)
    if body and rng.random() < 0.5:
        fields.append(rng.choice([b"Transfer-Encoding: chunked", b"transfer-encoding: Chunked"]))
        sent, rest = b"", body
        while rest:
            step = rng.randint(1, max(1, len(body) // 3))
            sent += b"%x%b\r\n%b\r\n" % (
                len(rest[:step]),
                rng.choice([b"", b"", b";a=b"]),
                rest[:step],
            )
            rest = rest[step:]
        sent += b"0\r\n" + rng.choice([b"", b"X-Trailer: 1\r\n"]) + b"\r\n"
    else:
        sent = body
        if body or rng.random() < 0.5:
            fields.append(b"Content-Length: %d" % len(body))
    rng.shuffle(fields)
    head = f"{method} {target} HTTP/1.1\r\n".encode() + b"\r\n".join(fields)
    return head + b"\r\n\r\n" + sent, body


def changed(rng: random.Random, data: bytes) -> bytes:
    """`data` with a few places changed."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(result))
        new = rng.choice(
            [
                *(b"", b"\r\n", b"\n", b"\r", b" ", b"\t", b"\0", b":", b",", b";", b"0", b"\xff"),
                *(b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"\r\n\r\n", b"_"),
            ]
        )
        result[at : at + rng.randint(0, 2)] = new
    return bytes(result)


def streams(rng: random.Random, count: int) -> Iterator[Stream]:
    for name, data in CORPUS.items():
        yield Stream(data, {})
        # What follows is one more request, or nothing, but never part of the first's.
        yield Stream(data + PROBE, {})
        del name
    for number in range(count):
        data, bodies = b"", {}
        for index in range(rng.randint(1, 5)):
            mark = f"{number}-{index}"
            size = rng.randint(100_000, 1_500_000) if number % 25 == 0 and not index else 0
            request, bodies[mark] = valid(rng, mark, size)
            data += request
        if number % 4 == 1:
            yield Stream(changed(rng, data), {})
        elif number % 12 == 2:
            yield Stream(data, {}, rng.randrange(len(data)))
        else:
            yield Stream(data + PROBE, bodies)


async def send(address: str, stream: Stream, rng: random.Random) -> bytes:
    """All that is answered to a stream that is sent in pieces."""
    loop = asyncio.get_running_loop()
    data = stream.data if stream.leaves is None else stream.data[: stream.leaves]
    cuts = sorted(rng.sample(range(len(data)), min(len(data), rng.randint(0, 8))))
    raw = bytearray()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, address)

        async def write() -> None:
            for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True):
                await loop.sock_sendall(sock, data[a:b])
                await asyncio.sleep(rng.choice([0, 0, 0.002]))

        writing = asyncio.ensure_future(write())
        if stream.leaves is not None:
            await asyncio.wait([writing])
            # Retrieved: the other side may have been first.
            writing.exception()
            return b""
        try:
            async with asyncio.timeout(TIMEOUT):
                while True:
                    try:
                        # nginx waits for what is missing; nobody sends it.
                        piece = await asyncio.wait_for(loop.sock_recv(sock, 1 << 16), 0.6)
                    except TimeoutError:
                        if writing.done():
                            break
                        continue
                    except ConnectionError:
                        break
                    if not piece:
                        break
                    raw += piece
        finally:
            writing.cancel()
            await asyncio.wait([writing])
            if not writing.cancelled():
                writing.exception()
    return bytes(raw)


def journals(workers: dict[str, Server]) -> list[dict[str, Any]]:
    found = []
    for server in workers.values():
        with server.connect() as sock:
            sock.sendall(
                b"GET /journal HTTP/1.1\r\nHost: h\r\nX-Read: yes\r\nConnection: close\r\n\r\n"
            )
            raw = b""
            while piece := sock.recv(1 << 16):
                raw += piece
        found += json.loads(raw.partition(b"\r\n\r\n")[2])
    return found


def test_nginx_and_the_worker_see_the_same_requests(
    proxy: Proxy, workers: dict[str, Server]
) -> None:
    answers: list[tuple[str, Stream, bytes]] = []

    async def main() -> None:
        rng = random.Random(SEED)
        limit = asyncio.Semaphore(100)

        async def one(front: str, stream: Stream, seed: float) -> None:
            async with limit:
                raw = await send(proxy.address(front), stream, random.Random(seed))
            answers.append((front, stream, raw))

        await asyncio.gather(
            *(one(front, stream, rng.random()) for stream in streams(rng, 300) for front in FRONTS)
        )

    asyncio.run(main())
    # Those whose client left are logged a moment later.
    deadline = time.monotonic() + TIMEOUT
    while True:
        seen, log = journals(workers), proxy.log()
        by_id = {entry["id"]: entry for entry in log}
        if all(each["id"] in by_id for each in seen) or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    problems = [*compare(seen, by_id), *wrong_answers(answers, by_id)]
    forwarded = [entry for entry in log if entry["upstream"]]
    refused = [entry for entry in forwarded if entry["upstream"].startswith(("4", "5"))]
    print(
        f"\nseed {SEED}: {len(answers)} connections, {len(log)} requests, {len(forwarded)} "
        f"forwarded, {len(refused)} of them refused; the application saw {len(seen)}"
    )
    assert not problems, f"{len(problems)} with GREENROOM_SEED={SEED}:\n" + "\n".join(problems[:50])
    assert len(by_id) == len(log)
    assert len(seen) > 2000
    assert "Traceback" not in workers["tcp"].log() + workers["unix"].log()


def compare(seen: list[dict[str, Any]], by_id: dict[str, dict[str, str]]) -> Iterator[str]:
    counts = collections.Counter(each["id"] for each in seen)
    for each in seen:
        entry = by_id.get(each["id"])
        if entry is None:
            yield f"the application saw a request that nginx didn't forward: {each}"
            continue
        if counts[each["id"]] > 1:
            yield f"the application saw it {counts[each['id']]} times: {entry}"
        if (each["method"], each["target"]) != (entry["method"], target(entry["target"])):
            yield f"another target: nginx {entry}, the application {each}"
        if each["declared"] not in (None, str(each["length"])):
            yield f"another length: {each}"
        # nginx knows the body if it has all of it before it forwards.
        if entry["front"] in ("buffered", "oldest", "lax"):
            body = entry["body"].encode("latin-1")
            if hashlib.sha256(body).hexdigest() != each["sha256"]:
                yield f"another body: nginx {entry['body'][:200]!r}, the application {each}"
    for entry in by_id.values():
        # 499: the client has left. "-": so early that nothing was answered.
        if entry["id"] not in counts and re.match("[23]", entry["upstream"]):
            yield f"answered, but not by the application: {entry}"


def target(logged: str) -> str:
    """A target as nginx forwards it: with the path that an absolute one may lack."""
    return logged if logged.startswith(("/", "*")) else "/" + logged


def wrong_answers(
    answers: list[tuple[str, Stream, bytes]], by_id: dict[str, dict[str, str]]
) -> Iterator[str]:
    for front, stream, raw in answers:
        if stream.leaves is not None:
            continue
        text = raw.decode("latin-1")
        for head in re.findall(r"HTTP/1\.1 200 .*?\r\n\r\n", text, flags=re.DOTALL):
            ours = re.search(r"X-Seen-Id: (\S*)\r\n", head)
            theirs = re.search(r"X-Proxy-Id: (\S*)\r\n", head)
            if not (ours and theirs and ours[1] == theirs[1]):
                yield f"{front}: an answer to another request: {head!r}"
        # What is valid is answered, all of it and in order, with the body that was sent.
        bodies = re.findall(r'\{"id".*?\}', text)
        if stream.bodies:
            got = [json.loads(body) for body in bodies]
            wanted = [
                (mark, hashlib.sha256(body).hexdigest()) for mark, body in stream.bodies.items()
            ]
            found = [(each["mark"], each["sha256"]) for each in got]
            if found != [*wanted, (None, hashlib.sha256(b"").hexdigest())]:
                yield f"{front}: of {wanted} was answered {found}: {stream.data[:2000]!r}"
