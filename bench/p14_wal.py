"""P14: WAL of a task, and dead rows under a steady load."""

from __future__ import annotations

import asyncio
import time

from bench.rows import Figure, Row
from bench.seed import PAYLOAD
from bench.world import SCHEMA, World, paced

RATE = 1_000
_LOOK = 5.0


async def measure(world: World) -> dict[str, float]:
    await world.checkpoint()  # so that no whole pages are logged where a checkpoint comes between
    enqueued, drained = await _drain(world)
    return {"drained": enqueued + drained, "of that, the enqueue": enqueued} | await _steady(world)


async def _drain(world: World) -> tuple[float, float]:
    """Bytes a task of enqueueing in bulk, and of draining."""
    await world.fresh()
    count = world.sizes.drain
    async with world.client() as dhara:
        start = await _position(world)
        await dhara.enqueue_many([{"type": "bench.nothing", "payload": PAYLOAD}] * count)
        middle = await _position(world)
        await world.drain(count)
    return (middle - start) / count, (await _position(world) - middle) / count


async def _steady(world: World) -> dict[str, float]:
    """Bytes a task, and dead rows, at 1,000 tasks a second through the client."""
    await world.fresh()
    seconds, dead = world.sizes.steady, list[tuple[float, float]]()
    with world.worker():
        async with world.client() as dhara:

            async def one() -> None:
                await dhara.enqueue("bench.nothing", PAYLOAD)

            start, began = await _position(world), time.monotonic()
            watching = asyncio.ensure_future(_watch(world, began, dead))
            await paced(RATE, seconds, one)
            await world.until_completed(int(RATE * seconds))
            watching.cancel()
            written = await _position(world) - start
    world.curves["dead rows"] = dead
    rows = await world.db.fetchrow(
        "SELECT n_dead_tup, autovacuum_count FROM pg_stat_user_tables WHERE schemaname = $1 AND relname = 'tasks'",
        SCHEMA,
    )
    assert rows is not None
    half = [n for at, n in dead if at < seconds / 2], [n for at, n in dead if at >= seconds / 2]
    found = {
        "at 1,000/s": written / (RATE * seconds),
        "dead rows at most": max(n for _, n in dead),
        "autovacuums": float(rows["autovacuum_count"]),
    }
    if seconds >= 300:  # before, autovacuum may not have come by twice
        found["dead rows, second half against first"] = max(half[1]) / max(1.0, *half[0])
    return found


async def _watch(world: World, began: float, dead: list[tuple[float, float]]) -> None:
    query = "SELECT COALESCE(n_dead_tup, 0) FROM pg_stat_user_tables WHERE schemaname = $1 AND relname = 'tasks'"
    while True:
        dead.append((time.monotonic() - began, float(await world.db.fetchval(query, SCHEMA))))
        await asyncio.sleep(_LOOK)


async def _position(world: World) -> int:
    return int(await world.db.fetchval("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))


ROW = Row(
    id="P14",
    title="WAL per completed task; dead rows at 1,000 tasks/s",
    figures=(
        Figure("drained", "bytes", bar=1_500, most=True),
        Figure("at 1,000/s", "bytes"),
        Figure("dead rows, second half against first", "×", bar=1.5, most=True),
        Figure("of that, the enqueue", "bytes"),
        Figure("dead rows at most", "rows"),
        Figure("autovacuums", "times"),
    ),
    measure=measure,
    runs=1,
    warm=False,
    limit=1_200,
)
