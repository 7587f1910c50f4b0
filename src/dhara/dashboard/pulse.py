"""The fleet's figures as the pages show them: taken from the database at most once a second, however many look.

Rates come from what was seen within the last minute, so that they cost no query; for the first look of a process, from
the samples that maintenance keeps.
Ages are told by the database's clock, carried on by this process's monotonic one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta

from msgspec import Struct

from dhara.domain.lifecycle import State
from dhara.store.failures import Failures, Group
from dhara.store.pool import Pool
from dhara.store.queues import Queue, Queues
from dhara.store.schedules import Schedules, Trouble
from dhara.store.shared import Shared
from dhara.store.stats import Fleet, Flow, Past, Sample, Stats, Unroutable, by_status, totals

KEEP = 1.0
# Failures by cause take longer to count, and change more slowly.
KEEP_GROUPS = 5.0
MOST_COUNTED = 1_000
PATIENCE = 5.0
READY_CAP = 10_000
WINDOW = 60.0
HISTORY_MINUTES = 60
_SAMPLES = 120
# As many queues as `sample` notes.
_NOTED = 200
# As `recent.sql` has it.
_RECENT = timedelta(minutes=5)


class Rates(Struct, frozen=True):
    """Tasks a second over the last minute."""

    enqueued: float
    completed: float
    failed: float
    queues: dict[str, tuple[float, float]]


class Snapshot(Struct, frozen=True, kw_only=True):
    """What the database said in one moment. `ready` and `delayed` are at least that many once they reach `READY_CAP`."""

    at: datetime
    taken: float
    flows: list[Flow]
    states: dict[State, int]
    totals: dict[str, int]
    ready: int
    delayed: int
    fleet: Fleet
    queues: list[Queue]
    unroutable: list[Unroutable]
    rates: Rates | None
    samples: list[Sample]
    schedules: list[Trouble]

    def now(self) -> datetime:
        """The database's time by now."""
        return self.at + timedelta(seconds=time.monotonic() - self.taken)


class Pulse:
    """Takes snapshots and remembers what rates need."""

    def __init__(self, pool: Pool, schema: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._schema = schema
        self._clock = clock
        self._shared = Shared(self._take, KEEP)
        self._failures = Shared(self._groups, KEEP_GROUPS)
        self._seen: deque[tuple[float, dict[str, int], dict[str, tuple[int, int]]]] = deque(maxlen=_SAMPLES)

    async def snapshot(self) -> Snapshot:
        """The latest figures. Raises `Unavailable` and what the database says."""
        return await self._shared.get(PATIENCE)

    def forget(self) -> None:
        """Something has been changed: the next look is a new one."""
        self._shared = Shared(self._take, KEEP)
        self._failures = Shared(self._groups, KEEP_GROUPS)

    async def failures(self) -> list[Group]:
        """Groups of failures that are not muted, those seen last first; counts stop at `MOST_COUNTED`."""
        return await self._failures.get(PATIENCE)

    async def _groups(self) -> list[Group]:
        found = await Failures(self._pool, self._schema).groups(cap=MOST_COUNTED)
        return [group for group in found if group.muted_at is None]

    async def _take(self) -> Snapshot:
        async with self._pool.acquire() as connection:
            stats = Stats(connection, self._schema)
            clock = await stats.clock()
            flows = await stats.flows()
            ready, delayed = await stats.ready(READY_CAP)
            queues = await Queues(connection, self._schema).list()
            fleet, unroutable = await stats.fleet(), await stats.unroutable()
            schedules = await Schedules(connection, self._schema).troubled()
            samples = await stats.samples("*", HISTORY_MINUTES)
            if not self._seen:
                self._remember(clock.now, samples, await stats.recent())
        sums = totals(flows)
        return Snapshot(
            at=clock.now,
            taken=time.monotonic(),
            flows=flows,
            states={state: max(0, n) for state, n in by_status(flows).items()},
            totals=sums,
            ready=ready,
            delayed=delayed,
            fleet=fleet,
            queues=queues,
            unroutable=unroutable,
            rates=self._rates(sums, queues),
            samples=samples,
            schedules=schedules,
        )

    def _remember(self, now: datetime, samples: Sequence[Sample], recent: Mapping[str, Past]) -> None:
        """What was noted some minutes ago, as if this process had seen it."""
        oldest = next((one for one in samples if one.at > now - _RECENT), None)
        if oldest is None:
            return
        sums = {"enqueued": oldest.enqueued, "completed": oldest.completed, "attempt_failures": oldest.failed}
        by_queue = {name: (past.enqueued, past.completed) for name, past in recent.items()}
        self._seen.append((self._clock() - (now - oldest.at).total_seconds(), sums, by_queue))

    def _rates(self, sums: dict[str, int], queues: Sequence[Queue]) -> Rates | None:
        now = self._clock()
        # One look from before the window stays, as what the window's first is compared with.
        while len(self._seen) > 1 and self._seen[1][0] <= now - WINDOW:
            self._seen.popleft()
        by_queue = {queue.name: (queue.enqueued, queue.completed) for queue in queues}
        self._seen.append((now, sums, by_queue))
        then, before, before_queues = self._seen[0]
        seconds = now - then
        if seconds < 1:
            return None

        def rate(name: str) -> float:
            return (sums[name] - before[name]) / seconds

        def queue_rate(name: str) -> tuple[float, float]:
            is_ = by_queue[name]
            # Not noted then: it is new since, unless only the busiest were noted.
            was = before_queues.get(name, is_ if len(before_queues) >= _NOTED else (0, 0))
            return (is_[0] - was[0]) / seconds, (is_[1] - was[1]) / seconds

        return Rates(
            rate("enqueued"), rate("completed"), rate("attempt_failures"), {name: queue_rate(name) for name in by_queue}
        )
