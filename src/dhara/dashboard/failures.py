"""Failures by group, and DEAD tasks one by one."""

from __future__ import annotations

from starlette.responses import Response

from dhara.dashboard import task, tasks
from dhara.dashboard.visit import Refusal, Visit, link, missing
from dhara.domain.lifecycle import State
from dhara.store.failures import COUNT_CAP

MOST_FINGERPRINT = 255


async def show(visit: Visit) -> Response:
    """The groups, those seen last first; muted ones apart."""
    snapshot = await visit.desk.pulse.snapshot()
    groups = await visit.desk.failures.groups(queues=visit.queues)
    return visit.page(
        "failures.html",
        now=snapshot.now(),
        groups=[group for group in groups if group.muted_at is None],
        muted=[group for group in groups if group.muted_at is not None],
        dead=snapshot.states[State.DEAD],
    )


async def dead(visit: Visit) -> Response:
    """DEAD tasks; those of one group with what it is, and the traceback of its newest."""
    fingerprint = visit.one("fingerprint")
    group = None
    if 1 <= len(fingerprint) <= MOST_FINGERPRINT and fingerprint.isprintable():
        group = await visit.desk.failures.group(fingerprint, queues=visit.queues)
    attempts = await visit.desk.tasks.attempts(group.sample, task.MOST_ENTRIES) if group else []
    told = [task.shown(one, one.started_at).traceback for one in attempts]
    traceback = next((text for text in reversed(told) if text), "")
    return await tasks.listing(visit, "/dead-letters", (State.DEAD,), group=group, traceback=traceback)


async def mute(visit: Visit) -> Response:
    await visit.desk.failures.mute(await _own(visit), visit.who())
    return visit.back(link("/failures", {}), "Muted: it raises no alarm any more.")


async def unmute(visit: Visit) -> Response:
    await visit.desk.failures.unmute(await _own(visit), visit.who())
    return visit.back("/failures", "It counts again.")


async def _own(visit: Visit) -> str:
    """The group that the form names, if nobody else's tasks are in it: a mute is for all who look."""
    text = visit.field("fingerprint")
    if not 1 <= len(text) <= MOST_FINGERPRINT or not text.isprintable():
        raise missing("group")
    group = await visit.desk.failures.group(text, queues=visit.queues)
    if group is None:
        raise missing("group")
    if group.elsewhere:
        detail = f"The group also holds tasks of queues that your key may not see, or more than {COUNT_CAP:,}."
        raise Refusal(403, "Not for this key", detail)
    return text
