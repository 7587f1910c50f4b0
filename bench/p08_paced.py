"""P8: the Go system's own published run: 20 slots, handlers of 50 to 200 ms, 100 tasks a second over HTTP; then saturation."""

from __future__ import annotations

import asyncio

from bench.load import TASK
from bench.rows import Figure, Row
from bench.world import SCHEMA, World, paced

SLOTS, RATE = 20, 100
POST = b"POST /api/v1/tasks HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "


async def measure(world: World) -> dict[str, float]:
    await world.fresh()
    async with world.server() as (url, _):
        with world.worker(slots=SLOTS):
            await asyncio.sleep(2)
            connections = Connections(int(url.rpartition(":")[2]))
            await paced(RATE, world.sizes.paced, connections.post)
            await world.until_completed(connections.sent)
            connections.close()
            found = await _latencies(world)
            return found | {"saturated": await _saturated(world)}


class Connections:
    """Keep-alive connections to the server, as many as are in use at once."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        body = TASK.replace(b"bench.nothing", b"bench.work")
        self._request = POST + str(len(body)).encode() + b"\r\n\r\n" + body
        self.sent = 0

    async def post(self) -> None:
        pair = self._free.pop() if self._free else await asyncio.open_connection("127.0.0.1", self._port)
        pair[1].write(self._request)
        self.sent += 1
        head = await pair[0].readuntil(b"\r\n\r\n")
        await pair[0].readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        if not head.startswith(b"HTTP/1.1 201"):
            raise RuntimeError(head.decode("latin-1"))
        self._free.append(pair)

    def close(self) -> None:
        for _, writer in self._free:
            writer.close()


async def _latencies(world: World) -> dict[str, float]:
    """From the row's making to its completion, and of the handlers alone."""
    shares = "percentile_cont(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY {})"
    whole, alone = "extract(epoch FROM completed_at - created_at)", "extract(epoch FROM completed_at - started_at)"
    query = f"SELECT {shares.format(whole)} AS whole, {shares.format(alone)} AS alone FROM {SCHEMA}.tasks"
    row = await world.db.fetchrow(query)
    assert row is not None
    names = ("p50", "p95", "p99")
    found = {name: 1000 * value for name, value in zip(names, row["whole"], strict=True)}
    return found | {f"{name} of the attempt alone": 1000 * v for name, v in zip(names, row["alone"], strict=True)}


async def _saturated(world: World) -> float:
    """Tasks a second while there are always more than slots: the first and last seconds, when it is not so, are left out."""
    before = await world.completed()
    count = world.sizes.saturation
    await world.fill(count, type="bench.work")
    await world.until_completed(before + count)
    query = f"""
        WITH mine AS (SELECT * FROM {SCHEMA}.tasks ORDER BY created_at DESC LIMIT $1),
        span AS MATERIALIZED (SELECT min(started_at) + interval '1 second' AS t0, max(started_at) AS t1 FROM mine)
        SELECT count(*) / extract(epoch FROM max(t1) - max(t0))::float8 FROM span JOIN mine ON completed_at BETWEEN t0 AND t1"""
    return float(await world.db.fetchval(query, count))


ROW = Row(
    id="P8",
    title="100 tasks/s over HTTP to 20 slots, handlers of 50 to 200 ms: row's making → completed; then saturation",
    figures=(
        Figure("p50", "ms", bar=130, most=True),
        Figure("p95", "ms", bar=200, most=True),
        Figure("p99", "ms", bar=215, most=True),
        Figure("saturated", bar=157),
        Figure("p50 of the attempt alone", "ms"),
        Figure("p99 of the attempt alone", "ms"),
    ),
    measure=measure,
    runs=1,
    warm=False,
)
