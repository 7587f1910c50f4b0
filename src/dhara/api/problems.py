"""From an exception to an answer: RFC 9457 problem+json with a stable code. Bad input never becomes a 5xx.

`PROBLEMS` is the one table of codes; OpenAPI and the docs are made from it. Anything unforeseen is a 500 without
details: those are in the log, under the same request id.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import asyncpg
import msgspec
from msgspec import Struct

from dhara.api.exchange import Reply
from dhara.errors import (
    ConfigError,
    DharaError,
    IdempotencyConflict,
    InvalidBatch,
    InvalidTask,
    NotFound,
    QueueFull,
    SchemaError,
    Unavailable,
    WrongState,
)
from dhara.store.pool import is_transient

log = logging.getLogger(__name__)

PROBLEMS: dict[str, tuple[int, str]] = {
    "invalid_json": (400, "The body is not strict JSON"),
    "bad_request": (400, "The request is malformed"),
    "unauthorized": (401, "An API key is needed"),
    "forbidden": (403, "The API key does not allow that"),
    "cross_origin": (403, "Requests from other origins are refused"),
    "not_found": (404, "There is no such thing"),
    "method_not_allowed": (405, "The method is not allowed here"),
    "request_timeout": (408, "The request took too long to arrive"),
    "wrong_state": (409, "The task's state does not allow that"),
    "idempotency_conflict": (409, "The idempotency key belongs to another payload"),
    "schedule_exists": (409, "There is a schedule of that name"),
    "body_too_large": (413, "The body is too large"),
    "payload_too_large": (413, "The payload is too large"),
    "batch_too_large": (413, "The batch is larger than its queue's limit; nothing was enqueued"),
    "url_too_long": (414, "The URL is too long"),
    "unsupported_media_type": (415, "The body must be application/json, not compressed"),
    "misdirected_host": (421, "The server does not answer for this host"),
    "invalid_task": (422, "A field of the task is wrong"),
    "invalid_batch": (422, "A task of the batch is wrong; nothing was enqueued"),
    "invalid_string": (422, "A text cannot be stored"),
    "invalid_queue": (422, "A setting of the queue is wrong"),
    "invalid_query": (422, "A query parameter is wrong"),
    "invalid_key": (422, "A field of the API key is wrong"),
    "queue_full": (429, "The queue holds as many tasks as it takes; try again later"),
    "rate_limited": (429, "Too many requests; slow down"),
    "headers_too_large": (431, "The headers are too large"),
    "internal": (500, "Something went wrong inside; the log has the details"),
    "unavailable": (503, "The database does not answer; try again"),
    "overloaded": (503, "Too much is waiting; try again"),
    "schema_error": (503, "The database's schema does not fit this version"),
}

# When there may be room in a full queue.
ROOM_SECONDS = 2


class FieldProblem(Struct, frozen=True):
    """What is wrong with one field."""

    field: str
    message: str


class Problem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The body of every refusal (RFC 9457). `state`, `index` and `task_id` come with the codes that have them."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[FieldProblem] = msgspec.field(default_factory=list)
    state: str | None = None
    index: int | None = None
    task_id: str | None = None


class Refused(DharaError):
    """A request that is answered by a problem. `extra` are further members of `Problem`."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Sequence[tuple[str, str]] = (),
        headers: Sequence[tuple[bytes, bytes]] = (),
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.errors = errors
        self.headers = headers
        self.extra = extra

    @property
    def status(self) -> int:
        return PROBLEMS[self.code][0]


def busy(code: str, detail: str, seconds: int = 1) -> Refused:
    """A 429 or 503 that says when to come again."""
    return Refused(code, detail, headers=((b"retry-after", str(seconds).encode()),))


def refusal(error: BaseException, request_id: str = "") -> Refused:
    """What to answer to `error`; logs what is the server's own fault."""
    match error:
        case Refused():
            return error
        case InvalidBatch():
            return Refused("invalid_batch", str(error)[:2_000], errors=error.problems, index=error.index)
        case InvalidTask():
            code = error.code if error.code in PROBLEMS else "invalid_task"
            return Refused(code, str(error)[:2_000], errors=error.problems)
        case IdempotencyConflict():
            field = "idempotency_key" if error.index is None else f"[{error.index}].idempotency_key"
            errors = ((field, "belongs to a task with another payload"),)
            return Refused(
                "idempotency_conflict",
                str(error),
                errors=errors,
                index=error.index,
                task_id=str(error.existing),
            )
        case QueueFull(never=True):
            return Refused("batch_too_large", str(error))
        case QueueFull():
            return busy("queue_full", str(error), ROOM_SECONDS)
        case NotFound():
            return not_found()
        case WrongState():
            return Refused("wrong_state", str(error), state=error.state)
    return _own_fault(error, request_id)


def not_found() -> Refused:
    """The same for what does not exist, what is malformed and what is not for this caller."""
    return Refused("not_found", "there is nothing at this address")


def _own_fault(error: BaseException, request_id: str) -> Refused:
    if isinstance(error, SchemaError | asyncpg.UndefinedTableError | asyncpg.UndefinedColumnError):
        log.error("the schema does not fit (request %s): %s", request_id, error)
        return busy("schema_error", "the database's schema does not fit this version; run `dhara migrate up`", 5)
    if isinstance(error, Unavailable | ConfigError) or is_transient(error):
        log.warning("the database is unavailable (request %s): %s: %s", request_id, type(error).__name__, error)
        return busy("unavailable", "the database does not answer or takes no writes; try again")
    if isinstance(error, asyncpg.DataError) or (
        isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError)
    ):
        # Ours to have caught earlier, but the input's fault all the same.
        log.error("the database refused a value (request %s): %s", request_id, error)
        return Refused("invalid_task", "a value cannot be stored by the database")
    log.error("request %s failed", request_id, exc_info=error)
    return Refused("internal", f"something went wrong inside; the log has the details under request {request_id}")


def reply(refused: Refused, request_id: str) -> Reply:
    """The answer that says so."""
    status, title = PROBLEMS[refused.code]
    problem = Problem(
        type=f"urn:dhara:problem:{refused.code}",
        title=title,
        status=status,
        detail=_plain(refused.detail),
        code=refused.code,
        request_id=request_id,
        errors=[FieldProblem(_plain(field)[:200], _plain(message)) for field, message in refused.errors[:100]],
        **refused.extra,
    )
    return Reply(status, msgspec.json.encode(problem), b"application/problem+json", tuple(refused.headers))


def _plain(text: str) -> str:
    """`text` as UTF-8 can hold it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
