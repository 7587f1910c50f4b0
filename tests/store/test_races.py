"""Two connections, one barrier, one winner.

The first session changes a row inside an open transaction; the second is proved to wait for it (or, where it should,
not to wait); then the first commits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from dhara.domain.lifecycle import Event, State
from dhara.domain.task import Enqueued, Task
from dhara.errors import IdempotencyConflict, WrongState
from dhara.store.tasks import Tasks
from dhara.store.workers import Workers
from tests import invariants
from tests.factories import Connection, flows, lane, make_task, make_worker, new_task, settlement
from tests.waiting import blocked_on_lock

Action = Callable[[Tasks], Awaitable[Any]]


@pytest.fixture
async def rival(dsn: str) -> Any:
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


@pytest.fixture
async def third(dsn: str) -> Any:
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


async def outcome(awaitable: Awaitable[Any]) -> Any:
    try:
        return await awaitable
    except WrongState as error:
        return error


async def overtake(
    db: Connection, rival: Connection, watcher: Connection, first: Action, second: Action
) -> tuple[Any, Any]:
    """`first` in an open transaction on `db`; `second` on `rival` must wait for its row; then commit. Both answers."""
    transaction = db.transaction()
    await transaction.start()
    won = await first(Tasks(db))
    pid = await rival.fetchval("SELECT pg_backend_pid()")
    waiting = asyncio.ensure_future(outcome(second(Tasks(rival))))
    await blocked_on_lock(watcher, pid)
    await transaction.commit()
    return won, await waiting


async def test_claim_against_claim(db: Connection, rival: Connection) -> None:
    """SKIP LOCKED: the second does not wait and takes the others."""
    made = [(await make_task(db)).id for _ in range(4)]
    async with db.transaction():
        first = await Tasks(db).claim(uuid4(), ["t"], 2, [lane()])
        second = await Tasks(rival).claim(uuid4(), ["t"], 4, [lane()])
    assert [claim.id for claim in first] == made[:2]
    assert [claim.id for claim in second] == made[2:]
    assert not await invariants.violations(db)


async def test_many_claimers_take_each_task_once(tasks: Tasks, db: Connection) -> None:
    for _ in range(40):
        await make_task(db)
    barrier = asyncio.Barrier(8)

    async def claimer() -> list[Any]:
        await barrier.wait()
        return [claim for _ in range(5) for claim in await tasks.claim(uuid4(), ["t"], 3, [lane()])]

    claims = [claim for taken in await asyncio.gather(*(claimer() for _ in range(8))) for claim in taken]
    assert len(claims) == len({claim.id for claim in claims}) == 40
    assert not await invariants.violations(db)


async def test_claim_wins_against_cancel(db: Connection, rival: Connection, third: Connection) -> None:
    task = await make_task(db)
    worker = uuid4()
    claims, canceling = await overtake(
        db,
        rival,
        third,
        lambda tasks: tasks.claim(worker, ["t"], 1, [lane()]),
        lambda tasks: tasks.request_cancel(task.id),
    )
    assert len(claims) == 1
    assert (canceling.found, canceling.changed, canceling.worker) == (State.RUNNING, True, worker)
    assert (await Tasks(db).get(task.id)).cancel_requested_at is not None
    assert not await invariants.violations(db)


async def test_cancel_wins_against_claim(db: Connection, rival: Connection) -> None:
    task = await make_task(db)
    async with db.transaction():
        await Tasks(db).request_cancel(task.id)
        assert await Tasks(rival).claim(uuid4(), ["t"], 1, [lane()]) == []
    assert await Tasks(rival).claim(uuid4(), ["t"], 1, [lane()]) == []
    assert (await Tasks(db).get(task.id)).status is State.CANCELED
    assert not await invariants.violations(db)


async def test_settle_wins_against_reap(db: Connection, rival: Connection) -> None:
    task = await make_task(db, "RUNNING", lease_expired=True)
    async with db.transaction():
        assert await Tasks(db).settle([settlement(task, Event.COMPLETED)])
        assert await reap(Tasks(rival), task) == []
    assert await reap(Tasks(rival), task) == []
    assert (await Tasks(db).get(task.id)).status is State.COMPLETED
    assert not await invariants.violations(db)


async def test_reap_wins_against_settle(db: Connection, rival: Connection, third: Connection) -> None:
    task = await make_task(db, "RUNNING", lease_expired=True)
    reaped, settled = await overtake(
        db,
        rival,
        third,
        lambda tasks: reap(tasks, task),
        lambda tasks: tasks.settle([settlement(task, Event.COMPLETED)]),
    )
    assert ([r.event for r in reaped], settled) == (["REAPED"], {})
    assert (await Tasks(db).get(task.id)).status is State.PENDING
    assert not await invariants.violations(db)


async def reap(tasks: Tasks, task: Task, seq: int | None = 0) -> Any:
    assert task.locked_by is not None
    return await tasks.reap(task.locked_by, beat_seq=seq, claimed_before=30, reason="lost")


@pytest.mark.parametrize("event", [Event.COMPLETED, Event.RETRIED])
async def test_settle_wins_against_cancel(db: Connection, rival: Connection, third: Connection, event: Event) -> None:
    task = await make_task(db, "RUNNING")
    _, canceling = await overtake(
        db,
        rival,
        third,
        lambda tasks: tasks.settle([settlement(task, event, delay=60)]),
        lambda tasks: tasks.request_cancel(task.id),
    )
    # Success stands; a task that went back to PENDING is canceled there.
    state = (await Tasks(db).get(task.id)).status
    if event is Event.COMPLETED:
        assert (canceling.found, canceling.changed, state) == (State.COMPLETED, False, State.COMPLETED)
    else:
        assert (canceling.found, canceling.changed, state) == (State.PENDING, True, State.CANCELED)
    assert not await invariants.violations(db)


@pytest.mark.parametrize("event", [Event.COMPLETED, Event.RETRIED, Event.SNOOZED, Event.RELEASED, Event.DEAD])
async def test_cancel_wins_against_settle(db: Connection, rival: Connection, third: Connection, event: Event) -> None:
    task = await make_task(db, "RUNNING")
    _, settled = await overtake(
        db,
        rival,
        third,
        lambda tasks: tasks.request_cancel(task.id),
        lambda tasks: tasks.settle([settlement(task, event)]),
    )
    assert settled == {task.lease: State.COMPLETED if event is Event.COMPLETED else State.CANCELED}
    assert not await invariants.violations(db)


async def test_a_cancel_between_the_reapers_snapshot_and_its_lock_is_heeded(
    db: Connection, rival: Connection, third: Connection
) -> None:
    """The reaper waits for the worker's row, its snapshot taken; the cancel request commits meanwhile."""
    task = await make_task(db, "RUNNING", lease_expired=True)
    pid = await rival.fetchval("SELECT pg_backend_pid()")
    async with db.transaction():
        await db.execute("SELECT FROM dhara.workers WHERE id = $1 FOR UPDATE", task.locked_by)
        reaping = asyncio.ensure_future(reap(Tasks(rival), task))
        await blocked_on_lock(third, pid)
        await Tasks(third).request_cancel(task.id)
    assert [r.event for r in await reaping] == ["CANCELED"]
    assert (await Tasks(db).get(task.id)).status is State.CANCELED
    assert not await invariants.violations(db)


async def test_a_beat_wins_against_reap(db: Connection, rival: Connection, third: Connection) -> None:
    task = await make_task(db, "RUNNING", lease_expired=True)
    _, reaped = await overtake(
        db,
        rival,
        third,
        lambda tasks: Workers(tasks.db).beat([task.locked_by], [1]),  # type: ignore[list-item]
        lambda tasks: reap(tasks, task),
    )
    assert reaped == []
    assert (await Tasks(db).get(task.id)).status is State.RUNNING


async def test_reap_wins_against_a_beat(db: Connection, rival: Connection, third: Connection) -> None:
    task = await make_task(db, "RUNNING", lease_expired=True)
    reaped, known = await overtake(
        db,
        rival,
        third,
        lambda tasks: reap(tasks, task),
        lambda tasks: Workers(tasks.db).beat([task.locked_by], [1]),  # type: ignore[list-item]
    )
    assert (len(reaped), set(known)) == (1, {task.locked_by})
    assert not await invariants.violations(db)


async def test_two_reapers(db: Connection, rival: Connection, third: Connection) -> None:
    task = await make_task(db, "RUNNING", lease_expired=True)
    first, second = await overtake(db, rival, third, lambda t: reap(t, task), lambda t: reap(t, task))
    assert (len(first), second) == (1, [])
    assert not await invariants.violations(db)


async def test_revive_against_revive(db: Connection, rival: Connection, third: Connection) -> None:
    task = await make_task(db, "DEAD")
    first, second = await overtake(db, rival, third, lambda t: t.revive(task.id), lambda t: t.revive(task.id))
    assert first is None
    assert isinstance(second, WrongState)
    assert second.state == "PENDING"
    assert (await Tasks(db).get(task.id)).generation == 2
    assert not await invariants.violations(db)


async def test_cancel_against_cancel(db: Connection, rival: Connection, third: Connection) -> None:
    task = await make_task(db)
    first, second = await overtake(
        db, rival, third, lambda t: t.request_cancel(task.id), lambda t: t.request_cancel(task.id)
    )
    assert (first.changed, second.changed, second.found) == (True, False, State.CANCELED)
    assert not await invariants.violations(db)


async def test_expire_against_cancel_and_claim(db: Connection, rival: Connection) -> None:
    task = await make_task(db, expires_in=-1)
    async with db.transaction():
        await Tasks(db).request_cancel(task.id)
        assert await Tasks(rival).expire() == 0
    assert await Tasks(rival).expire() == 0
    assert not await invariants.violations(db)


async def test_prune_against_revive(db: Connection, rival: Connection) -> None:
    from dhara.store.tasks import ZERO

    task = await make_task(db, "DEAD", age=100)
    async with db.transaction():
        await Tasks(db).revive(task.id)
        assert (await Tasks(rival).prune(ZERO, 0, 0)).gone == []
    assert (await Tasks(rival).prune(ZERO, 0, 0)).gone == []
    assert (await Tasks(db).get(task.id)).status is State.PENDING


async def test_a_key_that_another_transaction_holds(db: Connection, rival: Connection, third: Connection) -> None:
    """The loser waits: if the winner commits it gets the winner's task, if it rolls back it inserts."""
    for commits in (True, False):
        key = f"k{commits}"
        mine, yours = new_task(idempotency_key=key), new_task(idempotency_key=key)
        transaction = db.transaction()
        await transaction.start()
        await Tasks(db).enqueue([mine])
        pid = await rival.fetchval("SELECT pg_backend_pid()")
        waiting = asyncio.ensure_future(Tasks(rival).enqueue([yours]))
        await blocked_on_lock(third, pid)
        await (transaction.commit() if commits else transaction.rollback())
        (answer,) = await waiting
        assert isinstance(answer, Enqueued)
        assert (answer.created, answer.task.id) == ((False, mine.id) if commits else (True, yours.id))


async def test_twenty_clients_one_key_with_rollbacks(dsn: str, db: Connection) -> None:
    """Some roll back, some have another payload: exactly one task stands, and everybody was told of it or conflicts."""
    barrier = asyncio.Barrier(20)

    async def client(n: int) -> tuple[bool, Any]:
        connection = await asyncpg.connect(dsn)
        try:
            payload = '{"a": 1}' if n % 5 else '{"a": 2}'
            gives_up = n % 4 == 1
            transaction = connection.transaction()
            await barrier.wait()
            await transaction.start()
            (answer,) = await Tasks(connection).enqueue([new_task(idempotency_key="k", payload=payload)])
            await (transaction.rollback() if gives_up else transaction.commit())
            return gives_up, answer
        finally:
            await connection.close()

    answers = await asyncio.gather(*(client(n) for n in range(20)))
    kept = [answer for gave_up, answer in answers if not gave_up]
    winners = [a.task.id for a in kept if isinstance(a, Enqueued) and a.created]
    assert len(winners) == 1
    for answer in kept:
        told = answer.existing if isinstance(answer, IdempotencyConflict) else answer.task.id
        assert told == winners[0]
    assert [row[0] for row in await db.fetch("SELECT id FROM dhara.tasks")] == winners
    assert await flows(db) == {("default", "ENQUEUED", None, "PENDING"): 1}


async def test_an_enqueue_is_seen_when_its_transaction_commits(db: Connection, rival: Connection) -> None:
    query = "SELECT task_id FROM dhara.enqueue(type => 't', payload => '{}')"
    for commits in (False, True):
        transaction = db.transaction()
        await transaction.start()
        await db.fetchval(query)
        assert await Tasks(rival).claim(uuid4(), ["t"], 1, [lane()]) == []
        await (transaction.commit() if commits else transaction.rollback())
        assert len(await Tasks(rival).claim(uuid4(), ["t"], 1, [lane()])) == int(commits)
    assert await flows(db) == {
        ("default", "ENQUEUED", None, "PENDING"): 1,
        ("default", "CLAIMED", "PENDING", "RUNNING"): 1,
    }


async def test_a_worker_takes_leadership_only_once(dsn: str, db: Connection) -> None:
    barrier = asyncio.Barrier(6)

    async def candidate() -> bool:
        connection = await asyncpg.connect(dsn)
        try:
            await barrier.wait()
            return await Workers(connection).lead("reaper", uuid4(), 60) is not None
        finally:
            await connection.close()

    assert sum(await asyncio.gather(*(candidate() for _ in range(6)))) == 1


async def test_a_worker_that_was_pruned_is_not_reaped(db: Connection) -> None:
    worker = await make_worker(db, state="lost", beat_age=1000)
    await Workers(db).prune(10)
    assert await Tasks(db).reap(worker, beat_seq=None, claimed_before=0, reason="x") == []
