"""Endpoints of schedules."""

from __future__ import annotations

from typing import Any

import msgspec

from dhara.api import wire
from dhara.api.auth import forbidden
from dhara.api.exchange import Reply, Request, json_reply
from dhara.api.problems import Refused, not_found
from dhara.api.shapes import RunOut, ScheduleList, schedule_out
from dhara.domain import limits
from dhara.domain.access import PAYLOAD
from dhara.domain.plan import spec_of
from dhara.domain.schedule import Spec
from dhara.errors import InvalidTask
from dhara.store.schedules import Schedule

UPCOMING = 5


async def listing(request: Request) -> Reply:
    found = await request.parts.schedules.all(queues=request.principal.queues)
    seen = [one for one in found if request.principal.sees(one.queue)]
    return json_reply(ScheduleList([schedule_out(one, **_seen_by(request)) for one in seen]))


async def create(request: Request) -> Reply:
    fields, payload = await wire.fields(request)
    made = await request.parts.schedules.create(_into_own(request, spec_of(fields, payload or "{}")), request.actor)
    request.parts.hint()
    if made is None:
        name = fields["name"]
        detail = f"there is a schedule {name!r} already; change it by PATCH"
        raise Refused("schedule_exists", detail, errors=(("name", "is taken"),))
    return json_reply(
        schedule_out(made, **_seen_by(request)), 201, ((b"location", f"/api/v1/schedules/{made.name}".encode()),)
    )


async def get(request: Request) -> Reply:
    return await _whole(request, await _standing(request))


async def update(request: Request) -> Reply:
    standing = await _standing(request)
    fields, payload = await wire.fields(request)
    if "name" in fields:
        raise InvalidTask([("name", "cannot be changed; make another schedule")])
    spec = spec_of(merged(standing, fields), standing.payload if payload is None else payload)
    await request.parts.schedules.update(_into_own(request, spec), request.actor)
    request.parts.hint()
    return await get(request)


async def delete(request: Request) -> Reply:
    standing = await _standing(request)
    await request.parts.schedules.delete(standing.name, request.actor)
    return json_reply(schedule_out(standing, **_seen_by(request)))


async def pause(request: Request) -> Reply:
    await request.parts.schedules.pause((await _standing(request)).name, request.actor)
    return await get(request)


async def resume(request: Request) -> Reply:
    await request.parts.schedules.resume((await _standing(request)).name, request.actor)
    request.parts.hint()
    return await get(request)


async def run(request: Request) -> Reply:
    standing = await _standing(request)
    return json_reply(RunOut(await request.parts.scheduler.run_now(standing.name, request.actor)), 201)


def merged(standing: Schedule, fields: dict[str, Any]) -> dict[str, Any]:
    """The definition of `standing`, changed by `fields`: a cron takes the place of an `every`, and the other way about."""
    values = {key: value for key, value in msgspec.structs.asdict(standing.spec).items() if value is not None}
    del values["payload"]
    for one, other in (("cron", "every"), ("every", "cron")):
        if one in fields and other not in fields:
            values.pop(other, None)
    return values | fields | {"name": standing.name}


async def _whole(request: Request, schedule: Schedule) -> Reply:
    store = request.parts.schedules
    upcoming = schedule.timing(schedule.anchor).upcoming(await store.now(), UPCOMING)
    fires = await store.fires(schedule.name, queues=request.principal.queues)
    return json_reply(schedule_out(schedule, upcoming, fires, **_seen_by(request)))


def _seen_by(request: Request) -> dict[str, Any]:
    """What of the payload the caller may see."""
    return {"mask": request.parts.mask, "hidden": not request.principal.may(PAYLOAD)}


async def _standing(request: Request) -> Schedule:
    """The one in the path, of those that the principal may see."""
    name = request.path["name"]
    if not limits.NAME.fullmatch(name):
        raise not_found()
    found = await request.parts.schedules.get(name, request.principal.queues)
    if not request.principal.sees(found.queue):
        raise not_found()
    return found


def _into_own(request: Request, spec: Spec) -> Spec:
    """`spec`, unless it would enqueue where the principal may not."""
    if not request.principal.sees(spec.queue):
        raise forbidden()
    return spec
