"""The limit: the worker's own claim and settle statements, in its batches, by a bare asyncpg loop.

    python -m bench.limit DSN SCHEMA TYPE [BATCH]

No handlers, registry, telemetry or keeper; one connection, claim and settle in turn, above a watermark. Prints tasks a
second, and the percentiles of the claims' times in milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from uuid import uuid4

import asyncpg
import uvloop

from dhara.domain.ids import random_uuids
from dhara.store.pool import PLANNER
from dhara.store.sql import load
from dhara.store.tasks import BEGINNING, ZERO

BATCH = 500


async def drain(dsn: str, schema: str, type: str, batch: int, most: int) -> dict[str, float]:
    """Drain the lane of queue `default`, priority 0; at most `most` tasks."""
    db = await asyncpg.connect(dsn, server_settings=PLANNER)
    claim, settle = await db.prepare(load("tasks/claim", schema)), await db.prepare(load("tasks/complete", schema))
    worker, mark, done = uuid4(), (BEGINNING, ZERO), 0
    claims: list[float] = []
    start = time.perf_counter()
    while done < most:
        asked = time.perf_counter()
        rows = await claim.fetch(
            worker, [type], batch, ["default"], [0], [mark[0]], [mark[1]], [batch], random_uuids(batch)
        )
        claims.append(time.perf_counter() - asked)
        if not rows:
            break
        mark = (rows[-1]["run_at"], rows[-1]["id"])
        done += await settle.fetchval([r["id"] for r in rows], [r["lease"] for r in rows], ["null"] * len(rows))
    seconds = time.perf_counter() - start
    await db.close()
    claims.sort()
    return {
        "rate": done / seconds,
        "done": done,
        "claim_p50_ms": 1000 * claims[len(claims) // 2],
        "claim_p99_ms": 1000 * claims[min(len(claims) - 1, len(claims) * 99 // 100)],
    }


def main() -> None:
    dsn, schema, type, batch, most = sys.argv[1:6]
    uvloop.install()
    print(json.dumps(asyncio.run(drain(dsn, schema, type, int(batch), int(most)))))


if __name__ == "__main__":
    main()
