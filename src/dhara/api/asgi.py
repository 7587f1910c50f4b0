"""The ASGI application: the edge that every request passes, Starlette's routing, and the endpoints of the table.

The edge decides what needs no route (host, key, origin, sizes), gives each request its id and each answer its security
headers, turns every exception into a problem, and counts. Middleware classes would cost more than the rest of a POST;
so `Api` puts the edge around the router itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol, cast

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Router
from starlette.routing import Route as StarletteRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from dhara.api import problems
from dhara.api.answer import Outgoing, count, request_id_of
from dhara.api.auth import Auth, check_address, forbidden
from dhara.api.backpressure import Backpressure
from dhara.api.cursors import Cursors
from dhara.api.events import Feed
from dhara.api.exchange import ClientGone, Request, index_headers
from dhara.api.figures import Figures
from dhara.api.health import Health
from dhara.api.ingest import Ingest, Wakes
from dhara.api.keyring import KeyRing
from dhara.api.openapi import document
from dhara.api.parts import Parts
from dhara.api.problems import Refused, not_found
from dhara.api.routes import PROBE, TABLE, Route
from dhara.api.shortcut import Shortcut
from dhara.api.waiters import Waiters
from dhara.api.wire import query
from dhara.domain.access import Principal
from dhara.domain.masking import Mask
from dhara.maintenance.bulk import Bulk
from dhara.maintenance.scheduler import Scheduler
from dhara.settings import Settings
from dhara.store.audit import Audit
from dhara.store.failures import Failures
from dhara.store.keys import Keys
from dhara.store.operations import Operations
from dhara.store.pool import Pool
from dhara.store.queues import Queues
from dhara.store.schedules import Schedules
from dhara.store.search import Search
from dhara.store.stats import Stats
from dhara.store.tasks import Tasks
from dhara.store.workers import Workers
from dhara.telemetry import log as telemetry_log
from dhara.telemetry.metrics import LoopLag, Traffic

log = logging.getLogger(__name__)

# Whom a probe is for, until its endpoint asks.
NOBODY = Principal("nobody", frozenset())

# Below these every path is the API's, also one that does not exist.
_API_PATHS = ("/api/", "/docs/")


def create_app(
    *,
    pool: Pool,
    settings: Settings,
    notifier: Wakes | None = None,
    version: str = "0",
    routes: Sequence[BaseRoute] = (),
    site: Site | None = None,
    auth: Auth | None = None,
    hint: Callable[[], None] = lambda: None,
) -> Api:
    """The HTTP API on an open `pool`. `notifier` wakes workers; `routes` are further ones, which pass the same edge; `site`
    answers every path that is not the API's, and may share `auth`. `hint` tells this
    process's maintenance that a bulk operation has been begun. Starts nothing before its lifespan."""
    schema = pool.settings.schema
    tasks, stats, keys = Tasks(pool, schema, tells=notifier is not None), Stats(pool, schema), Keys(pool, schema)
    queues, auth = Queues(pool, schema), auth or Auth(settings, KeyRing(keys))
    figures = Figures(pool, schema, wait_objective=settings.wait_objective)
    parts = Parts(
        settings=settings,
        pool=pool,
        tasks=tasks,
        audit=Audit(pool, schema),
        failures=Failures(pool, schema),
        operations=Operations(pool, schema),
        bulk=Bulk(pool, schema, notifier),
        schedules=Schedules(pool, schema),
        scheduler=Scheduler(pool, schema, notifier),
        hint=hint,
        queues=queues,
        workers=Workers(pool, schema),
        search=Search(pool, schema),
        stats=stats,
        notifier=notifier,
        keys=keys,
        ring=auth.ring,
        auth=auth,
        mask=Mask(settings.masked_fields),
        cursors=Cursors(stats),
        figures=figures,
        feed=Feed(figures, tasks),
        health=Health(pool, schema),
        ingest=Ingest(tasks, pool, notifier),
        pressure=Backpressure(queues, settings.queue_limit),
        waiters=Waiters(tasks),
        traffic=Traffic(),
        lag=LoopLag(),
        document=document(TABLE, version),
    )
    return Api(parts, routes, site)


class Site(Protocol):
    """An application beside the API, such as the dashboard, that asks for its own credentials."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...
    def drain(self) -> None: ...


class Api(Starlette):
    """A Starlette application whose only middleware is the edge."""

    def __init__(self, parts: Parts, further: Sequence[BaseRoute] = (), site: Site | None = None) -> None:
        self.parts = parts
        self.site = site
        # None: every request goes the long way.
        self.shortcut: Shortcut | None = Shortcut(parts)
        super().__init__(
            routes=[*(StarletteRoute(*one) for one in _methods(parts).items()), *further], lifespan=_lifespan
        )
        self.router.redirect_slashes = False
        self.router.default = _nothing

    def build_middleware_stack(self) -> ASGIApp:
        return Edge(self.router, self.parts, self.site)

    def drain(self) -> None:
        """Let long polls and streams go, so that a stop need not wait for them."""
        self.parts.waiters.close()
        self.parts.feed.close()
        if self.site is not None:
            self.site.drain()


@asynccontextmanager
async def _lifespan(app: Api) -> AsyncIterator[None]:
    async with app.parts.lag, app.parts.ring, app.parts.pressure:
        yield
        app.drain()
        await app.parts.ingest.close()


def _methods(parts: Parts) -> dict[str, Methods]:
    """One endpoint a path, so that every other method is a 405 that names the right ones."""
    by_path: dict[str, dict[str, Route]] = {}
    for route in TABLE:
        for path in route.paths:
            by_path.setdefault(path, {})[route.method] = route
    return {path: Methods(path, methods, parts) for path, methods in by_path.items()}


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        raise not_found()
    # A WebSocket: there is none here.
    await send({"type": "websocket.close", "code": 1000})


class Methods:
    """All methods of one path: the ASGI application behind a Starlette route."""

    def __init__(self, path: str, methods: dict[str, Route], parts: Parts) -> None:
        self._path = path
        self._methods = methods
        self._parts = parts
        self._allow = ", ".join(sorted(methods)).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        outgoing = cast(Outgoing, send)
        scope["dhara.route"] = self._path
        route = self._methods.get(scope["method"])
        if route is None:
            allowed = self._allow.decode()
            raise Refused("method_not_allowed", f"allowed here: {allowed}", headers=((b"allow", self._allow),))
        principal: Principal = scope["dhara.principal"]
        if route.scope not in principal.scopes and route.scope != PROBE:
            raise forbidden()
        if principal.queues and not route.limited:
            raise forbidden()
        request = Request(scope, receive, self._parts, query(scope["query_string"], route.query))
        await outgoing.finish(await route.endpoint(request))


class Edge:
    """What every request passes, whatever its route."""

    def __init__(self, router: Router, parts: Parts, site: Site | None = None) -> None:
        self._router = router
        self._site = site
        self._auth = parts.auth
        self._traffic = parts.traffic
        self._probes = frozenset(path for route in TABLE if route.scope == PROBE for path in route.paths)
        # Most requests go to a path without parameters: these need no search.
        self._fixed = {path: methods for path, methods in _methods(parts).items() if "{" not in path}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        started = time.perf_counter()
        index_headers(scope)
        request_id = scope["dhara.request_id"] = request_id_of(scope)
        telemetry_log.request_id.set(request_id)
        outgoing = Outgoing(send, request_id, scope.get("dhara.reply"))
        try:
            if self._site is not None and not self._is_api(scope["path"]):
                scope["dhara.route"] = "dashboard"
                check_address(self._auth, scope)
                await self._site(scope, receive, outgoing)
            else:
                self._check(scope)
                await self._fixed.get(scope["path"], self._router)(scope, receive, outgoing)
        except ClientGone:
            log.debug("the client hung up before its answer")
        except Exception as error:
            refused = problems.refusal(error, request_id)
            if outgoing.status:
                # Too late for another answer; the broken one ends the connection.
                raise
            await outgoing.finish(problems.reply(refused, request_id))
        finally:
            count(self._traffic, scope, outgoing.status, time.perf_counter() - started)

    def _check(self, scope: Scope) -> None:
        """Raise `Refused` for what no route should see."""
        check_address(self._auth, scope)
        scope["dhara.principal"] = NOBODY if scope["path"] in self._probes else self._identify(scope)
        self._auth.check_origin(scope)

    def _identify(self, scope: Scope) -> Principal:
        principal = self._auth.identify(scope)
        self._auth.limit(principal)
        return principal

    def _is_api(self, path: str) -> bool:
        return path.startswith(_API_PATHS) or path in self._fixed
