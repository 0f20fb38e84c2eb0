"""The faces of the application: on a loop, on threads of others; lifespan; patches."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from typing import Any
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest
from django.core.cache import caches
from django.core.signals import request_finished
from django.http import HttpResponse

import driver
from driver import Answer, Site
from greenroom import loops
from greenroom.exchange import _fields_of
from greenroom.threads import Threads
from project import lifespans, views


def serve_on_thread(app: Any, path: str, **extra: Any) -> Answer:
    """One request as a threaded WSGI server makes it."""
    answer = Answer()

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        answer.status, answer.headers = status, headers

    environ = driver.environ_of(path, **extra)
    del environ["wsgi.async"]
    result = app(environ, start_response)
    try:
        answer.parts.extend(result)
    finally:
        if hasattr(result, "close"):
            result.close()
    return answer


class OfItsOwn(HttpResponse):
    def items(self) -> Any:
        return [("X-Of-Its-Own", "1")]


@pytest.mark.parametrize("kind", [HttpResponse, OfItsOwn])
def test_the_fields_of_a_response_are_its_items(kind: type[HttpResponse]) -> None:
    response = kind(b"x", headers={"X-One": "1", "x-TWO": 2})
    response["X-one"] = "another"
    response["Content-length"] = "1"
    del response["x-two"]
    assert _fields_of(response) == list(response.items())


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/hello/", "Hello world!"),
        ("/plain/", "plain"),
        ("/future/", "future"),
        ("/generator/", "generator"),
        ("/async-to-sync/", "inner"),
        ("/template/", "view rendered on loop"),
        ("/file/", "file content"),
        ("/stream/", "0,1,2,"),
        ("/sync-stream/", "0,1,2,"),
    ],
)
def test_under_any_wsgi_server(path: str, text: str) -> None:
    views.events.clear()
    with Site("auto", middleware=("project.middleware.Coroutine",)) as site:
        answer = serve_on_thread(site.app, path)
    assert (answer.code, answer.text) == (200, text)


def test_wsgiref_validates_it() -> None:
    # Its checks are assertions; the environ must be a plain dict without extensions.
    def ask(app: Any) -> bytes:
        environ = driver.environ_of("/hello/", QUERY_STRING="a=b")
        del environ["wsgi.async"]
        result = validator(app)(environ, lambda *args: lambda data: None)
        try:
            return b"".join(result)
        finally:
            result.close()

    with Site("auto") as site:
        assert ask(site.app) == b"Hello world!"


def test_a_stream_is_pulled_item_by_item_on_a_thread() -> None:
    views.events.clear()
    finished: list[int] = []

    def receiver(**kwargs: Any) -> None:
        finished.append(1)

    request_finished.connect(receiver)
    try:
        with Site("auto") as site:
            environ = driver.environ_of("/stream/")
            del environ["wsgi.async"]
            result = site.app(environ, lambda *args: None)
            assert next(result) == b"0,"
            assert [event for event in views.events if "make" in event] == ["make 0"]
            result.close()
    finally:
        request_finished.disconnect(receiver)
    assert views.events[-1] == "stream closed"
    assert finished == [1]


def test_a_stream_that_fails_on_a_thread() -> None:
    with Site("auto") as site, pytest.raises(ValueError, match="in the stream"):
        serve_on_thread(site.app, "/stream-error/")


def test_a_file_through_the_wrapper_of_any_server() -> None:
    with Site("auto") as site:
        environ = driver.environ_of("/file/")
        del environ["wsgi.async"]
        environ["wsgi.file_wrapper"] = FileWrapper
        result = site.app(environ, lambda *args: None)
        assert isinstance(result, FileWrapper)
        file = result.filelike
        assert b"".join(result) == b"file content"
        result.close()
        assert file.closed


@pytest.fixture
def finished() -> Iterator[list[int]]:
    sent: list[int] = []

    def receiver(**kwargs: Any) -> None:
        sent.append(1)

    request_finished.connect(receiver)
    yield sent
    request_finished.disconnect(receiver)


@pytest.mark.parametrize("path", ["/file/", "/stream/", "/sync-stream/", "/hello/"])
def test_a_wrapper_that_closes_twice(path: str, finished: list[int]) -> None:
    """``yield from`` closes what it delegates to when it is closed itself."""

    def wrapper(environ: Any, start_response: Any) -> Any:
        iterable = site.app(environ, start_response)
        try:
            yield from iterable
        finally:
            iterable.close()

    with Site("auto") as site:
        environ = driver.environ_of(path, **{"wsgi.file_wrapper": FileWrapper})
        del environ["wsgi.async"]
        result = wrapper(environ, lambda *args: None)
        assert next(result)
        result.close()
    assert finished == [1]


@pytest.mark.parametrize("path", ["/hello/", "/plain/", "/stream/", "/sync-stream/", "/file/"])
def test_no_body_for_head(path: str, finished: list[int]) -> None:
    """Not every WSGI server sees to it. A stream isn't begun."""
    views.events.clear()
    with Site("auto") as site:
        answer = serve_on_thread(
            site.app, path, method="HEAD", **{"wsgi.file_wrapper": FileWrapper}
        )
    assert (answer.code, answer.body) == (200, b"")
    assert views.events == []
    assert finished == [1]


@pytest.mark.parametrize("code", [204, 304])
def test_no_body_where_none_may_be(code: int, finished: list[int]) -> None:
    with Site("auto", middleware=("django.middleware.common.CommonMiddleware",)) as site:
        answer = serve_on_thread(site.app, f"/status/{code}/")
    assert (answer.code, answer.body) == (code, b"")
    assert answer.header("Content-Length") == (None if code == 204 else "0")
    assert finished == [1]


@pytest.mark.parametrize("size", [10, 3 << 20])
def test_a_body_in_chunks_under_other_servers(size: int, finished: list[int]) -> None:
    """Without a length Django takes it for empty. A server says whether it may be read."""
    body = b"x" * size
    chunked = {"HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_LENGTH": ""}
    with Site("auto", DATA_UPLOAD_MAX_MEMORY_SIZE=None) as site:
        for ends, found in ((True, size), (False, 0)):
            answer = serve_on_thread(
                site.app,
                "/size/",
                method="POST",
                **{"wsgi.input": io.BytesIO(body), "wsgi.input_terminated": ends, **chunked},
            )
            assert answer.text == str(found)
    assert finished == [1, 1]


def test_the_largest_body_in_chunks(finished: list[int]) -> None:
    with Site("auto", GREENROOM={"MAX_BODY": 1000}) as site:
        for size, code in ((1000, 200), (1001, 413)):
            answer = serve_on_thread(
                site.app,
                "/size/",
                method="POST",
                **{"wsgi.input": io.BytesIO(b"x" * size), "wsgi.input_terminated": True},
                HTTP_TRANSFER_ENCODING="chunked",
                CONTENT_LENGTH="",
            )
            assert answer.code == code
    assert finished == [1]


def test_a_body_in_chunks_that_breaks_off(finished: list[int]) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError("the client has left")

    with Site("auto") as site, pytest.raises(OSError, match="has left"):
        serve_on_thread(
            site.app,
            "/size/",
            method="POST",
            **{"wsgi.input": Broken(), "wsgi.input_terminated": True},
            HTTP_TRANSFER_ENCODING="chunked",
            CONTENT_LENGTH="",
        )
    assert finished == []


def test_log_handlers_at_the_end_of_the_background_loop() -> None:
    """Those that may be slow are off the loop, and write all that is queued at exit."""
    code = """
import asyncio, logging, sys, threading
sys.path.insert(0, "tests")
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "project.settings"
import django
django.setup(set_prefix=False)

class Slow(logging.Handler):
    def emit(self, record):
        where = threading.current_thread().name
        print(record.getMessage(), where != "greenroom-background", flush=True)

logger = logging.getLogger("shop")
logger.addHandler(Slow())
from greenroom import get_wsgi_application, loops
import driver
app = get_wsgi_application()
environ = driver.environ_of("/hello/")
del environ["wsgi.async"]
list(app(environ, lambda *args: None))

async def say():
    for index in range(3):
        logger.error("%d", index)

asyncio.run_coroutine_threadsafe(say(), loops.background().loop).result(5)
"""
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(sys.path)},
        timeout=60,
    )
    assert (ran.stdout.splitlines(), ran.stderr) == (["0 True", "1 True", "2 True"], "")


def test_a_file_through_the_wrapper_on_the_loop(site: Site) -> None:
    class Wrapper:
        def __init__(self, file: Any, size: int) -> None:
            self.file, self.size = file, size

        def __iter__(self) -> Any:
            return iter(lambda: self.file.read(self.size), b"")

    answer = site.get("/file/", **{"wsgi.file_wrapper": Wrapper})
    assert answer.body == b"file content"


def test_many_threads_share_one_lasting_loop() -> None:
    with Site("auto") as site:
        app = site.app
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: serve_on_thread(app, "/hello/").text, range(100)))
    assert answers == ["Hello world!"] * 100
    assert [t.name for t in threading.enumerate()].count("greenroom-background") == 1


def test_a_plain_wsgi_wrapper_under_the_worker(site: Site) -> None:
    """Sentry's or OpenTelemetry's: a `def` that calls us on a thread of the worker."""

    async def main(site: Site) -> list[Answer]:
        def wrapped(path: str) -> Answer:
            return serve_on_thread(site.app, path)

        run = site.home.threads.run
        return [await run(wrapped, path) for path in ("/hello/", "/stream/", "/lifespan/")]

    hello, stream, lifespan = site.run(main)
    assert (hello.text, stream.text, lifespan.text) == ("Hello world!", "0,1,2,", "None")


@pytest.mark.parametrize("path", ["/lifespan/"])
def test_lifespan_is_entered_once_and_left(placement: str, path: str) -> None:
    lifespans.log.clear()

    async def main(site: Site) -> list[str]:
        answers = await asyncio.gather(*(site.ask(path) for _ in range(5)))
        assert lifespans.log == ["entered"]
        return [answer.text for answer in answers]

    with Site(placement, GREENROOM={"LIFESPAN": "project.lifespans.lifespan"}) as site:
        assert site.run(main) == ["a client"] * 5
    assert lifespans.log == ["entered", "left"]


def test_a_lifespan_that_fails_stops_the_start() -> None:
    async def main(site: Site) -> None:
        await site.app.coroutine_wsgi_startup()

    with (
        Site("auto", GREENROOM={"LIFESPAN": "project.lifespans.fails"}) as site,
        pytest.raises(RuntimeError, match="no upstream"),
    ):
        site.run(main)


def test_options_for_the_server() -> None:
    with Site("auto", GREENROOM={"MAX_PARKED": 7, "QUEUE_TIMEOUT": 2, "SPOOL_QUOTA": 9}) as site:
        assert site.app.coroutine_wsgi_options == {
            "max_parked": 7,
            "queue_timeout": 2,
            "spool_quota": 9,
            "max_body": 100 * 2**20,
            "stall_threshold": 0.1,
            "probes": None,
        }


def test_no_place_is_answered_503() -> None:
    """Coroutine views beyond MAX_PARKED wait, and are refused in time."""

    async def main(site: Site) -> list[int]:
        gate = asyncio.Event()
        views.gates["hold"] = gate
        held = [asyncio.create_task(site.ask("/gate/hold/")) for _ in range(2)]
        async with asyncio.timeout(10):
            while views.gate_waiters < 2:
                await asyncio.sleep(0.001)
        with pytest.raises(Exception, match="No place came free"):
            await site.ask("/hello/")
        gate.set()
        codes = [(await task).code for task in held]
        return [*codes, (await site.ask("/hello/")).code]

    views.gate_waiters = 0
    with Site("thread", max_parked=2, queue_timeout=0.2) as site:
        assert site.run(main) == [200, 200, 200]


def test_one_cache_client_per_thread() -> None:
    """Each request has a context of its own, and no new client for it."""

    async def main(site: Site) -> None:
        for _ in range(100):
            await site.ask("/cache/")

    views.cache_clients.clear()
    with Site("auto", threads=1) as site:
        site.run(main)
    assert len(views.cache_clients) == 100
    assert len(set(map(id, views.cache_clients))) == 1
    views.cache_clients.clear()


def test_cache_clients_stay_django_s_elsewhere() -> None:
    assert caches["default"] is caches["default"]
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(caches["default"]))
    thread.start()
    thread.join()
    assert found[0] is not caches["default"]


def test_one_cache_client_on_the_loop() -> None:
    async def main(site: Site) -> list[Any]:
        async def client() -> Any:
            return caches["default"]

        # Not one that they have from what ran before.
        return [await asyncio.create_task(client(), context=Context()) for _ in range(100)]

    with Site("auto") as site:
        clients = site.run(main)
    assert len(set(map(id, clients))) == 1


@pytest.mark.parametrize("path", ["/route/", "/pattern/"])
def test_a_translated_path_is_looked_up_in_the_language_of_the_request(path: str) -> None:
    """What was found before `LocaleMiddleware` is not what the path means after it."""
    with Site(
        "auto",
        middleware=("django.middleware.locale.LocaleMiddleware",),
        ROOT_URLCONF="project.urls_translated",
    ) as site:
        assert site.get(path, HTTP_ACCEPT_LANGUAGE="en").text == "there en"
        assert site.get(path, HTTP_ACCEPT_LANGUAGE="de").text == "here de"


def test_i18n_patterns_are_found_after_the_hint() -> None:
    """``/de/…`` is not found before `LocaleMiddleware`: the placement falls back."""
    with Site(
        "auto",
        middleware=("django.middleware.locale.LocaleMiddleware",),
        ROOT_URLCONF="project.urls_i18n",
    ) as site:
        for language in ("de", "fr", "en"):
            assert site.get(f"/{language}/hello/").text == f"hello {language}"
        assert site.get("/de/nowhere/").code == 404


def test_a_urlconf_that_queries_at_import_is_loaded_first(tmp_path: Any) -> None:
    """Twenty first requests, none of which meets a half-made module."""
    code = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "project.settings"
import django
from django.conf import settings
settings.ROOT_URLCONF = "slow_urls"
import driver
with driver.Site("auto", ROOT_URLCONF="slow_urls") as site:
    async def main(site):
        return await asyncio.gather(*(site.ask("/hello/") for _ in range(20)))
    _ = site.app
    print([answer.code for answer in site.run(main)])
"""
    (tmp_path / "slow_urls.py").write_text(
        "from django.db import connection\n"
        "with connection.cursor() as cursor:\n"
        "    cursor.execute('SELECT 1')\n"
        "from project.urls import urlpatterns\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(sys.path), "GREENROOM_TEST_DATABASE": ":memory:"},
        timeout=60,
    )
    assert (ran.stdout.strip(), ran.stderr) == (str([200] * 20), "")


def test_importing_the_package_imports_neither_models_nor_gunicorn() -> None:
    code = (
        "import sys, greenroom; greenroom.loop_safe, greenroom.await_, greenroom.bridged;"
        "print([m for m in sys.modules if m.split('.')[0] in ('gunicorn', 'uvloop')"
        " or m in ('django.contrib.auth.models', 'django.db.models')])"
    )
    bare = "import sys, greenroom; print([m for m in sys.modules if m.startswith('django')])"
    for source in (code.replace("greenroom.loop_safe, ", ""), bare):
        ran = subprocess.run(
            [sys.executable, "-c", source], capture_output=True, text=True, check=True
        )
        assert ran.stdout.strip() == "[]"


def test_the_home_of_a_loop_ends_with_it() -> None:
    async def main() -> bool:
        loop = asyncio.get_running_loop()
        home = loops.Home(loop, Threads(loop, limit=1))
        home.register()
        assert loops.current() is home
        await home.aclose()
        return loops.current() is None

    assert asyncio.run(main())


def test_upload_over_a_thread(site: Site) -> None:
    body = io.BytesIO(b"a=b")
    answer = site.get(
        "/upload/",
        method="POST",
        body=body.getvalue(),
        CONTENT_TYPE="application/x-www-form-urlencoded",
    )
    assert json.loads(answer.text) == {}
