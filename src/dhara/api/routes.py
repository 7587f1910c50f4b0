"""The HTTP surface, as one table. The server's routes, its 405 answers, OpenAPI, the docs page and the tests are made from it."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from dhara.api import audit, dead, fleet, health, keys, params, reference, shapes, tasks
from dhara.api.exchange import Endpoint
from dhara.api.wire import Param
from dhara.domain.access import ADMIN, ENQUEUE, METRICS, OPERATE, READ

BASE = "/api/v1"
PROBE = "probe"

# Every route may answer these as well.
ALWAYS = (
    "internal",
    "misdirected_host",
    "unauthorized",
    "forbidden",
    "rate_limited",
    "url_too_long",
    "headers_too_large",
)
BODY = ("invalid_json", "body_too_large", "unsupported_media_type", "cross_origin")
DATABASE = ("unavailable", "schema_error")
WRITES = (*DATABASE, "cross_origin")


class Route(Struct, frozen=True, kw_only=True):
    """One method on one path. `answers`: status -> shape, or the media type of a text. `scope`: what its caller may do;
    a `probe` answers without a key. `limited`: keys for some queues only may call it, since its endpoint shows them no
    others; every other route refuses them."""

    method: str
    path: str
    endpoint: Endpoint
    summary: str
    tag: str
    answers: dict[int, Any]
    scope: str = READ
    limited: bool = False
    request: Any = None
    request_required: bool = True
    query: tuple[Param, ...] = ()
    errors: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path that it answers at."""
        return (BASE + self.path, *self.aliases)

    @property
    def problems(self) -> tuple[str, ...]:
        """The codes that it may answer with."""
        query = ("invalid_query",)
        return tuple(dict.fromkeys((*self.errors, *query, *ALWAYS)))


TABLE: tuple[Route, ...] = (
    Route(
        method="POST",
        path="/tasks",
        endpoint=tasks.create,
        summary="Enqueue a task",
        tag="tasks",
        limited=True,
        scope=ENQUEUE,
        request=shapes.NewTaskIn,
        answers={201: shapes.TaskOut, 200: shapes.TaskOut},
        errors=(
            *BODY,
            "invalid_task",
            "invalid_string",
            "payload_too_large",
            "idempotency_conflict",
            "queue_full",
            "overloaded",
            *DATABASE,
        ),
    ),
    Route(
        method="GET",
        path="/tasks",
        endpoint=tasks.listing,
        summary="List tasks, newest first",
        tag="tasks",
        limited=True,
        query=params.TASKS,
        answers={200: shapes.TaskList},
        errors=("overloaded", *DATABASE),
    ),
    Route(
        method="POST",
        path="/tasks/batch",
        endpoint=tasks.create_batch,
        summary="Enqueue up to 1,000 tasks, all or none; a body of at most 4 MiB",
        tag="tasks",
        limited=True,
        scope=ENQUEUE,
        request=shapes.BatchIn | shapes.TaskBatch,
        answers={201: list[shapes.BatchedOut]},
        errors=(*BODY, "invalid_batch", "invalid_string", "idempotency_conflict", "queue_full", *DATABASE),
    ),
    Route(
        method="GET",
        path="/tasks/{id}",
        endpoint=tasks.get,
        summary="One task, with payload and result",
        tag="tasks",
        limited=True,
        answers={200: shapes.TaskOut},
        errors=("not_found", *DATABASE),
    ),
    Route(
        method="DELETE",
        path="/tasks/{id}",
        endpoint=tasks.cancel,
        summary="Cancel a task: a PENDING one at once, a RUNNING one by asking its handler",
        tag="tasks",
        limited=True,
        scope=OPERATE,
        query=params.CANCEL,
        answers={200: shapes.TaskOut, 202: shapes.TaskOut},
        errors=("not_found", "wrong_state", *WRITES),
    ),
    Route(
        method="POST",
        path="/tasks/{id}/retry",
        endpoint=tasks.retry,
        summary="Revive a DEAD task, optionally changed",
        tag="tasks",
        limited=True,
        scope=OPERATE,
        request=shapes.RetryIn,
        request_required=False,
        answers={200: shapes.TaskOut},
        errors=(
            *BODY,
            "invalid_task",
            "invalid_string",
            "payload_too_large",
            "not_found",
            "wrong_state",
            *DATABASE,
        ),
    ),
    Route(
        method="GET",
        path="/tasks/{id}/logs",
        endpoint=tasks.logs,
        summary="A task's history, oldest first",
        tag="tasks",
        limited=True,
        answers={200: shapes.LogList},
        errors=("not_found", *DATABASE),
    ),
    Route(
        method="GET",
        path="/tasks/{id}/attempts",
        endpoint=tasks.attempts,
        summary="A task's executions, oldest first",
        tag="tasks",
        limited=True,
        answers={200: shapes.AttemptList},
        errors=("not_found", *DATABASE),
    ),
    Route(
        method="GET",
        path="/tasks/{id}/explain",
        endpoint=tasks.explain,
        summary="Why a task is not running, or what became of it",
        tag="tasks",
        answers={200: shapes.ExplainOut},
        errors=("not_found", *DATABASE),
    ),
    Route(
        method="GET",
        path="/tasks/{id}/wait",
        endpoint=tasks.wait,
        summary="Wait until a task is final (200), or until the time is over (202)",
        tag="tasks",
        limited=True,
        query=params.WAIT,
        answers={200: shapes.TaskOut, 202: shapes.TaskOut},
        errors=("not_found", "overloaded", *DATABASE),
    ),
    Route(
        method="GET",
        path="/dead-letters",
        endpoint=tasks.dead_letters,
        summary="List DEAD tasks, newest first",
        tag="tasks",
        limited=True,
        query=params.DEAD,
        answers={200: shapes.TaskList},
        errors=("overloaded", *DATABASE),
    ),
    Route(
        method="GET",
        path="/dead-letters/groups",
        endpoint=dead.groups,
        summary="DEAD tasks by the fingerprint of their failure, those seen last first",
        tag="dead-letters",
        query=params.GROUPS,
        answers={200: shapes.GroupList},
        errors=DATABASE,
    ),
    Route(
        method="POST",
        path="/dead-letters/groups/{fingerprint}/mute",
        endpoint=dead.mute,
        summary="Leave a group of failures out of alarms",
        tag="dead-letters",
        scope=OPERATE,
        answers={200: shapes.GroupOut},
        errors=("not_found", *WRITES),
    ),
    Route(
        method="POST",
        path="/dead-letters/groups/{fingerprint}/unmute",
        endpoint=dead.unmute,
        summary="Let a group of failures count again",
        tag="dead-letters",
        scope=OPERATE,
        answers={200: shapes.GroupOut},
        errors=("not_found", *WRITES),
    ),
    Route(
        method="POST",
        path="/dead-letters/retry",
        endpoint=dead.retry,
        summary="Revive DEAD tasks in bulk; with canary a few first, the rest in waves, unless too many fail again",
        tag="dead-letters",
        scope=OPERATE,
        query=params.REVIVE,
        answers={200: shapes.BulkOut, 202: shapes.BulkOut},
        errors=WRITES,
    ),
    Route(
        method="POST",
        path="/dead-letters/purge",
        endpoint=dead.purge,
        summary="Delete DEAD tasks in bulk",
        tag="dead-letters",
        scope=OPERATE,
        query=params.PURGE,
        answers={200: shapes.BulkOut, 202: shapes.BulkOut},
        errors=WRITES,
    ),
    Route(
        method="POST",
        path="/tasks/cancel",
        endpoint=dead.cancel,
        summary="Cancel tasks in bulk: PENDING ones at once, RUNNING ones by asking their handlers",
        tag="tasks",
        scope=OPERATE,
        query=params.STOP,
        answers={200: shapes.BulkOut, 202: shapes.BulkOut},
        errors=WRITES,
    ),
    Route(
        method="GET",
        path="/operations",
        endpoint=dead.operations,
        summary="Bulk operations, newest first",
        tag="operations",
        query=params.OPERATIONS,
        answers={200: shapes.OperationList},
        errors=DATABASE,
    ),
    Route(
        method="GET",
        path="/operations/{id}",
        endpoint=dead.operation,
        summary="One bulk operation and how far it has come",
        tag="operations",
        answers={200: shapes.OperationOut},
        errors=("not_found", *DATABASE),
    ),
    Route(
        method="POST",
        path="/operations/{id}/stop",
        endpoint=dead.stop,
        summary="Stop a bulk operation; what it has done stays done",
        tag="operations",
        scope=OPERATE,
        answers={200: shapes.OperationOut},
        errors=("not_found", *WRITES),
    ),
    Route(
        method="GET",
        path="/queues",
        endpoint=fleet.queues,
        summary="Every queue with its figures",
        tag="queues",
        limited=True,
        answers={200: shapes.QueueList},
        errors=DATABASE,
    ),
    Route(
        method="GET",
        path="/queues/{name}",
        endpoint=fleet.queue,
        summary="One queue with its figures",
        tag="queues",
        limited=True,
        answers={200: shapes.QueueOut},
        errors=("not_found", *DATABASE),
    ),
    Route(
        method="PATCH",
        path="/queues/{name}",
        endpoint=fleet.change,
        summary="Change a queue's settings, at once and for all workers",
        tag="queues",
        scope=OPERATE,
        request=shapes.QueueChangeIn,
        answers={200: shapes.QueueOut},
        errors=(*BODY, "invalid_queue", "invalid_string", "not_found", *DATABASE),
    ),
    Route(
        method="POST",
        path="/queues/{name}/pause",
        endpoint=fleet.pause,
        summary="Stop claiming from a queue; what runs goes on",
        tag="queues",
        limited=True,
        scope=OPERATE,
        answers={200: shapes.QueueOut},
        errors=("not_found", *WRITES),
    ),
    Route(
        method="POST",
        path="/queues/{name}/resume",
        endpoint=fleet.resume,
        summary="Start claiming from a queue again",
        tag="queues",
        limited=True,
        scope=OPERATE,
        answers={200: shapes.QueueOut},
        errors=("not_found", *WRITES),
    ),
    Route(
        method="GET",
        path="/workers",
        endpoint=fleet.workers,
        summary="Live and lately lost workers, with what they run",
        tag="fleet",
        answers={200: shapes.WorkerList},
        errors=DATABASE,
    ),
    Route(
        method="GET",
        path="/stats",
        endpoint=fleet.stats,
        summary="Figures for a dashboard, at most a second old",
        tag="fleet",
        answers={200: shapes.StatsOut},
        errors=DATABASE,
    ),
    Route(
        method="GET",
        path="/audit",
        endpoint=audit.listing,
        summary="Who did what, newest first",
        tag="fleet",
        query=params.AUDIT,
        answers={200: shapes.ActionList},
        errors=DATABASE,
    ),
    Route(
        method="GET",
        path="/keys",
        endpoint=keys.listing,
        summary="Every API key, the newest first; expired and revoked ones too",
        tag="keys",
        scope=ADMIN,
        answers={200: shapes.KeyList},
        errors=DATABASE,
    ),
    Route(
        method="POST",
        path="/keys",
        endpoint=keys.create,
        summary="Make an API key; its text is in this answer and nowhere else",
        tag="keys",
        scope=ADMIN,
        request=shapes.NewKeyIn,
        answers={201: shapes.MadeKeyOut},
        errors=(*BODY, "invalid_key", "invalid_string", *DATABASE),
    ),
    Route(
        method="POST",
        path="/keys/{key}/rotate",
        endpoint=keys.rotate,
        summary="Make an API key in place of another, which stays valid for a while",
        tag="keys",
        scope=ADMIN,
        query=params.ROTATE,
        answers={201: shapes.MadeKeyOut},
        errors=("not_found", *WRITES),
    ),
    Route(
        method="DELETE",
        path="/keys/{key}",
        endpoint=keys.revoke,
        summary="End an API key; every server knows it within about a second",
        tag="keys",
        scope=ADMIN,
        answers={200: shapes.KeyOut},
        errors=("not_found", *WRITES),
    ),
    Route(
        method="GET",
        path="/livez",
        endpoint=health.livez,
        summary="Is the process alive?",
        tag="health",
        limited=True,
        scope=PROBE,
        answers={200: shapes.HealthOut},
        aliases=("/livez",),
    ),
    Route(
        method="GET",
        path="/readyz",
        endpoint=health.readyz,
        summary="Can it serve? Database, schema, workers",
        tag="health",
        limited=True,
        scope=PROBE,
        answers={200: shapes.HealthOut, 503: shapes.HealthOut},
        aliases=("/readyz", BASE + "/health", "/health", "/healthz"),
    ),
    Route(
        method="GET",
        path="/metrics",
        endpoint=fleet.metrics,
        summary="Metrics of the whole fleet, Prometheus text format",
        tag="health",
        scope=METRICS,
        answers={200: "text/plain"},
        aliases=("/metrics",),
    ),
    Route(
        method="GET",
        path="/openapi.json",
        endpoint=reference.openapi,
        summary="This API, as OpenAPI 3.1",
        tag="docs",
        limited=True,
        answers={200: dict[str, Any]},
        aliases=("/openapi.json",),
    ),
    Route(
        method="GET",
        path="/docs",
        endpoint=reference.docs,
        summary="A page to read and try it",
        tag="docs",
        limited=True,
        answers={200: "text/html"},
        aliases=("/docs",),
    ),
    Route(
        method="GET",
        path="/docs/{file}",
        endpoint=reference.static,
        summary="What that page needs",
        tag="docs",
        limited=True,
        answers={200: "*/*"},
        errors=("not_found",),
        aliases=("/docs/{file}",),
    ),
)
