"""The one composed query: filters and keyset pages over `tasks`, newest first.

Only fixed fragments are composed; every value is a parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct

from dhara.domain.lifecycle import State
from dhara.domain.task import Task
from dhara.store.pool import Executor
from dhara.store.sql import qualify
from dhara.store.tasks import tasks_of

COUNT_CAP = 10_000


class Filter(Struct, frozen=True, kw_only=True):
    """Which tasks; all given conditions hold together. `q` is looked for in id, type, key and error; `ids` are the only
    ones looked at; `uncanceled`: only those whose cancellation was not asked for; `queues` are patterns with `*`, of which
    one must fit (none: every queue)."""

    status: tuple[State, ...] = ()
    type: str | None = None
    queue: str | None = None
    retrying: bool = False
    due: str | None = None
    worker: UUID | None = None
    tag: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    q: str | None = None
    fingerprint: str | None = None
    ids: tuple[UUID, ...] = ()
    uncanceled: bool = False
    queues: tuple[str, ...] = ()


class Page(Struct, frozen=True):
    """One page; `total` is exact unless `total_is_estimate` (then: at least that many). `next` continues after the last id."""

    tasks: list[Task]
    total: int
    total_is_estimate: bool
    next: UUID | None


class _Where:
    def __init__(self) -> None:
        self.parts: list[str] = []
        self.args: list[Any] = []

    def add(self, fragment: str, *values: Any) -> None:
        """`fragment` with `{}` for each value's parameter."""
        marks = []
        for value in values:
            self.args.append(value)
            marks.append(f"${len(self.args)}")
        self.parts.append(fragment.format(*marks))

    def text(self) -> str:
        return " AND ".join(self.parts) or "true"


def _where(f: Filter) -> _Where:
    where = _Where()
    if f.status:
        if len(f.status) == 1:
            # A plain comparison with a literal of ours lets the planner use the partial indexes.
            where.add(f"status = '{State(f.status[0]).value}'")
        else:
            where.add("status = ANY ({}::text[])", [state.value for state in f.status])
    if f.type is not None:
        where.add("type = {}", f.type)
    if f.queue is not None:
        where.add("queue = {}", f.queue)
    if f.queues:
        where.add("queue LIKE ANY ({}::text[])", [q.replace("_", "\\_").replace("*", "%") for q in f.queues])
    if f.retrying:
        where.add("status = 'PENDING' AND failures > 0")
    if f.due is not None:
        where.add(f"status = 'PENDING' AND run_at {'<=' if f.due == 'ready' else '>'} statement_timestamp()")
    if f.worker is not None:
        where.add("status = 'RUNNING' AND locked_by = {}", f.worker)
    if f.tag is not None:
        where.add("{} = ANY (tags)", f.tag)
    if f.created_after is not None:
        where.add("created_at > {}", f.created_after)
    if f.created_before is not None:
        where.add("created_at < {}", f.created_before)
    if f.fingerprint is not None:
        where.add("fingerprint = {}", f.fingerprint)
    if f.ids:
        where.add("id = ANY ({}::uuid[])", f.ids)
    if f.uncanceled:
        where.add("cancel_requested_at IS NULL")
    if f.q is not None:
        pattern = "%" + f.q.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        where.add(
            "(id::text = lower({}) OR type ILIKE {} OR idempotency_key ILIKE {} OR last_error ILIKE {})",
            f.q,
            pattern,
            pattern,
            pattern,
        )
    return where


class Search:
    """Lists of tasks."""

    def __init__(self, db: Executor, schema: str = "dhara") -> None:
        self.db = db
        self.schema = schema

    async def page(self, wanted: Filter, *, limit: int = 20, offset: int = 0, after: UUID | None = None) -> Page:
        """A page of at most `limit` tasks, newest first (UUIDv7 ids grow with time); `after` continues a page by its last id."""
        total, capped = await self.count(wanted)
        where = _where(wanted)
        if after is not None:
            where.add("id < {}", after)
        where.args += [limit + 1, offset]
        n = len(where.args)
        query = f"SELECT * FROM dhara.tasks WHERE {where.text()} ORDER BY id DESC LIMIT ${n - 1} OFFSET ${n}"
        rows = tasks_of(await self.db.fetch(qualify(query, self.schema), *where.args))
        return Page(rows[:limit], total, capped, rows[limit - 1].id if len(rows) > limit else None)

    async def count(self, wanted: Filter) -> tuple[int, bool]:
        """How many match, counted up to a cap; True if the cap was reached."""
        where = _where(wanted)
        query = f"SELECT count(*) FROM (SELECT FROM dhara.tasks WHERE {where.text()} LIMIT {COUNT_CAP + 1}) AS t"
        n: int = await self.db.fetchval(qualify(query, self.schema), *where.args)
        return min(n, COUNT_CAP), n > COUNT_CAP

    async def walk(self, wanted: Filter, after: UUID, most: int) -> Sequence[UUID]:
        """The ids of at most `most` matching tasks above `after`, in their order: the next batch of a walk over all."""
        where = _where(wanted)
        where.add("id > {}", after)
        return await self._ids(where, "ORDER BY id", most)

    async def some(self, wanted: Filter, most: int) -> Sequence[UUID]:
        """The ids of at most `most` matching tasks, in no order."""
        return await self._ids(_where(wanted), "", most)

    async def _ids(self, where: _Where, order: str, most: int) -> Sequence[UUID]:
        where.args.append(most)
        query = f"SELECT id FROM dhara.tasks WHERE {where.text()} {order} LIMIT ${len(where.args)}"
        return [row[0] for row in await self.db.fetch(qualify(query, self.schema), *where.args)]
