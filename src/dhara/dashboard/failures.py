"""Failures by group, and DEAD tasks one by one."""

from __future__ import annotations

from starlette.responses import Response

from dhara.dashboard import tasks
from dhara.dashboard.visit import Visit, link, missing
from dhara.domain.lifecycle import State

MOST_FINGERPRINT = 255


async def show(visit: Visit) -> Response:
    """The groups, those seen last first; muted ones apart."""
    snapshot = await visit.desk.pulse.snapshot()
    groups = [group for group in await visit.desk.failures.groups() if visit.sees(group.queue)]
    return visit.page(
        "failures.html",
        now=snapshot.now(),
        groups=[group for group in groups if group.muted_at is None],
        muted=[group for group in groups if group.muted_at is not None],
        dead=snapshot.states[State.DEAD],
    )


async def dead(visit: Visit) -> Response:
    return await tasks.listing(visit, "/dead-letters", (State.DEAD,))


async def mute(visit: Visit) -> Response:
    fingerprint = _fingerprint(visit)
    if await visit.desk.failures.group(fingerprint, cap=1) is None:
        raise missing("group")
    await visit.desk.failures.mute(fingerprint, visit.who())
    return visit.back(link("/failures", {}), "Muted: it raises no alarm any more.")


async def unmute(visit: Visit) -> Response:
    await visit.desk.failures.unmute(_fingerprint(visit), visit.who())
    return visit.back("/failures", "It counts again.")


def _fingerprint(visit: Visit) -> str:
    text = visit.field("fingerprint")
    if not 1 <= len(text) <= MOST_FINGERPRINT or not text.isprintable():
        raise missing("group")
    return text
