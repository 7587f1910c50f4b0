"""Processes that die or are stopped: nothing is lost, and every extra start is explained by the history."""

from __future__ import annotations

import signal

import pytest

from tests import invariants
from tests.e2e.kit import C, Facts, Fleet, L, P, R, pause
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("e2e")]

SECONDS_UNTIL_RUN_AGAIN = """
    SELECT max(EXTRACT(EPOCH FROM at - $1::timestamptz))::float8 FROM dhara.task_logs WHERE event = 'CLAIMED' AND attempt = 2"""
EXTRA_STARTS = "SELECT count(*) FROM dhara.task_logs WHERE event = 'CLAIMED' AND attempt > 1"


async def test_runner_killed(fleet: Fleet, facts: Facts) -> None:
    """F1: 50 running tasks run again within two seconds; each is reaped once and completed once."""
    worker = fleet.start("--concurrency", "50")
    await facts.enqueue("sleep", {"seconds": 3}, times=50)
    await facts.running(50)
    (runner,) = worker.runners
    at = await facts.now()
    worker.signal(signal.SIGKILL, runner)
    await facts.until("SELECT count(*) = 50 FROM dhara.tasks WHERE status = 'RUNNING' AND attempts = 2")
    assert await facts.one(SECONDS_UNTIL_RUN_AGAIN, at) <= 2
    await facts.all_final()
    assert await facts.states() == {"COMPLETED": 50}
    assert await facts.events() == {"REAPED": 50}
    assert await facts.one(EXTRA_STARTS) == 50
    reasons = await facts.rows("SELECT DISTINCT reason FROM dhara.task_logs WHERE event = 'REAPED'")
    assert reasons == [("worker process ended: signal SIGKILL",)]
    assert await facts.rows("SELECT state, count(*) FROM dhara.workers GROUP BY state ORDER BY 1") == [("live", 1), ("lost", 1)]
    assert not await invariants.violations(await facts.connection(), quiet=True)
    assert await worker.stop() == 0


async def test_runner_killed_again_and_again(fleet: Fleet, facts: Facts) -> None:
    """Every two seconds: it is back each time, however often it has been killed before."""
    worker = fleet.start("--concurrency", "10")
    await facts.enqueue("sleep", {"seconds": 0.05}, times=3_000)
    for _ in range(4):
        await facts.until("SELECT count(*) > 0 FROM dhara.tasks WHERE status = 'RUNNING'")
        before = await facts.one("SELECT count(*) FROM dhara.workers")
        at = await facts.now()
        worker.signal(signal.SIGKILL, *worker.runners)
        await facts.until("SELECT count(*) > $1 FROM dhara.workers", before)
        back = await facts.one("SELECT EXTRACT(EPOCH FROM max(started_at) - $1::timestamptz)::float8 FROM dhara.workers", at)
        assert back <= 2
        await pause(2 - back)
    dead = await facts.rows("SELECT reason, crashes FROM dhara.tasks WHERE status = 'DEAD'")
    assert not dead, "no task was killed three times, and none is to blame"
    await facts.all_final()
    assert await facts.states() == {"COMPLETED": 3_000}
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
    """F2: nobody is left to say it; another worker takes over within L + R + P + 1."""
    victim = fleet.start("--concurrency", "50")
    await facts.enqueue("sleep", {"seconds": 1}, times=50)
    await facts.running(50)
    other = fleet.start("--concurrency", "50")
    await facts.until("SELECT count(*) = 2 FROM dhara.workers WHERE beat_seq > 0")
    await facts.all_final()
    ids = await facts.enqueue("sleep", {"seconds": 30}, times=25)
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
        assert await facts.one(SECONDS_UNTIL_RUN_AGAIN, at) <= L + R + P + 1
    else:
        await facts.until("SELECT count(*) = 1 FROM dhara.workers WHERE state = 'lost'")
    assert await facts.one("SELECT count(*) FROM dhara.task_logs WHERE event = 'REAPED'") == lost
    assert len(ids) == await facts.one("SELECT count(*) FROM dhara.tasks WHERE status = 'RUNNING'")
    other.signal(signal.SIGTERM)
    other.signal(signal.SIGTERM)
