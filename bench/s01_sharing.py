"""S1: do 1, 2, 4, 8 workers share a backlog fairly, and what do they reach together?"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from bench.rows import Figure, Row
from bench.world import SCHEMA, World

_FLEETS = (1, 2, 4, 8)


async def measure(world: World) -> dict[str, float]:
    found: dict[str, float] = {}
    for workers in _FLEETS:
        await world.fresh()
        count = world.sizes.drain
        began = await world.db.fetchval("SELECT clock_timestamp()")
        with ExitStack() as stack:
            for _ in range(workers):
                stack.enter_context(world.worker(slots=25))
            while await _registered(world) < workers:
                await asyncio.sleep(0.1)
            await world.fill(count)
            await world.until_completed(count)
            stopped = await world.db.fetchval("SELECT clock_timestamp()")
        found[f"{workers} workers"] = await world.rate(began, stopped)
        if workers > 1:
            found[f"{workers} workers, least share"] = await _least_share(world, workers)
    return found


async def _registered(world: World) -> int:
    return int(await world.db.fetchval(f"SELECT count(*) FROM {SCHEMA}.workers WHERE state = 'live'"))


async def _least_share(world: World, workers: int) -> float:
    """What the worker that got least has got, in per cent of an even share."""
    query = f"SELECT count(*) AS n FROM {SCHEMA}.tasks GROUP BY locked_by ORDER BY n"
    counts = [row["n"] for row in await world.db.fetch(query)]
    if len(counts) < workers:
        return 0.0
    return float(100 * counts[0] * workers / sum(counts))


ROW = Row(
    id="S1",
    title="a backlog shared among 1, 2, 4, 8 workers of 25 slots",
    figures=tuple(
        figure
        for n in _FLEETS
        for figure in (Figure(f"{n} workers"), *([Figure(f"{n} workers, least share", "% of even")] if n > 1 else []))
    ),
    measure=measure,
    runs=1,
    warm=False,
)
