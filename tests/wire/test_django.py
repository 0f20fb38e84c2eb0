"""A Django project under real gunicorn processes with real clients, in both placements."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import Server, serve

HERE = Path(__file__).resolve().parent


def site(
    module: str = "wsgi", *, threads: int = 2, env: dict[str, str] | None = None, **more: Any
) -> AbstractContextManager[Server]:
    environment = {"DJANGO_SETTINGS_MODULE": "django_site.settings", **(env or {})}
    app = f"django_site.{module}:application"
    return serve(app, threads=threads, cwd=HERE, env=environment, **more)


def greenroom(**settings: Any) -> dict[str, str]:
    return {"SITE_GREENROOM": json.dumps(settings)}


def events(server: Server) -> dict[str, Any]:
    return dict(httpx.get(f"{server.url}/events/").json())


def until(condition: Any, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


@pytest.mark.parametrize("chunked", [False, True])
def test_the_largest_body(chunked: bool) -> None:
    with site(env=greenroom(MAX_BODY=50_000)) as server:
        for size, expected in ((50_000, 200), (50_001, 413)):
            body: Any = b"x" * size
            answer = httpx.post(f"{server.url}/upload/", content=iter([body]) if chunked else body)
            assert answer.status_code == expected
        # Nothing of it is sent when it is asked first.
        with server.connect() as sock:
            sock.sendall(
                b"POST /upload/ HTTP/1.1\r\nHost: 127.0.0.1\r\nExpect: 100-continue\r\n"
                b"Content-Length: 50001\r\n\r\n"
            )
            assert sock.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_a_stream_beneath_a_plain_wrapper_parks_its_thread() -> None:
    """One place for running threads: a stream that goes on takes none of it."""
    with site("wrapped", threads=1) as server:
        with (
            httpx.stream("GET", f"{server.url}/stream/") as one,
            httpx.stream("GET", f"{server.url}/stream/") as other,
        ):
            lines = one.iter_lines(), other.iter_lines()
            assert [next(each) for each in lines] == ["tick"] * 2
            assert httpx.get(f"{server.url}/plain/").text == "plain"
            assert [next(each) for each in lines] == ["tick"] * 2
        until(lambda: events(server)["seen"].count("response closed") == 2)


def test_a_client_that_leaves_a_view() -> None:
    for placement in ("auto", "thread"):
        with site(env=greenroom(PLACEMENT=placement)) as server:
            with server.connect() as sock:
                sock.sendall(b"GET /wait/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                until(lambda server=server: "begun" in events(server)["seen"])
            until(lambda server=server: "finally" in events(server)["seen"])
            seen = [
                event for event in events(server)["seen"] if event not in ("started", "finished")
            ]
            assert seen == ["begun", "cancelled", "finally"]
            finished = events(server)["seen"].count("finished")
            # Each look at the events is a request of its own, and finished once.
            assert events(server)["seen"].count("finished") == finished + 1


def test_many_wait_and_no_thread_more() -> None:
    async def ask(url: str, count: int) -> list[int]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, limits=limits, timeout=30) as client:
            answers = await asyncio.gather(*(client.get("/sleep/0.5/") for _ in range(count)))
        return [answer.status_code for answer in answers]

    with site(threads=1) as server:
        before = events(server)["threads"]
        assert asyncio.run(ask(server.url, 200)) == [200] * 200
        assert events(server)["threads"] == before


def test_pages_that_call_back_above_the_bound_of_parked_threads() -> None:
    """Eight pages in eight places, each asking its own server: none is locked up."""

    async def ask(url: str, to: str) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            return await asyncio.gather(*(client.get(f"/calls-back/?to={to}") for _ in range(8)))

    limits = greenroom(PLACEMENT="thread", MAX_PARKED=8, QUEUE_TIMEOUT=1)
    with site(threads=1, env=limits) as server:
        # A plain view needs no place among the parked.
        answers = asyncio.run(ask(server.url, "plain"))
        assert {answer.text for answer in answers} == {"200 plain"}
        # A coroutine view does, and is refused in time or served when one is free.
        answers = asyncio.run(ask(server.url, "hello"))
        assert {answer.status_code for answer in answers} <= {200, 503}
        assert httpx.get(f"{server.url}/calls-back/?to=hello").text == "200 Hello world!"
    with site(threads=1, env=greenroom(PLACEMENT="thread", MAX_PARKED=7)) as server:
        answers = asyncio.run(ask(server.url, "plain"))
        assert {answer.text for answer in answers} == {"200 plain"}


def test_system_exit_in_a_view() -> None:
    async def ask(url: str) -> list[Any]:
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            others = [asyncio.create_task(client.get("/sleep/1/")) for _ in range(5)]
            await asyncio.sleep(0.5)
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get("/exits/")
            return [(await other).text for other in others]

    for placement in ("auto", "thread"):
        with site(env=greenroom(PLACEMENT=placement)) as server:
            assert asyncio.run(ask(server.url)) == ["slept"] * 5
            server.wait_for(r"Worker \(pid:\d+\) exited with code 7")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"PLACMENT": "auto"}, "Did you mean 'PLACEMENT'?"),
        ({"LIFESPAN": "nowhere.lifespan"}, "which can't be imported"),
    ],
)
def test_a_setting_that_is_wrong_ends_gunicorn_once(settings: dict[str, Any], reason: str) -> None:
    with site(env=greenroom(**settings), ready=False) as server:
        assert server.wait() == 3
        log = server.log()
    assert reason in log
    assert len(server.workers()) == 1


def test_django_s_own_application_runs_as_under_gthread() -> None:
    with site("stock") as server:
        assert httpx.get(f"{server.url}/plain/").text == "plain"
        # Plain Django: a loop of its own for each request to a coroutine view.
        assert httpx.get(f"{server.url}/hello/").text == "Hello world!"
        assert len(httpx.get(f"{server.url}/plain-stream/").text.splitlines()) == 3


def test_the_start_says_where_views_run() -> None:
    with site() as server:
        server.wait_for(r"coroutine views: \d+ on the loop; at most \d+ connections per database")
    with site(env=greenroom(PLACEMENT="thread")) as server:
        server.wait_for(r"on threads.*GREENROOM\[\"PLACEMENT\"\]")


def test_reload_under_load_fails_no_request() -> None:
    """HUP, twice: new workers, while the old ones answer what they accepted."""
    failed: list[object] = []
    answered: list[int] = []
    over = threading.Event()

    def client(url: str) -> None:
        with httpx.Client(base_url=url, timeout=30) as session:
            while not over.is_set():
                for path in ("/hello/", "/plain/", "/sleep/0.05/"):
                    try:
                        answered.append(session.get(path).raise_for_status().status_code)
                    except httpx.HTTPError as exc:
                        failed.append(exc)

    with site(workers=2) as server:
        clients = [threading.Thread(target=client, args=(server.url,)) for _ in range(8)]
        for each in clients:
            each.start()
        for turn in (2, 3):
            server.send_signal(signal.SIGHUP)
            server.wait_for("greenroom: threads ", count=2 * turn)
            before = len(answered)
            until(lambda before=before: len(answered) > before + 100)
        over.set()
        for each in clients:
            each.join()
    assert failed == []
