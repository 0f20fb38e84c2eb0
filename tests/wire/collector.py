"""What tracing tools send to, and the other service of the traced site: a server on loopback.

with collector() as collected:
    ...  # a site with `collected.dsn`, `collected.otlp`, `collected.upstream`
    collected.wait(lambda: len(collected.transactions) == 10, seconds=20)
"""

from __future__ import annotations

import contextlib
import gzip
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Span:
    """A span of either tool. `parent` is empty where there is none."""

    name: str
    id: str
    parent: str
    trace: str
    kind: str = ""
    status: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)


class Collected:
    """All that came in."""

    def __init__(self, url: str, upstream: str) -> None:
        self.dsn = url.replace("http://", "http://key@") + "/1"
        self.otlp = url
        # Of another port: to its own Sentry's SDK sends no trace.
        self.upstream = upstream
        # Sentry's, as they came.
        self.transactions: list[dict[str, Any]] = []
        self.errors: list[dict[str, Any]] = []
        # OpenTelemetry's.
        self.spans: list[Span] = []
        # By the last part of the path: the headers of what asked the other service.
        self.asked: dict[str, dict[str, str]] = {}

    def wait(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until it is so, or for so long: what is missing will be seen."""
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.02)

    def envelope(self, body: bytes) -> None:
        _, _, rest = body.partition(b"\n")
        while rest:
            line, _, rest = rest.partition(b"\n")
            if not line:
                continue
            head = json.loads(line)
            length = head.get("length")
            if length is None:
                payload, _, rest = rest.partition(b"\n")
            else:
                payload, rest = rest[:length], rest[length:].removeprefix(b"\n")
            if head["type"] == "transaction":
                self.transactions.append(json.loads(payload))
            elif head["type"] == "event":
                self.errors.append(json.loads(payload))

    def export(self, body: bytes) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
            ExportTraceServiceRequest,
        )
        from opentelemetry.proto.trace.v1 import trace_pb2 as pb

        message = ExportTraceServiceRequest.FromString(body)
        for scope in (scope for each in message.resource_spans for scope in each.scope_spans):
            for span in scope.spans:
                self.spans.append(
                    Span(
                        span.name,
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.trace_id.hex(),
                        pb.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
                        pb.Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_"),
                        {each.key: _value(each.value) for each in span.attributes},
                        [event.name for event in span.events],
                    )
                )


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))


@contextlib.contextmanager
def collector() -> Iterator[Collected]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path == "/v1/traces":
                collected.export(body)
            else:
                collected.envelope(body)
            self.answer(b"{}")

        def do_GET(self) -> None:
            token = self.path.rpartition("/")[2]
            collected.asked[token] = {name.lower(): value for name, value in self.headers.items()}
            time.sleep(0.01)
            self.answer(token.encode())

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

        def handle_error(self, request: Any, address: Any) -> None:
            # The tools' clients leave without a word.
            if not isinstance(sys.exception(), ConnectionError):
                super().handle_error(request, address)

    servers = [Server(("127.0.0.1", 0), Handler) for _ in range(2)]
    collected = Collected(*(f"http://127.0.0.1:{each.server_port}" for each in servers))
    threads = [threading.Thread(target=each.serve_forever, args=(0.02,)) for each in servers]
    for thread in threads:
        thread.start()
    try:
        yield collected
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            thread.join(10)
            server.server_close()
