"""queues/*.sql: pause, resume and the figures of queues."""

from __future__ import annotations

import msgspec
import pytest

from dhara.domain.lifecycle import State
from dhara.errors import NotFound
from dhara.store.queues import Queues
from tests.factories import Connection, make_task


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


async def test_unknown(queues: Queues) -> None:
    with pytest.raises(NotFound):
        await queues.get("nothing")
    assert await queues.list() == []


async def test_figures_follow_a_task_revived_into_another_queue(queues: Queues, db: Connection) -> None:
    from dhara.store.tasks import Tasks

    task = await make_task(db, "DEAD", queue="a")
    await Tasks(db).revive(task.id, queue="b")
    assert [(q.name, q.depth, q.dead) for q in await queues.list()] == [("a", 0, 0), ("b", 1, 0)]
