"""Handlers for the end-to-end tests: the only thing that is made up there."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import time

from dhara import Context, Registry, RetryPolicy

tasks = Registry()


@tasks.task("nap")
async def nap(s: float) -> None:
    await asyncio.sleep(s)


@tasks.task("nothing")
async def nothing() -> None:
    """Do nothing."""


@tasks.task("block")
async def block(s: float) -> None:
    """Hold the event loop, not the GIL."""
    time.sleep(s)


@tasks.task("regex")
async def regex(n: int) -> None:
    """Hold the GIL: the matcher never lets go of it."""
    re.match("(a+)+$", "a" * n + "b")


@tasks.task("hang", timeout=1, retry=RetryPolicy(max_retries=1, base=0.1))
async def hang() -> None:
    while True:
        pass


@tasks.task("stubborn")
async def stubborn(s: float, *, ctx: Context) -> None:
    """Ignore every wish to stop."""
    until = time.monotonic() + s
    while time.monotonic() < until:
        try:
            await asyncio.sleep(0.1)
        except asyncio.CancelledError:
            ctx.log.info("no")


@tasks.task("segfault", retry=RetryPolicy(base=0.05))
async def segfault() -> None:
    await asyncio.sleep(0.05)
    ctypes.string_at(0)


@tasks.task("leave", retry=RetryPolicy(base=0.05))
def leave() -> None:
    os._exit(9)
