"""lanes.sql: which queues and priorities hold PENDING tasks."""

from __future__ import annotations

import pytest

from dhara.store.tasks import Tasks
from tests.factories import Connection, make_task


async def test_every_lane_once_by_queue_and_priority(tasks: Tasks, db: Connection) -> None:
    for queue, priority in (("b", 0), ("a", 5), ("a", 0), ("a", 5), ("c", 100), ("a", 7)):
        await make_task(db, queue=queue, priority=priority)
    found = [(lane.queue, lane.priority) for lane in await tasks.lanes()]
    assert found == [("a", 7), ("a", 5), ("a", 0), ("b", 0), ("c", 100)]


async def test_ready_and_due(tasks: Tasks, db: Connection) -> None:
    await make_task(db, queue="due", due_in=-30)
    await make_task(db, queue="due", due_in=500)
    await make_task(db, queue="later", due_in=60)
    due, later = await tasks.lanes()
    assert (due.ready, later.ready) == (True, False)
    assert due.due_in == pytest.approx(-30, abs=5)
    assert later.due_in == pytest.approx(60, abs=5)


async def test_only_pending_counts(tasks: Tasks, db: Connection) -> None:
    for state in ("RUNNING", "COMPLETED", "CANCELED", "DEAD"):
        await make_task(db, state)
    assert await tasks.lanes() == []
