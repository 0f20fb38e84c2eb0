"""Log records made on the loop never wait there for a handler that may block.

A handler that mails, sends or queries would hold up every request, and its lock
would be held over a switch point. `take_off_loop` puts such handlers behind a
queue with a thread of its own, for records made on the loop's thread; records
made elsewhere reach them as before.

Handlers that only write to a local stream or file are left as they are.
"""

from __future__ import annotations

import asyncio
import logging
import logging.handlers
from queue import SimpleQueue
from typing import Any

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


class OffLoopHandler(logging.handlers.QueueHandler):
    """Stands in the place of a handler that may block, and knows its level and filters."""

    def __init__(self, handler: logging.Handler, queue: Any) -> None:
        super().__init__(queue)
        self.handler = handler
        self.setLevel(handler.level)

    def handle(self, record: logging.LogRecord) -> Any:
        if asyncio._get_running_loop() is None:
            return self.handler.handle(record)
        if self.handler.filter(record):
            self.emit(record)
        return True

    def prepare(self, record: logging.LogRecord) -> Any:
        """Fix the message, which may refer to what changes; keep all the rest.

        The handler is in this process: the request and the exception stay on the
        record, since Django's mail to the admins is made from them.
        """
        if record.args:
            record.msg = record.getMessage()
            record.args = None
        return self.handler, record

    def close(self) -> None:
        self.handler.close()
        super().close()


class _Listener(logging.handlers.QueueListener):
    """Writes what was queued, in a thread; `stop()` puts the handlers back."""

    def __init__(self, queue: SimpleQueue[Any]) -> None:
        super().__init__(queue)
        self.replaced: list[tuple[logging.Logger, OffLoopHandler]] = []

    def handle(self, record: Any) -> None:
        handler, record = record
        handler.acquire()
        try:
            handler.emit(record)
        finally:
            handler.release()

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
            if type(handler) in NON_BLOCKING or isinstance(handler, OffLoopHandler):
                continue
            if handler not in stand_ins:
                stand_ins[handler] = OffLoopHandler(handler, listener.queue)
            logger.handlers[index] = stand_ins[handler]
            listener.replaced.append((logger, stand_ins[handler]))
    if not stand_ins:
        return None
    listener.start()
    return listener
