"""settle.sql: an ended attempt's row and history, guarded by its lease."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from dhara.domain.lifecycle import TRANSITIONS, Event, State
from dhara.store.tasks import Tasks
from tests import invariants
from tests.factories import Connection, added, changes, flows, history, make_task, row, settlement

WORKERS_EVENTS = (Event.COMPLETED, Event.RETRIED, Event.SNOOZED, Event.RELEASED, Event.CANCELED, Event.DEAD)
FIELDS: dict[str, Any] = {
    "failed": 1,
    "result": '{"r":  1}',
    "reason": "because",
    "last_error": "boom",
    "error": '{"e":  1}',
    "logs": "[1]",
    "fingerprint": "fp",
}


@pytest.mark.parametrize("event", WORKERS_EVENTS)
async def test_whole_row(tasks: Tasks, db: Connection, event: Event) -> None:
    task = await make_task(db, "RUNNING")
    before, counted = await row(db, task.id), await flows(db)
    target = TRANSITIONS[State.RUNNING][event]
    assert await tasks.settle([settlement(task, event, delay=60, **FIELDS)]) == {task.lease: target}
    after = await row(db, task.id)
    expected: dict[str, Any] = {
        "status": target,
        "updated_at": after["updated_at"],
        "failures": 1,
        "result": '{"r":  1}',
        "last_error": "boom",
        "fingerprint": "fp",
    }
    if target is State.PENDING:
        expected["run_at"] = after["run_at"]
        assert after["run_at"] - after["updated_at"] == pytest.approx(timedelta(seconds=60), abs=timedelta(seconds=1))
    else:
        expected["completed_at"] = after["completed_at"]
        assert after["completed_at"] >= before["started_at"]
    if event is Event.SNOOZED:
        expected["snoozes"] = 1
    if event is not Event.COMPLETED:
        expected["reason"] = "because"
    assert changes(before, after) == expected
    (logged,) = await history(db, task.id)
    assert logged == {
        "seq": logged["seq"],
        "task_id": task.id,
        "lease": task.lease,
        "worker_id": task.locked_by,
        "claim_seq": before["claim_seq"],
        "claimed_at": before["started_at"],
        "at": logged["at"],
        "generation": 1,
        "attempt": 1,
        "event": event,
        "reason": "because",
        "error": '{"e":  1}',
        "logs": "[1]",
    }
    assert added(counted, await flows(db)) == {("default", event, "RUNNING", target): 1}
    assert not await invariants.violations(db)


@pytest.mark.parametrize("event", WORKERS_EVENTS)
async def test_after_a_cancel_request_only_success_stands(tasks: Tasks, db: Connection, event: Event) -> None:
    task = await make_task(db, "RUNNING", cancel_requested=True)
    counted = await flows(db)
    expected = State.COMPLETED if event is Event.COMPLETED else State.CANCELED
    assert task.lease is not None
    assert await tasks.settle([settlement(task, event, delay=60)]) == {task.lease: expected}
    after = await row(db, task.id)
    assert (after["status"], after["completed_at"] is None) == (expected, False)
    assert [entry.event for entry in await tasks.logs(task.id)] == ["ENQUEUED", "CLAIMED", "CANCEL_REQUESTED", expected]
    assert added(counted, await flows(db)) == {("default", expected, "RUNNING", expected): 1}
    assert not await invariants.violations(db)


@pytest.mark.parametrize("state", State)
async def test_stale_lease_changes_nothing(tasks: Tasks, db: Connection, state: State) -> None:
    """Another lease on a RUNNING task; the own lease on one that has ended: neither writes anything."""
    task = await make_task(db, state)
    before, past, counted = await row(db, task.id), await history(db, task.id), await flows(db)
    lease = uuid4() if state is State.RUNNING or task.lease is None else task.lease
    for event in WORKERS_EVENTS:
        assert await tasks.settle([settlement(task, event, lease=lease, **FIELDS)]) == {}
    assert await row(db, task.id) == before
    assert await history(db, task.id) == past
    assert await flows(db) == counted


async def test_a_batch_settles_what_is_fresh(tasks: Tasks, db: Connection) -> None:
    fresh = [await make_task(db, "RUNNING", queue=queue) for queue in ("a", "b", "b")]
    stale = await make_task(db, "RUNNING")
    counted = await flows(db)
    batch = [settlement(task, Event.COMPLETED) for task in fresh] + [settlement(stale, Event.COMPLETED, lease=uuid4())]
    assert await tasks.settle(batch) == {task.lease: State.COMPLETED for task in fresh}
    assert added(counted, await flows(db)) == {
        ("a", "COMPLETED", "RUNNING", "COMPLETED"): 1,
        ("b", "COMPLETED", "RUNNING", "COMPLETED"): 2,
    }
    assert (await tasks.get(stale.id)).status is State.RUNNING


async def test_twice_in_one_batch_counts_once(tasks: Tasks, db: Connection) -> None:
    task = await make_task(db, "RUNNING")
    assert len(await tasks.settle([settlement(task, Event.COMPLETED), settlement(task, Event.COMPLETED)])) == 1
    assert len(await history(db, task.id)) == 1
    assert not await invariants.violations(db)


async def test_nothing(tasks: Tasks, db: Connection) -> None:
    assert await tasks.settle([]) == {}
    assert await flows(db) == {}


async def test_earlier_result_and_error_survive_an_end_without(tasks: Tasks, db: Connection) -> None:
    task = await make_task(db, "RUNNING", failures=1)
    await tasks.settle([settlement(task, Event.COMPLETED)])
    assert (await tasks.get(task.id)).last_error == "boom"
