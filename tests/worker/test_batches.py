"""What workers tell of their claims and settlements arrives in the fleet's histograms."""

from __future__ import annotations

from dhara.store.pool import Pool
from dhara.store.stats import Stats
from dhara.telemetry.metrics import HISTOGRAMS
from dhara.worker.registry import Registry
from tests.worker.kit import Desk, running


async def test_batches_are_observed(dsn: str, pool: Pool) -> None:
    tasks, desk = Registry(), Desk(pool)

    @tasks.task("t")
    async def nothing() -> None: ...

    async with running(dsn, tasks, concurrency=10):
        await desk.all_final(await desk.enqueue("t", times=20))
    found = {seen.name: seen for seen in await Stats(pool).histograms()}
    assert set(found) == set(HISTOGRAMS)
    assert found["claim_batch"].total == found["settle_batch"].total == 20
    assert sum(found["claim"].buckets) == sum(found["claim_batch"].buckets) <= 20
    assert found["settle"].total > 0
    assert (found["settle"].queue, found["settle"].type) == ("", "")
