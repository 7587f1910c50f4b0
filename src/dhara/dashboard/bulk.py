"""Many tasks at once: first a preview of how many and which, then the operation, which goes on batch by batch."""

from __future__ import annotations

from collections import Counter
from typing import Any
from uuid import UUID

import msgspec
from starlette.responses import Response

from dhara.dashboard.tasks import limited, query_of, wanted
from dhara.dashboard.visit import Refusal, Visit, missing
from dhara.domain.canary import Plan
from dhara.domain.lifecycle import State
from dhara.maintenance.bulk import base
from dhara.store.operations import KINDS, Operation
from dhara.store.search import Filter

SAMPLE = 10
MOST_IDS = 500
# Of the tasks that an operation has changed: as many are counted, and listed.
MOST_TOLD, MOST_LISTED = 500, 20
# What needs a look comes first.
_WORST = (State.DEAD, State.RUNNING, State.PENDING, State.CANCELED, State.COMPLETED)
SAID = {"retry": "Retry", "purge": "Purge", "cancel": "Cancel"}


async def preview(visit: Visit) -> Response:
    """How many it would be, and some of them; nothing is changed yet."""
    kind, asked = _kind(visit), _asked(visit)
    total, is_estimate = await visit.desk.search.count(asked)
    page = await visit.desk.search.page(asked, limit=SAMPLE)
    snapshot = await visit.desk.pulse.snapshot()
    return visit.page(
        "bulk.html",
        now=snapshot.now(),
        kind=kind,
        said=SAID[kind],
        total=total,
        is_estimate=is_estimate,
        sample=page.tasks,
        query=query_of(asked),
        ids=asked.ids,
        plan=Plan(),
        origin=visit.field("back", "/tasks"),
    )


async def begin(visit: Visit) -> Response:
    """The operation: begun here, its first batch done, and driven on by the fleet's maintenance."""
    kind, asked = _kind(visit), _asked(visit)
    total, is_estimate = await visit.desk.search.count(asked)
    operation = await visit.desk.operations.create(
        kind, asked, visit.who(), total=total, is_estimate=is_estimate, canary=_plan(visit) if kind == "retry" else None
    )
    await visit.desk.bulk.drive_one(operation.id)
    return visit.back(f"/operations/{operation.id}")


async def show(visit: Visit) -> Response:
    """How far an operation has come."""
    operation = await _seen(visit)
    snapshot = await visit.desk.pulse.snapshot()
    changed = [] if operation.kind == "purge" else await visit.desk.operations.tasks(operation, MOST_TOLD)
    # Since then some may have gone to queues that the visitor does not see.
    seen = [task for task in changed if visit.sees(task.queue)]
    return visit.page(
        "operation.html",
        now=snapshot.now(),
        operation=operation,
        told=len(changed),
        fates=Counter(task.status.value for task in seen),
        listed=len(seen),
        changed=sorted(seen, key=lambda task: _WORST.index(task.status))[:MOST_LISTED],
        said=SAID.get(operation.kind, operation.kind),
        query={name: value for name, value in query_of(operation.filter).items() if value},
    )


async def stop(visit: Visit) -> Response:
    operation = await visit.desk.operations.stop((await _seen(visit)).id, visit.who())
    return visit.back(
        f"/operations/{operation.id}", "Stopped." if operation.state == "stopped" else f"It is {operation.state}."
    )


async def _seen(visit: Visit) -> Operation:
    """The operation in the path, of those that the visitor may see: those that keys for the same queues have begun."""
    operation = await visit.desk.operations.get(visit.id("operation"))
    if visit.limited and operation.filter.queues != visit.queues:
        raise missing("operation")
    return operation


def _kind(visit: Visit) -> str:
    kind = visit.field("kind")
    if kind not in KINDS:
        raise Refusal(422, "Nothing to do", "Choose what is to be done: retry, purge or cancel.")
    return kind


def _asked(visit: Visit) -> Filter:
    """The tasks that the form means: those selected, or all that match its filter."""
    if visit.field("which", "selected") == "selected":
        ids = tuple(_ids(visit))
        if not ids:
            raise Refusal(422, "Nothing is selected", "Select rows, or choose everything that matches.")
        asked = Filter(ids=ids)
    else:
        found = wanted(visit, of_form=True)
        if found.problems:
            raise Refusal(422, "The filter cannot be understood", "; ".join(found.problems))
        asked = found.filter
    return limited(visit, base(_kind(visit), asked))


def _ids(visit: Visit) -> list[UUID]:
    try:
        ids = [UUID(text) for text in dict.fromkeys(visit.fields("id"))]
    except ValueError:
        raise Refusal(422, "The selection is damaged", "Go back, reload the page and select again.") from None
    if len(ids) > MOST_IDS:
        raise Refusal(422, "Too many rows", f"Select at most {MOST_IDS}, or choose everything that matches.")
    return ids


def _plan(visit: Visit) -> Plan | None:
    """The canary that the form asks for, if it asks for one."""
    if visit.field("canary") != "on":
        return None
    given: dict[str, Any] = {}
    for name, low, high in (("first", 1, 1_000), ("max_failed", 0, 100)):
        text = visit.field(name)
        if not text.isdecimal() or not low <= int(text[:9]) <= high:
            raise Refusal(422, "The canary's numbers are wrong", f"{name} is a number from {low} to {high:,}.")
        given[name] = int(text) if name == "first" else int(text) / 100
    return msgspec.structs.replace(Plan(), **given)
