"""The PROXY protocol: what a proxy says of its client ahead of the connection's bytes.

Versions 1 (a line of text) and 2 (binary), as in haproxy's doc/proxy-protocol.txt.
The header comes before all else, also before a TLS handshake. So it is read from
the accepted socket, before that has a transport, and never a byte past its end:
what follows belongs to TLS or to HTTP.

- As in gunicorn the header is optional, and one from a peer that isn't allowed to
  send it is refused (403). What isn't well-formed is refused too (400).
- The addresses of TCP become REMOTE_ADDR, REMOTE_PORT, PROXY_ADDR and PROXY_PORT, for
  every request of the connection. Where the proxy tells none that is known here
  (LOCAL, UNKNOWN, UDP, Unix sockets) the connection's own stay, as the specification
  says, and PROXY_PROTOCOL is LOCAL, UNKNOWN or UNSPEC.
- A checksum (PP2_TYPE_CRC32C) is verified; all other TLVs are skipped.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket

from ..errors import PeerError

_V1 = b"PROXY "
_V2 = b"\r\n\r\n\0\r\nQUIT\n"
# Section 2.1: the longest line that there is.
_MAX_LINE = 107
# 65,551 bytes would be possible. nginx takes 4,096 too; a client's certificate fits.
_MAX_HEADER = 4096
_FIXED = 16

_PORT = rb"(0|[1-9][0-9]{0,4})"
_TCP = re.compile(rb"PROXY (TCP[46]) ([0-9.A-Fa-f:]+) ([0-9.A-Fa-f:]+) %b %b" % (_PORT, _PORT))
_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: .*)?", re.DOTALL)

# Family and transport -> the size of both addresses and ports; None: whatever is there.
_ADDRESSES = {0x00: None, 0x11: 12, 0x12: 12, 0x21: 36, 0x22: 36, 0x31: 216, 0x32: 216}
_LOCAL, _PROXY = 0x20, 0x21
_CRC32C = 0x03


async def receive(sock: socket.socket, header: Header) -> None:
    """Read a header, or find out that there is none; raises `PeerError` or `OSError`."""
    loop = asyncio.get_running_loop()
    while not header.done:
        try:
            data = sock.recv(_MAX_HEADER, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            await _readable(loop, sock.fileno())
            continue
        if not data:
            raise ConnectionAbortedError("the connection ended before its first request")
        taken = header.take(data)
        if taken:
            sock.recv(taken)


async def _readable(loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


class Header:
    """The first bytes of a connection, as they come.

    When it is `done`, `environ` has what is to be entered into the environ (nothing,
    if there was no header), and `rest` the bytes that were taken and are no header's:
    the beginning of a request that looked like one for a while.
    """

    __slots__ = ("_allowed", "_candidates", "_taken", "done", "environ")

    def __init__(self, mode: str, allowed: bool) -> None:
        """`mode` is that of gunicorn's setting: v1, v2 or auto."""
        self._candidates = {"v1": (_V1,), "v2": (_V2,)}.get(mode, (_V1, _V2))
        self._allowed = allowed
        self._taken = b""
        self.done = False
        self.environ: dict[str, str] = {}

    @property
    def rest(self) -> bytes:
        return self._taken

    def take(self, data: bytes) -> int:
        """Look at the bytes that have come; returns how many are to be removed.

        The others, if any, are to be shown again, with more behind them.
        """
        before = len(self._taken)
        seen = self._taken + data
        if seen.startswith(_V1) and _V1 in self._candidates:
            end = self._line(seen)
        elif seen.startswith(_V2) and _V2 in self._candidates:
            end = self._binary(seen)
        elif any(each.startswith(seen) for each in self._candidates):
            end = 0
        else:
            self.done = True
            return 0
        if end:
            self.done = True
            self._taken = b""
            return end - before
        self._taken = seen
        return len(data)

    def _line(self, seen: bytes) -> int:
        self._check_allowed()
        end = seen.find(b"\n", 0, _MAX_LINE)
        if end < 0:
            if len(seen) >= _MAX_LINE:
                raise PeerError(400, "PROXY line too long")
            return 0
        line = seen[:end]
        if line[-1:] != b"\r":
            raise PeerError(400, "a bare LF in the PROXY line")
        if match := _TCP.fullmatch(line, 0, end - 1):
            protocol, *values = (each.decode("ascii") for each in match.groups())
            kind = ipaddress.IPv4Address if protocol == "TCP4" else ipaddress.IPv6Address
            try:
                kind(values[0])
                kind(values[1])
            except ValueError:
                raise PeerError(400, "invalid address in the PROXY line") from None
            if int(values[2]) > 65535 or int(values[3]) > 65535:
                raise PeerError(400, "invalid port in the PROXY line")
            self._addresses(protocol, *values)
        elif _UNKNOWN.fullmatch(line, 0, end - 1):
            self.environ = {"PROXY_PROTOCOL": "UNKNOWN"}
        else:
            raise PeerError(400, "malformed PROXY line")
        return end + 1

    def _binary(self, seen: bytes) -> int:
        self._check_allowed()
        if len(seen) < _FIXED:
            return 0
        command, family = seen[12], seen[13]
        end = _FIXED + int.from_bytes(seen[14:_FIXED], "big")
        if command not in (_LOCAL, _PROXY):
            raise PeerError(400, "unknown version or command in the PROXY header")
        if end > _MAX_HEADER:
            raise PeerError(400, "PROXY header too long")
        if len(seen) < end:
            return 0
        if command == _LOCAL:
            self.environ = {"PROXY_PROTOCOL": "LOCAL"}
            return end
        size = _ADDRESSES.get(family, -1)
        if size == -1:
            raise PeerError(400, "unknown address family in the PROXY header")
        if size is not None:
            if end < _FIXED + size:
                raise PeerError(400, "PROXY header too short for its addresses")
            _check_vectors(seen[:end], _FIXED + size)
        self.environ = {"PROXY_PROTOCOL": "UNSPEC"}
        if size is not None and family in (0x11, 0x21):
            block = seen[_FIXED : _FIXED + size]
            half = (size - 4) // 2
            source, target = (
                ipaddress.ip_address(each) for each in (block[:half], block[half : 2 * half])
            )
            ports = (int.from_bytes(block[at : at + 2], "big") for at in (-4 + size, -2 + size))
            self._addresses(f"TCP{source.version}", str(source), str(target), *map(str, ports))
        return end

    def _check_allowed(self) -> None:
        if not self._allowed:
            raise PeerError(403, "a PROXY header from a peer that isn't in proxy_allow_ips")

    def _addresses(self, protocol: str, source: str, target: str, *ports: str) -> None:
        self.environ = {
            "PROXY_PROTOCOL": protocol,
            "REMOTE_ADDR": source,
            "REMOTE_PORT": ports[0],
            "PROXY_ADDR": target,
            "PROXY_PORT": ports[1],
        }


def _check_vectors(header: bytes, position: int) -> None:
    """Type, length and value, as often as there is room; the checksum is of all bytes."""
    while position < len(header):
        value = position + 3
        end = value + int.from_bytes(header[position + 1 : value], "big")
        if end > len(header) or value > len(header):
            raise PeerError(400, "malformed TLV in the PROXY header")
        if header[position] == _CRC32C:
            # Computed with zeros in its own place: section 2.2.3.
            blank = header[:value] + bytes(4) + header[end:]
            if end - value != 4 or _crc32c(blank) != int.from_bytes(header[value:end], "big"):
                raise PeerError(400, "wrong checksum of the PROXY header")
        position = end


def _crc32c_of_byte(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_TABLE = [_crc32c_of_byte(value) for value in range(256)]


def _crc32c(data: bytes) -> int:
    """RFC 9260, appendix A. It is not in the standard library."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
