"""The first page: what is running, what is wrong, and whether it gets better."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import msgspec
from msgspec import Struct
from starlette.responses import Response

from dhara.dashboard.pulse import MOST_COUNTED, Rates, Snapshot
from dhara.dashboard.visit import Visit, link
from dhara.dashboard.words import count, duration, relative
from dhara.domain.lifecycle import State
from dhara.store.failures import Group
from dhara.store.queues import Queue
from dhara.store.stats import Sample
from dhara.store.workers import RunningTask

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
    snapshot = await visit.desk.pulse.snapshot()
    if visit.limited:
        snapshot = within(snapshot, visit)
    queues = snapshot.queues
    return visit.page(
        "overview.html",
        running=await _running(visit),
        failures=await _failures(visit),
        now=snapshot.now(),
        snapshot=snapshot,
        notices=list(attention(snapshot, queues, visit.desk.wait_objective)),
        strips=strips(queues, snapshot.rates)[:MOST_STRIPS],
        most_strips=MOST_STRIPS,
        wait_objective=visit.desk.wait_objective,
        drains=forecast(snapshot),
        charts=charts(snapshot.samples),
        oldest=oldest(queues),
    )


async def _running(visit: Visit) -> list[RunningTask]:
    """What runs longest, of what the visitor may see."""
    workers = await visit.desk.workers.recent(0)
    return await visit.desk.workers.running([worker.id for worker in workers], MOST_SHOWN, visit.queues)


async def _failures(visit: Visit) -> list[Group]:
    """What failed last, by cause."""
    if not visit.limited:
        return (await visit.desk.pulse.failures())[:MOST_SHOWN]
    groups = await visit.desk.failures.groups(cap=MOST_COUNTED, queues=visit.queues)
    return [group for group in groups if group.muted_at is None][:MOST_SHOWN]


def within(snapshot: Snapshot, visit: Visit) -> Snapshot:
    """The figures of the queues that the visitor may see. What is known of the whole fleet only is left out."""
    queues = [queue for queue in snapshot.queues if visit.sees(queue.name)]
    seen = {queue.name for queue in queues}
    rates = snapshot.rates
    if rates is not None:
        own = {name: both for name, both in rates.queues.items() if name in seen}
        rates = Rates(sum(one for one, _ in own.values()), sum(one for _, one in own.values()), 0.0, own)
    running, dead = sum(queue.running for queue in queues), sum(queue.dead for queue in queues)
    return msgspec.structs.replace(
        snapshot,
        queues=queues,
        ready=sum(queue.ready for queue in queues),
        delayed=sum(queue.delayed for queue in queues),
        states={State.RUNNING: running, State.DEAD: dead},
        totals={"completed": sum(queue.completed for queue in queues)},
        rates=rates,
        unroutable=[one for one in snapshot.unroutable if one.queue in seen],
        schedules=[one for one in snapshot.schedules if visit.sees(one.queue)],
        samples=[],
        flows=[],
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


def oldest(queues: list[Queue]) -> Queue | None:
    """The queue whose oldest ready task has waited longest; a paused one only if no other has any, for it is meant to wait."""
    waiting = [queue for queue in queues if queue.oldest_ready_age is not None]
    return max(waiting, key=lambda queue: (queue.paused_at is None, queue.oldest_ready_age), default=None)


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


def attention(snapshot: Snapshot, queues: list[Queue], wait_objective: float) -> Iterator[Notice]:
    """What somebody should look at, the worst first. `wait_objective`: of queues that have none of their own, in seconds."""
    if not snapshot.fleet.workers and snapshot.ready:
        yield Notice(
            "bad",
            f"No worker is alive, and {count(snapshot.ready)} tasks are ready",
            "start one: dhara worker MODULE",
            "/queues",
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
        elif queue.late(wait_objective):
            goal = duration(queue.objective(wait_objective))
            yield Notice(
                "warn",
                f"The oldest ready task of {queue.name} has waited for {duration(queue.oldest_ready_age)}",
                f"it should be {goal} at most: more slots, or find what holds them",
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
