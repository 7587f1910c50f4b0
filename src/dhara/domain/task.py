"""What a task is, at the borders of the engine: frozen structs, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from operator import attrgetter
from typing import Any
from uuid import UUID

from msgspec import Struct

from dhara.domain.lifecycle import State

EMPTY_PAYLOAD = "{}"


class NewTask(Struct, frozen=True, kw_only=True, gc=False):
    """A task to enqueue, validated. `payload` is JSON text, kept byte for byte.

    `run_at` (absolute) and `delay` (seconds) exclude each other; neither means now, by the database's clock.
    """

    id: UUID
    type: str
    payload: str = EMPTY_PAYLOAD
    queue: str = "default"
    priority: int = 0
    max_retries: int = 5
    run_at: datetime | None = None
    delay: float | None = None
    idempotency_key: str | None = None
    timeout: float | None = None
    expires_at: datetime | None = None
    tags: tuple[str, ...] = ()
    # At most one task of a type has a unique key: while PENDING ("pending"), until final ("open"), or for seconds.
    unique_key: str | None = None
    unique_for: str | float = "open"
    on_conflict: str = "keep"
    retention: float | None = None
    concurrency_key: str | None = None
    traceparent: str | None = None

    @property
    def plain(self) -> bool:
        """Due at once, without keys and rare fields: nothing can stand in its way."""
        return _may_matter(self) == _NOTHING

    @property
    def keyed(self) -> bool:
        """Another task may stand in its place."""
        return self.idempotency_key is not None or self.unique_key is not None


_may_matter = attrgetter(
    "run_at",
    "delay",
    "idempotency_key",
    "unique_key",
    "timeout",
    "expires_at",
    "tags",
    "retention",
    "concurrency_key",
    "traceparent",
)
_NOTHING = (None, None, None, None, None, None, (), None, None, None)


class Task(Struct, frozen=True, kw_only=True):
    """One row of `tasks`. `payload` and `result` are JSON text as stored; times carry a zone."""

    id: UUID
    type: str
    queue: str
    status: State
    priority: int
    attempts: int
    max_retries: int
    failures: int
    crashes: int
    snoozes: int
    generation: int
    run_at: datetime
    created_at: datetime
    updated_at: datetime
    payload: str
    started_at: datetime | None = None
    completed_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    expires_at: datetime | None = None
    timeout: float | None = None
    idempotency_key: str | None = None
    unique_key: str | None = None
    retention: float | None = None
    concurrency_key: str | None = None
    traceparent: str | None = None
    lease: UUID | None = None
    locked_by: UUID | None = None
    reason: str | None = None
    fingerprint: str | None = None
    last_error: str | None = None
    tags: tuple[str, ...] = ()
    progress: str | None = None
    result: str | None = None


class Claim(Struct, frozen=True, gc=False):
    """A claimed task as its worker holds it: the right to run one attempt, under one lease."""

    id: UUID
    lease: UUID
    type: str
    queue: str
    priority: int
    run_at: datetime
    payload: str
    attempt: int
    failures: int
    crashes: int
    snoozes: int
    generation: int
    max_retries: int
    timeout: float | None
    traceparent: str | None
    started_at: datetime


class Enqueued:
    """The answer to an enqueue: the task, and whether it was made now or stood already under its key.

    Of one that was made now, `new`, `created_at` and `run_at` say all; nearly nobody asks for more, and `task` is made then.
    `told`: the statement that made it has woken whoever slept.
    """

    __slots__ = ("_task", "created", "created_at", "id", "new", "run_at", "told")

    def __init__(self, task: Task, created: bool) -> None:
        self.id = task.id
        self.created = created
        self.new: NewTask | None = None
        self.created_at = task.created_at
        self.run_at = task.run_at
        self._task: Task | None = task
        self.told = False

    @classmethod
    def made(cls, new: NewTask, created_at: datetime, run_at: datetime, *, told: bool = False) -> Enqueued:
        """`new`, inserted just now."""
        self = cls.__new__(cls)
        self.id = new.id
        self.created = True
        self.new = new
        self.created_at = created_at
        self.run_at = run_at
        self._task = None
        self.told = told
        return self

    @property
    def queue(self) -> str:
        """The task's queue."""
        return self.task.queue if self.new is None else self.new.queue

    @property
    def task(self) -> Task:
        """The task as it was then."""
        if self._task is None:
            assert self.new is not None
            self._task = pending(self.new, self.created_at, self.run_at)
        return self._task

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Enqueued) and (self.created, self.task) == (other.created, other.task)

    def __repr__(self) -> str:
        return f"<Enqueued {self.id}{'' if self.created else ' (stood already)'}>"

    __hash__ = None  # type: ignore[assignment]


def pending(new: NewTask, created_at: datetime, run_at: datetime) -> Task:
    """The row of a task that nobody has claimed yet."""
    return Task(
        id=new.id,
        type=new.type,
        queue=new.queue,
        status=State.PENDING,
        priority=new.priority,
        attempts=0,
        max_retries=new.max_retries,
        failures=0,
        crashes=0,
        snoozes=0,
        generation=1,
        run_at=run_at,
        created_at=created_at,
        updated_at=created_at,
        payload=new.payload,
        expires_at=new.expires_at,
        timeout=new.timeout,
        idempotency_key=new.idempotency_key,
        unique_key=new.unique_key,
        retention=new.retention,
        concurrency_key=new.concurrency_key,
        traceparent=new.traceparent,
        tags=new.tags,
    )


class LogEntry(Struct, frozen=True, kw_only=True):
    """One change of a task's state, or a note; `seq` grows with time within a task. ENQUEUED has seq 0."""

    seq: int
    generation: int
    attempt: int
    event: str
    at: datetime
    from_state: str | None = None
    to_state: str | None = None
    lease: UUID | None = None
    worker_id: UUID | None = None
    reason: str | None = None


class Attempt(Struct, frozen=True, kw_only=True):
    """One execution. `outcome` (an event) and `ended_at` are absent while it runs; `error` and `logs` are JSON text."""

    generation: int
    attempt: int
    worker_id: UUID | None
    lease: UUID | None
    started_at: datetime
    ended_at: datetime | None = None
    outcome: str | None = None
    reason: str | None = None
    error: str | None = None
    logs: str | None = None


class Call(Struct, frozen=True, kw_only=True):
    """A handler's call to be enqueued, made by `handler.s(...)`: its type, payload (a JSON-able value) and the
    registry's defaults for it (queue, max_retries, ...), which the enqueue's own options override."""

    type: str
    payload: Any
    defaults: Mapping[str, Any]
