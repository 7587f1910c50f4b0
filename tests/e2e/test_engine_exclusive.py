"""C19: an exclusive attempt never overlaps another one, whatever is cut or stopped; default ones run on and are fenced."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from uuid import UUID

import pytest

from dhara.store.pool import Pool
from tests.e2e.engine import Mark, engine, marks
from tests.e2e.fleet import C, Crew, Desk, L, alive, violations
from tests.proxy import Proxy
from tests.waiting import eventually

pytestmark = pytest.mark.slow

LONG = '{"seconds": 25}'


async def started(folder: Path, id: UUID, attempts: int = 1, timeout: float = 30) -> Mark:
    """The mark that this many attempts leave as they begin; the last one of it."""
    await eventually(lambda: len(marks(folder, "start", id)) >= attempts, timeout, f"attempt {attempts} of {id}")
    return marks(folder, "start", id)[attempts - 1]


async def test_partitioned(dsn: str, pool: Pool, tmp_path: Path) -> None:
    """A worker that reaches the database no longer, and does not know: its link is half-open."""
    desk = Desk(pool)
    async with Proxy(dsn) as proxy:
        with engine(proxy.dsn, marks=tmp_path) as one:
            (heeds,) = await desk.enqueue("exclusive.async", LONG)
            (deaf,) = await desk.enqueue("exclusive.deaf", LONG)
            (plain,) = await desk.enqueue("thread.sleep", f'{{"seconds": {L + C}}}')
            for id in (heeds, deaf, plain):
                await started(tmp_path, id)
            runners = one.runners()
            proxy.freeze()
            frozen = time.monotonic()
            with engine(dsn, marks=tmp_path) as other:
                # Told to stop in time, and the one that hears nothing killed in time: before anybody else may begin.
                stopped = (await _end(tmp_path, heeds)).at - frozen
                await eventually(lambda: not alive(runners), what="the runner to be killed")
                killed = _last_life(tmp_path, deaf, 1) - frozen
                # 0.8 * L after the last acknowledged beat, which has gone before the cut by its period, or more.
                assert L / 4 < stopped < killed < L + C
                # The other worker takes over.
                second = await started(tmp_path, deaf, 2)
                assert second.pid not in runners
                again = await started(tmp_path, heeds, 2)
                assert again.at - frozen > stopped
                _no_overlap(tmp_path, deaf)
                proxy.thaw()
                await eventually(lambda: one.runners(), what="the runner to be back")
                await desk.until(f"id = '{plain}' AND status = 'COMPLETED'", 1, 60)
                other.kill(*other.everybody())
                one.kill(*one.everybody())
    # The default one was not told to stop by anybody but the death of its process: an attempt that came to its end took its time.
    began = {mark.attempt: mark.at for mark in marks(tmp_path, "start", plain)}
    ends = marks(tmp_path, "end", plain)
    assert ends
    assert all(end.at - began[end.attempt] >= L + C - 0.5 for end in ends)


async def _end(folder: Path, id: UUID) -> Mark:
    await eventually(lambda: marks(folder, "end", id), what=f"the attempt of {id} to stop")
    return marks(folder, "end", id)[0]


def _last_life(folder: Path, id: UUID, attempt: int) -> float:
    """When that attempt has last said that it is alive."""
    return max(mark.at for mark in marks(folder, "alive", id) if mark.attempt == attempt)


def _no_overlap(folder: Path, id: UUID) -> None:
    """The last sign of life of each attempt comes before the start of the next."""
    lives = marks(folder, "alive", id)
    for start in marks(folder, "start", id)[1:]:
        before = [mark.at for mark in lives if mark.attempt < start.attempt]
        assert max(before) < start.at


async def test_default_attempts_run_on_and_are_fenced(dsn: str, pool: Pool, tmp_path: Path) -> None:
    """The same partition without anything exclusive: the handler is left alone, its late outcome is refused."""
    desk = Desk(pool)
    async with Proxy(dsn) as proxy:
        with engine(proxy.dsn, marks=tmp_path) as one:
            (id,) = await desk.enqueue("sleep.first", f'{{"seconds": {2 * L + 1}}}')
            first = await started(tmp_path, id)
            runners = one.runners()
            proxy.freeze()
            with engine(dsn, marks=tmp_path):
                second = await started(tmp_path, id, 2)
                await desk.until("status = 'COMPLETED'", 1, 30)
                await eventually(lambda: len(marks(tmp_path, "end", id)) == 2, what="the first attempt to end")
                # It ended in its own time, in its own process, long after the other.
                (end,) = [mark for mark in marks(tmp_path, "end", id) if mark.attempt == 1]
                assert end.pid == first.pid
                assert end.at - first.at >= 2 * L + 0.9
                assert one.runners() == runners
                proxy.thaw()

                async def refused() -> bool:
                    return (await desk.events()).get("SETTLE_REJECTED", 0) == 1

                await eventually(refused, what="the stale outcome to be refused")
        attempts = await desk.tasks.attempts(id)
    assert [(a.attempt, a.outcome) for a in attempts] == [(1, "REAPED"), (2, "COMPLETED")]
    assert second.pid != first.pid
    assert await violations(pool) == {}


async def test_stopped(dsn: str, pool: Pool, tmp_path: Path) -> None:
    """SIGSTOP of everything, long enough to lose the lease; then SIGCONT. And of the keeper alone."""
    desk = Desk(pool)
    with engine(dsn, marks=tmp_path) as one:
        (id,) = await desk.enqueue("exclusive.deaf", LONG)
        await started(tmp_path, id)
        runners, everybody = one.runners(), one.everybody()
        one.kill(*everybody, number=signal.SIGSTOP)
        with engine(dsn, marks=tmp_path) as other:
            second = await started(tmp_path, id, 2)
            woken = time.monotonic()
            one.kill(*everybody, number=signal.SIGCONT)
            # Nothing can act while it is stopped; once it goes on it is killed at the first look at the clock.
            await eventually(lambda: not alive(runners), what="the runner to be killed")
            late = [mark.at for mark in marks(tmp_path, "alive", id) if mark.attempt == 1 and mark.at > second.at]
            assert all(at - woken < 8 for at in late)
            one.end()
            await _keeper_stopped(other, desk, tmp_path)


async def _keeper_stopped(worker: Crew, desk: Desk, folder: Path) -> None:
    """The keeper neither beats nor kills: the runner itself must end before its lease does."""
    (id,) = await desk.enqueue("exclusive.deaf", LONG)
    first = await started(folder, id)
    runners = worker.runners()
    keeper = worker.keeper()
    worker.kill(keeper, number=signal.SIGSTOP)
    stopped = time.monotonic()
    await eventually(lambda: not alive(runners), what="the runner to end itself")
    assert _last_life(folder, id, first.attempt) - stopped < L + C
    worker.kill(keeper, number=signal.SIGCONT)
    await asyncio.sleep(0)
