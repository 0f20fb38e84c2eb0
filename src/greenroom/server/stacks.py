"""What runs, in words for a log: stacks, and the requests that are in flight.

Rule 1: **no frame is kept.** A frame of another thread that is still referred to
when its function returns is taken apart on the wrong thread, with all that its
variables hold. So `places` notes code and line of each frame in one go, which
takes some microseconds, and only then are files read.

Rule 2: **all is bounded**: the arbiter that aborts a worker kills it a second later.

Rule 3: **no query strings**: they may be secret.

Rule 4: **no source is kept**: `linecache`, which `traceback` asks for a line, keeps every file
that it has read, whole. The modules below one busy site's views took 1.7 MB of each worker,
some more with each stall elsewhere: it looked like a leak. To read 40 lines anew takes 1 ms.
"""

from __future__ import annotations

import asyncio
import tokenize
import traceback
from collections.abc import Iterable, Sequence
from itertools import islice
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

from .. import bridge

if TYPE_CHECKING:
    from .app import Exchange

Place = tuple[CodeType, int]

# Of the stack of what blocks the loop, innermost.
FRAMES = 40
# Of each stack that is suspended, and how many of these.
_FEW_FRAMES = 8
_STACKS = 10
# Requests that are named.
_NAMED = 10


def places(frame: FrameType | None, root: CodeType | None = None) -> list[Place]:
    """Where each function of a stack is, the innermost first, up to that of `root`."""
    found: list[Place] = []
    while frame is not None and frame.f_code is not root:
        found.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return found


def text(found: Sequence[Place], most: int = FRAMES) -> str:
    """A stack as in a traceback, the innermost last. Reads the source files."""
    summary = traceback.StackSummary.from_list(
        [
            traceback.FrameSummary(
                code.co_filename, line, code.co_qualname, line=_source(code.co_filename, line)
            )
            for code, line in reversed(found[:most])
        ]
    )
    more = f"  (outside of it: {len(found) - most} more)\n" if len(found) > most else ""
    return more + "".join(summary.format()).rstrip("\n")


def _source(filename: str, line: int) -> str:
    """A line of a file; empty where there is none, as of a template's code."""
    try:
        # As Python reads it: by its declared encoding. (A frame may be at no line.)
        with tokenize.open(filename) as file:
            return next(islice(file, (line or 0) - 1, None), "").strip()
    except (OSError, SyntaxError, ValueError):
        return ""


def innermost(found: Sequence[Place]) -> str:
    """The function that runs, for a line of its own."""
    code, line = found[0]
    return f"{code.co_qualname} ({code.co_filename}:{line})"


def name(exchange: Exchange) -> str:
    return f"{exchange.request.method} {exchange.request.path}"


def names(named: Iterable[str]) -> str:
    """Some of the names, and how many more there are."""
    known = list(named)
    more = f" and {len(known) - _NAMED} more" if len(known) > _NAMED else ""
    return ", ".join(known[:_NAMED]) + more


def current(loop: asyncio.AbstractEventLoop, exchanges: set[Exchange]) -> str:
    """What the loop runs: a request, or another task. May be asked by any thread."""
    task = asyncio.current_task(loop)
    if task is None:
        return "a callback of no task"
    # Copied in one go: the loop's thread changes it.
    for exchange in list(exchanges):
        if exchange.task is task:
            return name(exchange)
    coroutine: Any = task.get_coro()
    return f"the task {getattr(coroutine, '__qualname__', coroutine)!s}"


def autopsy(
    loop: asyncio.AbstractEventLoop,
    exchanges: set[Exchange],
    interrupted: FrameType | None,
    root: CodeType,
) -> str:
    """What a worker was doing when it was aborted. On the loop's thread.

    `interrupted` is the frame that its signal handler was given, `root` what runs
    the loop.
    """
    found = places(interrupted, root)
    for outer in bridge.outer_frames():
        found += places(outer, root)
    if found:
        parts = [f"It ran {current(loop, exchanges)}:\n{text(found)}"]
    else:
        parts = ["It ran nothing: the process was stopped, or got no processor."]
    now = loop.time()
    oldest = sorted(exchanges, key=lambda each: each.started)
    if oldest:
        listed = names(f"{name(each)} ({now - each.started:.1f} s)" for each in oldest)
        parts.append(f"In flight, the oldest first: {listed}")
    requests = {each.task: name(each) for each in oldest}
    suspended = bridge.suspended(loop)
    for task, frame in suspended[:_STACKS]:
        whose = requests.get(task) or f"the task {task.get_name()}"
        parts.append(f"Suspended in synchronous code, {whose}:\n{text(places(frame), _FEW_FRAMES)}")
    if len(suspended) > _STACKS:
        parts.append(f"Suspended too: {len(suspended) - _STACKS} more")
    return "\n".join(parts)
