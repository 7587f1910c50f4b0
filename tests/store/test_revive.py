"""revive.sql: DEAD -> PENDING in a new generation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from dhara.errors import NotFound, WrongState
from dhara.store.tasks import Tasks
from tests import invariants
from tests.factories import Connection, added, changes, claim, flows, history, make_task, row


async def test_whole_row(tasks: Tasks, db: Connection) -> None:
    task = await make_task(db, "DEAD", failures=2, crashes=1, snoozes=1, age=100)
    before, counted = await row(db, task.id), await flows(db)
    await tasks.revive(task.id, reason="try again")
    after = await row(db, task.id)
    assert changes(before, after) == {
        "status": "PENDING",
        "generation": 2,
        "failures": 0,
        "crashes": 0,
        "snoozes": 0,
        "run_at": after["run_at"],
        "updated_at": after["updated_at"],
        "completed_at": None,
        "lease": None,
        "locked_by": None,
        "claim_seq": None,
        "reason": None,
        "fingerprint": None,
    }
    assert after["run_at"] > before["completed_at"] + timedelta(seconds=90)
    assert (after["attempts"], after["last_error"]) == (4, "boom")
    logged = (await history(db, task.id))[-1]
    assert {key: value for key, value in logged.items() if value is not None} == {
        "seq": logged["seq"],
        "at": logged["at"],
        "task_id": task.id,
        "generation": 2,
        "attempt": 4,
        "event": "REVIVED",
        "reason": "try again",
    }
    assert added(counted, await flows(db)) == {("default", "REVIVED", "DEAD", "PENDING"): 1}
    assert (await claim(db, task.id)).attempt == 5
    assert not await invariants.violations(db)


async def test_with_changes_into_another_queue(tasks: Tasks, db: Connection) -> None:
    task = await make_task(db, "DEAD", queue="old")
    counted = await flows(db)
    ahead = datetime.now(UTC) + timedelta(hours=1)
    await tasks.revive(task.id, queue="new", priority=9, payload='{"x":  2}', run_at=ahead)
    found = await tasks.get(task.id)
    assert (found.queue, found.priority, found.payload, found.run_at) == ("new", 9, '{"x":  2}', ahead)
    assert added(counted, await flows(db)) == {
        ("old", "REVIVED", "DEAD", None): 1,
        ("new", "MOVED", None, "PENDING"): 1,
    }
    assert not await invariants.violations(db)


async def test_same_queue_by_name(tasks: Tasks, db: Connection) -> None:
    task = await make_task(db, "DEAD", queue="old")
    counted = await flows(db)
    await tasks.revive(task.id, queue="old")
    assert added(counted, await flows(db)) == {("old", "REVIVED", "DEAD", "PENDING"): 1}


async def test_a_past_run_at_counts_as_now(tasks: Tasks, db: Connection) -> None:
    task = await make_task(db, "DEAD")
    await tasks.revive(task.id, run_at=datetime(2000, 1, 1, tzinfo=UTC))
    found = await row(db, task.id)
    assert found["run_at"] >= task.updated_at


async def test_a_passed_expiry_is_dropped_a_coming_one_kept(tasks: Tasks, db: Connection) -> None:
    gone = await make_task(db, "DEAD", expires_in=-5)
    kept = await make_task(db, "DEAD", expires_in=500)
    await tasks.revive(gone.id)
    await tasks.revive(kept.id)
    assert (await tasks.get(gone.id)).expires_at is None
    assert (await tasks.get(kept.id)).expires_at == kept.expires_at
    assert await tasks.expire() == 0


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETED", "CANCELED"])
async def test_only_dead(tasks: Tasks, db: Connection, state: str) -> None:
    task = await make_task(db, state)
    before, counted = await row(db, task.id), await flows(db)
    with pytest.raises(WrongState) as caught:
        await tasks.revive(task.id)
    assert caught.value.state == state
    assert (await row(db, task.id), await flows(db)) == (before, counted)


async def test_unknown(tasks: Tasks) -> None:
    with pytest.raises(NotFound):
        await tasks.revive(uuid4())
