"""H1: the hazards of claims above a watermark: a long backlog of types that the worker does not know; many types and queues."""

from __future__ import annotations

import asyncio
import time

from bench.many_handlers import QUEUES, TYPES
from bench.p06_pickup import waits
from bench.rows import Figure, Row
from bench.seed import PAYLOAD
from bench.world import SCHEMA, World

FOREIGN = f"{SCHEMA}_foreign"
_IDLE, _PICKUPS = 8.0, 30


async def measure(world: World) -> dict[str, float]:
    if FOREIGN not in world.kept:
        await world.fresh(FOREIGN)
        await world.fill(world.sizes.backlog, FOREIGN, type="bench.foreign")
        await world.checkpoint()
        world.kept[FOREIGN] = True
    count = world.sizes.drain

    async def plain(schema: str) -> float:
        if schema == SCHEMA:
            await world.fresh()
        await world.fill(count, schema)
        return await world.drain(count, schema)

    async def many() -> float:
        await world.fresh()
        await world.fill(count, types=TYPES, queues=QUEUES)
        return await world.drain(count, module="bench.many_handlers")

    alone, behind, spread = await world.in_turn(lambda: plain(SCHEMA), lambda: plain(FOREIGN), many)
    found = {
        "alone": alone,
        "behind foreign tasks": behind,
        "behind foreign tasks against alone": 100 * behind / alone,
        "1,000 types in 100 queues": spread,
        "1,000 types in 100 queues against alone": 100 * spread / alone,
    }
    return found | await _idle(world)


async def _idle(world: World) -> dict[str, float]:
    """What an idle worker reads beside the foreign tasks, and how soon it picks up a task of its own."""
    returned: dict[object, float] = {}
    with world.worker(FOREIGN):
        await asyncio.sleep(4)
        before = await _pages(world)
        await asyncio.sleep(_IDLE)
        read = (await _pages(world) - before) / _IDLE
        done = await world.completed(FOREIGN)
        async with world.client(FOREIGN) as dhara:
            for _ in range(_PICKUPS):
                handle = await dhara.enqueue("bench.moment", PAYLOAD)
                returned[handle.id] = time.time()
                await asyncio.sleep(0.1)
            await world.until_completed(done + _PICKUPS, FOREIGN)
    found = await waits(world, returned, FOREIGN)
    return {"idle beside foreign tasks, pages read": read, "pickup beside foreign tasks, p50": found["p50"]}


async def _pages(world: World) -> int:
    """Pages that the database's sessions have looked at."""
    query = "SELECT blks_hit + blks_read FROM pg_stat_database WHERE datname = current_database()"
    return int(await world.db.fetchval(query))


ROW = Row(
    id="H1",
    title="a long backlog of types that the worker does not know; many types and queues",
    figures=(
        Figure("behind foreign tasks against alone", "%"),
        Figure("1,000 types in 100 queues against alone", "%"),
        Figure("pickup beside foreign tasks, p50", "ms"),
        Figure("idle beside foreign tasks, pages read"),
        Figure("alone"),
        Figure("behind foreign tasks"),
        Figure("1,000 types in 100 queues"),
    ),
    measure=measure,
    warm=False,
    runs=1,
)
