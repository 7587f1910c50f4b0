"""Figures for gauges and dashboards: each costs little, whatever the number of tasks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

import asyncpg
from msgspec import Struct

from dhara.domain.lifecycle import State
from dhara.errors import SchemaError
from dhara.store.pool import Executor
from dhara.store.sql import load


class Flow(Struct, frozen=True):
    """How many tasks ever went from one state to another by one event. None: from or to nothing, or a note."""

    event: str
    from_state: str | None
    to_state: str | None
    n: int


class Fleet(Struct, frozen=True):
    """Live workers, their slots and running tasks by their last beats, and the oldest beat's age in seconds."""

    workers: int
    slots: int
    running: int
    beat_age: float


class Histogram(Struct, frozen=True):
    """Observations of one series; `buckets` are counts per bucket (not cumulative), the last one is the rest."""

    name: str
    queue: str
    type: str
    total: float
    buckets: list[int]


class Unroutable(Struct, frozen=True):
    """Ready tasks of a type that no live worker knows, among those looked at."""

    type: str
    queue: str
    count: int


class Sample(Struct, frozen=True):
    """A queue's totals since the beginning at one moment, and how many of its tasks were PENDING."""

    minute: datetime
    at: datetime
    enqueued: int
    completed: int
    failed: int
    dead: int
    depth: int


class Past(Struct, frozen=True):
    """A queue's totals some `age` seconds ago."""

    age: float
    enqueued: int
    completed: int
    depth: int


class DatabaseHealth(Struct, frozen=True):
    """How the database fares: rows that vacuum has to remove, the age of the oldest transaction in seconds, and how full its
    queue of notifications is (0 to 1)."""

    dead_rows: int
    live_rows: int
    oldest_transaction: float
    notify_usage: float


class Clock(Struct, frozen=True):
    """The database's time, and whether it takes no writes."""

    now: datetime
    standby: bool
    read_only: bool


class Stats:
    """The statements of `sql/stats/`."""

    def __init__(self, db: Executor, schema: str = "dhara") -> None:
        self.db = db
        self.schema = schema

    def _sql(self, name: str) -> str:
        return load("stats/" + name, self.schema)

    async def flows(self) -> list[Flow]:
        """All flows between states since the beginning."""
        return [Flow(*row) for row in await self.db.fetch(self._sql("flows"))]

    async def span(self) -> float:
        """Seconds from the first claim to the last change that history knows; reads all of it."""
        seconds: float | None = await self.db.fetchval(self._sql("span"))
        return seconds or 0.0

    async def fold_counters(self) -> None:
        """Fold the rows that the flows are summed from."""
        await self.db.execute(self._sql("fold_counters"))

    async def sample(self, most: int = 200) -> None:
        """Note this minute's totals of the `most` busiest queues, unless they are noted."""
        await self.db.execute(self._sql("sample"), most)

    async def samples(self, queue: str = "*", minutes: int = 60) -> list[Sample]:
        """A queue's totals minute by minute, oldest first, and last as they are now; `*`: those of all queues."""
        return [Sample(*row) for row in await self.db.fetch(self._sql("samples"), queue, minutes)]

    async def recent(self) -> dict[str, Past]:
        """Each queue's totals some minutes ago, five at most."""
        return {row[0]: Past(*row[1:]) for row in map(tuple, await self.db.fetch(self._sql("recent")))}

    async def prune_rates(self, keep: float) -> None:
        """Forget samples older than `keep` seconds."""
        await self.db.execute(self._sql("prune_rates"), keep)

    async def health(self) -> DatabaseHealth:
        """What operators should know of the database."""
        row = await self.db.fetchrow(self._sql("health"), self.schema)
        assert row is not None
        return DatabaseHealth(*row)

    async def ready(self, cap: int = 100_000) -> tuple[int, int]:
        """PENDING tasks that are ready, and delayed, each counted up to `cap`."""
        row = await self.db.fetchrow(self._sql("ready"), cap)
        assert row is not None
        return row[0], row[1]

    async def fleet(self) -> Fleet:
        """The live workers, added up."""
        row = await self.db.fetchrow(self._sql("workers"))
        assert row is not None
        return Fleet(*row)

    async def observe(self, seen: Sequence[Histogram]) -> None:
        """Add observations to the fleet's histograms."""
        if seen:
            arrays = ["{" + ",".join(map(str, h.buckets)) + "}" for h in seen]
            columns = [[getattr(h, field) for h in seen] for field in ("name", "queue", "type", "total")]
            await self.db.execute(self._sql("observe"), *columns, arrays)

    async def histograms(self, most: int = 2_000) -> list[Histogram]:
        """The fleet's histograms."""
        rows = await self.db.fetch(self._sql("histograms"), most)
        return [
            Histogram(name, queue, type, total, [int(n) for n in buckets.split(",") if n])
            for name, queue, type, total, buckets in map(tuple, rows)
        ]

    async def unroutable(self, look_at: int = 10_000, most: int = 200) -> list[Unroutable]:
        """Ready tasks of types that no live worker knows, most first; looks at about `look_at` tasks, whatever their number."""
        return [Unroutable(*row) for row in await self.db.fetch(self._sql("unroutable"), look_at, most)]

    async def clock(self) -> Clock:
        """Is the database there, and what time is it?"""
        row = await self.db.fetchrow(self._sql("clock"))
        assert row is not None
        return Clock(*row)

    async def origin(self) -> str:
        """What tells this database's schema from every other one, the same for all processes on it."""
        try:
            origin: str | None = await self.db.fetchval(self._sql("origin"))
        except asyncpg.UndefinedTableError:
            origin = None
        if origin is None:
            raise SchemaError(f"schema {self.schema!r} is missing; run `dhara migrate up`")
        return origin


def by_status(flows: Sequence[Flow]) -> dict[State, int]:
    """Tasks in each state now: what flowed in less what flowed out."""
    counts: defaultdict[str | None, int] = defaultdict(int)
    for flow in flows:
        counts[flow.to_state] += flow.n
        counts[flow.from_state] -= flow.n
    return {state: counts[state] for state in State}


def totals(flows: Iterable[Flow]) -> dict[str, int]:
    """The life cycle's counters, by the names of their metrics."""
    sums = dict.fromkeys(("enqueued", "completed", "attempt_failures", "retried", "dead", "canceled", "reaped"), 0)
    for flow in flows:
        for counter in _COUNTERS.get(flow.event, ()):
            sums[counter] += flow.n
        if flow.event == "DEAD" and flow.from_state == State.RUNNING:
            sums["attempt_failures"] += flow.n
    return sums


_COUNTERS: Mapping[str, tuple[str, ...]] = {
    "ENQUEUED": ("enqueued",),
    "COMPLETED": ("completed",),
    "RETRIED": ("retried", "attempt_failures"),
    "REAPED": ("reaped", "attempt_failures"),
    "REAPED_FINAL": ("reaped",),
    "DEAD": ("dead",),
    "EXPIRED": ("dead",),
    "CANCELED": ("canceled",),
}
