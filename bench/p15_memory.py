"""P15: memory of worker and server, idle and after a million tasks that came by HTTP."""

from __future__ import annotations

import asyncio

from bench import procs
from bench.rows import Figure, Row
from bench.world import World


async def measure(world: World) -> dict[str, float]:
    await world.fresh()
    async with world.server() as (url, server):
        with world.worker() as worker:
            await asyncio.sleep(3)
            idle = procs.megabytes(worker), procs.megabytes(server)
            count = world.sizes.memory
            requests = str(count // 500)
            await world.load(url, "--connections", "4", "--seconds", "600", "--batch", "500", "--most", requests)
            await world.until_completed(count)
            await asyncio.sleep(3)
            after = procs.megabytes(worker), procs.megabytes(server)
    return {
        "worker, idle": idle[0],
        "server, idle": idle[1],
        "worker, growth": after[0] - idle[0],
        "server, growth": after[1] - idle[1],
    }


ROW = Row(
    id="P15",
    title="memory of worker (supervisor, keeper, runner) and server, idle and after a million tasks",
    figures=(
        Figure("worker, idle", "MB", bar=70, most=True),
        Figure("server, idle", "MB", bar=70, most=True),
        Figure("worker, growth", "MB", bar=5, most=True),
        Figure("server, growth", "MB", bar=5, most=True),
    ),
    measure=measure,
    runs=1,
    warm=False,
    limit=600,
)
