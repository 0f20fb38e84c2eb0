"""The lasting loop: begun once, left at exit, never shared over a fork."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import Any

import pytest
from asgiref.sync import AsyncToSync, sync_to_async

from greenroom import loops
from greenroom.bridge import await_
from greenroom.loops import Home, background
from greenroom.threads import Threads


async def here() -> tuple[Any, int]:
    await asyncio.sleep(0)
    return asyncio.get_running_loop(), threading.get_ident()


def python(script: str) -> str:
    """Run a script in a process of its own, with warnings as errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


def test_one_background_loop_for_many_threads() -> None:
    found: list[Any] = []
    barrier = threading.Barrier(8)

    def thread() -> None:
        barrier.wait(10)
        found.append(await_(here()))

    threads = [threading.Thread(target=thread) for _ in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(10)
    assert len(found) == 8
    assert {loop for loop, _ in found} == {background().loop}
    assert await_(here()) == found[0]
    assert threading.get_ident() != found[0][1]


def test_calls_come_back_to_the_thread_that_waits() -> None:
    assert await_(sync_to_async(threading.get_ident)()) == threading.get_ident()


def test_system_exit_ends_no_loop(caplog: pytest.LogCaptureFixture) -> None:
    async def spawn(error: type[BaseException]) -> None:
        async def leave() -> None:
            raise error

        task = asyncio.create_task(leave())
        await asyncio.wait([task])
        with pytest.raises(error):
            task.result()

    for error in (SystemExit, KeyboardInterrupt):
        await_(spawn(error))
        assert await_(here())[0] is background().loop
    assert len([r for r in caplog.records if "tried to end it" in r.getMessage()]) == 2


def test_a_home() -> None:
    left: list[str] = []

    async def main() -> None:
        assert loops.current() is None
        loop = asyncio.get_running_loop()
        home = Home(loop, Threads(loop, limit=1))
        home.register()
        assert loops.current() is home
        assert await home.threads.run(loops.of_thread) is home

        async def leave() -> None:
            left.append("left")
            raise LookupError

        home.stack.push_async_callback(leave)
        with pytest.raises(LookupError):
            await home.aclose()
        assert loops.current() is None
        assert loop not in AsyncToSync.loop_thread_executors

    asyncio.run(main())
    assert left == ["left"]
    assert loops.of_thread() is background()


def test_asgirefs_own_threads_wait_for_the_loop_of_their_call() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        home = Home(loop, Threads(loop, limit=1))
        home.register()
        found = await sync_to_async(lambda: await_(here())[0], thread_sensitive=False)()
        assert found is loop
        await home.aclose()

    asyncio.run(main())
    assert loops.current() is None


def test_the_end_of_the_process() -> None:
    """What is pushed on the stack is left at exit, after tasks were cancelled."""
    out = python("""
import asyncio
from greenroom.bridge import await_
from greenroom.loops import background

async def leave():
    await asyncio.sleep(0)
    print("left")

async def forever():
    try:
        await asyncio.Event().wait()
    finally:
        print("cancelled")

async def start():
    background().stack.push_async_callback(leave)
    background().state["task"] = asyncio.create_task(forever())
    await asyncio.sleep(0)

await_(start())
print("end")
""")
    assert out.split() == ["end", "cancelled", "left"]


def test_an_error_at_the_end_holds_nothing_up() -> None:
    out = python("""
import logging, time
logging.disable(logging.CRITICAL)
from greenroom.bridge import await_
from greenroom.loops import background, _stop
from greenroom import loops

async def fail():
    raise LookupError

background().stack.push_async_callback(fail)
start = time.monotonic()
_stop(background(), loops._thread)
print(time.monotonic() - start < 5)
try:
    await_(fail())
except RuntimeError as exc:
    print("closed" in str(exc))
""")
    assert out.split() == ["True", "True"]


@pytest.mark.parametrize("within", [False, True])
def test_a_fork(within: bool) -> None:
    """A child makes its own loop, also one forked by a request on a thread."""
    out = python(f"""
import asyncio, os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from greenroom.bridge import await_
from greenroom.loops import background

async def value(x):
    await asyncio.sleep(0)
    return x

def main():
    assert await_(value(1)) == 1
    before = background()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        assert await_(value(2)) == 2
        assert background() is not before
        print("child", flush=True)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert background() is before
    assert await_(value(3)) == 3
    print("parent")

if {within}:
    background().threads.adopt(main)
else:
    main()
""")
    assert out.split() == ["child", "parent"]
