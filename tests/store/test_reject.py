"""reject.sql: stale settlements are put on record and change no state."""

from __future__ import annotations

from uuid import uuid4

from dhara.domain.lifecycle import Event
from dhara.store.tasks import Tasks
from tests import invariants
from tests.factories import Connection, added, flows, history, make_task, row, settlement


async def test_whole_row(tasks: Tasks, db: Connection) -> None:
    task = await make_task(db, "PENDING", failures=1)
    before, counted = await row(db, task.id), await flows(db)
    worker, lease = uuid4(), uuid4()
    await tasks.reject(worker, [settlement(task, Event.COMPLETED, lease=lease)])
    assert await row(db, task.id) == before
    logged = (await history(db, task.id))[-1]
    assert {key: value for key, value in logged.items() if value is not None} == {
        "seq": logged["seq"],
        "at": logged["at"],
        "task_id": task.id,
        "lease": lease,
        "worker_id": worker,
        "generation": 1,
        "attempt": 1,
        "event": "SETTLE_REJECTED",
        "reason": "lost lease; wished COMPLETED",
    }
    assert added(counted, await flows(db)) == {("default", "SETTLE_REJECTED", None, None): 1}
    assert not await invariants.violations(db)


async def test_of_a_task_that_is_gone(tasks: Tasks, db: Connection) -> None:
    task = await make_task(db, "COMPLETED")
    await db.execute("DELETE FROM dhara.tasks WHERE id = $1", task.id)
    before = await flows(db)
    await tasks.reject(uuid4(), [settlement(task, Event.COMPLETED)])
    assert await flows(db) == before
