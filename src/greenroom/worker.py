"""gunicorn's worker: its settings and signals, handed to the server.

gunicorn's arbiter does processes, sockets and reloading. Every setting that a web
worker is expected to honour is honoured, or refused at start by name: nothing is
silently ignored.

Signals: TERM drains (`graceful_timeout`); QUIT and INT end at once, with
`worker_int`, a drain that is under way too; USR1 reopens the logs; WINCH is ignored;
ABRT, sent when the loop is stuck, is the only one not handled by the loop.

On ABRT the stacks are logged and SystemExit is raised in what blocks the loop, as
gunicorn has it. If that gives the loop free, the other requests are answered, as
with any SystemExit; if it doesn't, the arbiter kills about a second later. Python
runs the handler between two of its own instructions: for C code that doesn't
return there is no stack but the watchdog's (if it gave up the interpreter lock) or
faulthandler's. `faulthandler.register` refuses ABRT; `enable`d after our handler
was set, it writes, then raises the signal again for us.

What fails to start ends with `Arbiter.WORKER_BOOT_ERROR`, whatever the cause: with
any other status the arbiter would start this worker again for ever.

The module is long because of its tables: a third of it is what becomes of each of
gunicorn's settings.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import ipaddress
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

from gunicorn import SERVER
from gunicorn.arbiter import Arbiter
from gunicorn.config import PreRequest
from gunicorn.glogging import Logger
from gunicorn.http.wsgi import WSGIErrorsWrapper
from gunicorn.util import parse_address
from gunicorn.workers import base

from .errors import GreenroomError
from .loops import Home
from .server import Config, Hooks, Server, stacks
from .server.config import Network
from .server.head import Environ, Request
from .server.probes import Group, Probes
from .server.response import Response
from .server.watchdog import Watchdog
from .shutdown import shutting_down
from .threads import Threads

# What this worker makes of gunicorn's settings.
HONOURED = {
    "threads": "how many threads run synchronous code at a time; those that wait for a "
    "coroutine aren't counted",
    "worker_connections": "the most connections of a process; later clients wait in the backlog",
    "max_requests": "the worker drains after so many answers",
    "max_requests_jitter": "added to `max_requests`, at random",
    "timeout": "a loop that is stuck for so long is aborted, whatever single requests take",
    "graceful_timeout": "the time for all that a drain does",
    "keepalive": "seconds that an idle connection is kept; 0 closes after each answer",
    "limit_request_line": "414 past it; 0 stands for 1 MiB",
    "limit_request_fields": "431 past it",
    "limit_request_field_size": "431 past it; 0 stands for the default",
    "forwarded_allow_ips": "whose forwarding fields are believed; clients of a Unix socket are",
    "secure_scheme_headers": "what sets `wsgi.url_scheme` to https, from those",
    "forwarder_headers": "names with `_` that are taken from those",
    "header_map": "what becomes of other names with `_`: dropped, refused, or mixed up",
    "proxy_protocol": "off, v1, v2, auto: an optional header ahead of the first request, and "
    "ahead of a TLS handshake; its addresses hold for all requests of the connection",
    "proxy_allow_ips": "who may send that header; others get 403",
    "sendfile": "files go out by `sendfile(2)`, but not over TLS",
    "tmp_upload_dir": "where bodies over 1 MiB are kept while their request lasts",
    "worker_tmp_dir": "gunicorn's heartbeat; and bodies, without `tmp_upload_dir`",
    "certfile": "TLS is done on the loop",
    "keyfile": "see `certfile`",
    "ca_certs": "see `certfile`",
    "cert_reqs": "see `certfile`",
    "ciphers": "see `certfile`",
    "do_handshake_on_connect": "the handshake always comes first, and has the time of a head",
    "ssl_context": "the hook is called in each worker; ALPN offers http/1.1 whatever it returns",
    "pre_request": "called on the loop: it must not block; an error is answered with 500",
    "post_request": "called on the loop once the answer was handed to the socket, for every "
    "request that reached the application",
    "post_worker_init": "called before the loop runs",
    "worker_int": "called on the loop",
    "worker_abort": "called when the loop was stuck, once the stacks were logged",
    "worker_exit": "called when the loop has ended",
    "accesslog": "one line per request, those that were refused too; 499 stands for no answer",
    "access_log_format": "all atoms; `b` and `B` count the bytes of files too",
    "statsd_host": "as under gunicorn's own workers",
    "reload": "the worker drains and is started again",
    "http_protocols": "h1 only: h2 and h3 are refused",
}

# What it doesn't do. A setting that differs from its default is refused.
REFUSED = {
    "protocol": "only HTTP is understood",
    "uwsgi_allow_ips": "only HTTP is understood",
    "http2_cleartext": "HTTP/2 is not understood",
    "http2_max_concurrent_streams": "HTTP/2 is not understood",
    "http2_initial_window_size": "HTTP/2 is not understood",
    "http2_max_frame_size": "HTTP/2 is not understood",
    "http2_max_header_list_size": "HTTP/2 is not understood",
    "http_parser": "the parser is httptools",
    "asgi_loop": "the loop is uvloop's, or asyncio's where uvloop can't be imported",
    "asgi_lifespan": "what lasts as long as the process is begun by coroutine_wsgi_startup",
    "asgi_disconnect_grace_period": "a request whose client has gone is cancelled at once",
    "websocket_max_message_size": "WebSockets are not understood",
    "permit_obsolete_folding": "folded header lines are always refused",
    "strip_header_spaces": "spaces before the colon are always refused",
    "permit_unconventional_http_method": "the parser takes a fixed list of methods",
    "permit_unconventional_http_version": "versions are 1.0 and 1.1",
    "casefold_http_method": "the parser refuses methods in lower case",
    "ssl_version": "gunicorn itself ignores it: use the ssl_context hook",
    "suppress_ragged_eofs": "a TLS connection that ends without a goodbye has ended",
    "root_path": "set SCRIPT_NAME in the environment",
}
# What is gunicorn's own business: processes, sockets, logs, the loading of the application.
GUNICORNS = frozenset(
    """
    backlog bind capture_output chdir check_config child_exit config control_socket
    control_socket_disable control_socket_mode daemon default_proc_name dirty_apps
    dirty_graceful_timeout dirty_post_fork dirty_threads dirty_timeout dirty_worker_exit
    dirty_worker_init dirty_workers disable_redirect_access_to_syslog dogstatsd_tags
    enable_backlog_metric enable_stdio_inheritance errorlog group initgroups logconfig
    logconfig_dict logconfig_json logger_class loglevel nworkers_changed on_dirty_starting
    on_exit on_reload on_starting paste pidfile post_fork pre_exec pre_fork preload_app
    print_config proc_name pythonpath raw_env raw_paste_global_conf reload_engine
    reload_extra_files reuse_port spew statsd_prefix syslog syslog_addr syslog_facility
    syslog_prefix umask user when_ready worker_class workers wsgi_app
    """.split()  # noqa: SIM905
)
# In `coroutine_wsgi_options`: of the threads, and of the server.
_OF_THREADS = ("max_parked", "queue_timeout")
_OF_SERVER = ("spool_quota", "max_body")
_OPTIONS = (*_OF_THREADS, *_OF_SERVER, "stall_threshold", "probes")
# Seconds that the loop may not turn until that is logged.
_STALL_THRESHOLD = 0.1

# The share of the time of grace (two seconds at most) that is kept for cancelled
# requests and for the loop to end: when all of it is over, the arbiter kills.
_CLEAN_UP = 0.2
# After QUIT, seconds for the lifespan to end.
_HURRIED = 0.5


class SettingError(GreenroomError, RuntimeError):
    """A setting of gunicorn's can't be honoured; the message names it."""


class Worker(base.Worker):  # type: ignore[misc]
    """``worker_class = "greenroom.Worker"``"""

    # Made by the master, for all workers.
    group: Group | None = None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.server: Server | None = None
        self.home: Home | None = None
        self.probes: Probes | None = None
        self.watchdog: Watchdog | None = None
        self._main_task: asyncio.Task[int | None] | None = None
        self._aborted = False
        self._drains = False
        self._hurry = False
        if Worker.group is None:
            Worker.group = Group(self.cfg.worker_tmp_dir)
        Worker.group.expect(self.age)

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Refuse what can't be honoured. Newer gunicorns call this in the master."""
        _refuse_gevent()
        _refuse_settings(cfg)
        for name in _unknown_settings(cfg):
            log.warning(
                "greenroom.Worker doesn't know the setting %s: it may have no effect.", name
            )

    def init_process(self) -> None:
        """Make the loop, then let gunicorn set up signals, load the application and run."""
        # At once: up to here the handlers are the master's, which only take notes.
        self.init_signals()
        if self.group is not None:
            self.group.join(self.age)
        try:
            # Once more: what is loaded after the fork may have patched this process.
            _refuse_gevent()
            _refuse_settings(self.cfg)
        except SettingError as exc:
            self._cannot_boot(str(exc))
        self.loop_name, self.loop = _new_loop()
        asyncio.set_event_loop(self.loop)
        super().init_process()

    def init_signals(self) -> None:
        """While the worker boots: what comes is kept, and obeyed when the loop runs."""
        wants_faults = os.environ.get("PYTHONFAULTHANDLER") or "faulthandler" in sys._xoptions
        if wants_faults:
            # Else it would give ABRT back to whom it was before it was enabled.
            faulthandler.disable()
        for each in self.SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, self.handle_exit)
        signal.signal(signal.SIGQUIT, self.handle_quit)
        signal.signal(signal.SIGINT, self.handle_quit)
        signal.signal(signal.SIGUSR1, self.handle_usr1)
        signal.signal(signal.SIGWINCH, self.handle_winch)
        signal.signal(signal.SIGABRT, self.handle_abort)
        for each in (signal.SIGTERM, signal.SIGUSR1):
            signal.siginterrupt(each, False)
        if wants_faults:
            # Its handler of ABRT was replaced by ours; now it comes before that.
            faulthandler.enable()

    def _signals_to_loop(self) -> None:
        """On the running loop: uvloop loses a signal that came before it ran."""
        add = self.loop.add_signal_handler
        add(signal.SIGTERM, self._stop)
        add(signal.SIGQUIT, self._quit)
        add(signal.SIGINT, self._quit)
        add(signal.SIGUSR1, self.log.reopen_files)
        add(signal.SIGWINCH, self.log.debug, "worker: SIGWINCH ignored.")
        for each in (signal.SIGTERM, signal.SIGUSR1):
            signal.siginterrupt(each, False)

    def handle_abort(self, sig: int, frame: Any) -> NoReturn:
        """The arbiter missed our heartbeat."""
        server = self.server
        self._aborted = True
        try:
            if server is None:
                found = stacks.places(frame, Worker.init_process.__code__)
                self.log.error("Aborted: the worker hung while booting, in\n%s", stacks.text(found))
            else:
                # Said already.
                server.exit_code = 1
                seen = stacks.autopsy(self.loop, server.exchanges, frame, Worker.run.__code__)
                self.log.error("Aborted: the event loop was stuck. %s", seen)
            super().handle_abort(sig, frame)
        except Exception:
            self.log.exception("An error while the worker was aborted")
        # gunicorn's own exits too, unless the hook failed.
        sys.exit(1)

    def run(self) -> None:
        """Serve until told to stop; exit with the application's status, if it has one."""
        loop = self.loop
        main = self._main_task = loop.create_task(self._main())
        main.add_done_callback(lambda _: loop.stop())
        while not main.done():
            try:
                loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as exc:
                # Of a task that an application made, or of our handler of ABRT.
                if self.server is None:
                    if self._aborted:
                        # It hung while booting: the next one may not.
                        raise
                    self._cannot_boot(f"{exc!r} while starting")
                self.server.exit(exc.code if isinstance(exc, SystemExit) else 1)
        try:
            code = main.result()
        finally:
            self._close_loop()
        if code is not None:
            sys.exit(code)

    # On the loop.

    async def _main(self) -> int | None:
        cfg = self.cfg
        self._signals_to_loop()
        self.loop.add_reader(self.PIPE[0], self._on_pipe)
        heartbeat = self.loop.create_task(self._beat())
        ends: float | None = None
        clean_up = min(2.0, _CLEAN_UP * cfg.graceful_timeout)
        try:
            try:
                server = await self._start()
            except asyncio.CancelledError:
                return None  # TERM while starting
            except (Exception, SystemExit) as exc:
                self.booted = False
                self.log.error("The worker can't start: %s", exc, exc_info=exc)
                return int(Arbiter.WORKER_BOOT_ERROR)
            await server.stopping.wait()
            self._begin_drain()
            ends = self.loop.time() + cfg.graceful_timeout
            await server.drain(cfg.graceful_timeout - clean_up, clean_up / 2)
            if server.hurry:
                ends = min(ends, self.loop.time() + clean_up / 2)
            await self._threads_end(0.5 * (ends - self.loop.time()))
            return server.exit_code
        finally:
            self._begin_drain()
            now = self.loop.time()
            # Some of it is kept for the end of the process.
            await self._home_ends(0.8 * (clean_up if ends is None else ends - now))
            if self.probes is not None:
                await self.probes.aclose()
            if self.watchdog is not None:
                self.watchdog.stop()
            heartbeat.cancel()

    def _begin_drain(self) -> None:
        """Whoever wants to know is told; calling it again does nothing."""
        self.alive = False
        shutting_down().set()
        if self._drains:
            return
        self._drains = True
        if self.group is not None:
            self.group.leave()
        if self.probes is not None:
            self.probes.drain()

    async def _threads_end(self, timeout: float) -> None:
        """Wait for what threads do after the answers: `close()`, mostly."""
        assert self.home is not None
        threads = self.home.threads
        ends = self.loop.time() + timeout
        while threads.busy:
            left = ends - self.loop.time()
            if left <= 0 or self._hurry:
                self.log.warning("Abandoned: synchronous code that still runs on threads.")
                return
            await asyncio.sleep(min(0.02, left))

    async def _home_ends(self, timeout: float) -> None:
        """Leave the lifespan, and all else that lasts as long as the process."""
        if self.home is None:
            return
        closing = self.loop.create_task(self.home.aclose())
        ends = self.loop.time() + max(0.1, timeout)
        while not closing.done() and (left := ends - self.loop.time()) > 0:
            # Not wait_for(): it would wait until a cancellation is obeyed.
            await asyncio.wait([closing], timeout=min(0.1, left))
            if self._hurry:
                ends = min(ends, self.loop.time() + _HURRIED)
        if not closing.done():
            self.log.warning("Abandoned: the end of what lasts as long as the process.")
        elif not closing.cancelled() and (error := closing.exception()) is not None:
            self.log.error("Error while closing what lasts as long as the process", exc_info=error)

    async def _start(self) -> Server:
        cfg = self.cfg
        app = self.wsgi
        options = _options(app)
        probes = options.get("probes")
        sockets, probed = _sockets(self.sockets, probes)
        threads = Threads(
            self.loop,
            limit=cfg.threads,
            **{name: options[name] for name in _OF_THREADS if name in options},
        )
        self.home = Home(self.loop, threads)
        self.home.register()
        context = _ssl_context(cfg)
        if not self.alive:
            raise asyncio.CancelledError
        startup = getattr(app, "coroutine_wsgi_startup", None)
        if startup is not None:
            started = await startup()
            if isinstance(started, str):
                self.log.info("%s", started)
        server = Server(
            app,
            _config(cfg, options),
            self.home,
            self.log,
            self._hooks(),
            context,
        )
        if not self.alive:
            raise asyncio.CancelledError
        server.listen(sockets)
        self.server = server
        if probed is not None:
            self.probes = Probes(self.home, self.log, self._others_serve, SERVER)
            self.probes.listen(probed)
        threshold = options.get("stall_threshold", _STALL_THRESHOLD)
        if threshold:
            root = Worker.run.__code__
            self.watchdog = Watchdog(self.loop, threshold, self.log, server.current, root)
            self.watchdog.start()
        self.log.info(
            "greenroom: threads %d, at most %d parked, connections %d, loop %s",
            threads.limit,
            threads.max_parked,
            cfg.worker_connections,
            self.loop_name,
        )
        return server

    async def _beat(self) -> None:
        while True:
            self.notify()
            if os.getppid() != self.ppid and self.alive:
                self.log.info("Parent changed, shutting down: %s", self)
                self._stop()
            await asyncio.sleep(1.0)

    def _stop(self) -> None:
        self.alive = False
        if self.server is not None:
            self.server.stop()
        elif self._main_task is not None:
            self._main_task.cancel()

    def _quit(self) -> None:
        self._hurry = True
        if self.server is not None:
            self.server.hurry = True
        self._stop()
        try:
            self.cfg.worker_int(self)
        except Exception:
            self.log.exception("Exception in worker_int hook")

    def _others_serve(self) -> bool:
        return self.group is not None and self.group.others()

    def _on_pipe(self) -> None:
        """The reloader saw a change, on its thread."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.PIPE[0], 4096)
        if not self.alive:
            self._stop()

    def _tick(self) -> None:
        if not self.alive:
            self._stop()

    def _hooks(self) -> Hooks:
        # Read once: `cfg` looks every setting up.
        pre_request, post_request = self.cfg.pre_request, self.cfg.post_request

        def after(request: Request, environ: Environ, response: Response) -> None:
            self.nr += 1
            if self.nr >= self.max_requests and self.alive:
                self.log.info("Autorestarting worker after current request.")
                self._stop()
            post_request(self, request, environ, response)

        # gunicorn's own hook writes a line for debugging; it takes a microsecond to drop it.
        silent = pre_request is PreRequest.default and not _logs_debug(self.log)
        return Hooks(
            before=_nothing if silent else partial(pre_request, self),
            after=after,
            tick=self._tick,
            accesses=_logs_accesses(self.log),
        )

    # The end.

    def _cannot_boot(self, reason: str) -> NoReturn:
        self.booted = False
        self.log.error("The worker can't start: %s", reason)
        sys.exit(Arbiter.WORKER_BOOT_ERROR)

    def _close_loop(self) -> None:
        loop = self.loop
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        with contextlib.suppress(SystemExit):
            if tasks:
                loop.run_until_complete(asyncio.wait(tasks, timeout=0.1))
            loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _new_loop() -> tuple[str, asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return "asyncio", asyncio.new_event_loop()
    return "uvloop", uvloop.new_event_loop()


def _refuse_gevent() -> None:
    monkey = sys.modules.get("gevent.monkey") if "gevent" in sys.modules else None
    if monkey is None:
        return
    for module in ("socket", "threading", "thread", "select", "ssl"):
        if monkey.is_module_patched(module):
            raise SettingError(
                f"gevent has monkey-patched {module!r} in this process: an event loop of "
                "asyncio can't work in it. Remove the call of gevent.monkey.patch_all() (look "
                "in gunicorn.conf.py and wsgi.py), or use gunicorn's own gevent worker."
            )


def _refuse_settings(cfg: Any) -> None:
    for name, reason in REFUSED.items():
        setting = cfg.settings.get(name)
        if setting is not None and setting.get() != type(setting)().get():
            raise SettingError(
                f"greenroom.Worker can't honour the setting {name} = {setting.get()!r}: "
                f"{reason}. Remove it, or use another worker_class."
            )
    others = sorted(set(getattr(cfg, "http_protocols", None) or ()) - {"h1"})
    if others:
        raise SettingError(
            f"greenroom.Worker can't honour the setting http_protocols with {', '.join(others)}: "
            "only HTTP/1.1 is understood. Remove it, or put a proxy in front."
        )


def _unknown_settings(cfg: Any) -> list[str]:
    """Settings of a newer gunicorn's, or of the user's own, that are not at their default."""
    known = {*HONOURED, *REFUSED, *GUNICORNS}
    return [
        name
        for name, setting in sorted(cfg.settings.items())
        if name not in known and setting.get() != type(setting)().get()
    ]


def _nothing(request: Request) -> None:
    pass


def _logs_debug(log: Any) -> bool:
    """False for gunicorn's own logger on another level."""
    return type(log).debug is not Logger.debug or log.error_log.isEnabledFor(logging.DEBUG)


def _logs_accesses(log: Any) -> bool:
    """False for gunicorn's own logger without an access log, which would drop each record.

    Older gunicorns don't say.
    """
    return type(log).access is not Logger.access or getattr(log, "access_log_enabled", True)


def _options(app: Any) -> Mapping[str, Any]:
    options: Mapping[str, Any] = getattr(app, "coroutine_wsgi_options", None) or {}
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise SettingError(
            f"coroutine_wsgi_options has unknown names: {', '.join(unknown)}. "
            f"Known are {', '.join(_OPTIONS)}."
        )
    for name in _OF_SERVER:
        value = options.get(name)
        if value is not None and (not isinstance(value, int) or value < 0):
            raise SettingError(
                f"coroutine_wsgi_options[{name!r}] must be a number of bytes, or None for no "
                f"bound, not {value!r}."
            )
    threshold = options.get("stall_threshold")
    if threshold and not (isinstance(threshold, int | float) and threshold >= 0.01):
        raise SettingError(
            "coroutine_wsgi_options['stall_threshold'] must be a number of seconds, 0.01 or more, "
            f"or None, not {threshold!r}."
        )
    probes = options.get("probes")
    if not isinstance(probes, str | None):
        raise SettingError(
            f"coroutine_wsgi_options['probes'] must be one of gunicorn's binds, not {probes!r}."
        )
    return options


def _sockets(bound: list[Any], probes: str | None) -> tuple[list[socket.socket], Any]:
    """The sockets of the site, and that of the probes. `bound` are gunicorn's."""
    if not probes:
        return [each.sock for each in bound], None
    try:
        wanted = parse_address(probes)
    except RuntimeError as exc:
        raise SettingError(f"PROBES = {probes!r} is no address: {exc}") from None
    names = [_name(each.sock) for each in bound]
    for each, name in zip(bound, names, strict=True):
        if wanted in (each.cfg_addr, name):
            rest = [other.sock for other in bound if other is not each]
            if not rest:
                raise SettingError(
                    f"PROBES = {probes!r} is gunicorn's only bind: add one for the site."
                )
            return rest, each.sock
    binds = ", ".join(map(_bind, names))
    raise SettingError(
        f"PROBES = {probes!r} is none of gunicorn's binds, which are {binds}: add it to them, as "
        f"bind = [{_bind(names[0])!r}, {probes!r}] in gunicorn.conf.py."
    )


def _name(sock: socket.socket) -> Any:
    """The address of a listening socket, as `parse_address` writes it."""
    name = sock.getsockname()
    return name[:2] if isinstance(name, tuple) else name


def _bind(name: Any) -> str:
    if not isinstance(name, tuple):
        return f"unix:{name}"
    host, port = name
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _ssl_context(cfg: Any) -> ssl.SSLContext | None:
    if not cfg.is_ssl:
        return None
    from gunicorn.sock import ssl_context

    context: ssl.SSLContext = ssl_context(cfg)
    # A client that is told nothing may take its own first choice for agreed. This can't
    # be read back: a hook may have left "h2" there.
    context.set_alpn_protocols(["http/1.1"])
    return context


def _networks(addresses: Sequence[str]) -> tuple[Network, ...] | None:
    """A setting's list of addresses; None: all."""
    if "*" in addresses:
        return None
    return tuple(ipaddress.ip_network(each) for each in addresses if each)


def _proxy_protocol(cfg: Any) -> str:
    """Older gunicorns have a boolean here."""
    mode = cfg.proxy_protocol
    if isinstance(mode, bool):
        return "auto" if mode else ""
    return "" if mode == "off" else str(mode)


def _config(cfg: Any, options: Mapping[str, Any]) -> Config:
    # Not `cfg.sendfile`: that is False whenever it is set, to True even.
    sendfile = cfg.settings["sendfile"].get()
    if sendfile is None:
        sendfile = os.environ.get("SENDFILE", "y").lower() in ("y", "1", "yes", "true")
    return Config(
        # 0 and less mean what they mean to gunicorn: no limit, or its greatest.
        limit_request_line=cfg.limit_request_line or 1 << 20,
        limit_request_fields=cfg.limit_request_fields or 32768,
        limit_request_field_size=cfg.limit_request_field_size or 8190,
        keepalive=cfg.keepalive,
        connections=cfg.worker_connections,
        **{name: options[name] for name in _OF_SERVER if name in options},
        spool_dir=cfg.tmp_upload_dir or cfg.worker_tmp_dir,
        sendfile=bool(sendfile),
        accept_batch=64 if cfg.workers == 1 else 8,
        header_map=cfg.header_map,
        trusted=_networks(cfg.forwarded_allow_ips),
        proxy_protocol=_proxy_protocol(cfg),
        proxies=_networks(cfg.proxy_allow_ips),
        secure_scheme_headers=cfg.secure_scheme_headers,
        forwarder_headers=frozenset(cfg.forwarder_headers),
        script_name=os.environ.get("SCRIPT_NAME", ""),
        multiprocess=cfg.workers > 1,
        server_software=SERVER,
        errors=WSGIErrorsWrapper(cfg),
    )
