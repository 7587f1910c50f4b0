"""Types that no live worker knows (C20): never failed, and visible in figures, metrics and on the command line."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec

from dhara.api.figures import Figures, families
from dhara.store.pool import Pool
from dhara.store.stats import Stats, Unroutable
from dhara.store.tasks import Tasks
from dhara.telemetry.metrics import MOST_LABELS, Sample
from tests.factories import make_task, make_worker, new_task


async def enqueue(pool: Pool, *kinds: tuple[str, str, int], **fields: Any) -> None:
    new = [new_task(type, queue=queue, **fields) for type, queue, count in kinds for _ in range(count)]
    await Tasks(pool).enqueue(new)


async def test_only_ready_tasks_of_types_that_no_live_worker_knows(pool: Pool, stats: Stats) -> None:
    await make_worker(pool, types=["known", "draining"], state="draining")
    await make_worker(pool, types=["gone"], state="lost")
    await enqueue(pool, ("known", "a", 3), ("draining", "a", 1), ("gone", "a", 2), ("new", "a", 1), ("new", "b", 4))
    await enqueue(pool, ("new", "b", 3), priority=7)
    await enqueue(pool, ("later", "a", 3), delay=60.0)
    await make_task(pool, "RUNNING", type="running")
    await make_task(pool, "DEAD", type="dead")
    await pool.execute("DELETE FROM dhara.workers WHERE types && '{running,dead}'")
    assert await stats.unroutable() == [
        Unroutable("new", "b", 7),
        Unroutable("gone", "a", 2),
        Unroutable("new", "a", 1),
    ]
    assert await stats.unroutable(most=1) == [Unroutable("new", "b", 7)]


async def test_it_looks_at_so_many_tasks_and_no_more(pool: Pool, stats: Stats) -> None:
    await enqueue(pool, ("x", "a", 60), ("y", "b", 60), ("z", "c", 5))
    assert await stats.unroutable(look_at=90) == [
        Unroutable("x", "a", 30),
        Unroutable("y", "b", 30),
        Unroutable("z", "c", 5),
    ]


async def test_a_long_lane_hides_no_short_one(pool: Pool, stats: Stats) -> None:
    await make_worker(pool, types=["known"])
    await enqueue(pool, ("known", "a", 1_000), ("x", "z", 1))
    assert await stats.unroutable(look_at=100) == [Unroutable("x", "z", 1)]


async def test_stats_and_metrics_show_them(client: httpx.AsyncClient, pool: Pool) -> None:
    await enqueue(pool, ("x", "a", 2), ("x", "b", 3))
    shown = (await client.get("/api/v1/stats")).json()["unroutable"]
    assert shown == [{"type": "x", "queue": "b", "count": 3}, {"type": "x", "queue": "a", "count": 2}]
    assert 'dhara_tasks_unroutable{type="x"} 5' in (await client.get("/metrics")).text


async def test_their_labels_are_bounded(pool: Pool) -> None:
    snapshot = await Figures(pool, "dhara").snapshot()
    many = [Unroutable(f"t{n}", "q", 1) for n in range(MOST_LABELS + 50)]
    shown = families(msgspec.structs.replace(snapshot, unroutable=many))
    [found] = [family for family in shown if family.metric.name == "dhara_tasks_unroutable"]
    assert len(found.series) == MOST_LABELS + 1
    assert found.series[-1] == Sample(("other",), 50)
