"""One event for all loops and threads of a process."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading

import greenroom
from greenroom.shutdown import ShuttingDown, shutting_down


def test_the_public_name() -> None:
    assert greenroom.shutting_down is shutting_down
    assert shutting_down() is shutting_down()
    assert not shutting_down().is_set()
    assert repr(shutting_down()) == "<ShuttingDown unset>"


def test_it_wakes_waiters_of_every_loop() -> None:
    event = ShuttingDown()
    ready, done = threading.Barrier(4), []

    async def main() -> None:
        waiters = [asyncio.create_task(event.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        ready.wait(10)
        done.append(await asyncio.gather(*waiters))

    threads = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    ready.wait(10)
    event.set()
    for thread in threads:
        thread.join(10)
    assert done == [[True] * 3] * 3
    assert event.is_set()
    assert asyncio.run(event.wait())
    assert not event._waiters


def test_a_waiter_that_leaves_is_forgotten() -> None:
    event = ShuttingDown()

    async def main() -> None:
        try:
            async with asyncio.timeout(0.01):
                await event.wait()
        except TimeoutError:
            pass
        assert not event._waiters
        # Cancelled while it is told.
        task = asyncio.create_task(event.wait())
        await asyncio.sleep(0)
        event.set()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(main())
    gc.collect()


def test_a_loop_that_is_closed_has_no_use_for_it() -> None:
    event = ShuttingDown()
    loop = asyncio.new_event_loop()
    waiting = event.wait()
    asyncio.set_event_loop(loop)
    task = loop.create_task(waiting)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    event.set()
    assert event.is_set()
    # Thrown away, as its loop was.
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    waiting.close()
    asyncio.set_event_loop(None)


def test_at_exit_and_over_a_fork() -> None:
    script = """
import asyncio, os, greenroom
from greenroom import await_, loops

ending = greenroom.shutting_down()
ending.set()
if os.fork() == 0:
    print(f"child {ending.is_set()}", flush=True)
    os._exit(0)
os.wait()
ending._after_fork()

async def listen():
    await ending.wait()
    await asyncio.sleep(0)
    print("told", flush=True)

async def begin():
    loops.current().state["task"] = asyncio.create_task(listen())

await_(begin())
print(f"end {ending.is_set()}", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "child False\nend False\ntold\n"
