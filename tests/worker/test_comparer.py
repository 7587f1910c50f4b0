"""What the database says a worker runs, against what it really runs: ghosts, lost leases, cancellations."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from uuid import UUID

import pytest

from dhara import Context, Registry, Retry
from dhara.domain.lifecycle import Event, State
from dhara.store.tasks import Held, Tasks
from dhara.worker import comparer
from tests import invariants
from tests.factories import Connection, claim, history, make_task, settlement
from tests.proxy import Proxy
from tests.waiting import Signal, eventually
from tests.worker.kit import Desk, running


def _registry() -> tuple[Registry, Signal, Signal]:
    """A handler that waits to be told, and one that watches its lease."""
    tasks = Registry()
    started, told = Signal("started"), Signal("told")

    @tasks.task("wait")
    async def wait() -> str:
        started.fire()
        while not told.fired:
            await asyncio.sleep(0.01)
        return "done"

    @tasks.task("watch")
    async def watch(ctx: Context) -> str:
        started.fire()
        while not ctx.lease_lost:
            await asyncio.sleep(0.01)
        told.fire(ctx.canceled)
        return "late"

    @tasks.task("quick")
    async def quick() -> None: ...

    return tasks, started, told


async def test_a_claim_whose_answer_was_lost_is_released(dsn: str, desk: Desk) -> None:
    """The commit went through, the connection died: RUNNING rows that nobody runs, given back within H + 3 s."""
    tasks, _, _ = _registry()
    async with Proxy(dsn) as proxy, running(proxy.dsn, tasks, heartbeat_interval=0.5):
        proxy.lose_reply("tasks/claim")
        ids = await desk.enqueue("quick", times=3)
        start = time.monotonic()
        done = await desk.all_final(ids)
        assert proxy.cuts == 1
        assert time.monotonic() - start < 0.5 + 3 + 10
        events = [await desk.events(id) for id in ids]
    assert {(t.status, t.attempts, t.failures) for t in done} == {(State.COMPLETED, 2, 0)}
    assert all(e == ["ENQUEUED", "CLAIMED", "RELEASED", "CLAIMED", "COMPLETED"] for e in events)
    assert not await invariants.violations(desk.tasks.db, quiet=True)


async def test_a_claim_that_never_arrived_is_simply_repeated(dsn: str, desk: Desk) -> None:
    tasks, _, _ = _registry()
    async with Proxy(dsn) as proxy, running(proxy.dsn, tasks):
        proxy.lose_request("tasks/claim")
        done = await desk.all_final(await desk.enqueue("quick", times=5))
        assert proxy.cuts == 1
    assert {(t.status, t.attempts) for t in done} == {(State.COMPLETED, 1)}


async def test_what_really_runs_is_no_ghost(dsn: str, desk: Desk) -> None:
    tasks, started, told = _registry()
    async with running(dsn, tasks, concurrency=2, heartbeat_interval=0.1):
        id = await desk.one("wait")
        await started.wait()
        await asyncio.sleep(2.5)  # beyond the age at which a claim nobody knows is a ghost
        assert (await desk.tasks.get(id)).status is State.RUNNING
        told.fire()
        task = await desk.final(id)
    assert (task.attempts, task.result) == (1, '"done"')


async def test_rows_of_other_workers_are_left_alone(dsn: str, desk: Desk, db: Connection) -> None:
    tasks, _, _ = _registry()
    other = await make_task(db, "RUNNING", type="quick", age=60)
    async with running(dsn, tasks, heartbeat_interval=0.1):
        await desk.final(await desk.one("quick"))
        await asyncio.sleep(0.5)
    assert (await desk.tasks.get(other.id)).lease == other.lease


async def test_a_handler_is_told_of_its_lost_lease(dsn: str, desk: Desk, db: Connection) -> None:
    """Someone else has the task now. The handler may go on (C19), its answer is discarded, and that is on record."""
    tasks, started, told = _registry()
    async with running(dsn, tasks, heartbeat_interval=0.2) as runner:
        id = await desk.one("watch")
        await started.wait()
        first = await desk.tasks.get(id)
        async with db.transaction():  # else this worker might claim it again in between
            await Tasks(db).reap(runner.id, beat_seq=None, claimed_before=0.0, reason="taken for lost")
            await db.execute("UPDATE dhara.tasks SET run_at = run_at + interval '1 hour' WHERE id = $1", id)
        assert await told.wait() == [False], "told that the lease is lost, not that it was canceled"

        async def refused() -> bool:
            return [entry["event"] for entry in await history(db, id)] == ["REAPED", "SETTLE_REJECTED"]

        await eventually(refused)
        assert runner.slots.observations.rejected == 1
    after = await desk.tasks.get(id)
    assert (after.status, after.attempts, after.failures, after.crashes) == (State.PENDING, 1, 1, 1)
    rejected = (await history(db, id))[1]
    assert (rejected["lease"], rejected["attempt"], rejected["worker_id"]) == (first.lease, 1, runner.id)


async def test_a_lost_lease_that_runs_again_here(dsn: str, desk: Desk, db: Connection) -> None:
    """Both attempts in one process: only the second one's answer counts."""
    tasks = Registry()
    started = Signal("started")
    gates = {1: asyncio.Event(), 2: asyncio.Event()}

    @tasks.task("gated")
    async def gated(ctx: Context) -> int:
        started.fire(ctx.attempt)
        await gates[ctx.attempt].wait()
        return ctx.attempt

    async with running(dsn, tasks, heartbeat_interval=0.2) as runner:
        id = await desk.one("gated")
        await started.wait(1)
        await Tasks(db).settle([settlement(await desk.tasks.get(id), Event.RELEASED)])
        await started.wait(2)
        gates[1].set()
        await eventually(lambda: runner.slots.observations.rejected == 1)
        gates[2].set()
        task = await desk.final(id)
    assert (task.status, task.result, task.attempts) == (State.COMPLETED, "2", 2)
    assert not await invariants.violations(db, quiet=True)


@pytest.mark.parametrize("wakeups", [True, False])
async def test_a_running_async_handler_is_canceled(dsn: str, desk: Desk, wakeups: bool) -> None:
    """C13: within a second with NOTIFY, H + 1 s without."""
    tasks = Registry()
    started, ended = Signal("started"), Signal("ended")

    @tasks.task("long")
    async def long(ctx: Context) -> None:
        started.fire()
        try:
            await asyncio.sleep(60)
        finally:
            ended.fire(ctx.canceled)

    interval = 30.0 if wakeups else 1.0
    async with running(dsn, tasks, heartbeat_interval=interval, wakeups=wakeups) as runner:
        if wakeups:
            await runner._listener.connected.wait()
        id = await desk.one("long")
        await started.wait()
        asked = time.monotonic()
        await desk.cancel(id)
        task = await desk.final(id)
        # A second on an idle machine; the comparisons that would find it without a hint are half a minute apart.
        assert time.monotonic() - asked < 15
        events = await desk.events(id)
    assert (task.status, task.failures, task.attempts) == (State.CANCELED, 0, 1)
    assert events == ["ENQUEUED", "CLAIMED", "CANCEL_REQUESTED", "CANCELED"]
    assert ended.values == [True]
    assert task.reason


@pytest.mark.parametrize("how", ["check", "wait", "returns", "fails", "retries"])
async def test_a_running_sync_handler_is_told_to_cancel(dsn: str, desk: Desk, how: str) -> None:
    """Truth wins: a success is a success; whatever else comes after the request is CANCELED and never tried again."""
    tasks = Registry()
    started = Signal("started")

    @tasks.task("long")
    def long(ctx: Context) -> str:
        started.fire()
        if how == "wait":
            assert ctx.wait_canceled(30)
            ctx.check_canceled()
        while not ctx.canceled:
            time.sleep(0.005)
        if how == "check":
            ctx.check_canceled()
        if how == "fails":
            raise OSError("half done")
        if how == "retries":
            raise Retry(1)
        return "finished"

    async with running(dsn, tasks) as runner:
        await runner._listener.connected.wait()
        id = await desk.one("long")
        await started.wait()
        await desk.cancel(id)
        task = await desk.final(id)
    if how == "returns":
        assert (task.status, task.result) == (State.COMPLETED, '"finished"')
    else:
        assert (task.status, task.result) == (State.CANCELED, None)
    assert task.attempts == 1


async def test_canceling_one_harms_no_other(dsn: str, desk: Desk) -> None:
    tasks, started, told = _registry()
    async with running(dsn, tasks) as runner:
        await runner._listener.connected.wait()
        ids = await desk.enqueue("wait", times=4)
        await started.wait(4)
        await desk.cancel(ids[2])
        assert (await desk.final(ids[2])).status is State.CANCELED
        told.fire()
        others = await desk.all_final([id for id in ids if id != ids[2]])
        more = await desk.all_final(await desk.enqueue("quick", times=10))
    assert {(t.status, t.attempts) for t in [*others, *more]} == {(State.COMPLETED, 1)}


async def test_canceling_what_is_claimed_but_not_started(dsn: str, desk: Desk, db: Connection) -> None:
    """A request that comes between the claim and the start is seen at the next comparison."""
    tasks, started, told = _registry()
    async with running(dsn, tasks, concurrency=1, heartbeat_interval=0.3, queues={"default": 1}) as runner:
        blocker = await desk.one("wait")
        await started.wait()
        waiting = await make_task(db, type="wait", queue="elsewhere")
        held = await claim(db, waiting.id, runner.id)
        runner._deliver([held])  # as if claimed ahead
        await desk.cancel(waiting.id)
        told.fire()
        assert (await desk.final(blocker)).status is State.COMPLETED
        assert (await desk.final(waiting.id)).status in (State.CANCELED, State.COMPLETED)


async def test_a_released_ghost_whose_answer_comes_late_does_not_begin(dsn: str, desk: Desk, db: Connection) -> None:
    """Found by the simulation: its age is by the database's clock, which had jumped, and the answer was still on its way."""
    tasks, _, _ = _registry()
    async with running(dsn, tasks, heartbeat_interval=60, queues={"default": 4}) as runner:
        late = await make_task(db, type="wait", queue="elsewhere")
        held = await claim(db, late.id, runner.id)
        await db.execute("UPDATE dhara.tasks SET started_at = started_at - interval '2 hours' WHERE id = $1", late.id)
        await runner.comparer.compare()
        await db.execute("UPDATE dhara.tasks SET run_at = run_at + interval '1 hour' WHERE id = $1", late.id)
        runner._deliver([held])
        assert held.lease not in runner.slots.leases()
    assert [entry["event"] for entry in await history(db, late.id)] == ["RELEASED"]


async def test_what_waits_under_a_lost_lease_does_not_begin(dsn: str, desk: Desk, db: Connection) -> None:
    """Found by the simulation: it began all the same, while it ran elsewhere."""
    tasks, started, told = _registry()
    async with running(dsn, tasks, concurrency=1, heartbeat_interval=0.2, queues={"default": 1}) as runner:
        blocker = await desk.one("wait")
        await started.wait()
        waiting = await make_task(db, type="wait", queue="elsewhere")
        held = await claim(db, waiting.id, runner.id)
        runner._deliver([held])  # as if claimed ahead
        await Tasks(db).settle([settlement(await desk.tasks.get(waiting.id), Event.RELEASED)])
        await db.execute("UPDATE dhara.tasks SET run_at = run_at + interval '1 hour' WHERE id = $1", waiting.id)
        await eventually(lambda: held.lease not in runner.slots.leases())
        told.fire()
        assert (await desk.final(blocker)).status is State.COMPLETED
        assert len(started.values) == 1
    assert [entry["event"] for entry in await history(db, waiting.id)] == ["RELEASED"]


async def test_a_request_for_an_attempt_that_is_over_reaches_nobody(dsn: str, desk: Desk, db: Connection) -> None:
    tasks, started, told = _registry()
    async with running(dsn, tasks, concurrency=1) as runner:
        id = await desk.one("wait")
        await started.wait()
        old = (await desk.tasks.get(id)).lease
        told.fire()
        await desk.final(id)
        assert old is not None
        runner.slots.cancel(old)
        runner.slots.lose(old)
        assert (await desk.final(await desk.one("quick"))).status is State.COMPLETED


async def test_a_failed_settlement_of_a_ghost_costs_nothing(dsn: str, desk: Desk, db: Connection) -> None:
    """A row that was settled between the look and the release."""
    task = await make_task(db, "RUNNING")
    await Tasks(db).settle([settlement(task, Event.COMPLETED)])
    assert await Tasks(db).settle([settlement(task, Event.RELEASED)]) == {}
    assert (await desk.tasks.get(task.id)).status is State.COMPLETED


async def test_while_a_look_at_everything_is_expensive_it_asks_of_what_it_knows(
    dsn: str, desk: Desk, db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by ten minutes of a held snapshot: each beat went through all that the worker had run since."""
    asked: list[Collection[UUID] | None] = []
    held = Tasks.held

    async def counting(self: Tasks, worker: UUID, of: Collection[UUID] | None = None) -> list[Held]:
        asked.append(of)
        return await held(self, worker, of)

    tasks, started, told = _registry()
    monkeypatch.setattr(Tasks, "held", counting)
    async with running(dsn, tasks, heartbeat_interval=60, queues={"default": 4}) as runner:
        await eventually(lambda: len(asked) == 1)  # its own round
        watched, waiting = await desk.one("watch"), await desk.one("wait")
        await started.wait(2)
        ghost = await make_task(db, "RUNNING", worker=runner.id, type="wait", queue="elsewhere", age=60)
        runner.comparer._costs, runner.comparer._looked = (0.5, 0.5), time.monotonic()
        await Tasks(db).settle([settlement(await desk.tasks.get(watched), Event.RELEASED)])
        await db.execute("UPDATE dhara.tasks SET run_at = run_at + interval '1 hour' WHERE id = $1", watched)
        await desk.cancel(waiting)
        await runner.comparer.compare()
        assert asked[1] == {watched, waiting}
        assert None not in asked[1:]
        assert (await told.wait())[0] is False, "its lease is lost"
        assert (await desk.final(waiting)).status is State.CANCELED
        assert (await desk.tasks.get(ghost.id)).status is State.RUNNING
        runner.claimer._unanswered = time.monotonic()
        await runner.comparer.compare()
        assert asked[-1] is None, "a claim that was not answered may have left a ghost"
        assert (await desk.tasks.get(ghost.id)).status is State.PENDING
        runner.claimer._unanswered = float("-inf")
        runner.comparer._costs, runner.comparer._looked = (0.5, 0.5), time.monotonic() - comparer.LOOK_REST
        await runner.comparer.compare()
        assert asked[-1] is None, "the rest is over"
        runner.comparer._costs, runner.comparer._looked = (0.5, 0.0), time.monotonic()
        await runner.comparer.compare()
        assert asked[-1] is None, "one look that was slow makes none rarer"


async def test_a_claim_without_an_answer_is_told(dsn: str, desk: Desk) -> None:
    tasks, _, _ = _registry()
    async with Proxy(dsn) as proxy, running(proxy.dsn, tasks) as runner:
        assert runner.claimer.unanswered_for() == float("inf")
        proxy.lose_reply("tasks/claim")
        await desk.all_final(await desk.enqueue("quick"))
        assert runner.claimer.unanswered_for() < comparer.SUSPICION


async def test_a_worker_that_has_been_idle_for_long_asks_rarely(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    held = Tasks.held

    async def counting(self: Tasks, worker: UUID, of: Collection[UUID] | None = None) -> list[Held]:
        nonlocal asked
        asked += 1
        return await held(self, worker, of)

    tasks, _, _ = _registry()
    monkeypatch.setattr(Tasks, "held", counting)
    async with running(dsn, tasks, heartbeat_interval=60) as runner:
        await eventually(lambda: asked == 1)  # its own round
        asked = 0
        for _ in range(comparer.QUIET_ROUNDS):
            await runner.comparer.compare()
        assert asked == comparer.QUIET_ROUNDS, "a claim of a moment ago may have left something"
        monkeypatch.setattr(comparer, "_quiet", lambda heartbeat: -1.0)
        for _ in range(2 * comparer.QUIET_ROUNDS):
            await runner.comparer.compare()
    assert asked == comparer.QUIET_ROUNDS + 2
