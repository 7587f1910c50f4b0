"""P2: the same with two worker processes, with ten slots, with sync handlers in threads; beside the limit."""

from __future__ import annotations

from bench.rows import Figure, Row
from bench.world import World


async def measure(world: World) -> dict[str, float]:
    many, few = world.sizes.drain, world.sizes.slow_drain

    async def drain(count: int, type: str = "bench.nothing", slots: int = 100, processes: int = 1) -> float:
        await world.fresh()
        await world.fill(count, type=type)
        return await world.drain(count, slots=slots, processes=processes)

    async def bare() -> float:
        await world.fresh()
        await world.fill(many)
        return (await world.limit(many)).rate

    two, ten, threads, most = await world.in_turn(
        lambda: drain(many, processes=2),
        lambda: drain(few, slots=10),
        lambda: drain(few, type="bench.thread"),
        bare,
    )
    return {"2 processes": two, "10 slots": ten, "sync handlers": threads, "the limit": most}


ROW = Row(
    id="P2",
    title="drain with 2 worker processes; with 10 slots; with sync handlers in threads",
    figures=(
        Figure("2 processes", bar=36_000),
        Figure("10 slots", bar=8_000),
        Figure("sync handlers", bar=8_000),
        Figure("the limit"),
    ),
    measure=measure,
)
