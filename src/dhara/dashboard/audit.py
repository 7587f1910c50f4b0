"""Who did what, and the operations on many tasks."""

from __future__ import annotations

import json
from typing import Any

from msgspec import Struct
from starlette.responses import Response

from dhara.dashboard.visit import Visit
from dhara.store.audit import ACTIONS

PAGE = 50
RECENT = 10
# As many fields of an action are told, and so many letters of each.
MOST_FIELDS, MOST_LETTERS = 8, 120


class Change(Struct, frozen=True):
    """What a field was before an action and is after it; empty: there was or is none."""

    field: str
    before: str
    after: str


async def show(visit: Visit) -> Response:
    snapshot = await visit.desk.pulse.snapshot()
    asked = {name: visit.one(name)[:100] or None for name in ("actor", "action", "target")}
    before = visit.one("before")
    seq = int(before) if before.isdecimal() and len(before) < 19 else None
    found = await visit.desk.audit.list(before=seq, limit=PAGE + 1, **asked)
    return visit.page(
        "audit.html",
        now=snapshot.now(),
        actions=[(action, changes(action.before, action.after)) for action in found[:PAGE]],
        following=found[PAGE - 1].seq if len(found) > PAGE else None,
        asked=asked,
        kinds=sorted({action.partition(".")[0] for action in ACTIONS}),
        about=ACTIONS,
        operations=await visit.desk.operations.recent(RECENT) if seq is None else [],
    )


def changes(before: str | None, after: str | None) -> list[Change]:
    """The fields in which two JSON texts differ, as far as they are told."""
    was, is_ = _fields(before), _fields(after)
    found = [Change(name, _text(was.get(name)), _text(is_.get(name))) for name in dict.fromkeys((*was, *is_))]
    differing = [one for one in found if one.before != one.after]
    rest = len(differing) - MOST_FIELDS
    return [*differing[:MOST_FIELDS], *([Change("", "", f"and {rest} more")] if rest > 0 else [])]


def _fields(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = text
    return found if isinstance(found, dict) else {"": found}


def _text(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MOST_LETTERS else text[:MOST_LETTERS] + "…"
