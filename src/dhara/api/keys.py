"""Endpoints of API keys. Each change is known to this server at once, to every other one within a few seconds."""

from __future__ import annotations

import re
from typing import Any

from dhara.api import wire
from dhara.api.exchange import Reply, Request, json_reply
from dhara.api.params import DEFAULT_OVERLAP
from dhara.api.problems import Refused, not_found
from dhara.api.shapes import KeyList, NewKeyIn, key_out, made_key_out
from dhara.api.strict import parse
from dhara.domain import access

_ID = re.compile(r"[a-z0-9]{12}")
_DEPTH = 3


async def listing(request: Request) -> Reply:
    return json_reply(KeyList([key_out(key) for key in await request.parts.keys.list()]))


async def create(request: Request) -> Reply:
    wanted = await _wanted(request)
    made = await request.parts.keys.create(
        wanted["name"],
        wanted["scopes"],
        wanted.get("queues", ()),
        rate=wanted.get("rate"),
        lifetime=wanted.get("expires_in"),
        by=request.actor,
    )
    await request.parts.ring.refresh()
    return json_reply(made_key_out(made), 201)


async def rotate(request: Request) -> Reply:
    overlap = request.query.get("overlap", DEFAULT_OVERLAP)
    made = await request.parts.keys.rotate(_id(request), overlap, request.actor)
    await request.parts.ring.refresh()
    return json_reply(made_key_out(made), 201)


async def revoke(request: Request) -> Reply:
    revoked = await request.parts.keys.revoke(_id(request), request.actor)
    await request.parts.ring.refresh()
    return json_reply(key_out(revoked))


async def _wanted(request: Request) -> dict[str, Any]:
    """The wish for a key. Raises `Refused` naming every wrong field."""
    wire.check_media(request)
    value = parse(await wire.read(request, wire.BODY_BYTES), _DEPTH)
    if not isinstance(value, dict):
        raise Refused("invalid_key", "the body must be an object", errors=(("body", "must be an object"),))
    known = NewKeyIn.__struct_fields__
    problems = [(field, "unknown field; known: " + ", ".join(known)) for field in value if field not in known]
    problems += [(field, "must not be null") for field in value if field in known and value[field] is None]
    problems += access.problems(
        value.get("name"), value.get("scopes"), value.get("queues", ()), value.get("rate"), value.get("expires_in")
    )
    if problems:
        detail = "; ".join(f"{field[:100]}: {message}" for field, message in problems[:10])
        raise Refused("invalid_key", detail, errors=problems)
    return value


def _id(request: Request) -> str:
    id = request.path["key"]
    if not _ID.fullmatch(id):
        raise not_found()
    return id
