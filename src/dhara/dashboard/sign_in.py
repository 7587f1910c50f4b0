"""Signing in with an API key, and out."""

from __future__ import annotations

from starlette.responses import Response

from dhara.dashboard.door import SESSION, cookie
from dhara.dashboard.visit import Visit, local


async def show(visit: Visit) -> Response:
    if visit.principal is not None:
        return visit.back(local(visit.one("next", "/")))
    return visit.page("sign_in.html", next=local(visit.one("next", "/")), wrong=False)


async def enter(visit: Visit) -> Response:
    wanted = local(visit.field("next", "/"))
    name = await visit.door.sign_in(visit.request, visit.field("key"))
    if name is None:
        return visit.page("sign_in.html", 401, next=wanted, wrong=True)
    response = visit.back(wanted)
    response.headers.append("set-cookie", cookie(visit.request, SESSION, name))
    return response


async def leave(visit: Visit) -> Response:
    await visit.door.sign_out(visit.request)
    response = visit.back("/sign-in")
    response.headers.append("set-cookie", cookie(visit.request, SESSION, "", seconds=0))
    return response
