"""One answer: `start_response`, its framing, and how a body gets to the socket.

The framing is decided here, not by the application: Content-Length if it is
declared or the body is complete, otherwise chunks for HTTP/1.1 and the end of the
connection for HTTP/1.0; no body at all for HEAD, 204 and 304. Hop-by-hop fields of
the application are dropped (PEP 3333 forbids them), except that ``Connection:
close`` is obeyed. A body longer than declared is cut, a shorter one ends the
connection without a well-formed end.

Status, names and values are checked when `start_response` is called: what could
end a line is an error of the application (500), never sent.

On `sendfile` (prototyped on asyncio and uvloop 0.23): uvloop has none, and refuses
`add_writer` for the descriptor of a transport. A `dup` of it is another descriptor
of the same socket, and so is accepted. The transport must have nothing buffered:
with a high-water mark of 0, `pause_writing` comes if it has, and `resume_writing`
when it hasn't any more. When the file is sent the transport can write again. A
socket that the transport has closed stays open in the dup until that is closed.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import stat
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..bridge import await_
from ..errors import ApplicationError

if TYPE_CHECKING:
    from .head import Request
    from .protocol import Connection

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]

# From here on, head and body are two buffers of one call instead of one copy.
_JOIN = 1 << 16
# Sent by one call of sendfile: it blocks the loop while the disk is read. With 1 MiB an
# ordinary request took 15 ms beside one download, with this 4.
_SENDFILE_BLOCK = 1 << 17
# Sent by a body that never suspends, to a client as fast as we are, until others get
# their turn. An item counts as this much besides its bytes.
_BURST = 1 << 18
# From here on, items that are offered go out several at a time, up to a burst: each call
# of the kernel wakes the client, which costs more than all else.
_GATHER = 1 << 14
_ITEM = 1 << 12
_FILE_BLOCK = 1 << 16

_STATUS = re.compile(r"([2-9][0-9]{2})(?: [\t\x20-\x7e\x80-\xff]*)?")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-zA-Z]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_LOOKED_AT = _HOP_BY_HOP | {"content-length"}
# Checked once: a status -> its code; the name of a field -> its lower-case form.
_statuses: dict[str, int] = {}
_checked: dict[str, str] = {}
_MAX_CHECKED = 1024


class PeerGone(ConnectionResetError):
    """The client is no longer there to be written to."""


class FileWrapper:
    """`wsgi.file_wrapper`: the rest of a file, from its current position.

    Sent by `sendfile` if it is a plain file on a plain socket, otherwise read in
    blocks. To be returned as it is; wrapped by a middleware it is iterated.
    """

    def __init__(self, filelike: Any, blksize: int = _FILE_BLOCK) -> None:
        self.filelike = filelike
        self.blksize = blksize
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        data: bytes = self.filelike.read(self.blksize)
        if not data:
            raise StopIteration
        return data

    def plain(self) -> tuple[int, int, int] | None:
        """Descriptor, position and what is left of a plain file; None if it isn't one.

        An object that has a `fileno` may still decode what it reads (gzip), so
        only Python's own unbuffered and buffered files are taken.
        """
        file = self.filelike
        for _ in range(3):
            if isinstance(file, (io.BufferedReader, io.BufferedRandom, io.FileIO)):
                break
            file = getattr(file, "file", None)
        else:
            return None
        raw = file if isinstance(file, io.FileIO) else file.raw
        if not isinstance(raw, io.FileIO):
            return None
        try:
            info = os.fstat(raw.fileno())
            position = file.tell()
        except (OSError, ValueError):
            return None
        if not stat.S_ISREG(info.st_mode):
            return None
        return raw.fileno(), position, max(0, info.st_size - position)


class Response:
    """One answer. gunicorn's hooks and its access log get this object.

    `status` and `headers` are as the application gave them, `sent` counts the
    bytes of the body, `response_length` is the declared length or None.
    """

    __slots__ = (
        "_burst",
        "_connection",
        "_held",
        "_names",
        "_omits_body",
        "_remaining",
        "chunked",
        "headers",
        "headers_sent",
        "keep_alive",
        "must_close",
        "over",
        "request",
        "response_length",
        "sent",
        "status",
        "status_code",
    )

    def __init__(self, connection: Connection, request: Request) -> None:
        self._connection = connection
        self.request = request
        self.status: str = ""
        self.status_code = 0
        self.headers: list[tuple[str, str]] = []
        self.headers_sent = False
        self.response_length: int | None = None
        self.chunked = False
        self.must_close = False
        self.keep_alive = False
        self.sent = 0
        # The connection may be another request's by now.
        self.over = False
        # Of the fields, in lower case.
        self._names: set[str] = set()
        self._remaining: int | None = None
        self._omits_body = False
        self._burst = 0
        # What goes out with what follows, or at the next turn of the loop.
        self._held: list[bytes] = []

    def start_response(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: ExcInfo | None = None,
    ) -> Callable[[bytes], None]:
        """PEP 3333's. Raises `ApplicationError` for what must not be sent."""
        if exc_info is not None:
            try:
                if self.headers_sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self.status:
            raise ApplicationError(
                "start_response() was called twice: the second call needs exc_info."
            )
        if not isinstance(status, str):
            raise ApplicationError(f"The status must be a str, not {type(status).__name__}.")
        code = _statuses.get(status) or _check_status(status)
        self._take(headers)
        self.status = status
        self.status_code = code
        return self.write

    def _take(self, headers: list[tuple[str, str]]) -> None:
        headers = list(headers)
        _check_values(headers)
        kept: list[tuple[str, str]] = []
        names: set[str] = set()
        length: int | None = None
        must_close = False
        for name, value in headers:
            lower = _checked.get(name) or _check_name(name)
            if lower in _LOOKED_AT:
                if lower in _HOP_BY_HOP:
                    if lower == "connection" and "close" in value.lower():
                        must_close = True
                    continue
                digits = value.strip(" \t")
                if not (digits.isascii() and digits.isdigit()) or (
                    length is not None and length != int(digits)
                ):
                    raise ApplicationError(f"Invalid Content-Length: {value!r}")
                if length is not None:
                    continue
                length = int(digits)
            names.add(lower)
            kept.append((name, value))
        self.headers = kept
        self._names = names
        self.response_length = length
        self.must_close = must_close

    def write(self, data: bytes) -> None:
        """PEP 3333's `write()`: for synchronous code on a thread or in a bridge."""
        if self.over:
            raise ApplicationError("write() was called after the end of its answer.")
        await_(self.send(data))

    def hint(self, data: bytes) -> None:
        """Send an informational answer ahead of this one, if that can still be done."""
        if not (self.over or self.headers_sent or self._connection.write_paused):
            self._connection.write(data)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._connection.server.loop

    # How a body is sent. All that follows belongs to the loop.

    def complete(self, data: bytes) -> None:
        """Send head and body: `data` is all of it (or all that is left)."""
        if self.headers_sent:
            self._emit(data)
        else:
            self._emit(data, length=len(data))
        self.flush()
        if self.chunked:
            self._connection.write(b"0\r\n\r\n")
            self.chunked = False
            self._remaining = 0

    async def send(self, data: bytes) -> bool:
        """Send an item of the body as it comes; wait while the client is slow.

        Returns whether more is wanted: False when the body is complete, or there
        is none to send.
        """
        if not isinstance(data, bytes):
            raise ApplicationError(f"A body's items must be bytes, not {type(data).__name__}.")
        if not data:
            return True
        wanted = self.post(data)
        self._burst += len(data) + _ITEM
        if self._burst > _BURST or self._connection.write_paused:
            await self.breathe()
        return wanted

    def offer(self, data: bytes) -> bool:
        """Send an item without waiting; returns whether the next one is wanted at once.

        It is gathered with others, for one turn of the loop at most. `breathe` is to follow
        if False was returned and more is to come.
        """
        if not isinstance(data, bytes):
            raise ApplicationError(f"A body's items must be bytes, not {type(data).__name__}.")
        if not data:
            return True
        self._burst += len(data) + _ITEM
        wanted = self.post(data, gather=True)
        return wanted and self._burst <= _BURST and not self._connection.write_paused

    @property
    def wanted(self) -> bool:
        """Whether more of the body is to be sent."""
        return self._remaining != 0 and not self._omits_body

    async def breathe(self) -> None:
        """Wait while the client is slow, or give others their turn."""
        self.flush()
        connection = self._connection
        if connection.write_paused:
            self._burst = 0
            await connection.drained()
            if connection.lost:
                raise PeerGone
        elif self._burst > _BURST:
            self._burst = 0
            await asyncio.sleep(0)

    def post(self, data: bytes, gather: bool = False) -> bool:
        """Send an item without waiting; returns as `send` does."""
        if self._connection.lost or self.over:
            raise PeerGone
        self._emit(data, gather=gather)
        return self._remaining != 0 and not self._omits_body

    def flush(self) -> None:
        """Write what was gathered."""
        if self._held:
            held, self._held = self._held, []
            self._connection.writelines(held)

    def satisfied_by(self, data: bytes) -> bool:
        """Whether `data` is exactly the body that was declared."""
        return not self.headers_sent and self.response_length == len(data)

    async def end(self) -> None:
        """The application is done: finish the framing; wait for a slow client."""
        connection = self._connection
        if not self.headers_sent:
            self.complete(b"")
        elif self.chunked:
            self._write(b"0\r\n\r\n")
            self.chunked = False
        self.flush()
        if self._remaining and not self._omits_body and not connection.lost:
            connection.server.log.warning(
                "%s %s: the body is %d bytes shorter than its Content-Length.",
                self.request.method,
                self.request.path,
                self._remaining,
            )
            self.abort()
        elif connection.write_paused:
            await connection.drained()

    def abort(self) -> None:
        """End the connection so that the client sees that the body is not complete."""
        self.keep_alive = False
        self.flush()
        # Closing is the proper end of a body without length or chunks.
        until_close = self.headers_sent and not self.chunked and self.response_length is None
        self._connection.cut(reset=until_close)

    async def send_file(self, wrapper: FileWrapper) -> bool:
        """Send a plain file by `sendfile(2)`. False if that can't be done here."""
        connection = self._connection
        plain = wrapper.plain() if connection.can_sendfile else None
        if plain is None or self.headers_sent or self.request.method == "HEAD":
            return False
        descriptor, position, size = plain
        count = size if self.response_length is None else min(size, self.response_length)
        self._emit(b"", length=size)
        if self._omits_body:
            return True
        sent = 0
        try:
            async for sent in _sendfile(connection, descriptor, position, count):  # noqa: B007
                pass
        finally:
            self.sent += sent
            if self._remaining is not None:
                self._remaining -= sent
        return True

    def _emit(self, data: bytes, length: int | None = None, gather: bool = False) -> None:
        head = b"" if self.headers_sent else self._head(length, bool(data))
        if self._omits_body:
            data = b""
        elif data:
            remaining = self._remaining
            if remaining is not None:
                if len(data) > remaining:
                    self._connection.server.log.warning(
                        "%s %s: the body is longer than its Content-Length; it was cut.",
                        self.request.method,
                        self.request.path,
                    )
                    data = data[:remaining]
                self._remaining = remaining - len(data)
            self.sent += len(data)
        if len(data) < _JOIN:
            if self.chunked and data:
                data = b"%b%x\r\n%b\r\n" % (head, len(data), data)
            elif head:
                data = head + data
            if data:
                self._write(data, gather)
            return
        if self.chunked:
            parts = [b"%b%x\r\n" % (head, len(data)), data, b"\r\n"]
        else:
            parts = [head, data] if head else [data]
        if gather or self._held:
            self._hold(parts)
        else:
            self._connection.writelines(parts)

    def _write(self, data: bytes, gather: bool = False) -> None:
        if self._held or (gather and len(data) >= _GATHER):
            self._hold([data])
        else:
            self._connection.write(data)

    def _hold(self, parts: list[bytes]) -> None:
        if not self._held:
            # When the application waits for something.
            self.loop.call_soon(self.flush)
        self._held += parts

    def _head(self, length: int | None, some: bool) -> bytes:
        """Decide the framing and return the head. `length`: of a complete body."""
        if not self.status:
            raise ApplicationError("The body began before start_response() was called.")
        request = self.request
        connection = self._connection
        headers = self.headers
        status = self.status_code
        bare = status in (204, 304)
        self._omits_body = bare or request.method == "HEAD"
        if status == 204 and self.response_length is not None:
            # RFC 9110, 8.6.
            headers = [each for each in headers if each[0].lower() != "content-length"]
            self.response_length = None
        lines = [f"HTTP/1.1 {self.status}\r\n"]
        if self.response_length is None and not bare:
            if length is not None and (some or not self._omits_body):
                # For HEAD, an empty body says nothing about the one of GET.
                self.response_length = length
                lines.append(f"Content-Length: {length}\r\n")
            elif not self._omits_body:
                if request.version == (1, 1):
                    self.chunked = True
                    lines.append("Transfer-Encoding: chunked\r\n")
                else:
                    self.must_close = True
        self._remaining = self.response_length
        self.keep_alive = request.keep_alive and not self.must_close and connection.wants_another()
        if not self.keep_alive:
            lines.append("Connection: close\r\n")
        elif request.version == (1, 0):
            lines.append("Connection: keep-alive\r\n")
        for name, line in connection.server.standard_fields.items():
            if name not in self._names:
                lines.append(line)
        lines += [f"{name}: {value}\r\n" for name, value in headers]
        lines.append("\r\n")
        self.headers_sent = True
        return "".join(lines).encode("latin-1")


class EarlyHints:
    """`wsgi.early_hints`, as gunicorn has it: send these fields ahead of the answer.

    To be called on a thread or on the loop; it never waits. Nothing is sent to
    HTTP/1.0, once the answer has begun, or to a client that is slow to read. What
    frames a message is left out. Raises `ApplicationError` for what must not be sent.
    """

    __slots__ = ("response",)

    def __init__(self, response: Response) -> None:
        # None when the answer has ended. Django's requests are part of reference cycles,
        # and have the environ: the answer must not wait with them for the collector.
        self.response: Response | None = response

    def __call__(self, headers: Iterable[tuple[str | bytes, str | bytes]]) -> None:
        lines = ["HTTP/1.1 103 Early Hints\r\n"]
        for each in headers:
            name, value = (
                part.decode("latin-1") if isinstance(part, bytes) else part for part in each
            )
            lower = _check_field(name, value)
            if lower not in _HOP_BY_HOP and lower != "content-length":
                lines.append(f"{name}: {value}\r\n")
        lines.append("\r\n")
        data = "".join(lines).encode("latin-1")
        response = self.response
        if response is None or response.request.version < (1, 1):
            return
        loop = response.loop
        if asyncio._get_running_loop() is loop:
            response.hint(data)
        else:
            loop.call_soon_threadsafe(response.hint, data)


def _check_status(status: str) -> int:
    match = _STATUS.fullmatch(status)
    if match is None:
        raise ApplicationError(f"Invalid status: {status!r}")
    code = int(match[1])
    if len(_statuses) < _MAX_CHECKED:
        _statuses[status] = code
    return code


def _check_values(headers: list[tuple[str, str]]) -> None:
    """Check all values at once; if one isn't good, say which."""
    try:
        good = _VALUE.fullmatch("".join([value for _, value in headers]))
    except TypeError:
        good = None
    if good is None:
        for name, value in headers:
            _check_field(name, value)


def _check_field(name: Any, value: Any) -> str:
    """Check a field that an application sends; return the lower-case form of its name."""
    lower = _checked.get(name) or _check_name(name)
    if not isinstance(value, str):
        raise ApplicationError(f"The value of {name} must be a str, not {type(value).__name__}.")
    # The value is not in the message: it may be a secret.
    if _VALUE.fullmatch(value) is None:
        raise ApplicationError(f"Invalid characters in the value of {name}.")
    return lower


def _check_name(name: Any) -> str:
    if not isinstance(name, str):
        raise ApplicationError(f"A header's name must be a str, not {type(name).__name__}.")
    if _NAME.fullmatch(name) is None:
        raise ApplicationError(f"Invalid name of a header: {name!r}")
    lower = name.lower()
    if len(_checked) < _MAX_CHECKED:
        _checked[name] = lower
    return lower


async def _sendfile(
    connection: Connection, descriptor: int, position: int, count: int
) -> AsyncIterator[int]:
    """Send part of a file beside the transport; yield how much was sent up to now."""
    await connection.emptied()
    if connection.lost:
        raise PeerGone
    loop = connection.server.loop
    sock = os.dup(connection.sock.fileno())
    writable = asyncio.Event()
    sent = 0
    try:
        while sent < count:
            try:
                block = os.sendfile(
                    sock, descriptor, position + sent, min(count - sent, _SENDFILE_BLOCK)
                )
            except BlockingIOError:
                writable.clear()
                loop.add_writer(sock, writable.set)
                try:
                    with connection.stalling(writable.set):
                        await writable.wait()
                finally:
                    loop.remove_writer(sock)
                continue
            except OSError as exc:
                raise PeerGone from exc
            if block == 0:
                break
            sent += block
            yield sent
            if connection.lost:
                raise PeerGone
            await asyncio.sleep(0)
    finally:
        os.close(sock)
