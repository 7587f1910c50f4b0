"""Bulk operations: batches with progress, stopped and resumed; canary retries; what they may not touch."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from dhara.domain.canary import Plan
from dhara.domain.lifecycle import Event, State
from dhara.maintenance import bulk
from dhara.maintenance.bulk import Bulk, base
from dhara.store.audit import Audit
from dhara.store.operations import Operation, Operations
from dhara.store.pool import Pool
from dhara.store.search import Filter, Search
from dhara.store.stats import Stats, by_status
from dhara.store.tasks import Tasks
from tests.factories import claim, make_task, new_task, settlement


@pytest.fixture
def operations(pool: Pool) -> Operations:
    return Operations(pool)


@pytest.fixture
def driver(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Bulk:
    """Small batches, no pause between the looks at a wave."""
    monkeypatch.setattr(bulk, "BATCH", 3)
    monkeypatch.setattr(bulk, "LOOK_AGAIN", 0.0)
    return Bulk(pool)


async def dead(pool: Pool, n: int, **fields: Any) -> list[UUID]:
    return [(await make_task(pool, State.DEAD, **fields)).id for _ in range(n)]


async def begin(pool: Pool, kind: str, canary: Plan | None = None, **wanted: Any) -> Operation:
    chosen = base(kind, Filter(**wanted))
    total, is_estimate = await Search(pool).count(chosen)
    return await Operations(pool).create(kind, chosen, "ada", total=total, is_estimate=is_estimate, canary=canary)


async def states(pool: Pool, ids: list[UUID]) -> list[str]:
    found = await Tasks(pool).get_many(ids)
    return [found[id].status.value if id in found else "gone" for id in ids]


async def test_retry_in_batches_with_progress(pool: Pool, driver: Bulk, operations: Operations) -> None:
    mine, others = await dead(pool, 7, type="a"), await dead(pool, 2, type="b")
    begun = await begin(pool, "retry", type="a")
    assert (begun.total, begun.done, begun.state, begun.filter.type) == (7, 0, "running", "a")
    younger = await dead(pool, 1, type="a")  # enqueued after the operation began: none of its business
    assert await driver.step(begun.id)
    assert (await operations.get(begun.id)).done == 3
    assert await states(pool, mine) == ["PENDING"] * 3 + ["DEAD"] * 4
    # Whoever comes next resumes behind the last batch, such as another process after this one's death.
    assert await Bulk(pool).drive(60) == 3
    ended = await operations.get(begun.id)
    assert (ended.state, ended.done, ended.skipped, ended.total) == ("done", 7, 0, 7)
    assert await states(pool, mine + others + younger) == ["PENDING"] * 7 + ["DEAD"] * 3
    assert not await driver.step(begun.id)
    task = await Tasks(pool).get(mine[0])
    assert (task.generation, task.failures, task.reason) == (2, 0, None)
    log = (await Tasks(pool).logs(mine[0]))[-1]
    assert (log.event, log.reason) == ("REVIVED", f"retry of many by ada, operation {begun.id}")
    assert by_status(await Stats(pool).flows())[State.PENDING] == 7
    (action,) = await Audit(pool).list()
    assert (action.actor, action.action, action.target) == ("ada", "operation.start", str(begun.id))


async def test_purge_by_group_and_ids(pool: Pool, driver: Bulk, operations: Operations) -> None:
    mine, others = await dead(pool, 4, fingerprint="x"), await dead(pool, 2, fingerprint="y")
    begun = await begin(pool, "purge", fingerprint="x", ids=tuple(mine[:3] + others))
    await driver.drive(60)
    assert await states(pool, mine + others) == ["gone"] * 3 + ["DEAD"] * 3
    assert (await operations.get(begun.id)).done == 3
    assert by_status(await Stats(pool).flows())[State.DEAD] == 3


async def test_cancel_pending_and_running(pool: Pool, driver: Bulk, operations: Operations) -> None:
    pending = [(await make_task(pool, due_in=60)).id for _ in range(4)]
    running = (await make_task(pool, State.RUNNING)).id
    done = (await make_task(pool, State.COMPLETED)).id
    begun = await begin(pool, "cancel", type="t")
    await driver.drive(60)
    assert await states(pool, [*pending, running, done]) == ["CANCELED"] * 4 + ["RUNNING", "COMPLETED"]
    assert (await Tasks(pool).get(running)).cancel_requested_at is not None
    ended = await operations.get(begun.id)
    assert (ended.state, ended.done) == ("done", 5)


async def test_a_stopped_operation_does_nothing_more(pool: Pool, driver: Bulk, operations: Operations) -> None:
    mine = await dead(pool, 6)
    begun = await begin(pool, "retry")
    await driver.step(begun.id)
    stopped = await operations.stop(begun.id, "bob")
    assert (stopped.state, stopped.done, stopped.total, stopped.reason) == ("stopped", 3, 6, "stopped by bob")
    assert await driver.drive(0.5) == 0
    assert await states(pool, mine) == ["PENDING"] * 3 + ["DEAD"] * 3
    assert (await operations.stop(begun.id, "eve")).reason == "stopped by bob"
    assert [one.actor for one in await Audit(pool).list(action="operation.stop")] == ["bob"]


async def test_two_drivers_never_do_a_batch_twice(pool: Pool, driver: Bulk, operations: Operations) -> None:
    mine = await dead(pool, 12)
    begun = await begin(pool, "retry")
    await asyncio.gather(*(Bulk(pool).drive(60) for _ in range(3)))
    assert (await operations.get(begun.id)).done == 12
    assert {(await Tasks(pool).get(id)).generation for id in mine} == {2}


async def test_a_taken_unique_key_is_skipped(pool: Pool, driver: Bulk, operations: Operations) -> None:
    tasks = Tasks(pool)
    first, second = [(await dead(pool, 1, unique_key="k"))[0] for _ in range(2)]
    (other,) = await dead(pool, 1, unique_key="taken")
    await tasks.enqueue([new_task(unique_key="taken")])
    begun = await begin(pool, "retry")
    await driver.drive(60)
    ended = await operations.get(begun.id)
    assert (ended.state, ended.done, ended.skipped) == ("done", 1, 2)
    assert await states(pool, [first, second, other]) == ["PENDING", "DEAD", "DEAD"]


async def test_one_that_is_blocked_is_put_off_and_stops_no_other(pool: Pool, operations: Operations) -> None:
    (held,), (free,) = await dead(pool, 1, type="a"), await dead(pool, 1, type="b")
    first, second = await begin(pool, "retry", type="a"), await begin(pool, "retry", type="b")
    async with pool.acquire() as other, other.transaction():
        await other.execute("SELECT FROM dhara.tasks WHERE id = $1 FOR UPDATE", held)
        await Bulk(pool).drive(60)
    assert await states(pool, [held, free]) == ["DEAD", "PENDING"]
    blocked, through = await operations.get(first.id), await operations.get(second.id)
    assert (blocked.state, blocked.done, through.state) == ("running", 0, "done")
    assert blocked.due_at > first.due_at
    await pool.execute("UPDATE dhara.operations SET due_at = clock_timestamp()")
    await Bulk(pool).drive(60)
    assert await states(pool, [held]) == ["PENDING"]


async def test_one_that_cannot_work_ends_and_says_so(pool: Pool) -> None:
    begun = await begin(pool, "retry")
    await pool.execute('UPDATE dhara.operations SET filter = \'{"status": ["what"]}\'')
    await Bulk(pool).drive(60)
    row = await pool.fetchrow("SELECT state, reason FROM dhara.operations WHERE id = $1", begun.id)
    assert row is not None
    assert row["state"] == "failed"
    assert "'what'" in row["reason"]


async def end(pool: Pool, ids: list[UUID], event: Event) -> None:
    """The revived ones among `ids` run, and end by `event`."""
    for id in ids:
        if (await Tasks(pool).get(id)).status is State.PENDING:
            failed = int(event is not Event.COMPLETED)
            await Tasks(pool).settle([settlement(await claim(pool, id), event, failed=failed)])


async def test_a_canary_goes_on_in_waves_while_all_is_well(pool: Pool, driver: Bulk, operations: Operations) -> None:
    mine = await dead(pool, 9)
    plan = Plan(first=2, factor=2, most=4, max_failed=0.25, watch=60)
    begun = await begin(pool, "retry", plan)
    waves = []
    for _ in range(4):
        await driver.step(begun.id)
        await driver.step(begun.id)  # while its wave is under way it waits
        waves.append((await operations.get(begun.id)).done)
        await end(pool, mine, Event.COMPLETED)
    await driver.drive(60)
    ended = await operations.get(begun.id)
    assert (waves, ended.state, ended.done) == ([2, 6, 9, 9], "done", 9)


async def test_a_canary_stops_by_itself_when_too_many_fail_again(
    pool: Pool, driver: Bulk, operations: Operations
) -> None:
    mine = await dead(pool, 9)
    begun = await begin(pool, "retry", Plan(first=3, max_failed=0.3))
    await driver.step(begun.id)
    await end(pool, mine[:1], Event.RETRIED)  # will be tried again, and speaks against it already
    await driver.step(begun.id)
    ended = await operations.get(begun.id)
    assert (ended.state, ended.done) == ("stopped", 3)
    assert ended.reason == "1 of the 3 tasks released last failed again; the others stay DEAD"
    assert await states(pool, mine[3:]) == ["DEAD"] * 6
