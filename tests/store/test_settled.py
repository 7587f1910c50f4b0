"""settled.sql: was a settlement written whose reply was lost?"""

from __future__ import annotations

from uuid import uuid4

import pytest

from dhara.domain.lifecycle import Event
from dhara.store.tasks import Tasks
from tests.factories import Connection, make_task, make_worker, settlement


@pytest.mark.parametrize("event", [Event.COMPLETED, Event.RETRIED, Event.SNOOZED, Event.RELEASED, Event.DEAD])
async def test_own_settlement(tasks: Tasks, db: Connection, event: Event) -> None:
    task = await make_task(db, "RUNNING")
    mine = settlement(task, event)
    assert await tasks.settled([mine]) == set()
    await tasks.settle([mine])
    assert await tasks.settled([mine, settlement(task, event, lease=uuid4())]) == {task.lease}


async def test_canceled_stands_for_a_failure_but_not_for_success(tasks: Tasks, db: Connection) -> None:
    task = await make_task(db, "RUNNING", cancel_requested=True)
    await tasks.settle([settlement(task, Event.RETRIED)])
    assert await tasks.settled([settlement(task, Event.RETRIED)]) == {task.lease}
    assert await tasks.settled([settlement(task, Event.COMPLETED)]) == set()


async def test_completed_stands_for_a_failure(tasks: Tasks, db: Connection) -> None:
    """The handler's own commit went through, but it never heard of it."""
    task = await make_task(db, "RUNNING")
    await tasks.settle([settlement(task, Event.COMPLETED)])
    assert await tasks.settled([settlement(task, Event.RETRIED)]) == {task.lease}
    assert await tasks.settled([settlement(task, Event.RETRIED, lease=uuid4())]) == set()


@pytest.mark.parametrize("culprits", [None, []])
async def test_a_reapers_end_is_not_the_workers(tasks: Tasks, db: Connection, culprits: list[object] | None) -> None:
    worker = await make_worker(db)
    for retries in (0, 5):
        task = await make_task(db, "RUNNING", worker=worker, max_retries=retries, age=60)
        await tasks.reap(worker, beat_seq=None, claimed_before=0, reason="crashed", culprits=culprits)  # type: ignore[arg-type]
        assert (await tasks.get(task.id)).status != "RUNNING"
        assert await tasks.settled([settlement(task, Event.COMPLETED)]) == set()


async def test_still_after_the_next_attempt(tasks: Tasks, db: Connection) -> None:
    task = await make_task(db, "RUNNING")
    mine = settlement(task, Event.RETRIED)
    await tasks.settle([mine])
    from tests.factories import claim

    await claim(db, task.id)
    assert await tasks.settled([mine]) == {task.lease}
