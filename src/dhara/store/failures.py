"""Failure groups: DEAD tasks by the fingerprint of what killed them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from msgspec import Struct

from dhara.store.pool import Executor
from dhara.store.search import like
from dhara.store.sql import load

COUNT_CAP = 10_000
MOST_GROUPS = 500
# Where not all queues may be seen: of each group as many tasks are looked at, and as many groups to find those to show.
LOOKED_AT, GROUPS_LOOKED_AT = 1_000, 5_000


class Group(Struct, frozen=True, kw_only=True):
    """DEAD tasks of one fingerprint. `count` is exact unless `count_is_estimate`; `trend`: how many died in each of the last
    24 hours, this one first. `sample` is the newest; type, queue, reason and error are its own. `elsewhere`: it also holds
    tasks of queues that were not asked for, or is too large to tell."""

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
    elsewhere: bool = False


class Failures:
    """The statements of `sql/failures/`."""

    def __init__(self, db: Executor, schema: str = "dhara") -> None:
        self.db = db
        self.schema = schema

    def _sql(self, name: str) -> str:
        return load("failures/" + name, self.schema)

    async def groups(self, most: int = MOST_GROUPS, cap: int = COUNT_CAP, queues: Sequence[str] = ()) -> list[Group]:
        """At most `most` groups, those seen last first; counts up to `cap` tasks in each. `queues`: only tasks in queues that
        one of these patterns fits, among the newest `LOOKED_AT` of each group (fewer where there are over `most`), which is
        what their counts and estimates are about."""
        return await self._groups(most, min(cap, LOOKED_AT) if queues else cap, None, queues)

    async def group(self, fingerprint: str, cap: int = COUNT_CAP, queues: Sequence[str] = ()) -> Group | None:
        """One group, or None if no DEAD task (in these queues, among its newest `cap`) has that fingerprint."""
        found = await self._groups(1, cap, fingerprint, queues)
        return found[0] if found else None

    async def _groups(self, most: int, cap: int, fingerprint: str | None, queues: Sequence[str]) -> list[Group]:
        if not queues:
            rows = await self.db.fetch(self._sql("groups"), cap, most, fingerprint)
        else:
            args = (cap, most, fingerprint, [like(pattern) for pattern in queues], GROUPS_LOOKED_AT)
            rows = await self.db.fetch(self._sql("groups_within"), *args)
        return [Group(**row) for row in rows]

    async def mute(self, fingerprint: str, by: str) -> None:
        """Leave the group out of alarms."""
        await self.db.execute(self._sql("mute"), fingerprint, by)

    async def unmute(self, fingerprint: str, by: str) -> None:
        """Let the group count again."""
        await self.db.execute(self._sql("unmute"), fingerprint, by)
