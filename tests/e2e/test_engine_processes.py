"""The process executor, poison and recycling under `dhara worker`: children that die, runners that die, nobody left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from dhara.store.pool import Pool
from tests.e2e.engine import below, engine, marks
from tests.e2e.fleet import Crew, Desk, L, alive
from tests.invariants import i11, violations
from tests.waiting import eventually

pytestmark = pytest.mark.slow


async def _child_of(folder: Path, id: UUID, attempt: int = 1) -> int:
    await eventually(lambda: len(marks(folder, "start", id)) >= attempt, 30, f"attempt {attempt} of {id}")
    return marks(folder, "start", id)[attempt - 1].pid


async def _result(desk: Desk, id: UUID) -> Any:
    return json.loads((await desk.tasks.get(id)).result or "null")


async def _hurry_the_next(pool: Pool, id: UUID) -> None:
    """The attempt that runs keeps the payload that it was given; the one after it is told to end at once."""
    await pool.execute("UPDATE dhara.tasks SET payload = '{\"seconds\": 0}' WHERE id = $1", id)


async def test_nobody_is_left_and_nothing_is_lost(dsn: str, pool: Pool, tmp_path: Path) -> None:
    desk = Desk(pool)
    with engine(dsn, marks=tmp_path) as worker:
        # The nursery is killed: its runner is replaced in order, what ran there runs again, what ran elsewhere goes on.
        (id,) = await desk.enqueue("process", '{"seconds": 60}')
        (plain,) = await desk.enqueue("sleep", '{"seconds": 3}')
        child = await _child_of(tmp_path, id)
        await _child_of(tmp_path, plain)
        (runner,) = worker.runners()
        (nursery,) = [pid for pid in below(runner) if child in below(pid)]
        await _hurry_the_next(pool, id)
        worker.kill(nursery)
        await desk.until("status = 'COMPLETED'", 2, 30)
        task, other = await desk.tasks.get(id), await desk.tasks.get(plain)
        assert (task.attempts, task.failures, task.crashes) == (2, 1, 0)
        assert (other.attempts, other.failures) == (1, 0)
        assert not alive([child, nursery])
        await eventually(lambda: worker.runners() not in ([], [runner]), what="another runner")

        # The runner is killed: nursery and child die with it, the task comes back as a suspect.
        (id,) = await desk.enqueue("process", '{"seconds": 60}')
        child = await _child_of(tmp_path, id)
        (runner,) = worker.runners()
        (nursery,) = [pid for pid in below(runner) if child in below(pid)]
        died = await pool.fetchval("SELECT clock_timestamp()")
        dead = await pool.fetchval("SELECT id FROM dhara.workers WHERE pid = $1", runner)
        await _hurry_the_next(pool, id)
        worker.kill(runner)
        await eventually(lambda: not alive([runner, nursery, child]), what="nursery and child to die with their runner")
        await desk.until("status = 'COMPLETED'", 3, 30)
        task = await desk.tasks.get(id)
        assert (task.attempts, task.crashes) == (2, 1)
        # 2 s and the spread of a second on an idle machine; this one may be busy. Nobody told: L + C at least.
        assert await i11(pool, {dead: died}, 3.0 + 5.0) == []

        # A cancellation kills within a second or so, a time-out too.
        (id,) = await desk.enqueue("process.family")
        (hang,) = await desk.enqueue("process.hang", max_retries=0)
        child, hung = await _child_of(tmp_path, id), await _child_of(tmp_path, hang)
        asked = time.monotonic()
        await desk.tasks.request_cancel(id)
        await desk.until("status = 'CANCELED'", 1, 30)
        assert time.monotonic() - asked < 15  # without the hint: one comparison, then the kill; its own end is far
        await desk.until("status = 'DEAD' AND last_error = 'timed out after 2 s'", 1, 30)
        assert not alive([child, hung])

        # So many at once that the nursery is behind with its forks.
        ids = await desk.enqueue("process", '{"seconds": 0.2}', n=100)
        await desk.until_final(60)
        pids = {(await _result(desk, id))["pid"] for id in ids}
        assert len(pids) == 100
        everybody = worker.everybody()
        assert worker.stop() == 0
    assert not alive([*everybody, *pids])
    await desk.starts_are_explained()


async def _drained(desk: Desk, n: int, *, poison: bool) -> float:
    """Seconds until `n` innocents are done."""
    start = time.monotonic()
    if poison:
        await desk.enqueue("segfault", max_retries=20)
    await desk.enqueue("innocent", n=n)
    await desk.until("type = 'innocent' AND status <> 'COMPLETED'", 0, 60)
    return time.monotonic() - start


async def test_poison(dsn: str, pool: Pool) -> None:
    """One task that kills its process among a thousand innocents: DEAD after three crashes, and nobody with it."""
    desk = Desk(pool)
    with engine(dsn, slots=10) as worker:
        await _drained(desk, 50, poison=False)
        calm = await _drained(desk, 1_000, poison=False)
        troubled = await _drained(desk, 1_000, poison=True)
        await desk.until("type = 'segfault' AND status = 'DEAD'", 1, 60)
        said = worker.said
    row = await pool.fetchrow("SELECT * FROM dhara.tasks WHERE type = 'segfault'")
    assert row is not None
    assert (row["reason"], row["attempts"], row["crashes"]) == ("poison", 3, 3)
    assert "SIGSEGV" in row["last_error"]
    attempts = await desk.tasks.attempts(row["id"])
    assert [attempt.outcome for attempt in attempts] == ["REAPED", "RETRIED", "DEAD"]
    lines = [line["message"] for line in json.loads(attempts[-1].logs or "[]")]
    assert "about to fall, attempt 3" in lines
    assert await desk.count("type = 'innocent' AND status <> 'COMPLETED'") == 0
    # It took one runner with it; then it ran alone.
    assert said.count("signal SIGSEGV") >= 1
    assert len(await pool.fetch("SELECT FROM dhara.workers WHERE state = 'lost'")) == 1
    blamed = await desk.count("type = 'innocent' AND crashes > 0")
    assert blamed <= 10
    print(f"1,000 innocents: {calm:.1f} s alone, {troubled:.1f} s beside poison ({calm / troubled:.0%})")
    # The new runner's start is a second of an idle machine. Innocents that waited for a lease would be late by L.
    assert troubled < 2 * calm + L
    assert await violations(pool, quiet=True) == {}


async def test_recycling_costs_no_task(dsn: str, pool: Pool, tmp_path: Path) -> None:
    desk = Desk(pool)
    with engine(dsn, slots=10, processes=2, marks=tmp_path, DHARA_RECYCLE_TASKS="120") as worker:
        (long,) = await desk.enqueue("sleep", '{"seconds": 7}')  # longer than the grace of a drain
        await _child_of(tmp_path, long)
        await desk.enqueue("innocent", n=600)
        await desk.until("status = 'COMPLETED'", 601, 60)
        said = worker.said
        assert worker.stop() == 0
    assert said.count("it has run") >= 3
    # Replaced without a failed or lost task; not even one that was started twice.
    assert await desk.count("failures > 0 OR crashes > 0") == 0
    assert (await desk.tasks.get(long)).attempts == 1
    assert set(await desk.events()) <= {"CLAIMED", "COMPLETED", "RELEASED"}
    workers = await pool.fetch("SELECT state, count(*) FROM dhara.workers GROUP BY state")
    assert {row["state"] for row in workers} == {"stopped"}
    await desk.starts_are_explained()


async def test_sigterm_while_a_worn_runner_waits(dsn: str, pool: Pool, tmp_path: Path) -> None:
    """A runner that waits for a long task before it is replaced still heeds the grace of a drain."""
    desk = Desk(pool)
    with engine(dsn, marks=tmp_path, DHARA_RECYCLE_TASKS="5", DHARA_SHUTDOWN_TIMEOUT="1s") as worker:
        (long,) = await desk.enqueue("sleep", '{"seconds": 60}')
        await _child_of(tmp_path, long)
        await desk.enqueue("noop", n=10)
        await eventually(lambda: "will be replaced" in worker.said, what="the runner to be worn out")
        start = time.monotonic()
        worker.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(worker.process.wait, 30) == 0
        assert time.monotonic() - start < 30
    task = await desk.tasks.get(long)
    assert (task.status, task.failures) == ("PENDING", 0)


async def test_the_watchdog_names_the_task(dsn: str, pool: Pool) -> None:
    """And a runner that has grown too large is replaced in order."""
    desk = Desk(pool)
    with engine(dsn, DHARA_RECYCLE_MEMORY="250") as worker:
        await desk.enqueue("sleep", '{"seconds": 4}', n=5)
        (id,) = await desk.enqueue("block.loop", '{"seconds": 3}')
        await desk.until_final(60)
        before = worker.runners()
        await desk.enqueue("grow", '{"mebibytes": 300}')
        await eventually(lambda: set(worker.runners()) - set(before), what="a runner that has grown to be replaced")
        await desk.enqueue("innocent", n=20)
        await desk.until_final(60)
        said = worker.said
    assert f"task {id} (block.loop) holds it" in said
    assert "will be replaced: it uses" in said
    assert await desk.count("failures > 0") == 0


async def test_expired_ones_are_buried_by_maintenance(dsn: str, pool: Pool) -> None:
    desk = Desk(pool)
    await desk.enqueue("noop", delay=60.0, n=3)
    await desk.enqueue("unknown.type", n=3)
    await pool.execute("UPDATE dhara.tasks SET expires_at = clock_timestamp() + interval '1 second'")
    with engine(dsn):
        await desk.until("status = 'DEAD' AND reason = 'expired' AND attempts = 0", 6, 60)


LIFE = """
from dhara import Registry

tasks = Registry()


@tasks.lifespan
async def life():
    raise OSError("no cache server")
    yield


@tasks.task("t")
async def handler() -> None: ...
"""


async def test_a_lifespan_that_fails_is_one_clear_line(dsn: str, tmp_path: Path) -> None:
    (tmp_path / "broken_life.py").write_text(LIFE)
    worker = Crew(dsn, 5, 1, "broken_life", PYTHONPATH=f"{tmp_path}:{_path()}")
    try:
        assert await asyncio.to_thread(worker.process.wait, 60) == 78
        words = [line for line in worker.said.splitlines() if "cache server" in line]
        assert len(words) == 1
        assert "lifespan failed as it began: OSError: no cache server" in words[0]
        assert "Traceback" not in worker.said
    finally:
        worker.end()


def _path() -> str:
    return os.environ.get("PYTHONPATH", "")
