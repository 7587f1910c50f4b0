"""Liveness and readiness. The answer comes within two seconds, also from a database that hangs."""

from __future__ import annotations

import logging
import time

from dhara.api.exchange import Reply, Request, json_reply
from dhara.api.problems import Refused
from dhara.api.shapes import CheckOut, HealthOut
from dhara.domain.access import READ
from dhara.errors import SchemaError
from dhara.store import migrate
from dhara.store.pool import Pool
from dhara.store.shared import Shared
from dhara.store.stats import Stats

log = logging.getLogger(__name__)

PATIENCE = 2.0


class Health:
    """Checks what the server needs to work."""

    def __init__(self, pool: Pool, schema: str) -> None:
        self._pool = pool
        self._schema = schema
        self._checks = Shared(self._check)
        self._started = time.monotonic()

    @property
    def uptime(self) -> float:
        """Seconds since the start."""
        return round(time.monotonic() - self._started, 3)

    async def ready(self) -> HealthOut:
        """Every check; `ok` only if database and schema are."""
        try:
            checks = await self._checks.get(PATIENCE)
        except Exception as error:
            log.warning("not ready: %s: %s", type(error).__name__, error)
            checks = {
                "db": CheckOut("failed", detail="does not answer"),
                "migrations": CheckOut("unknown"),
                "workers": CheckOut("unknown"),
            }
        ok = all(checks[name].status == "ok" for name in ("db", "migrations"))
        return HealthOut(status="ok" if ok else "unavailable", uptime_s=self.uptime, checks=checks)

    async def _check(self) -> dict[str, CheckOut]:
        async with self._pool.acquire() as connection:
            stats = Stats(connection, self._schema)
            before = time.monotonic()
            clock = await stats.clock()
            latency = round((time.monotonic() - before) * 1000, 3)
            detail = "is a standby" if clock.standby else "takes no writes" if clock.read_only else None
            db = CheckOut("failed" if detail else "ok", latency, detail)
            try:
                await migrate.check(connection, self._schema)
            except SchemaError as error:
                log.warning("not ready: %s", error)
                migrations = CheckOut("failed", detail="the schema does not fit; run `dhara migrate status`")
                return {"db": db, "migrations": migrations, "workers": CheckOut("unknown")}
            fleet = await stats.fleet()
        workers = CheckOut("ok" if fleet.workers else "none", count=fleet.workers)
        return {"db": db, "migrations": CheckOut("ok"), "workers": workers}


async def livez(request: Request) -> Reply:
    return json_reply(HealthOut(status="ok", uptime_s=request.parts.health.uptime if _trusted(request) else None))


async def readyz(request: Request) -> Reply:
    found = await request.parts.health.ready()
    status = 200 if found.status == "ok" else 503
    headers = () if status == 200 else ((b"retry-after", b"1"),)
    return json_reply(found if _trusted(request) else HealthOut(status=found.status), status, headers)


def _trusted(request: Request) -> bool:
    """Details are for those who may read; probes without a key learn up or down."""
    auth = request.parts.auth
    if not auth.open and not request.headers(b"authorization"):
        return False
    try:
        return auth.identify(request.scope).may(READ)
    except Refused:
        return False
