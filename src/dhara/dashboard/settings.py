"""API keys: who may come in, and what they may do. A new key's text is shown once."""

from __future__ import annotations

from starlette.responses import Response

from dhara.dashboard.visit import Refusal, Visit
from dhara.domain.access import SCOPES, problems
from dhara.store.keys import MadeKey

MOST = 500
OVERLAP_SECONDS = 3_600.0
DAY = 86_400.0


async def show(visit: Visit, made: MadeKey | None = None) -> Response:
    snapshot = await visit.desk.pulse.snapshot()
    now = snapshot.now()
    found = await visit.desk.keys.list(MOST)
    return visit.page(
        "settings.html",
        now=now,
        keys=[key for key in found if key.valid(now)],
        ended=[key for key in found if not key.valid(now)][:20],
        scopes=SCOPES,
        made=made,
    )


async def create(visit: Visit) -> Response:
    queues = visit.field("queues").replace(",", " ").split()
    lifetime = _days(visit.field("days"))
    name, scopes = visit.field("name"), visit.fields("scope")
    if wrong := problems(name, scopes, queues, None, lifetime):
        raise Refusal(422, "The key cannot be made", "; ".join(f"{field}: {text}" for field, text in wrong))
    # Not redirected: the text of the key must not travel in an address or a cookie.
    return await show(visit, await visit.desk.keys.create(name, scopes, queues, lifetime=lifetime, by=visit.who()))


async def revoke(visit: Visit) -> Response:
    key = await visit.desk.keys.revoke(visit.field("id")[:50], visit.who())
    return visit.back("/settings", f"{key.name} is revoked: within three seconds it is good for nothing.")


async def rotate(visit: Visit) -> Response:
    return await show(visit, await visit.desk.keys.rotate(visit.field("id")[:50], OVERLAP_SECONDS, visit.who()))


def _days(text: str) -> float | None:
    if not text:
        return None
    try:
        return float(text) * DAY
    except ValueError:
        return -1.0
