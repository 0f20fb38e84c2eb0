"""Log records made on the loop never wait there for a handler that may block.

A handler that mails, sends or queries would hold up every request, and its lock
would be held over a switch point. `take_off_loop` puts such handlers behind a
queue with a thread of its own, for records made on the loop's thread; records
made elsewhere reach them as before. There they have the context of the record, and
database connections of the thread's own, closed as after a request.

Handlers that only write to a local stream or file are left as they are.
"""

from __future__ import annotations

import asyncio
import logging
import logging.handlers
from contextvars import copy_context
from copy import copy
from functools import partial
from queue import SimpleQueue
from typing import Any

from django.db import close_old_connections

from .db import borrow

# Exactly these classes: a subclass may do anything.
NON_BLOCKING: frozenset[type[logging.Handler]] = frozenset(
    {
        logging.FileHandler,
        logging.NullHandler,
        logging.StreamHandler,
        logging.handlers.QueueHandler,
        logging.handlers.RotatingFileHandler,
        logging.handlers.TimedRotatingFileHandler,
        logging.handlers.WatchedFileHandler,
    }
)


# Those of test tools, which keep records to look at them at once.
_OF_TESTS = frozenset({"_pytest.logging", "unittest._log"})


class OffLoopHandler(logging.handlers.QueueHandler):
    """Stands in the place of a handler that may block, and knows its level and filters.

    Filters run where the record is made: they may read what is local to a request.
    """

    def __init__(self, handler: logging.Handler, queue: Any) -> None:
        self.handler = handler
        super().__init__(queue)
        # Its own `handle` may do anything, so filters are left to it.
        self._plain = type(handler).handle is logging.Handler.handle

    @property
    def level(self) -> int:
        """The handler's, which may be changed at any time."""
        return self.handler.level

    @level.setter
    def level(self, level: int) -> None:
        """Set by `logging.Handler` when it is made."""

    def setLevel(self, level: int | str) -> None:
        self.handler.setLevel(level)

    def addFilter(self, filter: Any) -> None:
        self.handler.addFilter(filter)

    def removeFilter(self, filter: Any) -> None:
        self.handler.removeFilter(filter)

    def handle(self, record: logging.LogRecord) -> Any:
        if asyncio._get_running_loop() is None:
            return self.handler.handle(record)
        if self._plain:
            passed = self.handler.filter(record)
            if not passed:
                return False
            if isinstance(passed, logging.LogRecord):
                # Since Python 3.12 a filter may return another record.
                record = passed
        self.emit(record)
        return record

    def prepare(self, record: logging.LogRecord) -> Any:
        """A copy with the message fixed, since it may refer to what changes.

        The handler is in this process: the request and the exception stay on the
        record, since Django's mail to the admins is made from them. Its formatter
        finds the context that the record was made in.
        """
        message = record.getMessage()
        record = copy(record)
        record.msg, record.args = message, None
        write = self.handler.handle if not self._plain else self._write
        context = copy_context()
        # Whose transaction may have ended when the record is written.
        context.run(borrow.forget)
        return partial(context.run, write, record), self.handler, record

    def _write(self, record: logging.LogRecord) -> None:
        self.handler.acquire()
        try:
            self.handler.emit(record)
        finally:
            self.handler.release()

    def close(self) -> None:
        self.handler.close()
        super().close()


class _Listener(logging.handlers.QueueListener):
    """Writes what was queued, in a thread; `stop()` puts the handlers back."""

    def __init__(self, queue: SimpleQueue[Any]) -> None:
        super().__init__(queue)
        self.replaced: list[tuple[logging.Logger, OffLoopHandler]] = []

    def handle(self, record: Any) -> None:
        write, handler, record = record
        try:
            write()
        except Exception:
            # It must not end this thread, and with it all other handlers.
            handler.handleError(record)
        finally:
            # As after a request: nobody else closes the connections of this thread.
            close_old_connections()

    def stop(self) -> None:
        for logger, stand_in in self.replaced:
            if stand_in in logger.handlers:
                logger.handlers[logger.handlers.index(stand_in)] = stand_in.handler
        super().stop()


def take_off_loop() -> logging.handlers.QueueListener | None:
    """Queue every configured handler that may block. Returns what to `stop()`.

    None if there is no such handler.
    """
    listener = _Listener(SimpleQueue())
    stand_ins: dict[logging.Handler, OffLoopHandler] = {}
    for logger in (logging.root, *logging.root.manager.loggerDict.values()):
        if not isinstance(logger, logging.Logger):
            continue
        for index, handler in enumerate(logger.handlers):
            kind = type(handler)
            if kind in NON_BLOCKING or kind.__module__ in _OF_TESTS:
                continue
            if isinstance(handler, OffLoopHandler):
                continue
            if handler not in stand_ins:
                stand_ins[handler] = OffLoopHandler(handler, listener.queue)
            logger.handlers[index] = stand_ins[handler]
            listener.replaced.append((logger, stand_ins[handler]))
    if not stand_ins:
        return None
    listener.start()
    return listener
