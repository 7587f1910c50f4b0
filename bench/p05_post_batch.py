"""P5: POST /api/v1/tasks/batch of 500."""

from __future__ import annotations

from bench.rows import Figure, Row
from bench.world import World


async def measure(world: World) -> dict[str, float]:
    await world.fresh()
    async with world.server() as (url, _):
        await world.load(url, "--connections", "2", "--seconds", "0.5", "--batch", "500")
        found = await world.load(url, "--connections", "4", "--seconds", str(world.sizes.batches), "--batch", "500")
    return {"tasks": found["per_second"], "p50": found["p50_ms"], "p99": found["p99_ms"]}


ROW = Row(
    id="P5",
    title="POST `/api/v1/tasks/batch` of 500, 4 connections",
    figures=(Figure("tasks", bar=40_000), Figure("p50", "ms"), Figure("p99", "ms")),
    measure=measure,
)
