"""P12: what wake-ups cost producers: 16 connections, one enqueue a commit, a worker running; with wake-ups and without."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

from bench.rows import Figure, Row
from bench.seed import PAYLOAD
from bench.world import World

PRODUCERS = 16


async def measure(world: World) -> dict[str, float]:
    async def produce(wakeups: bool) -> float:
        await world.fresh()
        seconds = world.sizes.singles
        with world.worker():
            async with AsyncExitStack() as stack:
                # One client a connection, so that no two share a statement.
                clients = [
                    await stack.enter_async_context(world.client(wakeups=wakeups, pool_max=1)) for _ in range(PRODUCERS)
                ]
                await (await clients[0].enqueue("bench.nothing", PAYLOAD)).result(30)
                until = time.perf_counter() + seconds

                async def call(n: int) -> int:
                    done = 0
                    while time.perf_counter() < until:
                        await clients[n].enqueue("bench.nothing", PAYLOAD)
                        done += 1
                    return done

                return sum(await asyncio.gather(*map(call, range(PRODUCERS)))) / seconds

    on, off = await world.in_turn(lambda: produce(True), lambda: produce(False))
    return {"with wake-ups": on, "without": off, "with against without": 100 * on / off}


ROW = Row(
    id="P12",
    title="16 connections, one enqueue a commit, a worker running: with wake-ups against without",
    figures=(Figure("with against without", "%", bar=85), Figure("with wake-ups"), Figure("without")),
    measure=measure,
)
