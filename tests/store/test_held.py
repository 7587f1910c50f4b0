"""held.sql: what the database believes a worker runs."""

from __future__ import annotations

from uuid import uuid4

import pytest

from dhara.store.tasks import Held, Tasks
from tests.factories import Connection, make_task, make_worker


async def test_only_the_workers_running_tasks(tasks: Tasks, db: Connection) -> None:
    worker = await make_worker(db)
    mine = await make_task(db, "RUNNING", worker=worker, age=100)
    flagged = await make_task(db, "RUNNING", worker=worker, cancel_requested=True)
    await make_task(db, "RUNNING")
    for state in ("COMPLETED", "CANCELED", "DEAD"):
        await make_task(db, state, worker=worker)
    found = {held.id: held for held in await tasks.held(worker)}
    assert found.keys() == {mine.id, flagged.id}
    assert mine.lease is not None
    assert flagged.lease is not None
    assert found[mine.id] == Held(mine.id, mine.lease, False, found[mine.id].age)
    assert found[flagged.id] == Held(flagged.id, flagged.lease, True, found[flagged.id].age)
    assert found[mine.id].age == pytest.approx(100, abs=5)
    assert found[flagged.id].age == pytest.approx(0, abs=5)
    assert await tasks.held(uuid4()) == []


async def test_some_of_them_as_all(tasks: Tasks, db: Connection) -> None:
    worker = await make_worker(db)
    mine = await make_task(db, "RUNNING", worker=worker, cancel_requested=True)
    other = await make_task(db, "RUNNING", worker=worker)
    foreign = await make_task(db, "RUNNING")
    over = await make_task(db, "COMPLETED", worker=worker)
    (found,) = await tasks.held(worker, {mine.id, foreign.id, over.id, uuid4()})
    assert (found.id, found.lease, found.cancel_requested) == (mine.id, mine.lease, True)
    assert {held.id for held in await tasks.held(worker, {mine.id, other.id})} == {mine.id, other.id}
    assert await tasks.held(worker, []) == []
