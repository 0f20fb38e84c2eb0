"""Where the synchronous code around a view runs: on the loop, or on a thread.

Synchronous code may run on the loop only if it is *known* to be loop-safe: it
does not block, holds no lock over a switch point, and keeps no state in
thread-locals over one. Known is what stands in the tables below (its code was
read), what its author marked `@loop_safe`, and what the project names in
``GREENROOM["LOOP_SAFE"]``. Everything else is unknown and runs on a thread: the
same answers, at the price of a thread per waiting request.

A subclass of known code is unknown: its own methods were not read.

Queries do not block: where all databases can wait on the loop, code that only
queries is loop-safe (see `greenroom.db`). Where one can't, all is on threads.

The module is long because of its tables: a third of it says what was read.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from types import FunctionType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from asgiref.sync import iscoroutinefunction
from django.conf import settings as django_settings
from django.core.cache import close_caches
from django.core.handlers.base import reset_urlconf
from django.core.signals import request_finished, request_started
from django.db import close_old_connections, connections
from django.template import TemplateDoesNotExist
from django.template.loader import get_template
from django.urls import URLPattern, URLResolver, get_resolver
from django.urls.resolvers import RegexPattern, RoutePattern
from django.utils.module_loading import import_string
from django.utils.translation import get_language
from django.utils.version import get_version_tuple
from django.views import View

from . import conf, integrations
from .db import borrow

F = TypeVar("F", bound=Callable[..., Any])

logger = logging.getLogger("greenroom")


def loop_safe(code: F) -> F:
    """Say that a class or function is loop-safe: a middleware, a signal receiver.

    It must not block, hold a lock while it calls what may wait, or keep state in
    thread-locals while it does. A subclass has to be marked itself.
    """
    # Itself, so that a wrapper which copies its attributes isn't marked by that.
    code._greenroom_loop_safe = code  # type: ignore[attr-defined]
    return code


def on_thread(view: F) -> F:
    """Run all synchronous code around this view on a thread (a decorator)."""
    view._greenroom_on_thread = True  # type: ignore[attr-defined]
    return view


def keep_on_disconnect(view: F) -> F:
    """Let this coroutine view finish though its client is gone (a decorator)."""
    view._greenroom_keep = True  # type: ignore[attr-defined]
    return view


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a request runs. `reason` says what holds it on a thread, if anything."""

    on_loop: bool
    coroutine: bool
    reason: str


PLAIN = Placement(on_loop=False, coroutine=False, reason="the view is a plain function")
UNRESOLVED = Placement(on_loop=False, coroutine=False, reason="no view was found for the path")
ON_LOOP = Placement(on_loop=True, coroutine=True, reason="")


def is_coroutine_view(view: Any) -> bool:
    """Whether a call of `view` yields an awaitable, as far as can be seen before it."""
    if type(view) is FunctionType:
        # Most of them are told here, without the two microseconds of `iscoroutinefunction`.
        if view.__code__.co_flags & inspect.CO_COROUTINE:
            return True
        if not view.__dict__:
            return _yields(view)
    if iscoroutinefunction(view):
        return True
    while isinstance(view, partial):
        view = view.func
    code = getattr(view, "__code__", None)
    if code is None:
        call = type(view).__call__
        return iscoroutinefunction(view) or iscoroutinefunction(call) or _yields(call)
    return _yields(view)


def _yields(function: Any) -> bool:
    """Whether it is decorated with `types.coroutine`."""
    code = getattr(function, "__code__", None)
    return code is not None and bool(code.co_flags & inspect.CO_ITERABLE_COROUTINE)


# Receivers of `request_finished` that wait for nothing where no database was used: caches'
# clients on the loop have nothing to close.
_QUIET = (close_caches, close_old_connections, reset_urlconf)

# By which views are remembered.
_METHODS = frozenset({None, *map(str.upper, View.http_method_names)})


class Judge:
    """Decides the placement of each view of one handler.

    `middleware` holds the dotted path and the object of each that is in use,
    `sender` is that of the request signals.
    """

    def __init__(self, middleware: list[tuple[str, Any]], sender: type) -> None:
        self._middleware = middleware
        self._sender = sender
        # The URLconfs that middlewares chose.
        self._urlconfs: dict[Any, None] = {}
        self._key: object = None
        self._reasons: list[str] = []
        self._unknown_patterns: list[str] = []
        self._by_language = True
        # The receivers of `request_finished`, if all of them are Django's own.
        self._quiet: list[Any] | None = None
        # What is known of views that are functions, with the settings, by method.
        self._kinds: WeakKeyDictionary[
            FunctionType, dict[str | None, tuple[conf.Settings, tuple[bool, list[str]]]]
        ] = WeakKeyDictionary()

    def place(self, view: Any, method: str | None = None, *, looked: bool = False) -> Placement:
        """The placement of a request that this view answers.

        Without a method, that of the most restricted method that is a coroutine.
        `looked`: `may_resolve` was asked a moment ago, so that the surroundings are known.
        """
        coroutine, own = self._kind(view, method)
        if not coroutine:
            return PLAIN
        reasons = (self._reasons if looked else self.surroundings()) or own
        if not reasons:
            return ON_LOOP
        return Placement(on_loop=False, coroutine=True, reason="; ".join(reasons))

    def fits_loop(self, view: Any, method: str | None) -> bool:
        """Whether the view may be called on the loop, whatever is around it."""
        coroutine, reasons = self._kind(view, method)
        return coroutine and not reasons

    def _kind(self, view: Any, method: str | None) -> tuple[bool, list[str]]:
        """Whether it is a coroutine view, and what of itself holds it on a thread."""
        kind: tuple[bool, list[str]]
        if type(view) is FunctionType and not view.__dict__:
            # No decorator, class or framework made it.
            kind = is_coroutine_view(view), []
        elif type(view) is not FunctionType or method not in _METHODS:
            # It may be unhashable, or be another thing tomorrow. Whoever asks makes methods up.
            kind = _kind_of(view, method)
        else:
            kinds = self._kinds.get(view)
            if kinds is None:
                kinds = self._kinds[view] = {}
            settings = conf.settings()
            found = kinds.get(method)
            if found is None or found[0] is not settings:
                found = kinds[method] = (settings, _kind_of(view, method))
            kind = found[1]
        marked = self.of_view(view)
        return (kind[0], [*marked, *kind[1]]) if marked else kind

    def of_view(self, view: Any) -> list[str]:
        """What holds this one view on a thread."""
        marked = getattr(view, "_greenroom_on_thread", False)
        return ["the view is marked @on_thread"] if marked else []

    def surroundings(self) -> list[str]:
        """What holds every view on a thread. Empty if all around it is loop-safe."""
        root = django_settings.ROOT_URLCONF
        started, finished = request_started.receivers, request_finished.receivers
        key = (conf.settings(), root, len(self._urlconfs), started, finished)
        if key != self._key:
            # With the receivers, or the weak references to them: ids are used again. In
            # copies, since Django adds to its lists.
            key = (*key[:3], list(started), list(finished))
            self._unknown_patterns = [
                reason
                for urlconf in (root, *self._urlconfs)
                for reason in unknown_patterns(urlconf)
            ]
            self._reasons = [*self._judge(), *self._unknown_patterns]
            self._by_language = any(map(_may_know_language, _url_code(get_resolver(root))))
            self._quiet = key[4] if self._is_quiet() else None
            self._key = key
        return self._reasons

    def may_resolve(self) -> bool:
        """Whether a view may be looked up on the loop, in all URLconfs seen so far."""
        self.surroundings()
        return not self._unknown_patterns

    def language(self) -> str | None:
        """The active language, if what a path leads to may depend on it."""
        return get_language() if self._by_language else None

    def ends_quietly(self) -> bool:
        """Whether the end of a request that has used no database waits for nothing."""
        return self._quiet is not None and request_finished.receivers == self._quiet

    def _is_quiet(self) -> bool:
        receivers, coroutine_functions = request_finished._live_receivers(self._sender)
        return not coroutine_functions and all(
            any(each is known for known in _QUIET) for each in receivers
        )

    def is_new(self, urlconf: Any) -> bool:
        """Whether it is a URLconf that was not seen yet."""
        return urlconf != django_settings.ROOT_URLCONF and urlconf not in self._urlconfs

    def learn(self, urlconf: Any) -> None:
        """Load a URLconf that a middleware chose; from now on it is judged too."""
        list(unknown_patterns(urlconf))
        self._urlconfs[urlconf] = None

    def _judge(self) -> Iterator[str]:
        if conf.settings().placement == "thread":
            yield 'GREENROOM["PLACEMENT"] is "thread"'
        for alias in connections:
            reason = borrow.why_not(alias)
            if reason is not None:
                yield f"the database {alias!r} {reason}"
        for path, middleware in self._middleware:
            reason = None if _only_coroutines(middleware) else why_unsafe(middleware)
            if reason is not None:
                yield f"the middleware {path} {reason}"
        for signal, name in ((request_started, "started"), (request_finished, "finished")):
            for receiver in _plain_receivers(signal, self._sender):
                reason = why_unsafe(receiver)
                if reason is not None:
                    yield f"the receiver {dotted_name(receiver)} of request_{name} {reason}"


def _kind_of(view: Any, method: str | None) -> tuple[bool, list[str]]:
    if is_coroutine_view(view):
        return True, []
    if _awaits(view):
        return True, ["the view is a @sync_view"]
    described = integrations.describe(view, method)
    if described is None:
        return False, []
    coroutine, reasons = _most_restricted(described, named=method is None)
    return coroutine, [*unknown_decorators(view), *reasons]


def _awaits(view: Any) -> bool:
    """Whether it, or a handler of its class, was made plain by `sync_view`."""
    kind = getattr(view, "view_class", None)
    handlers = (getattr(kind, name, None) for name in getattr(kind, "http_method_names", ()))
    return any(hasattr(each, "_greenroom_awaits") for each in (view, *handlers))


def unknown_decorators(view: Any) -> Iterator[str]:
    """Plain code around a view that an integration describes.

    `functools.wraps` gives a decorator's function all by which the view is known.
    """
    while view is not None:
        if type(view) is not FunctionType:
            yield f"the decorator {dotted_name(type(view))} {_UNKNOWN}"
            return
        module = view.__globals__.get("__name__", "")
        if module in VIEW_MAKERS:
            return
        name = f"{module}.{view.__code__.co_qualname}"
        if module == "django.utils.decorators":
            middleware = _middleware_of(view)
            reason = why_unsafe(middleware) if middleware is not None else _UNKNOWN
        elif module in DECORATORS or _marked(view) or _is_named(name):
            reason = None
        else:
            reason = _UNKNOWN
        if reason is not None:
            yield f"the decorator {name} {reason}"
        view = getattr(view, "__wrapped__", None)


def _middleware_of(view: Any) -> Any:
    """That of a decorator which Django made of a middleware (`cache_page`)."""
    functions = [cell.cell_contents for cell in view.__closure__ or ()]
    for function in filter(inspect.isfunction, functions):
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        if "middleware" in cells:
            return type(cells["middleware"].cell_contents)
    return None


def _most_restricted(
    described: tuple[tuple[str, integrations.View], ...], *, named: bool
) -> tuple[bool, list[str]]:
    reasons: list[str] = []
    for method, view in described:
        if view.coroutine:
            found = [*view.reasons, *_why_unsafe_around(view)]
            reasons += [f"{method}: {reason}" if named else reason for reason in found]
    return any(view.coroutine for _, view in described), reasons


def _why_unsafe_around(view: integrations.View) -> Iterator[str]:
    for what, code in view.code:
        reason = why_unsafe_class(code) if inspect.isclass(code) else why_unsafe(code)
        if reason is not None:
            yield f"the {what} {dotted_name(code)} {reason}"


def why_unsafe_class(kind: type) -> str | None:
    """As `why_unsafe`, of a class that is used by its methods.

    Here a subclass of known code is known if all it adds is data and coroutines,
    which run on the loop anyway.
    """
    if why_unsafe(kind) is None:
        return None
    for each in kind.__mro__[:-1]:
        if not _adds_no_plain_code(each):
            reason = why_unsafe(each)
            if reason is not None:
                return reason
    return None


def _adds_no_plain_code(kind: type) -> bool:
    return all(
        iscoroutinefunction(value)
        if inspect.isfunction(value)
        else isinstance(value, str | int | float | tuple | None)
        or name in ("__dict__", "__weakref__", "__annotations__", "__annotate__")
        for name, value in vars(kind).items()
        if name not in ("__annotate_func__", "__annotations_cache__", "__static_attributes__")
    )


def atomic_aliases(view: Any) -> list[str]:
    """The databases that ATOMIC_REQUESTS opens a transaction on around this view."""
    exempt = getattr(view, "_non_atomic_requests", ())
    return [
        alias
        for alias, database in connections.settings.items()
        if database["ATOMIC_REQUESTS"] and alias not in exempt
    ]


def why_unsafe(code: Any) -> str | None:
    """None if `code` is known to be loop-safe; otherwise why it isn't."""
    code = without_span(code)
    name = dotted_name(code)
    if _marked(code) or _is_named(name):
        return None
    if is_itself(code, name):
        if name in DJANGO:
            check = DJANGO[name]
            return check() if check is not None else None
        if name in OTHERS:
            return OTHERS[name].why_unsafe()
    return _UNKNOWN


_UNKNOWN = "is not known to be loop-safe (mark it @loop_safe if it is)"


def _is_named(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in conf.settings().loop_safe)


def dotted_name(code: Any) -> str:
    """The name by which the tables and ``LOOP_SAFE`` know `code`."""
    if not hasattr(code, "__qualname__"):
        code = type(code)
    return f"{code.__module__}.{code.__qualname__}"


def is_itself(code: Any, name: str) -> bool:
    """Whether `code` is what stands under its name, and not a wrapper that took it.

    `functools.wraps` gives a wrapper the name of what it wraps; tools that trace
    give a subclass the name of the class.
    """
    if inspect.isfunction(code):
        return name == f"{code.__globals__.get('__name__')}.{code.__code__.co_qualname}"
    kind = code if inspect.isclass(code) else type(code)
    module = sys.modules.get(kind.__module__)
    return getattr(module, kind.__qualname__, None) is kind


def without_span(receiver: Any) -> Any:
    """A receiver of a signal without the wrapper that Sentry's SDK gives it at each call."""
    if not inspect.isfunction(receiver):
        return receiver
    if receiver.__globals__.get("__name__") != SENTRY_RECEIVERS or not _sentry_was_read():
        return receiver
    return receiver.__wrapped__  # type: ignore[attr-defined]


@cache
def _sentry_was_read() -> bool:
    """Looked up once: it is asked for at each signal, and reads a file."""
    return SENTRY.outside() is None


def _only_coroutines(middleware: Any) -> bool:
    """Whether all code of a middleware is coroutines, which run on the loop anyway."""
    if getattr(middleware, "sync_capable", True):
        return False
    hooks = ("process_view", "process_exception", "process_template_response")
    return all(
        hook is None or iscoroutinefunction(hook)
        for hook in (getattr(middleware, name, None) for name in hooks)
    )


def _marked(code: Any) -> bool:
    code = code.__func__ if inspect.ismethod(code) else code
    own = code if inspect.isclass(code) or inspect.isfunction(code) else type(code)
    return any(vars(each).get("_greenroom_loop_safe") is each for each in _with_dict(code, own))


def _with_dict(*objects: Any) -> Iterator[Any]:
    return (each for each in objects if hasattr(each, "__dict__"))


def unknown_patterns(urlconf: Any) -> Iterator[str]:
    """Code of the project that runs when a view is looked up: converters, patterns."""
    seen: set[type] = set()
    for code in _url_code(get_resolver(urlconf)):
        kind = type(code)
        if kind in seen:
            continue
        seen.add(kind)
        if kind.__module__ not in ("django.urls.converters", "django.urls.resolvers"):
            reason = why_unsafe(kind)
            if reason is not None:
                what = "URL pattern" if hasattr(code, "match") else "path converter"
                yield f"the {what} {dotted_name(kind)} {reason}"


def _url_code(resolver: URLResolver) -> Iterator[Any]:
    for entry in resolver.url_patterns:
        yield entry.pattern
        if isinstance(entry.pattern, RoutePattern):
            yield from entry.pattern.converters.values()
        if isinstance(entry, URLResolver):
            yield from _url_code(entry)


def _may_know_language(code: Any) -> bool:
    """Whether a pattern or converter may work otherwise in another language."""
    if type(code) is RoutePattern:
        return not isinstance(code._route, str)  # type: ignore[attr-defined]
    if type(code) is RegexPattern:
        return not isinstance(code._regex, str)  # type: ignore[attr-defined]
    return type(code).__module__ != "django.urls.converters"


def views(
    resolver: URLResolver | None = None, prefix: str = "", name: str = ""
) -> Iterator[tuple[str, str, Any]]:
    """Route, name and view of each URL pattern of the project."""
    resolver = resolver or get_resolver(django_settings.ROOT_URLCONF)
    for entry in resolver.url_patterns:
        route = prefix + str(entry.pattern)
        if isinstance(entry, URLPattern):
            yield route, f"{name}{entry.name or ''}", entry.callback
        else:
            inner = f"{name}{entry.namespace}:" if entry.namespace else name
            yield from views(entry, route, inner)


def _plain_receivers(signal: Any, sender: Any) -> list[Any]:
    receivers, _coroutine_functions = signal._live_receivers(sender)
    return list(receivers)


# What is known. A check says why the code isn't safe under the present settings.


def _csrf() -> str | None:
    view = django_settings.CSRF_FAILURE_VIEW
    if view != "django.views.csrf.csrf_failure":
        return _called(view)
    if _is_named(view):
        return None
    try:
        get_template("403_csrf.html")
    except TemplateDoesNotExist:
        # It has a page of its own.
        return None
    except Exception:
        logger.debug("The template of CSRF failures can't be loaded", exc_info=True)
    return "renders the template 403_csrf.html"


def _called(name: Any) -> str | None:
    """Why what a setting names isn't safe."""
    try:
        known = why_unsafe(import_string(name) if isinstance(name, str) else name) is None
    except ImportError:
        known = False
    return None if known else f"calls {name}, which is not known to be loop-safe"


def _session() -> str | None:
    engine = django_settings.SESSION_ENGINE
    if _is_named(engine):
        return None
    if engine not in SESSION_ENGINES:
        return f"uses the session engine {engine}, which is not known to be loop-safe"
    serializer = django_settings.SESSION_SERIALIZER
    return None if serializer in SERIALIZERS else _called(serializer)


def _messages() -> str | None:
    storage = django_settings.MESSAGE_STORAGE
    if storage not in MESSAGE_STORAGES and _called(storage) is not None:
        return f"uses the storage {storage}, which is not known to be loop-safe"
    signer = django_settings.SIGNING_BACKEND
    return None if signer == "django.core.signing.TimestampSigner" else _called(signer)


def _auth() -> str | None:
    for name in django_settings.AUTHENTICATION_BACKENDS:
        if name not in AUTHENTICATION_BACKENDS and _called(name) is not None:
            return f"uses the authentication backend {name}, which is not known to be loop-safe"
    return None


def _cache() -> str | None:
    return _of_cache(django_settings.CACHE_MIDDLEWARE_ALIAS)


def _of_cache(alias: str) -> str | None:
    # Whatever the backend: those that do I/O leave the loop by themselves.
    key_function = django_settings.CACHES.get(alias, {}).get("KEY_FUNCTION")
    return None if key_function is None else _called(key_function)


# Modules of what makes view functions of classes.
VIEW_MAKERS = frozenset({"django.views.generic.base", "rest_framework.viewsets"})

# Modules of decorators that call no code of the project but the view.
DECORATORS = frozenset(
    f"django.views.decorators.{name}" for name in ("cache", "clickjacking", "csrf", "vary")
)

AUTHENTICATION_BACKENDS = frozenset(
    f"django.contrib.auth.backends.{name}"
    for name in (
        "AllowAllUsersModelBackend",
        "AllowAllUsersRemoteUserBackend",
        "ModelBackend",
        "RemoteUserBackend",
    )
)

SESSION_ENGINES = frozenset(
    f"django.contrib.sessions.backends.{name}"
    for name in ("cache", "cached_db", "db", "file", "signed_cookies")
)

MESSAGE_STORAGES = frozenset(
    {
        "django.contrib.messages.storage.cookie.CookieStorage",
        "django.contrib.messages.storage.fallback.FallbackStorage",
        # With the session's engine, which is judged with its middleware.
        "django.contrib.messages.storage.session.SessionStorage",
    }
)

SERIALIZERS = frozenset(
    {
        "django.contrib.sessions.serializers.JSONSerializer",
        "django.core.signing.JSONSerializer",
    }
)

DJANGO: dict[str, Callable[[], str | None] | None] = {
    "django.contrib.admindocs.middleware.XViewMiddleware": _auth,
    "django.contrib.auth.middleware.AuthenticationMiddleware": _auth,
    "django.contrib.auth.middleware.LoginRequiredMiddleware": _auth,
    "django.contrib.auth.middleware.PersistentRemoteUserMiddleware": _auth,
    "django.contrib.auth.middleware.RemoteUserMiddleware": _auth,
    "django.contrib.flatpages.middleware.FlatpageFallbackMiddleware": None,
    "django.contrib.messages.middleware.MessageMiddleware": _messages,
    "django.contrib.redirects.middleware.RedirectFallbackMiddleware": None,
    "django.contrib.sessions.middleware.SessionMiddleware": _session,
    "django.contrib.sites.middleware.CurrentSiteMiddleware": None,
    "django.contrib.staticfiles.handlers.StaticFilesHandler": None,
    "django.core.cache.close_caches": None,
    "django.core.handlers.base.reset_urlconf": None,
    "django.db.close_old_connections": None,
    "django.db.reset_queries": None,
    "django.middleware.cache.CacheMiddleware": _cache,
    "django.middleware.cache.FetchFromCacheMiddleware": _cache,
    "django.middleware.cache.UpdateCacheMiddleware": _cache,
    "django.middleware.clickjacking.XFrameOptionsMiddleware": None,
    "django.middleware.common.CommonMiddleware": None,
    "django.middleware.csp.ContentSecurityPolicyMiddleware": None,
    "django.middleware.csrf.CsrfViewMiddleware": _csrf,
    "django.middleware.gzip.GZipMiddleware": None,
    "django.middleware.http.ConditionalGetMiddleware": None,
    "django.middleware.locale.LocaleMiddleware": None,
    "django.middleware.security.SecurityMiddleware": None,
}


@dataclass(frozen=True, slots=True)
class Known:
    """Third-party code that was read, in these versions of its distribution."""

    distribution: str
    first: str
    below: str
    check: Callable[[], str | None] | None = None

    def outside(self) -> str | None:
        """The installed version, if it is not among those read."""
        installed = _installed(self.distribution)
        if installed is None:
            return "no version"
        inside = _numbers(self.first) <= _numbers(installed) < _numbers(self.below)
        return None if inside else installed

    def why_unsafe(self) -> str | None:
        installed = self.outside()
        if installed is not None:
            return (
                f"is known to be loop-safe from {self.distribution} {self.first} to below "
                f"{self.below}; {installed} is installed"
            )
        return self.check() if self.check is not None else None


@cache
def _installed(distribution: str) -> str | None:
    """Its version, looked up once: that reads files, and views are judged while others wait."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    numbers = get_version_tuple(text)
    return (*numbers, *(0,) * (3 - len(numbers)))


def _cors() -> str | None:
    signal = import_string("corsheaders.signals.check_request_enabled")
    for receiver in _plain_receivers(signal, None):
        if why_unsafe(receiver) is not None:
            return f"calls {dotted_name(receiver)}, which is not known to be loop-safe"
    return None


def _default_cache() -> str | None:
    return _of_cache("default")


def _allauth() -> str | None:
    """Of its middleware: what a view raises may ask the adapter how to log in again."""
    name = getattr(django_settings, "ACCOUNT_ADAPTER", _ADAPTER)
    try:
        known, used = import_string(_ADAPTER), import_string(name)
        same = all(
            getattr(used, method, None) is getattr(known, method, None)
            for method in ("__init__", "get_phone", "get_reauthentication_methods")
        )
    except ImportError:
        same = False
    return None if same else _called(name)


_ADAPTER = "allauth.account.adapter.DefaultAccountAdapter"


def _toolbar() -> str | None:
    """It instruments what it can reach and renders; where DEBUG is off it does nothing."""
    callback = import_string("debug_toolbar.settings.get_config")()["SHOW_TOOLBAR_CALLBACK"]
    if callback != "debug_toolbar.middleware.show_toolbar":
        return f"asks {_name_of(callback)} whether it shows its panels"
    return "shows its panels, since DEBUG is on" if django_settings.DEBUG else None


def _name_of(code: Any) -> str:
    return code if isinstance(code, str) else dotted_name(code)


def _jwt() -> str | None:
    given = import_string("rest_framework_simplejwt.settings.api_settings")
    if given.JWK_URL:
        return "fetches its keys from JWK_URL"
    for kind in (*given.AUTH_TOKEN_CLASSES, given.TOKEN_USER_CLASS):
        if why_unsafe(kind) is not None:
            return f"calls {dotted_name(kind)}, which is not known to be loop-safe"
    return None


def _otel() -> str | None:
    middleware = import_string(f"{OPENTELEMETRY}.otel_middleware._DjangoMiddleware")
    for name in ("_otel_request_hook", "_otel_response_hook"):
        hook = getattr(middleware, name, None)
        if hook is not None and why_unsafe(hook) is not None:
            return f"calls {dotted_name(hook)}, which is not known to be loop-safe"
    return None


OPENTELEMETRY = "opentelemetry.instrumentation.django.middleware"

# Its wrapper adds a span to what it calls, and waits for nothing. There is a new version
# each week or two; from 2.20 to 2.75 it did the same.
SENTRY = Known("sentry-sdk", "2.20", "3")
SENTRY_RECEIVERS = "sentry_sdk.integrations.django.signals_handlers"

# Beneath Django's cache backend: `greenroom.integrations.redis`.
REDIS = Known("redis", "5.0.1", "8.2")

OTHERS: dict[str, Known] = {
    "allauth.account.auth_backends.AuthenticationBackend": Known(
        # Its thread-local is replaced: `greenroom.integrations.allauth`.
        "django-allauth",
        "65.10",
        "65.23",
    ),
    "allauth.account.middleware.AccountMiddleware": Known(
        "django-allauth", "65.10", "65.23", _allauth
    ),
    "corsheaders.middleware.CorsMiddleware": Known("django-cors-headers", "4.4", "4.10", _cors),
    "debug_toolbar.middleware.DebugToolbarMiddleware": Known(
        "django-debug-toolbar", "6.0", "8.1", _toolbar
    ),
    "django_htmx.middleware.HtmxMiddleware": Known("django-htmx", "1.29", "1.30"),
    **{
        f"{OPENTELEMETRY}.{name}": Known(
            "opentelemetry-instrumentation-django", "0.48", "0.67", check
        )
        for name, check in (
            ("otel_middleware._DjangoMiddleware", _otel),
            ("sqlcommenter_middleware.SqlCommenter", None),
        )
    },
    # Finding files and opening them leaves the loop: `greenroom.integrations.whitenoise`.
    "whitenoise.middleware.WhiteNoiseMiddleware": Known("whitenoise", "6.6", "6.13"),
    # Responses are rendered on a thread, and so are forms and the browsable API.
    **{
        f"rest_framework.{name}": Known("djangorestframework", "3.18", "3.19")
        for name in (
            "authentication.BaseAuthentication",
            "metadata.BaseMetadata",
            "metadata.SimpleMetadata",
            "negotiation.BaseContentNegotiation",
            "negotiation.DefaultContentNegotiation",
            "parsers.BaseParser",
            "parsers.FileUploadParser",
            "parsers.FormParser",
            "parsers.JSONParser",
            "parsers.MultiPartParser",
            "permissions.AllowAny",
            "permissions.BasePermission",
            "permissions.IsAdminUser",
            "permissions.IsAuthenticated",
            "permissions.IsAuthenticatedOrReadOnly",
            "permissions.OperationHolderMixin",
            "renderers.AdminRenderer",
            "renderers.BaseRenderer",
            "renderers.BrowsableAPIRenderer",
            "renderers.HTMLFormRenderer",
            "renderers.JSONRenderer",
            "renderers.MultiPartRenderer",
            "renderers.StaticHTMLRenderer",
            "renderers.TemplateHTMLRenderer",
            "permissions.DjangoModelPermissions",
            "permissions.DjangoModelPermissionsOrAnonReadOnly",
            "permissions.DjangoObjectPermissions",
            "throttling.BaseThrottle",
            "versioning.AcceptHeaderVersioning",
            "versioning.BaseVersioning",
            "versioning.HostNameVersioning",
            "versioning.NamespaceVersioning",
            "versioning.QueryParameterVersioning",
            "versioning.URLPathVersioning",
        )
    },
    **{
        f"rest_framework.authentication.{name}": Known("djangorestframework", "3.18", "3.19", _auth)
        for name in (
            "BasicAuthentication",
            "RemoteUserAuthentication",
            "SessionAuthentication",
            "TokenAuthentication",
        )
    },
    **{
        f"rest_framework.throttling.{name}": Known(
            "djangorestframework", "3.18", "3.19", _default_cache
        )
        for name in (
            "AnonRateThrottle",
            "ScopedRateThrottle",
            "SimpleRateThrottle",
            "UserRateThrottle",
        )
    },
    **{
        f"rest_framework_simplejwt.{name}": Known("djangorestframework-simplejwt", "5.5", "5.6")
        for name in (
            "models.TokenUser",
            "tokens.AccessToken",
            "tokens.RefreshToken",
            "tokens.SlidingToken",
            "tokens.UntypedToken",
        )
    },
    **{
        f"rest_framework_simplejwt.authentication.{name}": Known(
            "djangorestframework-simplejwt", "5.5", "5.6", _jwt
        )
        for name in ("JWTAuthentication", "JWTStatelessUserAuthentication")
    },
}
