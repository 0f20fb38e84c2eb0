"""Django's own tests of requests, through our handler: which, one run of them, what may differ.

`suites` has the same of its tests of the database.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import django

from conformance import suites
from conformance.suites import HERE

# What `runner.py` is told. "loop": all of each request in a bridge on a loop; "thread": as ever.
RUNS = {
    "stock": ["--loop", "stock"],
    "loop": ["--loop", "asyncio", "--handler"],
    "thread": ["--loop", "stock", "--handler"],
}

# What `make test` runs, on the newest pair of Python and Django.
SUITES = [
    "asgi",
    "csrf_tests",
    "handlers",
    "messages_tests",
    "middleware",
    "middleware_exceptions",
    "requests_tests",
    "sessions_tests",
    "test_client",
    "test_client_regress",
    "wsgi",
]

# What `make conformance` runs besides.
MORE = [
    "admin_views",
    "async",
    "auth_tests",
    "cache",
    "conditional_processing",
    "decorators",
    "file_uploads",
    "generic_views",
    "httpwrappers",
    "logging_tests",
    "responses",
    "servers",
    "signals",
    "staticfiles_tests",
    "template_tests",
    "urlpatterns_reverse",
    "view_tests",
]

# As in `suites`; " on loop" and " on thread" say in which of the runs.
DIFFERENCES: dict[str, str] = {
    "asgi.tests.ASGITest.test_assert_in_listen_for_disconnect": (
        "It wants an assertion to fail when the server sends a message that means nothing. Here "
        "that is passed over."
    ),
    "asgi.tests.ASGITest.test_concurrent_async_uses_multiple_thread_pools on loop": (
        "Its plain views wait for one another on threads. On the loop, where only this run puts "
        "them, one blocks the other."
    ),
    **{
        f"asgi.tests.ASGITest.{name} on loop": (
            "It wants a client that has left to be noticed before its plain view has answered. On "
            "the loop, where only this run puts it, the view blocks what would notice."
        )
        for name in ("test_delayed_disconnect_with_body", "test_disconnect_with_body")
    },
    **{
        f"asgi.tests.{name}": (
            "It calls a method of Django's ASGI handler, in whose place is our application: that "
            "receives a body in another way (tests/unit/test_asgi.py)."
        )
        for name in (
            "ASGITest.test_read_body_thread",
            "MaxMemorySizeASGITests.test_read_body_buffers_all_chunks",
            "MaxMemorySizeASGITests.test_read_body_multipart_not_limited",
            "MaxMemorySizeASGITests.test_read_body_no_limit",
        )
    },
    "async.tests.AsyncUnsafeTest.test_async_unsafe": (
        "It wants SynchronousOnlyOperation in a coroutine. An async test is in a bridge, as a "
        "coroutine view is, where there is nothing unsafe."
    ),
    "async.tests.DatabaseConnectionTest.test_get_async_connection": (
        "It wants SynchronousOnlyOperation in a coroutine. In a bridge the query waits; the "
        "test gets as far as the ban on queries in a SimpleTestCase."
    ),
    **{
        f"async.tests.ViewTests.{name} on loop": (
            "It calls asyncio.run(), which no code can where a loop runs."
        )
        for name in (
            "test_http_method_not_allowed_responds_correctly",
            "test_options_handler_responds_correctly",
        )
    },
    **{
        f"auth_tests.test_remote_user.{case}.{name}": (
            "It is skipped unless it finds its method made plain by asgiref's AsyncToSync. Here an "
            "async test is in a bridge."
        )
        for case in ("ASGISyncPathRemoteUserTest", "CustomHeaderASGISyncPathRemoteUserTest")
        for name in (
            "test_csrf_validation_passes_after_process_request_login_async",
            "test_header_disappears_async",
            "test_inactive_user_async",
            "test_known_user_async",
            "test_last_login_async",
            "test_no_remote_user_async",
            "test_unknown_user_async",
            "test_user_switch_forces_new_login_async",
        )
    },
    "cache.tests.CacheClosingTests.test_close on loop": (
        "It wants the end of a request to close a client whose class is not known. That of the "
        "loop stands for those of threads, and has nothing to close."
    ),
    **{
        f"cache.tests.{case}.test_{name}_async_uses_specialized_implementation": (
            "It looks for a method's function in a client whose calls leave the loop."
        )
        for case in ("FileBasedCachePathLibTests", "FileBasedCacheTests")
        for name in (
            "close",
            "delete_many",
            "get_many",
            "get_or_set",
            "has_key",
            "incr",
            "incr_version",
            "set_many",
        )
    },
    "handlers.tests.AsyncHandlerRequestTests.test_unawaited_response": (
        "Its view returns a coroutine, which is awaited here whatever kind of callable made it, "
        "and comes to None: the error says so."
    ),
    "handlers.tests.HandlerRequestTests.test_async_streaming": (
        "It wants the warning that an async stream is consumed whole before it is sent over WSGI. "
        "Here none is: it goes item by item."
    ),
    "handlers.tests.HandlerTests.test_middleware_initialized": (
        "It looks at a private attribute of the WSGI handler, in whose place is our application."
    ),
    "handlers.tests.TransactionsPerRequestTests.test_auto_transaction_async_view": (
        "It wants ATOMIC_REQUESTS to refuse an async view. Here the transaction spans it."
    ),
    **{
        f"middleware_exceptions.tests.{name}": (
            "It wants a record of each middleware that is adapted to sync or async. Here none is: "
            "the chain is synchronous, and a coroutine in it is awaited."
        )
        for name in (
            "MiddlewareNotUsedTests.test_async_and_sync_middleware_chain_async_call",
            "MiddlewareSyncAsyncTests.test_async_middleware",
            "MiddlewareSyncAsyncTests.test_sync_middleware_async",
        )
    },
    "servers.test_liveserverthread.LiveServerThreadTest.test_closes_connections": (
        "It wants a live server to close the connection that it was lent. It is the test's, which "
        "goes on with it."
    ),
    "servers.tests.LiveServerViews.test_closes_connection_without_content_length": (
        "It wants a stream to end with the connection. Here it is chunked, and the connection is "
        "kept."
    ),
    **{
        f"servers.tests.LiveServerViews.{name}": (
            "It wants a live server to keep a connection though the client said `close`. Ours does "
            "as it was told."
        )
        for name in (
            "test_keep_alive_connection_clears_previous_request_data",
            "test_keep_alive_on_connection_with_content_length",
        )
    },
}


if django.VERSION < (6, 1):
    _REMOTE_USER = {
        "test_header_disappears_async",
        "test_known_user_async",
        "test_last_login_async",
        "test_unknown_user_async",
        "test_user_switch_forces_new_login_async",
    }
    DIFFERENCES |= {
        f"auth_tests.test_remote_user.{case}.{name}": (
            "It sends HTTP_REMOTE_USER to an async client: the asynchronous way through "
            "RemoteUserMiddleware puts HTTP_ before the name that the synchronous one reads. Here "
            "the chain is synchronous, whatever the client, and reads what a project names."
        )
        for case, names in {
            "AllowAllUsersRemoteUserBackendTest": {*_REMOTE_USER, "test_inactive_user_async"},
            "CustomHeaderRemoteUserTest": _REMOTE_USER,
            "PersistentRemoteUserTest": _REMOTE_USER,
            "RemoteUserCustomTest": _REMOTE_USER,
            "RemoteUserNoCreateTest": _REMOTE_USER - {"test_unknown_user_async"},
            "RemoteUserTest": _REMOTE_USER,
        }.items()
        for name in names
    }
    DIFFERENCES |= {
        f"auth_tests.test_remote_user.CustomProcessRequestMiddlewareTest.{name}": (
            "It wants aprocess_request() of a RemoteUserMiddleware to be called, or missed. Here "
            "the chain is synchronous, and calls process_request()."
        )
        for name in (
            "test_async_no_warning_sync_and_async_middleware",
            "test_async_warns_sync_only_middleware",
        )
    }

# The most seconds of one run: of all of them, on a busy machine.
TIMEOUT = 3600


def run(labels: list[str], name: str, databases: dict[str, Any], folder: Path) -> suites.Run:
    """Run Django's tests `labels` on `databases`, with `folder` for what they write."""
    command = [str(HERE / "runner.py"), "--tests", str(suites.sources()), *RUNS[name], *labels]
    return suites.Run(**suites.process(command, databases, folder, TIMEOUT))
