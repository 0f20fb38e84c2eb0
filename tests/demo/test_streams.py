import asyncio
import json
import os
import re
import signal
import time
from datetime import datetime, timedelta
from itertools import pairwise

import httpx

ARRIVED = re.compile(r'<li class="tile slot-\d+ (\w+).*?</span>\s*([\d.]+)&nbsp;s', re.DOTALL)


def test_tiles_come_as_they_arrive(client):
    started = time.monotonic()
    pieces = []
    with client.stream("GET", "/montage/stream/") as response:
        assert response.status_code == 200
        assert "content-length" not in response.headers
        pieces = [(time.monotonic() - started, text) for text in response.iter_text()]
    page = "".join(text for _, text in pieces)

    # Each service twice: its empty place, then its tile. The page's head is there at once.
    assert page.count('class="empty') == 12
    first_at, first = pieces[0]
    assert "As they arrive" in first
    assert 'class="tile' not in first
    with_tiles = [at for at, text in pieces if 'class="tile' in text]
    assert len(with_tiles) > 6
    assert with_tiles[-1] - with_tiles[0] > 0.6
    assert with_tiles[-1] - first_at > 0.8

    arrived = ARRIVED.findall(page)
    assert len(arrived) == 12
    times = [float(after) for _, after in arrived]
    assert times == sorted(times)
    names = [name for name, _ in arrived]
    assert names.index("currency") < names.index("headlines")  # 0.2 and 1.2 seconds
    assert page.index("All sent after") > page.index("</ol>")


def test_stream_with_trouble(client):
    page = client.get("/montage/stream/?board=on-the-way&fail=tide&slow=air").text
    assert "It answered with status 503." in page
    assert "No answer within 2 seconds." in page
    assert page.count('<li class="tile') == 5


def test_leaving_a_stream_ends_its_requests(client):
    with client.stream("GET", "/montage/stream/?slow=air") as response:
        next(response.iter_raw())
    _eventually(client, lambda status: status["requests"] == 0)


def test_clock_ticks_and_knows_when_one_leaves(site, client):
    before = client.get("/status").json()["listeners"]
    ticks = []
    with site.client() as listener, listener.stream("GET", "/clock/events") as response:
        assert response.headers["content-type"] == "text/event-stream"
        lines = response.iter_lines()  # kept, for the response is closed with it
        for line in lines:
            if line.startswith("data: "):
                ticks.append((time.monotonic(), json.loads(line.removeprefix("data: "))))
            if len(ticks) == 4:
                break
        assert client.get("/status").json()["listeners"] == before + 1
    assert [tick["tick"] for _, tick in ticks] == [1, 2, 3, 4]
    # As they come about, not all at the end.
    assert ticks[3][0] - ticks[1][0] > 1
    seconds = [datetime.fromisoformat(tick["time"]) for _, tick in ticks]
    # None is told twice; one may be left out where the machine had no time for it.
    assert all(later - earlier >= timedelta(seconds=1) for earlier, later in pairwise(seconds))
    _eventually(client, lambda status: status["listeners"] == before)
    assert re.search(r"clock: a client left after \d+ ticks", site.log.read_text())


def test_clocks_end_when_the_server_does(serve):
    with (
        serve() as site,
        site.client() as client,
        client.stream("GET", "/clock/events") as response,
    ):
        lines = response.iter_lines()
        assert next(lines) == "retry: 2000"
        os.kill(site.pid, signal.SIGTERM)
        # To its proper end: cut off, it would be an error.
        assert list(lines)
    assert "Cancelling" not in site.log.read_text()


def test_two_hundred_that_wait_take_no_threads(site, client):
    async def crowd():
        async with site.async_client(limits=httpx.Limits(max_connections=None)) as crowd:
            await crowd.get("/hello/now/")
            before = (await crowd.get("/status")).json()["threads"]
            waiting = {asyncio.create_task(crowd.get("/hello/")) for _ in range(200)}
            seen, left = [], waiting
            while left:
                _, left = await asyncio.wait(left, timeout=0.05)
                seen.append((await crowd.get("/status")).json())
            return before, seen, [task.result().text for task in waiting]

    before, seen, answers = asyncio.run(crowd())
    assert answers == ["Hello world!"] * 200
    # On a busy machine they do not all overlap; a thread for each would show all the same.
    assert max(status["requests"] for status in seen) > 20
    assert max(status["threads"] for status in seen) <= before
    assert client.get("/status").json()["threads"] <= before


def _eventually(client, condition, seconds=20):
    deadline = time.monotonic() + seconds
    while True:
        status = client.get("/status").json()
        if condition(status):
            return
        assert time.monotonic() < deadline, status
        time.sleep(0.05)
