"""gunicorn's settings, on real gunicorns: what docs/worker.md says of each.

A test names those it is about by `pytest.mark.setting`; that none is without a test
is looked at in tests/unit/server/test_worker_docs.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from gunicorn.config import make_settings

from serving import Server, serve

APPS = Path(__file__).parent / "server_apps"
# Where uvloop can't be imported, asyncio's own loop serves.
ASYNCIO = "import sys\nsys.modules['uvloop'] = None\n"
CLOSE = "Connection: close\r\n"
V1 = b"PROXY TCP4 10.1.2.3 192.0.2.1 56324 443\r\n"
# Who may do what, told by the address that a client has on the loopback network.
ANYBODY, PROXY, FORWARDER = "127.0.0.1", "127.0.0.3", "127.0.0.2"


def run(app: str, **options: Any) -> Any:
    return serve(f"settings_apps:{app}", cwd=APPS, **options)


def read_all(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


def connect(server: Server, source: str = ANYBODY) -> socket.socket:
    return socket.create_connection(server.address, 20, (source, 0))


def status(raw: bytes) -> int:
    return int(raw.split(b" ", 2)[1])


def ask(
    server: Server, fields: str = "", *, path: str = "/", source: str = ANYBODY, ahead: bytes = b""
) -> bytes:
    with connect(server, source) as sock:
        sock.sendall(ahead + f"GET {path} HTTP/1.1\r\nHost: h\r\n{CLOSE}{fields}\r\n".encode())
        return read_all(sock)


def environ(raw: bytes) -> dict[str, Any]:
    assert status(raw) == 200, raw
    return json.loads(raw.partition(b"\r\n\r\n")[2])


class Statsd:
    """What arrives by UDP."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.sock.settimeout(20)
        self.address = "{}:{}".format(*self.sock.getsockname())
        self.came: list[str] = []

    def empty(self) -> None:
        """Make room: what comes to a full buffer is lost."""
        self.sock.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while self.sock.recv(4096):
                pass
        self.sock.settimeout(20)

    def wait_for(self, *patterns: str) -> None:
        for pattern in patterns:
            while not any(re.fullmatch(pattern, each) for each in self.came):
                self.came.append(self.sock.recv(4096).decode())


POLICY = """
limit_request_line = 200
limit_request_fields = 10
limit_request_field_size = 100
keepalive = 1
forwarded_allow_ips = "127.0.0.2"
secure_scheme_headers = {{"X-SECURE": "yes"}}
forwarder_headers = "SCRIPT_NAME,REMOTE_USER"
header_map = "refuse"
proxy_protocol = True
proxy_allow_ips = "127.0.0.3"
tmp_upload_dir = {spool!r}
accesslog = {access!r}
access_log_format = "log: %(h)s %(r)s %(s)s"
statsd_host = {statsd!r}
statsd_prefix = "site"
def pre_request(worker, req): worker.log.info("before %s %s", req.method, req.path)
def post_request(worker, req, environ, resp):
    worker.log.info("after %s %s", environ["PATH_INFO"], resp.status)
def post_worker_init(worker): worker.log.info("init %s", worker.wsgi.__name__)
def worker_exit(server, worker): worker.log.info("exit %s", worker.pid)
"""


@pytest.fixture(scope="module")
def policy(tmp_path_factory: Any) -> Iterator[Any]:
    """One server with a policy of every kind."""
    path = tmp_path_factory.mktemp("policy")
    statsd = Statsd()
    config = POLICY.format(spool=str(path), access=str(path / "access.log"), statsd=statsd.address)
    with run("tell", extra_config=config) as server:
        server.spool, server.statsd = path, statsd
        yield server
    statsd.sock.close()


@pytest.mark.setting("limit_request_line", "limit_request_fields", "limit_request_field_size")
def test_limits(policy: Server) -> None:
    fits = "/" + "a" * (200 - len("GET / HTTP/1.1"))
    assert status(ask(policy, path=fits)) == 200
    assert status(ask(policy, path=fits + "a")) == 414
    # Host and Connection are two of them.
    assert status(ask(policy, "X: a\r\n" * 8)) == 200
    assert status(ask(policy, "X: a\r\n" * 9)) == 431
    assert status(ask(policy, f"X: {'a' * (100 - 5)}\r\n")) == 200
    assert status(ask(policy, f"X: {'a' * (101 - 5)}\r\n")) == 431


@pytest.mark.setting("forwarded_allow_ips", "secure_scheme_headers")
def test_the_scheme_is_told_by_a_proxy(policy: Server) -> None:
    for source, fields, scheme in (
        (FORWARDER, "X-Secure: yes\r\n", "https"),
        (FORWARDER, "X-Secure: no\r\n", "http"),
        # The default's, which was replaced.
        (FORWARDER, "X-Forwarded-Proto: https\r\n", "http"),
        (ANYBODY, "X-Secure: yes\r\n", "http"),
    ):
        assert environ(ask(policy, fields, source=source))["wsgi.url_scheme"] == scheme


@pytest.mark.setting("forwarder_headers", "header_map")
def test_names_with_underscores(policy: Server) -> None:
    fields = "SCRIPT_NAME: /app\r\nREMOTE_USER: me\r\n"
    seen = environ(ask(policy, fields, path="/app/x", source=FORWARDER))
    assert seen["SCRIPT_NAME"] == "/app"
    assert seen["PATH_INFO"] == "/x"
    assert seen["HTTP_REMOTE_USER"] == "me"
    assert status(ask(policy, "REMOTE_USER: me\r\n")) == 400
    assert status(ask(policy, "PATH_INFO: /\r\n", source=FORWARDER)) == 400


@pytest.mark.setting("proxy_protocol", "proxy_allow_ips")
def test_the_proxy_protocol(policy: Server) -> None:
    seen = environ(ask(policy, ahead=V1, source=PROXY))
    assert (seen["REMOTE_ADDR"], seen["REMOTE_PORT"]) == ("10.1.2.3", "56324")
    assert (seen["PROXY_ADDR"], seen["PROXY_PORT"]) == ("192.0.2.1", "443")
    assert seen["PROXY_PROTOCOL"] == "TCP4"
    assert status(ask(policy, ahead=V1)) == 403
    seen = environ(ask(policy, source=PROXY))
    assert seen["REMOTE_ADDR"] == PROXY
    assert "PROXY_PROTOCOL" not in seen
    policy.wait_for(r"Invalid request from ip=127\.0\.0\.1: .* isn't in proxy_allow_ips")
    assert "log: 10.1.2.3 GET / HTTP/1.1 200" in (policy.spool / "access.log").read_text()


@pytest.mark.setting("keepalive")
def test_an_idle_connection_is_closed(policy: Server) -> None:
    with connect(policy) as sock:
        began = time.monotonic()
        sock.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert b"Connection: close" not in sock.recv(65536)
        assert sock.recv(1) == b""
        assert 0.9 < time.monotonic() - began < 10


@pytest.mark.setting("tmp_upload_dir")
def test_where_bodies_are_kept(policy: Server) -> None:
    answer = httpx.post(policy.url, content=b"x" * 2_000_000)
    assert answer.json()["spool"].startswith(f"{policy.spool}/")
    assert httpx.post(policy.url, content=b"x").json()["spool"] == ""
    assert os.listdir(policy.spool) == ["access.log"]


@pytest.mark.setting("accesslog", "access_log_format")
def test_the_access_log(policy: Server) -> None:
    ask(policy, path="/seen?q=1")
    ask(policy, "X_Y: no\r\n", path="/refused?q=2")
    with connect(policy) as sock:
        sock.sendall(b"\x16\x03\x01\r\n\r\n")
        read_all(sock)
    lines = (policy.spool / "access.log").read_text().splitlines()
    assert "log: 127.0.0.1 GET /seen?q=1 HTTP/1.1 200" in lines
    # What was refused is there as far as it was understood.
    assert "log: 127.0.0.1 GET /refused?q=2 HTTP/1.1 400" in lines
    assert "log: 127.0.0.1 - - HTTP/1.1 400" in lines
    policy.statsd.empty()
    with connect(policy) as sock:
        sock.sendall(b"GET /hang?20 HTTP/1.1\r\nHost: h\r\n\r\n")
        policy.wait_for("note: hanging")
    policy.wait_for("after /hang 499 ")
    policy.statsd.wait_for(r"site\.gunicorn\.request\.status\.499:1\|c\|@1\.0")
    lines = (policy.spool / "access.log").read_text().splitlines()
    assert "log: 127.0.0.1 GET /hang?20 HTTP/1.1 499" in lines
    assert "The access log failed" not in policy.log()


@pytest.mark.setting("statsd_host", "statsd_prefix")
def test_statsd(policy: Server) -> None:
    policy.statsd.empty()
    ask(policy)
    ask(policy, "X_Y: no\r\n")
    policy.statsd.wait_for(
        r"site\.gunicorn\.requests:1\|c\|@1\.0",
        r"site\.gunicorn\.request\.status\.200:1\|c\|@1\.0",
        r"site\.gunicorn\.request\.status\.400:1\|c\|@1\.0",
        r"site\.gunicorn\.request\.duration:\d+\.\d+\|ms",
        r"site\.gunicorn\.log\.warning:1\|c\|@1\.0",
    )


@pytest.mark.setting("pre_request", "post_request", "post_worker_init", "worker_exit")
def test_hooks() -> None:
    config = POLICY[POLICY.index("def pre_request") :].replace("{{", "{")
    config += (
        "def pre_request(worker, req):\n"
        "    worker.log.info('before %s %s', req.method, req.path)\n"
        "    if req.path == '/fail': raise RuntimeError('of the hook')\n"
    )
    with run("tell", extra_config=config) as server:
        server.wait_for(r"init tell(.|\n)*greenroom: threads")
        ask(server, path="/p")
        server.wait_for("before GET /p(.|\n)*after /p 200 OK")
        assert status(ask(server, path="/fail")) == 500
        server.wait_for("after /fail 500 Internal Server Error")
        worker = server.workers()[0]
        assert server.stop() == 0
        assert re.search(rf"Worker exiting(.|\n)*exit {worker}\n", server.log())


@pytest.mark.setting("threads")
def test_threads() -> None:
    with run("crowd", threads=3) as server:
        socks = [server.connect() for _ in range(8)]
        for sock in socks:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        most = max(int(read_all(sock).partition(b"\r\n\r\n")[2]) for sock in socks)
        for sock in socks:
            sock.close()
    assert most == 3


@pytest.mark.setting("max_requests_jitter")
def test_max_requests_with_jitter() -> None:
    # Else only many runs would tell.
    config = "import gunicorn.workers.base as base\nbase.randint = lambda least, most: most\n"
    config += "max_requests = 2\nmax_requests_jitter = 3\n"
    with run("tell", extra_config=config) as server:
        pids = [environ(ask(server))["pid"] for _ in range(5)]
        server.wait_for("greenroom: threads ", count=2)
        assert len(set(pids)) == 1
        assert environ(ask(server))["pid"] != pids[0]


@pytest.mark.setting("http_protocols", "worker_tmp_dir")
def test_the_other_place_for_bodies(tmp_path: Path) -> None:
    config = f"worker_tmp_dir = {str(tmp_path)!r}\n"
    if "http_protocols" in make_settings():
        config += "http_protocols = 'h1'\n"
    with run("tell", extra_config=config) as server:
        answer = httpx.post(server.url, content=b"x" * 2_000_000)
        assert answer.json()["spool"].startswith(f"{tmp_path}/")


# Sockets.


@pytest.mark.setting("reuse_port")
def test_each_process_has_a_socket_of_its_own() -> None:
    with socket.socket() as reserved:
        # Bound without listening: gunicorn's processes can have this port, nobody else.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        host, port = reserved.getsockname()
        config = f"bind = '{host}:{port}'\nreuse_port = True\n"
        with run("tell", workers=2, extra_config=config, ready=False) as server:
            server.wait_for("greenroom: threads ", count=2)
            server.address = (host, port)
            pids = set()
            # Which of them gets a connection is decided by a hash of its addresses.
            while len(pids) < 2:
                pids.add(environ(ask(server))["pid"])
            assert server.stop() == 0


@pytest.mark.setting("bind", "backlog", "preload_app")
def test_several_sockets(tmp_path: Path) -> None:
    binds = ["127.0.0.1:0", f"unix:{tmp_path}/socket"]
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        binds.append("[::1]:0")
    config = f"bind = {binds!r}\nbacklog = 77\npreload_app = True\n"
    config += "proxy_protocol = True\nproxy_allow_ips = ''\n"
    with run("tell", extra_config=config, ready=False) as server:
        server.wait_for("greenroom: threads ")
        names = server.wait_for(r"Listening at: (.*) \(")[1].split(",")
        assert len(names) == len(binds)
        for name in names:
            kind, _, rest = name.partition(":")
            if kind == "unix":
                sock = socket.socket(socket.AF_UNIX)
                sock.connect(rest)
                # Who can open the socket may say who its client is.
                sock.sendall(V1)
                expected = ("10.1.2.3", "h", "80")
            else:
                host, _, port = rest[2:].rpartition(":")
                host = host.strip("[]")
                sock = socket.create_connection((host, int(port)), 20)
                expected = (host, host, port)
            with sock:
                sock.sendall(b"GET /backlogs HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
                seen = environ(read_all(sock))
            names_seen = seen["REMOTE_ADDR"], seen["SERVER_NAME"], seen["SERVER_PORT"]
            assert names_seen == expected
            assert set(seen["backlogs"]) == {77}
            assert seen["imported_in"] == server.pid != seen["pid"]
        assert server.stop() == 0
    assert not (tmp_path / "socket").exists()


@pytest.mark.setting("bind")
def test_sockets_of_systemd(tmp_path: Path) -> None:
    """LISTEN_FDS and LISTEN_PID, as systemd hands them over."""
    listening = [socket.create_server(("127.0.0.1", 0))]
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(f"{tmp_path}/socket")
    unix.listen()
    listening.append(unix)
    launch = (
        "import fcntl, os, sys\n"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='2')\n"
        # Out of the way of 3 and 4 first: a dup onto itself would stay closed on exec.
        "fds = [fcntl.fcntl(int(each), fcntl.F_DUPFD, 10) for each in sys.argv[1:3]]\n"
        "[os.dup2(fd, 3 + n) for n, fd in enumerate(fds)]\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'gunicorn', *sys.argv[3:]])\n"
    )
    fds = [os.dup(sock.fileno()) for sock in listening]
    command = [sys.executable, "-c", launch, *map(str, fds), "-k", "greenroom.Worker"]
    process = subprocess.Popen(
        [*command, "settings_apps:tell"],
        cwd=APPS,
        pass_fds=fds,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    for fd in fds:
        os.close(fd)
    server = Server(process)
    try:
        server.wait_for("greenroom: threads ")
        server.address = listening[0].getsockname()
        assert environ(ask(server))["REMOTE_ADDR"] == "127.0.0.1"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(f"{tmp_path}/socket")
            sock.sendall(b"GET / HTTP/1.1\r\nHost: site\r\nConnection: close\r\n\r\n")
            assert environ(read_all(sock))["SERVER_NAME"] == "site"
        assert server.stop() == 0
    finally:
        server._kill()
        for each in listening:
            each.close()


# TLS.


class Certificates:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.authority = trustme.CA()
        self.write("server", self.authority.issue_cert("127.0.0.1"))
        self.write("client", self.authority.issue_cert("client@example.org"))
        self.write("stranger", trustme.CA().issue_cert("stranger@example.org"))
        self.authority.cert_pem.write_to_path(path / "ca.pem")

    def write(self, name: str, leaf: Any) -> None:
        leaf.private_key_and_cert_chain_pem.write_to_path(self.path / f"{name}.pem")

    def client(self, name: str | None = "client") -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.path / "ca.pem"))
        if name is not None:
            context.load_cert_chain(self.path / f"{name}.pem")
        return context


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: Any) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


CIPHER = "ECDHE-ECDSA-AES128-GCM-SHA256"


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def tls(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[Server]:
    path = certificates.path
    config = (ASYNCIO if request.param == "asyncio" else "") + (
        f"certfile = {str(path / 'server.pem')!r}\nkeyfile = {str(path / 'server.pem')!r}\n"
        f"ca_certs = {str(path / 'ca.pem')!r}\ncert_reqs = 2\nciphers = {CIPHER!r}\n"
        "do_handshake_on_connect = True\nproxy_protocol = True\n"
        "def ssl_context(conf, default):\n"
        "    context = default()\n"
        "    context.set_alpn_protocols(['h2', 'http/1.1'])\n"
        "    context.sni_callback = lambda sock, name, _: print('note: name', name, flush=True)\n"
        "    return context\n"
    )
    with run("tell", extra_config=config) as server:
        server.wait_for(f"loop {request.param}")
        yield server


def over_tls(server: Server, context: ssl.SSLContext, ahead: bytes = b"") -> ssl.SSLSocket:
    sock = server.connect()
    try:
        sock.sendall(ahead)
        return context.wrap_socket(sock, server_hostname="127.0.0.1")
    except BaseException:
        sock.close()
        raise


def get_over_tls(sock: ssl.SSLSocket) -> dict[str, Any]:
    sock.sendall(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    return environ(read_all(sock))


@pytest.mark.setting("certfile", "keyfile", "ciphers", "do_handshake_on_connect", "ssl_context")
def test_tls(tls: Server, certificates: Certificates) -> None:
    context = certificates.client()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    # A client that offers both gets what is spoken here.
    context.set_alpn_protocols(["h2", "http/1.1"])
    with over_tls(tls, context) as sock:
        assert sock.selected_alpn_protocol() == "http/1.1"
        assert sock.cipher()[0] == CIPHER
        seen = get_over_tls(sock)
        assert seen["wsgi.url_scheme"] == "https"
    context = certificates.client()
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    with tls.connect() as plain, context.wrap_socket(plain, server_hostname="site.test") as sock:
        assert sock.selected_alpn_protocol() is None
        get_over_tls(sock)
    tls.wait_for("note: name site.test")


@pytest.mark.setting("ca_certs", "cert_reqs")
def test_certificates_of_clients(tls: Server, certificates: Certificates) -> None:
    with over_tls(tls, certificates.client()) as sock:
        get_over_tls(sock)
    for name in (None, "stranger"):
        # With TLS 1.3 a client learns of it when it reads.
        raw = b""
        with (
            contextlib.suppress(ssl.SSLError, ConnectionError),
            over_tls(tls, certificates.client(name)) as sock,
        ):
            sock.sendall(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            raw = read_all(sock)
        assert raw == b""


@pytest.mark.setting("proxy_protocol")
def test_the_proxy_protocol_ahead_of_tls(tls: Server, certificates: Certificates) -> None:
    with over_tls(tls, certificates.client(), V1) as sock:
        seen = get_over_tls(sock)
    assert (seen["REMOTE_ADDR"], seen["wsgi.url_scheme"]) == ("10.1.2.3", "https")
    # In one segment with the handshake's first bytes, and in two pieces.
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = certificates.client().wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    with tls.connect() as sock:
        sock.sendall(V1[:20])
        time.sleep(0.05)
        sock.sendall(V1[20:] + hello)
        answer = sock.recv(65536)
        # A handshake record; an alert would be 0x15.
        assert answer[:1] == b"\x16"
    for wrong, more in ((b"PROXY what\r\n", b""), (b"PROX", hello)):
        with tls.connect() as sock:
            sock.sendall(wrong)
            time.sleep(0.1)
            with contextlib.suppress(ConnectionError):
                sock.sendall(more)
                assert sock.recv(100) == b""
    tls.wait_for("Invalid request from ip=127.0.0.1: malformed PROXY line")
    tls.wait_for("Invalid request from ip=127.0.0.1: neither a PROXY header nor TLS")


@pytest.mark.parametrize("how", ["goodbye", "shutdown"])
def test_over_tls_half_a_close_is_a_disconnect(
    tls: Server, certificates: Certificates, how: str
) -> None:
    before = tls.log().count("note: cancelled")
    with over_tls(tls, certificates.client()) as sock:
        sock.sendall(b"GET /hang?20 HTTP/1.1\r\nHost: h\r\n\r\n")
        tls.wait_for("note: hanging", count=before + 1)
        if how == "goodbye":
            # close_notify, and the answer to it.
            sock.unwrap().close()
        else:
            sock.shutdown(socket.SHUT_WR)
        tls.wait_for("note: cancelled", count=before + 1, timeout=10)


def test_a_refused_upload_finds_its_answer_over_tls(
    tls: Server, certificates: Certificates
) -> None:
    with over_tls(tls, certificates.client()) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\n")
        for _ in range(100):
            sock.sendall(b"x" * 100_000)
        assert sock.recv(65536).startswith(b"HTTP/1.1 413 ")


# Half-closed, over plain TCP.


@pytest.mark.parametrize("loop", ["", ASYNCIO], ids=["uvloop", "asyncio"])
def test_half_closed(loop: str) -> None:
    with run("tell", extra_config=loop) as server:
        for seconds in ("0.2", "20"):
            with server.connect() as sock:
                sock.sendall(f"GET /hang?{seconds} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
                began = time.monotonic()
                sock.shutdown(socket.SHUT_WR)
                raw = read_all(sock)
                took = time.monotonic() - began
            if seconds == "0.2":
                assert environ(raw)["QUERY_STRING"] == "0.2"
            else:
                assert raw == b""
                assert 0.9 < took < 10
        server.wait_for("note: cancelled")
        # After several requests, the last of which is answered too.
        with server.connect() as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" * 3)
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock).count(b"HTTP/1.1 200 OK") == 3


# The access log, beside gunicorn's own worker.

ATOMS = [*"hlutrsmUqHbBfaTDMLp"]
NAMED = [
    *("{x-sent}i", "{cookie}i", "{x-absent}i", "{X-SENT}i"),
    *("{x-kind}o", "{content-type}o", "{content-length}o", "{x-absent}o"),
    *("{request_method}e", "{raw_uri}e", "{wsgi.url_scheme}e", "{server_protocol}e", "{absent}e"),
]
FORMAT = "\t".join(f"{atom}=%({atom})s" for atom in [*ATOMS, *NAMED])
# What can't be the same; and what each must look like.
OWN = {
    "t": r"\[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]",
    "T": r"\d",
    "D": r"\d+",
    "M": r"\d+",
    "L": r"\d\.\d{6}",
    "p": r"<\d+>",
}
BASIC = "Authorization: Basic dXNlcjpzZWNyZXQ=\r\n"
SENT = (
    "X-Sent: a b\r\nX-Sent: c\r\nCookie: k=v\r\nReferer: http://r/?\r\nUser-Agent: agent/1 (x)\r\n"
)
REQUESTS = {
    "plain": ("GET", "/plain", BASIC + SENT, b""),
    "query": ("GET", "/a%20b?c=%20d", SENT, b""),
    "post": ("POST", "/post", "Content-Length: 5\r\n", b"hello"),
    "head": ("HEAD", "/plain", "", b""),
    "head of a stream": ("HEAD", "/stream", "", b""),
    "none": ("GET", "/none", "", b""),
    "stream": ("GET", "/stream", "", b""),
    "long": ("GET", "/long", "", b""),
    "missing": ("GET", "/missing", "", b""),
    "file": ("GET", "/file", "", b""),
    "head of a file": ("HEAD", "/file", "", b""),
    "quoted": ("GET", '/"x', 'User-Agent: "\\\r\n', b""),
}


def lines_of(worker: str, path: Path) -> dict[str, dict[str, str]]:
    """The lines that a worker writes for the requests, by the name of each."""
    log = path / f"{worker}.log"
    config = (
        f"worker_class = {worker!r}\naccesslog = {str(log)!r}\n"
        f"access_log_format = {FORMAT!r}\nthreads = 2\n"
    )
    found = {}
    with run("logged", extra_config=config, ready=False) as server:
        host, _, port = server.wait_for(r"Listening at: http://(\S+)")[1].rpartition(":")
        server.address = (host, int(port))
        for name, (method, target, fields, body) in REQUESTS.items():
            before = len(log.read_text()) if log.exists() else 0
            with connect(server) as sock:
                head = f"{method} {target} HTTP/1.1\r\nHost: h\r\n{CLOSE}{fields}\r\n"
                sock.sendall(head.encode() + body)
                read_all(sock)
            deadline = time.monotonic() + 10
            while not (line := log.read_text()[before:]).endswith("\n"):
                assert time.monotonic() < deadline, f"{worker} wrote nothing for {name}"
                time.sleep(0.01)
            found[name] = dict(each.split("=", 1) for each in line.rstrip("\n").split("\t"))
    return found


@pytest.mark.setting("access_log_format")
def test_the_access_log_is_that_of_gthread(tmp_path: Path) -> None:
    ours, theirs = (lines_of(worker, tmp_path) for worker in ("greenroom.Worker", "gthread"))
    size = str((APPS / "settings_apps.py").stat().st_size)
    for name in REQUESTS:
        for atom, pattern in OWN.items():
            assert re.fullmatch(pattern, ours[name].pop(atom)), (name, atom)
            assert re.fullmatch(pattern, theirs[name].pop(atom)), (name, atom)
        if name == "file":
            # gunicorn doesn't count what sendfile(2) sent.
            assert (ours[name].pop("b"), ours[name].pop("B")) == (size, size)
            theirs[name].pop("b"), theirs[name].pop("B")
        elif name.startswith("head"):
            # Older gunicorns count what they then don't send.
            assert (ours[name].pop("b"), ours[name].pop("B")) == ("0", "0")
            theirs[name].pop("b"), theirs[name].pop("B")
        assert ours[name] == theirs[name], name
    # And it says something.
    assert ours["plain"]["u"] == "user"
    assert ours["plain"]["{x-sent}i"] == "c"
    assert ours["stream"]["B"] == "1010"
    assert ours["query"]["{absent}e"] == "-"
