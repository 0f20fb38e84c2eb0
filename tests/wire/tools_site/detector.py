"""Finds what blocks the event loop of a worker: `activate()` in its `post_worker_init`.

Each call that may block, made on the thread of a running loop, inside greenlets too, raises and
is written to stderr with its stack: whoever called may have caught the error.
"""

import builtins
import io
import os
import socket
import sys
import traceback

from blockbuster import BlockBuster, BlockBusterFunction, blockbuster

# What blockbuster doesn't look at: opening a file waits for the disk as reading does.
MORE = [
    (builtins, "open"),
    (io, "open"),
    (os, "open"),
    (os, "scandir"),
    (socket, "getaddrinfo"),
    (socket, "gethostbyname"),
]
# What may block, and why.
TOLERATED = [
    # Nothing is served yet.
    ("greenroom/worker.py", {"_start"}),
    # Into a socket that doesn't block, a block of a file at a time: see there.
    ("greenroom/server/response.py", {"_sendfile"}),
    # A template's first reading, where a coroutine renders it itself: once per process.
    ("django/template/loaders/filesystem.py", {"get_contents"}),
]


class Reported(blockbuster.BlockingError):
    def __init__(self, func):
        super().__init__(func)
        stack = "".join(traceback.format_stack(sys._getframe(2)))
        print(f"BLOCKED by {func}\n{stack}BLOCKED: end", file=sys.stderr, flush=True)


def activate():
    blockbuster.BlockingError = Reported
    detector = BlockBuster()
    for module, name in MORE:
        detector.functions[f"{module.__name__}.{name}"] = BlockBusterFunction(module, name)
    for function in detector.functions.values():
        for file, names in TOLERATED:
            function.can_block_in(file, names)
    detector.activate()
