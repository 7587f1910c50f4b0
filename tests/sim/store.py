"""The database in memory: what each statement of `store/sql/` that workers and maintenance use does, and answers.

`test_contract.py` takes this one and PostgreSQL through the same random steps and compares every answer and every row, so that
this cannot drift. A statement is one step here; how statements interleave inside PostgreSQL is asked elsewhere
(`store/test_races.py`, `test_lock_order.py`, `test_interleavings.py`).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from dhara.domain.lifecycle import Event, State, move
from dhara.domain.settle import Settlement
from dhara.domain.task import Claim, NewTask
from dhara.errors import NotFound, WrongState
from dhara.store.tasks import Canceling, Held, Lane, Reaped, Slice, Watermark
from dhara.store.workers import Duty, NewWorker, Sighting

_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
_PENDING = (Event.RETRIED, Event.SNOOZED, Event.RELEASED)
_ENDS = {Event.COMPLETED: State.COMPLETED, Event.CANCELED: State.CANCELED, Event.DEAD: State.DEAD}
_NOTHING = random.Random(0)


@dataclass(slots=True)
class Row:
    """A row of `tasks`; times are seconds of the database's clock."""

    new: NewTask
    run_at: float
    state: State = State.PENDING
    attempts: int = 0
    failures: int = 0
    crashes: int = 0
    snoozes: int = 0
    generation: int = 1
    lease: UUID | None = None
    locked_by: UUID | None = None
    started_at: float = 0.0
    cancel: bool = False
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of a task's history. `at` is the simulation's time, not the database's, whose clock may jump."""

    at: float
    task: UUID
    event: str
    lease: UUID | None
    worker: UUID | None
    attempt: int
    generation: int
    reason: str | None = None
    wished: str | None = None


@dataclass(slots=True)
class Beating:
    """A row of `workers`."""

    state: str
    beat_at: float
    beat_seq: int = 0
    wants_drain: bool = False


@dataclass
class Memory:
    """All of it. `clock` is the simulation's; the database's own is `offset` seconds ahead of it."""

    clock: Callable[[], float]
    rng: random.Random = _NOTHING
    offset: float = 0.0
    rows: dict[UUID, Row] = field(default_factory=dict)
    history: list[Entry] = field(default_factory=list)
    fleet: dict[UUID, Beating] = field(default_factory=dict)
    leader: tuple[UUID, float] | None = None
    paused: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.tasks, self.workers, self.stats = TasksInMemory(self), WorkersInMemory(self), Nothing()

    def now(self) -> float:
        """Seconds of the database's clock."""
        return self.clock() + self.offset

    def note(self, row: Row, event: str, **more: Any) -> None:
        """Put on record."""
        entry = {
            "lease": row.lease,
            "worker": row.locked_by,
            "attempt": row.attempts,
            "generation": row.generation,
        } | more
        self.history.append(Entry(at=self.clock(), task=row.new.id, event=event, **entry))

    def go(self, row: Row, event: Event, **more: Any) -> None:
        """A move of the life cycle, and its record. An illegal one raises, as the database's trigger would."""
        row.state = move(row.state, event)
        self.note(row, event, **more)

    def uuid(self) -> UUID:
        return UUID(int=self.rng.getrandbits(128), version=4)


def moment(seconds: float) -> datetime:
    """The database's clock as a date."""
    return _EPOCH + timedelta(seconds=seconds)


def place(row: Row) -> tuple[datetime, UUID]:
    """Where it stands in its lane."""
    return moment(row.run_at), row.new.id


class TasksInMemory:
    """What `dhara.store.tasks.Tasks` does, of that name."""

    def __init__(self, db: Memory) -> None:
        self._db = db

    def enqueue(self, new: Sequence[NewTask]) -> None:
        for task in new:
            if task.id not in self._db.rows:
                row = self._db.rows[task.id] = Row(task, self._db.now() + (task.delay or 0.0))
                self._db.note(row, Event.ENQUEUED, attempt=0)

    def _lane(self, queue: str, priority: int) -> list[Row]:
        rows = (r for r in self._db.rows.values() if r.state is State.PENDING)
        return sorted((r for r in rows if (r.new.queue, r.new.priority) == (queue, priority)), key=place)

    def lanes(self) -> list[Lane]:
        now = self._db.now()
        keys = {(r.new.queue, r.new.priority) for r in self._db.rows.values() if r.state is State.PENDING}
        firsts = [(key, self._lane(*key)[0].run_at) for key in sorted(keys, key=lambda key: (key[0], -key[1]))]
        return [Lane(*key, at <= now, at - now, moment(now)) for key, at in firsts]

    def _ready(self, types: Sequence[str], lane: Watermark) -> list[Row]:
        now, mark = self._db.now(), (lane.run_at, lane.id)
        return [
            row for row in self._lane(lane.queue, lane.priority)
            if row.run_at <= now and place(row) > mark and row.new.type in types
            and (row.expires_at is None or row.expires_at > now)
        ]  # fmt: skip

    def claim(
        self,
        worker: UUID,
        types: Sequence[str],
        most: int,
        lanes: Sequence[Watermark],
        until: tuple[datetime, UUID] | None = None,
    ) -> list[Claim]:
        picked: list[tuple[Row, int]] = []
        for lane in lanes:
            if lane.queue not in self._db.paused:
                ready = [row for row in self._ready(types, lane) if until is None or place(row) <= until]
                picked += [(row, lane.room) for row in ready[: lane.room]]
        of_queue: Counter[str] = Counter()
        taken = []
        for row, room in picked[:most]:
            of_queue[row.new.queue] += 1
            if of_queue[row.new.queue] <= room:
                taken.append(row)
        claims = [self._take(row, worker) for row in taken]
        return sorted(claims, key=lambda claim: (claim.queue, -claim.priority, claim.run_at, claim.id))

    def _take(self, row: Row, worker: UUID) -> Claim:
        row.lease, row.locked_by, row.started_at = self._db.uuid(), worker, self._db.now()
        row.attempts += 1
        self._db.go(row, Event.CLAIMED)
        new = row.new
        return Claim(
            new.id, row.lease, new.type, new.queue, new.priority, moment(row.run_at), new.payload, row.attempts,
            row.failures, row.crashes, row.snoozes, row.generation, new.max_retries, new.timeout, new.traceparent,
            moment(row.started_at),
        )  # fmt: skip

    def slice(self, types: Sequence[str], lane: Watermark, most: int) -> Slice | None:
        now, mark = self._db.now(), (lane.run_at, lane.id)
        ahead = [r for r in self._lane(lane.queue, lane.priority) if r.run_at <= now and place(r) > mark][:most]
        known = [r for r in ahead if r.new.type in types and (r.expires_at is None or r.expires_at > now)]
        return Slice(len(ahead), len(known), *place(ahead[-1])) if ahead else None

    def guarded(self, settlement: Settlement) -> Row | None:
        """The row that the settlement may change: the fence (C5)."""
        row = self._db.rows.get(settlement.id)
        return row if row and row.state is State.RUNNING and row.lease == settlement.lease else None

    def settle(self, batch: Sequence[Settlement]) -> dict[UUID, State]:
        accepted = {}
        for wish in batch:
            if row := self.guarded(wish):
                self._end(row, wish)
                accepted[wish.lease] = row.state
        return accepted

    def _end(self, row: Row, wish: Settlement) -> None:
        event = Event.CANCELED if row.cancel and wish.event is not Event.COMPLETED else wish.event
        row.failures += wish.failed
        row.crashes += wish.crashed
        row.snoozes += event is Event.SNOOZED
        if wish.event in _PENDING:
            row.run_at = self._db.now() + wish.delay
        # By the lease of who settles: without the fence above, a judge must see whose it was.
        self._db.go(row, event, lease=wish.lease, reason=wish.reason)

    def settled(self, batch: Sequence[Settlement]) -> set[UUID]:
        ended = {(e.task, e.lease): e.event for e in self._db.history if e.lease and e.event not in _NOTES}
        return {
            wish.lease for wish in batch
            if (event := ended.get((wish.id, wish.lease))) is not None
            and (event in (wish.event, Event.COMPLETED) or (event == Event.CANCELED and wish.event is not Event.COMPLETED))
        }  # fmt: skip

    def reject(self, worker: UUID, batch: Sequence[Settlement]) -> None:
        for wish in batch:
            if row := self._db.rows.get(wish.id):
                more = {"lease": wish.lease, "worker": worker, "attempt": wish.attempt, "wished": wish.event.value}
                self._db.note(row, Event.SETTLE_REJECTED, **more)

    def report(self, rows: Sequence[tuple[UUID, UUID, str | None, str | None]]) -> None:
        pass  # progress and log lines: nothing depends on them

    def held(self, worker: UUID, of: Collection[UUID] | None = None) -> list[Held]:
        now = self._db.now()
        return [
            Held(row.new.id, row.lease, row.cancel, now - row.started_at)
            for row in self._db.rows.values()
            if row.state is State.RUNNING and row.locked_by == worker and row.lease and (of is None or row.new.id in of)
        ]

    def request_cancel(self, id: UUID, reason: str = "", by: str = "") -> Canceling:
        row = self._db.rows.get(id)
        if row is None:
            raise NotFound(f"there is no task {id}")
        found, worker = row.state, row.locked_by
        if found is State.PENDING:
            row.cancel = True
            self._db.go(row, Event.CANCELED, lease=None, worker=None, reason=reason)
            return Canceling(found, True, None)
        if found is State.RUNNING and not row.cancel:
            row.cancel = True
            self._db.note(row, Event.CANCEL_REQUESTED, reason=reason)
            return Canceling(found, True, worker)
        return Canceling(found, False, None)

    def revive(self, id: UUID) -> None:
        row = self._db.rows.get(id)
        if row is None:
            raise NotFound(f"there is no task {id}")
        if row.state is not State.DEAD:
            raise WrongState(row.state, "only DEAD tasks can be revived")
        row.generation += 1
        row.failures = row.crashes = row.snoozes = 0
        row.lease, row.locked_by, row.cancel, row.run_at = None, None, False, self._db.now()
        row.expires_at = row.expires_at if row.expires_at and row.expires_at > self._db.now() else None
        self._db.go(row, Event.REVIVED)

    def reap(
        self,
        worker: UUID,
        *,
        beat_seq: int | None,
        claimed_before: float,
        reason: str,
        base: float = 1.0,
        cap: float = 3600.0,
        culprits: Sequence[UUID] | None = None,
        most: int = 500,
    ) -> list[Reaped]:
        known = self._db.fleet.get(worker)
        if known is None or (beat_seq is not None and known.beat_seq != beat_seq):
            return []
        now, rows = self._db.now(), sorted(self._db.rows.values(), key=lambda row: row.new.id)
        found = [
            row for row in rows
            if row.state is State.RUNNING and row.locked_by == worker and row.started_at <= now - claimed_before
        ]  # fmt: skip
        return [self._take_back(row, culprits, base, cap, reason) for row in found[:most]]

    def _take_back(self, row: Row, culprits: Sequence[UUID] | None, base: float, cap: float, reason: str) -> Reaped:
        blamed = culprits is None or row.lease in culprits
        event = Event.REAPED
        if row.cancel:
            event = Event.CANCELED
        elif not blamed:
            event = Event.RELEASED
        elif row.crashes + 1 >= 3 or row.failures + 1 > row.new.max_retries:
            event = Event.DEAD
        if event is Event.RELEASED:
            row.run_at = self._db.now()
        elif event is Event.REAPED:
            backoff = min(cap, base * 2**row.failures) * self._db.rng.uniform(0.5, 1.5)
            row.run_at = self._db.now() + (backoff if row.crashes else self._db.rng.random())
        row.failures += blamed
        row.crashes += blamed
        self._db.go(row, event, reason=reason)
        return Reaped(row.new.id, row.new.queue, event)

    def expire(self, most: int = 500) -> int:
        now = self._db.now()
        late = [r for r in self._db.rows.values() if r.state is State.PENDING and r.expires_at and r.expires_at <= now]
        for row in late[:most]:
            self._db.go(row, Event.EXPIRED, lease=None, worker=None, reason="expired")
        return len(late[:most])

    def prune(self, after: UUID, keep: float, keep_dead: float, most: int = 1_000) -> Any:
        raise NotImplementedError("the simulation keeps what is final")


_NOTES = {Event.CLAIMED, Event.CANCEL_REQUESTED, Event.SETTLE_REJECTED, Event.ENQUEUED, Event.REVIVED, Event.EXPIRED}


class WorkersInMemory:
    """What `dhara.store.workers.Workers` does, of that name."""

    def __init__(self, db: Memory) -> None:
        self._db = db

    def register(self, new: NewWorker) -> None:
        self._db.fleet.setdefault(new.id, Beating("live", self._db.now()))

    def beat(self, ids: Sequence[UUID], running: Sequence[int]) -> dict[UUID, bool]:
        known = {}
        for id in ids:
            one = self._db.fleet.get(id)
            if one is not None and one.state != "stopped":
                one.beat_at, one.beat_seq = self._db.now(), one.beat_seq + 1
                one.state = "live" if one.state == "lost" else one.state
                known[id] = one.wants_drain
        return known

    def drain_asked(self, id: UUID) -> bool:
        return id in self._db.fleet and self._db.fleet[id].wants_drain

    def drain(self, id: UUID) -> None:
        if id in self._db.fleet and self._db.fleet[id].state == "live":
            self._db.fleet[id].state = "draining"

    def stop(self, id: UUID, state: str = "stopped") -> None:
        if id in self._db.fleet:
            self._db.fleet[id].state = state

    def lose(self, id: UUID, beat_seq: int) -> None:
        one = self._db.fleet.get(id)
        if one is not None and one.beat_seq == beat_seq and one.state in ("live", "draining"):
            one.state = "lost"

    def witness(self) -> list[Sighting]:
        now = self._db.now()
        holding = {row.locked_by for row in self._db.rows.values() if row.state is State.RUNNING}
        return [
            Sighting(id, one.beat_seq, one.state, now - one.beat_at)
            for id, one in self._db.fleet.items()
            if one.state in ("live", "draining") or id in holding
        ]

    def lead(self, role: str, holder: UUID, seconds: float, long: int = 500) -> Duty | None:
        now = self._db.now()
        if self._db.leader is not None and self._db.leader[0] != holder and self._db.leader[1] >= now:
            return None
        self._db.leader = (holder, now + seconds)
        late = any(r.expires_at and r.expires_at <= now for r in self._db.rows.values() if r.state is State.PENDING)
        return Duty(late, False, False, None)

    def prune(self, seconds: float) -> None:
        pass  # nobody is forgotten within a simulation


class Nothing:
    """Statements that no decision depends on."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **options: None
