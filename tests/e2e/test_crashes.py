"""Processes that die or are stopped: nothing is lost, and every extra start is explained by the history."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests import invariants
from tests.e2e.kit import SHORT, SHORT_LEASE, C, Facts, Fleet, L, P, R, pause
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300, func_only=True)]

SECONDS_UNTIL_RUN_AGAIN = """
    SELECT max(EXTRACT(EPOCH FROM at - $1::timestamptz))::float8 FROM dhara.task_logs WHERE event = 'CLAIMED' AND attempt = 2"""
# 2 s on an idle machine. Whoever was not told would wait for the lease.
UNTOLD = "the keeper was not told"
EXTRA_STARTS = "SELECT count(*) FROM dhara.task_logs WHERE event = 'CLAIMED' AND attempt > 1"


async def test_runner_killed(fleet: Fleet, facts: Facts, tmp_path: Path) -> None:
    """F1: 50 running tasks run again within two seconds; each is reaped once and completed once."""
    gate = tmp_path / "gate"
    worker = fleet.start("--concurrency", "50")
    await facts.until("SELECT count(*) = 1 FROM dhara.workers WHERE beat_seq > 0")
    await facts.enqueue("gate", {"path": str(gate)}, times=50)
    await facts.begun(50)
    (runner,) = worker.runners
    at = await facts.now()
    worker.signal(signal.SIGKILL, runner)
    await facts.until("SELECT count(*) = 50 FROM dhara.tasks WHERE status = 'RUNNING' AND attempts = 2")
    assert await facts.one(SECONDS_UNTIL_RUN_AGAIN, at) < L, UNTOLD
    gate.touch()
    await facts.all_final()
    assert await facts.states() == {"COMPLETED": 50}
    assert await facts.events() == {"REAPED": 50}
    assert await facts.one(EXTRA_STARTS) == 50
    reasons = await facts.rows("SELECT DISTINCT reason FROM dhara.task_logs WHERE event = 'REAPED'")
    assert reasons == [("worker process ended: signal SIGKILL",)]
    # Written once its tasks have been taken back, which may by then be over.
    await facts.until("SELECT bool_or(state = 'lost') FROM dhara.workers")
    assert await facts.rows("SELECT state, count(*) FROM dhara.workers GROUP BY state ORDER BY 1") == [
        ("live", 1),
        ("lost", 1),
    ]
    assert not await invariants.violations(await facts.connection(), quiet=True)
    assert await worker.stop() == 0


async def test_runner_killed_again_and_again(fleet: Fleet, facts: Facts) -> None:
    """Every two seconds: it is back each time, however often it has been killed before."""
    worker = fleet.start("--concurrency", "10")
    await facts.enqueue("sleep", {"seconds": 0.05}, times=1_500)
    for _ in range(3):
        await facts.until("SELECT count(*) > 0 FROM dhara.tasks WHERE status = 'RUNNING'")
        before = await facts.one("SELECT count(*) FROM dhara.workers")
        at = await facts.now()
        worker.signal(signal.SIGKILL, *worker.runners)
        await facts.until("SELECT count(*) > $1 FROM dhara.workers", before)
        back = await facts.one(
            "SELECT EXTRACT(EPOCH FROM max(started_at) - $1::timestamptz)::float8 FROM dhara.workers", at
        )
        assert back < L, UNTOLD
        await pause(max(0, 2 - back))
    dead = await facts.rows("SELECT reason, crashes FROM dhara.tasks WHERE status = 'DEAD'")
    assert not dead, "no task was killed three times, and none is to blame"
    await facts.all_final()
    assert await facts.states() == {"COMPLETED": 1_500}
    extra = await facts.one("SELECT sum(attempts - 1) FROM dhara.tasks")
    assert extra == sum((await facts.events()).values())
    assert not await invariants.violations(await facts.connection(), quiet=True)


async def test_keeper_killed(fleet: Fleet, facts: Facts) -> None:
    """F3: another one beats on before anybody could miss it."""
    worker = fleet.start("--concurrency", "20")
    await facts.enqueue("sleep", {"seconds": 4}, times=20)
    await facts.running(20)
    (keeper,) = await eventually(lambda: worker.keepers)
    worker.signal(signal.SIGKILL, keeper)
    await eventually(lambda: worker.keepers not in ([], [keeper]))
    beats = await facts.one("SELECT beat_seq FROM dhara.workers")
    await facts.until("SELECT beat_seq >= $1 + 2 FROM dhara.workers", beats)
    await facts.all_final()
    assert await facts.states() == {"COMPLETED": 20}
    assert await facts.events() == {}
    assert await facts.most_attempts() == 1
    assert "Traceback" not in worker.log


async def test_everything_killed(fleet: Fleet, facts: Facts) -> None:
    """F2: nobody is left to say it; another worker takes over within L + R + P + 1 + C."""
    victim = fleet.start("--concurrency", "50")
    await facts.enqueue("sleep", {"seconds": 1}, times=50)
    await facts.until("SELECT count(*) = 50 FROM dhara.tasks WHERE attempts > 0")
    other = fleet.start("--concurrency", "50")
    await facts.until("SELECT count(*) = 2 FROM dhara.workers WHERE beat_seq > 0")
    await facts.all_final()
    ids = await facts.enqueue("sleep", {"seconds": 120}, times=25)
    await facts.until("SELECT count(*) = 25 FROM dhara.tasks WHERE status = 'RUNNING'")
    held = await facts.rows(
        "SELECT w.pid, count(t.id) FROM dhara.workers AS w LEFT JOIN dhara.tasks AS t"
        " ON t.locked_by = w.id AND t.status = 'RUNNING' WHERE w.pid = ANY ($1) GROUP BY w.pid",
        victim.runners,
    )
    lost = int(held[0][1])
    at = await facts.now()
    victim.signal(signal.SIGKILL, *victim.family)
    await victim.ended()
    if lost:
        await facts.until("SELECT count(*) = $1 FROM dhara.tasks WHERE attempts = 2", lost)
        assert await facts.one(SECONDS_UNTIL_RUN_AGAIN, at) <= L + R + P + 1 + C + 10
    else:
        await facts.until("SELECT count(*) = 1 FROM dhara.workers WHERE state = 'lost'")
    assert await facts.one("SELECT count(*) FROM dhara.task_logs WHERE event = 'REAPED'") == lost
    assert len(ids) == await facts.one("SELECT count(*) FROM dhara.tasks WHERE status = 'RUNNING'")
    other.signal(signal.SIGTERM)
    other.signal(signal.SIGTERM)


async def test_supervisor_killed(fleet: Fleet, facts: Facts) -> None:
    """Its runner dies with it, within a second; its keeper takes the tasks back at once, and goes."""
    victim = fleet.start("--concurrency", "10")
    await facts.until("SELECT count(*) = 1 FROM dhara.workers WHERE beat_seq > 0")
    await facts.enqueue("sleep", {"seconds": 60}, times=10)
    await facts.running(10)
    family = victim.family
    other = fleet.start("--concurrency", "10")
    await facts.until("SELECT count(*) = 2 FROM dhara.workers WHERE beat_seq > 0")
    at = await facts.now()
    victim.signal(signal.SIGKILL)
    await victim.ended()
    await facts.until("SELECT count(*) = 10 FROM dhara.tasks WHERE status = 'RUNNING' AND attempts = 2")
    assert await facts.one(SECONDS_UNTIL_RUN_AGAIN, at) < L, UNTOLD
    await eventually(lambda: not set(fleet.left()) & set(family[1:]), what="the runner and then the keeper to be gone")
    assert await facts.events() == {"REAPED": 10}
    other.signal(signal.SIGTERM)
    await facts.until("SELECT bool_or(state = 'draining') FROM dhara.workers")
    other.signal(signal.SIGTERM)


async def test_stopped_and_continued(fleet: Fleet, facts: Facts, tmp_path: Path) -> None:
    """F4: a stopped worker loses its leases. What it answers after it goes on is refused, and that is on record."""
    gate = tmp_path / "gate"
    frozen = fleet.start("--concurrency", "10", **SHORT)
    await facts.until("SELECT count(*) = 1 FROM dhara.workers WHERE beat_seq > 0")
    ids = await facts.enqueue("gate", {"path": str(gate)}, times=10)
    await facts.begun(10)
    frozen.signal(signal.SIGSTOP, *frozen.family)
    gate.touch()  # for the attempts to come, and for those that stand still, once they go on
    other = fleet.start("--concurrency", "10", **SHORT)
    await facts.all_final(timeout=SHORT_LEASE + R + C + 15)
    frozen.signal(signal.SIGCONT, *frozen.family)
    await facts.until("SELECT count(*) = 10 FROM dhara.task_logs WHERE event = 'SETTLE_REJECTED'")
    assert await facts.states() == {"COMPLETED": 10}
    assert await facts.events() == {"REAPED": 10, "SETTLE_REJECTED": 10}
    stale = "SELECT count(*) FROM dhara.task_logs WHERE event = 'SETTLE_REJECTED' AND attempt = 1 AND worker_id = $1"
    worker = await facts.one("SELECT worker_id FROM dhara.task_logs WHERE event = 'REAPED' LIMIT 1")
    assert await facts.one(stale, worker) == 10
    await facts.until("SELECT state = 'live' FROM dhara.workers WHERE id = $1", worker)
    await facts.enqueue("noop", times=20)
    await facts.all_final()
    assert await facts.one("SELECT count(*) FROM dhara.tasks WHERE id = ANY ($1) AND attempts <> 2", ids) == 0
    assert not await invariants.violations(await facts.connection(), quiet=True)
    assert await frozen.stop() == 0
    assert await other.stop() == 0


async def test_a_stopped_runner_is_not_kept_alive_by_its_keeper(fleet: Fleet, facts: Facts) -> None:
    worker = fleet.start("--concurrency", "2")
    await facts.until("SELECT count(*) = 1 FROM dhara.workers WHERE beat_seq > 0")
    worker.signal(signal.SIGSTOP, *worker.runners)
    beats = -1
    while beats != (beats := await facts.one("SELECT beat_seq FROM dhara.workers")):
        await pause(2.2)
    worker.signal(signal.SIGCONT, *worker.runners)
    await facts.until("SELECT beat_seq > $1 FROM dhara.workers", beats)


@pytest.mark.parametrize("how", ["exit", "segfault", "kill"])
async def test_poison_is_found_and_innocents_are_acquitted(fleet: Fleet, facts: Facts, how: str) -> None:
    """F8: a task that ends its process is DEAD after three crashes; those that ran beside it are completed."""
    worker = fleet.start("--concurrency", "30", base_backoff="100ms")
    innocents = await facts.enqueue("sleep", {"seconds": 1}, times=20)
    (poison,) = await facts.enqueue("crash", {"how": how})
    more = await facts.enqueue("noop", times=200)
    await facts.all_final()
    dead = await facts.rows(
        "SELECT id, reason, crashes, failures, attempts, last_error FROM dhara.tasks WHERE status = 'DEAD'"
    )
    assert [row[:5] for row in dead] == [(poison, "poison", 3, 3, 3)]
    what = {"exit": "exit code 9", "segfault": "signal SIGSEGV", "kill": "signal SIGKILL"}[how]
    assert what in dead[0][5]
    assert await facts.states() == {"COMPLETED": len(innocents) + len(more), "DEAD": 1}
    assert not await invariants.violations(await facts.connection(), quiet=True)
    assert await worker.stop() == 0


async def test_a_crash_is_no_end(fleet: Fleet, facts: Facts) -> None:
    """A task that crashed its process once runs again, and may well succeed."""
    worker = fleet.start("--concurrency", "5", base_backoff="100ms")
    (id,) = await facts.enqueue("crash.once")
    await facts.all_final()
    row = await facts.rows(
        "SELECT status, result #>> '{}', attempts, failures, crashes FROM dhara.tasks WHERE id = $1", id
    )
    assert row == [("COMPLETED", "survived", 2, 1, 1)]
    assert await worker.stop() == 0
