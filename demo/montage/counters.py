"""What the process is doing now, as `/status` tells it.

Counted by the views themselves and not by a middleware: one of our own would be code that
Greenroom does not know, and would move the coroutine views onto threads.
"""

import functools
import inspect
import os
import threading
from collections import Counter
from contextlib import contextmanager

_lock = threading.Lock()
_now = Counter()


@contextmanager
def counting(what):
    with _lock:
        _now[what] += 1
    try:
        yield
    finally:
        with _lock:
            _now[what] -= 1


def counted(view):
    if inspect.iscoroutinefunction(view):

        @functools.wraps(view)
        async def wrapper(request, *args, **kwargs):
            with counting("requests"):
                return await view(request, *args, **kwargs)

    else:

        @functools.wraps(view)
        def wrapper(request, *args, **kwargs):
            with counting("requests"):
                return view(request, *args, **kwargs)

    return wrapper


def status():
    return {
        "pid": os.getpid(),
        "threads": _threads(),
        "requests": _now["requests"],
        "listeners": _now["listeners"],
    }


def _threads():
    try:
        return len(os.listdir("/proc/self/task"))  # those of C libraries too
    except OSError:
        return threading.active_count()
