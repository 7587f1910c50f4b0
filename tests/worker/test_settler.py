"""The settler: batches, nothing written twice, nothing lost, nobody harmed by another's bad value."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest

from dhara.domain.lifecycle import Event, State
from dhara.domain.settle import Settlement
from dhara.domain.task import Claim
from dhara.store.pool import DatabaseSettings, Pool
from dhara.store.tasks import Tasks
from dhara.worker import settler as settlers
from dhara.worker.settler import Settler
from tests import invariants
from tests.factories import claim, history, lane, make_worker, new_task, row, settlement
from tests.proxy import Proxy
from tests.waiting import eventually


class Watched(Tasks):
    """The real statements; remembers the batches. `held` keeps them back, `errors` come first."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self.batches: list[int] = []
        self.free = asyncio.Event()
        self.free.set()
        self.errors: list[Exception] = []

    async def settle(self, batch: Sequence[Settlement]) -> dict[UUID, State]:
        self.batches.append(len(batch))
        await self.free.wait()
        if self.errors:
            raise self.errors.pop(0)
        return await super().settle(batch)


@asynccontextmanager
async def settling(tasks: Tasks, **more: Any) -> AsyncIterator[Settler]:
    async with Settler(tasks=tasks, worker=uuid4(), rng=random.Random(1), **more) as settler:
        yield settler


async def claims(pool: Pool, n: int) -> list[Claim]:
    """So many RUNNING tasks."""
    tasks = Tasks(pool)
    await tasks.enqueue([new_task() for _ in range(n)])
    return await tasks.claim(await make_worker(pool), ["t"], n, [lane()])


def done(held: Claim, **fields: Any) -> Settlement:
    return settlement(held, Event.COMPLETED, **{"result": "1"} | fields)


async def states(pool: Pool, held: list[Claim]) -> list[State]:
    found = await Tasks(pool).get_many([claim.id for claim in held])
    return [found[claim.id].status for claim in held]


async def test_idle_it_writes_at_once(pool: Pool) -> None:
    (held,) = await claims(pool, 1)
    async with settling(tasks := Watched(pool)) as settler:
        settler.put(done(held))
        assert (len(settler), settler.leases()) == (1, {held.lease})
        await asyncio.wait_for(settler.drained(), 30)
        assert (len(settler), settler.leases()) == (0, set())
    assert tasks.batches == [1]
    assert await states(pool, [held]) == [State.COMPLETED]


async def test_what_was_written_already_is_not_stale(pool: Pool) -> None:
    """Found by the chaos runner: a commit whose reply was lost, and that was still under way as it was looked up."""
    held = await claims(pool, 2)
    await Tasks(pool).settle([done(held[0])])
    rejected: list[Settlement] = []
    async with settling(Watched(pool), rejected=rejected.append) as settler:
        settler.put(settlement(held[0], Event.RETRIED))
        settler.put(done(held[1], lease=uuid4()))
        await settler.drained()
    assert [one.id for one in rejected] == [held[1].id]
    assert [entry["event"] for entry in await history(pool, held[0].id)] == ["COMPLETED"]


async def test_under_load_what_comes_meanwhile_forms_the_next_batch(pool: Pool) -> None:
    held = await claims(pool, 30)
    async with settling(tasks := Watched(pool)) as settler:
        tasks.free.clear()
        settler.put(done(held[0]))
        await eventually(lambda: tasks.batches == [1])
        for one in held[1:]:
            settler.put(done(one))
        assert settler.leases() == {one.lease for one in held}
        tasks.free.set()
        await settler.drained()
    assert tasks.batches == [1, 29]
    assert set(await states(pool, held)) == {State.COMPLETED}


async def test_batches_are_bounded(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settlers, "MOST", 10)
    held = await claims(pool, 35)
    async with settling(tasks := Watched(pool)) as settler:
        for one in held:
            settler.put(done(one))
        await settler.drained()
    assert tasks.batches == [10, 10, 10, 5]


async def test_the_buffer_is_bounded(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settlers, "CAPACITY", 5)
    held = await claims(pool, 8)
    async with settling(tasks := Watched(pool)) as settler:
        tasks.free.clear()
        settler.put(done(held[0]))
        await eventually(lambda: tasks.batches == [1])
        for one in held[1:5]:
            settler.put(done(one))
        assert not settler.full
        for one in held[5:]:  # what runs already is still taken
            settler.put(done(one))
        assert settler.full
        tasks.free.set()
        await settler.drained()
        assert not settler.full
    assert set(await states(pool, held)) == {State.COMPLETED}


async def test_it_waits_for_the_database(pool: Pool) -> None:
    held = await claims(pool, 3)
    tasks = Watched(pool)
    tasks.errors = [ConnectionRefusedError("down"), TimeoutError()]
    async with settling(tasks) as settler:
        for one in held:
            settler.put(done(one))
        await asyncio.wait_for(settler.drained(), 30)
    assert tasks.batches == [3, 3, 3]
    assert set(await states(pool, held)) == {State.COMPLETED}


@pytest.mark.parametrize("reply", [True, False])
async def test_a_cut_connection_loses_nothing_and_writes_nothing_twice(dsn: str, pool: Pool, reply: bool) -> None:
    """Cut at the very statement: after its commit, before its answer; and before it reached the server."""
    held = await claims(pool, 20)
    rejected: list[Settlement] = []
    async with Proxy(dsn) as proxy, Pool(DatabaseSettings(dsn=proxy.dsn, pool_max=2)) as cut:
        (proxy.lose_reply if reply else proxy.lose_request)("tasks/settle")
        async with settling(Tasks(cut), rejected=rejected.append) as settler:
            for n, one in enumerate(held):
                ended = settlement(one, Event.RETRIED, failed=1, delay=60.0) if n % 2 else done(one)
                settler.put(ended)
            await asyncio.wait_for(settler.drained(), 30)
        assert proxy.cuts == 1
    assert rejected == []
    assert await states(pool, held) == [State.COMPLETED, State.PENDING] * 10
    for one in held:
        assert len(await history(pool, one.id)) == 1
    assert not await invariants.violations(pool)


async def test_reply_lost_and_claimed_again_meanwhile(dsn: str, pool: Pool) -> None:
    """The task went on with its life; the first attempt is on record already and must not be called stale."""
    (held,) = await claims(pool, 1)
    rejected: list[Settlement] = []
    async with Proxy(dsn) as proxy, Pool(DatabaseSettings(dsn=proxy.dsn, pool_max=2)) as cut:
        proxy.lose_reply("tasks/settle")
        async with settling(Tasks(cut), rejected=rejected.append) as settler:
            settler.put(settlement(held, Event.RETRIED, failed=1))
            await eventually(lambda: proxy.cuts == 1)
            again = await claim(pool, held.id)
            await asyncio.wait_for(settler.drained(), 30)
    found = await Tasks(pool).get(held.id)
    assert (found.status, found.lease, found.failures, found.attempts) == (State.RUNNING, again.lease, 1, 2)
    assert rejected == []
    assert [entry["event"] for entry in await history(pool, held.id)] == ["RETRIED"]


async def test_stale_leases_change_nothing_and_are_put_on_record(pool: Pool) -> None:
    held = await claims(pool, 3)
    await Tasks(pool).settle([settlement(held[1], Event.RELEASED)])
    again = await claim(pool, held[1].id)
    before = await row(pool, held[1].id)
    rejected: list[Settlement] = []
    async with settling(Tasks(pool), rejected=rejected.append) as settler:
        for one in held:
            settler.put(done(one))
        await settler.drained()
    assert [s.lease for s in rejected] == [held[1].lease]
    assert await states(pool, held) == [State.COMPLETED, State.RUNNING, State.COMPLETED]
    assert await row(pool, held[1].id) == before
    last = (await history(pool, held[1].id))[-1]
    assert (last["event"], last["lease"], last["attempt"]) == ("SETTLE_REJECTED", held[1].lease, 1)
    assert "COMPLETED" in last["reason"]
    assert again.lease != held[1].lease


BAD: dict[str, dict[str, Any]] = {
    "NUL in a text": {"last_error": "a\x00b"},
    "lone surrogate": {"reason": "\ud800"},
    "not JSON": {"result": "{"},
    "not a text": {"reason": 12},
    "far too long a wait": {"event": Event.RETRIED, "delay": 1e300},
    "too many failures": {"event": Event.RETRIED, "failed": 40_000},
}


@pytest.mark.parametrize("what", BAD)
async def test_what_the_database_refuses_harms_one_task_only(pool: Pool, what: str) -> None:
    held = await claims(pool, 8)
    async with settling(Tasks(pool)) as settler:
        for n, one in enumerate(held):
            fields = dict(BAD[what]) if n == 3 else {}
            settler.put(settlement(one, fields.pop("event", Event.COMPLETED), **{"result": "1"} | fields))
        await asyncio.wait_for(settler.drained(), 30)
    assert await states(pool, held) == [*[State.COMPLETED] * 3, State.DEAD, *[State.COMPLETED] * 4]
    bad = await Tasks(pool).get(held[3].id)
    assert bad.reason == "invalid_result"
    assert "cannot be stored" in (bad.last_error or "")
    assert not await invariants.violations(pool)


async def test_it_goes_on_whatever_the_store_raises(pool: Pool) -> None:
    """Also an error that nobody thought of must not end the settler: everything behind it would wait for ever."""
    held = await claims(pool, 2)
    tasks = Watched(pool)
    tasks.errors = [KeyError("a bug"), RuntimeError("another")]
    async with settling(tasks) as settler:
        settler.put(done(held[0]))
        await asyncio.wait_for(settler.drained(), 30)
        settler.put(done(held[1]))
        await asyncio.wait_for(settler.drained(), 30)
    assert set(await states(pool, held)) == {State.COMPLETED}


async def test_a_task_that_cannot_even_be_buried_stops_nobody(pool: Pool) -> None:
    """Whatever of its row refuses every settlement: it is left to the reaper, the others go on."""
    held = await claims(pool, 3)
    await pool.execute("UPDATE dhara.tasks SET failures = 32767 WHERE id = $1", held[1].id)
    async with settling(Tasks(pool)) as settler:
        for one in held:
            settler.put(settlement(one, Event.RETRIED, failed=1, delay=5.0))
        await asyncio.wait_for(settler.drained(), 30)
    assert await states(pool, held) == [State.PENDING, State.RUNNING, State.PENDING]


async def test_a_canceled_flag_turns_a_retry_into_a_cancellation(pool: Pool) -> None:
    held = await claims(pool, 2)
    for one in held:
        await Tasks(pool).request_cancel(one.id)
    rejected: list[Settlement] = []
    async with settling(Tasks(pool), rejected=rejected.append) as settler:
        settler.put(settlement(held[0], Event.RETRIED, failed=1))
        settler.put(done(held[1]))
        await settler.drained()
    assert await states(pool, held) == [State.CANCELED, State.COMPLETED], "truth wins"
    assert rejected == []
