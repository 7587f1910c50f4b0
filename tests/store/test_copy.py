"""Tasks.copy: the same rows and flows as enqueue.sql's, by COPY."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from dhara.domain.task import NewTask
from dhara.store.tasks import Tasks
from tests.factories import Connection, flows, new_task, row

NOW = datetime.now(UTC)


def kinds() -> list[dict[str, Any]]:
    return [
        {},
        {
            "type": "mail.send",
            "payload": '{"b": 1.0,  "a":[1e2, "é"]}',
            "queue": "mail",
            "priority": 7,
            "max_retries": 3,
        },
        {"delay": 3_600.5},
        {"run_at": NOW + timedelta(hours=1, microseconds=1)},
        {"run_at": NOW - timedelta(minutes=4)},
        {"timeout": 1.5, "expires_at": NOW + timedelta(days=1), "tags": ("x", "y"), "retention": 0.0},
        {"concurrency_key": "c", "traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01"},
    ]


async def copy(db: Connection, new: list[NewTask]) -> None:
    async with db.transaction():
        await Tasks(db).copy(new)


@pytest.mark.parametrize("together", [True, False])
async def test_rows_are_those_of_enqueue(together: bool, db: Connection, tasks: Tasks) -> None:
    copied, inserted = ([new_task(**fields) for fields in kinds()] for _ in range(2))
    for batch in [copied] if together else [[task] for task in copied]:
        await copy(db, batch)
    for batch in [inserted] if together else [[task] for task in inserted]:
        await tasks.enqueue(batch)
    for one, other in zip(copied, inserted, strict=True):
        left, right = dict(await row(db, one.id)), dict(await row(db, other.id))
        for found in (left, right):
            made = found["created_at"]
            assert found["updated_at"] == made
            # What hangs on the moment of the enqueue is compared by its distance from it.
            if found["run_at"] < made + timedelta(minutes=30) or one.delay:
                found["run_at"] -= made
            found["tags"] = found["tags"] or None
            del found["id"], found["created_at"], found["updated_at"]
        assert left == right


async def test_flows_are_those_of_enqueue(db: Connection) -> None:
    await copy(db, [new_task(queue=queue) for queue in ("a", "b", "a")])
    assert await flows(db) == {("a", "ENQUEUED", None, "PENDING"): 2, ("b", "ENQUEUED", None, "PENDING"): 1}


async def test_all_or_none(db: Connection, tasks: Tasks) -> None:
    standing = new_task()
    await tasks.enqueue([standing])
    with pytest.raises(asyncpg.UniqueViolationError):
        await copy(db, [new_task(), standing, new_task()])
    assert await db.fetchval("SELECT count(*) FROM dhara.tasks") == 1
    assert sum((await flows(db)).values()) == 1
