"""Endpoints of queues, workers and figures."""

from __future__ import annotations

import logging

from dhara.api.exchange import Reply, Request, json_reply
from dhara.api.figures import HISTORY_MINUTES, Pulse, families, outlook, pending
from dhara.api.problems import not_found
from dhara.api.shapes import (
    FleetOut,
    PendingOut,
    QueueList,
    StatsOut,
    UnroutableOut,
    WorkerList,
    history_out,
    queue_out,
    rates_out,
    worker_out,
)
from dhara.api.tasks import id_of
from dhara.api.wire import queue_change
from dhara.domain import limits
from dhara.store.queues import Queues
from dhara.store.stats import by_status, totals
from dhara.telemetry.metrics import Family, Sample, family, single
from dhara.telemetry.prometheus import CONTENT_TYPE, render

log = logging.getLogger(__name__)


async def queues(request: Request) -> Reply:
    found = [queue for queue in await request.parts.queues.list() if request.principal.sees(queue.name)]
    figures = request.parts.figures
    rates, recent = figures.rates(found), (await figures.pulse()).recent
    return json_reply(
        QueueList([queue_out(one, rates.get(one.name), outlook(one, recent.get(one.name))) for one in found])
    )


async def queue(request: Request) -> Reply:
    found = await request.parts.queues.get(_name(request))
    past = (await request.parts.figures.pulse()).recent.get(found.name)
    return json_reply(queue_out(found, request.parts.figures.rate(found), outlook(found, past)))


async def change(request: Request) -> Reply:
    name = _name(request)
    found = await queue_change(request)
    # All of it or nothing; the limit first, which is the order of locks that a limit alone has, too.
    async with request.parts.pool.acquire() as connection, connection.transaction():
        queues = Queues(connection, request.parts.queues.schema)
        if "limit" in found:
            await queues.limit(name, found["limit"], request.actor)
        if "retention" in found:
            await queues.retain(name, _seconds(found["retention"]), request.actor)
        if "wait_objective" in found:
            await queues.aim(name, _seconds(found["wait_objective"]), request.actor)
    if "limit" in found:
        await request.parts.pressure.refresh()
    return await queue(request)


def _seconds(value: float | None) -> float | None:
    return None if value is None else float(value)


async def pause(request: Request) -> Reply:
    await request.parts.queues.pause(_name(request), request.actor)
    return await queue(request)


async def resume(request: Request) -> Reply:
    name = _name(request)
    await request.parts.queues.resume(name, request.actor)
    if request.parts.notifier is not None:
        request.parts.notifier.wake(name)
    return await queue(request)


async def workers(request: Request) -> Reply:
    found = await request.parts.workers.recent()
    running = await request.parts.workers.running([worker.id for worker in found])
    return json_reply(WorkerList([worker_out(worker, running) for worker in found]))


async def drain(request: Request) -> Reply:
    id = id_of(request)
    found = await request.parts.workers.ask_drain(id, request.actor)
    if request.parts.notifier is not None:
        request.parts.notifier.cancel(id)
    return json_reply(worker_out(found, await request.parts.workers.running([id])))


async def stats(request: Request) -> Reply:
    return json_reply(stats_out(await request.parts.figures.pulse()))


def stats_out(pulse: Pulse) -> StatsOut:
    """The figures for a dashboard."""
    ready, delayed = pending(pulse)
    fleet = pulse.fleet
    return StatsOut(
        by_status={state.value: max(0, n) for state, n in by_status(pulse.flows).items()},
        pending=PendingOut(ready, delayed),
        totals=totals(pulse.flows),
        fleet=FleetOut(fleet.workers, fleet.slots, fleet.running, round(fleet.beat_age, 3)),
        queues=len(pulse.queues),
        unroutable=[UnroutableOut(found.type, found.queue, found.count) for found in pulse.unroutable],
        rates=rates_out(pulse.samples),
        history=history_out(pulse.samples),
    )


async def history(request: Request) -> Reply:
    queue, minutes = request.query.get("queue", "*"), request.query.get("minutes", HISTORY_MINUTES)
    return json_reply(history_out(await request.parts.stats.samples(queue, minutes)))


async def metrics(request: Request) -> Reply:
    """The fleet's figures and this process' own; without a database only the latter, and `dhara_database_up 0`."""
    try:
        fleet = [single("dhara_database_up", 1), *families(await request.parts.figures.snapshot())]
    except Exception as error:
        log.warning("metrics without the database: %s: %s", type(error).__name__, error)
        fleet = [single("dhara_database_up", 0)]
    return Reply(200, render([*fleet, *_own(request)]).encode(), CONTENT_TYPE.encode())


def _own(request: Request) -> list[Family]:
    parts = request.parts
    return [
        *parts.traffic.families(),
        single("dhara_enqueue_batches_total", parts.ingest.batches),
        single("dhara_enqueue_batched_tasks_total", parts.ingest.batched),
        single("dhara_enqueue_waiting", parts.ingest.waiting),
        single("dhara_waiters", len(parts.waiters)),
        single("dhara_event_streams", len(parts.feed)),
        family(
            "dhara_pool_connections",
            Sample(("used",), parts.pool.size - parts.pool.idle),
            Sample(("idle",), parts.pool.idle),
        ),
        single("dhara_loop_lag_seconds", parts.lag.seconds),
    ]


def _name(request: Request) -> str:
    name = request.path["name"]
    if not limits.NAME.fullmatch(name) or not request.principal.sees(name):
        raise not_found()
    return name
