"""The factories make real tasks: every invariant holds for whatever they make."""

from __future__ import annotations

from uuid import UUID

import pytest

from dhara.domain.lifecycle import State
from dhara.store.stats import Stats, by_status
from tests import invariants
from tests.factories import Connection, make_task, make_worker


@pytest.mark.parametrize("state", State)
async def test_every_state(db: Connection, state: State) -> None:
    made = await make_task(db, state, failures=2, crashes=1, snoozes=1, generation=2, age=10, priority=7, queue="mail")
    assert made.status is state
    assert (made.failures, made.crashes, made.snoozes) == (2 + (state is State.DEAD), 1, 1)
    assert (made.generation, made.priority, made.queue) == (2, 7, "mail")
    assert not await invariants.violations(db, acknowledged=[made.id], asked=[made.id])
    assert by_status(await Stats(db).flows()) == {s: int(s is state) for s in State}


async def test_running_with_expired_lease(db: Connection) -> None:
    made = await make_task(db, "RUNNING", lease_expired=True)
    age = "SELECT EXTRACT(EPOCH FROM clock_timestamp() - beat_at)::float8 FROM dhara.workers WHERE id = $1"
    assert await db.fetchval(age, made.locked_by) > 3599
    assert made.started_at is not None
    assert await db.fetchval("SELECT clock_timestamp() - $1::timestamptz > interval '59 minutes'", made.started_at)


async def test_due_and_expiry(db: Connection) -> None:
    past = await make_task(db, due_in=-60, expires_in=-30)
    ahead = await make_task(db, due_in=60, expires_in=90)
    assert past.run_at < past.created_at < ahead.run_at
    assert past.expires_at is not None
    assert past.expires_at < past.created_at
    assert ahead.expires_at is not None
    assert ahead.expires_at > ahead.run_at


async def test_worker_states(db: Connection) -> None:
    for state in ("live", "draining", "stopped", "lost"):
        worker = await make_worker(db, state=state, beats=3, beat_age=5)
        found = await db.fetchrow("SELECT state, beat_seq FROM dhara.workers WHERE id = $1", worker)
        assert found is not None
        assert tuple(found) == (state, 3)


async def test_invariants_see_what_is_wrong(db: Connection) -> None:
    """Each invariant finds a violation that is planted; else it would prove nothing."""
    done = await make_task(db, "COMPLETED")
    await db.execute("ALTER TABLE dhara.tasks DISABLE TRIGGER USER")
    copy_row = (
        "INSERT INTO dhara.task_history (task_id, lease, worker_id, claim_seq, claimed_at, at, generation, attempt, event)"
        " SELECT task_id, lease, worker_id, nextval('dhara.task_history_seq'), claimed_at, at, generation, attempt, event"
        " FROM dhara.task_history WHERE task_id = $1 LIMIT 1"
    )
    await db.execute(copy_row, done.id)
    found = await invariants.violations(db)
    assert {"I4", "I5", "I6", "I7", "I9", "counted events"} <= set(found)
    other = await make_task(db, "RUNNING")
    await db.execute("UPDATE dhara.tasks SET status = 'COMPLETED' WHERE id = $1", other.id)
    found = await invariants.violations(db, acknowledged=[other.id, UUID(int=5)], asked=[done.id], quiet=True)
    assert {"I1", "I2", "counted states"} <= set(found)
    assert {row["task_id"] for row in found["I4"]} == {done.id, other.id}
    running = await make_task(db, "RUNNING")
    assert [row["task_id"] for row in await invariants.i3(db)] == [running.id]
    await db.execute(
        "INSERT INTO dhara.task_history (task_id, lease, generation, attempt, event)"
        " VALUES ($1, gen_random_uuid(), 1, 1, 'RETRIED')",
        running.id,
    )
    await db.execute("UPDATE dhara.task_history SET claim_seq = 0 WHERE task_id = $1", running.id)
    assert running.id in {row["task_id"] for row in await invariants.i8(db)}
