"""P11: what a dashboard and a scraper ask, at 10 million rows."""

from __future__ import annotations

import asyncio
import time
from urllib.parse import quote

from bench.p10_growth import big
from bench.rows import Figure, Row
from bench.world import World, percentile

# Each is asked for so many times; figures are kept for a second, so those are asked for that far apart.
_TIMES, _APART = 5, 1.05
_FILTERS = {
    "by status": "status=COMPLETED",
    "by rare status": "status=DEAD",
    "by type": "type=bench.type7",
    "by queue": "queue=bench3",
    "by unknown queue": "queue=nowhere",
    "by tag": "tag=tag10",
    "by unknown tag": "tag=nowhere",
    "by worker": "worker=00000000-0000-0000-0000-000000000001",
    "by time": "created_before={middle}",
    "by type and status": "type=bench.type7&status=CANCELED",
    "by text": "q=nowhere",
}


async def measure(world: World) -> dict[str, float]:
    schema = await big(world)
    middle = await world.db.fetchval(
        "SELECT to_char(clock_timestamp() - interval '3 days', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')"
    )
    async with world.server(schema) as (url, _):
        asker = Asker(int(url.rpartition(":")[2]))
        await asker.slowest("/api/v1/tasks", 5)
        found = {
            "list": await asker.slowest("/api/v1/tasks", _TIMES),
            "/metrics": await asker.slowest("/metrics", _TIMES, _APART),
            "/queues": await asker.slowest("/api/v1/queues", _TIMES, _APART),
            "/stats": await asker.slowest("/api/v1/stats", _TIMES, _APART),
            "/dead-letters": await asker.slowest("/api/v1/dead-letters", _TIMES),
        }
        for name, query in _FILTERS.items():
            found[name] = await asker.slowest("/api/v1/tasks?" + query.format(middle=quote(middle)), 2)
    return found


class Asker:
    """One connection; every answer but 200 is an error."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def slowest(self, path: str, times: int, apart: float = 0.0) -> float:
        """Milliseconds of the slowest of some requests."""
        taken = []
        for _ in range(times):
            await asyncio.sleep(apart)
            taken.append(await self._get(path))
        return percentile(taken, 1.0)

    async def _get(self, path: str) -> float:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        start = time.perf_counter()
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        answer = await reader.read()
        seconds = time.perf_counter() - start
        writer.close()
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{path}: {answer[:300]!r}")
        return 1000 * seconds


ROW = Row(
    id="P11",
    title="reads beside so many finished tasks, the slowest of some",
    figures=(
        Figure("list", "ms", bar=50, most=True),
        Figure("/metrics", "ms", bar=50, most=True),
        Figure("/queues", "ms", bar=100, most=True),
        Figure("/stats", "ms"),
        Figure("/dead-letters", "ms"),
        *(Figure(name, "ms") for name in _FILTERS),
    ),
    measure=measure,
    runs=1,
    warm=False,
    limit=600,
)
