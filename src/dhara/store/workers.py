"""Workers: their registration, their beats, and what a reaper watches of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import msgspec
from msgspec import Struct

from dhara.errors import NotFound, WrongState
from dhara.store.pool import Executor
from dhara.store.search import like
from dhara.store.sql import load


class NewWorker(Struct, frozen=True, kw_only=True):
    """A worker that announces itself. `queues`: name -> slots; `*` stands for all queues."""

    id: UUID
    pid: int
    host: str
    version: str
    types: list[str]
    queues: dict[str, int]
    slots: int


class Sighting(Struct, frozen=True):
    """What a reaper sees of a worker; `age` is seconds since its beat, by the database's clock."""

    id: UUID
    beat_seq: int
    state: str
    age: float


class Duty(Struct, frozen=True):
    """What awaits the leader of maintenance. `chore_in`: as `Workers.next_chore` answers."""

    expired: bool
    long: bool
    limited: bool
    chore_in: float | None


class WorkerRow(Struct, frozen=True, kw_only=True):
    """A worker for people to look at. `queues` is JSON text; `state` is live, draining, stopped or lost."""

    id: UUID
    host: str
    pid: int
    version: str
    types: list[str]
    queues: str
    slots: int
    running: int
    state: str
    started_at: datetime
    beat_at: datetime
    beat_age: float
    stopped_at: datetime | None = None
    drain_requested_at: datetime | None = None
    drain_requested_by: str | None = None


class RunningTask(Struct, frozen=True):
    """A task that a worker runs."""

    worker: UUID
    id: UUID
    type: str
    queue: str
    attempt: int
    started_at: datetime


class Workers:
    """The statements of `sql/workers/`."""

    def __init__(self, db: Executor, schema: str = "dhara") -> None:
        self.db = db
        self.schema = schema

    def _sql(self, name: str) -> str:
        return load("workers/" + name, self.schema)

    async def register(self, new: NewWorker) -> None:
        """Announce a worker; must come before its first claim. Repeating it changes nothing."""
        queues = msgspec.json.encode(new.queues).decode()
        args = (new.id, new.pid, new.host, new.version, new.types, queues, new.slots)
        await self.db.execute(self._sql("register"), *args)

    async def beat(self, ids: Sequence[UUID], running: Sequence[int]) -> dict[UUID, bool]:
        """One heartbeat each; answers the ids that are known, and whether an operator wants that worker to drain."""
        return {row[0]: row[1] for row in await self.db.fetch(self._sql("beat"), ids, running)}

    async def ask_drain(self, id: UUID, by: str) -> WorkerRow:
        """An operator wants the worker to drain; it hears that with its next beat. Raises `NotFound` or `WrongState`."""
        state = await self.db.fetchval(self._sql("ask_drain"), id, by)
        if state is None:
            raise NotFound(f"there is no worker {id}")
        if state in ("stopped", "lost"):
            raise WrongState(state, "only live workers can be drained", "worker")
        (row,) = await self.db.fetch(self._sql("list"), 0.0, id)
        return WorkerRow(**row)

    async def drain_asked(self, id: UUID) -> bool:
        """Whether an operator wants the worker to drain."""
        return bool(await self.db.fetchval(self._sql("drain_asked"), id))

    async def drain(self, id: UUID) -> None:
        """The worker claims nothing more."""
        await self.db.execute(self._sql("drain"), id)

    async def stop(self, id: UUID, state: str = "stopped") -> None:
        """The worker has ended: `stopped` in order, `lost` not."""
        await self.db.execute(self._sql("stop"), id, state)

    async def lose(self, id: UUID, beat_seq: int) -> None:
        """The reaper calls the worker lost, unless it has beaten since `beat_seq`."""
        await self.db.execute(self._sql("lose"), id, beat_seq)

    async def witness(self) -> list[Sighting]:
        """Every worker that should be beating or still holds tasks."""
        return [Sighting(*row) for row in await self.db.fetch(self._sql("witness"))]

    async def recent(self, seconds: float = 900) -> list[WorkerRow]:
        """Live workers, and those that ended within `seconds`."""
        return [WorkerRow(**row) for row in await self.db.fetch(self._sql("list"), seconds, None)]

    async def running(self, ids: Sequence[UUID], most: int = 1_000, queues: Sequence[str] = ()) -> list[RunningTask]:
        """The running tasks of these workers, oldest first; `queues` are patterns with `*` (none: of any)."""
        fitting = [like(pattern) for pattern in queues] or None
        return [RunningTask(*row) for row in await self.db.fetch(self._sql("running"), ids, most, fitting)]

    async def prune(self, seconds: float) -> None:
        """Forget workers that ended longer ago than `seconds` and hold nothing."""
        await self.db.execute(self._sql("prune"), seconds)

    async def lead(self, role: str, holder: UUID, seconds: float, long: int = 500) -> Duty | None:
        """Take or keep the leadership of `role`; an answer if `holder` leads for the next `seconds`.

        `long`: from how many rows on the counters are worth folding.
        """
        row = await self.db.fetchrow(self._sql("lead"), role, holder, seconds, long)
        return None if row is None else Duty(*row)

    async def next_chore(self) -> float | None:
        """In how many seconds a schedule or a step of a bulk operation is due, negative: since; None: there is none."""
        seconds: float | None = await self.db.fetchval(self._sql("chore"))
        return seconds
