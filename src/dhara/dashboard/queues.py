"""Queues: their figures; pause and resume; limits and objectives."""

from __future__ import annotations

from starlette.responses import Response

from dhara.dashboard import words
from dhara.dashboard.overview import strip
from dhara.dashboard.visit import Refusal, Visit, missing
from dhara.domain import limits
from dhara.settings import duration


async def show(visit: Visit) -> Response:
    snapshot = await visit.desk.pulse.snapshot()
    queues = [queue for queue in snapshot.queues if visit.sees(queue.name)]
    return visit.page(
        "queues.html",
        now=snapshot.now(),
        strips=[strip(queue, snapshot.rates) for queue in queues],
        least_limit=limits.QUEUE_LIMIT[0],
        most_limit=limits.QUEUE_LIMIT[1],
        wait_objective=visit.desk.wait_objective,
    )


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


async def limit(visit: Visit) -> Response:
    """How many PENDING tasks the queue takes; an empty field takes the limit away."""
    name, text = _seen(visit), visit.field("limit")
    low, high = limits.QUEUE_LIMIT
    if text and not (text.isascii() and text.isdigit() and len(text) <= 12 and low <= int(text) <= high):
        raise Refusal(422, "The limit is wrong", f"It is a number of tasks from {low} to {high:,}, or nothing.")
    await visit.desk.queues.limit(name, int(text) if text else None, visit.who())
    # At once, also for enqueues by SQL.
    await visit.desk.queues.loads(False)
    visit.desk.pulse.forget()
    return visit.back("/queues", f"{name} takes {int(text):,} PENDING tasks." if text else f"{name} has no limit.")


async def objective(visit: Visit) -> Response:
    """How long its ready tasks may wait before the overview says so; an empty field means the general setting."""
    name, text = _seen(visit), visit.field("objective")
    low, high = limits.WAIT_OBJECTIVE_SECONDS
    try:
        seconds = duration(text) if text else None
    except ValueError:
        seconds = -1.0
    if seconds is not None and not low <= seconds <= high:
        raise Refusal(
            422, "The objective is wrong", "It is a length of time from 1s to 365d, such as 30s or 5m, or nothing."
        )
    await visit.desk.queues.aim(name, seconds, visit.who())
    visit.desk.pulse.forget()
    goal = words.duration(visit.desk.wait_objective if seconds is None else seconds)
    return visit.back("/queues", f"Ready tasks of {name} should wait for {goal} at most.")


def _seen(visit: Visit) -> str:
    name = visit.name()
    if not visit.sees(name):
        raise missing("queue")
    return name
