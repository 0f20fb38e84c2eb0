"""WhiteNoise: what touches the disk leaves the loop.

Its middleware looks a request's path up in a dictionary. A path in it is a file, which it
opens; with `autorefresh`, in development, it looks for the file instead.

Replaced: `WhiteNoise.find_file` (`whitenoise.base`), `StaticFile.get_response`
(`whitenoise.responders`).
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from ..off_loop import off_loop
from . import when_imported


def apply() -> None:
    when_imported("whitenoise.base", lambda module: _leaves(module.WhiteNoise, "find_file"))
    when_imported(
        "whitenoise.responders", lambda module: _leaves(module.StaticFile, "get_response")
    )


def _leaves(owner: type, name: str) -> None:
    original = getattr(owner, name, None)
    if original is None:
        # Of a version that wasn't read, whose middleware is on a thread.
        return

    @wraps(original)
    def method(self: Any, *args: Any) -> Any:
        return off_loop(original, self, *args)

    setattr(owner, name, method)
