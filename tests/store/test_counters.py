"""Counters: flows that equal the counts by state and the events of the log, however they are folded."""

from __future__ import annotations

import asyncio
import random
from uuid import UUID

import asyncpg

from dhara.domain.lifecycle import Event, State
from dhara.domain.task import Claim
from dhara.store.stats import Stats, by_status
from dhara.store.tasks import ZERO, Tasks
from tests import invariants
from tests.factories import Connection, flows, lane, make_worker, new_task, settlement

EVENTS = (Event.COMPLETED, Event.COMPLETED, Event.RETRIED, Event.SNOOZED, Event.RELEASED, Event.DEAD, Event.CANCELED)


async def random_walk(db: Connection, seed: int, steps: int) -> None:
    """Every operation of the store, at random."""
    rng = random.Random(seed)
    tasks = Tasks(db)
    worker = await make_worker(db)
    ids: list[UUID] = []
    held: list[Claim] = []
    for _ in range(steps):
        match rng.randrange(8):
            case 0 | 1:
                news = [
                    new_task(queue=rng.choice("ab"), priority=rng.choice((0, 5))) for _ in range(rng.randrange(1, 6))
                ]
                await tasks.enqueue(news)
                ids += [new.id for new in news]
            case 2 | 3:
                lanes = [lane(queue, priority) for queue in "ab" for priority in (5, 0)]
                held += await tasks.claim(worker, ["t"], rng.randrange(1, 6), lanes)
            case 4 | 5 if held:
                batch = [held.pop() for _ in range(min(len(held), 3))]
                settlements = [settlement(claim, rng.choice(EVENTS)) for claim in batch]
                accepted = await tasks.settle(settlements)
                await tasks.reject(worker, [s for s in settlements if s.lease not in accepted])
            case 6 if ids:
                id = rng.choice(ids)
                state = (await tasks.get_many([id])).get(id)
                if state is not None and state.status is State.DEAD:
                    await tasks.revive(id, queue=rng.choice(("a", "b", None)))
                elif state is not None:
                    await tasks.request_cancel(id)
            case 7:
                await tasks.reap(worker, beat_seq=None, claimed_before=0, reason="crash", most=2)
                await tasks.prune(ZERO, 0, 0, most=1)
                if rng.random() < 0.3:
                    await Stats(db).fold_counters()


async def test_flows_equal_rows_and_log_after_a_random_walk(db: Connection, stats: Stats) -> None:
    await random_walk(db, seed=20, steps=250)
    assert await invariants.violations(db) == {}
    rows = {State(row[0]): row[1] for row in await db.fetch("SELECT status, count(*) FROM dhara.tasks GROUP BY 1")}
    assert {state: n for state, n in by_status(await stats.flows()).items() if n} == rows
    assert len(await db.fetch("SELECT DISTINCT event FROM dhara.task_logs")) >= 10


async def test_folding_keeps_the_sums(db: Connection, stats: Stats) -> None:
    await random_walk(db, seed=7, steps=120)
    before = await flows(db)
    rows = await db.fetchval("SELECT count(*) FROM dhara.counters")
    await stats.fold_counters()
    assert await flows(db) == before
    folded = await db.fetchval("SELECT count(*) FROM dhara.counters")
    distinct = "SELECT count(*) FROM (SELECT DISTINCT queue, event, from_state, to_state FROM dhara.counters) AS d"
    assert folded == await db.fetchval(distinct) < rows
    await stats.fold_counters()
    assert await flows(db) == before


async def test_folding_nothing(stats: Stats, db: Connection) -> None:
    await stats.fold_counters()
    assert await db.fetchval("SELECT count(*) FROM dhara.counters") == 0


async def test_folding_while_others_fold_and_count(dsn: str, db: Connection) -> None:
    barrier = asyncio.Barrier(5)

    async def counts(n: int) -> None:
        connection = await asyncpg.connect(dsn)
        try:
            await barrier.wait()
            for _ in range(20):
                if n < 3:
                    await Stats(connection).fold_counters()
                else:
                    await Tasks(connection).enqueue([new_task() for _ in range(3)])
        finally:
            await connection.close()

    await asyncio.gather(*(counts(n) for n in range(5)))
    assert await flows(db) == {("default", "ENQUEUED", None, "PENDING"): 2 * 20 * 3}
    await Stats(db).fold_counters()
    assert await db.fetchval("SELECT count(*) FROM dhara.counters") == 1
    assert not await invariants.violations(db)
