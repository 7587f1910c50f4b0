"""Retention: final tasks leave in bounded batches, in the order of their ids; nothing else ever leaves."""

from __future__ import annotations

import pytest

from dhara.maintenance import pruner as pruners
from dhara.maintenance.pruner import Pruner
from dhara.maintenance.settings import MaintenanceSettings
from dhara.store.tasks import Tasks
from tests.factories import Connection, make_task

SETTINGS = MaintenanceSettings(retention=100, dead_retention=1_000, history_retention=1_000)


async def ids(db: Connection) -> set[object]:
    return {row[0] for row in await db.fetch("SELECT id FROM dhara.tasks")}


@pytest.mark.parametrize(
    ("state", "age", "leaves"),
    [
        ("COMPLETED", 101, True),
        ("COMPLETED", 99, False),
        ("CANCELED", 101, True),
        ("DEAD", 101, False),
        ("DEAD", 1_001, True),
        ("PENDING", 1_000_000, False),
        ("RUNNING", 1_000_000, False),
    ],
)
async def test_who_leaves(db: Connection, state: str, age: float, leaves: bool) -> None:
    task = await make_task(db, state, age=age)
    assert await Pruner(Tasks(db), SETTINGS).prune() == int(leaves)
    assert (task.id in await ids(db)) is not leaves


async def test_history_outlives_its_task_for_its_own_time(db: Connection) -> None:
    young = await make_task(db, "COMPLETED", age=500)
    old = await make_task(db, "COMPLETED", age=2_000)
    kept = await make_task(db, "DEAD", age=900)
    pruner = Pruner(Tasks(db), SETTINGS)
    assert await pruner.prune() == 2
    left = {row[0] for row in await db.fetch("SELECT DISTINCT task_id FROM dhara.task_history WHERE event <> 'PRUNED'")}
    assert left == {young.id, kept.id}
    assert old.id not in left


async def test_a_pass_is_bounded_and_the_next_goes_on_where_it_ended(
    db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruners, "BATCH", 3)
    monkeypatch.setattr(pruners, "_BATCHES", 2)
    made = [await make_task(db, "COMPLETED", age=500) for _ in range(8)]
    pruner = Pruner(Tasks(db), SETTINGS)
    assert await pruner.prune() == 6
    assert await ids(db) == {task.id for task in made[6:]}, "the oldest ids first"
    late = await make_task(db, "COMPLETED", age=500, id=made[0].id)
    assert await pruner.prune() == 2, "from where it ended"
    assert await ids(db) == {late.id}
    assert await pruner.prune() == 1, "and then from the front again"
    assert await ids(db) == set()
