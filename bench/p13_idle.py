"""P13: what an idle worker and an idle server ask of the database and of the processor."""

from __future__ import annotations

import asyncio

from bench import procs
from bench.rows import Figure, Row
from bench.world import World

_SETTLE = 12.0  # until start-up is over, and what it did has reached the statistics


async def measure(world: World) -> dict[str, float]:
    seconds = world.sizes.idle
    async with world.other_database() as first, world.other_database("dhara_bench_more") as second:
        with world.worker(dsn=first) as worker:
            async with world.server(dsn=second) as (_, server):
                await asyncio.sleep(_SETTLE)
                before = await _transactions(world), procs.cpu_seconds(worker), procs.cpu_seconds(server)
                await asyncio.sleep(seconds)
                after = await _transactions(world), procs.cpu_seconds(worker), procs.cpu_seconds(server)
    asked = [(after[0][name] - before[0][name]) / seconds for name in ("dhara_bench_other", "dhara_bench_more")]
    return {
        "worker, queries": asked[0],
        "server, queries": asked[1],
        "worker, processor": 100 * (after[1] - before[1]) / seconds,
        "server, processor": 100 * (after[2] - before[2]) / seconds,
    }


async def _transactions(world: World) -> dict[str, int]:
    """Transactions of each database so far; idle processes ask one query in each."""
    rows = await world.db.fetch(
        "SELECT datname, xact_commit + xact_rollback FROM pg_stat_database WHERE datname IS NOT NULL"
    )
    return dict(map(tuple, rows))


ROW = Row(
    id="P13",
    title="idle worker and idle server",
    figures=(
        Figure("worker, queries", "/s", bar=2, most=True),
        Figure("server, queries", "/s", bar=2, most=True),
        Figure("worker, processor", "% of a core", bar=1, most=True),
        Figure("server, processor", "% of a core", bar=1, most=True),
    ),
    measure=measure,
    runs=1,
    warm=False,
)
