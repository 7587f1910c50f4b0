"""Rows for tests: the state asked for implies the rest.

Tasks come to their states by the store's own statements, so that their history and the counters are those of a real
task. Whatever must be old is moved into the past afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg

from dhara.domain.lifecycle import FINAL, Event, State
from dhara.domain.settle import Settlement
from dhara.domain.task import Claim, NewTask, Task
from dhara.store.ids import new_id
from dhara.store.pool import Executor
from dhara.store.tasks import BEGINNING, ZERO, Tasks, Watermark
from dhara.store.workers import NewWorker, Workers

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

FOREVER = datetime(9999, 1, 1, tzinfo=UTC)


async def make_worker(
    db: Executor,
    *,
    id: UUID | None = None,
    state: str = "live",
    beats: int = 0,
    beat_age: float = 0.0,
    types: Sequence[str] = ("t",),
    queues: dict[str, int] | None = None,
    slots: int = 10,
) -> UUID:
    """A registered worker that has beaten `beats` times, the last time `beat_age` seconds ago."""
    workers = Workers(db)
    worker = id or uuid4()
    new = NewWorker(
        id=worker, pid=4711, host="host", version="1.0", types=list(types), queues=queues or {"*": slots}, slots=slots
    )
    await workers.register(new)
    for _ in range(beats):
        await workers.beat([worker], [0])
    if state == "draining":
        await workers.drain(worker)
    elif state != "live":
        await workers.stop(worker, state)
    if beat_age:
        await db.execute(
            "UPDATE dhara.workers SET beat_at = beat_at - $2 * interval '1 second',"
            " started_at = started_at - $2 * interval '1 second', stopped_at = stopped_at - $2 * interval '1 second'"
            " WHERE id = $1",
            worker,
            beat_age,
        )
    return worker


def new_task(type: str = "t", **fields: Any) -> NewTask:
    """A `NewTask` with an id of its own."""
    values: dict[str, Any] = {"id": new_id(), "type": type} | fields
    return NewTask(**values)


async def make_task(
    db: Executor,
    state: State | str = State.PENDING,
    *,
    worker: UUID | None = None,
    lease_expired: bool = False,
    cancel_requested: bool = False,
    failures: int = 0,
    crashes: int = 0,
    snoozes: int = 0,
    generation: int = 1,
    reason: str | None = None,
    fingerprint: str | None = None,
    result: str | None = None,
    age: float = 0.0,
    due_in: float | None = None,
    expires_in: float | None = None,
    **fields: Any,
) -> Task:
    """A task in `state`, with everything that brings it there; `fields` are those of `NewTask`.

    RUNNING without `worker` gets one of its own; `lease_expired` makes that one silent for an hour. `failures`, of which
    `crashes` were crashes, and `snoozes` are real attempts of the last generation. `age`: seconds that all of it lies
    back; `due_in`: seconds until `run_at`, negative for the past; `expires_in` likewise for `expires_at`.
    """
    tasks = Tasks(db)
    new = new_task(**fields)
    await tasks.enqueue([new])
    for _ in range(generation - 1):
        await _end(tasks, await claim(db, new.id), Event.DEAD, failed=1, reason="permanent")
        await tasks.revive(new.id)
    for n in range(failures):
        event = Event.REAPED if n < crashes else Event.RETRIED
        await _end(tasks, await claim(db, new.id), event, failed=1, last_error="boom")
    for _ in range(snoozes):
        await _end(tasks, await claim(db, new.id), Event.SNOOZED)
    if crashes:
        await db.execute("UPDATE dhara.tasks SET crashes = $2 WHERE id = $1", new.id, crashes)
    state = State(state)
    if state is not State.PENDING:
        if worker is None:
            worker = await make_worker(db, beat_age=3600 if lease_expired else 0, types=[new.type])
        if lease_expired:
            age = max(age, 3600)
        held = await claim(db, new.id, worker)
        if cancel_requested:
            await tasks.request_cancel(new.id)
        if state in FINAL:
            event, failed = Event(state), int(state is State.DEAD)
            text = (reason or "exhausted") if failed else reason
            mark = (fingerprint or "fp") if failed else None
            kept = (result or "null") if state is State.COMPLETED else None
            await _end(tasks, held, event, failed=failed, reason=text, fingerprint=mark, result=kept)
    await _move_in_time(db, new.id, age, due_in, expires_in)
    return await tasks.get(new.id)


async def claim(db: Executor, id: UUID, worker: UUID | None = None) -> Claim:
    """Claim just this PENDING task, also before it is due, by the real statement."""
    task = await Tasks(db).get(id)
    if task.run_at > task.updated_at:
        await db.execute("UPDATE dhara.tasks SET run_at = clock_timestamp() WHERE id = $1", id)
        task = await Tasks(db).get(id)
    # Just below this task, so that it comes first.
    below = Watermark(task.queue, task.priority, task.run_at, UUID(int=id.int - 1), 1)
    claims = await Tasks(db).claim(worker or uuid4(), [task.type], 1, [below])
    assert [c.id for c in claims] == [id], f"{task} cannot be claimed"
    return claims[0]


async def _end(tasks: Tasks, held: Claim, event: Event, **fields: Any) -> None:
    accepted = await tasks.settle([settlement(held, event, **fields)])
    assert held.lease in accepted


async def _move_in_time(db: Executor, id: UUID, age: float, due_in: float | None, expires_in: float | None) -> None:
    if age:
        columns = ("run_at", "created_at", "updated_at", "started_at", "completed_at", "cancel_requested_at")
        moved = ", ".join(f"{column} = {column} - $2 * interval '1 second'" for column in columns)
        await db.execute(f"UPDATE dhara.tasks SET {moved} WHERE id = $1", id, float(age))
        await db.execute(
            "UPDATE dhara.task_history SET at = at - $2 * interval '1 second',"
            " claimed_at = claimed_at - $2 * interval '1 second' WHERE task_id = $1",
            id,
            float(age),
        )
    for column, seconds in (("run_at", due_in), ("expires_at", expires_in)):
        if seconds is not None:
            query = f"UPDATE dhara.tasks SET {column} = clock_timestamp() + $2 * interval '1 second' WHERE id = $1"
            await db.execute(query, id, float(seconds))


def settlement(held: Task | Claim, event: Event | str, **fields: Any) -> Settlement:
    """The settlement of a RUNNING task by its own lease (or by another one: `lease=`)."""
    attempt = held.attempt if isinstance(held, Claim) else held.attempts
    lease = fields.pop("lease", held.lease)
    return Settlement(held.id, lease, attempt, Event(event), **fields)


def lane(queue: str = "default", priority: int = 0, room: int = 1_000) -> Watermark:
    """A lane from its very beginning."""
    return Watermark(queue, priority, BEGINNING, ZERO, room)


async def row(db: Executor, id: UUID) -> dict[str, Any]:
    """The whole row of a task, as it stands in the table."""
    found = await db.fetchrow("SELECT * FROM dhara.tasks WHERE id = $1", id)
    assert found is not None
    return dict(found)


async def history(db: Executor, id: UUID) -> list[dict[str, Any]]:
    """The rows of `task_history` of a task, oldest first."""
    rows = await db.fetch("SELECT * FROM dhara.task_history WHERE task_id = $1 ORDER BY seq", id)
    return [dict(found) for found in rows]


async def flows(db: Executor) -> dict[tuple[str, str, str | None, str | None], int]:
    """The counters: (queue, event, from_state, to_state) -> how many; zero sums are left out."""
    query = (
        "SELECT queue, event, from_state, to_state, sum(n)::bigint FROM dhara.counters"
        " GROUP BY queue, event, from_state, to_state HAVING sum(n) <> 0"
    )
    return {(r[0], r[1], r[2], r[3]): r[4] for r in await db.fetch(query)}


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The columns of `after` that differ from `before`."""
    return {key: value for key, value in after.items() if before[key] != value}


def added(
    before: dict[tuple[str, str, str | None, str | None], int],
    after: dict[tuple[str, str, str | None, str | None], int],
) -> dict[tuple[str, str, str | None, str | None], int]:
    """What the counters gained."""
    return {key: n - before.get(key, 0) for key, n in after.items() if n != before.get(key, 0)}


async def settle_all(db: Executor, claims: Sequence[Claim], event: Event = Event.COMPLETED) -> dict[UUID, State]:
    """Settle all these claims alike."""
    return await Tasks(db).settle([settlement(held, event) for held in claims])
