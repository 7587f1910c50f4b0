"""Schedules: when each fires next and how the last fire went; pause, resume, run now, make, delete."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from dhara.dashboard.visit import Refusal, Visit, missing
from dhara.domain import limits
from dhara.domain.plan import spec_of
from dhara.domain.schedule import MISSED, OVERLAP
from dhara.store.schedules import Schedule

MOST = 500
COMING, FIRES = 5, 15


async def show(visit: Visit) -> Response:
    snapshot = await visit.desk.pulse.snapshot()
    every = await visit.desk.schedules.all(MOST, visit.queues)
    found = [schedule for schedule in every if visit.sees(schedule.queue)]
    last = [schedule.last_task for schedule in found if schedule.last_task is not None]
    return visit.page(
        "schedules.html",
        now=snapshot.now(),
        schedules=found,
        tasks=await visit.desk.tasks.get_many(last) if last else {},
        missed=MISSED,
        overlap=OVERLAP,
    )


async def one(visit: Visit) -> Response:
    schedule = await _seen(visit)
    snapshot = await visit.desk.pulse.snapshot()
    now = snapshot.now()
    return visit.page(
        "schedule.html",
        now=now,
        schedule=schedule,
        payload=visit.desk.mask.apply(schedule.payload),
        fires=await visit.desk.schedules.fires(schedule.name, FIRES, visit.queues),
        coming=[] if schedule.paused_at else schedule.timing(schedule.anchor).upcoming(now, COMING),
    )


async def create(visit: Visit) -> Response:
    fields = {name: text for name in ("name", "type", "cron", "timezone", "queue") if (text := visit.field(name))}
    fields |= {name: text for name in ("missed", "overlap") if (text := visit.field(name))}
    if every := visit.field("every"):
        fields["every"] = _number(every)
    spec = spec_of(fields, _payload(visit))
    if not visit.sees(spec.queue):
        raise Refusal(403, "Not for this key", f"It may not see the queue {spec.queue}.")
    if await visit.desk.schedules.create(spec, visit.who()) is None:
        raise Refusal(409, "The name is taken", f"There is a schedule {spec.name} already.")
    return visit.back(f"/schedules/{spec.name}", "Made.")


async def pause(visit: Visit) -> Response:
    name = (await _seen(visit)).name
    await visit.desk.schedules.pause(name, visit.who())
    return visit.back(f"/schedules/{name}", "Paused: it does not fire until it is resumed.")


async def resume(visit: Visit) -> Response:
    name = (await _seen(visit)).name
    await visit.desk.schedules.resume(name, visit.who())
    return visit.back(f"/schedules/{name}", "Resumed.")


async def run(visit: Visit) -> Response:
    task = await visit.desk.scheduler.run_now((await _seen(visit)).name, visit.who())
    return visit.back(f"/tasks/{task}", "Enqueued, beside the plan.")


async def delete(visit: Visit) -> Response:
    name = (await _seen(visit)).name
    await visit.desk.schedules.delete(name, visit.who())
    return visit.back("/schedules", f"{name} is deleted; its tasks stay.")


async def _seen(visit: Visit) -> Schedule:
    schedule = await visit.desk.schedules.get(visit.name("schedule"))
    if not visit.sees(schedule.queue):
        raise missing("schedule")
    return schedule


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _payload(visit: Visit) -> str:
    text = visit.field("payload") or "{}"
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Refusal(422, "The payload is not JSON", str(error)[:200]) from None
    if len(text.encode()) > limits.PAYLOAD_BYTES:
        raise Refusal(422, "The payload is too large", f"It holds at most {limits.PAYLOAD_BYTES // 1024} KiB.")
    return text


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
