"""The endpoint of the audit log."""

from __future__ import annotations

from dhara.api.exchange import Reply, Request, json_reply
from dhara.api.shapes import ActionList, action_out

DEFAULT_LIMIT = 50


async def listing(request: Request) -> Reply:
    limit = request.query.get("limit", DEFAULT_LIMIT)
    wanted = {name: request.query[name] for name in ("before", "actor", "action", "target") if name in request.query}
    found = await request.parts.audit.list(**wanted, limit=limit + 1)
    following = found[limit - 1].seq if len(found) > limit else None
    return json_reply(ActionList(actions=[action_out(one) for one in found[:limit]], next_before=following))
