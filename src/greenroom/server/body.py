"""The body of a request, received whole before the application is called.

A decoder (`Length`, `Chunked`) takes what is its own from the front of a buffer,
leaves the bytes of the next request there, and says when it is `done`. A `Spool`
keeps what was decoded: in memory up to a limit, then in an unlinked temporary
file. It is written to disk in blocks by `flush`, which blocks and so is called off
the loop; reading is paused meanwhile. Whatever the size of the pieces in which a body
comes, it takes its own size in memory and a little: no list of them is kept. What is
on disk already can be received into a block of the spool's (`room`, `filled`), which
saves three copies: into the buffer, out of it, and into what is written. The thread that
writes a block goes on with what has come meanwhile (`receive`), as long as there is some:
a change of thread for each block costs as much as a quarter of the writing.

The chunk decoder is ours because llhttp can't be stopped at the end of a message:
it would read on into the next one. It is strict about CRLF (RFC 9112, 7.1), bounds
the bytes of chunk extensions and trailers, and throws both away. No field of a
trailer ever enters an environ. It refuses a body that is to be longer than allowed
as soon as a chunk's size says so, and stops after so many chunks that others get
their turn: a byte in a chunk of its own costs some microseconds.
"""

from __future__ import annotations

import io
import re
import socket
import tempfile
import threading
from typing import BinaryIO

from ..errors import PeerError

# Once a body is on disk it is written in blocks of this size.
BLOCK = 1 << 18
# What is received into a block of the spool's has larger ones, as long as few do: each
# costs some changes of thread, 50 to 200 µs.
_LARGE = 1 << 21
_BLOCKS = 1 << 26
# Received by one call of `Spool.receive`; others wait for the thread meanwhile.
_VISIT = 1 << 23
# Of what a body is read by. What is asked for in larger pieces isn't copied into it.
_READ_BUFFER = 1 << 13

# Without waiting: where Windows has no such flag, the socket itself is set so.
_NOW = getattr(socket, "MSG_DONTWAIT", 0)

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})([ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-zA-Z]+:[\t\x20-\x7e\x80-\xff]*")
# Of one line, and of all extensions and trailers of a body. h11 allows 16 KiB a head.
_MAX_LINE = 4096
_MAX_OVERHEAD = 16384
# Decoded by one call of `Chunked.take`; some milliseconds, if they are small.
_TURN = 1000


class Length:
    """A body whose Content-Length is known."""

    __slots__ = ("done", "remaining")

    # It never stops before it must.
    gave_way = False

    def __init__(self, length: int) -> None:
        self.remaining = length
        self.done = length == 0

    def take(self, buffer: bytearray) -> bytes:
        """Remove this body's bytes from the front of `buffer` and return them."""
        if len(buffer) <= self.remaining:
            data = bytes(buffer)
            buffer.clear()
        else:
            data = bytes(memoryview(buffer)[: self.remaining])
            del buffer[: self.remaining]
        self.took(len(data))
        return data

    def took(self, size: int) -> None:
        """Count `size` bytes that were received where they are kept."""
        self.remaining -= size
        self.done = self.remaining == 0


class Chunked:
    """A body in chunks, of `limit` bytes at most (None: any number).

    Raises `PeerError` at the first byte that doesn't fit. `gave_way` says that the
    last `take` stopped though there may be more in the buffer.
    """

    __slots__ = ("_left", "_limit", "_overhead", "_size", "_state", "done", "gave_way")

    _SIZE_LINE, _DATA, _DATA_END, _TRAILERS = range(4)

    def __init__(self, limit: int | None = None) -> None:
        self.done = False
        self.gave_way = False
        self._limit = limit
        self._state = self._SIZE_LINE
        # Of all chunks up to now, and what is left of the current one.
        self._size = 0
        self._left = 0
        self._overhead = 0

    def take(self, buffer: bytearray) -> bytes:
        """Remove what was understood from the front of `buffer`; return the data in it."""
        parts: list[bytes] = []
        position = 0
        self.gave_way = False
        while not self.done:
            if self._state == self._DATA:
                data = bytes(memoryview(buffer)[position : position + self._left])
                parts.append(data)
                position += len(data)
                self._left -= len(data)
                if self._left:
                    break
                self._state = self._DATA_END
            elif self._state == self._DATA_END:
                if len(buffer) - position < 2:
                    break
                if buffer[position : position + 2] != b"\r\n":
                    raise PeerError(400, "a chunk that doesn't end where it should")
                position += 2
                self._state = self._SIZE_LINE
                if len(parts) >= _TURN:
                    self.gave_way = True
                    break
            else:
                line = self._line(buffer, position)
                if line is None:
                    break
                position += len(line) + 2
                self._on_line(line)
        del buffer[:position]
        return b"".join(parts)

    def _line(self, buffer: bytearray, position: int) -> bytes | None:
        end = buffer.find(b"\n", position, position + _MAX_LINE)
        if end < 0:
            if len(buffer) - position >= _MAX_LINE:
                raise PeerError(400, "a line too long in a chunked body")
            return None
        if end == position or buffer[end - 1] != 0x0D:
            raise PeerError(400, "a bare LF in a chunked body")
        return bytes(memoryview(buffer)[position : end - 1])

    def _on_line(self, line: bytes) -> None:
        if self._state == self._SIZE_LINE:
            match = _SIZE.fullmatch(line)
            if match is None:
                raise PeerError(400, "invalid size of a chunk")
            self._count(len(line) - len(match[1]))
            self._left = int(match[1], 16)
            self._size += self._left
            if self._limit is not None and self._size > self._limit:
                raise PeerError(413, "the body is larger than allowed")
            self._state = self._DATA if self._left else self._TRAILERS
        elif line:
            self._count(len(line))
            if _TRAILER.fullmatch(line) is None:
                raise PeerError(400, "an invalid trailer field")
        else:
            self.done = True

    def _count(self, size: int) -> None:
        self._overhead += size
        if self._overhead > _MAX_OVERHEAD:
            raise PeerError(431, "too many chunk extensions or trailers")


class Quota:
    """How many bytes of request bodies this process may have on disk.

    `blocks`: how many of them are received into a block. `take` and `give` may be called
    by any thread.
    """

    __slots__ = ("_lock", "blocks", "limit", "used")

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.used = 0
        self.blocks = 0
        self._lock = threading.Lock()

    def block(self, most: int) -> bytearray:
        """A block for one more, of which `most` bytes are to come."""
        self.blocks += 1
        return bytearray(min(most, max(BLOCK, min(_LARGE, _BLOCKS // self.blocks))))

    def take(self, size: int) -> None:
        """Count `size` bytes, or raise `PeerError` with status 503."""
        with self._lock:
            self.look(size)
            self.used += size

    def give(self, size: int) -> None:
        """Give back what was taken."""
        with self._lock:
            self.used -= size

    def look(self, size: int) -> None:
        """Raise `PeerError` with status 503 if there is no room for `size` bytes."""
        if self.limit is not None and self.used + size > self.limit:
            raise PeerError(503, "no room on disk for a request's body")


class Spool:
    """Keeps one body.

    `add`, `room`, `open` and `close` belong to the loop, `flush`, `receive` and `rewind` to a
    thread; nothing else may be called while one of these runs.
    """

    __slots__ = (
        "_block",
        "_counted",
        "_directory",
        "_file",
        "_filled",
        "_limit",
        "_memory",
        "_quota",
        "size",
    )

    def __init__(self, limit: int, directory: str | None, quota: Quota) -> None:
        self.size = 0
        self._limit = limit
        self._directory = directory
        self._quota = quota
        self._counted = 0
        # What is not in the file: one piece as it came, or a buffer of several.
        self._memory: bytes | bytearray = b""
        # Or what is received into, and how much of it there is.
        self._block: memoryview | None = None
        self._filled = 0
        self._file: BinaryIO | None = None

    def expect(self, length: int) -> None:
        """Refuse a body of known length for which there is no room, before it is sent.

        What was announced isn't counted, only what has arrived: otherwise a few
        heads, which cost their sender nothing, could keep all others out.
        """
        if length > self._limit:
            self._quota.look(length)

    def add(self, data: bytes) -> None:
        """Keep `data`; afterwards `due` tells whether to flush."""
        assert not self._filled
        self.size += len(data)
        if not self._memory:
            self._memory = data
        else:
            if isinstance(self._memory, bytes):
                self._memory = bytearray(self._memory)
            self._memory += data
        self._count()

    def room(self, most: int) -> memoryview:
        """Where to put what comes next, `most` bytes of it; of a body that is on disk."""
        block = self._block
        if block is None:
            block = self._block = memoryview(self._quota.block(most))
        return block[self._filled : self._filled + most]

    def filled(self, size: int) -> None:
        """As `add`, of `size` bytes that were put there."""
        self.size += size
        self._filled += size
        self._count()

    def _count(self) -> None:
        if self.size > self._limit and self.size > self._counted:
            self._quota.take(self.size - self._counted)
            self._counted = self.size

    @property
    def due(self) -> bool:
        """Whether there is a block to write to disk."""
        if self._file is None:
            return self.size > self._limit
        if self._block is not None and self._filled == len(self._block):
            return True
        return len(self._memory) >= BLOCK

    @property
    def on_disk(self) -> bool:
        return self._file is not None

    def flush(self) -> None:
        """Write what is waiting to disk. Blocks."""
        data, self._memory = self._memory, b""
        if self._file is None:
            # Without a buffer: what is written comes in blocks.
            self._file = tempfile.TemporaryFile(  # noqa: SIM115
                buffering=0, dir=self._directory, prefix="greenroom-"
            )
        _write(self._file, data)
        if self._block is not None:
            _write(self._file, self._block[: self._filled])
            self._filled = 0

    def receive(self, sock: socket.socket, most: int) -> int:
        """Receive what has come, up to `most` bytes and a bound, and write each full block.

        Never waits for the client. That it has gone is noticed by whoever reads next. There
        must be a block: `room` makes it.
        """
        left = most = min(most, _VISIT)
        while left:
            try:
                size = sock.recv_into(self.room(left), 0, _NOW)
            except OSError:
                break
            if not size:
                break
            left -= size
            self.filled(size)
            if self.due:
                self.flush()
        return most - left

    def rewind(self) -> None:
        """Write all that is left and go to the start. Blocks, as `flush` does."""
        self.flush()
        assert self._file is not None
        self._file.seek(0)

    def open(self) -> BinaryIO:
        """The complete body, at its start."""
        self._give_block_back()
        if self._file is not None:
            # For reading only: a buffer for both seeks before each read.
            self._file = io.BufferedReader(self._file, _READ_BUFFER)  # type: ignore[type-var]
            return self._file
        data, self._memory = self._memory, b""
        return io.BytesIO(data)

    def close(self) -> BinaryIO | None:
        """Give back the quota; return the file, to be closed off the loop."""
        self._quota.give(self._counted)
        self._counted = 0
        file, self._file = self._file, None
        self._memory = b""
        self._give_block_back()
        return file

    def _give_block_back(self) -> None:
        if self._block is not None:
            self._block = None
            self._quota.blocks -= 1


def _write(file: BinaryIO, data: bytes | bytearray | memoryview) -> None:
    """All of it: without a buffer, a file may take less at once."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
