"""django-allauth: a thread-local that it keeps while it queries.

Its backend puts a user who may not log in there, and its adapter takes him out after all
backends and receivers were asked: on the loop's thread, perhaps in another request.

Replaced: `allauth.account.auth_backends._stash`.
"""

from __future__ import annotations

from typing import Any

from asgiref.local import Local

from . import when_imported


def apply() -> None:
    when_imported("allauth.account.auth_backends", _stash_by_context)


def _stash_by_context(module: Any) -> None:
    module._stash = Local()
