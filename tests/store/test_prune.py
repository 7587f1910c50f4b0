"""prune.sql and prune_history.sql: final tasks leave after their time, and later their history."""

from __future__ import annotations

import pytest

from dhara.store.tasks import ZERO, Tasks
from tests import invariants
from tests.factories import Connection, added, flows, history, make_task


@pytest.mark.parametrize("state", ["COMPLETED", "CANCELED", "DEAD"])
async def test_final_past_retention(tasks: Tasks, db: Connection, state: str) -> None:
    old, young = await make_task(db, state, age=100), await make_task(db, state)
    counted = await flows(db)
    assert await tasks.prune(ZERO, 50, 50) == [old.id]
    assert await tasks.final([old.id, young.id]) == {young.id}
    logged = (await history(db, old.id))[-1]
    assert {key: value for key, value in logged.items() if value is not None} == {
        "seq": logged["seq"],
        "at": logged["at"],
        "task_id": old.id,
        "generation": 1,
        "attempt": 1,
        "event": "PRUNED",
        "reason": state,
    }
    assert added(counted, await flows(db)) == {("default", "PRUNED", state, None): 1}
    assert not await invariants.violations(db, acknowledged=[old.id, young.id])


async def test_dead_have_their_own_time(tasks: Tasks, db: Connection) -> None:
    dead, done = await make_task(db, "DEAD", age=100), await make_task(db, "COMPLETED", age=100)
    assert await tasks.prune(ZERO, 50, 1000) == [done.id]
    assert await tasks.prune(ZERO, 1000, 50) == [dead.id]


async def test_open_tasks_never_leave(tasks: Tasks, db: Connection) -> None:
    await make_task(db, "PENDING", age=10_000)
    await make_task(db, "RUNNING", age=10_000)
    assert await tasks.prune(ZERO, 0, 0) == []


async def test_in_steps_by_id(tasks: Tasks, db: Connection) -> None:
    made = [(await make_task(db, "COMPLETED", age=100)).id for _ in range(5)]
    first = await tasks.prune(ZERO, 50, 50, most=2)
    assert first == sorted(made)[:2]
    assert await tasks.prune(made[3], 50, 50) == [made[4]]
    assert await tasks.prune(first[-1], 50, 50) == made[2:4]


async def test_history_goes_after_its_task(tasks: Tasks, db: Connection) -> None:
    gone, kept = await make_task(db, "COMPLETED", age=100), await make_task(db, "COMPLETED", age=100)
    await db.execute("DELETE FROM dhara.tasks WHERE id = $1", gone.id)
    fresh = await make_task(db, "COMPLETED")
    await db.execute("DELETE FROM dhara.tasks WHERE id = $1", fresh.id)
    assert await tasks.prune_history(50) == 1
    assert await history(db, gone.id) == []
    assert len(await history(db, kept.id)) == 1
    assert len(await history(db, fresh.id)) == 1


async def test_history_in_steps(tasks: Tasks, db: Connection) -> None:
    task = await make_task(db, "DEAD", failures=4, age=100)
    await db.execute("DELETE FROM dhara.tasks WHERE id = $1", task.id)
    assert [await tasks.prune_history(50, most=2) for _ in range(4)] == [2, 2, 1, 0]
