"""The same site has the same answers from every face, and from Django's own handler.

A few hundred requests are sent to each of four servers: the worker, gunicorn's gthread
worker, uvicorn with our ASGI application, uvicorn with Django's own. Statuses, header
fields and bodies are compared; what rightly differs is listed below, with the reason.
"""

from __future__ import annotations

import gzip
import http.client
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import servers
from serving import Server

HERE = Path(__file__).resolve().parent

# The first is what the others are compared with.
FACES = {
    "worker": ("worker", "wsgi", {}),
    "gthread": ("gthread", "wsgi", {}),
    "asgi": ("uvicorn", "asgi", {}),
    "django": ("uvicorn", "stock_asgi", {"SITE_STOCK": "1"}),
}

# Of the server, not of the site.
_OF_SERVERS = {"date", "server", "connection", "keep-alive", "transfer-encoding", "via"}
# What is made anew for each answer.
_TOKENS = re.compile(r"(csrftoken|sessionid|messages)=[^;]*|expires=[^;]*", re.IGNORECASE)


@dataclass
class Case:
    """One request, and how it is written."""

    path: str
    method: str = "GET"
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes | None = None
    host: str | None = "site.example"
    chunked: bool = False

    @property
    def name(self) -> str:
        said = " ".join(f"{name}={value[:40]}" for name, value in self.headers)
        chunked = "chunked " if self.chunked else ""
        return f"{self.method} {self.path[:100]} host={self.host} {chunked}{said}".strip()

    def encode(self) -> bytes:
        lines = [f"{self.method} {self.path} HTTP/1.1"]
        if self.host is not None:
            lines.append(f"Host: {self.host}")
        lines += [f"{name}: {value}" for name, value in self.headers]
        body = self.body
        if body is not None and self.chunked:
            lines.append("Transfer-Encoding: chunked")
            half = len(body) // 2
            pieces = [piece for piece in (body[:half], body[half:]) if piece]
            body = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"
        elif body is not None:
            lines.append(f"Content-Length: {len(body)}")
        lines += ["Connection: close", "", ""]
        return "\r\n".join(lines).encode("latin-1") + (body or b"")


@dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes
    # Whether it has no body by its kind.
    bare: bool

    @classmethod
    def of(cls, address: Any, case: Case) -> Answer:
        with socket.create_connection(address, 20) as sock:
            sock.sendall(case.encode())
            response = http.client.HTTPResponse(sock, method=case.method)
            try:
                response.begin()
                body = response.read()
            except (http.client.RemoteDisconnected, ConnectionResetError):
                return cls(0, [], b"", True)
            except http.client.IncompleteRead as exc:
                body = exc.partial + b" (incomplete)"
            bare = case.method == "HEAD" or response.status in (204, 304)
            return cls(response.status, response.getheaders(), body, bare)

    def compared(self) -> dict[str, Any]:
        """What must be the same."""
        fields = sorted(
            (name.lower(), _TOKENS.sub(r"\1", value))
            for name, value in self.headers
            if name.lower() not in _OF_SERVERS
        )
        body = self.body
        if ("content-encoding", "gzip") in fields:
            # With a length that random bytes change (a defence against BREACH).
            body = gzip.decompress(body) if body else body
            fields = [each for each in fields if each[0] != "content-length"]
        elif not self.bare and "content-length" not in dict(fields):
            # A server may say so or send chunks.
            fields = sorted([*fields, ("content-length", str(len(body)))])
        return {"status": self.status, "fields": fields, "body": body.decode("latin-1")}


def multipart(*parts: tuple[str, str | None, str, bytes]) -> tuple[list[tuple[str, str]], bytes]:
    body = b""
    for name, filename, kind, content in parts:
        said = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
        head = f"--xyz\r\nContent-Disposition: {said}\r\nContent-Type: {kind}\r\n\r\n"
        body += head.encode() + content + b"\r\n"
    return [("Content-Type", "multipart/form-data; boundary=xyz")], body + b"--xyz--\r\n"


FORM = [("Content-Type", "application/x-www-form-urlencoded")]
TEXT = [("Content-Type", "text/plain")]


def _cases_of(kind: str) -> Iterator[Case]:
    echo = f"/{kind}/echo/"
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"):
        yield Case(echo, method)
        yield Case(f"/{kind}/some-methods/", method)
    for query in (
        *("", "a=1&a=2&b=", "a=%C3%A9", "a=%E9", "a=%FF%FE", "q=a+b%20c", "a;b", "=&&=", "a=%zz"),
        *("a=1%00b", "x=" + "y" * 2000, "a[]=1&a[]=2", "next=/a/b?c=d", "a=b=c", "%61=b"),
    ):
        yield Case(f"{echo}?{query}")
    for rest in (
        *("caf%C3%A9/", "a%2Fb/", "a%20b/", "%E9/", "a+b/", "%41/", "a%3Fb/", "a%23b/", "(x)/"),
        *("..%2F/", "%25/", "a%0Ab/", "~/", "a;b=c/", "a:b@c/", "%F0%9F%98%80/"),
    ):
        yield Case(echo + rest)
    for rest in ("a//b", "//", "./a", "a/../b", "%2e%2e/a", "a%00b", "%FF/%FE"):
        yield Case(f"/{kind}/rest/{rest}")
    for path in (
        *(f"/{kind}/echo", f"/{kind}/echo?a=b", f"/{kind}", f"//{kind}/echo/", f"/{kind}/nowhere"),
        *(f"/{kind}/nowhere/", f"/{kind}/nowhere/%FF/", f"/{kind}/number/12/"),
        *(f"/{kind}/number/x/", f"/{kind}/number/%D9%A1/", f"/{kind}/ECHO/"),
    ):
        yield Case(path)
        yield Case(path, "HEAD")
    yield Case(f"/{kind}/echo", "POST", FORM, b"a=b")
    for cookie in (
        *("a=1", "a=1; b=2", "a=1;b=2;", "a", "=x", 'a="quoted; b"', "a=%C3%A9", "a=é", "a=1; a=2"),
        *("sessionid=forged", "csrftoken=" + "x" * 32, "messages=bad"),
    ):
        yield Case(echo, headers=[("Cookie", cookie)])
    yield Case(echo, headers=[("Cookie", "a=1"), ("Cookie", "b=2")])
    for fields in (
        [("X-Custom", "one"), ("X-Custom", "two")],
        [("x-CUSTOM", "  spaces  ")],
        [("X-Custom", "")],
        [("X-Custom", "é")],
        [("X_Under", "spoofed")],
        [("Accept-Language", "de")],
        [("Accept-Language", "xx;q=0.5,de;q=0.1")],
        [("X-Forwarded-Proto", "https")],
        [("X-Forwarded-Host", "evil.example")],
        [("X-Answer", "outer")],
        [("X-Answer", "view")],
        [("X-Raise", "outer")],
        [("Content-Type", "text/plain; charset=latin-1; a=b")],
        [("Content-Type", "nonsense")],
    ):
        yield Case(echo, headers=fields)
    for host in (
        *("127.0.0.1", "site.example:80", "SITE.EXAMPLE", "a.wild.example", "wild.example."),
        *("evil.example", "site.example:99999", "site_.example", "[::1]", "a b", "site.example/x"),
    ):
        yield Case(f"/{kind}/host/", host=host)
        yield Case(f"/{kind}/nowhere", host=host)
    # Bodies.
    for form in (b"", b"a=1&a=2", b"a=%C3%A9&b=%FF", b"a=+%2B", b"&&", b"x" * 50_000):
        yield Case(echo, "POST", FORM, form)
        yield Case(f"/{kind}/body/", "POST", TEXT, form)
        yield Case(f"/{kind}/lines/", "POST", TEXT, form)
    latin = [("Content-Type", "application/x-www-form-urlencoded; charset=latin-1")]
    yield Case(echo, "POST", latin, b"a=%E9")
    yield Case(echo, "POST", FORM, b"&".join(b"f%d=1" % index for index in range(30)))
    yield Case(f"/{kind}/body/", "POST", TEXT, b"x" * 200_000)
    yield Case(echo, "POST", FORM, b"a=" + b"x" * 200_000)
    yield Case(echo, "PUT", FORM, b"a=1")
    yield Case(f"/{kind}/body/", "PUT", [("Content-Type", "application/json")], b'{"a": 1}')
    for chunked in (False, True):
        yield Case(echo, "POST", FORM, b"a=1&b=2", chunked=chunked)
        yield Case(f"/{kind}/body/", "POST", TEXT, b"x" * 70_000, chunked=chunked)
        for parts in (
            [("a", None, "text/plain", b"text")],
            [("f", "a.txt", "text/plain", b"x" * 20), ("a", None, "text/plain", "é".encode())],
            [("f", "../é.bin", "application/octet-stream", bytes(range(256)) * 1000)],
            [(f"f{index}", "a.txt", "text/plain", b"x") for index in range(8)],
            [],
        ):
            fields, body = multipart(*parts)
            yield Case(echo, "POST", fields, body, chunked=chunked)
    fields, body = multipart(("f", "a.txt", "text/plain", b"x" * 20))
    yield Case(echo, "POST", [("Content-Type", "multipart/form-data")], body)
    yield Case(echo, "POST", [("Content-Type", "multipart/form-data; boundary=")], body)
    yield Case(echo, "POST", fields, body[:60])
    yield Case(f"/{kind}/token/", "POST", FORM, b"a=1")
    yield Case(f"/{kind}/token/", "POST", [*FORM, ("Origin", "http://evil.example")], b"a=1")
    token = "y" * 32
    right = [*FORM, ("Cookie", f"csrftoken={token}"), ("X-CSRFToken", token)]
    yield Case(f"/{kind}/token/", "POST", right, b"a=1")
    # Answers.
    for path in (
        *("headers/", "cookies/", "redirect/", "permanent/", "session/", "message/", "template/"),
        *("file/", "attachment/", "parts/", "no-parts/", "sized-parts/", "coroutine-parts/"),
        *("reason/", "not-modified/", "nothing/", "dated/", "long/"),
        *(f"status/{code}/" for code in (200, 201, 204, 205, 206, 304, 400, 404, 413, 500, 503)),
        *(f"fails/{name}/" for name in ("404", "403", "400", "suspicious", "error", "lookup")),
        "fails/unicode/",
    ):
        yield Case(f"/{kind}/{path}")
        yield Case(f"/{kind}/{path}", "HEAD")
    for fields in (
        [("Accept-Encoding", "gzip")],
        [("Accept-Encoding", "identity")],
        [("Range", "bytes=0-3")],
        [("If-None-Match", "*")],
        [("If-Modified-Since", "Tue, 02 Jan 2024 03:04:05 GMT")],
        [("If-Modified-Since", "Mon, 01 Jan 2024 03:04:05 GMT")],
        [("If-Unmodified-Since", "Mon, 01 Jan 2024 03:04:05 GMT")],
        [("If-Modified-Since", "nonsense")],
    ):
        for path in ("long/", "file/", "parts/", "coroutine-parts/", "dated/", "headers/"):
            yield Case(f"/{kind}/{path}", headers=fields)


CASES = [case for kind in ("plain", "coroutine") for case in _cases_of(kind)]


@dataclass(frozen=True)
class Difference:
    """What may differ: `field` of a request whose name matches, from faces, and why."""

    faces: tuple[str, ...]
    request: str
    what: tuple[str, ...]
    reason: str


BYTES = ("status", "fields", "body")
ASGI = ("asgi", "django")
OTHERS = ("gthread", "asgi", "django")
RIGHT = [
    Difference(ASGI, r"/\S*%(E9|FF)\S* host", BYTES, "uvicorn decodes the path, with U+FFFD"),
    Difference(ASGI, r"Cookie=a=1;b=2;$", BYTES, "Django's ASGIRequest cuts the last semicolon"),
    Difference(ASGI, r"Cookie=a=é", BYTES, "cookies that are no ASCII are Latin-1 over ASGI"),
    Difference(("gthread",), r"Cookie=.*Cookie=", BYTES, "gunicorn joins them with a comma"),
    Difference(ASGI, r"x-CUSTOM", BYTES, "uvicorn keeps white space after a value"),
    Difference(OTHERS, r"host=(a b|\S+/x)$", BYTES, "the worker refuses such a host itself"),
    Difference(OTHERS, r"/a%00b host", BYTES, "the worker refuses a NUL in a path itself"),
    Difference(("django",), r" chunked ", BYTES, "Django takes it for empty, without a length"),
    Difference(("django",), r"/status/204/", ("fields",), "a 204 must not state a length"),
]


@pytest.fixture(scope="module")
def faces() -> Iterator[dict[str, Server]]:
    for name, _, _ in FACES.values():
        servers.require(name)
    with ExitStack() as stack:
        yield {
            face: stack.enter_context(
                servers.start(name, "faces_site", cwd=HERE, module=module, env=env)
            )
            for face, (name, module, env) in FACES.items()
        }


@pytest.mark.once
def test_the_same_answers(faces: dict[str, Server]) -> None:
    wrong: list[str] = []
    used: set[Difference] = set()
    for case in CASES:
        answers = {face: Answer.of(server.address, case) for face, server in faces.items()}
        expected = answers["worker"].compared()
        for face, answer in answers.items():
            found = answer.compared()
            differs = {key for key in found if found[key] != expected[key]}
            for known in RIGHT:
                if face in known.faces and re.search(known.request, case.name):
                    if differs & set(known.what):
                        used.add(known)
                    differs -= set(known.what)
            wrong += [
                f"{case.name}\n  {face}: {key}\n    worker {_short(expected[key], found[key])}\n"
                f"    {face:6} {_short(found[key], expected[key])}"
                for key in sorted(differs)
            ]
    assert len(CASES) > 300
    assert not wrong, f"{len(wrong)} differences:\n" + "\n".join(wrong)
    assert [known.reason for known in RIGHT if known not in used] == []


def _short(value: Any, other: Any) -> str:
    if isinstance(value, list):
        return repr([each for each in value if each not in other])[:400]
    return repr(value)[:400]
