"""Who did what, and the operations on many tasks."""

from __future__ import annotations

from starlette.responses import Response

from dhara.dashboard.visit import Visit
from dhara.store.audit import ACTIONS

PAGE = 50
RECENT = 10


async def show(visit: Visit) -> Response:
    snapshot = await visit.desk.pulse.snapshot()
    asked = {name: visit.one(name)[:100] or None for name in ("actor", "action", "target")}
    before = visit.one("before")
    seq = int(before) if before.isdecimal() and len(before) < 19 else None
    found = await visit.desk.audit.list(before=seq, limit=PAGE + 1, **asked)
    return visit.page(
        "audit.html",
        now=snapshot.now(),
        actions=found[:PAGE],
        following=found[PAGE - 1].seq if len(found) > PAGE else None,
        asked=asked,
        kinds=sorted({action.partition(".")[0] for action in ACTIONS}),
        about=ACTIONS,
        operations=await visit.desk.operations.recent(RECENT) if seq is None else [],
    )
