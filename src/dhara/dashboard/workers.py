"""Workers: live and lately lost, with what they run."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from dhara.dashboard.visit import Visit

SHOWN_SECONDS = 900.0
MOST_RUNNING = 500
STILL_SECONDS = 15.0


async def show(visit: Visit) -> Response:
    snapshot = await visit.desk.pulse.snapshot()
    found = await visit.desk.workers.recent(SHOWN_SECONDS)
    running: dict[Any, list[Any]] = {}
    for task in await visit.desk.workers.running([worker.id for worker in found], MOST_RUNNING):
        if visit.sees(task.queue):
            running.setdefault(task.worker, []).append(task)
    return visit.page(
        "workers.html",
        now=snapshot.now(),
        workers=found,
        running=running,
        slots={worker.id: msgspec.json.decode(worker.queues) for worker in found},
        still=STILL_SECONDS,
    )


async def drain(visit: Visit) -> Response:
    id = visit.id("worker")
    found = await visit.desk.workers.ask_drain(id, visit.who())
    if visit.desk.notifier is not None:
        visit.desk.notifier.cancel(id)
    visit.desk.pulse.forget()
    return visit.back("/workers", f"{found.host} · pid {found.pid} drains: it claims nothing more, and ends when idle.")
