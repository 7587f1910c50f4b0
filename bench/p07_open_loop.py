"""P7: an open loop of 3,000 tasks a second through the client; producer and worker share the cores."""

from __future__ import annotations

import time

from bench.p06_pickup import waits
from bench.rows import Figure, Row
from bench.seed import PAYLOAD
from bench.world import World, paced

RATE = 3_000


async def measure(world: World) -> dict[str, float]:
    await world.fresh()
    returned: dict[object, float] = {}
    with world.worker():
        async with world.client() as dhara:
            await (await dhara.enqueue("bench.moment", PAYLOAD)).result(30)

            async def one() -> None:
                handle = await dhara.enqueue("bench.moment", PAYLOAD)
                returned[handle.id] = time.time()

            await paced(RATE, 1, one)  # warm
            returned.clear()
            start = time.perf_counter()
            await paced(RATE, world.sizes.open_loop, one)
            sent = len(returned) / (time.perf_counter() - start)
            await world.until_completed(len(returned) + RATE + 1)
    return await waits(world, returned) | {"enqueued": sent}


ROW = Row(
    id="P7",
    title="open loop of 3,000/s through the client, producer and worker on the same cores: commit → handler start",
    figures=(
        Figure("p50", "ms", bar=4, most=True),
        Figure("p95", "ms", bar=8, most=True),
        Figure("p99", "ms", bar=20, most=True),
        Figure("enqueued"),
        Figure("p50 from the row's making", "ms"),
        Figure("p99 from the row's making", "ms"),
    ),
    measure=measure,
    warm=False,
)
