"""Handlers of the end-to-end tests: what workers meet in real life. Run by `python -m dhara worker tests.e2e.handlers`."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import re
import signal
import time

from dhara import Context, Registry, Retry, RetryPolicy

tasks = Registry()

QUICKLY = RetryPolicy(base=0.05)


@tasks.task("noop")
async def noop() -> None: ...


@tasks.task("sync.noop")
def sync_noop() -> int:
    return 1


@tasks.task("sleep")
async def sleep(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"


@tasks.task("gate")
async def gate(path: str) -> str:
    """Runs until there is such a file: for as long as its test wants, however slow the machine is."""
    while not os.path.exists(path):
        await asyncio.sleep(0.1)
    return "passed"


@tasks.task("sync.sleep")
def sync_sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


@tasks.task("flaky", retry=QUICKLY)
async def flaky(ctx: Context) -> int:
    """Fails the first time."""
    if ctx.failures == 0:
        raise Retry(0.01)
    return ctx.attempt


@tasks.task("fail", retry=QUICKLY)
def fail() -> None:
    raise RuntimeError("as it always does")


@tasks.task("deaf")
async def deaf(seconds: float) -> str:
    """Does not heed any cancellation."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            await asyncio.sleep(end - time.monotonic())
        except asyncio.CancelledError:
            continue
    return "to the end"


@tasks.task("block")
async def block(seconds: float) -> str:
    """Blocks the event loop."""
    time.sleep(seconds)
    return "blocked"


@tasks.task("hold.regex")
async def hold_regex(seconds: float) -> float:
    """Holds the GIL for at least so long, by one regular expression that goes astray: each `a` doubles the time."""
    n, took = 18, 0.0
    while took < 0.05:
        n += 1
        took = _astray(n)
    while took < seconds:
        n += 1
        took *= 2
    return _astray(n)


def _astray(n: int) -> float:
    start = time.thread_time()
    re.match("(a+)+$", "a" * n + "b")
    return time.thread_time() - start


@tasks.task("hold.pow")
def hold_pow(seconds: float) -> float:
    """Holds the GIL for at least so long, in a thread, by one multiplication of large numbers."""
    bits, took = 1 << 18, 0.0
    while took < 0.05:
        bits *= 2
        took = _multiply(bits)
    while took < seconds:
        bits *= 2
        took *= 3  # Karatsuba's
    return _multiply(bits)


def _multiply(bits: int) -> float:
    number = (1 << bits) - 3
    start = time.thread_time()
    _ = number * (number - 2)
    return time.thread_time() - start


@tasks.task("hang", timeout=1, retry=QUICKLY)
def hang() -> None:
    while True:
        pass


@tasks.task("deadlock", timeout=1, retry=QUICKLY)
async def deadlock() -> None:
    """Blocks the loop for ever."""
    signal.pause()


@tasks.task("crash", retry=QUICKLY)
async def crash(how: str) -> None:
    """Ends its process."""
    if how == "exit":
        os._exit(9)
    if how == "segfault":
        ctypes.string_at(0)
    os.kill(os.getpid(), signal.SIGKILL)


@tasks.task("crash.once", retry=QUICKLY)
async def crash_once(ctx: Context) -> str:
    """Ends its process, but only the first time."""
    if ctx.attempt == 1:
        os._exit(3)
    return "survived"


@tasks.task("spawn")
async def spawn() -> int:
    """Has a process of its own, as handlers do."""
    process = await asyncio.create_subprocess_exec("true")
    return await process.wait()


@tasks.task("effect")
async def effect(path: str, seconds: float, ctx: Context) -> None:
    """Leaves a line that tells when it began and when it ended."""
    start = time.monotonic()
    await asyncio.sleep(seconds)
    line = {"task": str(ctx.task_id), "queue": ctx.queue, "start": start, "end": time.monotonic()}
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")
