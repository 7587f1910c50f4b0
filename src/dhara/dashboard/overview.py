"""The first page: what is running, what is wrong, and whether it gets better."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import msgspec
from msgspec import Struct
from starlette.responses import Response

from dhara.dashboard.pulse import Rates, Snapshot
from dhara.dashboard.visit import Visit, link
from dhara.dashboard.words import count, duration, relative
from dhara.store.queues import Queue
from dhara.store.stats import Sample

# Ready tasks that have waited for so long deserve a look.
WAITING_SECONDS = 300.0
MOST_STRIPS = 50
# As many running tasks and causes of failures as the page shows.
MOST_SHOWN = 5
MOST_BARE = 2


class Notice(Struct, frozen=True):
    """Something that needs attention: what, why it matters or what to do, and where. `level`: bad or warn."""

    level: str
    text: str
    hint: str
    path: str


class Strip(Struct, frozen=True):
    """A queue in one line. `drains_in` is seconds, None: unknown; `grows`: more comes in than goes out."""

    queue: Queue
    rate_in: float | None
    rate_out: float | None
    drains_in: float | None
    grows: bool


async def show(visit: Visit) -> Response:
    if visit.limited:
        return visit.back("/queues")
    snapshot = await visit.desk.pulse.snapshot()
    queues = [queue for queue in snapshot.queues if visit.sees(queue.name)]
    workers = await visit.desk.workers.recent(0)
    return visit.page(
        "overview.html",
        running=await visit.desk.workers.running([worker.id for worker in workers], MOST_SHOWN),
        failures=(await visit.desk.pulse.failures())[:MOST_SHOWN],
        now=snapshot.now(),
        snapshot=snapshot,
        notices=list(attention(snapshot, queues)),
        strips=strips(queues, snapshot.rates)[:MOST_STRIPS],
        most_strips=MOST_STRIPS,
        drains=forecast(snapshot),
        charts=charts(snapshot.samples),
        oldest=max((queue.oldest_ready_age or 0.0 for queue in queues), default=0.0),
    )


def strips(queues: list[Queue], rates: Rates | None) -> list[Strip]:
    """Queues with work first, the most of it on top."""
    ordered = sorted(queues, key=lambda queue: (-(queue.ready + queue.running), -queue.depth, queue.name))
    return [strip(queue, rates) for queue in ordered]


def strip(queue: Queue, rates: Rates | None) -> Strip:
    rate_in, rate_out = rates.queues.get(queue.name, (None, None)) if rates else (None, None)
    if rate_in is None or rate_out is None or not queue.ready:
        return Strip(queue, rate_in, rate_out, None, False)
    net = rate_out - rate_in
    return Strip(queue, rate_in, rate_out, queue.ready / net if net > 0 else None, net < 0)


def forecast(snapshot: Snapshot) -> tuple[float | None, bool]:
    """Seconds until the ready tasks are done at the rates of the last minute, if they shrink; and whether they grow."""
    if snapshot.rates is None or not snapshot.ready:
        return None, False
    net = snapshot.rates.completed - snapshot.rates.enqueued
    return (snapshot.ready / net if net > 0 else None), net < 0


class Chart(Struct, frozen=True):
    """Rates a minute, minute by minute, as the page's script draws them; `about` says it in words."""

    title: str
    about: str
    data: str


def charts(samples: list[Sample]) -> list[Chart]:
    """What came in and went out, and what failed, in the last hour; nothing until two minutes are known."""
    spans = [(a, b, (b.at - a.at).total_seconds() / 60) for a, b in pairwise(samples)]
    # The minute that has just begun says nothing yet.
    spans = [(a, b, minutes) for a, b, minutes in spans if minutes > 0.15]
    if len(spans) < MOST_BARE:
        return []
    at = [int(b.at.timestamp()) for _, b, _ in spans]

    def per_minute(field: str) -> list[float]:
        return [round(max(0, getattr(b, field) - getattr(a, field)) / minutes, 2) for a, b, minutes in spans]

    def chart(title: str, *series: tuple[str, str, str]) -> Chart:
        found: list[dict[str, Any]] = [
            {"label": label, "kind": kind, "values": per_minute(field)} for label, kind, field in series
        ]
        last = ", ".join(f"{one['label'].lower()} {one['values'][-1]:,.0f}" for one in found)
        peak = max(max(one["values"]) for one in found)
        about = f"{title}, tasks a minute over the last hour: now {last}; at most {peak:,.0f}"
        return Chart(title, about, msgspec.json.encode({"at": at, "series": found}).decode())

    return [
        chart("Throughput", ("Enqueued", "ready", "enqueued"), ("Completed", "good", "completed")),
        chart("Failures", ("Failed attempts", "warn", "failed"), ("Dead", "bad", "dead")),
    ]


def rising(samples: list[Sample]) -> tuple[float, float] | None:
    """Failed attempts a minute in the last five minutes and in the hour before, if they have clearly become more."""
    if len(samples) < 8:
        return None
    first, middle, last = samples[0], samples[-6], samples[-1]
    before = (middle.failed - first.failed) / max(1.0, (middle.at - first.at).total_seconds() / 60)
    lately = (last.failed - middle.failed) / max(1.0, (last.at - middle.at).total_seconds() / 60)
    return (lately, before) if lately >= 5 and lately > 3 * before else None


def attention(snapshot: Snapshot, queues: list[Queue]) -> Iterator[Notice]:
    """What somebody should look at, the worst first."""
    if not snapshot.fleet.workers and snapshot.ready:
        yield Notice(
            "bad",
            f"No worker is alive, and {count(snapshot.ready)} tasks are ready",
            "start one: dhara worker MODULE",
            "/workers",
        )
    if (more := rising(snapshot.samples)) is not None:
        text = f"Failures are rising: {more[0]:,.0f} failed attempts a minute, {more[1]:,.1f} in the hour before"
        yield Notice("bad", text, "see them by cause", "/failures")
    for found in snapshot.unroutable[:5] if snapshot.fleet.workers else ():
        yield Notice(
            "bad",
            f"{count(found.count)} ready in {found.queue}, and no live worker knows {found.type}",
            "start a worker whose registry has this type",
            link("/tasks", {"type": found.type, "queue": found.queue, "due": "ready"}),
        )
    yield from troubled(snapshot)
    for queue in queues:
        if queue.paused_at is not None and queue.ready:
            yield Notice(
                "warn",
                f"{queue.name} is paused, with {count(queue.ready, queue.ready_capped)} ready",
                f"paused by {queue.paused_by or 'somebody'}; resume it under Queues",
                f"/queues#queue-{queue.name}",
            )
        elif (queue.oldest_ready_age or 0) > WAITING_SECONDS:
            yield Notice(
                "warn",
                f"The oldest ready task of {queue.name} waits for {duration(queue.oldest_ready_age)}",
                "more slots, or find what holds them",
                link("/tasks", {"queue": queue.name, "due": "ready"}),
            )


def troubled(snapshot: Snapshot) -> Iterator[Notice]:
    """Schedules that have stopped, or whose work fails."""
    now = snapshot.now()
    for one in snapshot.schedules:
        path, ago = f"/schedules/{one.name}", relative(one.since, now)
        match one.trouble:
            case "broken":
                why = (one.paused_by or "").removeprefix("dhara: ")
                yield Notice("bad", f"Schedule {one.name} could not be fired, and is paused", why, path)
            case "overdue":
                hint = "no server or worker fires schedules, or they fall behind: see Workers, and their logs"
                yield Notice("bad", f"Schedule {one.name} should have fired {ago}", hint, path)
            case "failed":
                hint = "open the task to see why, and retry it"
                text = f"The last task of schedule {one.name} died {ago}"
                yield Notice("warn", text, hint, f"/tasks/{one.last_task}")
            case _:
                hint = f"paused by {one.paused_by or 'somebody'}; resume it there if that was not meant"
                yield Notice("warn", f"Schedule {one.name} is paused, and has not fired since {ago}", hint, path)
