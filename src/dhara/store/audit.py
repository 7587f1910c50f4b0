"""The audit log: who did what to what, when, and how it was before and after.

Statements that change one thing write their own row (`tasks/revive.sql`); whoever changes several calls `record` in the
same transaction. The database refuses to change or delete a row.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct

from dhara.store.pool import Executor
from dhara.store.sql import load

# action -> what it says; the part before the dot is the kind of its target.
ACTIONS: dict[str, str] = {
    "task.cancel": "a task was canceled, or its handler asked to stop",
    "task.retry": "a DEAD task was revived",
    "queue.pause": "a queue was paused",
    "queue.resume": "a queue was resumed",
    "queue.limit": "how many PENDING tasks a queue takes was changed",
    "queue.retention": "how long a queue's final tasks are kept was changed",
    "queue.objective": "how long a queue's ready tasks should wait at most was changed",
    "key.create": "an API key was made",
    "key.rotate": "an API key was made in place of another",
    "key.revoke": "an API key was ended",
    "failures.mute": "a group of failures was muted",
    "failures.unmute": "a group of failures counts again",
    "schedule.create": "a schedule was made, by an operator or by code that declares it",
    "schedule.update": "a schedule's definition was changed",
    "schedule.pause": "a schedule was paused",
    "schedule.resume": "a schedule was resumed",
    "schedule.delete": "a schedule was deleted",
    "schedule.run": "a schedule was fired by hand",
    "worker.drain": "a worker was told to claim nothing more and to leave",
    "operation.start": "a bulk operation was begun",
    "operation.stop": "a bulk operation was stopped",
}


class Action(Struct, frozen=True, kw_only=True):
    """One row. `before` and `after` are JSON texts; `target` is an id or a name."""

    seq: int
    at: datetime
    actor: str
    action: str
    target: str
    before: str | None
    after: str | None


class Audit:
    """The statements of `sql/audit/`."""

    def __init__(self, db: Executor, schema: str = "dhara") -> None:
        self.db = db
        self.schema = schema

    async def record(self, actor: str, action: str, target: str, before: Any = None, after: Any = None) -> None:
        """Put `action` on record; `self.db` is a connection in the transaction of the action itself."""
        assert action in ACTIONS, action
        values = [None if value is None else msgspec.json.encode(value).decode() for value in (before, after)]
        await self.db.execute(load("audit/record", self.schema), actor, action, target, *values)

    async def list(
        self,
        *,
        before: int | None = None,
        actor: str | None = None,
        action: str | None = None,
        target: str | None = None,
        limit: int = 50,
    ) -> list[Action]:
        """Newest first; `before` continues a page by its last `seq`. `action` may be a kind alone, such as `queue`."""
        rows = await self.db.fetch(load("audit/list", self.schema), before, actor, action, target, limit)
        return [Action(**row) for row in rows]
