"""The real store and a small pure model of the domain take the same random steps and must agree after each.

The model knows lifecycle.TRANSITIONS, decide() and a dozen lines of bookkeeping; it has no clock: a task is ready or not,
and a rule lets the time pass. After every step the rows, every task's history and all invariants that the database can tell are compared.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar
from uuid import UUID

import asyncpg
import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dhara.domain import limits
from dhara.domain.backoff import Backoff
from dhara.domain.lifecycle import FINAL, Event, State, move
from dhara.domain.outcome import Canceled, Crashed, Done, Failed, Outcome, Released, Snoozed
from dhara.domain.settle import Settlement, decide
from dhara.domain.task import Claim, Enqueued
from dhara.errors import IdempotencyConflict, WrongState
from dhara.store.queues import Queues
from dhara.store.stats import Stats, by_status
from dhara.store.tasks import ZERO, Tasks
from dhara.store.workers import Workers
from tests import invariants
from tests.factories import lane, make_worker, new_task

T = TypeVar("T")
QUEUES, PRIORITIES, TYPES = ("a", "b"), (5, 0), ("t", "u")
HOUR = 3600.0

outcomes: st.SearchStrategy[Outcome] = st.one_of(
    st.just(Done('{"done":1}')),
    st.builds(Failed, st.just("boom"), retry_after=st.sampled_from([0.0, HOUR]), permanent=st.booleans()),
    st.builds(Snoozed, st.sampled_from([0.0, HOUR])),
    st.just(Canceled("no more")),
    st.just(Released("drain")),
    st.just(Crashed("signal 9")),
)
picks = st.integers(0, 1_000)


@dataclass
class Model:
    """What the domain says of one task."""

    id: UUID
    type: str
    queue: str
    priority: int
    max_retries: int
    payload: str
    key: str | None
    ready: bool
    expired: bool
    state: State = State.PENDING
    attempts: int = 0
    failures: int = 0
    crashes: int = 0
    snoozes: int = 0
    generation: int = 1
    cancel: bool = False
    unique_key: str | None = None
    scope: str | float | None = None
    keeps_out: bool = False
    lapsed: bool = False
    claim: Claim | None = None
    worker: UUID | None = None
    events: list[str] = field(default_factory=list)

    def go(self, event: Event) -> None:
        self.state = move(self.state, event)
        self.events.append(event)
        if event is Event.REVIVED and isinstance(self.scope, str):
            self.keeps_out = True
        elif isinstance(self.scope, str) and (self.state in FINAL or (self.scope, event) == ("pending", Event.CLAIMED)):
            self.keeps_out = False

    def ends(self, event: Event, *, failed: int = 0, crashed: int = 0, ready: bool = True) -> None:
        """An attempt is over; whatever was no success after a cancel request is a cancellation."""
        if self.cancel and event is not Event.COMPLETED:
            event = Event.CANCELED
        elif event is Event.SNOOZED:
            self.snoozes += 1
        self.failures += failed
        self.crashes += crashed
        self.go(event)
        self.claim = self.worker = None
        if self.state is State.PENDING:
            self.ready = ready


class Machine(RuleBasedStateMachine):
    """One connection, two workers, two queues with two priorities, two types."""

    def __init__(self, dsn: str, runner: asyncio.Runner) -> None:
        super().__init__()
        self.dsn = dsn
        self.runner = runner
        self.model: dict[UUID, Model] = {}
        self.pruned: dict[UUID, list[str]] = {}
        self.stale: list[Settlement] = []
        self.beats: dict[UUID, int] = {}
        self.paused: set[str] = set()

    def run(self, steps: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(steps)

    @initialize()
    def begin(self) -> None:
        async def prepare() -> asyncpg.Connection[asyncpg.Record]:
            connection = await asyncpg.connect(self.dsn)
            tables = "tasks, task_history, counters, workers, worker_drains, queues"
            truncate = "TRUNCATE " + ", ".join(f"dhara.{table}" for table in tables.split(", "))
            await connection.execute(
                f"SET session_replication_role = replica; {truncate}; RESET session_replication_role"
            )
            self.beats = {await make_worker(connection): 0 for _ in range(2)}
            return connection

        self.db = self.run(prepare())
        self.tasks, self.stats = Tasks(self.db), Stats(self.db)

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.run(self.db.close())

    def pick(self, number: int, *states: State) -> Model:
        found = [task for task in self.model.values() if not states or task.state in states]
        return found[number % len(found)]

    def any(self, *states: State) -> bool:
        return any(not states or task.state in states for task in self.model.values())

    # enqueue

    @rule(
        queue=st.sampled_from(QUEUES),
        priority=st.sampled_from(PRIORITIES),
        type=st.sampled_from(TYPES),
        max_retries=st.sampled_from([0, 1, 5]),
        key=st.none() | st.sampled_from(["k", "l"]),
        payload=st.sampled_from(['{"a": 1}', "[]"]),
        # Mostly tasks that can be claimed; else the deeper moves are hardly ever reached.
        delay=st.sampled_from([None, None, None, HOUR]),
        expired=st.sampled_from([False, False, False, True]),
        count=st.integers(1, 4),
    )
    def enqueue(self, count: int, delay: float | None, expired: bool, key: str | None, **fields: Any) -> None:
        news = [new_task(delay=delay, idempotency_key=key if n == 0 else None, **fields) for n in range(count)]
        standing = next((t for t in self.model.values() if key and (t.type, t.key) == (fields["type"], key)), None)
        answers = self.run(self.tasks.enqueue(news))
        for new, answer in zip(news, answers, strict=True):
            if new.idempotency_key and standing:
                if standing.payload == new.payload:
                    assert isinstance(answer, Enqueued)
                    assert (answer.task.id, answer.created) == (standing.id, False)
                else:
                    assert isinstance(answer, IdempotencyConflict)
                    assert answer.existing == standing.id
            else:
                assert isinstance(answer, Enqueued)
                assert answer.created
                self.model[new.id] = Model(
                    new.id, new.type, new.queue, new.priority, new.max_retries, new.payload, new.idempotency_key,
                    ready=delay is None, expired=expired,
                )  # fmt: skip
                if expired:
                    query = "UPDATE dhara.tasks SET expires_at = created_at - interval '1 second' WHERE id = $1"
                    self.run(self.db.execute(query, new.id))

    @rule(
        type=st.sampled_from(TYPES),
        key=st.sampled_from(["x", "y"]),
        scope=st.sampled_from(["pending", "open", HOUR]),
        on_conflict=st.sampled_from(["keep", "replace", "reschedule"]),
        queue=st.sampled_from(QUEUES),
        priority=st.sampled_from(PRIORITIES),
        max_retries=st.sampled_from([0, 5]),
        payload=st.sampled_from(['{"a": 1}', "[]"]),
        delay=st.sampled_from([None, None, HOUR]),
    )
    def enqueue_unique(
        self, type: str, key: str, scope: str | float, on_conflict: str, delay: float | None, **fields: Any
    ) -> None:
        new = new_task(type, unique_key=key, unique_for=scope, on_conflict=on_conflict, delay=delay, **fields)
        held = next((t for t in self.model.values() if t.keeps_out and (t.type, t.unique_key) == (type, key)), None)
        (answer,) = self.run(self.tasks.enqueue([new]))
        assert isinstance(answer, Enqueued)
        if held is not None and held.lapsed:
            held.keeps_out, held = False, None
        if held is None:
            assert answer.created
            self.model[new.id] = Model(
                new.id, type, new.queue, new.priority, new.max_retries, new.payload, None, ready=delay is None,
                expired=False, unique_key=key, scope=scope, keeps_out=True,
            )  # fmt: skip
            return
        assert (answer.task.id, answer.created) == (held.id, False)
        if on_conflict != "keep" and held.state is State.PENDING:
            held.ready = delay is None
            held.events.append(Event.REPLACED if on_conflict == "replace" else Event.RESCHEDULED)
            if on_conflict == "replace":
                held.queue, held.priority = new.queue, new.priority
                held.max_retries, held.payload = new.max_retries, new.payload

    @rule(type=st.sampled_from(TYPES), key=st.sampled_from(["x", "y"]))
    def lapse(self, type: str, key: str) -> None:
        """The periods of this key are over."""
        query = "UPDATE dhara.tasks SET unique_until = created_at WHERE type = $1 AND unique_key = $2 AND unique_until > created_at"
        self.run(self.db.execute(query, type, key))
        for task in self.model.values():
            if (task.type, task.unique_key) == (type, key) and not isinstance(task.scope, str):
                task.lapsed = True

    @precondition(lambda self: self.model)
    @rule(number=picks)
    def enqueue_again(self, number: int) -> None:
        """A client repeats after an ambiguous commit: nothing new."""
        task = self.pick(number)
        again = new_task(task.type, id=task.id, queue=task.queue, payload=task.payload, idempotency_key=task.key)
        (answer,) = self.run(self.tasks.enqueue([again]))
        assert isinstance(answer, Enqueued)
        assert (answer.task.id, answer.created) == (task.id, True)

    # claim

    @rule(
        most=st.integers(1, 5),
        types=st.sampled_from([TYPES, ("t",), ("t", "v")]),
        room=st.sampled_from([1, 2, 9]),
        who=picks,
    )
    def claim(self, most: int, types: tuple[str, ...], room: int, who: int) -> None:
        worker = list(self.beats)[who % 2]
        lanes = [lane(queue, priority, room) for queue in QUEUES for priority in PRIORITIES]
        claims = self.run(self.tasks.claim(worker, types, most, lanes))
        expected: Counter[tuple[str, int]] = Counter()
        left, rooms = most, dict.fromkeys(QUEUES, room)
        for queue, priority in ((one.queue, one.priority) for one in lanes):
            ready = [
                t for t in self.model.values()
                if t.state is State.PENDING and (t.queue, t.priority) == (queue, priority) and t.type in types
                and t.ready and not t.expired and queue not in self.paused
            ]  # fmt: skip
            # Each lane yields at most its room to the pick; the queue as a whole at most its room to the claim.
            picked = min(left, len(ready), room)
            left -= picked
            expected[queue, priority] = min(picked, rooms[queue])
            rooms[queue] -= expected[queue, priority]
        assert Counter((c.queue, c.priority) for c in claims) == +expected
        for claim in claims:
            task = self.model[claim.id]
            task.go(Event.CLAIMED)
            task.attempts += 1
            task.claim, task.worker = claim, worker
            assert (claim.attempt, claim.failures, claim.crashes, claim.generation, claim.payload) == (
                task.attempts, task.failures, task.crashes, task.generation, task.payload,
            )  # fmt: skip

    # settle

    @precondition(lambda self: self.any(State.RUNNING))
    @rule(number=picks, outcome=outcomes)
    def settle(self, number: int, outcome: Outcome) -> None:
        task = self.pick(number, State.RUNNING)
        claim = task.claim
        assert claim is not None
        wish = decide(claim, outcome, Backoff(), Random(0), "[]")
        assert wish is not None
        if wish.event is Event.RETRIED and wish.delay not in (0.0, HOUR):
            wish = Settlement(wish.id, wish.lease, wish.attempt, wish.event, HOUR, wish.failed, wish.crashed)
        task.ends(wish.event, failed=wish.failed, crashed=wish.crashed, ready=wish.delay == 0)
        assert self.run(self.tasks.settle([wish])) == {claim.lease: task.state}
        assert self.run(self.tasks.settled([wish])) == {claim.lease}
        self.stale.append(wish)

    @rule(wishes=st.lists(outcomes, min_size=2, max_size=5), who=picks)
    def live(self, wishes: list[Outcome], who: int) -> None:
        """One task through several attempts in a row."""
        for wish in wishes:
            self.time_passes()
            self.claim(most=1, types=TYPES, room=9, who=who)
            if self.stale:
                self.settle_stale(number=who)
            if self.any(State.RUNNING):
                self.settle(number=0, outcome=wish)

    @precondition(lambda self: self.stale)
    @rule(number=picks)
    def settle_stale(self, number: int) -> None:
        """By a lease that has ended, whoever ended it; best while the task runs again under another one."""
        running = [s for s in self.stale if s.id in self.model and self.model[s.id].state is State.RUNNING]
        found = running or self.stale
        wish = found[number % len(found)]
        assert self.run(self.tasks.settle([wish])) == {}
        self.run(self.tasks.reject(next(iter(self.beats)), [wish]))
        if wish.id in self.model:
            self.model[wish.id].events.append(Event.SETTLE_REJECTED)

    # operators

    @precondition(lambda self: self.model)
    @rule(number=picks)
    def cancel(self, number: int) -> None:
        task = self.pick(number)
        found = self.run(self.tasks.request_cancel(task.id))
        assert found.found is task.state
        if task.state is State.PENDING:
            task.cancel = True
            task.go(Event.CANCELED)
            assert (found.changed, found.worker) == (True, None)
        elif task.state is State.RUNNING and not task.cancel:
            task.cancel = True
            task.events.append(Event.CANCEL_REQUESTED)
            assert (found.changed, found.worker) == (True, task.worker)
        else:
            assert not found.changed

    @precondition(lambda self: self.model)
    @rule(number=picks, queue=st.none() | st.sampled_from(QUEUES), priority=st.none() | st.sampled_from(PRIORITIES))
    def revive(self, number: int, queue: str | None, priority: int | None) -> None:
        task = self.pick(number, State.DEAD) if number % 3 and self.any(State.DEAD) else self.pick(number)
        if task.state is not State.DEAD:
            try:
                self.run(self.tasks.revive(task.id))
            except WrongState as error:
                assert error.state == task.state  # noqa: PT017
                return
            raise AssertionError(f"revived a {task.state} task")
        same = [
            t for t in self.model.values() if t.keeps_out and (t.type, t.unique_key) == (task.type, task.unique_key)
        ]
        if same and isinstance(task.scope, str):
            try:
                self.run(self.tasks.revive(task.id))
            except WrongState as error:
                assert "unique key" in str(error)  # noqa: PT017
                return
            raise AssertionError(f"revived beside {same}")
        self.run(self.tasks.revive(task.id, queue=queue, priority=priority))
        task.go(Event.REVIVED)
        task.queue, task.priority = queue or task.queue, task.priority if priority is None else priority
        task.generation += 1
        task.failures = task.crashes = task.snoozes = 0
        task.cancel = task.expired = False
        task.ready = True

    @rule(queue=st.sampled_from(QUEUES))
    def pause_or_resume(self, queue: str) -> None:
        queues = Queues(self.db)
        self.run(queues.resume(queue) if queue in self.paused else queues.pause(queue, "model"))
        self.paused ^= {queue}

    # maintenance

    @rule(who=picks)
    def beat(self, who: int) -> None:
        worker = list(self.beats)[who % 2]
        assert self.run(Workers(self.db).beat([worker], [0])) == {worker: False}
        self.beats[worker] += 1

    @rule(who=picks, witnessed=st.booleans(), blame=st.sampled_from(["all", "none", "first"]))
    def reap(self, who: int, witnessed: bool, blame: str) -> None:
        worker = list(self.beats)[who % 2]
        held = sorted((t for t in self.model.values() if t.worker == worker), key=lambda t: t.id)
        leases = [t.claim.lease for t in held if t.claim]
        culprits = None if blame == "all" else leases[: blame == "first"]
        seq = self.beats[worker] - (not witnessed)
        reaped = self.run(self.tasks.reap(worker, beat_seq=seq, claimed_before=0, reason="lost", culprits=culprits))
        if not witnessed:
            assert reaped == []
            return
        for task in held:
            assert task.claim is not None
            blamed = culprits is None or task.claim.lease in culprits
            dead = task.crashes + 1 >= limits.CRASHES or task.failures + 1 > task.max_retries
            event = Event.RELEASED if not blamed else Event.DEAD if dead else Event.REAPED
            self.stale.append(Settlement(task.id, task.claim.lease, task.claim.attempt, Event.COMPLETED))
            task.ends(event, failed=int(blamed), crashed=int(blamed))
        assert {(r.id, r.event) for r in reaped} == {(t.id, t.events[-1]) for t in held}
        # The wait of the reaped is random; let it pass.
        query = "UPDATE dhara.tasks SET run_at = created_at WHERE id = ANY ($1) AND status = 'PENDING'"
        self.run(self.db.execute(query, [t.id for t in held]))

    @rule(who=picks, times=st.integers(1, 3))
    def crash(self, who: int, times: int) -> None:
        """A worker dies again and again with all that it takes: poison is reached only so."""
        for _ in range(times):
            self.claim(most=5, types=TYPES, room=9, who=who)
            self.reap(who=who, witnessed=True, blame="all")

    @rule()
    def expire(self) -> None:
        due = [t for t in self.model.values() if t.state is State.PENDING and t.expired]
        assert self.run(self.tasks.expire()) == len(due)
        for task in due:
            task.go(Event.EXPIRED)

    @rule(dead_too=st.booleans(), most=st.integers(1, 3))
    def prune(self, dead_too: bool, most: int) -> None:
        gone = FINAL if dead_too else FINAL - {State.DEAD}
        # Who still keeps others out, stays: its period outlives its retention.
        seen = [self.model[id] for id in sorted(self.model)[:most]]
        due = [t.id for t in seen if t.state in gone and (t.lapsed or not t.keeps_out)]
        assert self.run(self.tasks.prune(ZERO, 0, 0 if dead_too else HOUR, most)).gone == due
        for id in due:
            self.pruned[id] = [*self.model.pop(id).events, Event.PRUNED]

    @rule()
    def fold(self) -> None:
        self.run(self.stats.fold_counters())

    @rule()
    def time_passes(self) -> None:
        query = "UPDATE dhara.tasks SET run_at = created_at WHERE status = 'PENDING' AND run_at > clock_timestamp()"
        self.run(self.db.execute(query))
        for task in self.model.values():
            if task.state is State.PENDING:
                task.ready = True

    # what must hold after every step

    @invariant()
    def rows_agree(self) -> None:
        if not hasattr(self, "db"):
            return
        columns = "id, status, queue, priority, attempts, failures, crashes, snoozes, generation, payload, unique_key, unique_slot"
        rows = self.run(
            self.db.fetch(f"SELECT {columns}, cancel_requested_at IS NOT NULL, lease, locked_by FROM dhara.tasks")
        )
        assert {row["id"] for row in rows} == set(self.model)
        for row in rows:
            task = self.model[row["id"]]
            assert tuple(row)[1:13] == (
                task.state, task.queue, task.priority, task.attempts, task.failures, task.crashes, task.snoozes,
                task.generation, task.payload, task.unique_key, task.unique_key if task.keeps_out else None, task.cancel,
            )  # fmt: skip
            if task.claim:
                assert (row["lease"], row["locked_by"]) == (task.claim.lease, task.worker)

    @invariant()
    def histories_agree(self) -> None:
        if not hasattr(self, "db"):
            return
        rows = self.run(self.db.fetch("SELECT task_id, event FROM dhara.task_logs ORDER BY task_id, seq"))
        logged: dict[UUID, list[str]] = {id: [] for id in {**self.model, **self.pruned}}
        for id, event in rows:
            logged[id].append(event)
        assert logged == {**{id: task.events for id, task in self.model.items()}, **self.pruned}

    @invariant()
    def invariants_hold(self) -> None:
        if not hasattr(self, "db"):
            return
        known = {**self.model, **self.pruned}
        assert self.run(invariants.violations(self.db, acknowledged=known, asked=known)) == {}
        counted = by_status(self.run(self.stats.flows()))
        assert counted == {state: sum(t.state is state for t in self.model.values()) for state in State}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_store_and_model_agree(dsn: str) -> None:
    thorough = hypothesis.settings.get_current_profile_name() == "thorough"
    with asyncio.Runner() as runner:
        run_state_machine_as_test(
            lambda: Machine(dsn, runner),  # type: ignore[arg-type]
            settings=hypothesis.settings(
                max_examples=400 if thorough else 25,
                stateful_step_count=50 if thorough else 40,
                deadline=None,
                # Making a failure small takes minutes: HYPOTHESIS_PROFILE=thorough does it.
                phases=[phase for phase in hypothesis.Phase if thorough or phase is not hypothesis.Phase.shrink],
                suppress_health_check=list(hypothesis.HealthCheck),
            ),
        )
