"""Hooks of pytest's that make a run in several processes fail as a whole if one of them dies.

Else the test that it ran is one that failed, and may pass when it is run again.
"""

from __future__ import annotations

from typing import Any

import pytest

_died = pytest.StashKey[bool]()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """A process has ended: with an error, if nobody asked it to."""
    if error:
        node.config.stash[_died] = True


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.stash.get(_died, False):
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
