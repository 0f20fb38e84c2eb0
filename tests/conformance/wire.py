"""gunicorn's own requests, valid and invalid, sent to a running worker.

The source distribution of the installed gunicorn has some 140 files with the bytes of
requests, and beside each what gunicorn's parser makes of it. Each is sent over loopback
whole, byte by byte and in random pieces, to a server with the settings that it asks for,
and what an application sees there is compared.

What rightly comes out differently is in `wire_differences.txt`. Two things are not there,
since they concern many cases and are tested for each:

- A request of HTTP/1.1 without Host is refused (RFC 9112, 3.2); it is sent with one too,
  and then comes out as expected.
- An invalid request that lacks Host besides is sent with one too: refused for its own fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import re
import runpy
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gunicorn
from gunicorn.config import Config
from gunicorn.util import split_request_uri

from conformance.suites import HERE, process, unpacked

DIFFERENCES = HERE / "wire_differences.txt"

# What is answered to what gunicorn's parser raises. No answer: the request isn't complete
# when its client stops sending (RFC 9112, 8).
STATUSES: dict[str, set[int]] = {
    "ChunkMissingTerminator": set(),
    "InvalidChunkExtension": {400},
    "InvalidChunkSize": {400},
    "InvalidHTTPVersion": {400, 505},
    "InvalidHeader": {400},
    "InvalidHeaderName": {400},
    "InvalidProxyLine": {400},
    "InvalidRequestLine": {400},
    "InvalidRequestMethod": {400, 501},
    "InvalidSchemeHeaders": {400},
    "LimitRequestHeaders": {431},
    "LimitRequestLine": {414},
    "NoMoreData": set(),
    "ObsoleteFolding": {400},
}

# Connections at a time.
CONNECTIONS = 200
TIMEOUT = 60.0
HOST = b"Host: added.example\r\n"


@dataclass(frozen=True)
class Difference:
    outcome: str
    reason: str


def differences(suite: str) -> dict[str, Difference]:
    """The lines of `wire_differences.txt` for a suite, by case."""
    found = {}
    for line in DIFFERENCES.read_text().splitlines():
        if line and not line.startswith("#"):
            name, outcome, reason = (part.strip() for part in line.split("|", 2))
            of, _, case = name.partition(" ")
            if of == suite:
                assert case not in found, f"{name} is listed twice"
                found[case] = Difference(outcome, reason)
    return found


@dataclass
class Case:
    """The requests that are seen, then a refusal with one of `statuses`, if there are any."""

    name: str
    data: bytes
    settings: dict[str, Any]
    expected: list[dict[str, Any]]
    statuses: set[int] = field(default_factory=set)

    @property
    def wanted(self) -> int:
        """How many answers there are to be."""
        return len(self.expected) + bool(self.statuses)

    def without_host(self) -> Case:
        """What comes of the bytes as they are: the first request that lacks a Host is refused."""
        for number, each in enumerate(self.expected):
            if _lacks_host(each):
                return replace(self, expected=self.expected[:number], statuses={400})
        return self

    def with_host(self) -> bytes:
        """The bytes with a Host in each request of HTTP/1.1 that has none."""
        if not self.expected:
            line, end, rest = self.data.partition(b"\r\n")
            if not line.endswith(b" HTTP/1.1") or re.search(rb"(?i)(^|\n)host:", rest):
                return self.data
            return line + end + HOST + rest
        data, at = self.data, 0
        for each in self.expected:
            if _lacks_host(each):
                line = f"{each['method']} {each['uri']['raw']} HTTP/1.1\r\n".encode("latin-1")
                at = data.lower().index(line.lower(), at) + len(line)
                data = data[:at] + HOST + data[at:]
        return data

    def seen(self, *, host: bool) -> list[dict[str, str]]:
        """What the application is to see of each request."""
        return [_environ(each, host) for each in self.expected]


def _lacks_host(request: dict[str, Any]) -> bool:
    return request["version"] == (1, 1) and not any(n == "HOST" for n, _ in request["headers"])


def cases(kind: str) -> list[Case]:
    """Those of "valid" or "invalid"."""
    folder = unpacked("gunicorn", gunicorn.__version__) / "tests" / "requests" / kind
    found = [_case(kind, path) for path in sorted(folder.glob("*.http"))]
    assert len(found) > 40, f"{folder} has no requests"
    return found


def _case(kind: str, path: Path) -> Case:
    names = runpy.run_path(str(path.with_suffix(".py")), {"uri": _uri, "cfg": Config()})
    config, stock = names["cfg"].settings, Config().settings
    settings = {
        name: ",".join(value) if isinstance(value := each.get(), list) else value
        for name, each in config.items()
        if each.get() != stock[name].get()
    }
    request = names["request"]
    name, data = f"{kind}/{path.stem}", _bytes(path.read_bytes())
    if kind == "valid":
        expected = request if isinstance(request, list) else [request]
        return Case(name, data, settings, expected)
    return Case(name, data, settings, [], STATUSES[request.__name__])


def _bytes(text: bytes) -> bytes:
    """Lines end where they say so: their own ends mean nothing."""
    known = {b"r": b"\r", b"n": b"\n", b"t": b"\t", b"0": b"\0"}

    def escaped(match: re.Match[bytes]) -> bytes:
        what = match[1]
        return bytes.fromhex(what[1:].decode()) if what[:1] == b"x" else known[what]

    return re.sub(rb"\\([rnt0]|x[0-9a-fA-F]{2})", escaped, text.replace(b"\n", b""))


def _uri(raw: str) -> dict[str, str]:
    parts = split_request_uri(raw)
    return {"raw": raw, "path": parts.path or "", "query": parts.query or "", "at": parts.netloc}


def _environ(request: dict[str, Any], host: bool) -> dict[str, str]:
    """As gunicorn's own workers make it, but for what head.py says otherwise."""
    uri, body = request["uri"], request["body"] or b""
    environ = {
        "REQUEST_METHOD": request["method"],
        "RAW_URI": uri["raw"],
        "PATH_INFO": _unquoted(uri["path"]),
        "QUERY_STRING": uri["query"],
        "SERVER_PROTOCOL": "HTTP/{}.{}".format(*request["version"]),
        "body": body.decode("latin-1"),
    }
    chunked = False
    for name, value in request["headers"]:
        if name == "TRANSFER-ENCODING":
            chunked = True
            continue
        key = name.replace("-", "_")
        key = (
            key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") and "_" not in name else "HTTP_" + key
        )
        separator = "; " if name == "COOKIE" else ","
        environ[key] = environ[key] + separator + value if key in environ else value
    if host and request["version"] == (1, 1):
        environ.setdefault("HTTP_HOST", "added.example")
    if chunked:
        environ["CONTENT_LENGTH"] = str(len(body))
    if uri["at"] and uri["raw"][:1] != "/":
        environ["HTTP_HOST"] = uri["at"]
    return environ


def _unquoted(path: str) -> str:
    return re.sub(r"%([0-9A-Fa-f]{2})", lambda match: chr(int(match[1], 16)), path)


def splits(data: bytes, seed: str) -> dict[str, list[bytes]]:
    """The ways to send it."""
    ways = {"whole": [data], "byte by byte": [data[i : i + 1] for i in range(len(data))]}
    for number in range(3):
        rng = random.Random(f"{seed} {number}")
        cuts = sorted(rng.sample(range(len(data)), min(len(data), rng.randint(1, 12))))
        edges = [0, *cuts, len(data)]
        ways[f"pieces {number}"] = [data[a:b] for a, b in itertools.pairwise(edges) if a < b]
    return ways


# waitress's tests.

WAITRESS = "3.0.2"


def waitress(sockets: Iterable[str], folder: Path, processes: int) -> dict[str, Any]:
    """What came of waitress's functional tests, in so many processes, and the details."""
    sources = unpacked("waitress", WAITRESS)

    def run(part: int) -> dict[str, Any]:
        own = folder / str(part)
        own.mkdir()
        command = [str(HERE / "wire_waitress.py"), "--sources", str(sources)]
        command += ["--sockets", *sockets, "--part", str(part), "--parts", str(processes)]
        return process(command, {}, own, 240)

    with ThreadPoolExecutor(processes) as pool:
        parts = list(pool.map(run, range(processes)))
    return {
        key: {name: value for part in parts for name, value in part[key].items()}
        for key in ("outcomes", "details")
    }


# The client.


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Exchanged:
    """What came back on one connection, and how it ended: "", "with a reset", "not at all"."""

    answers: list[Answer]
    rest: bytes
    end: str


def parse(raw: bytes) -> tuple[list[Answer], bytes]:
    """The complete answers at the start of `raw`, and what follows them."""
    answers = []
    while True:
        head, end, rest = raw.partition(b"\r\n\r\n")
        if not end:
            return answers, raw
        lines = head.decode("latin-1").split("\r\n")
        status = re.fullmatch(r"HTTP/1\.1 (\d{3}) [^\r\n]*", lines[0])
        assert status, lines[0]
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(": ")
            assert colon, line
            assert name.lower() not in headers, f"{name} twice in {head!r}"
            headers[name.lower()] = value
        length = int(headers.get("content-length", 0))
        assert "transfer-encoding" not in headers
        if len(rest) < length:
            return answers, raw
        answers.append(Answer(int(status[1]), headers, rest[:length]))
        raw = rest[length:]


async def exchange(
    address: tuple[str, int] | str, pieces: Iterable[bytes], wanted: int
) -> Exchanged:
    """Send the pieces, one system call each; stop sending when `wanted` answers have come.

    Then read to the end of the connection.
    """
    loop = asyncio.get_running_loop()
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as sock:
        sock.setblocking(False)
        if family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw, end, closed = bytearray(), "", False

        async def read(until: int | None) -> None:
            nonlocal end, closed
            while not closed and (until is None or len(parse(bytes(raw))[0]) < until):
                try:
                    data = await loop.sock_recv(sock, 1 << 16)
                except ConnectionError:
                    end, closed = "with a reset", True
                    return
                raw.extend(data)
                closed = not data

        try:
            async with asyncio.timeout(TIMEOUT):
                await loop.sock_connect(sock, address)
                # What is refused is closed while we still send.
                with contextlib.suppress(ConnectionError):
                    for piece in pieces:
                        await loop.sock_sendall(sock, piece)
                        await asyncio.sleep(0)
                await read(wanted)
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_WR)
                await read(None)
        except TimeoutError:
            end = "not at all"
    answers, rest = parse(bytes(raw))
    return Exchanged(answers, rest, end)


def problem(case: Case, got: Exchanged, *, host: bool) -> tuple[str, str]:
    """What came out, in a word, and what is wrong with it ("": nothing)."""
    statuses = [answer.status for answer in got.answers]
    outcome = " ".join(map(str, statuses)) or "closed"
    if got.rest:
        return outcome, f"half an answer: {got.rest!r}"
    seen = [json.loads(answer.body) for answer in got.answers if "x-echo" in answer.headers]
    refused = got.answers[len(seen) :]
    if any("x-echo" in answer.headers for answer in refused):
        return outcome, "answered after a refusal"
    if any(
        answer.headers.get("connection") != "close" and answer.status != 500 for answer in refused
    ):
        return outcome, "refused, without Connection: close"
    # Bytes after the last request that a client announced meet a closed connection.
    over = bool(seen) and not refused and got.answers[-1].headers.get("connection") == "close"
    if got.end and not (over and got.end == "with a reset"):
        return outcome, f"ended {got.end}"
    wanted = case.seen(host=host)
    if len(seen) != len(wanted):
        return outcome, f"wanted: {len(wanted)} calls of the application"
    if [answer.status in case.statuses for answer in refused] != [True] * bool(case.statuses):
        return outcome, f"wanted: {sorted(case.statuses) or 'no refusal'}"
    for ours, theirs in zip(seen, wanted, strict=True):
        keys = {*theirs, *(key for key in ours if key.startswith(("HTTP_", "CONTENT_")))}
        different = {
            key: (ours.get(key), theirs.get(key))
            for key in sorted(keys)
            if ours.get(key) != theirs.get(key)
        }
        if different:
            return outcome, f"differs (ours, expected): {different}"
    return outcome, ""
