"""PostgreSQL beneath other servers: nothing is lost, and nothing is left."""

from __future__ import annotations

import asyncio
import os
from collections import Counter as Tally
from pathlib import Path

import pytest

import servers
import soak
from postgresql import PostgreSQL

HERE = Path(__file__).resolve().parent
ALL = bool(os.environ.get("GREENROOM_SERVERS"))
REQUESTS = 300 if ALL else 200

NAMES = ["uvicorn", "gthread"]
if ALL:
    # These clients keep their connections: not uWSGI and wsgiref, whose streams have no other
    # end, and not Apache, which closes those that are idle when it is busy.
    NAMES += ["granian", "hypercorn", "daphne", "gunicorn-asgi", "sync", "granian-wsgi", "waitress"]


@pytest.mark.once
@pytest.mark.parametrize("name", NAMES)
def test_many_requests_some_of_which_their_client_leaves(pg: PostgreSQL, name: str) -> None:
    kind = servers.require(name)
    database = f"servers_{name.replace('-', '_')}"
    environment = soak.environment_of(pg.create(database))
    cookies = soak.prepare(environment)
    try:
        with servers.start(name, "orm_site", cwd=HERE, env=environment) as server:

            async def ask() -> tuple[list[str], list[str]]:
                _, wrong = await soak.over_sockets(server.address, cookies, REQUESTS, seed=1)
                await soak.settled(lambda: soak.numbers(server.address))
                return wrong, (await soak.numbers(server.address, "/marked/"))["marks"]

            wrong, marks = asyncio.run(ask())
            assert wrong == []
            # Each row that was committed was marked, once, by `on_commit`; and no other.
            rows = [row.key for row in pg.execute("SELECT key FROM orm_site_entry", database)]
            assert Tally(marks) == Tally(rows)
            assert len(rows) > REQUESTS / 10
            assert {row.state for row in pg.connections(database)} <= {"idle"}
            server.stop(kind.ends)
        assert list(pg.connections(database)) == []
    finally:
        pg.drop(database)
