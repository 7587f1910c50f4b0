"""Bulk operations: what was asked for, how far it has come, and the batches by which it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import asyncpg
import msgspec
from msgspec import Struct

from dhara.domain.canary import Plan, Wave
from dhara.domain.task import Task
from dhara.errors import NotFound
from dhara.store.ids import new_id
from dhara.store.pool import Executor
from dhara.store.search import Filter
from dhara.store.sql import load
from dhara.store.tasks import tasks_of

KINDS = ("retry", "purge", "cancel")


class Operation(Struct, frozen=True, kw_only=True):
    """A bulk operation. `total` is what matched as it began, at least what was seen to; `state` is running, stopped, done
    or failed, `reason` says why it ended so. `wave`: the tasks that a canary retry watches since `wave_at`."""

    id: UUID
    kind: str
    state: str
    filter: Filter
    asked_by: str
    created_at: datetime
    updated_at: datetime
    due_at: datetime
    after_id: UUID
    total: int
    total_is_estimate: bool
    done: int
    skipped: int
    wave: list[UUID]
    reason: str | None = None
    finished_at: datetime | None = None
    wave_at: datetime | None = None
    canary: Plan | None = None

    def trace(self) -> str:
        """What stands as reason in the histories of the tasks that it has changed."""
        return f"{self.kind} of many by {self.asked_by}, operation {self.id}"


class Changed(Struct, frozen=True):
    """A task that a batch has changed. `worker` runs it, if it was asked to stop."""

    id: UUID
    queue: str
    worker: UUID | None = None


class Operations:
    """The statements of `sql/operations/`."""

    def __init__(self, db: Executor, schema: str = "dhara") -> None:
        self.db = db
        self.schema = schema

    def _sql(self, name: str) -> str:
        return load("operations/" + name, self.schema)

    async def create(
        self, kind: str, wanted: Filter, by: str, *, total: int, is_estimate: bool, canary: Plan | None = None
    ) -> Operation:
        """Begin one; it runs until it is through, stopped, or (a canary) thinks better of it."""
        texts = (_json(wanted), None if canary is None else _json(canary))
        args = (new_id(), kind, texts[0], by, total, is_estimate, texts[1])
        row = await self.db.fetchrow(self._sql("create"), *args)
        assert row is not None
        return _operation(row)

    async def get(self, id: UUID) -> Operation:
        """One operation. Raises `NotFound`."""
        row = await self.db.fetchrow(self._sql("get"), id)
        if row is None:
            raise NotFound(f"there is no operation {id}")
        return _operation(row)

    async def recent(self, most: int = 50, queues: Sequence[str] = ()) -> list[Operation]:
        """Newest first. `queues`: only those that are limited to these patterns of queues."""
        rows = await self.db.fetch(self._sql("list"), most, _json(queues) if queues else None)
        return [_operation(row) for row in rows]

    async def tasks(self, operation: Operation, most: int = 200) -> list[Task]:
        """Some of the tasks that it has changed, as they are now; of one that goes on for hours, those of the first."""
        args = (operation.trace(), operation.created_at, operation.finished_at, most)
        return tasks_of(await self.db.fetch(self._sql("tasks"), *args))

    async def stop(self, id: UUID, by: str) -> Operation:
        """Let it do no further batch; what is done stays done. One that has ended is left alone. Raises `NotFound`."""
        row = await self.db.fetchrow(self._sql("finish"), id, "stopped", f"stopped by {by}", by)
        return await self.get(id) if row is None else _operation(row)

    # steps

    async def due(self, most: int = 20) -> Sequence[UUID]:
        """Operations whose next step is due."""
        return [row[0] for row in await self.db.fetch(self._sql("due"), most)]

    async def hold(self, id: UUID) -> Operation | None:
        """Take the operation for one step; `self.db` is a connection in the step's transaction."""
        row = await self.db.fetchrow(self._sql("hold"), id)
        return None if row is None else _operation(row)

    async def advance(
        self, id: UUID, *, done: int, skipped: int, after: UUID, pause: float = 0.0, wave: Sequence[UUID] | None = None
    ) -> None:
        """Put a step's work on record; the next is due in `pause` seconds."""
        await self.db.execute(self._sql("advance"), id, done, skipped, after, pause, wave)

    async def put_off(self, id: UUID, seconds: float) -> None:
        """Its next step could not be taken; it is due again in so many seconds."""
        await self.db.execute(self._sql("put_off"), id, seconds)

    async def finish(self, id: UUID, state: str, reason: str | None = None) -> None:
        """It has ended by itself."""
        await self.db.fetchrow(self._sql("finish"), id, state, reason, None)

    async def outcomes(self, wave: Sequence[UUID], released_at: datetime) -> Wave:
        """What has become of these revived tasks."""
        row = await self.db.fetchrow(self._sql("outcomes"), wave, released_at)
        assert row is not None
        return Wave(len(wave), *row)

    # batches

    async def retry(self, ids: Sequence[UUID], reason: str) -> list[Changed]:
        """Revive those that are DEAD; raises `asyncpg.UniqueViolationError` when another enqueue takes a key meanwhile."""
        return [Changed(*row) for row in await self.db.fetch(self._sql("retry"), ids, reason)]

    async def purge(self, ids: Sequence[UUID], reason: str) -> list[Changed]:
        """Delete those that are DEAD."""
        return [Changed(*row) for row in await self.db.fetch(self._sql("purge"), ids)]

    async def cancel(self, ids: Sequence[UUID], reason: str) -> list[Changed]:
        """Cancel those that are PENDING, ask those that are RUNNING to stop."""
        return [Changed(*row) for row in await self.db.fetch(self._sql("cancel"), ids, reason)]


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _operation(row: asyncpg.Record) -> Operation:
    values = {field: row[field] for field in Operation.__struct_fields__}
    values["filter"] = msgspec.json.decode(values["filter"], type=Filter)
    values["canary"] = None if values["canary"] is None else msgspec.json.decode(values["canary"], type=Plan)
    return Operation(**values)
