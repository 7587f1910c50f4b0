"""Two witnesses before anything is reaped: the database's clock, and this process's own watching."""

from __future__ import annotations

from uuid import UUID

import asyncpg
import pytest

from dhara.domain.ids import new_id
from dhara.domain.task import NewTask
from dhara.maintenance import Maintenance
from dhara.maintenance.pruner import Pruner
from dhara.maintenance.reaper import Reaper, Watch
from dhara.maintenance.settings import MaintenanceSettings
from dhara.store.pool import Pool
from dhara.store.tasks import BEGINNING, ZERO, Tasks, Watermark
from dhara.store.workers import NewWorker, Sighting, Workers

L, C = 30.0, 10.0
SETTINGS = MaintenanceSettings(stale_after=L, confirm_after=C)


class Clock:
    """This process's monotonic clock, as the test says."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reaper(tasks: Tasks, workers: Workers, clock: Clock) -> Reaper:
    return Reaper(tasks, workers, SETTINGS, clock)


@pytest.fixture
async def worker(tasks: Tasks, workers: Workers) -> UUID:
    """A worker that runs one task."""
    id = new_id()
    await workers.register(NewWorker(id=id, pid=1, host="h", version="1", types=["t"], queues={"*": 1}, slots=1))
    await tasks.enqueue([NewTask(id=new_id(), type="t")])
    assert len(await tasks.claim(id, ["t"], 1, [Watermark("default", 0, BEGINNING, ZERO, 1)])) == 1
    return id


async def age(db: asyncpg.Connection[asyncpg.Record], beat: float, claim: float) -> None:
    """Move the last beat and the claim into the past, by the database's clock."""
    await db.execute("UPDATE dhara.workers SET beat_at = clock_timestamp() - $1 * interval '1 s'", beat)
    await db.execute("UPDATE dhara.tasks SET started_at = clock_timestamp() - $1 * interval '1 s'", claim)


async def status(db: asyncpg.Connection[asyncpg.Record]) -> str:
    return str(await db.fetchval("SELECT status FROM dhara.tasks"))


@pytest.mark.parametrize(
    ("beat", "claim", "watched", "expected"),
    [
        (L + 1, L + 1, C, "PENDING"),
        (L - 5, L + 1, C, "RUNNING"),  # (a) the beat is young enough
        (L + 1, L + 1, C - 0.1, "RUNNING"),  # (b) not watched for long enough
        (L + 1, L - 5, C, "RUNNING"),  # claimed just now, by a worker that has returned
        (10 * L, 10 * L, C, "PENDING"),
    ],
)
async def test_both_must_agree(
    db: asyncpg.Connection[asyncpg.Record],
    reaper: Reaper,
    clock: Clock,
    worker: UUID,
    beat: float,
    claim: float,
    watched: float,
    expected: str,
) -> None:
    await age(db, beat, claim)
    await reaper.look()
    clock.now += watched
    await reaper.look()
    assert await status(db) == expected


async def test_one_beat_begins_the_watch_anew(
    db: asyncpg.Connection[asyncpg.Record], reaper: Reaper, workers: Workers, clock: Clock, worker: UUID
) -> None:
    """As after a jump of the database's clock: the beat looks old, but it moves."""
    for _ in range(5):
        await workers.beat([worker], [1])
        await age(db, 100 * L, 100 * L)
        await reaper.look()
        clock.now += C
    assert await status(db) == "RUNNING"


async def test_a_new_reaper_watches_for_itself(
    db: asyncpg.Connection[asyncpg.Record], tasks: Tasks, workers: Workers, clock: Clock, worker: UUID
) -> None:
    await age(db, 10 * L, 10 * L)
    await Reaper(tasks, workers, SETTINGS, clock).look()
    clock.now += 10 * C
    await Reaper(tasks, workers, SETTINGS, clock).look()
    assert await status(db) == "RUNNING"


async def test_the_lost_worker_is_marked_and_may_come_back(
    db: asyncpg.Connection[asyncpg.Record], reaper: Reaper, workers: Workers, clock: Clock, worker: UUID
) -> None:
    await age(db, L + 1, L + 1)
    await reaper.look()
    clock.now += C
    assert await reaper.look() == 1
    assert await db.fetchval("SELECT state FROM dhara.workers") == "lost"
    await workers.beat([worker], [0])
    assert await db.fetchval("SELECT state FROM dhara.workers") == "live"


async def test_a_worker_that_stopped_but_still_holds_a_task(
    db: asyncpg.Connection[asyncpg.Record], reaper: Reaper, workers: Workers, clock: Clock, worker: UUID
) -> None:
    await workers.stop(worker)
    await age(db, 0, L + 1)
    await reaper.look()
    clock.now += C
    assert await reaper.look() == 1
    assert await status(db) == "PENDING"


def test_the_watch_forgets_who_is_gone() -> None:
    watch = Watch(C)
    sighting = Sighting(new_id(), 7, "live", 100.0)
    assert watch.still([sighting], 0.0) == []
    assert watch.still([], 5.0) == []
    assert watch.still([sighting], C) == [], "the watch began anew at its return"
    assert watch.still([sighting], 2 * C) == [sighting]


async def test_one_leader_at_a_time(pool: Pool, workers: Workers, db: asyncpg.Connection[asyncpg.Record]) -> None:
    one, two = new_id(), new_id()
    assert await workers.lead("maintenance", one, 30)
    assert not await workers.lead("maintenance", two, 30)
    assert await workers.lead("maintenance", one, 30), "it may stay"
    await db.execute("UPDATE dhara.leaders SET until = clock_timestamp() - interval '1 s'")
    assert await workers.lead("maintenance", two, 30)
    assert not await workers.lead("maintenance", one, 30)


async def test_a_round_expires_and_folds(pool: Pool, tasks: Tasks, db: asyncpg.Connection[asyncpg.Record]) -> None:
    await tasks.enqueue([NewTask(id=new_id(), type="t") for _ in range(3)])
    await tasks.enqueue([NewTask(id=new_id(), type="t")])
    await db.execute("UPDATE dhara.tasks SET expires_at = clock_timestamp() - interval '1 s'")
    await Maintenance(pool, MaintenanceSettings()).round()
    rows = await db.fetch("SELECT DISTINCT status, reason, attempts FROM dhara.tasks")
    assert [tuple(row) for row in rows] == [("DEAD", "expired", 0)]
    flows = await db.fetch("SELECT event, n FROM dhara.counters ORDER BY event")
    assert [tuple(row) for row in flows] == [("ENQUEUED", 4), ("EXPIRED", 4)]


async def test_the_pruner_goes_through_more_than_a_batch(
    tasks: Tasks, db: asyncpg.Connection[asyncpg.Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dhara.maintenance.pruner.BATCH", 10)
    await tasks.enqueue([NewTask(id=new_id(), type="t") for _ in range(35)])
    await db.execute("UPDATE dhara.tasks SET status = 'CANCELED', completed_at = clock_timestamp() - interval '8 days'")
    await tasks.enqueue([NewTask(id=new_id(), type="young")])
    assert await Pruner(tasks, SETTINGS).prune() == 35
    assert await db.fetchval("SELECT string_agg(type, ',') FROM dhara.tasks") == "young"
