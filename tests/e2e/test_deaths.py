"""What happens to my task when something dies? Real processes, real signals; see `trust.md` F1 to F13."""

from __future__ import annotations

import signal
import time

import pytest

from dhara.store.pool import Pool
from tests.e2e.fleet import C, Desk, G, K, L, P, R, alive, crew
from tests.waiting import eventually

pytestmark = pytest.mark.slow


@pytest.fixture
def desk(pool: Pool) -> Desk:
    return Desk(pool)


async def test_runner_killed(dsn: str, desk: Desk) -> None:
    with crew(dsn) as worker:
        await desk.enqueue("nap", '{"s": 1}', 50)
        await desk.until("status = 'RUNNING'", 50, 20)
        worker.kill(*worker.runners())
        start = time.monotonic()
        await desk.until("attempts = 2 AND status = 'RUNNING'", 50, 10)
        took = time.monotonic() - start
        await desk.until("status = 'COMPLETED'", 50, 20)
    events = await desk.events()
    assert events["REAPED"] == 50
    await desk.starts_are_explained()
    assert took < 4, "at most 2 s on an idle machine; this one may be busy"


async def test_keeper_killed(dsn: str, desk: Desk) -> None:
    with crew(dsn) as worker:
        await desk.enqueue("nap", f'{{"s": {L + C + 1}}}', 20)
        await desk.until("status = 'RUNNING'", 20, 20)
        old = worker.keeper()
        worker.kill(old)
        await eventually(lambda: worker.keeper() not in (0, old), 5, "another keeper")
        await desk.until("status = 'COMPLETED'", 20, 30)
    assert await desk.events() == {"CLAIMED": 20, "COMPLETED": 20}


async def test_everything_killed(dsn: str, desk: Desk) -> None:
    with crew(dsn) as first:
        await desk.enqueue("nap", '{"s": 2}', 20)
        await desk.until("status = 'RUNNING'", 20, 20)
        everybody = first.everybody()
        first.kill(*everybody)
        await eventually(lambda: not alive(everybody), 5, "all processes to be gone")
        start = time.monotonic()
        with crew(dsn):
            await desk.until("attempts = 2", 20, L + R + P + 1 + C + 5)
            took = time.monotonic() - start
            await desk.until("status = 'COMPLETED'", 20, 20)
    await desk.starts_are_explained()
    # A claim that was as fresh as its worker's last beat; the only reaper is new, so it watches for C first.
    assert took <= L + R + P + 1 + C + 1


async def test_supervisor_killed_takes_all_with_it(dsn: str, desk: Desk) -> None:
    with crew(dsn, slots=5) as worker:
        await desk.enqueue("nap", '{"s": 60}', 5)
        await desk.until("status = 'RUNNING'", 5, 20)
        everybody = worker.everybody()
        worker.kill(worker.process.pid)
        # The keeper sees the end of its input, takes back what was running, and leaves.
        await desk.until("status = 'PENDING'", 5, 10)
        await eventually(lambda: not alive(everybody), 15, "no process to be left")


async def test_stopped_and_continued(dsn: str, desk: Desk) -> None:
    with crew(dsn, slots=10) as stopped:
        await desk.enqueue("nap", '{"s": 1}', 10)
        await desk.until("status = 'RUNNING'", 10, 20)
        everybody = stopped.everybody()
        stopped.kill(*everybody, number=signal.SIGSTOP)
        with crew(dsn, slots=10):
            await desk.until("status = 'COMPLETED'", 10, 2 * L + C + 10)
            stopped.kill(*everybody, number=signal.SIGCONT)

            async def refused() -> bool:
                return (await desk.events()).get("SETTLE_REJECTED") == 10

            await eventually(refused, 10, "10 stale settlements to be refused")
    await desk.starts_are_explained()


async def test_drain_under_load(dsn: str, desk: Desk) -> None:
    with crew(dsn, slots=20) as worker:
        await desk.enqueue("nap", '{"s": 0.3}', 400)
        await eventually(lambda: _reached(desk, 60), 30, "60 tasks to be COMPLETED")
        told = await desk.db.fetchval("SELECT clock_timestamp()")
        assert worker.stop() == 0
    late = await desk.db.fetchval(
        "SELECT count(*) FROM dhara.task_logs WHERE event = 'CLAIMED' AND at > $1::timestamptz + interval '500 ms'",
        told,
    )
    assert late == 0, "100 ms on an idle machine"
    assert await desk.count("failures > 0 OR status = 'RUNNING'") == 0


async def _reached(desk: Desk, n: int) -> bool:
    return await desk.count("status = 'COMPLETED'") >= n


async def test_stubborn_handler_is_released_at_the_end_of_the_grace(dsn: str, desk: Desk) -> None:
    with crew(dsn, slots=2) as worker:
        await desk.enqueue("stubborn", '{"s": 60}')
        await desk.until("status = 'RUNNING'", 1, 20)
        start = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - start <= G + 4
    assert await desk.count("status = 'PENDING' AND failures = 0") == 1
    assert (await desk.events())["RELEASED"] == 1


async def test_second_signal_releases_now(dsn: str, desk: Desk) -> None:
    with crew(dsn, slots=2) as worker:
        await desk.enqueue("nap", '{"s": 60}')
        await desk.until("status = 'RUNNING'", 1, 20)
        worker.process.send_signal(signal.SIGTERM)
        await eventually(lambda: "drains" in worker.said, 5, "the worker to drain")
        start = time.monotonic()
        assert worker.stop() == 128 + signal.SIGTERM
        assert time.monotonic() - start <= 4
        assert "Traceback" not in worker.said
    assert await desk.count("status = 'PENDING' AND failures = 0") == 1


async def test_blocked_loop_keeps_its_lease(dsn: str, desk: Desk) -> None:
    with crew(dsn, slots=4) as worker:
        (culprit,) = await desk.enqueue("block", f'{{"s": {L + C + 2}}}')
        await desk.until("status = 'COMPLETED'", 1, 60)
        assert f"task {culprit} (block) holds it" in worker.said
    assert await desk.events() == {"CLAIMED": 1, "COMPLETED": 1}


async def test_held_gil_keeps_its_lease(dsn: str, desk: Desk) -> None:
    with crew(dsn, slots=4) as worker:
        # Each further letter doubles the time; one of these is longer than L + C, and then the process is ended.
        (culprit,) = await desk.enqueue("regex", '{"n": 40}')
        await desk.until("status = 'RUNNING'", 1, 20)
        beats = await desk.db.fetchval("SELECT beat_seq FROM dhara.workers")
        await eventually(lambda: _beats(desk, beats + int(L + C + 2)), L + C + 20, "beats beyond the lease")
        assert await desk.events() == {"CLAIMED": 1}
        assert await desk.count("status = 'RUNNING' AND attempts = 1") == 1
        assert str(culprit) in worker.said, "the keeper warns of it"
        await desk.tasks.request_cancel(culprit)
        worker.kill(*worker.runners())
        await desk.until("status = 'CANCELED'", 1, 10)


async def _beats(desk: Desk, n: int) -> bool:
    return bool(await desk.db.fetchval("SELECT max(beat_seq) >= $1 FROM dhara.workers", n))


async def test_hang_is_killed_and_the_neighbours_are_not_to_blame(dsn: str, desk: Desk) -> None:
    with crew(dsn, slots=10):
        await desk.enqueue("nap", '{"s": 2.5}', 8)
        await desk.until("status = 'RUNNING'", 8, 20)
        await desk.enqueue("hang", max_retries=1)
        start = time.monotonic()
        await desk.until("type = 'hang' AND failures >= 1", 1, 1 + K + 6)
        took = time.monotonic() - start
        await desk.until_final(40)
    assert took <= 1 + K + 4
    assert await desk.count("type = 'hang' AND status = 'DEAD' AND failures = 2") == 1
    assert await desk.count("type = 'nap' AND status = 'COMPLETED' AND failures = 0 AND crashes = 0") == 8
    await desk.starts_are_explained()


@pytest.mark.parametrize("type", ["segfault", "leave"])
async def test_poison(dsn: str, desk: Desk, type: str) -> None:
    with crew(dsn, slots=20):
        await desk.enqueue("nap", '{"s": 0.2}', 100)
        await desk.enqueue(type)
        await desk.until_final(40)
    row = await desk.db.fetchrow("SELECT status, reason, crashes, last_error FROM dhara.tasks WHERE type = $1", type)
    assert row is not None
    assert tuple(row)[:3] == ("DEAD", "poison", 3)
    assert ("SIGSEGV" if type == "segfault" else "exit code 9") in row[3]
    assert await desk.count("type = 'nap' AND status = 'COMPLETED'") == 100
    await desk.starts_are_explained()


async def test_two_processes_share_the_work(dsn: str, desk: Desk) -> None:
    with crew(dsn, slots=5, processes=2) as worker:
        await desk.enqueue("nap", '{"s": 0.5}', 10)
        await desk.until("status = 'RUNNING'", 10, 20)
        assert await desk.db.fetchval("SELECT count(DISTINCT locked_by) FROM dhara.tasks") == 2
        assert len(worker.runners()) == 2
        await desk.until("status = 'COMPLETED'", 10, 20)
        everybody = worker.everybody()
        assert worker.stop() == 0
        assert alive(everybody) == []


async def test_eight_workers_keep_the_invariants(dsn: str, desk: Desk) -> None:
    with crew(dsn, slots=10, processes=8):
        for _ in range(10):
            await desk.enqueue("nothing", n=1_000)
        await desk.until("status = 'COMPLETED'", 10_000, 90)
    assert await desk.events() == {"CLAIMED": 10_000, "COMPLETED": 10_000}
    await desk.starts_are_explained()
