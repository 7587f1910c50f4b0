"""P9: drain while another transaction pins the xmin horizon, against the same drain without; beside the limit."""

from __future__ import annotations

import asyncpg

from bench.rows import Figure, Row
from bench.world import World


async def measure(world: World) -> dict[str, float]:
    count = world.sizes.pinned

    async def free() -> float:
        await world.fresh()
        await world.fill(count)
        return await world.drain(count, curve="free")

    async def pinned() -> float:
        await world.fresh()
        await world.fill(count)
        other = await asyncpg.connect(world.dsn)
        try:
            async with other.transaction(isolation="repeatable_read"):
                await other.fetchval("SELECT pg_current_xact_id()")
                return await world.drain(count, curve="pinned")
        finally:
            await other.close()

    async def bare() -> float:
        await world.fresh()
        await world.fill(count)
        return (await world.limit(count)).rate

    one, other, most = await world.in_turn(free, pinned, bare)
    first, last = _fifths(world.curves["pinned"])
    return {
        "free": one,
        "pinned": other,
        "pinned against free": 100 * other / one,
        "last fifth against first": 100 * last / first,
        "the limit": most,
    }


def _fifths(curve: list[tuple[float, float]]) -> tuple[float, float]:
    """The rates of the first and of the last fifth of the tasks."""
    step = 2 * curve[0][0]
    total = sum(rate * step for _, rate in curve)

    def fifth(points: list[tuple[float, float]]) -> float:
        done = seconds = 0.0
        for _, rate in points:
            if done >= total / 5:
                break
            done += rate * step
            seconds += step
        return done / seconds

    return fifth(curve), fifth(curve[::-1])


ROW = Row(
    id="P9",
    title="drain while another transaction pins the xmin horizon",
    figures=(
        Figure("pinned against free", "%", bar=90),
        Figure("last fifth against first", "%", bar=90),
        Figure("free"),
        Figure("pinned"),
        Figure("the limit"),
    ),
    measure=measure,
    warm=False,
)
