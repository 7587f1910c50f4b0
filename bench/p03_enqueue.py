"""P3: `enqueue_many` in bulk, and concurrent `enqueue` calls that each return after their commit."""

from __future__ import annotations

import asyncio
import time

from bench.rows import Figure, Row
from bench.seed import PAYLOAD
from bench.world import World

CALLERS = 16


async def measure(world: World) -> dict[str, float]:
    bulk, singles = await world.in_turn(lambda: _bulk(world), lambda: _singles(world))
    return {"enqueue_many": bulk, "16 concurrent enqueue": singles}


async def _bulk(world: World) -> float:
    await world.fresh()
    count = world.sizes.enqueue
    async with world.client() as dhara:
        await dhara.enqueue("bench.nothing", PAYLOAD)  # connected, and its module loaded
        items = [{"type": "bench.nothing", "payload": PAYLOAD}] * count
        start = time.perf_counter()
        await dhara.enqueue_many(items)
        return count / (time.perf_counter() - start)


async def _singles(world: World) -> float:
    await world.fresh()
    async with world.client() as dhara:
        until = time.perf_counter() + world.sizes.singles

        async def call() -> int:
            done = 0
            while time.perf_counter() < until:
                await dhara.enqueue("bench.nothing", PAYLOAD)
                done += 1
            return done

        return sum(await asyncio.gather(*(call() for _ in range(CALLERS)))) / world.sizes.singles


ROW = Row(
    id="P3",
    title="`enqueue_many` of 100-byte payloads; 16 concurrent `enqueue` calls on one client, each after its commit",
    figures=(Figure("enqueue_many", bar=120_000), Figure("16 concurrent enqueue", bar=12_000)),
    measure=measure,
)
