"""The exceptions of dhara.

    DharaError
    ├── ConfigError              config_error        a setting is missing or wrong; exit 78
    ├── Unavailable              unavailable         the database or server does not answer; exit 69
    │   └── QueueFull            queue_full          the queue takes no more tasks for now; names the queue
    ├── SchemaError              schema_error        the schema is missing, older, newer or damaged; exit 3
    ├── EmbeddedPostgresError    embedded_postgres   no binaries, or the private server does not start
    ├── InvalidTask              invalid_task        a field of a task is out of bounds; names the field
    │   └── InvalidBatch         invalid_batch       one task of many is; names its index
    ├── IdempotencyConflict      idempotency_conflict  same key, other payload
    ├── NotFound                 not_found           no such task, queue or worker
    ├── WrongState               wrong_state         the task's state does not allow that; names the state
    ├── LeaseLost                lease_lost          the attempt's task is someone else's now; its writes roll back
    ├── RegistryError            registry_error      a handler cannot be registered as it is
    └── TaskFailed               task_failed         `handle.result()`: the task ended DEAD or CANCELED

Each class has a stable `code`, which HTTP answers carry too, and messages that say what to do next.
"""

from __future__ import annotations

from uuid import UUID


class DharaError(Exception):
    """Base of all; catch this to catch whatever dhara raises."""

    code = "dhara_error"


class ConfigError(DharaError):
    """A setting is missing or wrong."""

    code = "config_error"


class Unavailable(DharaError):
    """The database or the server does not answer."""

    code = "unavailable"


class QueueFull(Unavailable):
    """The queue has as many PENDING tasks as it takes; nothing was enqueued. `most`: how many these are, if it is known;
    `never`: so many at once would not fit into an empty queue."""

    code = "queue_full"

    def __init__(self, queue: str, most: int | None = None, asked: int = 1) -> None:
        # A queue that takes none is closed for now; one that takes some will never take more at once.
        self.never = most is not None and 0 < most < asked
        limit = "is full" if most is None else f"takes {most:,} PENDING tasks"
        way_out = f"{asked:,} at once never fit: send fewer, or raise its limit" if self.never else "try again later"
        super().__init__(f"queue {queue} {limit}; {way_out}")
        self.queue = queue
        self.most = most


class SchemaError(DharaError):
    """The database's schema does not fit this version of dhara."""

    code = "schema_error"


class EmbeddedPostgresError(DharaError):
    """The private PostgreSQL server cannot be had."""

    code = "embedded_postgres"


class InvalidTask(DharaError, ValueError):
    """A field of a task is out of bounds. `problems` holds (field, message) pairs."""

    code = "invalid_task"

    def __init__(self, problems: list[tuple[str, str]], code: str | None = None) -> None:
        super().__init__("; ".join(f"{field}: {message}" for field, message in problems))
        self.problems = problems
        if code is not None:
            self.code = code


class InvalidBatch(InvalidTask):
    """One task of a batch is out of bounds; nothing was enqueued. `index` counts from 0."""

    code = "invalid_batch"

    def __init__(self, index: int, problems: list[tuple[str, str]]) -> None:
        super().__init__([(f"[{index}].{field}", message) for field, message in problems])
        self.index = index


class IdempotencyConflict(DharaError):
    """The idempotency key belongs to a task with another payload."""

    code = "idempotency_conflict"

    def __init__(self, existing: UUID, key: str | None, index: int | None = None) -> None:
        super().__init__(
            f"idempotency key {key!r} belongs to task {existing}, which has another payload; use another key"
        )
        self.existing = existing
        self.index = index


class NotFound(DharaError):
    """There is no such thing."""

    code = "not_found"


class WrongState(DharaError):
    """The state of the task (or of what is named) does not allow that."""

    code = "wrong_state"

    def __init__(self, state: str, wish: str, what: str = "task") -> None:
        super().__init__(f"the {what} is {state}; {wish}")
        self.state = state


class LeaseLost(DharaError):
    """The attempt's task is someone else's now; what it writes does not count."""

    code = "lease_lost"


class RegistryError(DharaError, TypeError):
    """A handler cannot be registered as it is."""

    code = "registry_error"


class TaskFailed(DharaError):
    """The task that was waited for ended DEAD or CANCELED."""

    code = "task_failed"

    def __init__(self, task_id: UUID, state: str, reason: str | None, last_error: str | None) -> None:
        text = ": ".join(part for part in (f"task {task_id} is {state}", reason, last_error) if part)
        super().__init__(text)
        self.task_id = task_id
        self.state = state
        self.reason = reason
        self.last_error = last_error
