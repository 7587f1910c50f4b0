"""queues/*.sql: pause, resume and the figures of queues."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest

from dhara.domain.lifecycle import State
from dhara.errors import NotFound
from dhara.store.pool import Pool
from dhara.store.queues import Queues
from tests.factories import Connection, make_task
from tests.waiting import eventually


async def test_figures(queues: Queues, db: Connection) -> None:
    for state in State:
        await make_task(db, state, queue="mail")
    await make_task(db, queue="mail", due_in=-90)
    await make_task(db, queue="mail", due_in=90)
    await make_task(db, queue="other")
    mail, other = await queues.list()
    again = await queues.get("mail")
    assert msgspec.structs.replace(again, oldest_ready_age=mail.oldest_ready_age) == mail
    assert (mail.name, mail.depth, mail.ready, mail.delayed, mail.running, mail.dead) == ("mail", 3, 2, 1, 1, 1)
    assert (mail.enqueued, mail.completed, mail.ready_capped, mail.paused_at) == (7, 1, False, None)
    assert mail.oldest_ready_age == pytest.approx(90, abs=5)
    assert (other.name, other.depth) == ("other", 1)


async def test_pause_and_resume(queues: Queues) -> None:
    await queues.pause("new", "me")
    first = await queues.get("new")
    assert (first.paused_by, first.depth, first.oldest_ready_age) == ("me", 0, None)
    await queues.pause("new", "you")
    again = await queues.get("new")
    assert (again.paused_at, again.paused_by) == (first.paused_at, "me")
    await queues.resume("new")
    await queues.resume("never")
    assert [(queue.name, queue.paused_at, queue.paused_by) for queue in await queues.list()] == [
        ("never", None, None),
        ("new", None, None),
    ]


@pytest.mark.parametrize("what", ["retain", "aim", "limit"])
async def test_of_two_changes_at_once_the_second_says_what_the_first_made(
    db: Connection, pool: Pool, what: str
) -> None:
    await getattr(Queues(db), what)("mail", 1)
    async with db.transaction():
        await getattr(Queues(db), what)("mail", 2)
        second = asyncio.create_task(getattr(Queues(pool), what)("mail", 3))
        await eventually(lambda: _somebody_waits(db))
    await second
    rows = await db.fetch("SELECT before, after FROM dhara.audit_log ORDER BY seq")
    values = [tuple(next(iter((json.loads(side) or {}).values()), None) for side in row) for row in rows]
    assert values == [(None, 1), (1, 2), (2, 3)]


async def _somebody_waits(db: Connection) -> bool:
    query = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND transactionid = pg_current_xact_id()::xid"
    return bool(await db.fetchval(query))


async def test_unknown(queues: Queues) -> None:
    with pytest.raises(NotFound):
        await queues.get("nothing")
    assert await queues.list() == []


async def test_figures_follow_a_task_revived_into_another_queue(queues: Queues, db: Connection) -> None:
    from dhara.store.tasks import Tasks

    task = await make_task(db, "DEAD", queue="a")
    await Tasks(db).revive(task.id, queue="b")
    assert [(q.name, q.depth, q.dead) for q in await queues.list()] == [("a", 0, 0), ("b", 1, 0)]
