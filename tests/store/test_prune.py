"""prune.sql and prune_history.sql: final tasks leave after their time, and later their history."""

from __future__ import annotations

import pytest

from dhara.store.tasks import ZERO, Pruned, Tasks
from tests import invariants
from tests.factories import Connection, added, flows, history, make_task


@pytest.mark.parametrize("state", ["COMPLETED", "CANCELED", "DEAD"])
async def test_final_past_retention(tasks: Tasks, db: Connection, state: str) -> None:
    old, young = await make_task(db, state, age=100), await make_task(db, state)
    counted = await flows(db)
    assert (await tasks.prune(ZERO, 50, 50)).gone == [old.id]
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
    assert (await tasks.prune(ZERO, 50, 1000)).gone == [done.id]
    assert (await tasks.prune(ZERO, 1000, 50)).gone == [dead.id]


async def test_open_tasks_never_leave(tasks: Tasks, db: Connection) -> None:
    await make_task(db, "PENDING", age=10_000)
    await make_task(db, "RUNNING", age=10_000)
    assert (await tasks.prune(ZERO, 0, 0)).gone == []


async def test_in_steps_by_id(tasks: Tasks, db: Connection) -> None:
    """`most` bounds what is looked at, whether it may go or not, so that much that is kept costs little."""
    made = sorted([(await make_task(db, "COMPLETED", age=100)).id for _ in range(5)])
    kept = (await make_task(db, "PENDING")).id
    assert await tasks.prune(ZERO, 50, 50, most=2) == Pruned(made[:2], 2, made[1])
    assert await tasks.prune(made[3], 50, 50) == Pruned([made[4]], 2, kept)
    assert await tasks.prune(made[1], 5_000, 50, most=2) == Pruned([], 2, made[3])
    assert await tasks.prune(kept, 0, 0) == Pruned([], 0, None)


async def test_history_goes_after_its_task(tasks: Tasks, db: Connection) -> None:
    gone, kept = await make_task(db, "COMPLETED", age=100), await make_task(db, "COMPLETED", age=100)
    await db.execute("DELETE FROM dhara.tasks WHERE id = $1", gone.id)
    fresh = await make_task(db, "COMPLETED")
    await db.execute("DELETE FROM dhara.tasks WHERE id = $1", fresh.id)
    n, looked, last = await tasks.prune_history(ZERO, 0, 50)
    assert (n, looked, last and last[0]) == (1, 3, fresh.id)
    assert await history(db, gone.id) == []
    assert len(await history(db, kept.id)) == 1
    assert len(await history(db, fresh.id)) == 1


async def test_history_in_steps(tasks: Tasks, db: Connection) -> None:
    task = await make_task(db, "DEAD", failures=4, age=100)
    await db.execute("DELETE FROM dhara.tasks WHERE id = $1", task.id)
    after, counts = (ZERO, 0), []
    while True:
        n, looked, last = await tasks.prune_history(*after, 50, most=2)
        counts.append((n, looked))
        if last is None:
            break
        after = last
    assert counts == [(2, 2), (2, 2), (1, 1), (0, 0)]
