"""The PROXY protocol: in every split, on real sockets, and what must be refused."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greenroom.errors import PeerError
from greenroom.loops import Home
from greenroom.server import Config, Server
from greenroom.server.proxy import Header, _crc32c
from greenroom.threads import Threads

from .conftest import RecordingLog, parse_answers

PROFILE = settings(deadline=None, max_examples=100)
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
INET = b"\x0a\x01\x02\x03\xc0\x00\x02\x01" + struct.pack(">HH", 56324, 443)
INET6 = ipaddress.ip_address("2001:db8::1").packed + ipaddress.ip_address("::2").packed + INET[-4:]
SEEN_4 = {
    "PROXY_PROTOCOL": "TCP4",
    "REMOTE_ADDR": "10.1.2.3",
    "REMOTE_PORT": "56324",
    "PROXY_ADDR": "192.0.2.1",
    "PROXY_PORT": "443",
}
SEEN_6 = {**SEEN_4, "PROXY_PROTOCOL": "TCP6", "REMOTE_ADDR": "2001:db8::1", "PROXY_ADDR": "::2"}


def binary(command: int, family: int, block: bytes = b"", *, length: int | None = None) -> bytes:
    size = len(block) if length is None else length
    return SIGNATURE + bytes([command, family]) + struct.pack(">H", size) + block


def tlv(kind: int, value: bytes) -> bytes:
    return bytes([kind]) + struct.pack(">H", len(value)) + value


def summed(command: int, family: int, block: bytes, *more: bytes) -> bytes:
    """With a checksum, of this very header."""
    blank = binary(command, family, block + b"".join(more) + tlv(3, bytes(4)))
    return blank[:-4] + struct.pack(">I", _crc32c(blank))


TAKEN = {
    "v1 TCP4": (b"PROXY TCP4 10.1.2.3 192.0.2.1 56324 443\r\n", SEEN_4),
    "v1 TCP6": (b"PROXY TCP6 2001:db8::1 ::2 56324 443\r\n", SEEN_6),
    "v1 longest": (
        b"PROXY TCP6 %b %b 65535 65535\r\n" % (b":".join([b"ffff"] * 8), b":".join([b"ffff"] * 8)),
        {
            "PROXY_PROTOCOL": "TCP6",
            "REMOTE_ADDR": ":".join(["ffff"] * 8),
            "REMOTE_PORT": "65535",
            "PROXY_ADDR": ":".join(["ffff"] * 8),
            "PROXY_PORT": "65535",
        },
    ),
    "v1 UNKNOWN": (b"PROXY UNKNOWN\r\n", {"PROXY_PROTOCOL": "UNKNOWN"}),
    "v1 UNKNOWN with more": (
        b"PROXY UNKNOWN ffff::1 what ever \xff\r\n",
        {"PROXY_PROTOCOL": "UNKNOWN"},
    ),
    "v2 TCP4": (binary(0x21, 0x11, INET), SEEN_4),
    "v2 TCP6": (binary(0x21, 0x21, INET6), SEEN_6),
    "v2 with TLVs": (binary(0x21, 0x11, INET + tlv(1, b"h2") + tlv(0xE1, b"") * 9), SEEN_4),
    "v2 summed": (summed(0x21, 0x11, INET, tlv(4, bytes(7))), SEEN_4),
    "v2 summed TCP6": (summed(0x21, 0x21, INET6), SEEN_6),
    "v2 longest": (binary(0x21, 0x11, INET + tlv(4, bytes(4096 - 16 - 12 - 3))), SEEN_4),
    "v2 LOCAL": (binary(0x20, 0), {"PROXY_PROTOCOL": "LOCAL"}),
    "v2 LOCAL with anything": (binary(0x20, 0x99, b"?" * 33), {"PROXY_PROTOCOL": "LOCAL"}),
    "v2 UNSPEC": (binary(0x21, 0, b"??"), {"PROXY_PROTOCOL": "UNSPEC"}),
    "v2 UDP": (binary(0x21, 0x12, INET), {"PROXY_PROTOCOL": "UNSPEC"}),
    "v2 UDP6": (binary(0x21, 0x22, INET6), {"PROXY_PROTOCOL": "UNSPEC"}),
    "v2 Unix": (binary(0x21, 0x31, b"/".ljust(216, b"\0")), {"PROXY_PROTOCOL": "UNSPEC"}),
}
REFUSED = {
    "v1 short": b"PROXY TCP4 10.1.2.3 192.0.2.1 56324\r\n",
    "v1 long": b"PROXY TCP4 10.1.2.3 192.0.2.1 56324 443 1\r\n",
    "v1 two spaces": b"PROXY  TCP4 10.1.2.3 192.0.2.1 56324 443\r\n",
    "v1 space at the end": b"PROXY TCP4 10.1.2.3 192.0.2.1 56324 443 \r\n",
    "v1 bare LF": b"PROXY TCP4 10.1.2.3 192.0.2.1 56324 443\n",
    "v1 bare CR": b"PROXY TCP4 10.1.2.3 192.0.2.1 56324 443\r" + b" " * 107,
    "v1 endless": b"PROXY UNKNOWN " + b"x" * 200,
    "v1 one too long": b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    "v1 family": b"PROXY TCP5 10.1.2.3 192.0.2.1 56324 443\r\n",
    "v1 UDP": b"PROXY UDP4 10.1.2.3 192.0.2.1 56324 443\r\n",
    "v1 lower case": b"PROXY tcp4 10.1.2.3 192.0.2.1 56324 443\r\n",
    "v1 other family": b"PROXY TCP4 2001:db8::1 ::2 56324 443\r\n",
    "v1 name": b"PROXY TCP4 localhost 192.0.2.1 56324 443\r\n",
    "v1 leading zero": b"PROXY TCP4 10.01.2.3 192.0.2.1 56324 443\r\n",
    "v1 zone": b"PROXY TCP6 fe80::1%eth0 ::2 56324 443\r\n",
    "v1 port": b"PROXY TCP4 10.1.2.3 192.0.2.1 65536 443\r\n",
    "v1 port with a zero": b"PROXY TCP4 10.1.2.3 192.0.2.1 056 443\r\n",
    "v1 signed port": b"PROXY TCP4 10.1.2.3 192.0.2.1 +56 443\r\n",
    "v1 NUL": b"PROXY TCP4 10.1.2.3\0 192.0.2.1 56324 443\r\n",
    "v1 UNKNOWNs": b"PROXY UNKNOWNS\r\n",
    "v2 version": binary(0x11, 0x11, INET),
    "v2 command": binary(0x22, 0x11, INET),
    "v2 family": binary(0x21, 0x41, INET),
    "v2 transport": binary(0x21, 0x10, INET),
    "v2 short": binary(0x21, 0x11, INET[:-1]),
    "v2 short TCP6": binary(0x21, 0x21, INET),
    "v2 short Unix": binary(0x21, 0x31, INET),
    "v2 too long": binary(0x21, 0x11, INET + bytes(4096)),
    "v2 much too long": binary(0x20, 0, b"", length=65535),
    "v2 TLV past the end": binary(0x21, 0x11, INET + b"\x04\x00\x05abcd"),
    "v2 half a TLV": binary(0x21, 0x11, INET + b"\x04\x00"),
    "v2 wrong sum": summed(0x21, 0x11, INET)[:-1] + b"\0",
    "v2 sum of another": summed(0x21, 0x11, INET).replace(b"\x0a\x01", b"\x0a\x02"),
    "v2 short sum": binary(0x21, 0x11, INET + tlv(3, bytes(3))),
}
REST = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


def feed(data: bytes, cuts: list[int], mode: str = "auto", allowed: bool = True) -> Any:
    """As the socket shows it: what wasn't removed is there again, with more behind it."""
    header = Header(mode, allowed)
    at = 0
    for end in [*sorted(cuts), len(data)]:
        if header.done:
            break
        if end > at:
            taken = header.take(data[at:end])
            assert 0 <= taken <= end - at
            at += taken
    return header, data[at:]


def test_headers() -> None:
    for name, (data, expected) in TAKEN.items():
        every = list(range(len(data + REST)))
        for cuts in ([], every, [len(data)], *([cut] for cut in every[1:120])):
            header, rest = feed(data + REST, cuts)
            assert header.done, name
            assert header.environ == expected, name
            assert header.rest == b"", name
            assert rest == REST, f"{name}: not a byte past its end is taken"
        # And without its end it isn't one.
        assert not feed(data[:-1], every)[0].done, name


@settings(PROFILE)
@given(st.sampled_from(list(TAKEN.values())), st.lists(st.integers(1, 400), max_size=8))
def test_headers_split_anywhere(case: Any, cuts: list[int]) -> None:
    data, expected = case
    header, rest = feed(data + REST, [cut for cut in cuts if cut < len(data + REST)])
    assert (header.environ, rest) == (expected, REST)


def test_refused() -> None:
    for name, data in REFUSED.items():
        for cuts in ([], list(range(len(data)))):
            with pytest.raises(PeerError) as info:
                pytest.fail(f"{name} was taken: {feed(data + REST, cuts)[0].environ}")
            assert info.value.status == 400, name


def test_no_header() -> None:
    for data in (REST, b"P", b"PROPFIND / ", b"\r\nGET /", SIGNATURE[:11] + b"x"):
        for cuts in ([], list(range(len(data)))):
            header, rest = feed(data, cuts)
            assert header.done is (data != b"P")
            assert header.environ == {}
            assert header.rest + rest == data


@pytest.mark.parametrize("mode", ["v1", "v2", "auto"])
def test_modes_and_peers(mode: str) -> None:
    for name in ("v1 TCP4", "v2 TCP4"):
        data = TAKEN[name][0] + REST
        if mode in ("auto", name[:2]):
            assert feed(data, [], mode)[0].environ == SEEN_4
            with pytest.raises(PeerError) as info:
                feed(data[:16], [], mode, allowed=False)
            assert info.value.status == 403
        else:
            header, rest = feed(data, [], mode, allowed=False)
            assert (header.environ, rest) == ({}, data)


@settings(PROFILE, max_examples=300)
@given(
    st.sampled_from([b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11", b""]),
    st.binary(max_size=60),
    st.lists(st.integers(1, 70), max_size=4),
)
def test_no_bytes_break_it(start: bytes, more: bytes, cuts: list[int]) -> None:
    data = start + more
    outcomes = []
    for each in ([], [cut for cut in cuts if cut < len(data)]):
        try:
            header, rest = feed(data, each)
        except PeerError as exc:
            outcomes.append(exc.status)
        else:
            outcomes.append((header.done, header.environ, header.rest + rest if header.done else 0))
    assert outcomes[0] == outcomes[1]


def test_the_checksum() -> None:
    # RFC 3720, B.4, and the value that catalogues of checksums give.
    assert _crc32c(b"123456789") == 0xE3069283
    assert _crc32c(bytes(32)) == 0x8A9136AA


# Through a server.


async def tell(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    names = [*SEEN_4, "wsgi.url_scheme", "HTTP_X_FORWARDED_PROTO"]
    return [json.dumps({name: environ.get(name) for name in names}).encode()]


def exchange(
    loop_factory: Any, *pieces: bytes, half: bool = True, **config: Any
) -> tuple[Any, Any]:
    """Send pieces to a real server; returns the answers, and its log."""

    async def main() -> tuple[Any, Any]:
        loop = asyncio.get_running_loop()
        home = Home(loop, Threads(loop, limit=1))
        home.register()
        listening = socket.create_server(("127.0.0.1", 0))
        log = RecordingLog()
        server = Server(tell, Config(**{"proxy_protocol": "auto", **config}), home, log)
        server.listen([listening])
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.001)
        if half and pieces:
            writer.write_eof()
        async with asyncio.timeout(10):
            raw = await reader.read()
        writer.close()
        # A connection that never had a transport is counted as well.
        async with asyncio.timeout(10):
            while server._open or server._connecting:
                await asyncio.sleep(0.001)
        await server.drain(1)
        await home.aclose()
        return raw, log

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        raw, log = runner.run(main())
    return parse_answers(raw), log


KEPT = b"GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-Proto: https\r\n\r\n"


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize("name", ["v1 TCP4", "v2 TCP6", "v2 LOCAL"])
def test_served(loop_factory: Any, name: str, bytewise: bool) -> None:
    header, expected = TAKEN[name]
    data = header + KEPT + REST
    pieces = [data[i : i + 1] for i in range(len(data))] if bytewise else [data]
    answers, log = exchange(loop_factory, *pieces)
    first, second = (json.loads(answer.body) for answer in answers)
    # Also of the second request.
    for seen in (first, second):
        assert {name: seen[name] for name in expected} == expected
        if "REMOTE_ADDR" not in expected:
            assert seen["REMOTE_ADDR"] == "127.0.0.1"
            assert int(seen["REMOTE_PORT"]) > 0
            assert seen["PROXY_ADDR"] is None
    # Forwarding headers are the proxy's, which is the one that is trusted.
    assert first["wsgi.url_scheme"] == "https"
    assert log.accesses[0][2]["REMOTE_ADDR"] == first["REMOTE_ADDR"]


def test_the_client_of_a_proxy_is_not_trusted(loop_factory: Any) -> None:
    networks = (ipaddress.ip_network("10.0.0.0/8"),)
    answers, _ = exchange(loop_factory, TAKEN["v1 TCP4"][0] + KEPT + REST, trusted=networks)
    assert json.loads(answers[0].body)["wsgi.url_scheme"] == "http"


def test_served_without_a_header(loop_factory: Any) -> None:
    for data in (REST, b"\r\n" + REST, b"PROPFIND" + REST[3:]):
        for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
            # Whoever they are: they claim nothing.
            answers, _ = exchange(loop_factory, *pieces, proxies=())
            (answer,) = answers
            assert answer.status == 200
            assert json.loads(answer.body)["PROXY_PROTOCOL"] is None


@pytest.mark.parametrize(
    ("header", "status", "proxies"),
    [
        (TAKEN["v1 TCP4"][0], 403, ()),
        (TAKEN["v2 TCP4"][0], 403, ()),
        (REFUSED["v1 bare LF"], 400, None),
        (REFUSED["v2 wrong sum"], 400, None),
        (REFUSED["v2 version"], 400, None),
    ],
)
def test_what_is_refused_serves_nothing(
    loop_factory: Any, header: bytes, status: int, proxies: Any
) -> None:
    data = header + KEPT + REST
    for pieces in ([data], [data[i : i + 1] for i in range(len(data))]):
        answers, log = exchange(loop_factory, *pieces, proxies=proxies)
        assert [answer.status for answer in answers] == [status]
        assert answers[0].headers["connection"] == "close"
        assert len(log.accesses) == 1


def test_what_never_comes(loop_factory: Any) -> None:
    for piece, expected in ((b"", []), (b"PROX", [408]), (SIGNATURE + b"\x21\x11", [408])):
        pieces = [piece] if piece else []
        answers, _ = exchange(loop_factory, *pieces, half=False, head_timeout=0.3)
        assert [answer.status for answer in answers] == expected
    # And a client that ends in the middle of it.
    assert exchange(loop_factory, b"PROXY TCP4 10.")[0] == []


def test_a_drain_ends_those_that_say_nothing(loop_factory: Any) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        home = Home(loop, Threads(loop, limit=1))
        home.register()
        listening = socket.create_server(("127.0.0.1", 0))
        config = Config(proxy_protocol="auto", drain_grace=0.1)
        server = Server(tell, config, home, RecordingLog())
        server.listen([listening])
        silent, its_writer = await asyncio.open_connection(*listening.getsockname())
        _, half = await asyncio.open_connection(*listening.getsockname())
        half.write(b"PROXY TCP4")
        while len(server._connecting) < 2:
            await asyncio.sleep(0.001)
        drain = asyncio.create_task(server.drain(20))
        async with asyncio.timeout(5):
            assert await silent.read() == b""
            await drain
        half.close()
        its_writer.close()
        await home.aclose()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
