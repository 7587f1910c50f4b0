"""Failure groups: DEAD tasks by the fingerprint of what killed them."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from msgspec import Struct

from dhara.store.pool import Executor
from dhara.store.sql import load

COUNT_CAP = 10_000
MOST_GROUPS = 500


class Group(Struct, frozen=True, kw_only=True):
    """DEAD tasks of one fingerprint. `count` is exact unless `count_is_estimate`; `trend`: how many died in each of the last
    24 hours, this one first. `sample` is the newest; type, queue, reason and error are its own."""

    fingerprint: str
    count: int
    count_is_estimate: bool
    first_at: datetime
    last_at: datetime
    trend: list[int]
    sample: UUID
    type: str
    queue: str
    attempts: int
    reason: str | None = None
    last_error: str | None = None
    muted_at: datetime | None = None
    muted_by: str | None = None


class Failures:
    """The statements of `sql/failures/`."""

    def __init__(self, db: Executor, schema: str = "dhara") -> None:
        self.db = db
        self.schema = schema

    def _sql(self, name: str) -> str:
        return load("failures/" + name, self.schema)

    async def groups(self, most: int = MOST_GROUPS, cap: int = COUNT_CAP) -> list[Group]:
        """The groups, those seen last first; looks at `most` of them and counts up to `cap` tasks in each."""
        return [Group(**row) for row in await self.db.fetch(self._sql("groups"), cap, most, None)]

    async def group(self, fingerprint: str, cap: int = COUNT_CAP) -> Group | None:
        """One group, or None if no DEAD task has that fingerprint."""
        rows = await self.db.fetch(self._sql("groups"), cap, 1, fingerprint)
        return Group(**rows[0]) if rows else None

    async def mute(self, fingerprint: str, by: str) -> None:
        """Leave the group out of alarms."""
        await self.db.execute(self._sql("mute"), fingerprint, by)

    async def unmute(self, fingerprint: str, by: str) -> None:
        """Let the group count again."""
        await self.db.execute(self._sql("unmute"), fingerprint, by)
