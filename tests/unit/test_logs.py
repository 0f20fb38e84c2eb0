"""Handlers that may block get their records in a thread, as they would have got them."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from greenroom import logs

word: ContextVar[str] = ContextVar("word", default="unset")
logger = logging.getLogger("project.queued")


class Notes(logging.Handler):
    """Notes what it got: message, the context variable's value, thread."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[str, str, int]] = []
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == "fails":
            raise ValueError("in emit")
        self.made.append((record.getMessage(), word.get(), threading.get_ident()))
        self.records.append(record)


class Overrides(Notes):
    def handle(self, record: logging.LogRecord) -> bool:
        self.made.append(("handle", "", threading.get_ident()))
        return super().handle(record)


@pytest.fixture
def clean() -> Iterator[None]:
    yield
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)


def on_loop(*handlers: logging.Handler, say: Any) -> None:
    """Log on a loop, with the handlers queued; then wait for the queue."""
    logger.handlers[:] = handlers

    async def main() -> None:
        listener = logs.take_off_loop()
        assert listener is not None
        try:
            say()
        finally:
            await asyncio.to_thread(listener.stop)

    asyncio.run(main())
    assert logger.handlers == list(handlers)


pytestmark = pytest.mark.usefixtures("clean")


def test_the_context_and_the_record_of_others() -> None:
    notes, others = Notes(), Notes()
    seen: list[Any] = []

    class Next(logging.StreamHandler[Any]):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.args)

    def say() -> None:
        word.set("a request's")
        # A handler that isn't queued comes after, and gets the record as it was made.
        logger.handlers.append(plain)
        logger.error("%s of %d", "one", 2, stack_info=True)
        logger.handlers.remove(plain)

    plain = Next()
    on_loop(notes, others, say=say)
    for each in (notes, others):
        ((message, value, thread),) = each.made
        assert (message, value) == ("one of 2", "a request's")
        assert thread != threading.get_ident()
        assert each.records[0].stack_info is not None
    assert seen == [("one", 2)]


def test_levels_and_filters_may_change() -> None:
    notes = Notes()
    notes.setLevel(logging.ERROR)

    def say() -> None:
        logger.warning("below")
        notes.setLevel(logging.WARNING)
        logger.warning("above")
        notes.addFilter(lambda record: "not" not in record.msg)
        logger.warning("not this")
        (stand_in,) = logger.handlers
        stand_in.setLevel(logging.CRITICAL)
        logger.error("below again")

    on_loop(notes, say=say)
    assert [message for message, *_ in notes.made] == ["above"]
    assert notes.level == logging.CRITICAL


def test_a_filter_may_replace_the_record() -> None:
    """Since Python 3.12; before, what it returns is only true or false."""
    direct, queued = Notes(), Notes()

    def replace(record: logging.LogRecord) -> Any:
        return logging.makeLogRecord({"msg": "replaced"})

    direct.addFilter(replace)
    queued.addFilter(replace)
    logger.handlers[:] = [direct]
    logger.error("original")
    on_loop(queued, say=lambda: logger.error("original"))
    assert [m for m, *_ in queued.made] == [m for m, *_ in direct.made]


def test_a_handler_with_a_handle_of_its_own() -> None:
    notes = Overrides()
    on_loop(notes, say=lambda: logger.error("message"))
    assert [message for message, *_ in notes.made] == ["handle", "message"]
    assert threading.get_ident() not in [thread for *_, thread in notes.made]


def test_an_error_in_a_handler_loses_no_other_record(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest's own handler raises what it can't format.
    monkeypatch.setattr(logger, "propagate", False)
    notes = Notes()

    def say() -> None:
        logger.error("fails")
        logger.error("%d", "no number")
        logger.error("later")

    on_loop(notes, say=say)
    assert [message for message, *_ in notes.made] == ["later"]
    assert "in emit" in capsys.readouterr().err


def test_one_stand_in_for_a_handler_of_several_loggers() -> None:
    notes = Notes()
    child = logger.getChild("inner")
    child.addHandler(notes)
    try:
        on_loop(notes, say=lambda: child.error("once each"))
    finally:
        child.removeHandler(notes)
    assert [message for message, *_ in notes.made] == ["once each"] * 2
