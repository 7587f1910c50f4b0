"""Tasks in the database: one method a statement, in the order of a task's life."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
from msgspec import Struct

from dhara.domain.explain import Facts, Runner
from dhara.domain.ids import random_uuids
from dhara.domain.lifecycle import Event, State
from dhara.domain.settle import Settlement
from dhara.domain.task import Attempt, Claim, Enqueued, LogEntry, NewTask, Task
from dhara.errors import IdempotencyConflict, NotFound, Unavailable, WrongState
from dhara.store import copying
from dhara.store.pool import Executor, Pool, spread, unless_cut
from dhara.store.sql import load
from dhara.store.wakeup import channel

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
ZERO = UUID(int=0)
_DUE = "run_at <= statement_timestamp()"


class Lane(Struct, frozen=True):
    """One queue at one priority. `ready`: its first task is due; `due_in`: seconds until it is (negative: since).

    `at`: the moment of the look, by the database's clock.
    """

    queue: str
    priority: int
    ready: bool
    due_in: float
    at: datetime = BEGINNING


class Watermark(Struct, frozen=True):
    """Where the next claim of a lane starts: above `(run_at, id)`. `room`: most tasks that the lane's queue may yield."""

    queue: str
    priority: int
    run_at: datetime
    id: UUID
    room: int


class Slice(Struct, frozen=True):
    """A look at the next tasks of a lane: how many, how many of known types, and the last of them."""

    looked: int
    known: int
    run_at: datetime
    id: UUID


class Held(Struct, frozen=True):
    """A RUNNING row as the database sees it; `age` is seconds since its claim."""

    id: UUID
    lease: UUID
    cancel_requested: bool
    age: float


class Reaped(Struct, frozen=True):
    """A task taken back, and how: REAPED, RELEASED, DEAD or CANCELED."""

    id: UUID
    queue: str
    event: str


class Pruned(Struct, frozen=True):
    """What one step of retention deleted, how many tasks it looked at, and the last of these."""

    gone: list[UUID]
    looked: int
    last: UUID | None


class Canceling(Struct, frozen=True):
    """What a cancellation found and did. `worker` runs the task, if it is running."""

    found: State
    changed: bool
    worker: UUID | None


class Tasks:
    """The statements of `sql/tasks/`. `db` is a pool or one connection; `tells`: enqueues wake who sleeps, where they can."""

    def __init__(self, db: Executor, schema: str = "dhara", *, tells: bool = False) -> None:
        self.db = db
        self.schema = schema
        self._tells = channel(schema, "wakeup") if tells else ""

    def on(self, connection: Executor) -> Tasks:
        """The same statements on another connection, such as one in a transaction."""
        return Tasks(connection, self.schema)

    def _sql(self, name: str) -> str:
        return load("tasks/" + name, self.schema)

    # enqueue

    async def enqueue(self, new: Sequence[NewTask]) -> list[Enqueued | IdempotencyConflict]:
        """Insert in one statement; one answer a task, in order. Conflicts are answers, so that others stay unharmed.

        Safe to repeat with the same tasks after an ambiguous commit: their ids are theirs.
        """
        # Not in a caller's transaction, which an error would spoil.
        if isinstance(self.db, Pool) and all(task.plain for task in new):
            try:
                return await self._insert_plain(new)
            except asyncpg.UniqueViolationError:
                pass  # A repetition after an ambiguous commit: the statements below find its rows.
        answers: dict[UUID, Enqueued | IdempotencyConflict] = {}
        waiting = list(new)
        # A row that stood in the way may be gone when it is looked up (pruned, rolled back): then insert again.
        for _ in range(5):
            answers |= await self._insert(waiting)
            waiting = [task for task in waiting if task.id not in answers]
            if waiting:
                answers |= await self._existing(waiting)
                waiting = [task for task in waiting if task.id not in answers]
            if not waiting:
                return [answers[task.id] for task in new]
        raise Unavailable("the tasks under these idempotency keys keep coming and going; try again")

    async def copy(self, new: Sequence[NewTask]) -> None:
        """Insert many by COPY, all or none; `self.db` must be a connection in a transaction.

        The rows are those of `enqueue`, at half its cost. Only for tasks without idempotency and unique keys: COPY
        knows no ON CONFLICT, so whatever stands in the way is an `asyncpg.UniqueViolationError`.
        """
        now: datetime = await self.db.fetchval(load("stats/clock", self.schema))
        connection: Any = self.db
        copy = connection.copy_to_table(
            "tasks",
            schema_name=self.schema,
            columns=copying.COLUMNS,
            format="binary",
            source=_each(copying.pieces(new, now)),
        )
        await unless_cut(connection, copy)
        counts = Counter(task.queue for task in new)
        await self.db.execute(self._sql("count_enqueued"), list(counts.values()), list(counts))

    async def standing(self, new: NewTask) -> Enqueued | IdempotencyConflict | None:
        """What an enqueue of `new` would answer if one of its keys is taken already; None: it is not."""
        return (await self._existing([new])).get(new.id) if new.keyed else None

    async def _insert_plain(self, new: Sequence[NewTask]) -> list[Enqueued | IdempotencyConflict]:
        columns = spread(new, "id", "type", "queue", "payload", "priority", "max_retries")
        counts = Counter(columns[2])
        args = (*columns, list(counts.values()), list(counts), self._tells)
        at = await self.db.fetchval(self._sql("enqueue_plain"), *args)
        return [Enqueued.made(task, at, at, told=bool(self._tells)) for task in new]

    async def _insert(self, new: Sequence[NewTask]) -> dict[UUID, Enqueued | IdempotencyConflict]:
        columns = spread(
            new, "id", "type", "queue", "payload", "priority", "max_retries", "run_at", "delay", "idempotency_key"
        )
        rows = await self.db.fetch(self._sql("enqueue"), *columns, [rare_fields(task) for task in new])
        by_id = {task.id: task for task in new}
        return {row[0]: Enqueued.made(by_id[row[0]], row[1], row[2]) for row in rows}

    async def _existing(self, new: Sequence[NewTask]) -> dict[UUID, Enqueued | IdempotencyConflict]:
        columns = spread(new, "id", "type", "idempotency_key", "payload", "unique_key")
        by_id = {task.id: task for task in new}
        found: dict[UUID, Enqueued | IdempotencyConflict] = {}
        for row in await self.db.fetch(self._sql("existing"), *columns):
            answer = await self._meet(by_id[row["asked"]], task_of(row), row)
            if answer is not None:
                found[row["asked"]] = answer
        return found

    async def _meet(self, new: NewTask, standing: Task, row: asyncpg.Record) -> Enqueued | IdempotencyConflict | None:
        """What becomes of `new`, in whose way `standing` stands; None: insert it again."""
        if row["lapsed"]:
            await self.db.execute(self._sql("lapse"), standing.id)
            return None
        if row["by"] == "idempotency_key" and not row["same_payload"]:
            return IdempotencyConflict(standing.id, standing.idempotency_key)
        if row["by"] == "unique_key" and new.on_conflict != "keep":
            content = (new.payload, new.queue, new.priority, new.max_retries, new.run_at, new.delay)
            changed = await self.db.fetchrow(self._sql("replace"), standing.id, new.on_conflict == "replace", *content)
            if changed is not None:
                return Enqueued(task_of(changed), created=False)
            # It is PENDING no longer: its key may be free now, or it holds it and cannot be changed.
            now = (await self.get_many([standing.id])).get(standing.id)
            if now is None or not _holds_unchanged(now.status, row["unique_scope"]):
                return None
            standing = now
        return Enqueued(standing, created=row["by"] == "id")

    # claim

    async def lanes(self) -> list[Lane]:
        """Every lane with PENDING tasks; costs one index probe each."""
        return [Lane(*row) for row in await self.db.fetch(self._sql("lanes"))]

    async def claim(
        self,
        worker: UUID,
        types: Sequence[str],
        most: int,
        lanes: Sequence[Watermark],
        until: tuple[datetime, UUID] | None = None,
    ) -> list[Claim]:
        """Claim at most `most` ready tasks, lane by lane in the given order, above each watermark (and not above `until`)."""
        columns = spread(lanes, "queue", "priority", "run_at", "id", "room")
        args = (worker, types, most, *columns, random_uuids(most))
        if until is None:
            rows = await self.db.fetch(self._sql("claim"), *args)
        else:
            # As a further condition, since for each claim of each worker it would cost a twelfth of the statement.
            bounded = self._sql("claim").replace(_DUE, f"{_DUE} AND (run_at, id) <= ($10::timestamptz, $11::uuid)")
            rows = await self.db.fetch(bounded, *args, *until)
        return [Claim(*row) for row in rows]

    async def slice(self, types: Sequence[str], lane: Watermark, most: int) -> Slice | None:
        """Look at the next `most` ready tasks above the watermark of a lane, without claiming any; None: there are none."""
        mark = (lane.queue, lane.priority, lane.run_at, lane.id)
        row = await self.db.fetchrow(self._sql("slice"), *mark, types, most)
        return Slice(*row) if row else None

    # settle

    async def settle(self, batch: Sequence[Settlement]) -> dict[UUID, State]:
        """Write settlements; answers lease -> new state of those accepted. A lease that is missing was stale."""
        plain = [s for s in batch if s.event is Event.COMPLETED and _says_nothing(s)]
        if not plain:
            return await self._settle(batch)
        answers = await self._complete(plain)
        if len(plain) < len(batch):
            done = {s.lease for s in plain}
            answers |= await self._settle([s for s in batch if s.lease not in done])
        return answers

    async def _complete(self, batch: Sequence[Settlement]) -> dict[UUID, State]:
        ids, leases, results = spread(batch, "id", "lease", "result")
        row = await self.db.fetchrow(self._sql("complete"), ids, leases, results)
        assert row is not None
        accepted = leases if row[0] == len(batch) else row[1] or ()
        return dict.fromkeys(accepted, State.COMPLETED)

    async def _settle(self, batch: Sequence[Settlement]) -> dict[UUID, State]:
        columns = spread(
            batch,
            "id",
            "lease",
            "event",
            "delay",
            "failed",
            "result",
            "reason",
            "last_error",
            "error",
            "logs",
            "fingerprint",
            "crashed",
            "progress",
        )
        return {row[0]: State(row[1]) for row in await self.db.fetch(self._sql("settle"), *columns)}

    async def settled(self, batch: Sequence[Settlement]) -> set[UUID]:
        """The leases of `batch` that have settled already; asked after a settlement whose reply was lost."""
        return {row[0] for row in await self.db.fetch(self._sql("settled"), *spread(batch, "id", "lease", "event"))}

    async def reject(self, worker: UUID, batch: Sequence[Settlement]) -> None:
        """Put on record that these settlements were stale."""
        ids, leases, attempts, events = spread(batch, "id", "lease", "attempt", "event")
        await self.db.execute(self._sql("reject"), ids, leases, attempts, worker, events)

    async def report(self, rows: Sequence[tuple[UUID, UUID, str | None, str | None]]) -> None:
        """Progress and log lines (JSON texts) of running attempts, as (id, lease, progress, logs)."""
        await self.db.execute(self._sql("report"), *map(list, zip(*rows, strict=True)))

    async def held(self, worker: UUID, of: Collection[UUID] | None = None) -> list[Held]:
        """The RUNNING rows of `worker`; with `of`, of these tasks only, at a cost that does not depend on what it ran before."""
        if of is None:
            return [Held(*row) for row in await self.db.fetch(self._sql("held"), worker)]
        return [Held(*row) for row in await self.db.fetch(self._sql("held_of"), worker, list(of))]

    # cancel, revive

    async def request_cancel(self, id: UUID, reason: str = "canceled by an operator", by: str = "library") -> Canceling:
        """Cancel a PENDING task, mark a RUNNING one. Raises `NotFound`."""
        row = await self.db.fetchrow(self._sql("request_cancel"), id, reason, by)
        if row is None:
            raise NotFound(f"there is no task {id}")
        return Canceling(State(row[0]), row[1], row[2])

    async def revive(
        self,
        id: UUID,
        *,
        queue: str | None = None,
        priority: int | None = None,
        payload: str | None = None,
        run_at: datetime | None = None,
        reason: str = "revived by an operator",
        by: str = "library",
    ) -> None:
        """DEAD -> PENDING, optionally changed. Raises `NotFound` or `WrongState`."""
        try:
            row = await self.db.fetchrow(self._sql("revive"), id, queue, priority, payload, run_at, reason, by)
        except asyncpg.UniqueViolationError:
            raise WrongState(State.DEAD, "another open task holds its unique key; wait for that one") from None
        if row is None:
            raise NotFound(f"there is no task {id}")
        if row["queue"] is None:
            raise WrongState(row["found_status"], "only DEAD tasks can be revived")

    # reap, expire, prune

    async def reap(
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
        """Take back at most `most` tasks of a lost worker (`beat_seq` as witnessed) or a crashed one (None).

        `claimed_before`: seconds since its claim that a task must count. `culprits`: leases to blame; None: all.
        """
        args = (worker, beat_seq, claimed_before, most, reason, base, cap, culprits)
        return [Reaped(*row) for row in await self.db.fetch(self._sql("reap"), *args)]

    async def expire(self, most: int = 500) -> int:
        """PENDING tasks past `expires_at` become DEAD; answers how many, at most `most`."""
        return len(await self.db.fetch(self._sql("expire"), most))

    async def prune(self, after: UUID, keep: float, keep_dead: float, most: int = 1_000) -> Pruned:
        """Look at `most` tasks with ids above `after`; delete final ones older than `keep` (DEAD: `keep_dead`) seconds."""
        row = await self.db.fetchrow(self._sql("prune"), after, keep, keep_dead, most)
        assert row is not None
        return Pruned(*row)

    async def prune_history(
        self, task: UUID, seq: int, keep: float, most: int = 5_000
    ) -> tuple[int, int, tuple[UUID, int] | None]:
        """Look at `most` rows of history above (`task`, `seq`); delete those older than `keep` seconds whose task is gone.

        Answers how many went, how many were looked at, and the last of these.
        """
        row = await self.db.fetchrow(self._sql("prune_history"), task, seq, keep, most)
        assert row is not None
        return row[0], row[1], (row[2], row[3]) if row[2] is not None else None

    # read

    async def get(self, id: UUID) -> Task:
        """One task. Raises `NotFound`."""
        row = await self.db.fetchrow(self._sql("get"), id)
        if row is None:
            raise NotFound(f"there is no task {id}")
        return task_of(row)

    async def get_many(self, ids: Sequence[UUID]) -> dict[UUID, Task]:
        """Those of `ids` that exist."""
        return {row["id"]: task_of(row) for row in await self.db.fetch(self._sql("get_many"), ids)}

    async def final(self, ids: Sequence[UUID]) -> set[UUID]:
        """Those of `ids` that are final."""
        return {row[0] for row in await self.db.fetch(self._sql("final"), ids)}

    async def logs(self, id: UUID, most: int = 10_000) -> list[LogEntry]:
        """A task's history, oldest first, beginning with ENQUEUED. Raises `NotFound`."""
        task = await self.get(id)
        first = LogEntry(seq=0, generation=1, attempt=0, event="ENQUEUED", at=task.created_at, to_state=State.PENDING)
        return [first, *(LogEntry(**row) for row in await self.db.fetch(self._sql("logs"), id, most))]

    async def attempts(self, id: UUID, most: int = 10_000) -> list[Attempt]:
        """A task's executions, oldest first."""
        return [Attempt(**row) for row in await self.db.fetch(self._sql("attempts"), id, most)]

    async def facts(self, id: UUID, cap: int = 10_000) -> Facts:
        """What explains where the task stands (`domain/explain.py`), by one bounded statement. Raises `NotFound`."""
        row = await self.db.fetchrow(self._sql("explain"), id, cap)
        if row is None:
            raise NotFound(f"there is no task {id}")
        return _facts(row, cap)


def _says_nothing(s: Settlement) -> bool:
    """Whether there is nothing to keep but the event and its result."""
    return s.logs is s.progress is s.reason is s.error is s.last_error is s.fingerprint is None


def lock_order(task: NewTask) -> tuple[str, str, str]:
    """The order in which enqueues take their keys, so that those with the same keys wait for each other, not in a ring."""
    return task.type, task.unique_key or "", task.idempotency_key or ""


def newly_ready(answer: Enqueued) -> bool:
    """Whether the task was made or changed just now, and is due, and whoever sleeps is still to be told."""
    if answer.told:
        return False
    if answer.new is not None:
        return answer.run_at <= answer.created_at
    task = answer.task
    changed = answer.created or task.updated_at > task.created_at
    return changed and task.status is State.PENDING and task.run_at <= task.updated_at


async def _each(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
        await asyncio.sleep(0)  # So that it is sent before the next is made.


def _holds_unchanged(status: State, scope: str) -> bool:
    """Whether a task that is not PENDING keeps others out by its unique key."""
    return status is not State.PENDING and (scope == "period" or (scope == "open" and status is State.RUNNING))


def rare_fields(task: NewTask) -> str | None:
    """The fields that few tasks have, as one JSON text; None where there are none, which costs next to nothing."""
    if not (
        task.timeout
        or task.expires_at
        or task.tags
        or task.unique_key
        or task.retention is not None
        or task.concurrency_key
        or task.traceparent
    ):
        return None
    timed = not isinstance(task.unique_for, str)
    fields = {
        "timeout": task.timeout,
        "expires_at": task.expires_at,
        "tags": task.tags,
        "unique_key": task.unique_key,
        "unique_scope": task.unique_key and ("period" if timed else task.unique_for),
        "unique_seconds": task.unique_for if timed else None,
        "retention": task.retention,
        "concurrency_key": task.concurrency_key,
        "traceparent": task.traceparent,
    }
    return msgspec.json.encode(fields).decode()


def _facts(row: asyncpg.Record, cap: int) -> Facts:
    values = {field: row[field] for field in Facts.__struct_fields__ if field in row}
    values["status"] = State(values["status"])
    values["ahead_capped"] = row["ahead"] >= cap
    values["worker"] = _runner(row, row["locked_by"], "")
    values["last_knowing"] = None if row["knowing"] else _runner(row, row["last_id"], "last_")
    return Facts(**values)


def _runner(row: asyncpg.Record, id: UUID | None, prefix: str) -> Runner | None:
    beat_at = row[f"{prefix}beat_at"]
    if id is None or beat_at is None:
        return None
    host, pid, state = (row[prefix + name] for name in ("host", "pid", "state"))
    age = (row["now"] - beat_at).total_seconds()
    return Runner(id=id, host=host, pid=pid, state=state, beat_age=max(0.0, age), beat_at=beat_at)


_TASK_FIELDS = Task.__struct_fields__


def task_of(row: asyncpg.Record) -> Task:
    """A `Task` of a row that holds (at least) the columns of `tasks`."""
    values = {field: row[field] for field in _TASK_FIELDS}
    values["status"] = State(values["status"])
    values["tags"] = tuple(values["tags"] or ())
    return Task(**values)


def tasks_of(rows: Iterable[asyncpg.Record]) -> list[Task]:
    return [task_of(row) for row in rows]
