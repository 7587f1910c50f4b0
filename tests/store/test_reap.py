"""reap.sql: what a lost or crashed worker held goes back, once its lease has surely ended."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from dhara.domain.task import Task
from dhara.store.tasks import Reaped, Tasks
from tests import invariants
from tests.factories import Connection, added, changes, flows, history, make_task, make_worker, row


async def reap(tasks: Tasks, worker: UUID, **arguments: Any) -> list[Reaped]:
    given: dict[str, Any] = {"beat_seq": 0, "claimed_before": 30, "reason": "worker lost"} | arguments
    return await tasks.reap(worker, **given)


async def lost(db: Connection, **fields: Any) -> Task:
    return await make_task(db, "RUNNING", lease_expired=True, **fields)


def holder(task: Task) -> UUID:
    assert task.locked_by is not None
    return task.locked_by


async def test_whole_row(tasks: Tasks, db: Connection) -> None:
    task = await lost(db)
    before, counted = await row(db, task.id), await flows(db)
    assert await reap(tasks, holder(task)) == [Reaped(task.id, "default", "REAPED")]
    after = await row(db, task.id)
    assert changes(before, after) == {
        "status": "PENDING",
        "failures": 1,
        "crashes": 1,
        "run_at": after["run_at"],
        "updated_at": after["updated_at"],
        "last_error": "worker lost",
    }
    # The first time within a second, so that a herd does not return as one.
    assert timedelta(seconds=-0.1) <= after["run_at"] - after["updated_at"] <= timedelta(seconds=1)
    (logged,) = await history(db, task.id)
    assert logged | {"seq": 0, "at": 0} == {
        "seq": 0,
        "at": 0,
        "task_id": task.id,
        "lease": task.lease,
        "worker_id": task.locked_by,
        "claim_seq": before["claim_seq"],
        "claimed_at": before["started_at"],
        "generation": 1,
        "attempt": 1,
        "event": "REAPED",
        "reason": "worker lost",
        "error": None,
        "logs": None,
    }
    assert added(counted, await flows(db)) == {("default", "REAPED", "RUNNING", "PENDING"): 1}
    assert not await invariants.violations(db)


async def test_backs_off_after_the_first_crash(tasks: Tasks, db: Connection) -> None:
    task = await lost(db, failures=3, crashes=1)
    await reap(tasks, holder(task), base=10, cap=3600)
    after = await row(db, task.id)
    wait = (after["run_at"] - after["updated_at"]).total_seconds()
    assert 10 * 2**3 * 0.5 - 1 <= wait <= 10 * 2**3 * 1.5
    capped = await lost(db, failures=3, crashes=1)
    await reap(tasks, holder(capped), base=10, cap=20)
    after = await row(db, capped.id)
    assert 9 <= (after["run_at"] - after["updated_at"]).total_seconds() <= 30


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"max_retries": 0}, "exhausted"),
        ({"max_retries": 2, "failures": 2}, "exhausted"),
        ({"max_retries": 20, "failures": 2, "crashes": 2}, "poison"),
    ],
)
async def test_dead(tasks: Tasks, db: Connection, fields: dict[str, Any], reason: str) -> None:
    task = await lost(db, **fields)
    counted = await flows(db)
    assert await reap(tasks, holder(task)) == [Reaped(task.id, "default", "DEAD")]
    after = await row(db, task.id)
    assert (after["status"], after["reason"], after["last_error"]) == ("DEAD", reason, "worker lost")
    assert after["completed_at"] is not None
    assert after["fingerprint"] is not None
    logged = (await history(db, task.id))[-1]
    assert (logged["event"], logged["reason"], logged["lease"]) == ("DEAD", f"{reason}: worker lost", task.lease)
    assert added(counted, await flows(db)) == {
        ("default", "DEAD", "RUNNING", "DEAD"): 1,
        ("default", "REAPED_FINAL", None, None): 1,
    }
    assert not await invariants.violations(db)


@pytest.mark.parametrize("fields", [{}, {"max_retries": 0}, {"max_retries": 9, "failures": 2, "crashes": 2}])
async def test_a_cancel_request_is_heeded(tasks: Tasks, db: Connection, fields: dict[str, Any]) -> None:
    task = await lost(db, cancel_requested=True, **fields)
    assert await reap(tasks, holder(task)) == [Reaped(task.id, "default", "CANCELED")]
    after = await row(db, task.id)
    assert (after["status"], after["completed_at"] is None, after["fingerprint"]) == ("CANCELED", False, None)
    assert (await history(db, task.id))[-1]["reason"] == "worker lost"
    assert not await invariants.violations(db)


async def test_a_beat_since_the_witness_saves_the_worker(tasks: Tasks, db: Connection) -> None:
    task = await lost(db)
    before = await row(db, task.id)
    await db.execute("UPDATE dhara.workers SET beat_seq = beat_seq + 1")
    assert await reap(tasks, holder(task), beat_seq=0) == []
    assert await row(db, task.id) == before
    assert len(await reap(tasks, holder(task), beat_seq=1)) == 1


async def test_young_claims_are_left_alone(tasks: Tasks, db: Connection) -> None:
    worker = await make_worker(db, beat_age=3600)
    young = await make_task(db, "RUNNING", worker=worker)
    old = await make_task(db, "RUNNING", worker=worker, age=60)
    assert [reaped.id for reaped in await reap(tasks, worker)] == [old.id]
    assert (await tasks.get(young.id)).status == "RUNNING"
    assert [reaped.id for reaped in await reap(tasks, worker, claimed_before=0)] == [young.id]


async def test_only_this_workers_running_tasks(tasks: Tasks, db: Connection) -> None:
    mine, other = await lost(db), await lost(db)
    for state in ("PENDING", "COMPLETED", "CANCELED", "DEAD"):
        await make_task(db, state, worker=mine.locked_by, age=3600)
    assert [reaped.id for reaped in await reap(tasks, holder(mine))] == [mine.id]
    assert (await tasks.get(other.id)).status == "RUNNING"


async def test_a_crash_that_the_keeper_saw_needs_no_witness(tasks: Tasks, db: Connection) -> None:
    worker = await make_worker(db, beats=5)
    task = await make_task(db, "RUNNING", worker=worker)
    assert len(await reap(tasks, worker, beat_seq=None, claimed_before=0, reason="killed by signal 9")) == 1
    assert (await tasks.get(task.id)).last_error == "killed by signal 9"


async def test_innocents_are_released_without_blame(tasks: Tasks, db: Connection) -> None:
    worker = await make_worker(db)
    guilty = await make_task(db, "RUNNING", worker=worker, failures=2, crashes=2)
    innocent = await make_task(db, "RUNNING", worker=worker, failures=2, crashes=2, max_retries=2)
    counted = await flows(db)
    assert guilty.lease is not None
    reaped = await reap(tasks, worker, beat_seq=None, claimed_before=0, culprits=[guilty.lease])
    assert {(r.id, r.event) for r in reaped} == {(guilty.id, "DEAD"), (innocent.id, "RELEASED")}
    freed = await tasks.get(innocent.id)
    assert (freed.status, freed.failures, freed.crashes, freed.last_error) == ("PENDING", 2, 2, "boom")
    assert freed.run_at <= freed.updated_at
    assert added(counted, await flows(db)) == {
        ("default", "DEAD", "RUNNING", "DEAD"): 1,
        ("default", "REAPED_FINAL", None, None): 1,
        ("default", "RELEASED", "RUNNING", "PENDING"): 1,
    }
    assert not await invariants.violations(db)


async def test_at_most(tasks: Tasks, db: Connection) -> None:
    worker = await make_worker(db, beat_age=3600)
    for _ in range(5):
        await make_task(db, "RUNNING", worker=worker, age=60)
    assert [len(await reap(tasks, worker, most=2)) for _ in range(4)] == [2, 2, 1, 0]
