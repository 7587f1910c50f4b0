"""What must happen once in the fleet: one leader at a time, taken over when it is gone; and each round does its work."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import asyncpg
import pytest

from dhara.domain.lifecycle import State
from dhara.maintenance import Maintenance
from dhara.maintenance.settings import MaintenanceSettings
from dhara.store.pool import Pool
from dhara.store.queues import Queues
from dhara.store.tasks import Tasks
from dhara.store.workers import Duty, Workers
from tests import invariants
from tests.factories import Connection, make_task, make_worker
from tests.waiting import eventually

ROLE = "maintenance"


async def test_one_leader_until_its_time_is_over(db: Connection) -> None:
    workers, first, second = Workers(db), uuid4(), uuid4()
    assert await workers.lead(ROLE, first, 30)
    assert not await workers.lead(ROLE, second, 30)
    assert await workers.lead(ROLE, first, 30), "it may keep it"
    assert await workers.lead("another role", second, 30)
    await db.execute("UPDATE dhara.leaders SET until = clock_timestamp() - interval '1 ms' WHERE role = $1", ROLE)
    assert await workers.lead(ROLE, second, 30)
    assert not await workers.lead(ROLE, first, 30), "the old leader has lost it"


async def test_two_never_lead_at_once(pool: Pool, dsn: str) -> None:
    """Many ask at the same moment, again and again: one of them is answered yes."""
    connections = [await asyncpg.connect(dsn) for _ in range(6)]
    try:
        candidates = [(Workers(connection), uuid4()) for connection in connections]
        for _ in range(30):
            await pool.execute("UPDATE dhara.leaders SET until = clock_timestamp() - interval '1 s'")
            answers = await asyncio.gather(*(workers.lead(ROLE, id, 30) for workers, id in candidates))
            assert len(answers) - answers.count(None) == 1
    finally:
        for connection in connections:
            await connection.close()


async def test_the_leader_learns_what_there_is_to_do(db: Connection) -> None:
    workers, id = Workers(db), uuid4()
    nothing = await workers.lead(ROLE, id, 30, 5)
    assert nothing == Duty(expired=False, long=False, limited=False, chore_in=None)
    await make_task(db, expires_in=3600)
    assert await workers.lead(ROLE, id, 30, 5) == nothing
    await make_task(db, expires_in=-1)
    await db.execute("INSERT INTO dhara.counters (n, queue, event) SELECT 1, 'q', 'CLAIMED' FROM generate_series(1, 5)")
    await db.execute(
        "INSERT INTO dhara.operations (id, kind, filter, asked_by, total, total_is_estimate, due_at)"
        " VALUES (gen_random_uuid(), 'retry', '{}', 'ada', 0, false, clock_timestamp() + interval '1 hour')"
    )
    found = await workers.lead(ROLE, id, 30, 5)
    assert found is not None
    assert found.expired
    assert found.long
    assert found.chore_in == pytest.approx(3600, abs=60)
    assert await workers.next_chore() == pytest.approx(3600, abs=60)


async def test_the_leader_notes_which_queues_are_full(pool: Pool) -> None:
    """For fleets in which only SQL enqueues."""
    queues, leader = Queues(pool), Maintenance(pool, MaintenanceSettings())
    noted = "SELECT count(*) FROM dhara.full_queues"
    await queues.limit("mail", 1, "test")
    await make_task(pool, queue="mail")
    await leader.round()
    assert await pool.fetchval(noted) == 1
    await queues.limit("mail", 2, "test")
    await leader.round()
    assert await pool.fetchval(noted) == 0


async def test_only_the_leader_works_and_another_takes_over(pool: Pool, db: Connection) -> None:
    settings = MaintenanceSettings(stale_after=1.0, confirm_after=0.2, reaper_interval=0.6)
    first, second = Maintenance(pool, settings), Maintenance(pool, settings)
    await first.start()
    await eventually(lambda: _leader(db))
    leader = await _leader(db)
    await second.start()
    await asyncio.sleep(0.5)
    assert await _leader(db) == leader
    await first.stop()  # it is gone without a word

    async def taken_over() -> bool:
        return await _leader(db) not in (None, leader)

    await eventually(taken_over)
    worker = await make_worker(db, beats=1, beat_age=60)
    task = await make_task(db, "RUNNING", worker=worker, age=60)

    async def reaped() -> bool:
        return (await Tasks(db).get(task.id)).status is State.PENDING

    await eventually(reaped)
    await second.stop()


async def _leader(db: Connection) -> object:
    return await db.fetchval("SELECT holder FROM dhara.leaders WHERE role = $1 AND until > clock_timestamp()", ROLE)


async def test_a_round_expires_folds_and_prunes(pool: Pool, db: Connection) -> None:
    settings = MaintenanceSettings(retention=3600, dead_retention=7200, history_retention=1e6, reaper_interval=60)
    late = [await make_task(db, expires_in=-1) for _ in range(3)]
    in_time = await make_task(db, expires_in=3600)
    old = await make_task(db, "COMPLETED", age=3700)
    young = await make_task(db, "COMPLETED", age=3500)
    dead = await make_task(db, "DEAD", age=3700)
    long_dead = await make_task(db, "DEAD", age=7300)
    pending = await make_task(db, age=1_000_000)
    before = await db.fetchval("SELECT count(*) FROM dhara.counters")
    await Maintenance(pool, settings).round()
    left = {row[0]: row[1] for row in await db.fetch("SELECT id, status FROM dhara.tasks")}
    assert {left[task.id] for task in late} == {"DEAD"}
    expected = {task.id for task in [*late, in_time, young, dead, pending]}
    assert set(left) == expected
    assert (left[in_time.id], left[pending.id]) == ("PENDING", "PENDING")
    assert not {old.id, long_dead.id} & set(left)
    reasons = await db.fetch(
        "SELECT DISTINCT reason, attempts FROM dhara.tasks WHERE id = ANY ($1)", [t.id for t in late]
    )
    assert [tuple(row) for row in reasons] == [("expired", 0)]
    assert await db.fetchval("SELECT count(*) FROM dhara.counters") < before
    assert not await invariants.violations(db)


async def test_more_expired_tasks_than_one_batch(pool: Pool, db: Connection) -> None:
    await db.execute(
        "INSERT INTO dhara.tasks (id, type, run_at, expires_at)"
        " SELECT gen_random_uuid(), 't', now(), now() - interval '1 s' FROM generate_series(1, 1234)"
    )
    await Maintenance(pool, MaintenanceSettings()).round()
    assert await db.fetchval("SELECT count(*) FROM dhara.tasks WHERE status = 'DEAD' AND reason = 'expired'") == 1234


async def test_an_expired_task_is_not_claimed_before_maintenance_comes(pool: Pool, db: Connection) -> None:
    from tests.factories import lane

    await make_task(db, expires_in=-1)
    assert await Tasks(db).claim(await make_worker(db), ["t"], 10, [lane()]) == []


async def test_a_failing_round_is_no_end(pool: Pool, db: Connection, caplog: pytest.LogCaptureFixture) -> None:
    await db.execute("ALTER TABLE dhara.leaders RENAME TO away")
    maintenance = Maintenance(pool, MaintenanceSettings(reaper_interval=0.05))
    await maintenance.start()
    await eventually(lambda: "maintenance failed" in caplog.text)
    await db.execute("ALTER TABLE dhara.away RENAME TO leaders")

    async def leads() -> bool:
        return await _leader(db) is not None

    await eventually(leads)
    await maintenance.stop()
    await maintenance.stop()
