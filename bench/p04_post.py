"""P4: POST /api/v1/tasks, each answered after its commit."""

from __future__ import annotations

from bench.rows import Figure, Row
from bench.world import World


async def measure(world: World) -> dict[str, float]:
    await world.fresh()
    async with world.server() as (url, _):
        await world.load(url, "--connections", "64", "--seconds", "1")
        many = await world.load(url, "--connections", "64", "--seconds", str(world.sizes.post))
        one = await world.load(url, "--connections", "1", "--seconds", str(world.sizes.post / 5))
    return {
        "64 connections": many["per_second"],
        "64 connections, p50": many["p50_ms"],
        "64 connections, p99": many["p99_ms"],
        "one connection, p50": one["p50_ms"],
    }


ROW = Row(
    id="P4",
    title="POST `/api/v1/tasks`, each answered after its commit",
    figures=(
        Figure("64 connections", bar=8_000),
        Figure("64 connections, p99", "ms", bar=25, most=True),
        Figure("one connection, p50", "ms", bar=1.2, most=True),
        Figure("64 connections, p50", "ms"),
    ),
    measure=measure,
    warm=False,
)
