"""The handlers that the benchmarks' workers run."""

from __future__ import annotations

import asyncio
import random
import time

from dhara import Registry

tasks = Registry()


@tasks.task("bench.nothing")
async def nothing(**payload: object) -> None:
    """Do nothing."""


@tasks.task("bench.thread")
def nothing_in_a_thread(**payload: object) -> None:
    """Do nothing, in a thread."""


@tasks.task("bench.moment")
async def moment(**payload: object) -> float:
    """Answer the moment of the start, seconds since 1970 by this machine's clock."""
    return time.time()


@tasks.task("bench.work")
async def work(**payload: object) -> None:
    """Wait 50 to 200 ms, as work that waits for others does."""
    await asyncio.sleep(random.uniform(0.05, 0.2))
