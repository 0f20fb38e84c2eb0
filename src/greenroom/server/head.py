"""From the bytes of a request's head to the environ.

The parser (httptools, that is llhttp) gets exactly one whole head, up to and with
its empty line, and a new one is made for each (0.3 µs): it never sees a body. So
the framing is decided here alone, and neither an Upgrade nor a CONNECT nor a body
can make it take body bytes for a request.

`parse` fills in a `Request` or raises `PeerError` with the status of the answer,
after which the connection is to be closed. What llhttp accepts and is refused
here: a request line other than ``method SP target SP HTTP/1.x``, a missing, empty
or second Host, targets of a form that doesn't fit the method, CONNECT, transfer
codings other than chunked, chunked in HTTP/1.0, Content-Length beside
Transfer-Encoding, a second Content-Type, sizes and counts past the limits. Also:

- A fragment. It is no part of a target (RFC 9112, 3.2), and some proxies compare
  paths with it, some without (HAProxy's CVE-2023-45539).
- ``%00`` in a path: no application expects it, databases raise an error at it, and
  nginx and Apache refuse it.

How fields become keys of the environ:

- Repeated fields are joined with "," as gunicorn does (RFC 9110, 5.3 allows it);
  Cookie with "; ", since cookie-pairs are not separated by commas (RFC 6265, 4.2.1).
- Transfer-Encoding never enters it. The body that the application reads is
  decoded, and `CONTENT_LENGTH` is its true length.
- A name with "_" is dropped, refused or kept as gunicorn's `header_map` says,
  for it would share its key with the name that has "-".
- The authority of an absolute-form target replaces Host (RFC 9112, 3.2.2).
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote_to_bytes

import httptools

from ..errors import PeerError
from .config import Config

Environ = dict[str, Any]

# Names as they were sent -> (upper-case name, key, whether it needs a closer look).
_names: dict[bytes, tuple[str, str, bool]] = {}
_MAX_NAMES = 1024

_SPECIAL = frozenset(
    {
        "CONNECTION",
        "CONTENT-LENGTH",
        "CONTENT-TYPE",
        "COOKIE",
        "EXPECT",
        "HOST",
        "TRANSFER-ENCODING",
    }
)
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-zA-Z]+")
_VERSION = re.compile(rb" HTTP/(\d)\.(\d)$")
_ABSOLUTE = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)
# uri-host [ ":" port ] (RFC 9110, 7.2) without the comma, which joins repeated fields;
# an empty one is invalid for http (RFC 9110, 4.2.1).
_HOST = re.compile(
    r"(?:[A-Za-z0-9\-._~!$&'()*+;=]|%[0-9A-Fa-f]{2})+(?::[0-9]*)?"
    r"|\[[0-9A-Fa-f:.]+(?:%25[A-Za-z0-9\-._~]+)?\](?::[0-9]*)?"
)


class Request:
    """One request's head. gunicorn's hooks and its access log get this object."""

    __slots__ = (
        "body",
        "chunked",
        "expects_continue",
        "fields",
        "fragment",
        "headers",
        "keep_alive",
        "length",
        "method",
        "path",
        "query",
        "remote_addr",
        "scheme",
        "target",
        "trailers",
        "uri",
        "version",
    )

    def __init__(self) -> None:
        self.target = b""
        self.fields: list[tuple[bytes, bytes]] = []
        self.headers: list[tuple[str, str]] = []
        self.trailers: list[tuple[str, str]] = []
        self.method = self.uri = self.path = self.query = self.fragment = ""
        self.scheme = "http"
        self.version = (1, 1)
        self.remote_addr: Any = None
        self.body: Any = None
        self.keep_alive = False
        self.chunked = False
        self.expects_continue = False
        self.length: int | None = None

    # Called by httptools.

    def on_url(self, url: bytes) -> None:
        self.target = url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))

    def should_close(self) -> bool:
        """Whether the client wants no further request served (gunicorn's name)."""
        return not self.keep_alive


def parse(request: Request, head: bytes, config: Config, base: Environ, trusted: bool) -> Environ:
    """Parse one whole head into `request`, which is new, and return its environ.

    `base` is the environ of its connection, not changed. What is returned still lacks
    `wsgi.input`, and `CONTENT_LENGTH` if the body is chunked. When `PeerError` is
    raised, the request has what was understood, for the log.
    """
    line = head[: head.index(b"\r\n")]
    if len(line) > config.limit_request_line > 0:
        raise PeerError(414, "request line too long")
    limit = config.limit_request_field_size
    if len(head) > limit and any(len(each) + 2 > limit for each in head.split(b"\r\n")[1:]):
        raise PeerError(431, "header field too large")
    parser = httptools.HttpRequestParser(request)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # A body is read all the same: nothing here is ever upgraded.
    except httptools.HttpParserError as exc:
        raise _refusal(line, exc) from None
    method = parser.get_method()
    minor = line[-1:]
    if minor not in b"01" or line != b"%b %b HTTP/1.%b" % (method, request.target, minor):
        raise _refusal(line, None)
    request.method = method.decode("ascii")
    request.uri = request.target.decode("ascii")
    environ = base.copy()
    environ["REQUEST_METHOD"] = request.method
    if minor == b"0":
        request.version = (1, 0)
        environ["SERVER_PROTOCOL"] = "HTTP/1.0"
    request.scheme = environ["wsgi.url_scheme"]
    script_name = _fields(request, environ, config, trusted)
    _target(request, environ)
    if not environ["SERVER_NAME"]:
        _name_server(request, environ)
    if trusted and script_name is not None and "SCRIPT_NAME" in config.forwarder_headers:
        _script_name(request, environ, script_name)
    elif config.script_name:
        _script_name(request, environ, config.script_name)
    return environ


def _refusal(line: bytes, exc: Exception | None) -> PeerError:
    version = _VERSION.search(line)
    if version and version.group(1, 2) not in ((b"1", b"0"), (b"1", b"1")):
        return PeerError(505, "HTTP version not supported")
    if isinstance(exc, httptools.HttpParserInvalidMethodError):
        method = line.partition(b" ")[0]
        if _TOKEN.fullmatch(method):
            return PeerError(501, "method not implemented")
    if exc is None:
        return PeerError(400, "malformed request line")
    return PeerError(400, f"malformed head: {exc}")


def _fields(request: Request, environ: Environ, config: Config, trusted: bool) -> str | None:
    """Enter the fields into the environ; return the value of SCRIPT_NAME."""
    fields = request.fields
    if len(fields) > config.limit_request_fields:
        raise PeerError(431, "too many header fields")
    limit = config.limit_request_field_size
    headers = request.headers
    names = _names
    schemes = config.secure_scheme_headers if trusted else None
    scheme: str | None = None
    seen: dict[str, str] = {}
    for raw_name, raw_value in fields:
        if len(raw_name) + len(raw_value) + 4 > limit:
            raise PeerError(431, "header field too large")
        known = names.get(raw_name)
        name, key, special = known if known is not None else _learn(raw_name)
        value = raw_value.decode("latin-1").strip(" \t")
        if special:
            if "_" in name:
                if not _underscore(name, config, trusted):
                    continue
                # Told from "Script-Name", which a proxy passes on from its clients.
                if name == "SCRIPT_NAME" and name not in seen:
                    seen[name] = value
            elif name == "COOKIE":
                if key in environ:
                    headers.append((name, value))
                    environ[key] += "; " + value
                    continue
            elif name in seen and name != "CONNECTION":
                raise PeerError(400, f"more than one {name.title()} field")
            else:
                seen[name] = f"{seen[name]},{value}" if name in seen else value
                if name == "TRANSFER-ENCODING":
                    headers.append((name, value))
                    continue
        if schemes is not None and name in schemes:
            told = "https" if value == schemes[name] else "http"
            if scheme is not None and scheme != told:
                raise PeerError(400, "contradicting scheme headers")
            scheme = told
        headers.append((name, value))
        if key in environ:
            environ[key] = f"{environ[key]},{value}"
        else:
            environ[key] = value
    if scheme is not None:
        environ["wsgi.url_scheme"] = request.scheme = scheme
    _framing(request, seen)
    host = seen.get("HOST")
    if host is None:
        if request.version == (1, 1):
            raise PeerError(400, "no Host field")
    elif _HOST.fullmatch(host) is None:
        raise PeerError(400, "invalid Host field")
    return seen.get("SCRIPT_NAME")


def _learn(raw: bytes) -> tuple[str, str, bool]:
    name = raw.decode("ascii").upper()
    key = name.replace("-", "_")
    if name not in ("CONTENT-TYPE", "CONTENT-LENGTH"):
        key = "HTTP_" + key
    known = name, key, name in _SPECIAL or "_" in name
    if len(_names) < _MAX_NAMES:
        _names[raw] = known
    return known


def _underscore(name: str, config: Config, trusted: bool) -> bool:
    """Whether a field with "_" in its name enters the environ."""
    if trusted and (name in config.forwarder_headers or "*" in config.forwarder_headers):
        return True
    if config.header_map == "drop":
        return False
    if config.header_map == "dangerous":
        return True
    raise PeerError(400, "underscore in the name of a header field")


def _framing(request: Request, seen: dict[str, str]) -> None:
    """Length or chunks, keep-alive, Expect (RFC 9112, 6.3 and 9.3; RFC 9110, 10.1.1)."""
    coding = seen.get("TRANSFER-ENCODING")
    length = seen.get("CONTENT-LENGTH")
    if coding is not None:
        codings = [each.strip(" \t").lower() for each in coding.split(",")]
        if length is not None:
            raise PeerError(400, "Content-Length beside Transfer-Encoding")
        if request.version == (1, 0):
            raise PeerError(400, "Transfer-Encoding in HTTP/1.0")
        if codings[-1] != "chunked" or "chunked" in codings[:-1]:
            raise PeerError(400, "a body without a length")
        if len(codings) > 1:
            raise PeerError(501, "transfer coding not implemented")
        request.chunked = True
    elif length is not None:
        # As many digits as 64 bits have: int() refuses some thousands with an error.
        digits = length.lstrip("0") or "0"
        if not (length.isascii() and length.isdigit()) or len(digits) > 19:
            raise PeerError(400, "invalid Content-Length")
        request.length = int(digits)
    connection = seen.get("CONNECTION")
    if connection is None:
        request.keep_alive = request.version == (1, 1)
    else:
        options = {option.strip(" \t").lower() for option in connection.split(",")}
        request.keep_alive = "close" not in options and (
            request.version == (1, 1) or "keep-alive" in options
        )
    expect = seen.get("EXPECT")
    if expect is not None:
        if expect.lower() != "100-continue":
            raise PeerError(417, "unknown expectation")
        request.expects_continue = request.version == (1, 1)


def _target(request: Request, environ: Environ) -> None:
    """The four forms of a target: RFC 9112, 3.2."""
    uri = request.uri
    environ["RAW_URI"] = uri
    rest = uri
    if "#" in uri:
        raise PeerError(400, "a fragment in the target")
    if request.method == "CONNECT":
        raise PeerError(501, "CONNECT is not implemented")
    if uri[:1] != "/":
        absolute = _ABSOLUTE.match(uri)
        if uri == "*":
            if request.method != "OPTIONS":
                raise PeerError(400, "the target * is for OPTIONS only")
        elif absolute:
            authority = absolute.group(1)
            if _HOST.fullmatch(authority) is None:
                raise PeerError(400, "invalid authority in the target")
            environ["HTTP_HOST"] = authority
            rest = uri[absolute.end() :]
            if rest[:1] != "/":
                rest = "/" + rest
        else:
            raise PeerError(400, "invalid target")
    path, _, query = rest.partition("?")
    request.path = path
    if "%00" in path:
        raise PeerError(400, "a NUL in the path")
    request.query = environ["QUERY_STRING"] = query
    environ["PATH_INFO"] = _unquote(path)


def _unquote(path: str) -> str:
    return unquote_to_bytes(path).decode("latin-1") if "%" in path else path


def _name_server(request: Request, environ: Environ) -> None:
    """On a Unix socket the server has no name but the one it was asked by."""
    name, port = environ.get("HTTP_HOST", ""), ""
    if not name.endswith("]"):
        head, colon, tail = name.rpartition(":")
        if colon:
            name, port = head, tail
    environ["SERVER_NAME"] = name or "localhost"
    environ["SERVER_PORT"] = port or ("443" if request.scheme == "https" else "80")


def _script_name(request: Request, environ: Environ, prefix: str) -> None:
    path = request.path
    if not path.startswith(prefix):
        raise PeerError(500, "the path doesn't start with SCRIPT_NAME")
    environ["SCRIPT_NAME"] = prefix
    environ["PATH_INFO"] = _unquote(path[len(prefix) :])
