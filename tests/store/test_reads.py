"""get, get_many, final, logs, attempts: what people read of a task."""

from __future__ import annotations

from uuid import uuid4

import pytest

from dhara.domain.lifecycle import Event, State
from dhara.domain.task import Task
from dhara.errors import NotFound
from dhara.store.tasks import Tasks
from tests.factories import Connection, claim, make_task, settlement


async def test_get_is_the_row(tasks: Tasks, db: Connection) -> None:
    task = await make_task(db, "DEAD", failures=1, tags=("x",), timeout=2.0, idempotency_key="k")
    found = await db.fetchrow("SELECT * FROM dhara.tasks WHERE id = $1", task.id)
    assert found is not None
    expected = {field: found[field] for field in Task.__struct_fields__} | {"tags": ("x",)}
    assert {field: getattr(task, field) for field in Task.__struct_fields__} == expected
    assert type(task.status) is State


async def test_unknown(tasks: Tasks) -> None:
    for read in (tasks.get, tasks.logs):
        with pytest.raises(NotFound):
            await read(uuid4())
    assert await tasks.attempts(uuid4()) == []


async def test_many(tasks: Tasks, db: Connection) -> None:
    made = [await make_task(db, state) for state in State]
    ids = [task.id for task in made]
    assert await tasks.get_many([*ids, uuid4()]) == {task.id: task for task in made}
    assert await tasks.final([*ids, uuid4()]) == {task.id for task in made if task.status not in ("PENDING", "RUNNING")}
    assert await tasks.get_many([]) == {}


async def test_logs_tell_the_whole_life(tasks: Tasks, db: Connection) -> None:
    task = await make_task(db)
    first = await claim(db, task.id)
    await tasks.settle([settlement(first, Event.RETRIED, failed=1, reason="x")])
    second = await claim(db, task.id)
    await tasks.settle([settlement(second, Event.DEAD, failed=1, reason="exhausted")])
    await tasks.revive(task.id)
    third = await claim(db, task.id)
    logs = await tasks.logs(task.id)
    assert [(e.event, e.from_state, e.to_state, e.generation, e.attempt, e.lease) for e in logs] == [
        ("ENQUEUED", None, "PENDING", 1, 0, None),
        ("CLAIMED", "PENDING", "RUNNING", 1, 1, first.lease),
        ("RETRIED", "RUNNING", "PENDING", 1, 1, first.lease),
        ("CLAIMED", "PENDING", "RUNNING", 1, 2, second.lease),
        ("DEAD", "RUNNING", "DEAD", 1, 2, second.lease),
        ("REVIVED", "DEAD", "PENDING", 2, 2, None),
        ("CLAIMED", "PENDING", "RUNNING", 2, 3, third.lease),
    ]
    assert [e.seq for e in logs] == sorted(e.seq for e in logs)
    assert [e.at for e in logs] == sorted(e.at for e in logs)
    assert len(await tasks.logs(task.id, most=2)) == 3


async def test_logs_keep_their_order_when_the_servers_clock_jumped_back(tasks: Tasks, db: Connection) -> None:
    task = await make_task(db, "COMPLETED", failures=1)
    await db.execute("UPDATE dhara.task_history SET at = at - interval '2 hours' WHERE event = 'COMPLETED'")
    assert [e.event for e in await tasks.logs(task.id)] == ["ENQUEUED", "CLAIMED", "RETRIED", "CLAIMED", "COMPLETED"]


async def test_attempts(tasks: Tasks, db: Connection) -> None:
    task = await make_task(db)
    first = await claim(db, task.id)
    await tasks.settle([settlement(first, Event.RETRIED, failed=1, reason="x", error='{"e": 1}', logs="[1]")])
    second = await claim(db, task.id)
    one, two = await tasks.attempts(task.id)
    assert (one.attempt, one.lease, one.outcome, one.reason, one.error, one.logs) == (
        1,
        first.lease,
        "RETRIED",
        "x",
        '{"e": 1}',
        "[1]",
    )
    assert one.started_at == first.started_at
    assert one.ended_at is not None
    assert one.ended_at >= one.started_at
    assert (two.attempt, two.lease, two.started_at, two.ended_at, two.outcome) == (
        2,
        second.lease,
        second.started_at,
        None,
        None,
    )
