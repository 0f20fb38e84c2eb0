"""Queries to PostgreSQL from coroutine views, beneath the seven default middlewares.

    make bench                              # this and waiting.py
    .venv/bin/python bench/queries.py --queries 20 --connections 16 --rounds 3

Every peer runs the view that suits it: coroutines with Django's a… calls under ASGI,
and under WSGI both those and the plain view. uvicorn with psycopg's pool, as Django's
docs advise there, and without. Connections are kept (CONN_MAX_AGE = 60) where there
is no pool. PostgreSQL's server is a private one, as the tests have it, and shares
wrk's core. How it is measured: measuring.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from measuring import HERE, Server, gunicorn, in_turns, leave_a_core, need_wrk, table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import postgresql


def servers(count: int, database: dict[str, Any]) -> list[Server]:
    def environment(application: str = "django", **more: Any) -> dict[str, str]:
        entry = {**database, "CONN_MAX_AGE": 60, **more}
        return {
            "BENCH_APPLICATION": application,
            "BENCH_DATABASE": json.dumps(entry),
            "BENCH_QUERIES": str(count),
        }

    pool = {"CONN_MAX_AGE": 0, "OPTIONS": {"pool": {"min_size": 4, "max_size": 20}}}
    uvicorn = [
        *(sys.executable, "-m", "uvicorn", "site_asgi:application", "--port", "{port}"),
        *("--no-access-log", "--log-level", "error"),
    ]

    def granian(interface: str, *arguments: str) -> list[str]:
        module = "site_wsgi" if interface == "wsgi" else "site_asgi"
        return [
            *(sys.executable, "-m", "granian", "--interface", interface, "--port", "{port}"),
            *("--no-log", *arguments, f"{module}:application"),
        ]

    return [
        Server(
            "Greenroom, coroutine view",
            "/coroutine/query/",
            gunicorn("-k", "greenroom.Worker", "--threads", "1"),
            environment("greenroom"),
        ),
        Server(
            "Greenroom, plain view",
            "/plain/query/",
            gunicorn("-k", "greenroom.Worker", "--threads", "8"),
            environment("greenroom"),
        ),
        Server("uvicorn, coroutine view, pool", "/coroutine/query/", uvicorn, environment(**pool)),
        Server(
            "uvicorn, coroutine view, no pool",
            "/coroutine/query/",
            uvicorn,
            # There it would leak a connection a request.
            environment(CONN_MAX_AGE=0),
        ),
        *(
            Server(
                f"gthread, {kind} view, 8 threads",
                f"/{kind}/query/",
                gunicorn("-k", "gthread", "--threads", "8"),
                environment(),
            )
            for kind in ("plain", "coroutine")
        ),
        *(
            Server(
                f"granian WSGI, {kind} view, 8 threads",
                f"/{kind}/query/",
                granian("wsgi", "--blocking-threads", "8"),
                environment(),
            )
            for kind in ("plain", "coroutine")
        ),
        Server(
            "granian ASGI, coroutine view, pool",
            "/coroutine/query/",
            granian("asgi"),
            environment(**pool),
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=1)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    need_wrk()
    leave_a_core()
    with postgresql.server() as pg:
        database = pg.create("bench")
        measured = servers(options.queries, database)
        manage = [sys.executable, "-m", "django", "migrate", "--verbosity", "0"]
        variables = measured[0].environment | {"DJANGO_SETTINGS_MODULE": "site_settings"}
        subprocess.run(manage, cwd=HERE, env=os.environ | variables, check=True)
        pg.execute("INSERT INTO auth_group (id, name) VALUES (1, 'measured')", "bench")
        in_turns(measured, options.rounds, options.connections, options.seconds)
    print(f"{options.queries} queries a request, {options.connections} connections\n")
    print("\n".join(table(measured)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
