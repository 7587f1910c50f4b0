"""The audit: invariants that hold in every database of dhara at any moment, each a statement that finds what breaks it.

They read what dhara itself has recorded, are made of set-wise SQL so that a million log rows take seconds, and answer
rows of one shape. Each statement sees one snapshot, so a live system does not disturb them; `quiet` alone speaks of a
time when the work is over. The numbers are those of the reports: I11, I12, I14, I16, I18, I22 and I23 need to know more
than a database can, and belong to `chaos/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct

from dhara.domain.lifecycle import FINAL, NOTES, TRANSITIONS, Event
from dhara.store.pool import Executor, Pool
from dhara.store.sql import load


class Violation(Struct, frozen=True):
    """Something that must not be; `task_id` is None where it concerns no single task."""

    what: str
    task_id: UUID | None
    detail: str


class Change(Struct, frozen=True):
    """One row of a task's log, as shown beside a violation."""

    task_id: UUID
    seq: int | None
    generation: int
    attempt: int
    lease: UUID | None
    event: str
    from_state: str | None
    to_state: str | None
    worker_id: UUID | None
    at: datetime | None
    reason: str | None


class Scope(Struct, frozen=True, kw_only=True):
    """What an audit may take for granted. Times are seconds.

    `stale_after`: the lease of all workers. `base`, `cap`: the backoff of tasks that follow the worker's settings; None:
    handlers may have policies of their own. `healthy`: workers known never to have been silent.
    """

    stale_after: float = 30.0
    base: float | None = None
    cap: float | None = None
    healthy: Sequence[UUID] = ()
    quiet: bool = False
    idle: float = 5.0
    idle_handlers: float = 3_600.0


class Check(Struct, frozen=True):
    """One invariant: its number, its statement, what it says, its arguments (None: not to be asked in this scope)."""

    number: str
    statement: str
    promise: str
    arguments: Callable[[Scope], Sequence[Any] | None] = lambda scope: ()


_MOVES = [(source, event, target) for source, moves in TRANSITIONS.items() for event, target in moves.items()]
_PATHS = ([m[0] for m in _MOVES], [m[1] for m in _MOVES], [m[2] for m in _MOVES], sorted(FINAL))
_UNCOUNTED = sorted(NOTES - {Event.SETTLE_REJECTED})

CHECKS: tuple[Check, ...] = (
    Check("I2", "keys", "at most one task an idempotency key"),
    Check("I3", "quiet", "nothing is RUNNING, or due and PENDING", lambda scope: () if scope.quiet else None),
    Check("I4", "paths", "each log is a path of allowed moves that ends at the row", lambda scope: _PATHS),
    Check("I5", "attempts", "attempts are 1..k without gap or repeat; failures within the budget"),
    Check("I6", "leases", "no lease is claimed twice"),
    Check("I7", "overlaps", "attempts of a task never overlap"),
    Check("I8", "fences", "each end bears the lease of its own claim"),
    Check("I9", "endings", "at most one final event a generation", lambda scope: (sorted(FINAL),)),
    Check("I10", "reaped", "nobody is reaped within its lease", lambda scope: (scope.stale_after, list(scope.healthy))),
    Check("I13", "starts", "an event explains every start"),
    Check("I15", "early", "no claim before run_at"),
    Check(
        "I15",
        "delays",
        "stored waits are inside the band of the backoff",
        lambda scope: None if scope.base is None or scope.cap is None else (scope.base, scope.cap),
    ),
    Check("I17", "unique", "never two live tasks of one unique key"),
    Check("I19", "canceled", "no attempt after a cancellation"),
    Check("I20", "states", "the counters agree with the rows by state"),
    Check("I20", "events", "the counters agree with the log by event", lambda scope: (_UNCOUNTED,)),
    Check("I21", "order", "one log row a change, in order"),
    Check(
        "I24",
        "sessions",
        "no session idle in a transaction, no lock forgotten",
        lambda scope: (scope.idle, scope.idle_handlers),
    ),
)


class Audit:
    """Asks the checks of one schema."""

    def __init__(self, db: Executor, schema: str = "dhara") -> None:
        self.db = db
        self.schema = schema

    async def violations(self, check: Check, scope: Scope) -> list[Violation] | None:
        """What breaks this invariant; None if it cannot be asked in this scope."""
        arguments = check.arguments(scope)
        if arguments is None:
            return None
        rows = await self.db.fetch(load(f"invariants/{check.statement}", self.schema), *arguments)
        return [Violation(row["what"], row["task_id"], row["detail"]) for row in rows]

    async def history(self, tasks: Iterable[UUID]) -> Mapping[UUID, list[Change]]:
        """The whole log of each of these tasks, in order."""
        found: dict[UUID, list[Change]] = {task: [] for task in tasks}
        for row in await self.db.fetch(load("invariants/history", self.schema), list(found)):
            found[row["task_id"]].append(Change(*row))
        return found


async def violations_at_leisure(pool: Pool, schema: str, check: Check, scope: Scope) -> list[Violation] | None:
    """The same in a read-only transaction of its own that may take its time and its memory, one for each check: a
    snapshot held for the whole audit would keep VACUUM from its work."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(load("invariants/prepare", schema))
        return await Audit(connection, schema).violations(check, scope)
