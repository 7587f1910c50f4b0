"""The claimer: woken or polling, above its watermarks, never more than there is room for."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from dhara.domain.task import Claim
from dhara.store.pool import Pool
from dhara.store.queues import Queues
from dhara.store.tasks import BEGINNING, ZERO, Lane, Tasks, Watermark
from dhara.worker.claimer import Claimer
from dhara.worker.passes import Mark
from tests.factories import Connection, make_task, make_worker, new_task
from tests.waiting import eventually

LONG = 60.0  # a poll interval that no test lives to see


class Desk:
    """What the claimer is given and what it gives."""

    def __init__(self, room: int = 1_000, rooms: Mapping[str, int] | None = None) -> None:
        self.room = room
        self.rooms = dict(rooms or {})
        self.batches: list[list[Claim]] = []

    def deliver(self, claims: list[Claim]) -> None:
        self.batches.append(claims)
        self.room -= len(claims)
        for claim in claims:
            if claim.queue in self.rooms:
                self.rooms[claim.queue] -= 1

    @property
    def taken(self) -> list[UUID]:
        return [claim.id for batch in self.batches for claim in batch]

    async def gets(self, n: int, timeout: float = LONG / 2) -> list[UUID]:
        """The ids once there are at least `n`."""
        await eventually(lambda: len(self.taken) >= n, timeout, f"{n} claims, not {len(self.taken)}")
        return self.taken


class Counting(Tasks):
    """The real statements, counted; `slow` seconds for a scan."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self.claims = 0
        self.scans = 0
        self.slow = 0.0

    async def lanes(self) -> list[Lane]:
        self.scans += 1
        found = await super().lanes()
        await asyncio.sleep(self.slow)
        return found

    async def claim(
        self, worker: UUID, types: Sequence[str], most: int, lanes: Sequence[Watermark], until: Mark | None = None
    ) -> list[Claim]:
        self.claims += 1
        assert 1 <= most <= 1_000
        return await super().claim(worker, types, most, lanes, until)


@asynccontextmanager
async def claiming(
    pool: Pool,
    desk: Desk,
    *,
    poll: float = LONG,
    queues: Mapping[str, int] | None = None,
    types: Sequence[str] = ("t",),
    tasks: Tasks | None = None,
    rest: Callable[[bool], None] = lambda asleep: None,
) -> AsyncIterator[Claimer]:
    """A claimer at work, after its first look round."""
    claimer = Claimer(
        tasks=tasks or Tasks(pool),
        worker=await make_worker(pool),
        types=list(types),
        queues=queues or {"*": 10},
        poll_interval=poll,
        room=lambda: desk.room,
        rooms=lambda: desk.rooms,
        deliver=desk.deliver,
        rng=random.Random(1),
        rest=rest,
    )
    async with claimer:
        await eventually(lambda: claimer._last_scan > 0 or desk.room <= 0)
        yield claimer


async def test_claims_what_is_there_at_the_start(pool: Pool) -> None:
    ids = [(await make_task(pool)).id for _ in range(3)]
    async with claiming(pool, desk := Desk()):
        assert await desk.gets(3) == ids


async def test_woken(pool: Pool) -> None:
    async with claiming(pool, desk := Desk()) as claimer:
        for n in range(3):
            task = await make_task(pool)
            claimer.wake("default")
            assert (await desk.gets(n + 1))[n] == task.id


async def test_woken_for_any_queue_after_a_reconnect(pool: Pool) -> None:
    async with claiming(pool, desk := Desk()) as claimer:
        await make_task(pool, queue="mail")
        claimer.wake("")
        await desk.gets(1)


async def test_hints_for_queues_of_others_are_not_heeded(pool: Pool) -> None:
    tasks = Counting(pool)
    async with claiming(pool, desk := Desk(), queues={"mail": 1}, tasks=tasks) as claimer:
        before = tasks.scans
        for _ in range(10):
            claimer.wake("default")
            await asyncio.sleep(0)
        await make_task(pool, queue="mail")
        claimer.wake("mail")
        await desk.gets(1)
        assert tasks.scans - before <= 3


async def test_polling_finds_what_no_hint_told(pool: Pool) -> None:
    async with claiming(pool, desk := Desk(), poll=0.2):
        await make_task(pool)
        start = time.monotonic()
        await desk.gets(1)
        assert time.monotonic() - start < 0.2 + 10


async def test_a_full_claim_is_followed_at_once(pool: Pool) -> None:
    await Tasks(pool).enqueue([new_task() for _ in range(25)])
    async with claiming(pool, desk := Desk(room=10)) as claimer:
        await desk.gets(10)
        assert desk.room == 0
        desk.room = 10
        claimer.freed()
        await desk.gets(20)
        desk.room = 10
        claimer.freed()
        await desk.gets(25)
        assert [len(batch) for batch in desk.batches] == [10, 10, 5]


async def test_never_more_than_a_thousand_at_once(pool: Pool) -> None:
    await Tasks(pool).enqueue([new_task() for _ in range(1_500)])
    async with claiming(pool, desk := Desk(room=5_000)):
        await desk.gets(1_500)
        assert [len(batch) for batch in desk.batches] == [1_000, 500]


async def test_room_that_comes_after_a_scan_is_used_at_once(pool: Pool) -> None:
    """The claim fills all room, a scan is due and finds more: the next freed slot must not wait for a poll."""
    await Tasks(pool).enqueue([new_task() for _ in range(10)])
    desk = Desk(room=2)
    async with claiming(pool, desk) as claimer:
        for n in range(2, 10, 2):
            await desk.gets(n)
            claimer._last_scan = float("-inf")  # so that a scan is due after each claim
            desk.room = 2
            claimer.freed()
        await desk.gets(10)


async def test_a_queue_s_own_room_that_comes_is_used_at_once(pool: Pool) -> None:
    """There is room for other queues, but none for `mail`; once a mail slot is free the next mail starts."""
    await Tasks(pool).enqueue([new_task(queue="mail") for _ in range(6)])
    desk = Desk(room=100, rooms={"mail": 2, "sms": 50})
    async with claiming(pool, desk, queues={"mail": 2, "sms": 50}) as claimer:
        for n in (2, 4, 6):
            await desk.gets(n)
            assert desk.rooms["mail"] == 0
            await asyncio.sleep(0.05)
            assert len(desk.taken) == n, "more than the queue has slots"
            desk.rooms["mail"] = 2
            claimer.freed()


async def test_a_delayed_task_starts_when_it_is_due(pool: Pool, db: Connection) -> None:
    async with claiming(pool, desk := Desk()) as claimer:
        task = await make_task(pool, delay=0.6)
        claimer.wake("default")
        await desk.gets(1)
        late = await db.fetchval(
            "SELECT EXTRACT(EPOCH FROM started_at - run_at)::float8 FROM dhara.tasks WHERE id = $1", task.id
        )
        assert 0 <= late < 10


async def test_a_delayed_task_that_no_hint_told_of(pool: Pool, db: Connection) -> None:
    tasks = Counting(pool)
    async with claiming(pool, desk := Desk(), poll=0.2, tasks=tasks) as claimer:
        task = await make_task(pool, delay=3)
        scans = tasks.scans
        await eventually(lambda: tasks.scans >= scans + 2)
        claimer._poll_interval = 600.0  # from now on only what the last poll has told
        await desk.gets(1)
        late = await db.fetchval(
            "SELECT EXTRACT(EPOCH FROM started_at - run_at)::float8 FROM dhara.tasks WHERE id = $1", task.id
        )
        assert late >= 0


async def test_a_task_that_is_expected_back_starts_when_it_is_due(pool: Pool, db: Connection) -> None:
    """As after a retry: its worker knows, although nobody notifies."""
    async with claiming(pool, desk := Desk(), poll=20) as claimer:
        task = await make_task(pool, delay=0.3)
        claimer.expect(0.3)
        await desk.gets(1)
        late = await db.fetchval(
            "SELECT EXTRACT(EPOCH FROM started_at - run_at)::float8 FROM dhara.tasks WHERE id = $1", task.id
        )
        assert 0 <= late < 10


async def test_many_delayed_ones_hide_no_ready_one(pool: Pool) -> None:
    await Tasks(pool).enqueue([new_task(priority=90, delay=1_000.0) for _ in range(500)])
    async with claiming(pool, desk := Desk()) as claimer:
        ready = await make_task(pool)
        claimer.wake("default")
        assert await desk.gets(1) == [ready.id]


async def test_late_commit_below_the_watermark_is_found_within_a_poll(pool: Pool, db: Connection) -> None:
    """A transaction that took its run_at before others, and commits after they have been claimed."""
    async with claiming(pool, desk := Desk(), poll=0.3):
        late = new_task()
        transaction = db.transaction()
        await transaction.start()
        await Tasks(db).enqueue([late])
        early = [await make_task(pool) for _ in range(3)]
        assert await desk.gets(3) == [task.id for task in early]
        await transaction.commit()
        start = time.monotonic()
        assert (await desk.gets(4))[3] == late.id
        assert time.monotonic() - start < 0.3 + 10
        row = await Tasks(pool).get(late.id)
        assert row.run_at < early[0].run_at


async def test_late_commit_is_found_under_full_load(pool: Pool, db: Connection) -> None:
    """Claims that are always full never see an empty lane; the scan comes every so often all the same."""
    desk, tasks = Desk(room=1), Counting(pool)
    transaction = db.transaction()
    await transaction.start()
    late = new_task()
    await Tasks(db).enqueue([late])
    await tasks.enqueue([new_task() for _ in range(200)])
    async with claiming(pool, desk, tasks=tasks) as claimer:
        await desk.gets(1)
        await transaction.commit()
        claimer._last_scan -= 60.0  # much later
        claimer._last_front -= 60.0
        for n in range(1, 10):
            await desk.gets(n)
            desk.room = 1
            claimer.freed()
        assert late.id in desk.taken


async def test_new_lanes_are_found_when_woken(pool: Pool) -> None:
    async with claiming(pool, desk := Desk()) as claimer:
        for n, (queue, priority) in enumerate([("default", 0), ("default", 50), ("mail", 7), ("default", 3)]):
            task = await make_task(pool, queue=queue, priority=priority)
            claimer.wake(queue)
            assert (await desk.gets(n + 1))[n] == task.id


async def test_revived_tasks_are_found(pool: Pool) -> None:
    async with claiming(pool, desk := Desk()) as claimer:
        dead = await make_task(pool, "DEAD")
        await make_task(pool)
        claimer.wake("default")
        await desk.gets(1)
        await Tasks(pool).revive(dead.id)
        claimer.wake("default")
        assert (await desk.gets(2))[1] == dead.id


async def test_paused_queues_rest(pool: Pool, queues: Queues) -> None:
    await queues.pause("mail", "me")
    tasks = Counting(pool)
    async with claiming(pool, desk := Desk(), poll=0.1, tasks=tasks) as claimer:
        mail = await make_task(pool, queue="mail")
        other = await make_task(pool)
        claimer.wake("mail")
        claimer.wake("default")
        assert await desk.gets(1) == [other.id]
        polled = tasks.scans
        await eventually(lambda: tasks.scans >= polled + 5)
        assert desk.taken == [other.id]
        await queues.resume("mail")
        assert (await desk.gets(2))[1] == mail.id


class TooLong(Tasks):
    """The real statements; a claim that may look at more than 2,000 tasks is canceled as by the statement time-out."""

    canceled = 0

    async def claim(
        self, worker: UUID, types: Sequence[str], most: int, lanes: Sequence[Watermark], until: Mark | None = None
    ) -> list[Claim]:
        for lane in lanes if until is None else ():
            seen = await self.slice(types, lane, 2_001)
            if seen and seen.looked == 2_001 and seen.known < most:
                self.canceled += 1
                raise asyncpg.QueryCanceledError
        return await super().claim(worker, types, most, lanes, until)


class TimingOut(Tasks):
    """Its first claim ends by a time-out."""

    failed = False

    async def claim(self, *args: Any) -> list[Claim]:
        if not self.failed:
            self.failed = True
            raise TimeoutError
        return await super().claim(*args)


async def test_idle_costs_little(pool: Pool) -> None:
    """Nothing ready, a paused queue, tasks of unknown types: one look a poll, no more."""
    await Queues(pool).pause("mail", "me")
    for type, queue in (("t", "mail"), ("unknown", "default")):
        await make_task(pool, type=type, queue=queue)
    tasks = Counting(pool)
    async with claiming(pool, Desk(), poll=0.25, tasks=tasks):
        before = tasks.claims + tasks.scans
        await asyncio.sleep(1)
        assert tasks.claims + tasks.scans - before <= 3 * 6


async def test_a_long_backlog_of_unknown_types_is_gone_through_once(pool: Pool) -> None:
    """Then claims start behind it, and from the front only as often as that costs a twentieth of the time."""
    foreign = [await make_task(pool, type="unknown") for _ in range(3)]
    tasks = Counting(pool)
    async with claiming(pool, desk := Desk(), poll=0.1, tasks=tasks) as claimer:
        await eventually(lambda: claimer._front_cost > 0)
        claimer._front_cost = 1_000.0  # as if there were millions
        marks = claimer._lanes._marks
        await eventually(lambda: marks["default", 0] > (foreign[-1].run_at, foreign[-1].id))
        scans = tasks.scans
        await eventually(lambda: tasks.scans > scans + 1)
        assert claimer._lanes._marks["default", 0] > (foreign[-1].run_at, foreign[-1].id), "scans leave it there"
        mine = await make_task(pool)
        claimer.wake("default")
        assert await desk.gets(1) == [mine.id]
        # What comes back below the mark waits for the next look from the front.
        await pool.execute("UPDATE dhara.tasks SET type = 't' WHERE id = $1", foreign[0].id)
        claimer._last_front -= 15.0  # never longer, whatever it costs
        assert await desk.gets(2) == [mine.id, foreign[0].id]


async def test_known_tasks_within_a_backlog_that_no_claim_gets_through(
    dsn: str, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are found slice by slice; meanwhile what is new is claimed at once, and the time-out strikes once."""
    monkeypatch.setattr("dhara.worker.passes.MOST_LOOKED", 1_000)
    fill = (
        "INSERT INTO dhara.tasks (id, type, run_at, payload)"
        " SELECT gen_random_uuid(), 'unknown', now() - interval '1 second' * $1, 'null' FROM generate_series(1, 5000)"
    )
    await pool.execute(fill, 30)
    hidden = [await make_task(pool) for _ in range(3)]
    await pool.execute("UPDATE dhara.tasks SET run_at = now() - interval '20 s' WHERE type = 't'")
    await pool.execute(fill, 10)
    tasks = TooLong(pool)
    async with claiming(pool, desk := Desk(), poll=0.1, tasks=tasks) as claimer:
        await eventually(lambda: tasks.canceled == 1)
        new = await make_task(pool)
        claimer.wake("default")
        assert set(await desk.gets(4)) == {task.id for task in (*hidden, new)}
        await eventually(lambda: not claimer._passes)
        assert ("default", 0) in claimer._passes, "walked, not claimed from the front, the next time"
        assert tasks.canceled == 1


async def test_a_slice_is_claimed_to_its_end_and_no_further(pool: Pool) -> None:
    """What the slice held may be gone by the time of the claim, which then must not go on through the whole backlog."""
    inside, beyond = await make_task(pool), await make_task(pool)
    tasks, worker = Tasks(pool), await make_worker(pool)
    lane = Watermark("default", 0, BEGINNING, ZERO, 10)
    seen = await tasks.slice(["t"], lane, 1)
    assert seen is not None and (seen.looked, seen.known, seen.id) == (1, 1, inside.id)
    claims = await tasks.claim(worker, ["t"], 10, [lane], (seen.run_at, seen.id))
    assert [claim.id for claim in claims] == [inside.id]
    assert await tasks.claim(worker, ["t"], 10, [lane], (seen.run_at, seen.id)) == []
    assert [claim.id for claim in await tasks.claim(worker, ["t"], 10, [lane])] == [beyond.id]


async def test_other_lanes_start_from_their_front_while_one_is_walked(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dhara.worker.passes.MOST_LOOKED", 10)
    monkeypatch.setattr("dhara.worker.claimer.PASS_SHARE", 1_000)  # it shall not end
    await pool.execute(
        "INSERT INTO dhara.tasks (id, type, queue, run_at, payload)"
        " SELECT gen_random_uuid(), 'unknown', 'long', now(), 'null' FROM generate_series(1, 3000)"
    )
    late = await make_task(pool, type="unknown", queue="other")
    tasks = TooLong(pool)
    async with claiming(pool, desk := Desk(), poll=0.1, tasks=tasks) as claimer:
        await eventually(lambda: claimer._passes and tasks.canceled)
        # As if it had committed so late that the lane's mark is above it.
        claimer._lanes._marks["other", 0] = (late.run_at + timedelta(hours=1), ZERO)
        await pool.execute("UPDATE dhara.tasks SET type = 't' WHERE id = $1", late.id)
        assert await desk.gets(1) == [late.id]
        assert claimer._passes


async def test_a_worker_without_room_wants_no_hints(pool: Pool) -> None:
    """Slots that become free one by one find one task each: it is as busy as one that takes hundreds."""
    for _ in range(10):
        await make_task(pool)
    rested: list[bool] = []
    async with claiming(pool, desk := Desk(room=1), poll=0.1, rest=rested.append) as claimer:
        for n in range(1, 11):
            await desk.gets(n)
            desk.room = 1
            claimer.freed()
        await eventually(lambda: rested == [False, True])


async def test_a_claim_that_timed_out_has_looked_at_nothing(pool: Pool) -> None:
    """The database was away or busy: what was ready then is claimed as soon as it answers, not after many looks."""
    waiting = await make_task(pool)
    tasks = TimingOut(pool)
    async with claiming(pool, desk := Desk(), poll=0.1, tasks=tasks) as claimer:
        assert await desk.gets(1) == [waiting.id]
        assert tasks.failed and claimer._front_cost < 15


async def test_an_expensive_scan_gets_a_small_share_of_the_time(pool: Pool) -> None:
    """Woken all the time while scans are slow: they take a twentieth or so, and hints are still heard."""
    tasks = Counting(pool)
    await make_task(pool, delay=100.0)
    async with claiming(pool, desk := Desk(), tasks=tasks) as claimer:
        tasks.slow = 0.1
        claimer._scan_costs = (0.1, 0.1)
        claimer._last_scan = claimer._clock()
        before, end = tasks.scans, time.monotonic() + 1.5
        while time.monotonic() < end:
            claimer.wake("default")
            await asyncio.sleep(0.01)
        assert tasks.scans - before <= 2
        await make_task(pool)
        claimer.wake("default")
        await desk.gets(1)


async def test_while_scans_are_expensive_polls_claim_from_the_known_lanes(pool: Pool) -> None:
    """Found by ten minutes of a held snapshot: each poll of each idle worker scanned, and waded through all dead entries."""
    tasks = Counting(pool)
    await make_task(pool)
    async with claiming(pool, desk := Desk(), poll=0.1, tasks=tasks) as claimer:
        await desk.gets(1)
        tasks.slow = 0.5
        await eventually(lambda: min(claimer._scan_costs) >= 0.5)
        before = tasks.scans
        for n in range(5):
            await make_task(pool)
            await desk.gets(n + 2)
        assert tasks.scans - before <= 1


async def test_a_cheap_scan_does_not_wait_for_a_hint_of_a_new_queue(pool: Pool) -> None:
    async with claiming(pool, Desk()) as claimer:
        claimer._scan_costs = (0.004, 0.004)
        assert claimer._scan_rest(urgently=True) == 0
        claimer._strangers.add("new")
        assert claimer._scan_rest(urgently=True) == 0


async def test_one_slow_scan_makes_none_rarer(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dhara.worker.claimer.SCAN_EVERY", 60.0)
    tasks = Counting(pool)
    async with claiming(pool, desk := Desk(), poll=0.1, tasks=tasks) as claimer:
        tasks.slow = 0.5
        before = tasks.scans
        await eventually(lambda: tasks.scans > before)
        tasks.slow = 0.0
        await eventually(lambda: tasks.scans > before + 3)
        await make_task(pool, queue="new")
        await desk.gets(1, 25)
        assert min(claimer._scan_costs) < 0.5


async def test_a_hint_of_a_queue_that_others_have_emptied_is_worth_one_scan(pool: Pool) -> None:
    tasks = Counting(pool)
    await make_task(pool)
    async with claiming(pool, desk := Desk(), poll=0.1, tasks=tasks) as claimer:
        await desk.gets(1)
        tasks.slow = 0.3
        await eventually(lambda: min(claimer._scan_costs) >= 0.3)
        before, end = tasks.scans, time.monotonic() + 2.0
        while time.monotonic() < end:
            claimer.wake("gone")
            await asyncio.sleep(0.01)
        assert tasks.scans - before <= 2


async def test_a_hint_of_an_unknown_queue_is_worth_an_expensive_scan(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dhara.worker.claimer.SCAN_EVERY", 60.0)
    tasks = Counting(pool)
    await make_task(pool)
    async with claiming(pool, desk := Desk(), poll=0.1, tasks=tasks) as claimer:
        await desk.gets(1)
        tasks.slow = 0.5
        await eventually(lambda: min(claimer._scan_costs) >= 0.5)
        await make_task(pool, queue="new")
        claimer.wake("new")
        await desk.gets(2, 25)


async def test_what_is_due_before_a_scan_is_allowed_is_waited_for(pool: Pool) -> None:
    """Found by the simulation: the claimer span through a thousand rounds a second until it might scan again."""
    async with claiming(pool, Desk(), poll=0.5) as claimer:
        rounds, go = 0, claimer._round

        async def counted() -> None:
            nonlocal rounds
            rounds += 1
            await go()

        claimer._round = counted  # type: ignore[method-assign]
        claimer._scan_costs = (1.0, 1.0)
        before = claimer._last_scan = claimer._next_due = claimer._clock()
        claimer.wake("default")
        await eventually(lambda: claimer._last_scan > before)
        assert rounds < 20


async def test_no_room_no_claim(pool: Pool) -> None:
    tasks = Counting(pool)
    await make_task(pool)
    async with claiming(pool, desk := Desk(room=0), poll=0.05, tasks=tasks) as claimer:
        for _ in range(20):
            claimer.wake("default")
            await asyncio.sleep(0.01)
        assert (tasks.claims, tasks.scans) == (0, 0)
        desk.room = 1
        claimer.freed()
        await desk.gets(1)


async def test_room_that_nobody_tells_of(pool: Pool) -> None:
    """Such as after an outage, when the settler is no longer full and no attempt is left to end."""
    async with claiming(pool, desk := Desk(room=0), poll=0.2):
        await make_task(pool)
        desk.room = 1
        await desk.gets(1)


async def test_the_database_may_go_and_come(pool: Pool) -> None:
    class Down(Counting):
        down = False

        async def lanes(self) -> list[Lane]:
            if self.down:
                raise asyncpg.ConnectionDoesNotExistError("gone")
            return await super().lanes()

        async def claim(self, *args: Any) -> list[Claim]:
            if self.down:
                raise ConnectionResetError("gone")
            return await super().claim(*args)

    tasks = Down(pool)
    async with claiming(pool, desk := Desk(), tasks=tasks) as claimer:
        tasks.down = True
        first = await make_task(pool)
        claimer.wake("default")
        await asyncio.sleep(0.1)
        assert desk.taken == []
        tasks.down = False
        assert await desk.gets(1) == [first.id], "it goes on by itself, without a further hint"


async def test_two_claimers_never_take_the_same(pool: Pool) -> None:
    new = [new_task() for _ in range(600)]
    ids = {task.id for task in new}
    await Tasks(pool).enqueue(new)
    first, second = Desk(room=7), Desk(room=7)

    async def keep_freeing(desk: Desk, claimer: Claimer) -> None:
        while True:
            desk.room = 7
            claimer.freed()
            await asyncio.sleep(0.001)

    async with claiming(pool, first, poll=0.05) as a, claiming(pool, second, poll=0.05) as b:
        freeing = asyncio.gather(keep_freeing(first, a), keep_freeing(second, b))
        await eventually(lambda: len(first.taken) + len(second.taken) >= 600)
        freeing.cancel()
    assert len(first.taken) + len(second.taken) == 600
    assert {*first.taken, *second.taken} == ids
    assert min(len(first.taken), len(second.taken)) > 0
