"""workers/*.sql: registration, beats, witnesses, leadership."""

from __future__ import annotations

from uuid import uuid4

import msgspec
import pytest

from dhara.errors import NotFound, WrongState
from dhara.store.audit import Audit
from dhara.store.workers import NewWorker, RunningTask, Workers
from tests.factories import Connection, make_task, make_worker


async def state_of(db: Connection, id: object) -> tuple[str, int, bool]:
    found = await db.fetchrow("SELECT state, beat_seq, stopped_at IS NOT NULL FROM dhara.workers WHERE id = $1", id)
    assert found is not None
    return tuple(found)


async def test_register(workers: Workers, db: Connection) -> None:
    new = NewWorker(id=uuid4(), pid=7, host="h", version="1", types=["a", "b"], queues={"mail": 2, "*": 3}, slots=5)
    await workers.register(new)
    await workers.beat([new.id], [1])
    await workers.register(new)
    (shown,) = await workers.recent()
    assert (shown.id, shown.pid, shown.host, shown.version, shown.types, shown.slots, shown.running, shown.state) == (
        new.id,
        7,
        "h",
        "1",
        ["a", "b"],
        5,
        1,
        "live",
    )
    assert msgspec.json.decode(shown.queues) == {"mail": 2, "*": 3}
    assert shown.beat_age == pytest.approx(0, abs=5)
    assert await state_of(db, new.id) == ("live", 1, False)


async def test_beat(workers: Workers, db: Connection) -> None:
    live, draining, lost, stopped = [
        await make_worker(db, state=state, beat_age=60) for state in ("live", "draining", "lost", "stopped")
    ]
    known = await workers.beat([live, draining, lost, stopped, uuid4()], [1, 2, 3, 4, 5])
    # A lost worker that beats again is live again; one that stopped in order stays so.
    assert known == {live: False, draining: False, lost: False}
    assert await state_of(db, live) == ("live", 1, False)
    assert await state_of(db, draining) == ("draining", 1, False)
    assert await state_of(db, lost) == ("live", 1, False)
    assert await state_of(db, stopped) == ("stopped", 0, True)
    rows = {row.id: row for row in await workers.recent()}
    assert [rows[id].running for id in (live, draining, lost, stopped)] == [1, 2, 3, 0]
    assert rows[live].beat_age < 5 < 55 < rows[stopped].beat_age


async def test_drain_and_stop(workers: Workers, db: Connection) -> None:
    worker = await make_worker(db)
    await workers.drain(worker)
    assert await state_of(db, worker) == ("draining", 0, False)
    await workers.stop(worker)
    assert await state_of(db, worker) == ("stopped", 0, True)
    await workers.drain(worker)
    assert await state_of(db, worker) == ("stopped", 0, True)


async def test_lose_unless_it_has_beaten(workers: Workers, db: Connection) -> None:
    worker = await make_worker(db, beats=3)
    await workers.lose(worker, 2)
    assert await state_of(db, worker) == ("live", 3, False)
    await workers.lose(worker, 3)
    assert await state_of(db, worker) == ("lost", 3, True)


async def test_witness(workers: Workers, db: Connection) -> None:
    live = await make_worker(db, beats=2, beat_age=40)
    draining = await make_worker(db, state="draining")
    await make_worker(db, state="stopped")
    holding = await make_worker(db, state="lost")
    await make_task(db, "RUNNING", worker=holding)
    seen = {sighting.id: sighting for sighting in await workers.witness()}
    assert seen.keys() == {live, draining, holding}
    assert (seen[live].beat_seq, seen[live].state) == (2, "live")
    assert seen[live].age == pytest.approx(40, abs=5)
    assert seen[holding].state == "lost"


async def test_list_forgets_what_ended_long_ago(workers: Workers, db: Connection) -> None:
    await make_worker(db, state="lost", beat_age=1000)
    late = await make_worker(db, state="stopped", beat_age=100)
    silent = await make_worker(db, beat_age=5000)
    assert [row.id for row in await workers.recent(900)] == [late, silent]


async def test_running(workers: Workers, db: Connection) -> None:
    worker = await make_worker(db)
    old = await make_task(db, "RUNNING", worker=worker, age=60)
    new = await make_task(db, "RUNNING", worker=worker)
    await make_task(db, "RUNNING")
    await make_task(db, "COMPLETED", worker=worker)
    found = await workers.running([worker])
    assert [task.id for task in found] == [old.id, new.id]
    assert found[0] == RunningTask(worker, old.id, "t", "default", 1, old.started_at)  # type: ignore[arg-type]
    assert [task.id for task in await workers.running([worker], most=1)] == [old.id]


async def test_running_in_some_queues(workers: Workers, db: Connection) -> None:
    worker = await make_worker(db)
    ids = [(await make_task(db, "RUNNING", worker=worker, queue=queue)).id for queue in ("mail.in", "mail_in", "news")]
    for queues, expected in {("mail.*",): ids[:1], ("mail_in", "n*"): ids[1:], ("*",): ids, ("none",): []}.items():
        assert [task.id for task in await workers.running([worker], queues=queues)] == expected, queues


async def test_prune(workers: Workers, db: Connection) -> None:
    await make_worker(db, state="stopped", beat_age=1000)
    holding = await make_worker(db, state="lost", beat_age=1000)
    await make_task(db, "RUNNING", worker=holding)
    late = await make_worker(db, state="lost", beat_age=10)
    silent = await make_worker(db, beat_age=1000)
    await workers.prune(500)
    assert {row[0] for row in await db.fetch("SELECT id FROM dhara.workers")} == {holding, late, silent}


async def test_lead(workers: Workers, db: Connection) -> None:
    me, you = uuid4(), uuid4()
    assert await workers.lead("reaper", me, 60)
    assert await workers.lead("reaper", me, 60)
    assert not await workers.lead("reaper", you, 60)
    assert await workers.lead("pruner", you, 60)
    await db.execute("UPDATE dhara.leaders SET until = until - interval '61 seconds' WHERE role = 'reaper'")
    assert await workers.lead("reaper", you, 60)
    assert not await workers.lead("reaper", me, 60)


async def test_an_operator_s_drain(workers: Workers, db: Connection) -> None:
    live, other = await make_worker(db), await make_worker(db)
    asked = await workers.ask_drain(live, "somebody")
    assert (asked.id, asked.state, asked.drain_requested_by) == (live, "draining", "somebody")
    assert (await workers.ask_drain(live, "somebody else")).drain_requested_by == "somebody", "it is said once"
    assert (await workers.drain_asked(live), await workers.drain_asked(other)) == (True, False)
    assert await workers.beat([live, other], [0, 0]) == {live: True, other: False}
    assert {row.id: row.state for row in await workers.recent()} == {live: "draining", other: "live"}
    await workers.stop(live)
    for id, refusal in ((live, WrongState), (uuid4(), NotFound)):
        with pytest.raises(refusal):
            await workers.ask_drain(id, "somebody")
    assert [(one.action, one.target, one.actor) for one in await Audit(db).list()] == [
        ("worker.drain", str(live), "somebody")
    ]
    await db.execute("UPDATE dhara.workers SET stopped_at = stopped_at - interval '1 hour' WHERE id = $1", live)
    await workers.prune(60)
    assert await db.fetchval("SELECT count(*) FROM dhara.worker_drains") == 0
