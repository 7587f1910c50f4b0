"""expire.sql: PENDING past expires_at is DEAD without a run."""

from __future__ import annotations

from dhara.store.tasks import Tasks
from tests import invariants
from tests.factories import Connection, added, changes, flows, history, make_task, row


async def test_whole_row(tasks: Tasks, db: Connection) -> None:
    task = await make_task(db, expires_in=-1, failures=1)
    before, counted = await row(db, task.id), await flows(db)
    assert await tasks.expire() == 1
    after = await row(db, task.id)
    assert changes(before, after) == {
        "status": "DEAD",
        "reason": "expired",
        "fingerprint": after["fingerprint"],
        "completed_at": after["completed_at"],
        "updated_at": after["updated_at"],
    }
    assert after["fingerprint"]
    logged = (await history(db, task.id))[-1]
    assert {key: value for key, value in logged.items() if value is not None} == {
        "seq": logged["seq"],
        "at": logged["at"],
        "task_id": task.id,
        "generation": 1,
        "attempt": 1,
        "event": "EXPIRED",
        "reason": "expired",
    }
    assert added(counted, await flows(db)) == {("default", "EXPIRED", "PENDING", "DEAD"): 1}
    assert not await invariants.violations(db)


async def test_others_stay(tasks: Tasks, db: Connection) -> None:
    await make_task(db)
    await make_task(db, expires_in=60)
    for state in ("RUNNING", "COMPLETED", "CANCELED", "DEAD"):
        await make_task(db, state, expires_in=-60)
    assert await tasks.expire() == 0


async def test_at_most_longest_overdue_first(tasks: Tasks, db: Connection) -> None:
    made = [await make_task(db, expires_in=-60 * n) for n in (1, 3, 2)]
    assert await tasks.expire(2) == 2
    assert [(await tasks.get(task.id)).status for task in made] == ["PENDING", "DEAD", "DEAD"]
