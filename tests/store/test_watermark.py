"""The two hazards of claiming above a watermark, and what finds what was left below it: a scan from the beginning."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from dhara.domain.task import Claim
from dhara.store.tasks import Tasks, Watermark
from tests.factories import Connection, lane, make_task, new_task


@pytest.fixture
async def late(dsn: str) -> Any:
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


def above(claim: Claim) -> Watermark:
    return Watermark(claim.queue, claim.priority, claim.run_at, claim.id, 1_000)


async def test_a_late_commit_with_an_older_run_at(tasks: Tasks, db: Connection, late: Connection) -> None:
    transaction = late.transaction()
    await transaction.start()
    hidden = new_task()
    await Tasks(late).enqueue([hidden])
    for _ in range(3):
        await make_task(db)
    claims = await tasks.claim(uuid4(), ["t"], 10, [lane()])
    assert len(claims) == 3
    await transaction.commit()
    # Above the watermark it is not to be seen; from the beginning it is.
    assert await tasks.claim(uuid4(), ["t"], 10, [above(claims[-1])]) == []
    assert [claim.id for claim in await tasks.claim(uuid4(), ["t"], 10, [lane()])] == [hidden.id]


async def test_an_enqueue_with_a_past_run_at_lands_above(tasks: Tasks, db: Connection) -> None:
    await make_task(db)
    claims = await tasks.claim(uuid4(), ["t"], 10, [lane()])
    past = await db.fetchval("SELECT clock_timestamp() - interval '4 minutes'")
    backdated = new_task(run_at=past)
    await tasks.enqueue([backdated])
    by_sql = await db.fetchval("SELECT task_id FROM dhara.enqueue(type => 't', run_at => $1)", past)
    assert [c.id for c in await tasks.claim(uuid4(), ["t"], 10, [above(claims[-1])])] == [backdated.id, by_sql]


async def test_released_retried_and_revived_tasks_land_above(tasks: Tasks, db: Connection) -> None:
    await make_task(db)
    back = await make_task(db, failures=1)
    dead = await make_task(db, "DEAD")
    claims = await tasks.claim(uuid4(), ["t"], 10, [lane()])
    assert back.id in {claim.id for claim in claims}
    await tasks.revive(dead.id)
    again = await make_task(db, snoozes=1)
    found = await tasks.claim(uuid4(), ["t"], 10, [above(claims[-1])])
    assert [claim.id for claim in found] == [dead.id, again.id]


async def test_the_same_moment_is_told_apart_by_id(tasks: Tasks) -> None:
    news = sorted((new_task() for _ in range(5)), key=lambda new: new.id)
    await tasks.enqueue(news)
    taken = []
    mark = lane()
    for _ in range(5):
        (claim,) = await tasks.claim(uuid4(), ["t"], 1, [mark])
        taken.append(claim.id)
        mark = above(claim)
    assert taken == [new.id for new in news]


async def test_a_delayed_task_becomes_ready_above(tasks: Tasks, db: Connection) -> None:
    delayed = await make_task(db, due_in=60)
    ready = await make_task(db, due_in=-30)
    (claim,) = await tasks.claim(uuid4(), ["t"], 10, [lane()])
    assert claim.id == ready.id
    mark = above(claim)
    # A minute goes by.
    await db.execute("UPDATE dhara.tasks SET run_at = run_at - interval '60 seconds' WHERE id = $1", delayed.id)
    assert [found.id for found in await tasks.claim(uuid4(), ["t"], 10, [mark])] == [delayed.id]


async def test_priorities_not_seen_before_are_lanes_of_their_own(tasks: Tasks, db: Connection) -> None:
    await make_task(db, priority=0)
    await tasks.claim(uuid4(), ["t"], 10, [lane()])
    urgent = await make_task(db, priority=90)
    assert [(found.queue, found.priority) for found in await tasks.lanes()] == [("default", 90)]
    assert [claim.id for claim in await tasks.claim(uuid4(), ["t"], 10, [lane(priority=90)])] == [urgent.id]
