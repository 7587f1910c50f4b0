"""Schedules: their definitions, and the fires that are on record."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
from msgspec import Struct, structs

from dhara.domain.schedule import Spec
from dhara.errors import NotFound
from dhara.store.pool import Executor
from dhara.store.search import like
from dhara.store.sql import load


class Schedule(Spec, frozen=True, kw_only=True):
    """A schedule as it stands. `source`: declared in `code`, or made by an `operator`; `next_at` None: it never fires again."""

    source: str
    created_at: datetime
    updated_at: datetime
    anchor: datetime
    next_at: datetime | None = None
    last_at: datetime | None = None
    last_task: UUID | None = None
    paused_at: datetime | None = None
    paused_by: str | None = None

    @property
    def spec(self) -> Spec:
        """Its definition alone."""
        return Spec(**{field: getattr(self, field) for field in Spec.__struct_fields__})


class Coming(Struct, frozen=True):
    """A schedule that is due in `due_in` seconds, negative: since."""

    name: str
    next_at: datetime
    due_in: float


class Trouble(Struct, frozen=True, kw_only=True):
    """A schedule that does not do what it should. `trouble`: `broken` (dhara has paused it, `paused_by` says why), `overdue`
    (nobody fires it), `failed` (its last task is DEAD), `missed` (paused, and a fire time has passed)."""

    name: str
    queue: str
    trouble: str
    since: datetime
    paused_by: str | None
    last_task: UUID | None


class Fire(Struct, frozen=True, kw_only=True):
    """A fire time that has been dealt with. `outcome`: enqueued, overlap, missed or by_hand; `status`: its task's, if that
    is still there."""

    fire_at: datetime
    fired_at: datetime
    outcome: str
    task_id: UUID | None = None
    status: str | None = None


class Schedules:
    """The statements of `sql/schedules/`."""

    def __init__(self, db: Executor, schema: str = "dhara") -> None:
        self.db = db
        self.schema = schema

    def _sql(self, name: str) -> str:
        return load("schedules/" + name, self.schema)

    async def now(self) -> datetime:
        """The database's time."""
        now: datetime = await self.db.fetchval(load("stats/clock", self.schema))
        return now

    # definitions

    async def create(self, spec: Spec, by: str, source: str = "operator") -> Schedule | None:
        """Make it; None if there is one of that name."""
        now = await self.now()
        row = await self.db.fetchrow(self._sql("create"), *self._definition(spec, now, now), source, by)
        return None if row is None else _schedule(row)

    async def update(self, spec: Spec, by: str, source: str = "operator") -> Schedule:
        """Give the schedule of that name this definition; a fire that is due is lost only where the times change.

        Raises `NotFound`.
        """
        now = await self.now()
        standing = await self.get(spec.name)
        anchor = standing.anchor if standing.every == spec.every else now
        row = await self.db.fetchrow(self._sql("update"), *self._definition(spec, now, anchor), source, by)
        if row is None:
            raise NotFound(f"there is no schedule {spec.name!r}")
        return _schedule(row)

    def _definition(self, spec: Spec, now: datetime, anchor: datetime) -> Sequence[Any]:
        order = ("cron", "every", "timezone", "jitter", "missed", "overlap", "catch_up_most", "type", "queue")
        values = [getattr(spec, field) for field in (*order, "priority", "max_retries", "timeout", "payload")]
        return (spec.name, *values, spec.timing(anchor).after(now), anchor)

    async def declare(self, specs: Sequence[Spec]) -> None:
        """Make or change what code declares; what stands already as declared is left alone, paused or not."""
        for spec in specs:
            if await self.create(spec, "code", "code") is not None:
                continue
            standing = await self.get(spec.name)
            if standing.spec != spec or standing.source != "code":
                await self.update(spec, "code", "code")

    async def get(self, name: str, queues: Sequence[str] = ()) -> Schedule:
        """One schedule; without its `last_task` if that is in no queue that one of the patterns `queues` fits (none: all).
        Raises `NotFound`."""
        found = await self._list(name, 1, queues)
        if not found:
            raise NotFound(f"there is no schedule {name!r}")
        return found[0]

    async def all(self, most: int = 1_000, queues: Sequence[str] = ()) -> list[Schedule]:
        """Schedules by name, each as `get` gives it."""
        return await self._list(None, most, queues)

    async def _list(self, name: str | None, most: int, queues: Sequence[str]) -> list[Schedule]:
        rows = await self.db.fetch(self._sql("list"), name, most, _patterns(queues))
        return [structs.replace(_schedule(row), last_task=row["seen_task"]) for row in rows]

    async def pause(self, name: str, by: str) -> None:
        """Let it fire no more. Raises `NotFound`."""
        await self.get(name)
        await self.db.execute(self._sql("pause"), name, by)

    async def resume(self, name: str, by: str) -> None:
        """Let it fire again, from its next fire time on. Raises `NotFound`."""
        standing = await self.get(name)
        following = standing.timing(standing.anchor).after(await self.now())
        await self.db.execute(self._sql("resume"), name, following, by)

    async def delete(self, name: str, by: str) -> None:
        """Forget it; its tasks stay. Raises `NotFound`."""
        if await self.db.fetchrow(self._sql("delete"), name, by) is None:
            raise NotFound(f"there is no schedule {name!r}")

    async def troubled(self, late: float = 60.0, most: int = 10) -> list[Trouble]:
        """Those that need somebody's look, the worst first; `late`: seconds that a fire may be overdue."""
        return [Trouble(**row) for row in await self.db.fetch(self._sql("troubled"), late, most)]

    # fires

    async def due(self, within: float = 0.0, most: int = 100) -> list[Coming]:
        """Schedules that are due, or will be `within` seconds, the first first."""
        return [Coming(*row) for row in await self.db.fetch(self._sql("due"), within, most)]

    async def hold(self, name: str, expected: datetime) -> tuple[Schedule, datetime] | None:
        """Take the schedule to fire it, and the time; `self.db` is a connection in the fire's transaction."""
        row = await self.db.fetchrow(self._sql("hold"), name, expected)
        return None if row is None else (_schedule(row), row["now"])

    async def note(self, name: str, at: datetime | None, outcome: str, task: UUID | None = None) -> bool:
        """Put a fire on record; False if it was there. Its unique key is what makes each fire happen once."""
        return await self.db.fetchrow(self._sql("note"), name, at, task, outcome) is not None

    async def advance(self, name: str, last: datetime | None, task: UUID | None, following: datetime | None) -> None:
        """It has been fired; `following` is its next fire time."""
        await self.db.execute(self._sql("advance"), name, last, task, following)

    async def fires(self, name: str, most: int = 20, queues: Sequence[str] = ()) -> list[Fire]:
        """What is on record, newest first; of a schedule of that name before, too. Tasks only in queues that one of the
        patterns `queues` fits (none: all)."""
        return [Fire(**row) for row in await self.db.fetch(self._sql("fires"), name, most, _patterns(queues))]

    async def prune(self, keep: float, most: int = 5_000) -> None:
        """Forget fires older than `keep` seconds."""
        await self.db.execute(self._sql("prune"), keep, most)


def _patterns(queues: Sequence[str]) -> list[str] | None:
    return [like(pattern) for pattern in queues] or None


def _schedule(row: asyncpg.Record) -> Schedule:
    return Schedule(**{field: row[field] for field in Schedule.__struct_fields__})
