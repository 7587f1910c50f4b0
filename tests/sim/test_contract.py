"""One contract for both stores: PostgreSQL and the database in memory take the same random steps, and must answer alike.

What they draw themselves (leases, the wait of a reaped task) is told apart by name, not by value: a lease by its task and
attempt. Everything else is compared as it is: each answer, then every row, and at the end every history.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from dhara.domain.lifecycle import Event, State
from dhara.domain.settle import Settlement
from dhara.domain.task import Claim, NewTask
from dhara.errors import NotFound, WrongState
from dhara.store.tasks import BEGINNING, ZERO, Tasks, Watermark
from dhara.store.workers import NewWorker, Workers
from tests.factories import Connection
from tests.sim.store import Memory, TasksInMemory, WorkersInMemory, place

QUEUES, PRIORITIES, TYPES = ("a", "b"), (0, 5), ("t", "u")
RUNS, STEPS = 12, 90
Name = tuple[UUID, int]  # a lease: its task and attempt
_ROWS = """SELECT id, status, attempts, failures, crashes, snoozes, generation, locked_by, cancel_requested_at IS NOT NULL,
                  lease, run_at <= clock_timestamp() FROM dhara.tasks"""
_ENDS = (Event.COMPLETED, Event.RETRIED, Event.SNOOZED, Event.RELEASED, Event.DEAD, Event.CANCELED)


@pytest.mark.parametrize(("mine", "real"), [(TasksInMemory, Tasks), (WorkersInMemory, Workers)])
def test_the_same_statements_with_the_same_parameters(mine: type, real: type) -> None:
    for name, method in inspect.getmembers(mine, inspect.isfunction):
        if not name.startswith("_") and name not in ("guarded", "revive"):  # of `revive` without its changes
            wanted = list(inspect.signature(getattr(real, name)).parameters)
            assert list(inspect.signature(method).parameters) == wanted, name


class Twins:
    """Both stores, and one random step after another."""

    def __init__(self, db: Connection, rng: random.Random) -> None:
        self.rng = rng
        self.db, self.tasks, self.workers = db, Tasks(db), Workers(db)
        self.memory = Memory(lambda: self.time, random.Random(1))
        self.time = 1_000.0
        self.ids = [UUID(int=rng.getrandbits(128), version=4) for _ in range(2)]
        self.holders = [UUID(int=rng.getrandbits(128), version=4) for _ in range(2)]
        self.real: dict[Name, UUID] = {}
        self.mine: dict[Name, UUID] = {}

    def some(self) -> UUID:
        known = list(self.memory.rows)
        return self.rng.choice(known) if known and self.rng.random() < 0.97 else UUID(int=7)

    def named(self, leases: dict[Name, UUID], lease: UUID | None) -> Name | None:
        return next((name for name, known in leases.items() if known == lease), None)

    async def begin(self) -> None:
        await self.db.execute("SET session_replication_role = replica")
        await self.db.execute(
            "TRUNCATE dhara.tasks, dhara.task_history, dhara.workers, dhara.leaders, dhara.counters CASCADE"
        )
        await self.db.execute("RESET session_replication_role")
        for id in self.ids:
            new = NewWorker(id=id, pid=1, host="h", version="1", types=list(TYPES), queues={"*": 9}, slots=9)
            await self.workers.register(new)
            self.memory.workers.register(new)

    async def step(self) -> None:
        self.time += 1.0
        steps: dict[Callable[[], Any], int] = {
            self.enqueue: 5, self.lanes: 2, self.claim: 8, self.slice: 2, self.settle: 8, self.held: 2, self.cancel: 2,
            self.revive: 2, self.reap: 3, self.expire: 1, self.beat: 3, self.fleet: 3, self.lead: 1, self.time_passes: 2,
        }  # fmt: skip
        await self.rng.choices(list(steps), list(steps.values()))[0]()
        await self.rows_agree()

    # a task's way

    async def enqueue(self) -> None:
        rng = self.rng
        queue, priority = rng.choice(QUEUES), rng.choice(PRIORITIES)
        new = [
            NewTask(
                id=UUID(int=rng.getrandbits(128), version=4), type=rng.choice(TYPES), delay=rng.choice([None, None, 3600.0]),
                max_retries=rng.choice([0, 1, 5]), queue=queue, priority=priority,
            )
            for _ in range(rng.randint(1, 4))
        ]  # fmt: skip
        await self.tasks.enqueue(new)
        self.memory.tasks.enqueue(new)

    async def lanes(self) -> None:
        real, mine = await self.tasks.lanes(), self.memory.tasks.lanes()
        assert [(x.queue, x.priority, x.ready) for x in real] == [(x.queue, x.priority, x.ready) for x in mine]

    async def _mark(self, lane: Watermark) -> tuple[Watermark, Watermark]:
        """The lane from its front, or above one of its tasks."""
        lanes = [
            id for id, row in self.memory.rows.items()
            if row.state is State.PENDING and (row.new.queue, row.new.priority) == (lane.queue, lane.priority)
        ]  # fmt: skip
        if not lanes or self.rng.random() < 0.7:
            return lane, lane
        above = self.rng.choice(lanes)
        real = await self.db.fetchval("SELECT run_at FROM dhara.tasks WHERE id = $1", above)
        mine = place(self.memory.rows[above])
        return Watermark(lane.queue, lane.priority, real, above, lane.room), Watermark(
            lane.queue, lane.priority, *mine, lane.room
        )

    async def claim(self) -> None:
        rng, worker = self.rng, self.rng.choice(self.ids)
        keys = [(queue, priority) for queue in QUEUES for priority in PRIORITIES]
        rng.shuffle(keys)
        room = {queue: rng.choice([1, 2, 9]) for queue in QUEUES}
        lanes = [await self._mark(Watermark(*key, BEGINNING, ZERO, room[key[0]])) for key in keys[: rng.randint(1, 4)]]
        args = (worker, list(rng.choice([TYPES, ("t",)])), rng.randint(1, 5))
        real = await self.tasks.claim(*args, [lane[0] for lane in lanes])
        mine = self.memory.tasks.claim(*args, [lane[1] for lane in lanes])
        assert [_told(claim) for claim in real] == [_told(claim) for claim in mine]
        self.real |= {(claim.id, claim.attempt): claim.lease for claim in real}
        self.mine |= {(claim.id, claim.attempt): claim.lease for claim in mine}

    async def slice(self) -> None:
        real, mine = await self._mark(
            Watermark(self.rng.choice(QUEUES), self.rng.choice(PRIORITIES), BEGINNING, ZERO, 9)
        )
        seen, expected = await self.tasks.slice(["t"], real, 3), self.memory.tasks.slice(["t"], mine, 3)
        assert (seen and (seen.looked, seen.known, seen.id)) == (
            expected and (expected.looked, expected.known, expected.id)
        )

    async def settle(self) -> None:
        """Mostly what runs; at times by a lease that has ended."""
        running = [(id, row.attempts) for id, row in self.memory.rows.items() if row.state is State.RUNNING]
        names = running if running and self.rng.random() < 0.8 else list(self.real)
        if not names:
            return
        chosen = list({id: (id, attempt) for id, attempt in self.rng.sample(names, min(3, len(names)))}.values())
        wishes = [self._wish(name) for name in chosen]
        real = [
            Settlement(name[0], self.real[name], name[1], **wish) for name, wish in zip(chosen, wishes, strict=True)
        ]
        mine = [
            Settlement(name[0], self.mine[name], name[1], **wish) for name, wish in zip(chosen, wishes, strict=True)
        ]
        accepted, expected = await self.tasks.settle(real), self.memory.tasks.settle(mine)
        assert {self.named(self.real, k): v for k, v in accepted.items()} == {
            self.named(self.mine, k): v for k, v in expected.items()
        }
        back = {wish.id for wish in real if accepted.get(wish.lease) is State.PENDING and not wish.delay}
        await self.due([id for id in back if self.memory.rows[id].state is State.PENDING])
        done, known = await self.tasks.settled(real), self.memory.tasks.settled(mine)
        assert {self.named(self.real, k) for k in done} == {self.named(self.mine, k) for k in known}
        if refused := [n for n, wish in enumerate(real) if wish.lease not in done]:
            await self.tasks.reject(self.ids[0], [real[n] for n in refused])
            self.memory.tasks.reject(self.ids[0], [mine[n] for n in refused])

    def _wish(self, name: Name) -> dict[str, Any]:
        event = self.rng.choice(_ENDS)
        failed = event in (Event.RETRIED, Event.DEAD)
        delay = self.rng.choice([0.0, 3600.0]) if event in (Event.RETRIED, Event.SNOOZED) else 0.0
        crashed = failed and self.rng.random() < 0.2
        return {"event": event, "failed": int(failed), "crashed": int(crashed), "delay": delay, "reason": "r"}

    async def held(self) -> None:
        worker = self.rng.choice(self.ids)
        for of in (None, set(list(self.memory.rows)[::2])):
            real, mine = await self.tasks.held(worker, of), self.memory.tasks.held(worker, of)
            assert {(h.id, self.named(self.real, h.lease), h.cancel_requested) for h in real} == {
                (h.id, self.named(self.mine, h.lease), h.cancel_requested) for h in mine
            }

    async def cancel(self) -> None:
        id = self.some()
        await self.alike(
            lambda: self.tasks.request_cancel(id, "no"), lambda: self.memory.tasks.request_cancel(id, "no")
        )

    async def revive(self) -> None:
        id = self.some()
        await self.alike(lambda: self.tasks.revive(id, reason=""), lambda: self.memory.tasks.revive(id))

    async def alike(self, real: Callable[[], Any], mine: Callable[[], Any]) -> None:
        """Equal answers, or equal refusals."""
        try:
            answer = await real()
        except (NotFound, WrongState) as error:
            with pytest.raises(type(error)):
                mine()
        else:
            assert mine() == answer

    async def reap(self) -> None:
        worker = self.rng.choice(self.ids)
        running = [(id, row.attempts) for id, row in self.memory.rows.items() if row.state is State.RUNNING]
        blamed = self.rng.choice([None, running[:1], []])
        seq = self.rng.choice([None, self.memory.fleet[worker].beat_seq, 10_000])
        options: dict[str, Any] = {"beat_seq": seq, "claimed_before": self.rng.choice([0.0, 3600.0]), "reason": "gone"}
        real_ones, my_ones = (
            None if blamed is None else [known[name] for name in blamed] for known in (self.real, self.mine)
        )
        real = await self.tasks.reap(worker, **options, culprits=real_ones)
        mine = self.memory.tasks.reap(worker, **options, culprits=my_ones)
        assert sorted((r.id, r.event) for r in real) == sorted((r.id, r.event) for r in mine)
        await self.due([r.id for r in real if r.event in ("REAPED", "RELEASED")])

    async def due(self, ids: list[UUID]) -> None:
        """These are due now, in the order of their ids: which of a statement's rows it changes first is nowhere said."""
        await self.db.execute("UPDATE dhara.tasks SET run_at = statement_timestamp() WHERE id = ANY ($1)", ids)
        for id in ids:
            self.memory.rows[id].run_at = self.time

    async def expire(self) -> None:
        pending = [id for id, row in self.memory.rows.items() if row.state is State.PENDING]
        for id in self.rng.sample(pending, min(2, len(pending))):
            await self.db.execute("UPDATE dhara.tasks SET expires_at = created_at WHERE id = $1", id)
            self.memory.rows[id].expires_at = 0.5
        if self.rng.random() < 0.5:
            assert await self.tasks.expire() == self.memory.tasks.expire()

    async def time_passes(self) -> None:
        await self.due(
            [id for id, row in self.memory.rows.items() if row.state is State.PENDING and row.run_at > self.time]
        )

    # workers

    async def beat(self) -> None:
        ids = self.rng.choice([self.ids, self.ids[:1], [UUID(int=7)]])
        assert await self.workers.beat(ids, [0] * len(ids)) == self.memory.workers.beat(ids, [0] * len(ids))

    async def fleet(self) -> None:
        id, seq = self.rng.choice(self.ids), self.rng.choice([0, 1, 2])
        name, args = self.rng.choice([("drain", ()), ("lose", (seq,)), ("stop", ("lost",)), ("drain_asked", ())])
        assert await getattr(self.workers, name)(id, *args) == getattr(self.memory.workers, name)(id, *args)
        real, mine = await self.workers.witness(), self.memory.workers.witness()
        assert {(s.id, s.beat_seq, s.state) for s in real} == {(s.id, s.beat_seq, s.state) for s in mine}

    async def lead(self) -> None:
        holder = self.rng.choice(self.holders)
        if self.rng.random() < 0.3:
            await self.db.execute("UPDATE dhara.leaders SET until = until - interval '2 hours'")
            self.memory.leader = self.memory.leader and (self.memory.leader[0], 0.0)
        real, mine = await self.workers.lead("r", holder, 3600.0), self.memory.workers.lead("r", holder, 3600.0)
        assert (real and real.expired) == (mine and mine.expired)

    # what must be equal

    async def rows_agree(self) -> None:
        real = {row[0]: tuple(row) for row in await self.db.fetch(_ROWS)}
        mine = self.memory.rows
        assert real.keys() == mine.keys()
        for id, row in real.items():
            own = mine[id]
            assert row[1:9] == (
                own.state, own.attempts, own.failures, own.crashes, own.snoozes, own.generation, own.locked_by, own.cancel,
            )  # fmt: skip
            assert self.named(self.real, row[9]) == self.named(self.mine, own.lease)
            assert own.state is not State.PENDING or row[10] == (own.run_at <= self.time)

    async def histories_agree(self) -> None:
        for id in self.memory.rows:
            real = [
                (e.event, e.attempt, e.generation, self.named(self.real, e.lease), e.worker_id)
                for e in await self.tasks.logs(id)
            ]
            mine = [
                (e.event, e.attempt, e.generation, self.named(self.mine, e.lease), e.worker)
                for e in self.memory.history if e.task == id
            ]  # fmt: skip
            assert real == mine


def _told(c: Claim) -> tuple[Any, ...]:
    """A claim, but for what is drawn or read from a clock."""
    whose = (c.id, c.type, c.queue, c.priority, c.payload)
    return (*whose, c.attempt, c.failures, c.crashes, c.snoozes, c.generation, c.max_retries, c.timeout)


async def test_both_stores_take_the_same_steps(db: Connection) -> None:
    events: set[str] = set()
    for seed in range(RUNS):
        twins = Twins(db, random.Random(seed))
        await twins.begin()
        for _ in range(STEPS):
            await twins.step()
        await twins.histories_agree()
        events |= {entry.event for entry in twins.memory.history}
    missing = {"REPLACED", "RESCHEDULED", "PROGRESS", "PRUNED"}  # what the simulation has no use for
    assert events == {event.value for event in Event} - missing
