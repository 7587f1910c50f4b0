"""What the workers of a chaos run do. Each handler notes its start and its end in a file of its process, a line in one
write each, so that a kill leaves whole lines; times are CLOCK_MONOTONIC, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from dhara import Context, Registry, RetryPolicy

tasks = Registry()
QUICKLY = RetryPolicy(base=0.05, cap=1.0)
NOTES = "CHAOS_NOTES"


def digest(payload: Any) -> str:
    """The hash that client and handler compare."""
    return hashlib.md5(json.dumps(payload, sort_keys=True).encode(), usedforsecurity=False).hexdigest()


def note(**fields: Any) -> None:
    """A line in this process's file."""
    fields |= {"pid": os.getpid(), "at": time.monotonic()}
    file = os.open(Path(os.environ[NOTES]) / f"{os.getpid()}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, json.dumps(fields).encode() + b"\n")
    finally:
        os.close(file)


@tasks.middleware
def noted(ctx: Context) -> Iterator[None]:
    """Start and end of every attempt, in the process that runs it."""
    who = {"task": str(ctx.task_id), "attempt": ctx.attempt, "lease": str(ctx.lease), "type": ctx.type}
    note(what="start", **who)
    try:
        yield
    finally:
        note(what="end", **who)


def seen(ctx: Context, **payload: Any) -> None:
    """What came of the payload (I22)."""
    note(what="payload", task=str(ctx.task_id), hash=digest(payload))


@tasks.task("noop", retry=QUICKLY)
async def noop(n: int, text: str, ctx: Context) -> None:
    seen(ctx, n=n, text=text)


@tasks.task("effect", retry=QUICKLY)
async def effect(n: int, text: str, ctx: Context) -> None:
    """Writes in the transaction of its own completion (C7)."""
    seen(ctx, n=n, text=text)
    async with ctx.transaction() as connection:
        await connection.execute("INSERT INTO effects (task, attempt) VALUES ($1, $2)", ctx.task_id, ctx.attempt)


@tasks.task("sleep", retry=QUICKLY)
async def sleep(seconds: float) -> None:
    await asyncio.sleep(seconds)


@tasks.task("exclusive", retry=QUICKLY, exclusive=True)
async def exclusive(seconds: float) -> None:
    """Must never overlap itself (C19)."""
    await asyncio.sleep(seconds)


@tasks.task("flaky", retry=QUICKLY)
async def flaky(ctx: Context) -> None:
    if ctx.failures == 0:
        raise RuntimeError("the first time")


@tasks.task("fail", retry=QUICKLY)
def fail() -> None:
    raise RuntimeError("as it always does")


@tasks.task("cpu", retry=QUICKLY)
def cpu(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@tasks.task("block", retry=QUICKLY)
async def block(seconds: float) -> None:
    """Blocks the event loop (F5)."""
    time.sleep(seconds)


@tasks.task("gil", retry=QUICKLY)
async def gil(seconds: float) -> None:
    """Holds the GIL (F6), by one regular expression that goes astray: each further `a` doubles the time."""
    n, took = 18, 0.0
    while took < 0.05:
        n += 1
        took = _astray(n)
    while took < seconds:
        n += 1
        took *= 2
    _astray(n)


def _astray(n: int) -> float:
    start = time.perf_counter()
    re.match("(a+)+$", "a" * n + "b")
    return time.perf_counter() - start


@tasks.task("hang", timeout=1, retry=QUICKLY)
def hang() -> None:
    """Never ends (F7)."""
    while True:
        pass


@tasks.task("poison", retry=QUICKLY)
async def poison(how: str) -> None:
    """Kills its process (F8)."""
    if how == "exit":
        os._exit(9)
    ctypes.string_at(0)


@tasks.task("hog", retry=QUICKLY)
async def hog(megabytes: int) -> None:
    """More memory than there is (F9): every page of it is written to."""
    kept = [bytearray(b"x" * 2**20) for _ in range(megabytes)]
    await asyncio.sleep(1.0)
    del kept


@tasks.task("stubborn", retry=QUICKLY)
async def stubborn(seconds: float) -> None:
    """Does not let itself be canceled (F11)."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.2)


@tasks.task("storm", retry=RetryPolicy(base=20.0, cap=60.0))
async def storm(ctx: Context) -> None:
    """Fails once, and waits for a while (F53)."""
    if ctx.failures == 0:
        raise RuntimeError("all at once")


@tasks.task("tick", retry=QUICKLY)
async def tick() -> None:
    """What the schedule of every run enqueues (I16)."""
