"""I14 with real deaths: exactly one effect per COMPLETED task, whatever is killed, whenever."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from dhara.store.pool import Pool
from tests.e2e.engine import engine
from tests.e2e.fleet import Desk, alive
from tests.invariants import i14, violations
from tests.waiting import eventually

pytestmark = pytest.mark.slow

SECONDS = 5.0
KINDS = ("effect", "effect.own", "process.effect")


async def test_one_effect_per_completed_task_under_kill_9(dsn: str, pool: Pool) -> None:
    desk, rng = Desk(pool), random.Random(14)
    await pool.execute("CREATE TABLE effects (task uuid NOT NULL)")
    killed = 0
    with engine(dsn, slots=10) as one, engine(dsn, slots=10) as other:
        # Enough budget for every death: the point is the effect, not the verdict.
        ids = []
        await eventually(lambda: one.runners() and other.runners(), 30, "both workers to have started")
        end = time.monotonic() + SECONDS
        while time.monotonic() < end or killed < 4:
            for kind in KINDS:
                ids += await desk.enqueue(kind, n=5 if kind == "process.effect" else 25, max_retries=20)
            await asyncio.sleep(rng.uniform(0.1, 0.6))
            victims = [*one.runners(), *other.runners()]
            if victims:
                one.kill(rng.choice(victims))
                killed += 1
        await eventually(lambda: one.runners() and other.runners(), 30, "runners to be back")
        await desk.until_final(120)
        everybody = [*one.everybody(), *other.everybody()]
    assert not alive(everybody)
    assert killed >= 4
    assert await i14(pool) == []
    completed = await desk.count("status = 'COMPLETED'")
    # Those that were thrice unlucky are called poison, and have no effect.
    assert completed > 0.9 * len(ids)
    assert await desk.count("status = 'DEAD' AND reason <> 'poison'") == 0
    assert await violations(pool, acknowledged=ids, asked=ids, quiet=True) == {}
    await desk.starts_are_explained()
