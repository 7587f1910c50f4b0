"""The metrics: one table of names, and the few that are counted inside a process.

Most figures speak for the whole fleet and come from the database when somebody scrapes (`api/figures.py`); what only one
process can know (its HTTP requests, its loop, its pool) is counted here, in plain attributes, and read by the scrape.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping

from msgspec import Struct

from dhara.service import Service

# Upper bounds of the wait and run time buckets in seconds, 1 ms to 1 h; a 21st bucket holds the rest.
BUCKETS: tuple[float, ...] = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0),
)
HTTP_BUCKETS: tuple[float, ...] = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    60.0,
)
# Label values per family; what comes after them is added up as `other`.
MOST_LABELS = 200
OTHER = "other"


class Metric(Struct, frozen=True):
    """A row of the table. `kind` is counter, gauge or histogram."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()


TABLE: tuple[Metric, ...] = (
    Metric("tasks_enqueued_total", "counter", "Tasks enqueued."),
    Metric("tasks_completed_total", "counter", "Tasks that became COMPLETED."),
    Metric("tasks_attempt_failures_total", "counter", "Attempts that failed: retried, dead-lettered or reaped."),
    Metric("tasks_retried_total", "counter", "Failed attempts that are followed by another one."),
    Metric("tasks_dead_total", "counter", "Tasks that became DEAD."),
    Metric("tasks_canceled_total", "counter", "Tasks that became CANCELED."),
    Metric("tasks_reaped_total", "counter", "Tasks taken back from lost or crashed workers."),
    Metric("tasks_by_status", "gauge", "Tasks in each state now.", ("status",)),
    Metric("tasks_pending_breakdown", "gauge", "PENDING tasks that are ready, and that are delayed.", ("status",)),
    Metric("workers_total", "gauge", "Live workers."),
    Metric("workers_inflight", "gauge", "Tasks that live workers were running at their last beat."),
    Metric("dhara_worker_slots", "gauge", "Slots of all live workers."),
    Metric("dhara_heartbeat_age_seconds", "gauge", "Age of the oldest last beat among live workers."),
    Metric("dhara_queue_depth", "gauge", "PENDING tasks of a queue.", ("queue",)),
    Metric("dhara_queue_running", "gauge", "RUNNING tasks of a queue.", ("queue",)),
    Metric(
        "dhara_queue_oldest_ready_age_seconds",
        "gauge",
        "How long a queue's oldest ready task is due.",
        ("queue",),
    ),
    Metric(
        "dhara_queue_wait_objective_seconds",
        "gauge",
        "What that age should not exceed: the queue's own objective, or the general setting.",
        ("queue",),
    ),
    Metric("dhara_queue_paused", "gauge", "1 while a queue is paused.", ("queue",)),
    Metric("dhara_tasks_unroutable", "gauge", "Ready tasks of a type that no live worker knows.", ("type",)),
    Metric(
        "dhara_task_wait_seconds",
        "histogram",
        "From being due to the start of an attempt.",
        ("queue", "type"),
    ),
    Metric("dhara_task_run_seconds", "histogram", "From the start to the end of an attempt.", ("queue", "type")),
    Metric("dhara_claim_seconds", "histogram", "How long claims that took tasks were on their way."),
    Metric("dhara_claim_batch_tasks", "histogram", "Tasks that such a claim took."),
    Metric("dhara_settle_seconds", "histogram", "How long it took to write the outcomes of attempts."),
    Metric("dhara_settle_batch_tasks", "histogram", "Outcomes that were written at once."),
    Metric("dhara_database_dead_rows", "gauge", "Rows of dhara's tables that vacuum has to remove, by the statistics."),
    Metric("dhara_database_live_rows", "gauge", "Rows of dhara's tables that are in use, by the statistics."),
    Metric(
        "dhara_database_oldest_transaction_seconds",
        "gauge",
        "Age of the oldest transaction that keeps vacuum from removing rows.",
    ),
    Metric("dhara_database_notify_queue_usage", "gauge", "How full the database's queue of notifications is, 0 to 1."),
    Metric("dhara_event_streams", "gauge", "Server-sent event streams of this process."),
    Metric("dhara_database_up", "gauge", "1 if the database answered this scrape."),
    Metric(
        "dhara_http_requests_total",
        "counter",
        "HTTP requests of this process.",
        ("method", "route", "status"),
    ),
    Metric(
        "dhara_http_request_seconds",
        "histogram",
        "Times of HTTP requests of this process.",
        ("method", "route"),
    ),
    Metric(
        "dhara_enqueue_batches_total",
        "counter",
        "Statements by which this process enqueued for HTTP callers.",
    ),
    Metric("dhara_enqueue_batched_tasks_total", "counter", "Tasks in those statements."),
    Metric("dhara_enqueue_waiting", "gauge", "HTTP enqueues of this process that wait for their commit."),
    Metric("dhara_waiters", "gauge", "Long polls of this process."),
    Metric("dhara_pool_connections", "gauge", "Database connections of this process.", ("state",)),
    Metric("dhara_loop_lag_seconds", "gauge", "Worst lag of this process' event loop in the last seconds."),
)
BY_NAME: Mapping[str, Metric] = {metric.name: metric for metric in TABLE}
# Series of the table `histograms` -> the metric they are shown as.
HISTOGRAMS: Mapping[str, str] = {
    "wait": "dhara_task_wait_seconds",
    "run": "dhara_task_run_seconds",
    "claim": "dhara_claim_seconds",
    "claim_batch": "dhara_claim_batch_tasks",
    "settle": "dhara_settle_seconds",
    "settle_batch": "dhara_settle_batch_tasks",
}


def bucket(seconds: float, bounds: tuple[float, ...] = BUCKETS) -> int:
    """The index of the bucket that `seconds` falls into; `len(bounds)` is the rest."""
    return bisect_left(bounds, seconds)


class Sample(Struct, frozen=True):
    """One series of a family and its value; `labels` in the table's order."""

    labels: tuple[str, ...]
    value: float


class Timing(Struct, frozen=True):
    """One series of a histogram; `buckets` are counts per bucket (not cumulative), one more than `bounds`."""

    labels: tuple[str, ...]
    total: float
    buckets: list[int]
    bounds: tuple[float, ...] = BUCKETS


class Family(Struct, frozen=True):
    """A metric and its series."""

    metric: Metric
    series: list[Sample | Timing]


def family(name: str, *series: Sample | Timing) -> Family:
    """A family of the table."""
    return Family(BY_NAME[name], list(series))


def single(name: str, value: float) -> Family:
    """A family without labels."""
    return family(name, Sample((), value))


class Traffic:
    """HTTP requests of this process. The labels are bounded: routes are templates, methods are known ones."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, int], int] = {}
        self.times: dict[tuple[str, str], list[int]] = {}
        self.totals: dict[tuple[str, str], float] = {}

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        counted = (method, route, status)
        self.requests[counted] = self.requests.get(counted, 0) + 1
        timed = (method, route)
        buckets = self.times.get(timed)
        if buckets is None:
            buckets = self.times[timed] = [0] * (len(HTTP_BUCKETS) + 1)
            self.totals[timed] = 0.0
        buckets[bisect_left(HTTP_BUCKETS, seconds)] += 1
        self.totals[timed] += seconds

    def families(self) -> Iterable[Family]:
        requests = (Sample((method, route, str(status)), n) for (method, route, status), n in self.requests.items())
        times = (Timing(key, self.totals[key], buckets, HTTP_BUCKETS) for key, buckets in self.times.items())
        return (family("dhara_http_requests_total", *requests), family("dhara_http_request_seconds", *times))


class LoopLag(Service):
    """How late the event loop wakes those who sleep: the worst of the last `keep` seconds."""

    def __init__(self, interval: float = 1.0, keep: float = 15.0) -> None:
        super().__init__()
        self._interval = interval
        self._keep = keep
        self._worst: list[tuple[float, float]] = []

    async def run(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(self._interval)
            now = time.monotonic()
            self._worst = [seen for seen in self._worst if seen[0] > now - self._keep]
            self._worst.append((now, max(0.0, now - before - self._interval)))

    @property
    def seconds(self) -> float:
        """The worst lag lately."""
        return max((lag for _, lag in self._worst), default=0.0)
