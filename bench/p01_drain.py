"""P1: one worker process drains no-op tasks, beside the limit."""

from __future__ import annotations

from bench.rows import Figure, Row
from bench.world import World


async def measure(world: World) -> dict[str, float]:
    count = world.sizes.drain

    async def drained() -> float:
        await world.fresh()
        await world.fill(count)
        return await world.drain(count)

    async def bare() -> float:
        await world.fresh()
        await world.fill(count)
        return (await world.limit(count)).rate

    drain, most = await world.in_turn(drained, bare)
    return {"drain": drain, "the limit": most, "share of the limit": 100 * drain / most}


ROW = Row(
    id="P1",
    title="drain no-op async tasks, one worker process, 100 slots",
    figures=(
        Figure("drain", bar=30_000),
        Figure("share of the limit", "%", bar=60),
        Figure("the limit"),
    ),
    measure=measure,
)
