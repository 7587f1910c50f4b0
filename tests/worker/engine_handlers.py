"""Handlers for tests with processes of their own: a registry that another process can import.

`MARKS`, from the environment, is a folder: each attempt that matters writes a line into a file of its own there, so that
a test sees what really ran, and when, on the clock that all processes share.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg

from dhara import Context, Registry, RetryPolicy

tasks = Registry()
QUICK = RetryPolicy(base=0.05, cap=0.5)


def mark(what: str, ctx: Context) -> None:
    """One line: when, which attempt, which process."""
    folder = os.environ.get("MARKS")
    if folder:
        with (Path(folder) / f"{what}-{ctx.task_id}").open("a") as file:
            file.write(f"{time.monotonic()} {ctx.attempt} {os.getpid()}\n")


@tasks.lifespan
async def resources() -> AsyncIterator[dict[str, Any]]:
    yield {"pool": 7, "pid": os.getpid()}


@tasks.middleware
async def around(ctx: Context, proceed: Any) -> Any:
    ctx.log.debug("around begins")
    try:
        return await proceed()
    finally:
        ctx.log.debug("around ends")


@tasks.middleware
def within(ctx: Context) -> Iterator[None]:
    ctx.log.debug("within begins in %d", os.getpid())
    yield


# on the loop and in threads


@tasks.task("noop")
async def noop() -> None: ...


@tasks.task("innocent", retry=QUICK)
async def innocent(seconds: float = 0.05) -> None:
    await asyncio.sleep(seconds)


@tasks.task("sleep", retry=QUICK)
async def sleep(seconds: float, *, ctx: Context) -> None:
    mark("start", ctx)
    ctx.log.info("sleeping")
    await ctx.progress(50, "asleep")
    await asyncio.sleep(seconds)
    mark("end", ctx)


@tasks.task("sleep.first", retry=QUICK)
async def sleep_first(seconds: float, *, ctx: Context) -> None:
    """Long the first time, short afterwards."""
    mark("start", ctx)
    await asyncio.sleep(seconds if ctx.attempt == 1 else 0.1)
    mark("end", ctx)


@tasks.task("thread.sleep", retry=QUICK)
def thread_sleep(seconds: float, *, ctx: Context) -> None:
    mark("start", ctx)
    ctx.wait_canceled(seconds)
    mark("end", ctx)


@tasks.task("segfault", retry=QUICK)
async def segfault(*, ctx: Context) -> None:
    """Takes its process with it."""
    ctx.log.info("about to fall, attempt %d", ctx.attempt)
    await asyncio.sleep(0.05)
    ctypes.string_at(0)


@tasks.task("block.loop")
async def block_loop(seconds: float) -> None:
    time.sleep(seconds)


@tasks.task("effect", retry=QUICK)
async def effect(*, ctx: Context) -> None:
    async with ctx.transaction() as connection:
        await connection.execute("INSERT INTO effects (task) VALUES ($1)", ctx.task_id)
        await asyncio.sleep(0.01)


@tasks.task("effect.own", retry=QUICK)
async def effect_own(*, ctx: Context) -> None:
    """With a connection of the user's."""
    connection = await asyncpg.connect(os.environ["DHARA_DATABASE_URL"])
    try:
        async with ctx.transaction(connection):
            await connection.execute("INSERT INTO effects (task) VALUES ($1)", ctx.task_id)
            await asyncio.sleep(0.01)
    finally:
        await connection.close()


@tasks.task("grow")
async def grow(mebibytes: int) -> None:
    HOARD.append(bytearray(os.urandom(1)) * (mebibytes * 2**20))


HOARD: list[bytearray] = []


# exclusive


@tasks.task("exclusive.async", exclusive=True, retry=QUICK)
async def exclusive_async(seconds: float, *, ctx: Context) -> None:
    mark("start", ctx)
    try:
        await asyncio.sleep(seconds)
    finally:
        mark("end", ctx)


@tasks.task("exclusive.deaf", exclusive=True, retry=QUICK)
def exclusive_deaf(seconds: float, *, ctx: Context) -> None:
    """Hears nothing: only the end of its process ends it."""
    mark("start", ctx)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        mark("alive", ctx)
        time.sleep(0.05)
    mark("end", ctx)


# in processes of their own


@tasks.task("process", executor="process", retry=QUICK)
def process(seconds: float = 0.0, *, ctx: Context) -> dict[str, Any]:
    mark("start", ctx)
    ctx.log.info("in the child")
    ctx.progress(40, "working")
    time.sleep(seconds)
    mark("end", ctx)
    return {"pid": os.getpid(), "parent": os.getppid(), "state": ctx.state}


@tasks.task("process.first", executor="process", retry=QUICK)
def process_first(seconds: float, *, ctx: Context) -> None:
    """Long the first time, short afterwards."""
    mark("start", ctx)
    time.sleep(seconds if ctx.attempt == 1 else 0.0)


@tasks.task("process.async", executor="process", retry=QUICK)
async def process_async(seconds: float = 0.0, *, ctx: Context) -> dict[str, Any]:
    ctx.log.info("in the child")
    await ctx.progress(40, "working")
    await asyncio.sleep(seconds)
    return {"pid": os.getpid(), "parent": os.getppid(), "state": ctx.state}


@tasks.task("process.end", executor="process", retry=QUICK)
def process_end(how: str, *, ctx: Context) -> str:
    ctx.log.info("about to end by %s", how)
    match how:
        case "segfault":
            ctypes.string_at(0)
        case "exit":
            os._exit(3)
        case "exit 0":
            os._exit(0)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "real-time":
            os.kill(os.getpid(), signal.SIGRTMIN + 3)
        case "raise":
            raise ValueError("an ordinary one")
        case "sys.exit":
            sys.exit(4)
        case "memory":
            resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
            bytearray(2**31)
    return "survived"


@tasks.task("process.hang", executor="process", timeout=2, retry=QUICK)
def process_hang(*, ctx: Context) -> None:
    mark("start", ctx)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        pass


@tasks.task("process.family", executor="process", retry=QUICK)
def process_family(*, ctx: Context) -> None:
    """Has a child of its own, which must not outlive it."""
    child = subprocess.Popen(["sleep", "300"])
    ctx.log.info("%d", child.pid)
    mark("start", ctx)
    time.sleep(300)


@tasks.task("process.effect", executor="process", retry=QUICK)
async def process_effect(*, ctx: Context) -> None:
    transaction = ctx.transaction()
    async with transaction as connection:
        await connection.execute("INSERT INTO effects (task) VALUES ($1)", ctx.task_id)
        transaction.result = {"pid": os.getpid()}
