"""What the server is told, once, before the first connection."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Config:
    """Limits, deadlines and policy. Sizes are in bytes, times in seconds."""

    # gunicorn's limits and their defaults.
    limit_request_line: int = 4094
    limit_request_fields: int = 100
    limit_request_field_size: int = 8190
    # A connection is served no further request when this is 0.
    keepalive: float = 2.0
    connections: int = 1000
    # From accept (or from a head's first byte) to its last, whatever drips in
    # between. Apache's mod_reqtimeout gives 20 to 40 s.
    head_timeout: float = 20.0
    # Without a byte of the body; without a byte taken of an answer. nginx: 60 s each.
    body_timeout: float = 60.0
    # So many bytes of a body must come in each `body_timeout`, or its end. Apache's
    # mod_reqtimeout asks for 500 bytes a second.
    body_progress: int = 16384
    write_timeout: float = 60.0
    # How long an answer may still be made for a client that has sent EOF. It may
    # have closed half of the connection only, and nothing tells which.
    half_close_timeout: float = 1.0
    # Reading on after the last answer, so that a reset doesn't take it from the client:
    # until so long nothing came, and at most so long in all. nginx: 5 s and 30 s.
    linger_timeout: float = 2.0
    linger_total: float = 30.0
    # How long a connection that is new or was just used is kept while draining.
    drain_grace: float = 1.0
    # Of one request; None: no bound. waitress and Apache take 1 GiB, nginx 1 MiB.
    max_body: int | None = 100 << 20
    max_body_in_memory: int = 1 << 20
    # Of all request bodies of this process on disk; None: no bound.
    spool_quota: int | None = 1 << 30
    spool_dir: str | None = None
    sendfile: bool = True
    # Connections accepted each time that the listening socket is readable. Fewer
    # where other processes accept from the same socket.
    accept_batch: int = 64
    header_map: str = "drop"
    # Peers whose forwarding headers are believed; None: all.
    trusted: tuple[Network, ...] | None = (
        ipaddress.ip_network("127.0.0.1"),
        ipaddress.ip_network("::1"),
    )
    # v1, v2 or auto; empty: no header of the PROXY protocol is looked for.
    proxy_protocol: str = ""
    # Peers that may send one; None: all.
    proxies: tuple[Network, ...] | None = (
        ipaddress.ip_network("127.0.0.1"),
        ipaddress.ip_network("::1"),
    )
    secure_scheme_headers: Mapping[str, str] = field(
        default_factory=lambda: {
            "X-FORWARDED-PROTOCOL": "ssl",
            "X-FORWARDED-PROTO": "https",
            "X-FORWARDED-SSL": "on",
        }
    )
    forwarder_headers: frozenset[str] = frozenset({"SCRIPT_NAME", "PATH_INFO"})
    script_name: str = ""
    multiprocess: bool = False
    server_software: str = "greenroom"
    errors: TextIO | Any = sys.stderr

    @property
    def max_head(self) -> int:
        """The most bytes of a head that are waited for."""
        fields = self.limit_request_fields * (self.limit_request_field_size + 2)
        return self.limit_request_line + 2 + fields + 4

    def trusts(self, address: str) -> bool:
        """Whether the forwarding headers of the peer with this address are believed."""
        return _within(address, self.trusted)

    def takes_proxy_from(self, address: str) -> bool:
        """Whether the peer with this address may send a header of the PROXY protocol."""
        return _within(address, self.proxies)


def _within(address: str, networks: tuple[Network, ...] | None) -> bool:
    if networks is None:
        return True
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return any(ip in network for network in networks)
