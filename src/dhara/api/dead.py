"""Endpoints of DEAD tasks, their groups, and of bulk operations."""

from __future__ import annotations

from typing import Any

import msgspec

from dhara.api.auth import forbidden
from dhara.api.exchange import Reply, Request, json_reply
from dhara.api.problems import Refused, not_found
from dhara.api.shapes import BulkOut, GroupList, OperationList, group_out, operation_out, task_row
from dhara.api.tasks import filter_of, id_of
from dhara.domain.canary import Plan
from dhara.maintenance.bulk import base
from dhara.store.failures import Group
from dhara.store.operations import Operation
from dhara.store.search import Filter

SAMPLE = 10
_CANARY = ("canary", "factor", "most", "max_failed", "watch")
_NARROW = ("type", "queue", "tag", "fingerprint", "id", "created_after", "created_before", "q", "status")


async def groups(request: Request) -> Reply:
    found = await request.parts.failures.groups(queues=request.principal.queues)
    if "type" in request.query:
        found = [group for group in found if group.type == request.query["type"]]
    if "muted" in request.query:
        found = [group for group in found if (group.muted_at is not None) == request.query["muted"]]
    return json_reply(GroupList([group_out(group) for group in found]))


async def mute(request: Request) -> Reply:
    await request.parts.failures.mute((await _own_group(request)).fingerprint, request.actor)
    return json_reply(group_out(await _group(request)))


async def unmute(request: Request) -> Reply:
    await request.parts.failures.unmute((await _own_group(request)).fingerprint, request.actor)
    return json_reply(group_out(await _group(request)))


async def retry(request: Request) -> Reply:
    return await _begin(request, "retry", _plan(request.query))


async def purge(request: Request) -> Reply:
    return await _begin(request, "purge")


async def cancel(request: Request) -> Reply:
    return await _begin(request, "cancel")


async def operations(request: Request) -> Reply:
    # Those that `_sees` would let through.
    found = await request.parts.operations.recent(request.query.get("limit", 50), request.principal.queues)
    return json_reply(OperationList([operation_out(one) for one in found]))


async def operation(request: Request) -> Reply:
    return json_reply(operation_out(await _operation(request)))


async def stop(request: Request) -> Reply:
    found = await _operation(request)
    return json_reply(operation_out(await request.parts.operations.stop(found.id, request.actor)))


async def _operation(request: Request) -> Operation:
    """The one in the path, of those that the principal may see."""
    found = await request.parts.operations.get(id_of(request))
    if not _sees(request, found):
        raise not_found()
    return found


def _sees(request: Request, operation: Operation) -> bool:
    """Whether the operation is for the principal: one for some queues sees those that its likes have begun."""
    queues = request.principal.queues
    return not queues or operation.filter.queues == queues


async def _begin(request: Request, kind: str, canary: Plan | None = None) -> Reply:
    """A preview, or the operation: begun here, its first batch done, and driven on by the fleet's maintenance."""
    parts = request.parts
    wanted = base(kind, _filter(request))
    total, is_estimate = await parts.search.count(wanted)
    if request.query.get("dry_run", False):
        page = await parts.search.page(wanted, limit=SAMPLE)
        sample = [task_row(task) for task in page.tasks]
        return json_reply(BulkOut(count=total, count_is_estimate=is_estimate, sample=sample))
    begun = await parts.operations.create(
        kind, wanted, request.actor, total=total, is_estimate=is_estimate, canary=canary
    )
    await parts.bulk.drive_one(begun.id)
    now = await parts.operations.get(begun.id)
    if now.state == "running":
        parts.hint()
    answer = BulkOut(count=total, count_is_estimate=is_estimate, operation=operation_out(now))
    return json_reply(answer, 200 if now.state == "done" else 202)


def _filter(request: Request) -> Filter:
    query = request.query
    if not query.get("all", False) and not any(name in query for name in _NARROW):
        message = "say which tasks by a filter, or say all=true"
        raise Refused("invalid_query", message, errors=(("all", message),))
    return filter_of(request, query)


def _plan(query: Any) -> Plan | None:
    if "canary" not in query:
        if stray := [name for name in _CANARY if name in query]:
            message = "needs canary, the number of tasks to begin with"
            raise Refused("invalid_query", f"{stray[0]} {message}", errors=[(name, message) for name in stray])
        return None
    given = {name: query[name] for name in _CANARY[1:] if name in query}
    return msgspec.structs.replace(Plan(), first=query["canary"], **given)


async def _group(request: Request) -> Group:
    """The one in the path, as far as the principal may see it."""
    text = request.path["fingerprint"]
    if len(text) > 255 or not text.isprintable():
        raise not_found()
    group = await request.parts.failures.group(text, queues=request.principal.queues)
    if group is None:
        raise not_found()
    return group


async def _own_group(request: Request) -> Group:
    """The one in the path, if nobody else's tasks are in it: a mute is for all who look."""
    group = await _group(request)
    if group.elsewhere:
        raise forbidden()
    return group
