"""Metric names, counters of flows, bounded labels, and the text format as the reference client reads it."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dhara.api.figures import READY_CAP, Figures, Snapshot, families, pending
from dhara.errors import Unavailable
from dhara.store.pool import DatabaseSettings, Pool
from dhara.store.queues import Queue
from dhara.store.shared import Shared
from dhara.store.stats import DatabaseHealth, Fleet, Flow, Histogram, totals
from dhara.telemetry.metrics import (
    BUCKETS,
    BY_NAME,
    MOST_LABELS,
    OTHER,
    TABLE,
    LoopLag,
    Sample,
    Timing,
    Traffic,
    bucket,
    family,
    single,
)
from dhara.telemetry.prometheus import render

SEED = {
    "tasks_enqueued_total": "counter",
    "tasks_completed_total": "counter",
    "tasks_attempt_failures_total": "counter",
    "tasks_retried_total": "counter",
    "tasks_dead_total": "counter",
    "tasks_canceled_total": "counter",
    "tasks_reaped_total": "counter",
    "tasks_by_status": "gauge",
    "tasks_pending_breakdown": "gauge",
    "workers_total": "gauge",
    "workers_inflight": "gauge",
}


def queue(name: str, depth: int = 0, enqueued: int = 0, completed: int = 0, objective: float | None = None) -> Queue:
    return Queue(
        name=name,
        depth=depth,
        ready=0,
        ready_capped=False,
        delayed=0,
        running=0,
        dead=0,
        enqueued=enqueued,
        completed=completed,
        wait_objective=objective,
    )


def snapshot(**values: Any) -> Snapshot:
    fields: dict[str, Any] = {
        "flows": [],
        "ready": 0,
        "delayed": 0,
        "fleet": Fleet(2, 20, 3, 1.5),
        "histograms": [],
        "health": DatabaseHealth(0, 0, 0.0, 0.0),
        "queues": [],
        "wait_objective": 300.0,
    }
    return Snapshot(**fields | values)


def test_the_seed_names_are_exact() -> None:
    assert {name: BY_NAME[name].kind for name in SEED} == SEED
    assert len(BY_NAME) == len(TABLE)
    for metric in TABLE:
        assert re.fullmatch(r"[a-z_]+", metric.name)
        assert metric.name in SEED or metric.name.startswith("dhara_")
        assert (metric.kind == "counter") == metric.name.endswith("_total") or metric.name == "workers_total"
        assert metric.help.endswith(".")


def test_buckets_grow_from_a_millisecond_to_an_hour() -> None:
    assert (BUCKETS[0], BUCKETS[-1]) == (0.001, 3600.0)
    assert list(BUCKETS) == sorted(set(BUCKETS))
    assert [bucket(0), bucket(0.001), bucket(0.0011), bucket(3600), bucket(3601)] == [0, 0, 1, 19, 20]


def test_counters_are_sums_of_flows() -> None:
    flows = [
        Flow("ENQUEUED", None, "PENDING", 100),
        Flow("COMPLETED", "RUNNING", "COMPLETED", 50),
        Flow("RETRIED", "RUNNING", "PENDING", 7),
        Flow("REAPED", "RUNNING", "PENDING", 3),
        Flow("DEAD", "RUNNING", "DEAD", 5),
        Flow("EXPIRED", "PENDING", "DEAD", 2),
        Flow("REAPED_FINAL", None, None, 1),
        Flow("CANCELED", "PENDING", "CANCELED", 4),
        Flow("CANCELED", "RUNNING", "CANCELED", 1),
        Flow("SNOOZED", "RUNNING", "PENDING", 9),
    ]
    assert totals(flows) == {
        "enqueued": 100,
        "completed": 50,
        "attempt_failures": 15,
        "retried": 7,
        "dead": 7,
        "canceled": 5,
        "reaped": 4,
    }


@pytest.mark.parametrize(
    ("ready", "delayed", "total", "expected"),
    [
        (3, 4, 7, (3, 4)),
        (3, READY_CAP, 500_000, (3, 499_997)),
        (READY_CAP, 5, 500_000, (499_995, 5)),
        (READY_CAP, READY_CAP, 500_000, (READY_CAP, 500_000 - READY_CAP)),
        (3, 4, 2, (3, 0)),
    ],
)
def test_pending_beyond_the_cap_follows_from_the_flows(
    ready: int, delayed: int, total: int, expected: tuple[int, int]
) -> None:
    flows = [Flow("ENQUEUED", None, "PENDING", total)]
    assert pending(snapshot(flows=flows, ready=ready, delayed=delayed)) == expected


def test_labels_are_bounded_whatever_comes() -> None:
    buckets = [1] * (len(BUCKETS) + 1)
    histograms = [Histogram(name, f"q{n}", f"t{n}", 1.0, buckets) for name in ("run", "wait") for n in range(10_000)]
    queues = [queue(f"q{n}", depth=1, objective=float(n) if n in (1, 500) else None) for n in range(1_000)]
    shown = {one.metric.name: one.series for one in families(snapshot(histograms=histograms, queues=queues))}
    for name in ("dhara_task_run_seconds", "dhara_task_wait_seconds", "dhara_queue_depth"):
        assert len(shown[name]) == MOST_LABELS + 1
    rest = shown["dhara_task_run_seconds"][-1]
    assert isinstance(rest, Timing)
    assert (rest.labels, rest.total, rest.buckets[0]) == ((OTHER, OTHER), 9_800.0, 9_800)
    assert shown["dhara_queue_depth"][-1] == Sample((OTHER,), 800)
    objectives = shown["dhara_queue_wait_objective_seconds"]
    assert [one.value for one in (*objectives[:3], objectives[-1]) if isinstance(one, Sample)] == [300, 1, 300, 300]


def test_the_reference_parser_reads_what_is_rendered() -> None:
    traffic = Traffic()
    traffic.observe("GET", "/api/v1/tasks", 200, 0.003)
    traffic.observe("GET", "/api/v1/tasks", 200, 99)
    flows = [Flow("ENQUEUED", None, "PENDING", 12345678901234)]
    histograms = [Histogram("run", "q", 'odd"\\\n', 2.5, [1, 2, *[0] * (len(BUCKETS) - 1)])]
    text = render(
        [*families(snapshot(flows=flows, histograms=histograms)), *traffic.families(), single("dhara_waiters", 0.5)]
    )
    read = {one.name: one for one in text_string_to_metric_families(text)}
    values = {(s.name, tuple(sorted(s.labels.items()))): s.value for one in read.values() for s in one.samples}
    assert values[("tasks_enqueued_total", ())] == 12345678901234
    assert values[("dhara_waiters", ())] == 0.5
    odd = (("queue", "q"), ("type", 'odd"\\\n'))
    assert values[("dhara_task_run_seconds_bucket", (("le", "0.001"), *odd))] == 1
    assert values[("dhara_task_run_seconds_bucket", (("le", "+Inf"), *odd))] == 3
    assert values[("dhara_task_run_seconds_count", odd)] == 3
    assert values[("dhara_task_run_seconds_sum", odd)] == 2.5
    seen = (("method", "GET"), ("route", "/api/v1/tasks"))
    assert values[("dhara_http_requests_total", (*seen, ("status", "200")))] == 2
    assert values[("dhara_http_request_seconds_bucket", (("le", "60"), *seen))] == 1
    assert values[("dhara_http_request_seconds_count", seen)] == 2
    assert {name.removesuffix("_total") for name in SEED} <= {name.removesuffix("_total") for name in read}


def test_a_family_without_series_still_has_its_type() -> None:
    assert render([family("dhara_queue_depth")]).splitlines() == [
        "# HELP dhara_queue_depth PENDING tasks of a queue.",
        "# TYPE dhara_queue_depth gauge",
    ]


def test_rates_need_two_looks() -> None:
    now = [100.0]
    figures = Figures(Pool(DatabaseSettings(dsn="postgresql://nowhere")), "dhara", clock=lambda: now[0])
    assert figures.rates([queue("a", enqueued=10)]) == {}
    now[0] += 10
    assert figures.rates([queue("a", enqueued=30, completed=5), queue("b", enqueued=20)]) == {
        "a": (2.0, 0.5),
        "b": (2.0, 0.0),
    }
    now[0] += 1_000
    assert figures.rate(queue("a", enqueued=30)) is None


async def test_one_run_serves_all_who_ask_at_once() -> None:
    runs = 0
    gate = asyncio.Event()

    async def work() -> int:
        nonlocal runs
        runs += 1
        await gate.wait()
        return runs

    shared = Shared(work, keep=60)
    asking = [asyncio.create_task(shared.get(5)) for _ in range(50)]
    await asyncio.sleep(0)
    gate.set()
    assert await asyncio.gather(*asking) == [1] * 50
    assert await shared.get(5) == 1


async def test_a_run_that_hangs_is_waited_for_in_vain_only_so_long() -> None:
    started = 0
    gate = asyncio.Event()

    async def work() -> int:
        nonlocal started
        started += 1
        await gate.wait()
        return started

    shared = Shared(work)
    before = time.monotonic()
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"no answer within 0\.05 s"):
            await shared.get(0.05)
    assert time.monotonic() - before < 30
    assert started == 1
    gate.set()
    assert await shared.get(5) == 1
    assert await shared.get(5) == 2


async def test_an_error_is_told_to_all_and_not_kept() -> None:
    errors = [RuntimeError("first")]

    async def work() -> int:
        await asyncio.sleep(0)
        if errors:
            raise errors.pop()
        return 1

    shared = Shared(work, keep=60)
    told = await asyncio.gather(*(shared.get(5) for _ in range(3)), return_exceptions=True)
    assert [type(one) for one in told] == [RuntimeError] * 3
    assert await shared.get(5) == 1


async def test_loop_lag_sees_a_blocked_loop() -> None:
    async with LoopLag(interval=0.01) as lag:
        await asyncio.sleep(0.05)
        time.sleep(0.2)
        await asyncio.sleep(0.05)
        assert lag.seconds >= 0.15
