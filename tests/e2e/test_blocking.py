"""Handlers that block the loop, hold the GIL or never end. Heartbeats come from another process, so a busy worker is not
taken for a lost one; deadlines do not need its help either."""

from __future__ import annotations

import re

import pytest

from tests import invariants
from tests.e2e.kit import SHORT, SHORT_LEASE, Facts, Fleet, K
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300, func_only=True)]


@pytest.mark.parametrize("kind", ["block", "hold.regex", "hold.pow"])
async def test_no_lease_is_lost_by_being_busy(fleet: Fleet, facts: Facts, kind: str) -> None:
    """F5, F6: longer than the lease, beside another worker that would take over: no reap, no second start."""
    busy = fleet.start("--concurrency", "4", "--queue", "busy", **SHORT)
    other = fleet.start("--concurrency", "4", **SHORT)
    await facts.until("SELECT count(*) = 2 FROM dhara.workers WHERE beat_seq > 0")
    (id,) = await facts.enqueue(kind, {"seconds": 1.6 * SHORT_LEASE}, queue="busy")
    await facts.until("SELECT status = 'RUNNING' FROM dhara.tasks WHERE id = $1", id)
    row = await facts.rows("SELECT locked_by, w.beat_seq FROM dhara.tasks t JOIN dhara.workers w ON w.id = t.locked_by")
    if row[0][0] not in await _workers_of(facts, busy.runners):
        busy, other = other, busy  # the one that serves all queues was faster
    await facts.all_final(timeout=200)  # `hold.pow` counts processor time, of which it may get a third
    found = await facts.rows(
        "SELECT status, attempts, EXTRACT(EPOCH FROM completed_at - started_at)::float8 FROM dhara.tasks"
    )
    assert [row[:2] for row in found] == [("COMPLETED", 1)]
    assert found[0][2] > SHORT_LEASE
    assert await facts.events() == {}
    assert await facts.one("SELECT bool_and(state = 'live') FROM dhara.workers")
    assert re.search(r"event loop .*stood still", busy.log)
    assert str(id) in busy.log, "the warning names the task"
    assert str(id) not in other.log
    assert await busy.stop() == 0
    assert await other.stop() == 0


async def _workers_of(facts: Facts, pids: list[int]) -> set[object]:
    return {row[0] for row in await facts.rows("SELECT id FROM dhara.workers WHERE pid = ANY ($1)", pids)}


@pytest.mark.parametrize("kind", ["hang", "deadlock"])
async def test_a_hanging_handler_is_killed_and_takes_nobody_with_it(fleet: Fleet, facts: Facts, kind: str) -> None:
    """F7: recorded by T + K + 2 s (here: long before its own end); neighbours are released and completed; it is tried again, then DEAD."""
    worker = fleet.start("--concurrency", "12", base_backoff="100ms")
    await facts.until("SELECT count(*) = 1 FROM dhara.workers WHERE beat_seq > 0")
    neighbours = await facts.enqueue("sleep", {"seconds": 5}, times=6)
    threads = await facts.enqueue("sync.sleep", {"seconds": 5}, times=2)
    await facts.running(8)
    (id,) = await facts.enqueue(kind, max_retries=1)
    await facts.until("SELECT status = 'DEAD' FROM dhara.tasks WHERE id = $1", id)
    ends = await facts.rows(
        "SELECT outcome, reason, EXTRACT(EPOCH FROM ended_at - started_at)::float8 FROM dhara.attempts"
        " WHERE task_id = $1 ORDER BY attempt",
        id,
    )
    assert [end[0] for end in ends] == ["REAPED", "DEAD"]
    assert "deadline passed and the handler did not stop" in ends[0][1]
    assert 1 + K <= ends[0][2] <= 1 + K + 15
    assert ends[1][2] <= 1 + K + 15
    await facts.all_final()
    rows = "SELECT DISTINCT status, failures, crashes FROM dhara.tasks WHERE id = ANY ($1)"
    assert await facts.rows(rows, neighbours + threads) == [("COMPLETED", 0, 0)]
    released = await facts.one("SELECT count(*) FROM dhara.task_logs WHERE event = 'RELEASED'")
    assert released == await facts.one("SELECT sum(attempts - 1) FROM dhara.tasks WHERE id <> $1", id)
    assert await facts.one("SELECT count(*) FROM dhara.task_logs WHERE event = 'REAPED'") == 1
    assert str(id) in worker.log
    assert not await invariants.violations(await facts.connection(), quiet=True)
    assert await worker.stop() == 0


async def test_a_cancellation_that_is_not_heeded_is_enforced(fleet: Fleet, facts: Facts) -> None:
    """C13: killed at K after the request; the task is CANCELED, its neighbours are not harmed."""
    from dhara.store.tasks import Tasks

    worker = fleet.start("--concurrency", "5")
    await facts.until("SELECT count(*) = 1 FROM dhara.workers WHERE beat_seq > 0")
    (id,) = await facts.enqueue("sync.sleep", {"seconds": 60})
    neighbours = await facts.enqueue("sleep", {"seconds": 4}, times=3)
    await facts.running(4)
    asked = await facts.now()
    await Tasks(await facts.connection()).request_cancel(id)
    await facts.until("SELECT status = 'CANCELED' FROM dhara.tasks WHERE id = $1", id)
    took = await facts.one(
        "SELECT EXTRACT(EPOCH FROM completed_at - $2::timestamptz)::float8 FROM dhara.tasks WHERE id = $1", id, asked
    )
    assert K - 0.1 <= took <= 1 + K + 15
    await facts.all_final()
    assert await facts.states() == {"CANCELED": 1, "COMPLETED": len(neighbours)}
    assert await facts.one("SELECT sum(failures) + sum(crashes) FROM dhara.tasks WHERE id <> $1", id) == 0
    assert await eventually(lambda: len(worker.runners) == 1)
    assert await worker.stop() == 0
