"""Code that Django calls from beneath, and that nobody read, leaves the loop.

Called in a bridge, these run on a thread, on the request's database connection:

- receivers of Django's signals of models, connections and log-ins
- file storages, behind `FieldFile`, and files of sessions
- password hashers, which keep a processor busy for a tenth of a second and more
- caches that do I/O, or are not known: every backend but locmem, dummy and db, and but Redis
  where it can wait on the loop (`greenroom.integrations.redis`)

(Callbacks of `on_commit` likewise: `greenroom.db.borrow`.)

A receiver or callback that is known to be loop-safe, or marked, stays.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial, wraps
from typing import Any

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.contrib.auth import hashers
from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.contrib.sessions.backends import file as file_sessions
from django.core.cache import CacheHandler, caches
from django.core.cache.backends.base import BaseCache
from django.core.files.images import ImageFile
from django.db.backends.signals import connection_created
from django.db.models import signals
from django.db.models.fields.files import FieldFile
from django.dispatch import Signal

from . import bridge, loops
from .bridge import in_bridge
from .db import borrow
from .integrations import debug_toolbar
from .off_loop import off_loop
from .placement import REDIS, dotted_name, is_itself, why_unsafe, without_span

logger = logging.getLogger("greenroom")

# The signals whose receivers Django calls in the middle of something else.
SIGNALS = (
    signals.pre_init,
    signals.post_init,
    signals.pre_save,
    signals.post_save,
    signals.pre_delete,
    signals.post_delete,
    signals.m2m_changed,
    connection_created,
    user_logged_in,
    user_logged_out,
    user_login_failed,
)
_ids = frozenset(id(signal) for signal in SIGNALS)


def is_loop_safe(code: Any) -> bool:
    """Whether a receiver or callback may be called on the loop."""
    code = without_span(code)
    function = getattr(code, "__func__", code)
    name = dotted_name(function)
    if name.startswith("django.") and is_itself(function, name):
        return True
    return why_unsafe(code) is None


borrow.is_loop_safe = is_loop_safe


def _send(signal: Signal, name: str, sender: Any, **named: Any) -> Any:
    send = getattr(type(signal), name)
    if (
        signal.receivers
        and in_bridge()
        and not all(is_loop_safe(each) for each in signal._live_receivers(sender)[0])
    ):
        return off_loop(send, signal, sender, **named)
    return send(signal, sender, **named)


def _leave_the_loop(signal: Signal) -> None:
    for name in ("send", "send_robust"):
        setattr(signal, name, partial(_send, signal, name))


_plain_connect = Signal.connect


@wraps(_plain_connect)
def _connect(self: Signal, *args: Any, **kwargs: Any) -> Any:
    # Not before somebody listens: two of them are sent for each row that is read.
    if id(self) in _ids:
        _leave_the_loop(self)
    return _plain_connect(self, *args, **kwargs)


def _off(original: Callable[..., Any]) -> Callable[..., Any]:
    """A method that runs off the loop."""

    @wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return off_loop(original, self, *args, **kwargs)

    return method


_plain_hashers = hashers.get_hashers


@lru_cache
def get_hashers() -> list[Any]:
    """Django's, with the slow methods off the loop."""
    found: list[Any] = _plain_hashers.__wrapped__()  # type: ignore[attr-defined]
    for hasher in found:
        for name in ("verify", "encode", "harden_runtime"):
            setattr(hasher, name, partial(off_loop, getattr(hasher, name)))
    return found


# Their methods wait for nothing but the database.
QUICK_CACHES = (
    "django.core.cache.backends.db.DatabaseCache",
    "django.core.cache.backends.dummy.DummyCache",
    "django.core.cache.backends.locmem.LocMemCache",
)
REDIS_CACHE = "django.core.cache.backends.redis.RedisCache"


class ThreadClients:
    """Cache clients: one per thread and alias where requests are served.

    Elsewhere they stay where Django keeps them. Those of a request whose calls debug-toolbar
    notes are its own.
    """

    def __init__(self, original: Any) -> None:
        self.__dict__["_original"] = original
        self.__dict__["_own"] = threading.local()

    def _clients(self) -> Any:
        serving = bridge.thread_wait() is not None or loops.current() is not None
        return self.__dict__["_own" if serving else "_original"]

    def __getattr__(self, alias: str) -> Any:
        noted = debug_toolbar.cache_clients()
        if noted is not None:
            # Used on the loop and on threads: what it is depends on where.
            return _for_here(alias, getattr(noted, alias))
        return getattr(self._clients(), alias)

    def __setattr__(self, alias: str, client: Any) -> None:
        noted = debug_toolbar.cache_clients()
        if noted is not None:
            setattr(noted, alias, client)
        else:
            setattr(self._clients(), alias, _own(alias, client))

    def __delattr__(self, alias: str) -> None:
        noted = debug_toolbar.cache_clients()
        delattr(self._clients() if noted is None else noted, alias)


def _for_here(alias: str, client: Any) -> Any:
    """A client as it may be used on this thread."""
    if loops.current() is not None and dotted_name(client) not in QUICK_CACHES:
        return SlowCache(alias, client)
    return client


def _own(alias: str, client: Any) -> Any:
    """A new client, as this thread may use it."""
    if loops.current() is not None and dotted_name(client) == REDIS_CACHE:
        reason = why_not_on_loop(client)
        if reason is None:
            from .integrations import redis

            return redis.waiting(client)
        logger.debug("Calls of the cache %r are made on threads: it %s", alias, reason)
    return _for_here(alias, client)


def why_not_on_loop(client: Any) -> str | None:
    """Why calls of a cache client leave the loop; None if they don't."""
    name = dotted_name(client)
    if name in QUICK_CACHES:
        return None
    if name != REDIS_CACHE:
        return f"is a {name}, which is not known to wait on the loop"
    installed = REDIS.outside()
    if installed is not None:
        return f"is read from redis {REDIS.first} to below {REDIS.below}; {installed} is installed"
    # It imports redis-py, which the project may do without.
    from .integrations import redis

    return redis.why_not(client, why_unsafe)


def slow_caches() -> dict[str, str]:
    """The caches whose calls leave the loop, and why."""
    found = {}
    for alias in caches:
        with suppress(Exception):
            # (One that can't be made says so where it is used.)
            reason = why_not_on_loop(caches.create_connection(alias))
            if reason is not None:
                found[alias] = reason
    return found


class SlowCache:
    """A cache client on the loop's thread: its calls go to the client of a thread.

    `client` answers for what isn't called, and does I/O only for a task without a bridge, where
    a plain call blocks the loop, as it does in Django. What is set on it, a `key_func` or a
    mock, is there in calls from here, and in no others.
    """

    _given: dict[str, Any]

    def __init__(self, alias: str, client: Any) -> None:
        # `isinstance` sees the backend.
        vars(self).update(_alias=alias, _client=client, _kind=type(client), _given={})

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return self._kind  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        if not callable(value) or name.startswith("_") or name in ("make_key", "validate_key"):
            return value
        if name in self._given or not hasattr(self._kind, name):
            # No method of the backend.
            return value
        if not iscoroutinefunction(value):
            return partial(off_loop, self._call, name)
        if getattr(self._kind, name) is not getattr(BaseCache, name, None):
            # The backend's own coroutine.
            return value

        # A function: what asks on Python 3.11 whether it is a coroutine's, as mock does, sees it.
        async def acall(*args: Any, **kwargs: Any) -> Any:
            return await sync_to_async(self._call)(name.removeprefix("a"), *args, **kwargs)

        return acall

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._client, name, value)
        self._given[name] = value

    def __delattr__(self, name: str) -> None:
        delattr(self._client, name)
        self._given.pop(name, None)

    def close(self, **kwargs: Any) -> None:
        """Nothing: the clients that have connections are those of threads."""

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        client: Any = caches[self._alias]
        if client is self:
            client = self._client
        given, attributes = dict(self._given), vars(client)
        before = {key: attributes[key] for key in given if key in attributes}
        attributes.update(given)
        try:
            return getattr(client, name)(*args, **kwargs)
        finally:
            for key in given.keys() - before.keys():
                attributes.pop(key, None)
            attributes.update(before)

    def __contains__(self, key: Any) -> bool:
        return bool(off_loop(self._call, "__contains__", key))


def _kept(original: Callable[..., Any]) -> Callable[..., Any]:
    """`CacheHandler.__getitem__`, which returns a new client as it was made."""

    @wraps(original)
    def client(self: CacheHandler, alias: str) -> Any:
        with suppress(AttributeError):
            return getattr(self._connections, alias)  # type: ignore[attr-defined]
        original(self, alias)
        return getattr(self._connections, alias)  # type: ignore[attr-defined]

    return client


def _clients_of(handler: CacheHandler) -> Any:
    return handler.__dict__["_greenroom_clients"]


def _set_clients(handler: CacheHandler, clients: Any) -> None:
    handler.__dict__["_greenroom_clients"] = ThreadClients(clients)


def apply() -> None:
    """Replace what `greenroom.patches` names."""
    Signal.connect = _connect  # type: ignore[method-assign]
    for signal in SIGNALS:
        if signal.receivers:
            _leave_the_loop(signal)
    for owner, names in (
        (FieldFile, ("save", "delete", "open")),
        (ImageFile, ("_get_image_dimensions",)),
        (file_sessions.SessionStore, ("load", "save", "delete", "exists")),
    ):
        for name in names:
            setattr(owner, name, _off(getattr(owner, name)))
    size = FieldFile.size.fget  # type: ignore[attr-defined]
    FieldFile.size = property(_off(size))  # type: ignore[assignment,method-assign]
    hashers.get_hashers = get_hashers
    hashers.get_hashers_by_algorithm.cache_clear()  # type: ignore[attr-defined]
    CacheHandler.__getitem__ = _kept(CacheHandler.__getitem__)  # type: ignore[method-assign]
    # A property, since Django's own tests set another one when CACHES is overridden.
    clients = caches.__dict__.pop("_connections")
    CacheHandler._connections = property(_clients_of, _set_clients)  # type: ignore[attr-defined]
    caches._connections = clients  # type: ignore[attr-defined]
