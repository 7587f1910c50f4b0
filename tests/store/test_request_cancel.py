"""request_cancel.sql: PENDING is canceled at once, RUNNING is marked, final states stay."""

from __future__ import annotations

from uuid import uuid4

import pytest

from dhara.domain.lifecycle import State
from dhara.errors import NotFound
from dhara.store.tasks import Canceling, Tasks
from tests import invariants
from tests.factories import Connection, added, changes, flows, history, make_task, row


@pytest.mark.parametrize("failures", [0, 1])
async def test_pending(tasks: Tasks, db: Connection, failures: int) -> None:
    task = await make_task(db, failures=failures)
    before, counted, past = await row(db, task.id), await flows(db), await history(db, task.id)
    assert await tasks.request_cancel(task.id, "enough") == Canceling(State.PENDING, True, None)
    after = await row(db, task.id)
    assert changes(before, after) == {
        "status": "CANCELED",
        "completed_at": after["completed_at"],
        "cancel_requested_at": after["cancel_requested_at"],
        "updated_at": after["updated_at"],
        "reason": "enough",
    }
    (logged,) = (await history(db, task.id))[len(past) :]
    assert {key: value for key, value in logged.items() if value is not None} == {
        "seq": logged["seq"],
        "at": logged["at"],
        "task_id": task.id,
        "generation": 1,
        "attempt": failures,
        "event": "CANCELED",
        "reason": "enough",
    }
    assert added(counted, await flows(db)) == {("default", "CANCELED", "PENDING", "CANCELED"): 1}
    assert not await invariants.violations(db)


async def test_running(tasks: Tasks, db: Connection) -> None:
    task = await make_task(db, "RUNNING")
    before, counted = await row(db, task.id), await flows(db)
    assert await tasks.request_cancel(task.id, "enough") == Canceling(State.RUNNING, True, task.locked_by)
    after = await row(db, task.id)
    assert changes(before, after) == {
        "cancel_requested_at": after["cancel_requested_at"],
        "updated_at": after["updated_at"],
        "reason": "enough",
    }
    (logged,) = await history(db, task.id)
    assert (logged["event"], logged["lease"], logged["worker_id"], logged["claim_seq"], logged["attempt"]) == (
        "CANCEL_REQUESTED",
        task.lease,
        task.locked_by,
        None,
        1,
    )
    assert await flows(db) == counted
    assert not await invariants.violations(db)
    # A second request changes nothing.
    assert (await tasks.request_cancel(task.id, "again")).changed is False
    assert await row(db, task.id) == after


@pytest.mark.parametrize("state", ["COMPLETED", "CANCELED", "DEAD"])
async def test_final_stays(tasks: Tasks, db: Connection, state: str) -> None:
    task = await make_task(db, state)
    before, counted, past = await row(db, task.id), await flows(db), await history(db, task.id)
    assert await tasks.request_cancel(task.id) == Canceling(State(state), False, None)
    assert (await row(db, task.id), await flows(db), await history(db, task.id)) == (before, counted, past)


async def test_unknown(tasks: Tasks) -> None:
    with pytest.raises(NotFound):
        await tasks.request_cancel(uuid4())
