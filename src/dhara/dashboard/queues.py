"""Queues: their figures; pause and resume."""

from __future__ import annotations

from starlette.responses import Response

from dhara.dashboard.overview import strip
from dhara.dashboard.visit import Visit, missing


async def show(visit: Visit) -> Response:
    snapshot = await visit.desk.pulse.snapshot()
    queues = [queue for queue in snapshot.queues if visit.sees(queue.name)]
    return visit.page("queues.html", now=snapshot.now(), strips=[strip(queue, snapshot.rates) for queue in queues])


async def pause(visit: Visit) -> Response:
    name = _seen(visit)
    await visit.desk.queues.pause(name, visit.who())
    visit.desk.pulse.forget()
    return visit.back("/queues", f"{name} is paused: nothing more is claimed; what runs goes on.")


async def resume(visit: Visit) -> Response:
    name = _seen(visit)
    await visit.desk.queues.resume(name, visit.who())
    if visit.desk.notifier is not None:
        visit.desk.notifier.wake(name)
    visit.desk.pulse.forget()
    return visit.back("/queues", f"{name} is resumed.")


def _seen(visit: Visit) -> str:
    name = visit.name()
    if not visit.sees(name):
        raise missing("queue")
    return name
