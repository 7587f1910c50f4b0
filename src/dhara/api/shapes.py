"""The shapes of answers and requests: what clients read and write, and what OpenAPI says.

Absent optional values are left out. `Any` stands for JSON that passes through as bytes: payloads, results, errors and
progress are given back exactly as they came.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from operator import attrgetter
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from msgspec import Meta, Raw, Struct

from dhara.domain import limits, schedule
from dhara.domain.access import LEAST_RATE, MOST_PATTERNS, MOST_RATE, QUEUE_PATTERN, SCOPES, ApiKey
from dhara.domain.explain import Reason
from dhara.domain.forecast import Forecast
from dhara.domain.lifecycle import State
from dhara.domain.masking import Mask
from dhara.domain.task import Attempt, Enqueued, LogEntry, NewTask, Task
from dhara.store.audit import Action
from dhara.store.failures import Group
from dhara.store.keys import MadeKey
from dhara.store.operations import Operation
from dhara.store.queues import Queue
from dhara.store.schedules import Fire, Schedule
from dhara.store.stats import Sample
from dhara.store.workers import RunningTask, WorkerRow

Name = Annotated[str, Meta(pattern=f"^{limits.NAME_PATTERN}$", description=limits.NAME_HINT)]
Key = Annotated[str, Meta(min_length=1, max_length=limits.IDEMPOTENCY_KEY_LENGTH)]
Priority = Annotated[int, Meta(ge=limits.PRIORITY[0], le=limits.PRIORITY[1], description="Higher first.")]
Json = Annotated[Any, Meta(description=f"Any JSON, at most {limits.PAYLOAD_BYTES // 1024} KiB, kept byte for byte.")]
# As its own name the type checker could not see what is in it.
KeyScope: Any = Literal[tuple(SCOPES)]
Moment = Annotated[datetime, Meta(tz=True)]
# These shapes only describe what validation accepts; they are never decoded into, so that absence needs no type.
_ABSENT: Any = msgspec.UNSET


class NewTaskIn(Struct, kw_only=True, forbid_unknown_fields=True):
    """A task to enqueue."""

    type: Name
    payload: Json = {}
    queue: Name = "default"
    priority: Priority = 0
    max_retries: Annotated[int, Meta(ge=limits.MAX_RETRIES[0], le=limits.MAX_RETRIES[1])] = 5
    run_at: Annotated[datetime, Meta(tz=True, description="Not before; excludes delay. At most 365 days ahead.")] = (
        _ABSENT
    )
    delay: Annotated[
        float, Meta(ge=limits.DELAY_SECONDS[0], le=limits.DELAY_SECONDS[1], description="Seconds from now.")
    ] = _ABSENT
    idempotency_key: Key = _ABSENT
    timeout: Annotated[
        float,
        Meta(
            ge=limits.TIMEOUT_SECONDS[0],
            le=limits.TIMEOUT_SECONDS[1],
            description="Seconds an attempt may take.",
        ),
    ] = _ABSENT
    expires_at: Annotated[datetime, Meta(tz=True, description="If it has not started by then, it becomes DEAD.")] = (
        _ABSENT
    )
    tags: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=limits.TAG_LENGTH)]], Meta(max_length=limits.TAGS)
    ] = _ABSENT
    unique_key: Key = _ABSENT
    unique_for: Annotated[
        str | float,
        Meta(description="How long unique_key keeps others of its type out: pending, open (default), or seconds."),
    ] = _ABSENT
    on_conflict: Annotated[
        Literal["keep", "replace", "reschedule"],
        Meta(description="What becomes of the PENDING task that has the unique_key; keep (default) answers it."),
    ] = _ABSENT
    retention: Annotated[
        float,
        Meta(
            ge=limits.RETENTION_SECONDS[0],
            le=limits.RETENTION_SECONDS[1],
            description="Seconds that the task is kept once it is final.",
        ),
    ] = _ABSENT
    concurrency_key: Key = _ABSENT
    traceparent: Annotated[str, Meta(pattern=f"^{limits.TRACEPARENT.pattern}$")] = _ABSENT


TaskBatch = Annotated[list[NewTaskIn], Meta(min_length=limits.BATCH[0], max_length=limits.BATCH[1])]


class BatchIn(Struct, forbid_unknown_fields=True):
    """Tasks to enqueue, all or none."""

    tasks: TaskBatch


class RetryIn(Struct, kw_only=True, forbid_unknown_fields=True):
    """What to change of a DEAD task that is revived."""

    queue: Name = _ABSENT
    priority: Priority = _ABSENT
    payload: Json = _ABSENT
    run_at: Moment = _ABSENT


class TaskRow(Struct, kw_only=True, omit_defaults=True, frozen=True):
    """A task as lists show it: without payload and result."""

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
    run_at: Moment
    created_at: Moment
    updated_at: Moment
    started_at: Moment | None = None
    completed_at: Moment | None = None
    cancel_requested_at: Moment | None = None
    expires_at: Moment | None = None
    timeout: float | None = None
    idempotency_key: str | None = None
    unique_key: str | None = None
    retention: float | None = None
    concurrency_key: str | None = None
    traceparent: str | None = None
    locked_by: Annotated[UUID | None, Meta(description="The worker that runs it.")] = None
    reason: Annotated[str | None, Meta(description="Why it is DEAD or CANCELED.")] = None
    fingerprint: str | None = None
    last_error: str | None = None
    tags: list[str] | None = None


class TaskOut(TaskRow, kw_only=True, omit_defaults=True, frozen=True):
    """A task, whole."""

    payload: Annotated[
        Any, Meta(description="As it came, byte for byte. Absent, like result and progress, without read:payload.")
    ] = msgspec.UNSET
    result: Annotated[Any, Meta(description="What the handler returned.")] = None
    progress: Any = None


class BatchedOut(TaskOut, kw_only=True, omit_defaults=True, frozen=True):
    """A task of a batch; `created` is false where it stood already under its idempotency key."""

    created: bool


class TaskList(Struct, kw_only=True, omit_defaults=True):
    """A page of tasks, newest first. `total` is exact unless `total_is_estimate`: then about that many match.

    A page of rare matches among very many tasks may be short, even empty, and yet have a `next_cursor`.
    """

    tasks: list[TaskRow]
    limit: int
    offset: Annotated[int, Meta(ge=0)]
    total: int
    total_is_estimate: bool
    next_cursor: str | None = None


class LogOut(Struct, kw_only=True, omit_defaults=True):
    """One change of state, or a note."""

    seq: int
    event: str
    at: Moment
    generation: int
    attempt: int
    from_state: str | None = None
    to_state: str | None = None
    worker_id: UUID | None = None
    lease: UUID | None = None
    reason: str | None = None


class LogList(Struct):
    """A task's history, oldest first."""

    logs: list[LogOut]


class AttemptOut(Struct, kw_only=True, omit_defaults=True):
    """One execution; outcome and ended_at are absent while it runs."""

    attempt: int
    generation: int
    started_at: Moment
    worker_id: UUID | None = None
    lease: UUID | None = None
    ended_at: Moment | None = None
    outcome: str | None = None
    reason: str | None = None
    error: Annotated[Any, Meta(description="The exception: type, message, traceback.")] = None
    logs: Annotated[Any, Meta(description="What the handler logged.")] = None


class ReasonOut(Struct):
    """Why a task is where it is."""

    code: Annotated[str, Meta(description="Stable; the table is in the documentation.")]
    text: Annotated[str, Meta(description="A sentence for people.")]
    facts: Annotated[dict[str, Any], Meta(description="What it follows from: times, counts, workers.")]


class ExplainOut(ReasonOut, kw_only=True):
    """Why a task is not running, or what became of it: the reason that matters most, and the others."""

    id: UUID
    status: State
    also: list[ReasonOut]


class AttemptList(Struct):
    """A task's executions, oldest first."""

    attempts: list[AttemptOut]


class GroupOut(Struct, kw_only=True, omit_defaults=True):
    """DEAD tasks with one fingerprint; `sample` is the newest, and type, queue, reason and last_error are its own."""

    fingerprint: str
    count: int
    count_is_estimate: Annotated[bool, Meta(description="true: at least so many.")]
    first_at: Moment
    last_at: Moment
    trend: Annotated[list[int], Meta(description="Deaths in each of the last 24 hours, this hour first.")]
    sample: UUID
    type: str
    queue: str
    attempts: int
    muted: bool
    reason: str | None = None
    last_error: str | None = None
    muted_at: Moment | None = None
    muted_by: str | None = None


class GroupList(Struct):
    """Groups of failures, those seen last first."""

    groups: list[GroupOut]


class CanaryOut(Struct):
    """How a canary retry goes about it. `watch` is seconds, `max_failed` a share of a wave."""

    first: int
    factor: float
    most: int
    max_failed: float
    watch: float


class OperationOut(Struct, kw_only=True, omit_defaults=True):
    """A bulk operation. `done` tasks were changed, `skipped` ones could not be; `reason` says why it ended so."""

    id: UUID
    kind: Literal["retry", "purge", "cancel"]
    state: Literal["running", "stopped", "done", "failed"]
    asked_by: str
    filter: Annotated[dict[str, Any], Meta(description="Which tasks.")]
    created_at: Moment
    updated_at: Moment
    total: int
    total_is_estimate: bool
    done: int
    skipped: int
    reason: str | None = None
    finished_at: Moment | None = None
    canary: CanaryOut | None = None


class BulkOut(Struct, kw_only=True, omit_defaults=True):
    """What matched, and the operation that was begun, or (a dry run) a sample of it."""

    count: int
    count_is_estimate: Annotated[bool, Meta(description="true: at least so many.")]
    sample: list[TaskRow] | None = None
    operation: OperationOut | None = None


class OperationList(Struct):
    """Bulk operations, newest first."""

    operations: list[OperationOut]


class ScheduleIn(Struct, kw_only=True, forbid_unknown_fields=True):
    """A schedule: when (cron or every), and what it enqueues."""

    name: Name
    type: Name
    cron: Annotated[str, Meta(max_length=schedule.CRON_LENGTH, description="Five fields, or @daily and the like.")] = (
        _ABSENT
    )
    every: Annotated[float, Meta(ge=schedule.EVERY_SECONDS[0], le=schedule.EVERY_SECONDS[1])] = _ABSENT
    timezone: Annotated[str, Meta(description="An IANA zone, in which cron is meant.")] = "UTC"
    payload: Json = {}
    queue: Name = "default"
    priority: Priority = 0
    max_retries: Annotated[int, Meta(ge=limits.MAX_RETRIES[0], le=limits.MAX_RETRIES[1])] = 5
    timeout: Annotated[float, Meta(ge=limits.TIMEOUT_SECONDS[0], le=limits.TIMEOUT_SECONDS[1])] = _ABSENT
    jitter: Annotated[
        float, Meta(ge=0, le=schedule.JITTER_SECONDS[1], description="Tasks are put off by up to so many seconds.")
    ] = 0
    missed: Annotated[Literal["coalesce", "skip", "catch_up"], Meta(description="What becomes of missed fires.")] = (
        "coalesce"
    )
    overlap: Annotated[
        Literal["allow", "skip", "cancel_previous"], Meta(description="If the task before is not final yet.")
    ] = "allow"
    catch_up_most: Annotated[int, Meta(ge=schedule.CATCH_UP[0], le=schedule.CATCH_UP[1])] = 100


class ScheduleChange(Struct, kw_only=True, forbid_unknown_fields=True):
    """What to change of a schedule; absent fields stay as they are."""

    type: Name = _ABSENT
    cron: Annotated[str, Meta(max_length=schedule.CRON_LENGTH)] = _ABSENT
    every: Annotated[float, Meta(ge=schedule.EVERY_SECONDS[0], le=schedule.EVERY_SECONDS[1])] = _ABSENT
    timezone: str = _ABSENT
    payload: Json = _ABSENT
    queue: Name = _ABSENT
    priority: Priority = _ABSENT
    max_retries: Annotated[int, Meta(ge=limits.MAX_RETRIES[0], le=limits.MAX_RETRIES[1])] = _ABSENT
    timeout: Annotated[float, Meta(ge=limits.TIMEOUT_SECONDS[0], le=limits.TIMEOUT_SECONDS[1])] = _ABSENT
    jitter: Annotated[float, Meta(ge=0, le=schedule.JITTER_SECONDS[1])] = _ABSENT
    missed: Literal["coalesce", "skip", "catch_up"] = _ABSENT
    overlap: Literal["allow", "skip", "cancel_previous"] = _ABSENT
    catch_up_most: Annotated[int, Meta(ge=schedule.CATCH_UP[0], le=schedule.CATCH_UP[1])] = _ABSENT


class FireOut(Struct, kw_only=True, omit_defaults=True):
    """A fire time that has been dealt with; `status` is its task's."""

    fire_at: Moment
    fired_at: Moment
    outcome: Annotated[str, Meta(description="enqueued, overlap, missed or by_hand")]
    task_id: UUID | None = None
    status: str | None = None


class ScheduleOut(Struct, kw_only=True, omit_defaults=True):
    """A schedule as it stands. `upcoming` and `fires` come where one schedule is asked for."""

    name: str
    type: str
    timezone: str
    queue: str
    priority: int
    max_retries: int
    jitter: float
    missed: str
    overlap: str
    catch_up_most: int
    source: Annotated[Literal["code", "operator"], Meta(description="Declared in code, or made by an operator.")]
    created_at: Moment
    updated_at: Moment
    paused: bool
    payload: Annotated[Any, Meta(description="Absent for who may not see payloads.")] = None
    cron: str | None = None
    every: float | None = None
    timeout: float | None = None
    next_at: Moment | None = None
    last_at: Moment | None = None
    last_task: UUID | None = None
    paused_at: Moment | None = None
    paused_by: str | None = None
    upcoming: list[Moment] | None = None
    fires: list[FireOut] | None = None


class ScheduleList(Struct):
    """Schedules by name."""

    schedules: list[ScheduleOut]


class RunOut(Struct):
    """The task of a fire by hand."""

    task_id: UUID


class ActionOut(Struct, kw_only=True, omit_defaults=True):
    """An action of an operator. `before` and `after` are what it changed."""

    seq: int
    at: Moment
    actor: str
    action: str
    target: str
    before: Any = None
    after: Any = None


class ActionList(Struct, kw_only=True, omit_defaults=True):
    """Actions, newest first; `next_before` is the `before` of the next page."""

    actions: list[ActionOut]
    next_before: int | None = None


class QueueOut(Struct, kw_only=True, omit_defaults=True):
    """A queue and its figures. Rates are per second, over the last minute; absent until two looks have been taken."""

    name: str
    depth: Annotated[int, Meta(description="All PENDING.")]
    ready: Annotated[int, Meta(description="PENDING and due; counted up to 10,000, see ready_is_estimate.")]
    ready_is_estimate: bool
    delayed: int
    running: int
    dead: int
    enqueued_total: int
    completed_total: int
    paused: bool
    oldest_ready_age: Annotated[float | None, Meta(description="Seconds.")] = None
    rate_in: float | None = None
    rate_out: float | None = None
    paused_at: Moment | None = None
    paused_by: str | None = None
    retention: Annotated[float | None, Meta(description="Seconds that its final tasks are kept.")] = None
    wait_objective: Annotated[
        float | None,
        Meta(description="Seconds that a ready task should not wait longer than; absent: as the setting says."),
    ] = None
    limit: Annotated[
        int | None, Meta(description="PENDING tasks that it takes; absent: as the server's setting says.")
    ] = None
    full: Annotated[bool, Meta(description="As many are PENDING; enqueues are refused.")] = False
    forecast: ForecastOut | None = None


class QueueChangeIn(Struct, kw_only=True, forbid_unknown_fields=True):
    """What to change of a queue; what is absent stays as it is."""

    retention: Annotated[
        Annotated[float, Meta(ge=limits.RETENTION_SECONDS[0], le=limits.RETENTION_SECONDS[1])] | None,
        Meta(
            description="Seconds that its final tasks are kept; null: as the fleet's setting says.",
            extra_json_schema={"x-null": True},
        ),
    ] = _ABSENT
    wait_objective: Annotated[
        Annotated[float, Meta(ge=limits.WAIT_OBJECTIVE_SECONDS[0], le=limits.WAIT_OBJECTIVE_SECONDS[1])] | None,
        Meta(
            description="Seconds that a ready task should not wait longer than; null: as the setting says.",
            extra_json_schema={"x-null": True},
        ),
    ] = _ABSENT
    limit: Annotated[
        Annotated[int, Meta(ge=limits.QUEUE_LIMIT[0], le=limits.QUEUE_LIMIT[1])] | None,
        Meta(
            description="PENDING tasks that it takes, whoever enqueues; null: as the server's setting says.",
            extra_json_schema={"x-null": True},
        ),
    ] = _ABSENT


class QueueList(Struct):
    """Every queue, by name."""

    queues: list[QueueOut]


class RunningOut(Struct):
    """A task that a worker runs."""

    id: UUID
    type: str
    queue: str
    attempt: int
    started_at: Moment


class WorkerOut(Struct, kw_only=True, omit_defaults=True):
    """A worker. `state` is live, draining, stopped or lost; `beat_age` is seconds."""

    id: UUID
    host: str
    pid: int
    version: str
    types: list[str]
    queues: Annotated[Any, Meta(description="Queue name -> slots; * stands for all queues.")]
    slots: int
    running: int
    state: str
    started_at: Moment
    beat_at: Moment
    beat_age: float
    tasks: list[RunningOut]
    stopped_at: Moment | None = None
    drain_requested_at: Moment | None = None
    drain_requested_by: str | None = None


class WorkerList(Struct):
    """Live and lately lost workers."""

    workers: list[WorkerOut]


class NewKeyIn(Struct, kw_only=True, forbid_unknown_fields=True):
    """An API key to make."""

    name: Annotated[str, Meta(min_length=1, max_length=100, description="Whose it is; shown to people.")]
    scopes: Annotated[list[KeyScope], Meta(min_length=1)]
    queues: Annotated[
        list[Annotated[str, Meta(pattern=f"^{QUEUE_PATTERN.pattern}$")]],
        Meta(max_length=MOST_PATTERNS, description="Queues that it may see and fill, * for any characters; none: all."),
    ] = _ABSENT
    rate: Annotated[float, Meta(ge=LEAST_RATE, le=MOST_RATE, description="Requests a second at each server.")] = _ABSENT
    expires_in: Annotated[
        float, Meta(ge=1, le=limits.RETENTION_SECONDS[1], description="Seconds that it is valid; absent: for ever.")
    ] = _ABSENT


class KeyOut(Struct, kw_only=True, omit_defaults=True, frozen=True):
    """An API key. `replaced_by` is the id of the key that a rotation made in its place."""

    id: str
    name: str
    scopes: list[str]
    valid: bool
    created_at: Moment
    queues: Annotated[list[str] | None, Meta(description="Absent: all.")] = None
    rate: Annotated[float | None, Meta(description="Requests a second; absent: as the settings say.")] = None
    created_by: str | None = None
    expires_at: Moment | None = None
    revoked_at: Moment | None = None
    revoked_by: str | None = None
    replaced_by: str | None = None
    last_used_at: Annotated[Moment | None, Meta(description="To about a minute.")] = None


class MadeKeyOut(KeyOut, kw_only=True, omit_defaults=True, frozen=True):
    """A new API key; `key` is its text, shown this once."""

    key: str


class KeyList(Struct):
    """API keys, the newest first."""

    keys: list[KeyOut]


class ForecastOut(Struct, omit_defaults=True):
    """What a backlog is coming to."""

    kind: Literal["empty", "drains", "grows", "steady", "stalled", "unknown"]
    rate: Annotated[float | None, Meta(description="Tasks a second by which it grows, shrinks or passes through.")] = (
        None
    )
    seconds: Annotated[float | None, Meta(description="Until what is due is drained.")] = None


class HistoryOut(Struct):
    """Rates minute by minute, tasks a second, oldest first; `depth` is PENDING tasks. The last one is still under way."""

    at: Annotated[list[Moment], Meta(description="The end of each span.")]
    enqueued: list[float]
    completed: list[float]
    failed: Annotated[list[float], Meta(description="Attempts that failed.")]
    dead: list[float]
    depth: list[int]


class RatesOut(Struct):
    """Tasks a second over the last minute or two."""

    enqueued: float
    completed: float
    failed: float
    dead: float


class PendingOut(Struct):
    """PENDING tasks."""

    ready: int
    delayed: int


class FleetOut(Struct):
    """All live workers. `beat_age` is the oldest last beat's age in seconds."""

    workers: int
    slots: int
    running: int
    beat_age: float


class UnroutableOut(Struct):
    """Ready tasks of a type that no live worker knows. They wait for one."""

    type: str
    queue: str
    count: int


class StatsOut(Struct):
    """Figures for a dashboard. `totals` count since the beginning."""

    by_status: dict[str, int]
    pending: PendingOut
    totals: dict[str, int]
    fleet: FleetOut
    queues: int
    unroutable: Annotated[list[UnroutableOut], Meta(description="Most first; about 10,000 ready tasks are looked at.")]
    rates: RatesOut
    history: Annotated[HistoryOut, Meta(description="The last hour; /stats/history has more, and single queues.")]


class CheckOut(Struct, omit_defaults=True):
    """One check of readiness."""

    status: Literal["ok", "failed", "none", "unknown"]
    latency_ms: float | None = None
    detail: str | None = None
    count: int | None = None


class HealthOut(Struct, omit_defaults=True, kw_only=True):
    """Whether the server lives or is ready; without a key (where keys are set) the status alone."""

    status: Literal["ok", "unavailable"]
    uptime_s: float | None = None
    checks: dict[str, CheckOut] | None = None


def raw(text: str | None) -> Raw | None:
    """JSON text that goes into an answer as it is."""
    return None if text is None else Raw(text.encode())


_OPTIONAL = (
    "expires_at",
    "timeout",
    "idempotency_key",
    "unique_key",
    "retention",
    "concurrency_key",
    "traceparent",
)
_ROW_FIELDS = tuple(field for field in TaskRow.__struct_fields__ if field not in ("locked_by", "tags"))
_row_values = attrgetter(*_ROW_FIELDS)


def _shown(task: Task) -> dict[str, Any]:
    values = dict(zip(_ROW_FIELDS, _row_values(task), strict=True))
    if task.tags:
        values["tags"] = list(task.tags)
    if task.status is State.RUNNING:
        values["locked_by"] = task.locked_by
    return values


def task_row(task: Task) -> TaskRow:
    return TaskRow(**_shown(task))


def task_out(task: Task, mask: Mask | None = None, *, hidden: bool = False) -> TaskOut:
    """`hidden`: without payload, result and progress; `mask` hides single fields of them."""
    if hidden:
        return TaskOut(**_shown(task))
    payload, result, progress = _contents(task, mask)
    return TaskOut(**_shown(task), payload=payload, result=result, progress=progress)


def enqueued_out(done: Enqueued, mask: Mask | None = None) -> TaskOut:
    """What an enqueue answers to whoever made the task."""
    if done.new is None or mask:
        return task_out(done.task, mask)
    return TaskOut(**_made(done.new, done))


def batched_out(task: Task, created: bool, mask: Mask | None = None, *, hidden: bool = False) -> BatchedOut:
    """As `task_out`."""
    if hidden:
        return BatchedOut(**_shown(task), created=created)
    payload, result, progress = _contents(task, mask)
    return BatchedOut(**_shown(task), payload=payload, result=result, progress=progress, created=created)


def _contents(task: Task, mask: Mask | None) -> tuple[Raw | None, Raw | None, Raw | None]:
    if mask:
        return raw(mask.apply(task.payload)), raw(mask.apply(task.result)), raw(mask.apply(task.progress))
    return raw(task.payload), raw(task.result), raw(task.progress)


def batch_out(done: Sequence[Enqueued], mask: Mask | None = None, *, reader: bool = True) -> list[BatchedOut]:
    """What a batch answers; not to a `reader`, without the payloads of tasks that stood already."""
    return [
        batched_out(one.task, one.created, mask, hidden=not (one.created or reader))
        if one.new is None or mask
        else BatchedOut(**_made(one.new, one), created=True)
        for one in done
    ]


def _made(new: NewTask, done: Enqueued) -> dict[str, Any]:
    """What is to be seen of a task that was made just now, at a third of the cost of a whole row."""
    values: dict[str, Any] = {
        "id": done.id,
        "type": new.type,
        "queue": new.queue,
        "status": State.PENDING,
        "priority": new.priority,
        "attempts": 0,
        "max_retries": new.max_retries,
        "failures": 0,
        "crashes": 0,
        "snoozes": 0,
        "generation": 1,
        "run_at": done.run_at,
        "created_at": done.created_at,
        "updated_at": done.created_at,
        "payload": Raw(new.payload.encode()),
    }
    if not new.plain:
        values |= {field: getattr(new, field) for field in _OPTIONAL}
        values["tags"] = list(new.tags) or None
    return values


def log_out(entry: LogEntry) -> LogOut:
    return LogOut(**{field: getattr(entry, field) for field in LogOut.__struct_fields__})


def attempt_out(attempt: Attempt) -> AttemptOut:
    values = {field: getattr(attempt, field) for field in AttemptOut.__struct_fields__}
    return AttemptOut(**values | {"error": raw(attempt.error), "logs": raw(attempt.logs)})


def explain_out(id: UUID, status: State, reasons: list[Reason]) -> ExplainOut:
    first, *rest = reasons
    also = [ReasonOut(one.code, one.text, one.facts) for one in rest]
    return ExplainOut(code=first.code, text=first.text, facts=first.facts, id=id, status=status, also=also)


def schedule_out(
    one: Schedule,
    upcoming: list[datetime] | None = None,
    fires: list[Fire] | None = None,
    *,
    mask: Mask | None = None,
    hidden: bool = False,
) -> ScheduleOut:
    """`hidden`: without its payload; `mask` hides single fields of that."""
    own = ("paused", "upcoming", "fires")
    values = {field: getattr(one, field) for field in ScheduleOut.__struct_fields__ if field not in own}
    shown = None if fires is None else [FireOut(**msgspec.structs.asdict(fire)) for fire in fires]
    payload = None if hidden else raw(mask.apply(one.payload) if mask else one.payload)
    values |= {"payload": payload, "paused": one.paused_at is not None, "upcoming": upcoming, "fires": shown}
    return ScheduleOut(**values)


def group_out(group: Group) -> GroupOut:
    values = {field: getattr(group, field) for field in GroupOut.__struct_fields__ if field != "muted"}
    return GroupOut(**values, muted=group.muted_at is not None)


def operation_out(operation: Operation) -> OperationOut:
    values = {field: getattr(operation, field) for field in OperationOut.__struct_fields__}
    wanted = {
        name: value for name, value in msgspec.structs.asdict(operation.filter).items() if value not in (None, ())
    }
    values["filter"] = {name: value for name, value in wanted.items() if value is not False and name != "veiled"}
    values["canary"] = None if operation.canary is None else CanaryOut(**msgspec.structs.asdict(operation.canary))
    return OperationOut(**values)


def action_out(action: Action) -> ActionOut:
    values = {field: getattr(action, field) for field in ActionOut.__struct_fields__}
    return ActionOut(**values | {"before": raw(action.before), "after": raw(action.after)})


def history_out(samples: list[Sample]) -> HistoryOut:
    spans = [(a, b, (b.at - a.at).total_seconds()) for a, b in pairwise(samples)]
    spans = [span for span in spans if span[2] >= 1]

    def rates(name: str) -> list[float]:
        return [round(max(0, getattr(b, name) - getattr(a, name)) / seconds, 3) for a, b, seconds in spans]

    return HistoryOut(
        at=[b.at for _, b, _ in spans],
        enqueued=rates("enqueued"),
        completed=rates("completed"),
        failed=rates("failed"),
        dead=rates("dead"),
        depth=[max(0, b.depth) for _, b, _ in spans],
    )


def rates_out(samples: list[Sample]) -> RatesOut:
    """Over the last whole minute and what has passed of this one."""
    shown = history_out([samples[-3], samples[-1]] if len(samples) > 2 else samples)
    last = {name: (getattr(shown, name) or [0.0])[-1] for name in RatesOut.__struct_fields__}
    return RatesOut(**last)


def queue_out(queue: Queue, rates: tuple[float, float] | None = None, forecast: Forecast | None = None) -> QueueOut:
    return QueueOut(
        name=queue.name,
        depth=queue.depth,
        ready=queue.ready,
        ready_is_estimate=queue.ready_capped,
        delayed=queue.delayed,
        running=queue.running,
        dead=queue.dead,
        enqueued_total=queue.enqueued,
        completed_total=queue.completed,
        paused=queue.paused_at is not None,
        oldest_ready_age=queue.oldest_ready_age,
        rate_in=rates[0] if rates else None,
        rate_out=rates[1] if rates else None,
        paused_at=queue.paused_at,
        paused_by=queue.paused_by,
        retention=queue.retention,
        wait_objective=queue.wait_objective,
        limit=queue.limit,
        full=queue.full,
        forecast=None if forecast is None else ForecastOut(forecast.kind, forecast.rate, forecast.seconds),  # type: ignore[arg-type]
    )


def _key_values(key: ApiKey) -> dict[str, Any]:
    values = {field: getattr(key, field) for field in KeyOut.__struct_fields__ if field != "valid"}
    valid = key.valid(datetime.now(UTC))
    return values | {"scopes": list(key.scopes), "queues": list(key.queues) or None, "valid": valid}


def key_out(key: ApiKey) -> KeyOut:
    return KeyOut(**_key_values(key))


def made_key_out(made: MadeKey) -> MadeKeyOut:
    return MadeKeyOut(**_key_values(made.key), key=made.text)


def worker_out(worker: WorkerRow, running: list[RunningTask]) -> WorkerOut:
    values = {field: getattr(worker, field) for field in WorkerOut.__struct_fields__ if field != "tasks"}
    tasks = [RunningOut(r.id, r.type, r.queue, r.attempt, r.started_at) for r in running if r.worker == worker.id]
    return WorkerOut(**values | {"queues": raw(worker.queues)}, tasks=tasks)
