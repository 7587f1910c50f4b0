"""P6: an idle worker gets one task every 50 ms: how long from the commit to the start of the handler?

The commit is taken to be where `enqueue` returns. The handler answers the moment of its own start, which is its task's result.
"""

from __future__ import annotations

import asyncio
import json
import time

from bench.rows import Figure, Row
from bench.seed import PAYLOAD
from bench.world import SCHEMA, World, percentile


async def measure(world: World) -> dict[str, float]:
    await world.fresh()
    times = world.sizes.pickups
    returned: dict[object, float] = {}
    with world.worker():
        async with world.client() as dhara:
            for _ in range(5):
                await (await dhara.enqueue("bench.moment", PAYLOAD)).result(30)
            for _ in range(times):
                handle = await dhara.enqueue("bench.moment", PAYLOAD)
                returned[handle.id] = time.time()
                await asyncio.sleep(0.05)
            await world.until_completed(times + 5)
    return await waits(world, returned)


async def waits(world: World, returned: dict[object, float], schema: str = SCHEMA) -> dict[str, float]:
    """Milliseconds from the enqueue's return, and from the row's making, to the handler's start."""
    query = f"SELECT id, extract(epoch FROM created_at)::float8 AS made, result::text AS started FROM {schema}.tasks"
    rows = [row for row in await world.db.fetch(query) if row["id"] in returned]
    if len(rows) != len(returned):
        raise RuntimeError(f"{len(returned) - len(rows)} tasks are missing")
    starts = [(row, json.loads(row["started"])) for row in rows]
    commits = [1000 * (started - returned[row["id"]]) for row, started in starts]
    makings = [1000 * (started - row["made"]) for row, started in starts]
    shares = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    return {name: percentile(commits, share) for name, share in shares} | {
        f"{name} from the row's making": percentile(makings, share) for name, share in shares
    }


ROW = Row(
    id="P6",
    title="idle worker, one task every 50 ms: commit → handler start",
    figures=(
        Figure("p50", "ms", bar=1.2, most=True),
        Figure("p99", "ms", bar=3, most=True),
        Figure("p50 from the row's making", "ms"),
        Figure("p99 from the row's making", "ms"),
    ),
    measure=measure,
    warm=False,
)
