"""One connection: bytes in, one request at a time, bytes out.

::

            head complete      body complete          answered
    HEAD ────────────────► BODY ─────────► RUNNING ────────────► HEAD (keep-alive)
      │  no body: at once ──────────────────▲  │
      │ refused                                │ last answer
      ▼                                        ▼
    LINGERING ◄──────────────────────────── CLOSING       any state ──► lost

Invariants:

- At most one request is in flight. Bytes that arrive meanwhile stay in the buffer;
  past `_PIPELINED` reading is paused, so they are bounded. It is not paused before:
  a transport that doesn't read doesn't notice that the client has gone.
- Bytes of a body never reach the parser of heads, and nothing is parsed once the
  connection is to be closed.
- A connection that is closed by us while its client may still be sending is
  half-closed first and read for a while (LINGERING): closed at once, the kernel
  would answer what is unread with a reset, which takes our answer from the client
  (RFC 9112, 9.6). It is read for as long as the client goes on sending, within a
  bound: the client of a large body that was refused looks for the answer afterwards.
- While a body is `_busy` (written to disk by a thread, or giving way to others in the
  middle of the buffer) the loop reads nothing and parses nothing. The decoder, the spool
  and `_body_progress` are the thread's, which receives more of a body of known length.
- The transport has another protocol, an `_Intake`, while a body of known length is
  received that is on disk in part: from a flush on until its last byte, or its end.
- Each state has a `deadline`; the server's sweep compares it with the clock once a
  second. There are no timers per request. The deadline of a head isn't renewed by
  its bytes; that of a body is by some thousand of them, that of an answer by any.

The module is long because it is one automaton: each event is answered by its state, and
what reads, what writes and what ends a connection change that together.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from ..errors import PeerError
from .app import Exchange
from .body import Chunked, Length, Spool
from .head import Environ, Request, parse

if TYPE_CHECKING:
    from .lifecycle import Server

HEAD, BODY, RUNNING, LINGERING, CLOSING, LOST = range(6)

# Pipelined bytes that are kept while a request is in flight.
_PIPELINED = 1 << 16
# Turns of the loop between two pipelined requests, if there are other connections: a new
# one needs some six until it is answered, and would wait for a pipelined request in each.
_GIVE_WAY = 4

# Without waiting: where Windows has no such flag, the socket itself is set so.
_LOOK = socket.MSG_PEEK | getattr(socket, "MSG_DONTWAIT", 0)

# What is said of a client that speaks TLS here; RFC 8446, 5.1: a record of a handshake.
TLS_HANDSHAKE = "a TLS handshake on a port without TLS"

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class _Intake(asyncio.BufferedProtocol):
    """What a transport has in place of a connection that receives into its spool's block."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._connection.room()

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.filled(nbytes)

    def eof_received(self) -> bool:
        return self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()


class Connection(asyncio.Protocol):
    """A connection from accept to `connection_lost`. Belongs to the loop."""

    __slots__ = (
        "_base",
        "_body_progress",
        "_buffer",
        "_busy",
        "_decoder",
        "_drain_waiter",
        "_environ",
        "_eof",
        "_idle_since",
        "_intake",
        "_lines",
        "_linger_ends",
        "_lingered",
        "_on_lost",
        "_reading_paused",
        "_refusal",
        "_request",
        "_scanned",
        "_served",
        "_spool",
        "_state",
        "_transport",
        "_trusted",
        "_unwritten",
        "deadline",
        "exchange",
        "server",
        "sock",
        "write_paused",
    )

    def __init__(self, server: Server, sock: socket.socket, base: Environ, trusted: bool) -> None:
        # For the life of the connection.
        self.server = server
        self.sock = sock
        self._base = base
        self._trusted = trusted
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._state = HEAD
        self._buffer = bytearray()
        self._eof = False
        self._served = 0
        self._refusal: PeerError | None = None
        self._idle_since = server.loop.time()
        self.deadline = self._idle_since + server.config.head_timeout
        # Reading.
        self._scanned = 0
        self._lines = 0
        self._reading_paused = False
        self._lingered = False
        self._linger_ends = 0.0
        self._body_progress = 0
        # Writing.
        self.write_paused = False
        self._drain_waiter: asyncio.Future[None] | None = None
        self._unwritten = 0
        self._on_lost: Callable[[], object] | None = None
        # The current request, and what answers it.
        self._request: Request | None = None
        self._environ: Environ = {}
        self._decoder: Length | Chunked | None = None
        self._spool: Spool | None = None
        self._busy = False
        self._intake = False
        self.exchange: Exchange | None = None

    def begin(self, environ: Environ, data: bytes, error: PeerError | None) -> None:
        """What came ahead of the transport: a PROXY header, the beginning of a request.

        Or why it is refused as soon as it can be answered.
        """
        self._base.update(environ)
        self._buffer += data
        self._refusal = error

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        self.server.connected(self)
        if self._refusal is not None:
            # Before the first byte is read: what follows is no request.
            self._refuse(self._refusal)

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state <= BODY:
            self._buffer += data
            self._advance()
        elif state == RUNNING:
            self._buffer += data
            if len(self._buffer) > _PIPELINED:
                self._pause_reading()
        elif state == LINGERING:
            self._lingered = True

    def eof_received(self) -> bool:
        self._eof = True
        if self.server.ssl is not None:
            # Neither loop's TLS can go on with one half.
            return False
        if self._state == RUNNING:
            self.server.loop.call_later(
                self.server.config.half_close_timeout, self._half_closed, self.exchange
            )
            return True
        # A body that is still being looked at may be complete.
        return self._state == CLOSING or self._busy

    def connection_lost(self, exc: Exception | None) -> None:
        self._state = LOST
        self.deadline = inf
        self._buffer.clear()
        self.server.lost(self)
        self._wake()
        if self._on_lost is not None:
            self._on_lost()
        if self.exchange is not None:
            self.exchange.disconnected()
        if not self._busy:
            self._drop_body()

    def pause_writing(self) -> None:
        self.write_paused = True
        self._watch_writing()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._state == RUNNING:
            self.deadline = inf
        self._wake()

    @property
    def peer(self) -> str:
        """The address of the client, as far as it is known."""
        return str(self._base.get("REMOTE_ADDR", ""))

    @property
    def made(self) -> bool:
        """Whether it has a transport: over TLS, whether the handshake has ended."""
        return self._transport is not None

    # What an exchange calls.

    @property
    def lost(self) -> bool:
        """Whether nothing can be written any more."""
        return self._state >= LINGERING

    @property
    def can_sendfile(self) -> bool:
        return self.server.config.sendfile and self.server.ssl is None and not self.lost

    def wants_another(self) -> bool:
        """Whether a further request would be served on this connection."""
        server = self.server
        return (
            server.config.keepalive > 0
            and not server.draining
            # What was sent ahead of an EOF is answered.
            and (not self._eof or bool(self._buffer))
        )

    def write(self, data: bytes) -> None:
        if self._state == RUNNING:
            self._transport.write(data)

    def writelines(self, data: list[bytes]) -> None:
        if self._state != RUNNING:
            return
        if self.server.on_uvloop:
            self._transport.writelines(data)
        else:
            # asyncio's writelines doesn't pause the protocol in 3.12.0-3.12.8 and
            # 3.13.0-3.13.1 (CVE-2024-12254): without it nothing bounds the buffer.
            for part in data:
                self._transport.write(part)

    async def drained(self) -> None:
        """Wait until writing isn't paused, or nothing can be written any more."""
        while self.write_paused and not self.lost:
            if self._drain_waiter is None:
                self._drain_waiter = self.server.loop.create_future()
            # Shielded: several tasks of an application may wait for it.
            await asyncio.shield(self._drain_waiter)

    async def emptied(self) -> None:
        """Wait until the transport has nothing buffered."""
        self._transport.set_write_buffer_limits(high=0)
        try:
            while self._transport.get_write_buffer_size() and not self.lost:
                if self.write_paused:
                    await self.drained()
                else:
                    await asyncio.sleep(0)
        finally:
            if not self.lost:
                self._transport.set_write_buffer_limits()

    @contextlib.contextmanager
    def stalling(self, wake: Callable[[], object]) -> Iterator[None]:
        """While the socket takes nothing, outside of the transport's sight."""
        self._on_lost = wake
        self._watch_writing()
        try:
            yield
        finally:
            self._on_lost = None
            if self._state == RUNNING:
                self.deadline = inf

    def cut(self, *, reset: bool) -> None:
        """End the connection now; what was written still goes out unless `reset`."""
        if self.lost:
            return
        self._state = CLOSING
        if reset:
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
            return
        self._close()

    def answered(self, keep_alive: bool) -> None:
        """The exchange is over: the next request, or the end."""
        wanted = self.exchange is not None and self.exchange.request.keep_alive
        self.exchange = None
        self._served += 1
        if self._state != RUNNING:
            return
        if not keep_alive:
            self._finish(wanted)
        elif self._buffer and self.server.is_shared:
            self._give_way(_GIVE_WAY)
        else:
            self._next()

    def _give_way(self, turns: int) -> None:
        """Let others have some turns of the loop before the next request that was sent ahead."""
        if turns:
            self.server.loop.call_soon(self._give_way, turns - 1)
        elif self._state == RUNNING:
            self._next()

    def _next(self) -> None:
        """Serve what was sent ahead, or wait for the next request."""
        self._state = HEAD
        self._scanned = 0
        server = self.server
        self._idle_since = now = server.loop.time()
        if self._buffer:
            self.deadline = now + server.config.head_timeout
            self._advance()
            if self._eof and self._state <= BODY and not self._busy:
                # The rest of it will never come.
                self._close()
        elif self._eof:
            self._close()
        else:
            self.deadline = now + (
                server.config.drain_grace if server.draining else server.config.keepalive
            )
        if self._reading_paused and self._state <= BODY and not self._busy:
            self._resume_reading()

    # What the server calls.

    def on_deadline(self, now: float) -> None:
        """The deadline of the current state has passed."""
        state = self._state
        if state == HEAD:
            if self._buffer:
                self._refuse(PeerError(408, "the head took too long"))
            else:
                self._close_idle(now)
        elif state == BODY:
            if self._busy:
                self.deadline = now + self.server.config.body_timeout
            else:
                self._refuse(PeerError(408, "the body took too long"))
        elif state != LOST:
            unwritten = self._transport.get_write_buffer_size()
            if 0 < unwritten < self._unwritten:
                self._watch_writing()
            elif state == LINGERING and self._lingered and now < self._linger_ends:
                self._lingered = False
                self.deadline = now + self.server.config.linger_timeout
            elif state == LINGERING and not unwritten:
                self._close()
                self.deadline = now + self.server.config.linger_timeout
            else:
                self._transport.abort()

    def drain(self, now: float) -> None:
        """No further request is wanted. What has been sent to us is still answered.

        A connection that is new, or was used a moment ago, gets a short grace: its
        client may be sending a request right now, and would lose it.
        """
        # Others would wait for it.
        self._linger_ends = 0.0
        if self._state != HEAD or self._buffer:
            return
        grace = self.server.config.drain_grace
        if self._served == 0 or now - self._idle_since < grace:
            self.deadline = min(self.deadline, now + grace)
        else:
            self._close_idle(now)

    def end(self) -> None:
        """The time of grace is over."""
        if self.exchange is not None:
            self.exchange.cancel()
        elif self._state != LOST:
            self._transport.abort()

    # Reading.

    def _advance(self) -> None:
        try:
            while self._buffer:
                if self._state == HEAD:
                    if not self._read_head():
                        return
                elif self._state != BODY or self._busy or not self._read_body():
                    return
        except PeerError as exc:
            self._refuse(exc)

    def _read_head(self) -> bool:
        """Parse a head if it is complete."""
        server = self.server
        config = server.config
        buffer = self._buffer
        if not self._scanned:
            self._lines = 0
            if self._served:
                self.deadline = server.loop.time() + config.head_timeout
            # One empty line before a request: RFC 9112, 2.2.
            if buffer[:2] == b"\r\n":
                del buffer[:2]
                self._scanned = 1
            elif buffer == b"\r":
                return False
        end = buffer.find(b"\r\n\r\n", max(0, self._scanned - 4))
        if end < 0:
            limit = config.limit_request_line
            line = buffer.find(b"\r\n", 0, limit + 2)
            if line < 0 and len(buffer) >= limit + 2:
                raise PeerError(414, "request line too long")
            if len(buffer) > config.max_head:
                raise PeerError(431, "head too large")
            if buffer[:2] == b"\r\n":
                raise PeerError(400, "more than one empty line before a request")
            if buffer.startswith(b"\x16\x03"):
                raise PeerError(400, TLS_HANDSHAKE)
            # Looked at as it comes: what will be refused isn't kept until its end.
            lines = buffer.count(b"\n", self._scanned)
            self._lines += lines
            if self._lines > config.limit_request_fields + 1:
                raise PeerError(431, "too many header fields")
            if lines and buffer.count(b"\r\n", max(0, self._scanned - 1)) != lines:
                raise PeerError(400, "a bare LF in the head")
            # Its CR may be there already, and its LF is to come.
            last = len(buffer) - buffer.rfind(b"\n") - 1
            if line >= 0 and last + 1 > config.limit_request_field_size:
                raise PeerError(431, "header field too large")
            self._scanned = max(self._scanned, len(buffer))
            return False
        end += 4
        if end > config.max_head:
            raise PeerError(431, "head too large")
        if end == len(buffer):
            head = bytes(buffer)
            buffer.clear()
        else:
            with memoryview(buffer) as view:
                head = bytes(view[:end])
            del buffer[:end]
        self._scanned = 0
        request = self._request = Request()
        environ = self._environ = parse(request, head, config, self._base, self._trusted)
        if request.chunked or request.length:
            self._begin_body(request)
        else:
            environ["wsgi.input"] = request.body = server.no_body()
            self._run()
        return True

    def _begin_body(self, request: Request) -> None:
        server = self.server
        config = server.config
        self._spool = spool = Spool(config.max_body_in_memory, config.spool_dir, server.quota)
        self._state = BODY
        if request.length is None:
            self._decoder = Chunked(config.max_body)
        else:
            if config.max_body is not None and request.length > config.max_body:
                raise PeerError(413, "the body is larger than allowed")
            spool.expect(request.length)
            self._decoder = Length(request.length)
        self._body_progress = 0
        self.deadline = server.loop.time() + config.body_timeout
        if request.expects_continue and not self._buffer:
            self._transport.write(_CONTINUE)

    def _read_body(self) -> bool:
        decoder, spool = self._decoder, self._spool
        assert decoder is not None
        assert spool is not None
        data = decoder.take(self._buffer)
        if data:
            spool.add(data)
        if decoder.done:
            if spool.due or spool.on_disk:
                self._flush(spool.rewind)
            else:
                self._body_complete()
            return True
        self._progressed(len(data))
        if spool.due:
            self._flush_and_receive()
            return False
        if decoder.gave_way:
            self._busy = True
            self._pause_reading()
            self.server.loop.call_soon(self._go_on)
            return False
        return bool(data)

    def room(self) -> memoryview:
        """Where the next bytes of the body go: never one of what follows it."""
        assert self._spool is not None
        return self._spool.room(self._decoder.remaining)  # type: ignore[union-attr]

    def filled(self, size: int) -> None:
        """So much of the body was put there."""
        decoder, spool = self._decoder, self._spool
        assert type(decoder) is Length
        assert spool is not None
        decoder.took(size)
        try:
            spool.filled(size)
        except PeerError as exc:
            self._refuse(exc)
            return
        self._progressed(size)
        if decoder.done:
            self._end_intake()
            self._flush(spool.rewind)
        elif spool.due:
            self._flush_and_receive()

    def _progressed(self, size: int) -> None:
        config = self.server.config
        self._body_progress += size
        if self._body_progress >= config.body_progress:
            self._body_progress = 0
            self.deadline = self.server.loop.time() + config.body_timeout

    @property
    def _receives_into(self) -> bool:
        """Whether the body can be received where it is kept."""
        return self.server.receives_into and type(self._decoder) is Length

    def _begin_intake(self) -> None:
        """Receive the rest of a body where it is kept, if it is one of those."""
        spool = self._spool
        if not self._intake and self._receives_into and spool is not None and spool.on_disk:
            self._intake = True
            self._transport.set_protocol(_Intake(self))

    def _end_intake(self) -> None:
        if self._intake:
            self._intake = False
            self._transport.set_protocol(self)

    def _flush(self, write: Callable[[], None]) -> None:
        """Write to disk off the loop; read no more meanwhile."""
        self._busy = True
        self._pause_reading()
        # Without a future, which costs as much again as the change of thread.
        self.server.disk.submit(self._write, write)

    def _flush_and_receive(self) -> None:
        """Write what is due, and have the thread receive what comes meanwhile, if it can."""
        assert self._spool is not None
        write: Callable[[], None] = self._spool.flush
        if self._receives_into:
            # A descriptor of its own: this one may be closed meanwhile, and its number be
            # another connection's.
            with contextlib.suppress(OSError):
                write = partial(self._receive, self.sock.dup())
            self.room()
        self._flush(write)

    def _receive(self, sock: socket.socket) -> None:
        """On a thread."""
        decoder, spool = self._decoder, self._spool
        assert type(decoder) is Length
        assert spool is not None
        with sock:
            spool.flush()
            size = spool.receive(sock, decoder.remaining)
        decoder.took(size)
        self._body_progress += size
        if decoder.done:
            spool.rewind()

    def _write(self, write: Callable[[], None]) -> None:
        """On a thread."""
        error = None
        try:
            write()
        except Exception as exc:
            error = exc
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.server.loop.call_soon_threadsafe(self._flushed, error)

    def _flushed(self, error: Exception | None) -> None:
        if self._state == BODY and error is not None:
            self._busy = False
            if isinstance(error, PeerError):
                self._refuse(error)
                return
            self.server.log.error("A request's body can't be written to disk: %s", error)
            self._refuse(PeerError(503, "no room on disk for a request's body"))
            return
        self._go_on()

    def _go_on(self) -> None:
        """With what is in the buffer, after a flush or having given way to others."""
        self._busy = False
        if self._state != BODY:
            self._drop_body()
            return
        assert self._decoder is not None
        if self._decoder.done:
            self._end_intake()
            self._body_complete()
        else:
            self._progressed(0)
            self._advance()
            if self._eof and self._state == BODY and not self._busy:
                self._close()
        if self._state <= BODY and not self._busy:
            if self._state == BODY:
                self._begin_intake()
            self._resume_reading()

    def _body_complete(self) -> None:
        request, spool = self._request, self._spool
        assert request is not None
        assert spool is not None
        environ = self._environ
        environ["wsgi.input"] = request.body = spool.open()
        environ["CONTENT_LENGTH"] = str(spool.size)
        self._decoder = None
        self._run()

    def _run(self) -> None:
        request, environ, spool = self._request, self._environ, self._spool
        assert request is not None
        self._request, self._environ, self._spool = None, {}, None
        self._state = RUNNING
        if self.write_paused:
            self._watch_writing()
        else:
            self.deadline = inf
        if self._reading_paused and len(self._buffer) <= _PIPELINED:
            self._resume_reading()
        self.exchange = Exchange(self, request, environ, spool)
        if self._eof:
            self.server.loop.call_later(
                self.server.config.half_close_timeout, self._half_closed, self.exchange
            )

    def _half_closed(self, exchange: Exchange | None) -> None:
        if exchange is not None and self.exchange is exchange:
            exchange.disconnected()

    def _pause_reading(self) -> None:
        if not self._reading_paused and not self._transport.is_closing():
            self._reading_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused and self._state != LOST:
            self._reading_paused = False
            self._transport.resume_reading()

    def _drop_body(self) -> None:
        spool, self._spool = self._spool, None
        if spool is not None:
            self.server.close_later(spool.close())

    # The end.

    def _refuse(self, error: PeerError) -> None:
        """Answer what can't be served, and read no further request."""
        server = self.server
        if self._state >= RUNNING:
            return
        self._transport.write(server.refused(error, self._base, self._request or Request()))
        if not self._busy:
            self._drop_body()
        self._end_intake()
        if self._eof:
            self._close()
        else:
            self._linger()

    def _finish(self, wanted: bool) -> None:
        """The last answer was written; `wanted`: the client may have sent more requests."""
        # Over TLS only the end of the connection can say that there is no more.
        if self._eof or not (wanted or self._buffer) or not self._transport.can_write_eof():
            self._close()
        else:
            self._linger()

    def _linger(self) -> None:
        self._state = LINGERING
        self._buffer.clear()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._resume_reading()
        # What is still buffered then gets more time. (uvloop 0.21 has not even tried to
        # send it now.)
        self._unwritten = sys.maxsize
        config, now = self.server.config, self.server.loop.time()
        self.deadline = now + config.linger_timeout
        self._lingered = False
        self._linger_ends = 0.0 if self.server.draining else now + config.linger_total

    def _close(self) -> None:
        self._state = CLOSING
        self._buffer.clear()
        self._watch_writing()
        self._transport.close()

    def _close_idle(self, now: float) -> None:
        """Close a connection that has no request, unless one is just arriving."""
        if self.server.ssl is None:
            try:
                self.sock.recv(1, _LOOK)
            except BlockingIOError:
                pass
            except OSError:
                self._transport.abort()
                return
            else:
                # Bytes, or the EOF: the loop is about to read them.
                self.deadline = now + self.server.config.drain_grace
                return
        self._close()
        # A TLS client that doesn't read doesn't say goodbye either.
        self.deadline = now + self.server.config.linger_timeout

    def _watch_writing(self) -> None:
        self._unwritten = self._transport.get_write_buffer_size()
        self.deadline = self.server.loop.time() + self.server.config.write_timeout

    def _wake(self) -> None:
        waiter, self._drain_waiter = self._drain_waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def __repr__(self) -> str:
        names = ("HEAD", "BODY", "RUNNING", "LINGERING", "CLOSING", "LOST")
        return f"<Connection {names[self._state]} served={self._served}>"
