"""Retention: final tasks leave in bounded batches, in the order of their ids; nothing else ever leaves."""

from __future__ import annotations

import secrets
import time
from typing import Any
from uuid import UUID

import pytest

from dhara.domain.ids import least_id
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
        ("COMPLETED", 60, False),
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


def id_at(seconds_ago: float) -> UUID:
    return UUID(int=least_id(time.time() - seconds_ago).int | secrets.randbits(62))


async def test_a_call_is_bounded_and_the_next_goes_on_where_it_ended(
    db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("STEP", 3), ("TURN_STEPS", 1), ("SPAN", 0.0)):
        monkeypatch.setattr(pruners, name, value)
    made = sorted([(await make_task(db, "COMPLETED", age=500, id=id_at(500 - n))).id for n in range(9)])
    pruner = Pruner(Tasks(db), SETTINGS)
    # A step of the edge, and one of the turn.
    assert (await pruner.prune(), pruner.behind) == (6, True)
    assert await ids(db) == set(made[6:]), "the oldest ids first"
    assert (await pruner.prune(), await ids(db)) == (3, set())
    assert (await pruner.prune(), pruner.behind) == (0, False)


async def test_much_that_is_kept_costs_the_edge_one_look(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("STEP", 3), ("TURN_STEPS", 1)):
        monkeypatch.setattr(pruners, name, value)
    kept = {(await make_task(db, "DEAD", age=500, id=id_at(600 - n))).id for n in range(7)}
    looks: list[UUID] = []
    tasks = Tasks(db)
    pruner = Pruner(tasks, SETTINGS)
    monkeypatch.setattr(tasks, "prune", watched(tasks.prune, looks))
    assert await pruner.prune() == 0
    looks.clear()
    due = await make_task(db, "COMPLETED", age=200, id=id_at(200))
    assert await pruner.prune() == 1
    assert len(looks) == 2, "one step of the edge, one of the turn"
    assert due.id not in await ids(db)
    assert await ids(db) == kept


async def test_the_turn_finds_what_the_edge_has_passed(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("STEP", 3), ("TURN_STEPS", 1)):
        monkeypatch.setattr(pruners, name, value)
    for n in range(4):
        await make_task(db, "DEAD", age=500, id=id_at(600 - n))
    late = await make_task(db, "RUNNING", age=500, id=id_at(700))
    pruner = Pruner(Tasks(db), SETTINGS)
    assert await pruner.prune() == 0
    await db.execute(
        "UPDATE dhara.tasks SET status = 'COMPLETED', completed_at = now() - interval '500 s' WHERE id = $1", late.id
    )
    assert sum([await pruner.prune() for _ in range(3)]) == 1
    assert late.id not in await ids(db)


def watched(prune: Any, looks: list[UUID]) -> Any:
    async def call(after: UUID, *rest: Any) -> Any:
        looks.append(after)
        return await prune(after, *rest)

    return call
