"""The facts of an explanation, as the database knows them."""

from __future__ import annotations

from uuid import uuid4

import pytest

from dhara.domain.explain import explain
from dhara.domain.lifecycle import State
from dhara.errors import NotFound
from dhara.store.queues import Queues
from dhara.store.tasks import Tasks
from tests.factories import Connection, make_task, make_worker


async def codes(db: Connection, id: object) -> list[str]:
    return [reason.code for reason in explain(await Tasks(db).facts(id))]  # type: ignore[arg-type]


async def test_what_stands_before_a_ready_task(db: Connection, tasks: Tasks) -> None:
    other = await make_worker(db, types=["other"])
    await make_task(db, priority=9, due_in=-10)
    await make_task(db, priority=9, due_in=3_600)  # not due: it does not stand before anything
    await make_task(db, queue="elsewhere", due_in=-10)
    await make_task(db, due_in=-5)
    mine = await make_task(db, due_in=-1)
    await make_task(db)
    assert (await tasks.facts(mine.id)).ahead == 2
    capped = await tasks.facts(mine.id, cap=2)
    assert (capped.ahead, capped.ahead_capped) == (2, True)
    assert await codes(db, mine.id) == ["type_unknown"]
    gone = await make_worker(db, types=["t", "u"], state="lost", beat_age=60)
    last = (await tasks.facts(mine.id)).last_knowing
    assert last is not None
    assert (last.id, last.state) == (gone, "lost")
    assert await codes(db, mine.id) == ["type_unknown"]
    await make_worker(db, queues={"elsewhere": 3})
    assert await codes(db, mine.id) == ["queue_unserved"]
    serving = await make_worker(db, queues={"default": 1, "*": 4}, slots=5)
    assert await codes(db, mine.id) == ["waiting_in_line"]
    await make_task(db, State.RUNNING, worker=serving)
    await make_task(db, State.RUNNING, worker=other)
    found = await tasks.facts(mine.id)
    assert (found.live, found.knowing, found.serving, found.slots, found.busy) == (3, 2, 1, 1, 1)
    assert await codes(db, mine.id) == ["slots_busy"]


async def test_rate_pause_and_workers(db: Connection, tasks: Tasks) -> None:
    await make_worker(db)
    task = await make_task(db)
    assert await codes(db, task.id) == ["next"]
    await db.execute(
        "INSERT INTO dhara.rates (queue, minute, at, enqueued, completed, failed, dead, depth)"
        " SELECT 'default', now() - n * interval '1 minute', now() - n * interval '1 minute', 0, 600 - n * 60, 0, 0, 0"
        " FROM generate_series(1, 9) AS n"
    )
    assert (await tasks.facts(task.id)).rate == pytest.approx(1.0)
    await Queues(db).pause("default", "ada")
    found = await tasks.facts(task.id)
    assert (found.paused_by, found.paused_at is not None) == ("ada", True)
    worker = await make_worker(db, beats=1)
    running = await make_task(db, State.RUNNING, worker=worker, cancel_requested=True, queue="open")
    assert await codes(db, running.id) == ["cancel_requested", "running"]
    seen = (await tasks.facts(running.id)).worker
    assert seen is not None
    assert (seen.id, seen.host, 0 <= seen.beat_age < 60) == (worker, "host", True)
    assert await codes(db, (await make_task(db, State.RUNNING, lease_expired=True, queue="open")).id) == [
        "worker_silent",
        "running",
    ]


@pytest.mark.parametrize("state, code", [("COMPLETED", "completed"), ("CANCELED", "canceled"), ("DEAD", "dead")])
async def test_the_ends(db: Connection, state: str, code: str) -> None:
    assert await codes(db, (await make_task(db, state)).id) == [code]


async def test_nothing(tasks: Tasks) -> None:
    with pytest.raises(NotFound):
        await tasks.facts(uuid4())
