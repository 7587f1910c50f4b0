"""claim.sql: ready tasks become RUNNING, lane by lane, above the watermarks."""

from __future__ import annotations

from uuid import uuid4

from dhara.domain.task import Claim
from dhara.store.queues import Queues
from dhara.store.tasks import Tasks, Watermark
from tests import invariants
from tests.factories import Connection, added, changes, flows, history, lane, make_task, make_worker, row


async def test_whole_row(tasks: Tasks, db: Connection) -> None:
    task = await make_task(
        db, "PENDING", payload='{"a":  1}', failures=1, snoozes=1, timeout=3.0, queue="mail", priority=5
    )
    worker = await make_worker(db)
    before, counted, past = await row(db, task.id), await flows(db), await history(db, task.id)
    (claim,) = await tasks.claim(worker, ["t"], 10, [lane("mail", 5)])
    after = await row(db, task.id)
    assert changes(before, after) == {
        "status": "RUNNING",
        "lease": claim.lease,
        "locked_by": worker,
        "claim_seq": after["claim_seq"],
        "started_at": claim.started_at,
        "updated_at": after["updated_at"],
        "attempts": 3,
    }
    assert after["claim_seq"] > before["claim_seq"]
    assert claim.lease != before["lease"]
    assert after["started_at"] > before["updated_at"]
    same = [field for field in Claim.__struct_fields__ if field not in ("lease", "attempt")]
    assert len(same) >= 14
    assert {field: getattr(claim, field) for field in same} == {field: after[field] for field in same}
    assert claim.attempt == 3
    # The claim's own log row is the RUNNING row itself, until the attempt ends.
    assert await history(db, task.id) == past
    assert [entry.event for entry in await tasks.logs(task.id)][-1] == "CLAIMED"
    assert added(counted, await flows(db)) == {("mail", "CLAIMED", "PENDING", "RUNNING"): 1}
    assert not await invariants.violations(db)


async def test_only_what_is_ready_and_known(tasks: Tasks, db: Connection) -> None:
    ready = await make_task(db)
    await make_task(db, due_in=60)
    await make_task(db, type="unknown")
    await make_task(db, queue="other")
    await make_task(db, priority=1)
    await make_task(db, expires_in=-1)
    for state in ("RUNNING", "COMPLETED", "CANCELED", "DEAD"):
        await make_task(db, state)
    unknown = await db.fetchrow("SELECT * FROM dhara.tasks WHERE type = 'unknown'")
    assert [claim.id for claim in await tasks.claim(uuid4(), ["t"], 100, [lane()])] == [ready.id]
    assert await db.fetchrow("SELECT * FROM dhara.tasks WHERE type = 'unknown'") == unknown


async def test_at_most_as_many_as_asked_oldest_first(tasks: Tasks, db: Connection) -> None:
    made = [await make_task(db, due_in=-60 * n) for n in (1, 3, 2)]
    first = await tasks.claim(uuid4(), ["t"], 2, [lane()])
    assert [claim.id for claim in first] == [made[1].id, made[2].id]
    assert [claim.id for claim in await tasks.claim(uuid4(), ["t"], 2, [lane()])] == [made[0].id]
    assert await tasks.claim(uuid4(), ["t"], 2, [lane()]) == []


async def test_lanes_go_in_the_given_order(tasks: Tasks, db: Connection) -> None:
    low = await make_task(db, priority=0, due_in=-60)
    high = await make_task(db, priority=9)
    other = await make_task(db, queue="other", priority=50)
    lanes = [lane(priority=9), lane("other", 50), lane(priority=0)]
    claimed = [claim.id for _ in range(3) for claim in await tasks.claim(uuid4(), ["t"], 1, lanes)]
    assert claimed == [high.id, other.id, low.id]


async def test_room_of_a_queue_is_shared_by_its_lanes(tasks: Tasks, db: Connection) -> None:
    for priority in (0, 0, 0, 5, 5):
        await make_task(db, priority=priority)
    for _ in range(2):
        await make_task(db, queue="other")
    claimed = await tasks.claim(
        uuid4(), ["t"], 100, [lane(priority=5, room=3), lane(priority=0, room=3), lane("other", room=1)]
    )
    assert sorted((claim.queue, claim.priority) for claim in claimed) == [
        ("default", 0),
        ("default", 5),
        ("default", 5),
        ("other", 0),
    ]


async def test_paused_queue_is_left_alone(tasks: Tasks, queues: Queues, db: Connection) -> None:
    await make_task(db)
    other = await make_task(db, queue="other")
    await queues.pause("default", "me")
    assert [c.id for c in await tasks.claim(uuid4(), ["t"], 10, [lane(), lane("other")])] == [other.id]
    await queues.resume("default")
    assert len(await tasks.claim(uuid4(), ["t"], 10, [lane()])) == 1


async def test_starts_above_the_watermark(tasks: Tasks, db: Connection) -> None:
    made = [await make_task(db, due_in=-n) for n in (3, 2, 1)]
    above = Watermark("default", 0, made[1].run_at, made[1].id, 10)
    assert [claim.id for claim in await tasks.claim(uuid4(), ["t"], 10, [above])] == [made[2].id]


async def test_leases_are_unique(tasks: Tasks, db: Connection) -> None:
    for _ in range(20):
        await make_task(db)
    claims = await tasks.claim(uuid4(), ["t"], 20, [lane()])
    assert len({claim.lease for claim in claims}) == 20
    assert {claim.lease.version for claim in claims} == {4}


async def test_no_lanes(tasks: Tasks, db: Connection) -> None:
    await make_task(db)
    assert await tasks.claim(uuid4(), ["t"], 10, []) == []
    assert await tasks.claim(uuid4(), [], 10, [lane()]) == []
