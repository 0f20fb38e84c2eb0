"""Every way a request can go wrong: status, log record, signal, debug page, own handlers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import django
import pytest
from django.core.signals import got_request_exception, request_finished, request_started
from django.test import override_settings

from driver import Site

PATHS = [
    ("404", 404, "django.request", "Not Found: /raise/404/"),
    ("403", 403, "django.request", "Forbidden (Permission denied): /raise/403/"),
    ("400", 400, "django.request", "bad: /raise/400/"),
    ("suspicious", 400, "django.security.SuspiciousOperation", "odd"),
    ("error", 500, "django.request", "Internal Server Error: /raise/error/"),
]


@pytest.fixture
def signals() -> Iterator[list[str]]:
    """The request signals, in the order they are sent, and the place."""
    sent: list[str] = []

    def receivers(name: str) -> Any:
        def receiver(**kwargs: Any) -> None:
            sent.append(name)

        receiver.__module__ = "project.tests"
        return receiver

    kept = []
    for name, signal in (
        ("started", request_started),
        ("exception", got_request_exception),
        ("finished", request_finished),
    ):
        receiver = receivers(name)
        kept.append((signal, receiver))
        signal.connect(receiver)
    yield sent
    for signal, receiver in kept:
        signal.disconnect(receiver)


@pytest.mark.parametrize(("name", "status", "logger", "message"), PATHS)
def test_status_log_and_signals(
    site: Site,
    signals: list[str],
    caplog: pytest.LogCaptureFixture,
    name: str,
    status: int,
    logger: str,
    message: str,
) -> None:
    answer = site.get(f"/raise/{name}/")
    assert answer.code == status
    records = [record for record in caplog.records if record.name.startswith("django")]
    if name == "suspicious" and django.VERSION < (5, 2, 2):
        # Django logged it a second time, as any 400.
        assert records.pop().getMessage() == "Bad Request: /raise/suspicious/"
    assert [(record.name, record.getMessage()) for record in records] == [(logger, message)]
    assert signals == ["started", *(["exception"] if status == 500 else []), "finished"]
    # Made where mail may be sent and files be read.
    assert records[0].threadName is not None
    assert records[0].threadName.startswith("greenroom-")
    if status == 500:
        assert records[0].exc_info is not None
        assert isinstance(records[0].exc_info[1], ValueError)


@pytest.mark.parametrize(("name", "status", "logger", "message"), PATHS)
def test_debug_pages(site: Site, name: str, status: int, logger: str, message: str) -> None:
    with override_settings(DEBUG=True):
        answer = site.get(f"/raise/{name}/")
    assert answer.code == status
    if name == "error":
        assert "ValueError at /raise/error/" in answer.text
        assert "raise type(error)(*error.args)" in answer.text
    elif name == "404":
        assert "no such page" in answer.text


@pytest.mark.parametrize("name", ["404", "403", "400", "error"])
def test_own_coroutine_error_handlers(placement: str, name: str) -> None:
    with Site(placement, ROOT_URLCONF="project.urls_errors") as site:
        answer = site.get(f"/raise/{name}/")
    assert answer.code == {"error": 500}.get(name) or int(name)
    assert answer.text == f"own {answer.code} on loop"


def test_unknown_path(site: Site, signals: list[str]) -> None:
    assert site.get("/nowhere/").code == 404
    assert signals == ["started", "finished"]


def test_bad_host_is_logged_off_the_loop(placement: str, caplog: pytest.LogCaptureFixture) -> None:
    with Site(placement, middleware=("django.middleware.common.CommonMiddleware",)) as site:
        answer = site.get("/hello/", HTTP_HOST="evil.example")
    assert answer.code == 400
    (record,) = [record for record in caplog.records if record.name.startswith("django.security")]
    assert record.threadName is not None
    assert record.threadName.startswith("greenroom-")


def test_path_that_is_no_utf8(site: Site) -> None:
    assert site.get("/hello/", PATH_INFO="/\xff/").code == 404
    assert site.get("/hello/", SCRIPT_NAME="/\xff").code == 400


@pytest.mark.parametrize(
    ("body", "boundary", "files"),
    [
        (b"not multipart at all", "", False),
        (
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nv\r\n' * 6 + b"--x--",
            "x",
            False,
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="a"; filename="f"\r\n\r\nv\r\n' * 6
            + b"--x--",
            "x",
            True,
        ),
    ],
    ids=["malformed", "too many fields", "too many files"],
)
def test_bad_uploads(site: Site, body: bytes, boundary: str, files: bool) -> None:
    limits = {"DATA_UPLOAD_MAX_NUMBER_FIELDS": 3, "DATA_UPLOAD_MAX_NUMBER_FILES": 3}
    with override_settings(**limits):
        answer = site.get(
            "/upload/",
            method="POST",
            body=body,
            CONTENT_TYPE=f"multipart/form-data; boundary={boundary}",
        )
    assert answer.code == 400


def test_a_view_that_returns_none_is_named(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    assert site.get("/none/").code == 500
    assert "The view project.views.nothing didn't return an HttpResponse" in str(
        [record.exc_info for record in caplog.records if record.exc_info]
    )


@pytest.mark.parametrize(
    ("path", "mend"),
    [
        ("/unmarked-future/", "asgiref.sync.markcoroutinefunction"),
        ("/undecorated-generator/", "@types.coroutine"),
    ],
)
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_an_error_names_the_mend(
    site: Site, caplog: pytest.LogCaptureFixture, path: str, mend: str
) -> None:
    assert site.get(path).code == 500
    assert mend in str([record.exc_info for record in caplog.records if record.exc_info])


def test_an_exception_in_a_stream_reaches_the_server(site: Site, signals: list[str]) -> None:
    with pytest.raises(ValueError, match="in the stream"):
        site.get("/stream-error/")
    assert signals == ["started", "finished"]


def test_system_exit_reaches_the_server(site: Site, signals: list[str]) -> None:
    """In a task of its own it would end the loop: the server catches it there."""

    async def main(site: Site) -> int | str | None:
        import driver

        try:
            await driver.ask(site.app, "/raise/exit/")
        except SystemExit as exc:
            return exc.code
        return None

    assert site.run(main) == 3
    assert signals == ["started", "finished"]


def test_a_handler_that_may_block_gets_a_thread(placement: str) -> None:
    """A view logs to a handler that blocks: the loop goes on."""
    from greenroom import logs

    made: list[tuple[str, str]] = []

    class Mail(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            made.append((record.getMessage(), threading.current_thread().name))
            written.set()

    written = threading.Event()
    logger = logging.getLogger("project.mail")
    handler = Mail()
    logger.addHandler(handler)
    listener = logs.take_off_loop()
    assert listener is not None
    try:

        async def main(site: Site) -> str:
            word = ["first"]
            logger.error("%s record", word)
            word[0] = "changed"
            return threading.current_thread().name

        with Site(placement) as site:
            loop_thread = site.run(main)
        assert written.wait(5)
        logger.error("elsewhere")
    finally:
        listener.stop()
        logger.handlers.clear()
    (first, first_thread), (second, second_thread) = made
    assert (first, second) == ("['first'] record", "elsewhere")
    assert first_thread != loop_thread
    assert second_thread == threading.current_thread().name
