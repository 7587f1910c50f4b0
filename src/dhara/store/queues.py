"""Queues: their settings and their figures."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct

from dhara.errors import NotFound
from dhara.store.pool import Executor
from dhara.store.sql import load

READY_CAP = 10_000
READY_CAP_ALL = 20_000


class Queue(Struct, frozen=True, kw_only=True):
    """A queue's figures. `depth` is all PENDING; `ready` is counted up to a cap and then `ready_capped`.

    `enqueued` and `completed` are totals since the beginning; ages are seconds. `limit` is how many PENDING tasks it takes;
    None: no limit of its own. `wait_objective`: seconds that its oldest ready task should not wait longer than; None: as the
    general setting says.
    """

    name: str
    depth: int
    ready: int
    ready_capped: bool
    delayed: int
    running: int
    dead: int
    enqueued: int
    completed: int
    oldest_ready_age: float | None = None
    paused_at: datetime | None = None
    paused_by: str | None = None
    retention: float | None = None
    wait_objective: float | None = None
    limit: int | None = None

    @property
    def full(self) -> bool:
        """Whether it has as many PENDING tasks as it takes."""
        return self.limit is not None and self.depth >= self.limit

    def objective(self, usual: float) -> float:
        """Seconds that its oldest ready task should not wait longer than; `usual`: the general setting."""
        return usual if self.wait_objective is None else self.wait_objective

    def late(self, usual: float) -> bool:
        """Whether a task has waited for longer than that. Those of a paused queue are meant to wait."""
        return self.paused_at is None and (self.oldest_ready_age or 0.0) > self.objective(usual)


class Load(Struct, frozen=True):
    """How full a queue is: `depth` tasks are PENDING, `most` may be; None: as the setting says."""

    name: str
    depth: int
    most: int | None


class Queues:
    """The statements of `sql/queues/`."""

    def __init__(self, db: Executor, schema: str = "dhara") -> None:
        self.db = db
        self.schema = schema

    def _sql(self, name: str) -> str:
        return load("queues/" + name, self.schema)

    async def list(self) -> list[Queue]:
        """Every queue that has ever held a task or a setting, by name."""
        return [_queue(row) for row in await self.db.fetch(self._sql("list"), None, READY_CAP, READY_CAP_ALL)]

    async def get(self, name: str) -> Queue:
        """One queue. Raises `NotFound`."""
        rows = await self.db.fetch(self._sql("list"), name, READY_CAP, READY_CAP_ALL)
        if not rows:
            raise NotFound(f"there is no queue {name!r}")
        return _queue(rows[0])

    async def pause(self, name: str, by: str) -> None:
        """Stop claiming from the queue."""
        await self.db.execute(self._sql("pause"), name, by)

    async def resume(self, name: str, by: str = "library") -> None:
        """Start claiming from the queue again."""
        await self.db.execute(self._sql("resume"), name, by)

    async def retain(self, name: str, seconds: float | None, by: str = "library") -> None:
        """How long its final tasks are kept; None: as the fleet's setting says."""
        await self.db.execute(self._sql("retain"), name, seconds, by)

    async def aim(self, name: str, seconds: float | None, by: str = "library") -> None:
        """How long its oldest ready task may wait before somebody should look; None: as the general setting says."""
        await self.db.execute(self._sql("aim"), name, seconds, by)

    async def limit(self, name: str, most: int | None, by: str = "library") -> None:
        """How many PENDING tasks it takes, whoever enqueues; None: as many as the server's setting says, or any number."""
        if most is None:
            await self.db.execute(self._sql("unlimit"), name, by)
        else:
            await self.db.execute(self._sql("limit"), name, most, by)

    async def loads(self, all: bool) -> Sequence[Load]:
        """How full the limited queues are; `all`: every queue is limited. Notes which are full, for enqueues by SQL."""
        return [Load(row[0], row[1] or 0, row[2]) for row in await self.db.fetch(self._sql("loads"), all)]

    async def least_retention(self) -> float | None:
        """The shortest retention that a queue has of its own, in seconds."""
        seconds: float | None = await self.db.fetchval(self._sql("least_retention"))
        return seconds


def _queue(row: object) -> Queue:
    values = dict(row)  # type: ignore[call-overload]
    values["delayed"] = max(0, values["depth"] - values["ready"])
    return Queue(**values)
