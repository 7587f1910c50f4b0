"""Handlers that use what a registry offers, for a test that kills their worker. `python -m dhara worker tests.e2e.features`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from dhara import Context, Registry, RetryPolicy, Snooze

tasks = Registry()


@tasks.lifespan
async def resources() -> AsyncIterator[dict[str, int]]:
    yield {"pid": os.getpid()}


@tasks.middleware
async def around(ctx: Context, proceed: Callable[[], Awaitable[Any]]) -> Any:
    ctx.log.info("around attempt %d", ctx.attempt)
    return {"from": ctx.state["pid"], "value": await proceed()}


@tasks.task("steady")
async def steady(*, ctx: Context) -> str:
    """Tells how far it is and stays there, until another attempt ends it."""
    if ctx.attempt == 1:
        await ctx.progress(40, "nearly half")
        await asyncio.sleep(300)
    return "in the end"


@tasks.task("brief")
async def brief() -> None:
    """One of many."""


@tasks.task("blocker")
async def blocker(*, ctx: Context) -> None:
    """Holds the event loop, the first time."""
    if ctx.attempt == 1:
        time.sleep(300)


@tasks.task("snoozer")
async def snoozer(*, ctx: Context) -> int:
    if ctx.attempt < 4:
        raise Snooze(0.05)
    return ctx.failures


@tasks.task("choosy", retry=RetryPolicy(base=0.05), retry_on={LookupError: RetryPolicy(base=0.02), ValueError: None})
async def choosy(*, ctx: Context) -> None:
    """A third failure of a kind that is worth no other try."""
    raise (ConnectionError, KeyError, ValueError)[min(ctx.failures, 2)]("no")
