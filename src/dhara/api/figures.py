"""The fleet's figures, taken from the database at most once a second, however many ask: for /metrics and /stats."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from msgspec import Struct

from dhara.domain.forecast import Forecast, forecast
from dhara.domain.lifecycle import State
from dhara.settings import Settings
from dhara.store.pool import Executor, Pool
from dhara.store.queues import Queue, Queues
from dhara.store.shared import Shared
from dhara.store.stats import DatabaseHealth, Fleet, Flow, Histogram, Past, Stats, Unroutable, by_status, totals
from dhara.store.stats import Sample as Totals
from dhara.telemetry.metrics import (
    BUCKETS,
    BY_NAME,
    HISTOGRAMS,
    MOST_LABELS,
    OTHER,
    Family,
    Metric,
    Sample,
    Timing,
    family,
    single,
)

KEEP = 1.0
PATIENCE = 3.0
READY_CAP = 10_000
MOST_HISTOGRAMS = 20_000
RATE_WINDOW = 60.0
HISTORY_MINUTES = 60


class Pulse(Struct, frozen=True, kw_only=True):
    """What the database said in one moment: what somebody who watches wants to see every second."""

    flows: list[Flow]
    ready: int
    delayed: int
    fleet: Fleet
    queues: list[Queue]
    unroutable: list[Unroutable] = []
    recent: dict[str, Past] = {}
    samples: list[Totals] = []


class Snapshot(Pulse, frozen=True, kw_only=True):
    """The same, and what a scrape of the metrics wants besides. `wait_objective`: the general one, in seconds."""

    wait_objective: float
    histograms: list[Histogram]
    health: DatabaseHealth


class Figures:
    """Takes snapshots and remembers what rates need."""

    def __init__(
        self,
        pool: Pool,
        schema: str,
        clock: Callable[[], float] = time.monotonic,
        wait_objective: float = Settings().wait_objective,
    ) -> None:
        self._pool = pool
        self._schema = schema
        self._clock = clock
        self._wait_objective = wait_objective
        self._shared = Shared(self._take, KEEP)
        self._pulses = Shared(self._take_pulse, KEEP)
        self._seen: deque[tuple[float, dict[str, tuple[int, int]]]] = deque()

    async def snapshot(self) -> Snapshot:
        """The latest figures, at most a second old. Raises `Unavailable` and what the database says."""
        return await self._shared.get(PATIENCE)

    async def pulse(self) -> Pulse:
        """The latest figures for people who watch, at most a second old."""
        return await self._pulses.get(PATIENCE)

    def rates(self, queues: Sequence[Queue]) -> dict[str, tuple[float, float]]:
        """Tasks a second into and out of each of all queues over the last minute; nothing on the first look."""
        now = self._clock()
        while self._seen and self._seen[0][0] < now - RATE_WINDOW:
            self._seen.popleft()
        rates = {queue.name: found for queue in queues if (found := self.rate(queue)) is not None}
        if not self._seen or now - self._seen[-1][0] >= 1:
            self._seen.append((now, {queue.name: (queue.enqueued, queue.completed) for queue in queues}))
        return rates

    def rate(self, queue: Queue) -> tuple[float, float] | None:
        """Tasks a second into and out of one queue since the oldest look of the last minute, or None."""
        if not self._seen:
            return None
        then, totals = self._seen[0]
        seconds = self._clock() - then
        if not 1 <= seconds <= 2 * RATE_WINDOW:
            return None
        enqueued, completed = totals.get(queue.name, (0, 0))
        return round((queue.enqueued - enqueued) / seconds, 3), round((queue.completed - completed) / seconds, 3)

    async def _take(self) -> Snapshot:
        async with self._pool.acquire() as connection:
            stats = Stats(connection, self._schema)
            return Snapshot(
                **await self._pulse(connection, stats),
                wait_objective=self._wait_objective,
                histograms=await stats.histograms(MOST_HISTOGRAMS),
                health=await stats.health(),
            )

    async def _take_pulse(self) -> Pulse:
        async with self._pool.acquire() as connection:
            return Pulse(**await self._pulse(connection, Stats(connection, self._schema)))

    async def _pulse(self, connection: Executor, stats: Stats) -> dict[str, Any]:
        flows = await stats.flows()
        ready, delayed = await stats.ready(READY_CAP)
        return {
            "flows": flows,
            "ready": ready,
            "delayed": delayed,
            "fleet": await stats.fleet(),
            "queues": await Queues(connection, self._schema).list(),
            "unroutable": await stats.unroutable(),
            "recent": await stats.recent(),
            "samples": await stats.samples("*", HISTORY_MINUTES),
        }


def outlook(queue: Queue, past: Past | None) -> Forecast:
    """What the queue's backlog is coming to."""
    if past is None or past.age < 1:
        return forecast(queue.ready, None, None)
    change, out = queue.depth - past.depth, queue.completed - past.completed
    return forecast(queue.ready, change / past.age, out / past.age)


def pending(snapshot: Pulse) -> tuple[int, int]:
    """PENDING tasks, ready and delayed. Counting stops at a cap; what is beyond it follows from the flows."""
    total = max(0, by_status(snapshot.flows)[State.PENDING])
    if snapshot.ready < READY_CAP:
        return snapshot.ready, max(0, total - snapshot.ready)
    if snapshot.delayed < READY_CAP:
        return max(0, total - snapshot.delayed), snapshot.delayed
    return snapshot.ready, max(0, total - snapshot.ready)


def families(snapshot: Snapshot) -> list[Family]:
    """The fleet's metrics."""
    ready, delayed = pending(snapshot)
    states = by_status(snapshot.flows)
    fleet = snapshot.fleet
    return [
        *(single(f"tasks_{name}_total", n) for name, n in totals(snapshot.flows).items()),
        family("tasks_by_status", *(Sample((state.value,), max(0, n)) for state, n in states.items())),
        family("tasks_pending_breakdown", Sample(("ready",), ready), Sample(("delayed",), delayed)),
        single("workers_total", fleet.workers),
        single("workers_inflight", fleet.running),
        single("dhara_worker_slots", fleet.slots),
        single("dhara_heartbeat_age_seconds", fleet.beat_age),
        *_queue_families(snapshot.queues, snapshot.wait_objective),
        family("dhara_tasks_unroutable", *_by_type(snapshot.unroutable)),
        *_histogram_families(snapshot.histograms),
        single("dhara_database_dead_rows", snapshot.health.dead_rows),
        single("dhara_database_live_rows", snapshot.health.live_rows),
        single("dhara_database_oldest_transaction_seconds", snapshot.health.oldest_transaction),
        single("dhara_database_notify_queue_usage", snapshot.health.notify_usage),
    ]


def _by_type(unroutable: Sequence[Unroutable]) -> list[Sample]:
    """Added up by type; types beyond the bound as one. Most come first, so it is the small ones that are added up."""
    counts: dict[str, int] = {}
    for found in unroutable:
        label = found.type if found.type in counts or len(counts) < MOST_LABELS else OTHER
        counts[label] = counts.get(label, 0) + found.count
    return [Sample((type,), count) for type, count in counts.items()]


def _queue_families(queues: Sequence[Queue], wait_objective: float) -> list[Family]:
    shown, rest = queues[:MOST_LABELS], queues[MOST_LABELS:]

    def gauge(name: str, value: Callable[[Queue], float], add: Callable[[Iterable[float]], float]) -> Family:
        series = [Sample((queue.name,), value(queue)) for queue in shown]
        if rest:
            series.append(Sample((OTHER,), add(value(queue) for queue in rest)))
        return family(name, *series)

    return [
        gauge("dhara_queue_depth", lambda queue: queue.depth, sum),
        gauge("dhara_queue_running", lambda queue: queue.running, sum),
        gauge("dhara_queue_oldest_ready_age_seconds", lambda queue: queue.oldest_ready_age or 0, max),
        # Of many as one the strictest: better an alert too many than one too few.
        gauge("dhara_queue_wait_objective_seconds", lambda queue: queue.objective(wait_objective), min),
        gauge("dhara_queue_paused", lambda queue: queue.paused_at is not None, max),
    ]


def _histogram_families(histograms: Sequence[Histogram]) -> list[Family]:
    return [
        family(
            metric,
            *_bounded(
                BY_NAME[metric], [h for h in histograms if h.name == name and len(h.buckets) == len(BUCKETS) + 1]
            ),
        )
        for name, metric in HISTOGRAMS.items()
    ]


def _bounded(metric: Metric, histograms: Sequence[Histogram]) -> list[Timing]:
    """The first series as they are; all others added up, so that random types cannot grow the exposition."""
    if not metric.labels:
        return [Timing((), h.total, h.buckets) for h in histograms[:1]]
    shown = [Timing((h.queue, h.type), h.total, h.buckets) for h in histograms[:MOST_LABELS]]
    if rest := histograms[MOST_LABELS:]:
        buckets = [sum(column) for column in zip(*(h.buckets for h in rest), strict=True)]
        shown.append(Timing((OTHER, OTHER), sum(h.total for h in rest), buckets))
    return shown
