"""P16: `dhara --help`, and a worker from its start to its first claim."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

from bench import procs
from bench.rows import Figure, Row
from bench.world import SCHEMA, World


async def measure(world: World) -> dict[str, float]:
    await world.fresh()
    start = time.perf_counter()
    command = [sys.executable, "-m", "dhara", "--help"]
    await asyncio.to_thread(subprocess.run, command, check=True, env=procs.environ(), stdout=subprocess.DEVNULL)
    help = time.perf_counter() - start
    await world.fill(1)
    began = time.time()
    with world.worker():
        await world.until_completed(1)
    claimed = await world.db.fetchval(f"SELECT extract(epoch FROM started_at)::float8 FROM {SCHEMA}.tasks")
    return {"--help": help, "first claim": claimed - began}


ROW = Row(
    id="P16",
    title="`dhara --help`; worker's start to its first claim",
    figures=(Figure("--help", "s", bar=0.3, most=True), Figure("first claim", "s", bar=1.5, most=True)),
    measure=measure,
)
