"""Cancelled while a statement is on its way to the server, which takes no more of it."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest
from django.db import connection

from greenroom.db import borrow, postgresql


def test_cancelled_while_a_statement_is_sent(
    database: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if database.vendor != "postgresql":
        pytest.skip("there is no server")
    monkeypatch.setattr(postgresql, "CANCEL", 0.3)
    raised: list[BaseException] = []

    async def main(ask: Any) -> None:
        pids: list[int] = []

        async def view(request: Any) -> None:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid()")
                pids.append(cursor.fetchone()[0])
                os.kill(pids[0], signal.SIGSTOP)
                try:
                    cursor.execute("SELECT length(%s)", ["x" * 20_000_000])
                except BaseException as exc:
                    raised.append(exc)
                    raise

        task = asyncio.ensure_future(ask(view))
        while not pids:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        task.cancel()
        try:
            await asyncio.wait([task])
        finally:
            os.kill(pids[0], signal.SIGCONT)
        assert [type(each) for each in raised] == [asyncio.CancelledError]
        assert sum(len(pool._loans) for pool in borrow.pools()) == 0

    database.run(main, "loop")
