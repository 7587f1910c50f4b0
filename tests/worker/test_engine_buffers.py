"""What must not stand still or fill up: ghosts under constant claims, a full settlement buffer, exclusive starts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from dhara import Context, Registry
from dhara.domain.lifecycle import State
from dhara.domain.settle import Settlement
from dhara.worker import settler
from dhara.worker.comparer import GHOST_AGE
from dhara.worker.runner import Runner
from tests import factories
from tests.waiting import Signal, eventually
from tests.worker.kit import Desk, running


async def test_ghosts_are_released_although_a_claim_is_always_under_way(
    dsn: str, desk: Desk, db: factories.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claims that take long, one after the other: at whatever moment one looks, one is in flight."""
    tasks = Registry()

    @tasks.task("t")
    async def handler() -> None: ...

    async with running(dsn, tasks, concurrency=2, heartbeat_interval=1.0) as runner:
        await desk.final(await desk.one("t"))
        claim = runner.tasks.claim
        ghosts: list[Any] = []
        lost = 0.0

        async def slow(*args: Any) -> Any:
            nonlocal lost
            found = await claim(*args)
            await asyncio.sleep(0.3)
            if found and not ghosts:
                ghosts.extend(one.id for one in found)
                lost = time.monotonic()
                raise ConnectionResetError("its answer is lost")
            return found

        monkeypatch.setattr(runner.tasks, "claim", slow)
        ids = await desk.enqueue("t", times=2, priority=50)
        await eventually(lambda: ghosts, what="the claim's answer to be lost")
        busy = asyncio.create_task(_keep_busy(desk))
        try:
            for id in ghosts:
                await eventually(lambda id=id: _released(desk, id))  # type: ignore[misc]
            assert time.monotonic() - lost <= 1.0 + 3.0 + 10
        finally:
            busy.cancel()
        done = await desk.all_final(ids)
    assert {(task.status, task.failures) for task in done} == {(State.COMPLETED, 0)}


async def _keep_busy(desk: Desk) -> None:
    while True:
        await desk.enqueue("t", times=3)
        await asyncio.sleep(0.05)


async def _released(desk: Desk, id: Any) -> bool:
    return "RELEASED" in await desk.events(id)


async def test_a_slow_claim_is_no_ghost(dsn: str, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer takes longer than the age from which a row counts as a ghost."""
    tasks = Registry()
    ran = Signal("ran")

    @tasks.task("t")
    async def handler(*, ctx: Context) -> None:
        ran.fire(ctx.attempt)

    async with running(dsn, tasks, heartbeat_interval=0.2) as runner:
        claim = runner.tasks.claim

        async def slow(*args: Any) -> Any:
            found = await claim(*args)
            await asyncio.sleep(GHOST_AGE + 1 if found else 0)
            return found

        monkeypatch.setattr(runner.tasks, "claim", slow)
        id = await desk.one("t")
        task = await desk.final(id)
    assert (task.status, task.attempts, ran.values) == (State.COMPLETED, 1, [1])


async def test_a_full_buffer_stops_the_claims_and_its_relief_starts_them_again(
    dsn: str, desk: Desk, db: factories.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else says that there is room: all slots are idle by then, there are no hints, and the next poll is far."""
    monkeypatch.setattr(settler, "CAPACITY", 20)
    monkeypatch.setattr(settler, "MOST", 20)
    tasks = Registry()

    @tasks.task("t")
    async def handler() -> None: ...

    async with running(dsn, tasks, concurrency=5, poll_interval=600.0, wakeups=False) as runner:
        gate = asyncio.Event()
        settle = runner.tasks.settle

        async def held_up(batch: Sequence[Settlement]) -> Any:
            await gate.wait()
            return await settle(batch)

        monkeypatch.setattr(runner.tasks, "settle", held_up)
        ids = await desk.enqueue("t", times=200)
        runner.claimer.wake("default")
        await eventually(lambda: runner.settler.full and not runner.slots.busy and not runner.claimer.in_flight)
        claimed = await db.fetchval("SELECT count(*) FROM dhara.tasks WHERE status = 'RUNNING'")
        await asyncio.sleep(0.5)  # nothing signals that nothing is claimed
        assert await db.fetchval("SELECT count(*) FROM dhara.tasks WHERE status = 'RUNNING'") == claimed < 200
        assert len(runner.settler) <= 20 + 20 + 5 + 50
        gate.set()
        done = await desk.all_final(ids)
    assert {(task.status, task.attempts) for task in done} == {(State.COMPLETED, 1)}


async def test_exclusive_ones_neither_start_nor_go_on_unheard(dsn: str, desk: Desk, db: factories.Connection) -> None:
    """There is no keeper here, so no beat is ever acknowledged but the start."""
    tasks = Registry()
    started, ended = Signal("started"), Signal("ended")

    @tasks.task("only", exclusive=True)
    async def only() -> None:
        started.fire()
        try:
            await asyncio.sleep(60)
        finally:
            ended.fire(time.monotonic())

    @tasks.task("plain")
    async def plain() -> str:
        await asyncio.sleep(3.5)
        return "done"

    async with running(dsn, tasks, stale_after=3.0) as runner:
        runner.slots._last_moment = float(
            "inf"
        )  # the last resort is to end this process: tests/e2e/test_engine_exclusive.py
        await eventually(lambda: runner.claimer._last_scan > 0, what="the claimer to be at work")
        runner._board.acknowledge(time.monotonic())
        runner.slots.sweep()
        first, other = await desk.one("only"), await desk.one("plain")
        beaten = await beating_until(runner, lambda: started.fired > 0)
        await ended.wait()
        # 0.8 L after the last beat, and not a failure.
        assert 2.3 < ended.values[0] - beaten < 2.4 + 10
        released = await desk.state(first, State.PENDING)
        assert released.failures == 0
        assert (await desk.events(first))[-1] == "RELEASED"
        # It does not begin again and again, and what is not exclusive goes on.
        assert (await desk.final(other)).result == '"done"'
        assert (await desk.tasks.get(first)).attempts == released.attempts and started.fired == 1
        # Once the database has heard of this worker again, it does.
        await beating_until(runner, lambda: started.fired > 1)
        assert (await desk.tasks.get(first)).attempts > released.attempts


async def beating_until(runner: Runner, there: Callable[[], bool]) -> float:
    """Heartbeats are acknowledged until it is so; answers when the last one was sent."""
    beaten = [time.monotonic()]

    def beat() -> bool:
        beaten.append(time.monotonic())
        runner._board.acknowledge(beaten[-1])
        return there()

    await eventually(beat)
    return beaten[-1]


async def silence(runner: Runner, gate: asyncio.Event) -> None:
    """No heartbeat has been acknowledged for most of a lease."""
    runner._board.acknowledge(time.monotonic() - 25)
    runner.slots.sweep()


async def stall(runner: Runner, gate: asyncio.Event) -> None:
    """The loop has stood still: heartbeats are acknowledged by now, and what happened meanwhile is not known."""
    runner._board.acknowledge(time.monotonic() + 600)
    runner.slots._last_sweep -= 20
    runner.slots.sweep()


async def stall_and_a_free_slot(runner: Runner, gate: asyncio.Event) -> None:
    """The same, and a slot is free before anybody has looked."""
    runner._board.acknowledge(time.monotonic() + 600)
    await runner._sweep.stop()
    runner.slots._last_sweep -= 20
    gate.set()


@pytest.mark.parametrize("happens", [silence, stall, stall_and_a_free_slot])
async def test_exclusive_ones_that_wait_are_given_back(
    dsn: str, desk: Desk, db: factories.Connection, happens: Callable[[Runner, asyncio.Event], Awaitable[None]]
) -> None:
    """Their lease may be another's by the time that there is a slot: so it must not be what they wait for."""
    tasks = Registry()
    gate, began = asyncio.Event(), Signal("began")

    @tasks.task("only", exclusive=True)
    async def only() -> None:
        began.fire("only")

    @tasks.task("plain")
    async def plain() -> None:
        began.fire("plain")
        await gate.wait()

    async with running(dsn, tasks, concurrency=1, stale_after=30.0) as runner:
        await desk.one("plain")
        await began.wait()
        waiting = await factories.make_task(db, type="only", queue="elsewhere")
        runner._deliver([await factories.claim(db, waiting.id, runner.id)])  # as if claimed ahead

        async def given_back() -> bool:
            return "RELEASED" in await desk.events(waiting.id)

        await happens(runner, gate)
        await eventually(given_back, 15)  # by itself, silence would come after 24 s
        assert began.values == ["plain"]
        gate.set()
    assert (await desk.tasks.get(waiting.id)).failures == 0
