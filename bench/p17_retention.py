"""P17: a drain while retention removes a million final tasks, against an undisturbed one."""

from __future__ import annotations

import asyncio
import time

import asyncpg

from bench import seed
from bench.rows import Figure, Row
from bench.world import SCHEMA, World
from dhara.maintenance.pruner import Pruner
from dhara.maintenance.settings import MaintenanceSettings
from dhara.store.pool import PLANNER
from dhara.store.tasks import Tasks

_FINISHED = f"{SCHEMA}_pruned"


async def measure(world: World) -> dict[str, float]:
    pruned = {"prune": 0.0}

    async def drain(disturbed: bool) -> float:
        """Long enough a drain that the pruning matters."""
        count = 4 * world.sizes.drain
        await world.fresh(_FINISHED)
        await seed.finished(world.dsn, _FINISHED, world.sizes.pruned, days=2)
        await world.fill(count, _FINISHED)
        pruning = asyncio.ensure_future(_prune(world)) if disturbed else None
        try:
            return await world.drain(count, _FINISHED)
        finally:
            if pruning is not None:
                pruning.cancel()
                pruned["prune"] = await pruning

    alone, disturbed = await world.in_turn(lambda: drain(False), lambda: drain(True))
    return {
        "undisturbed": alone,
        "while pruning": disturbed,
        "while pruning against undisturbed": 100 * disturbed / alone,
        "pruned": pruned["prune"],
    }


async def _prune(world: World) -> float:
    """Prune as fast as maintenance ever does, until canceled; tasks a second."""
    db = await asyncpg.connect(world.dsn, server_settings=PLANNER)
    pruner = Pruner(Tasks(db, _FINISHED), MaintenanceSettings(schema=_FINISHED, retention=60, dead_retention=60))
    start, count = time.perf_counter(), 0
    try:
        while True:
            found = await pruner.prune()
            count += found
            if not found:
                break
    except asyncio.CancelledError:
        pass
    finally:
        db.terminate()
    return count / (time.perf_counter() - start)


ROW = Row(
    id="P17",
    title="drain while retention removes final tasks",
    figures=(
        Figure("while pruning against undisturbed", "%", bar=80),
        Figure("undisturbed"),
        Figure("while pruning"),
        Figure("pruned"),
    ),
    measure=measure,
    warm=False,
    limit=600,
)
