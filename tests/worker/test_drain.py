"""C16: claim nothing more, finish what runs, release the rest, leave nothing behind."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from dhara import Context, Registry
from dhara.domain.lifecycle import State
from dhara.domain.task import Claim
from dhara.worker.runner import Runner
from tests import invariants
from tests.factories import Connection
from tests.waiting import Signal, eventually
from tests.worker.kit import Desk, runner_of, running


async def test_what_runs_is_finished(dsn: str, desk: Desk, db: Connection) -> None:
    tasks = Registry()
    started = Signal("started")
    gate, threads_gate = asyncio.Event(), threading.Event()

    @tasks.task("async")
    async def async_() -> str:
        started.fire()
        await gate.wait()
        return "done"

    @tasks.task("sync")
    def sync() -> str:
        started.fire()
        threads_gate.wait(60)
        return "done"

    runner = runner_of(dsn, tasks)
    await runner.start()
    ids = [*await desk.enqueue("async", times=2), *await desk.enqueue("sync", times=2)]
    await started.wait(4)
    waiting = await desk.enqueue("async", times=3)
    begun = time.monotonic()
    draining = asyncio.create_task(runner.drain(60))
    await eventually(lambda: runner.draining)
    gate.set()
    threads_gate.set()
    await draining
    await runner.stop()
    assert time.monotonic() - begun < 30, "as soon as they have ended"
    assert {(t.status, t.attempts) for t in await desk.all_final(ids)} == {(State.COMPLETED, 1)}
    assert {((await desk.tasks.get(id)).status, (await desk.tasks.get(id)).attempts) for id in waiting} == {
        (State.PENDING, 0)
    }
    state = await db.fetchrow(
        "SELECT state, running, stopped_at IS NOT NULL FROM dhara.workers WHERE id = $1", runner.id
    )
    assert state is not None and tuple(state) == ("stopped", 0, True)


async def test_what_does_not_end_is_released_and_is_no_failure(dsn: str, desk: Desk) -> None:
    tasks = Registry()
    started, cleaned = Signal("started"), Signal("cleaned")
    let_go = threading.Event()

    @tasks.task("async")
    async def async_(ctx: Context) -> None:
        started.fire()
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.fire(ctx.canceled)

    @tasks.task("sync")
    def sync(ctx: Context) -> None:
        started.fire()
        ctx.wait_canceled(60)
        cleaned.fire(ctx.canceled)
        ctx.check_canceled()

    @tasks.task("raises")
    async def raises() -> None:
        """As libraries do that turn a cancellation into an error of their own."""
        started.fire()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise ConnectionError("interrupted") from None

    @tasks.task("stubborn")
    def stubborn() -> None:
        started.fire()
        let_go.wait(60)

    runner = runner_of(dsn, tasks)
    await runner.start()
    kinds = ("async", "sync", "raises", "stubborn")
    ids = [await desk.one(kind) for kind in kinds]
    await started.wait(4)
    begun = time.monotonic()
    await runner.drain(0.3)
    await runner.stop()
    took = time.monotonic() - begun
    let_go.set()
    assert took < 30
    assert cleaned.values == [True, True]
    for id, kind in zip(ids, kinds, strict=True):
        task = await desk.tasks.get(id)
        assert (task.status, task.failures, task.crashes, task.attempts) == (State.PENDING, 0, 0, 1), kind
        assert await desk.events(id) == ["ENQUEUED", "CLAIMED", "RELEASED"], kind
    assert not await invariants.violations(desk.tasks.db)


async def test_a_handler_that_swallows_its_cancellation_does_not_keep_the_worker(
    dsn: str, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has been waited for once, as it was interrupted; not again as the slots end."""
    monkeypatch.setattr("dhara.worker.slots._EXIT_PATIENCE", 60.0)
    tasks = Registry()
    started, finished = Signal("started"), asyncio.Event()

    @tasks.task("deaf")
    async def deaf() -> None:
        started.fire()
        while not finished.is_set():
            try:
                await asyncio.wait_for(finished.wait(), 60)
            except asyncio.CancelledError:
                pass

    runner = runner_of(dsn, tasks)
    await runner.start()
    id = await desk.one("deaf")
    await started.wait()
    begun = time.monotonic()
    await runner.drain(0.2)
    await runner.stop()
    assert time.monotonic() - begun < 30
    task = await desk.tasks.get(id)
    assert (task.status, task.failures) == (State.PENDING, 0)
    finished.set()
    await asyncio.gather(*(slot.task for slot in runner.slots.slots if slot.task), return_exceptions=True)


@asynccontextmanager
async def crowded(dsn: str, desk: Desk) -> AsyncIterator[tuple[Runner, list[UUID], asyncio.Event, Signal]]:
    """A runner that runs two of forty tasks until its gate opens, and has claimed the others ahead, as under load."""
    tasks = Registry()
    gate, started = asyncio.Event(), Signal("started")

    @tasks.task("gated")
    async def gated() -> None:
        started.fire()
        await gate.wait()

    runner = runner_of(dsn, tasks, concurrency=2)
    await runner.start()
    try:
        runner.slots._rate = 1e6  # as after thousands of tasks a second: claims may run ahead
        ids = await desk.enqueue("gated", times=40)
        await started.wait(2)
        await eventually(lambda: len(runner.slots.leases()) == 40)
        yield runner, ids, gate, started
    finally:
        await runner.stop()


async def claim_under_way(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """The runner has sent a claim, which reaches the database once the event that this answers is set."""
    line, asking = asyncio.Event(), Signal("asking")
    claim = runner.claimer._tasks.claim

    async def slow_line(*args: Any) -> list[Claim]:
        asking.fire()
        await line.wait()
        return await claim(*args)

    monkeypatch.setattr(runner.claimer._tasks, "claim", slow_line)
    runner.claimer.wake("")
    await asking.wait()
    return line


async def test_claims_that_have_not_started_are_given_back(dsn: str, desk: Desk) -> None:
    """Claims run ahead of the slots under load; whatever waits at a drain was nobody's fault and nobody's attempt lost."""
    async with crowded(dsn, desk) as (runner, ids, gate, started):
        draining = asyncio.create_task(runner.drain(5))
        await eventually(lambda: runner.draining)
        gate.set()
        await draining
    assert started.fired == 2, "nothing starts any more"
    found = [await desk.tasks.get(id) for id in ids]
    assert sorted(t.status for t in found) == [State.COMPLETED] * 2 + [State.PENDING] * 38
    assert {t.failures for t in found} == {0}
    released = [await desk.events(t.id) for t in found if t.status is State.PENDING]
    assert released == [["ENQUEUED", "CLAIMED", "RELEASED"]] * 38


@pytest.mark.parametrize("at_once", [False, True], ids=["drain", "release"])
async def test_what_is_given_back_is_not_claimed_again_by_the_same_worker(
    dsn: str, desk: Desk, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """A claim may be under way as the drain begins, and reach the database after what waited here has been given back."""
    monkeypatch.setattr("dhara.worker.runner._HEED", 30.0)
    async with crowded(dsn, desk) as (runner, ids, gate, started):
        line = await claim_under_way(runner, monkeypatch)
        ending = asyncio.create_task(runner.release() if at_once else runner.drain(5))
        await eventually(lambda: runner.draining)
        await runner.settler.drained()
        line.set()
        if not at_once:
            gate.set()
        await ending
    histories = [await desk.events(id) for id in ids]
    assert histories.count(["ENQUEUED", "CLAIMED", "RELEASED"]) == 38 + 2 * at_once
    assert started.fired == 2


async def test_the_grace_counts_while_a_claim_is_awaited(dsn: str, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    later = 0.0
    monkeypatch.setattr("dhara.worker.runner.time", SimpleNamespace(monotonic=lambda: time.monotonic() + later))
    async with crowded(dsn, desk) as (runner, ids, _, _):
        line = await claim_under_way(runner, monkeypatch)
        draining = asyncio.create_task(runner.drain(600))
        await eventually(lambda: runner.draining)
        later = 700.0
        line.set()
        await asyncio.wait_for(draining, 60)
    assert {(await desk.tasks.get(id)).status for id in ids} == {State.PENDING}


async def test_a_burst_is_claimed_ahead_at_once(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One look at the rate is enough to claim ahead for it; it is forgotten slowly."""
    now = time.monotonic()
    monkeypatch.setattr("dhara.worker.slots.time", SimpleNamespace(monotonic=lambda: now))
    runner = runner_of(dsn, Registry(), concurrency=2)
    slots = runner.slots
    slots.finished += 10_000
    now += 1
    slots.sweep()
    assert 2 + 400 < slots.room() <= 2 + 500, "10,000 a second, for 50 ms"
    now += 1
    slots.sweep()
    assert 2 + 250 < slots.room() <= 2 + 350


async def test_nothing_is_claimed_after_the_drain_began(dsn: str, desk: Desk, db: Connection) -> None:
    tasks = Registry()

    started, gate = Signal("started"), asyncio.Event()

    @tasks.task("short")
    async def short() -> None:
        await asyncio.sleep(0.01)

    @tasks.task("gated")
    async def gated() -> None:
        started.fire()
        await gate.wait()

    runner = runner_of(dsn, tasks, concurrency=8)
    await runner.start()
    await desk.one("gated")
    await started.wait()
    await desk.enqueue("short", times=5_000)
    await eventually(lambda: runner.slots.finished > 100)
    draining = asyncio.create_task(runner.drain(60))
    await eventually(lambda: runner.slots.busy == 1, what="all but the gated one to have ended")
    await eventually(lambda: not runner.claimer.in_flight)
    began = await db.fetchval("SELECT clock_timestamp()")
    desk.notifier.wake("default")
    await asyncio.sleep(1)  # two polls
    gate.set()
    await draining
    await runner.stop()
    late = await db.fetchval("SELECT count(*) FROM dhara.task_logs WHERE event = 'CLAIMED' AND at > $1", began)
    assert late == 0
    assert await db.fetchval("SELECT count(*) FROM dhara.tasks WHERE status = 'PENDING'") > 0
    assert await db.fetchval("SELECT sum(failures) FROM dhara.tasks") == 0
    assert not await invariants.violations(db)


async def test_figures_that_cannot_be_told_cost_no_sign_off(
    dsn: str, desk: Desk, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a flush that was cut off had taken is told by the next."""
    tasks = Registry()
    asking, line = Signal("observe"), asyncio.Event()

    @tasks.task("t")
    async def t() -> None: ...

    runner = runner_of(dsn, tasks, heartbeat_interval=600)
    await runner.start()
    await desk.final(await desk.one("t"))
    observe = runner.comparer._stats.observe

    async def slow_line(seen: Any) -> None:
        asking.fire(seen)
        await line.wait()
        await observe(seen)

    monkeypatch.setattr(runner.comparer._stats, "observe", slow_line)
    cut = asyncio.create_task(runner.comparer.flush())
    await asking.wait()
    cut.cancel()
    await asyncio.wait([cut])
    await runner.drain()
    await runner.stop()
    first, second = ([one for one in seen if one.name == "run"] for seen in asking.values)
    assert first == second != []
    assert await db.fetchval("SELECT state FROM dhara.workers WHERE id = $1", runner.id) == "stopped"


async def test_an_idle_worker_drains_at_once(dsn: str) -> None:
    tasks = Registry()

    @tasks.task("t")
    async def t() -> None: ...

    runner = runner_of(dsn, tasks)
    await runner.start()
    begun = time.monotonic()
    await runner.drain(60)
    await runner.stop()
    assert time.monotonic() - begun < 30


async def test_draining_and_stopping_twice_is_harmless(dsn: str, desk: Desk) -> None:
    tasks = Registry()

    @tasks.task("t")
    async def t() -> None: ...

    async with running(dsn, tasks) as runner:
        await desk.final(await desk.one("t"))
        await asyncio.gather(runner.drain(), runner.drain())
        await runner.stop()


async def test_release_while_draining(dsn: str, desk: Desk) -> None:
    """The second signal: give back now what would have had time."""
    tasks = Registry()
    started = Signal("started")

    @tasks.task("long")
    async def long() -> None:
        started.fire()
        await asyncio.sleep(60)

    runner = runner_of(dsn, tasks)
    await runner.start()
    ids = await desk.enqueue("long", times=3)
    await started.wait(3)
    draining = asyncio.create_task(runner.drain(60))
    await eventually(lambda: runner.draining)
    begun = time.monotonic()
    await runner.release()
    await draining
    await runner.stop()
    assert time.monotonic() - begun < 30
    for id in ids:
        assert await desk.events(id) == ["ENQUEUED", "CLAIMED", "RELEASED"]


async def test_a_worker_says_that_it_drains(dsn: str, desk: Desk, db: Connection) -> None:
    tasks = Registry()
    started, gate = Signal("started"), asyncio.Event()

    @tasks.task("gated")
    async def gated() -> None:
        started.fire()
        await gate.wait()

    runner = runner_of(dsn, tasks)
    await runner.start()
    await desk.one("gated")
    await started.wait()
    draining = asyncio.create_task(runner.drain())

    async def said() -> bool:
        return bool(await db.fetchval("SELECT state = 'draining' FROM dhara.workers WHERE id = $1", runner.id))

    await eventually(said)
    gate.set()
    await draining
    await runner.stop()


async def test_a_database_that_is_away_does_not_keep_the_worker_for_ever(desk: Desk, dsn: str) -> None:
    from tests.proxy import Proxy

    tasks = Registry()
    started, gate = Signal("started"), asyncio.Event()

    @tasks.task("gated")
    async def gated() -> None:
        started.fire()
        await gate.wait()

    async with Proxy(dsn) as proxy:
        runner = runner_of(proxy.dsn, tasks)
        await runner.start()
        id = await desk.one("gated")
        await started.wait()
        proxy.freeze()
        gate.set()
        begun = time.monotonic()
        await runner.drain()
        await runner.stop()
        assert time.monotonic() - begun < 30
    assert (await desk.tasks.get(id)).status is State.RUNNING, "left to the reaper"


@pytest.mark.parametrize("times", [1, 3])
async def test_a_runner_leaves_nothing_behind(dsn: str, desk: Desk, db: Connection, times: int) -> None:
    """No connection, no thread, no task of the event loop."""
    tasks = Registry()

    @tasks.task("sync")
    def sync() -> None: ...

    before = set(threading.enumerate())
    loops = asyncio.all_tasks()
    for _ in range(times):
        async with running(dsn, tasks):
            await desk.all_final(await desk.enqueue("sync", times=10))
    await eventually(lambda: not {t for t in set(threading.enumerate()) - before if t.name.startswith("dhara")})
    await eventually(lambda: asyncio.all_tasks() <= loops)
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name IN ('dhara runner', 'dhara listener')"

    async def gone() -> bool:
        return await db.fetchval(query) == 0

    await eventually(gone)
