"""The ASGI application: the edge that every request passes, Starlette's routing, and the endpoints of the table.

The edge decides what needs no route (host, key, origin, sizes), gives each request its id and each answer its security
headers, turns every exception into a problem, and counts. Middleware classes would cost more than the rest of a POST;
so `Api` puts the edge around the router itself.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.routing import BaseRoute
from starlette.routing import Route as StarletteRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dhara.api import problems
from dhara.api.auth import Auth, unauthorized
from dhara.api.cursors import Cursors
from dhara.api.exchange import ClientGone, Reply, Request
from dhara.api.figures import Figures
from dhara.api.health import Health
from dhara.api.ingest import Ingest, Wakes
from dhara.api.openapi import document
from dhara.api.parts import Parts
from dhara.api.problems import Refused, not_found
from dhara.api.routes import PROBE, TABLE, Route
from dhara.api.waiters import Waiters
from dhara.api.wire import query
from dhara.settings import Settings
from dhara.store.pool import Pool
from dhara.store.queues import Queues
from dhara.store.search import Search
from dhara.store.stats import Stats
from dhara.store.tasks import Tasks
from dhara.store.workers import Workers
from dhara.telemetry import log as telemetry_log
from dhara.telemetry.metrics import OTHER, LoopLag, Traffic

log = logging.getLogger(__name__)

URL_BYTES = 8 * 1024
HEADER_BYTES = 32 * 1024

SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
        b" frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_NO_STORE = (b"cache-control", b"no-store")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE"})


def create_app(
    *,
    pool: Pool,
    settings: Settings,
    notifier: Wakes | None = None,
    version: str = "0",
    routes: Sequence[BaseRoute] = (),
) -> Api:
    """The HTTP API on an open `pool`. `notifier` wakes workers; `routes` are further ones, such as the dashboard's, which
    pass the same edge. Starts nothing before its lifespan."""
    schema = pool.settings.schema
    tasks, stats = Tasks(pool, schema), Stats(pool, schema)
    parts = Parts(
        settings=settings,
        pool=pool,
        tasks=tasks,
        queues=Queues(pool, schema),
        workers=Workers(pool, schema),
        search=Search(pool, schema),
        stats=stats,
        notifier=notifier,
        auth=Auth(settings),
        cursors=Cursors(stats),
        figures=Figures(pool, schema),
        health=Health(pool, schema),
        ingest=Ingest(tasks, pool, notifier),
        waiters=Waiters(tasks),
        traffic=Traffic(),
        lag=LoopLag(),
        document=document(TABLE, version, protected=bool(settings.api_keys)),
    )
    return Api(parts, routes)


class Api(Starlette):
    """A Starlette application whose only middleware is the edge."""

    def __init__(self, parts: Parts, further: Sequence[BaseRoute] = ()) -> None:
        self.parts = parts
        super().__init__(routes=[*_routes(parts), *further], lifespan=_lifespan)
        self.router.redirect_slashes = False
        self.router.default = _nothing

    def build_middleware_stack(self) -> ASGIApp:
        return Edge(self.router, self.parts)

    def drain(self) -> None:
        """Let long polls go, so that a stop need not wait for them."""
        self.parts.waiters.close()


@asynccontextmanager
async def _lifespan(app: Api) -> AsyncIterator[None]:
    async with app.parts.lag:
        yield
        app.drain()
        await app.parts.ingest.close()


def _routes(parts: Parts) -> list[BaseRoute]:
    """One Starlette route a path, so that every other method is a 405 that names the right ones."""
    by_path: dict[str, dict[str, Route]] = {}
    for route in TABLE:
        for path in route.paths:
            by_path.setdefault(path, {})[route.method] = route
    return [StarletteRoute(path, Methods(path, methods, parts)) for path, methods in by_path.items()]


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
        scope["dhara.route"] = self._path
        route = self._methods.get(scope["method"])
        if route is None:
            allowed = self._allow.decode()
            raise Refused("method_not_allowed", f"allowed here: {allowed}", headers=((b"allow", self._allow),))
        request = Request(scope, receive, self._parts, query(scope["query_string"], route.query))
        await respond(await route.endpoint(request), send)


async def respond(reply: Reply, send: Send) -> None:
    """Send `reply`."""
    headers = [
        (b"content-type", reply.content_type),
        (b"content-length", str(len(reply.body)).encode()),
        *reply.headers,
    ]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


class Edge:
    """What every request passes, whatever its route."""

    def __init__(self, inner: ASGIApp, parts: Parts) -> None:
        self._inner = inner
        self._auth = parts.auth
        self._traffic = parts.traffic
        self._probes = frozenset(path for route in TABLE if route.scope == PROBE for path in route.paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = scope["dhara.request_id"] = _request_id(scope)
        telemetry_log.request_id.set(request_id)
        outgoing = _Outgoing(send, request_id)
        try:
            self._check(scope)
            await self._inner(scope, receive, outgoing)
        except ClientGone:
            log.debug("the client hung up before its answer")
        except Exception as error:
            await self._refuse(error, outgoing, request_id)
        finally:
            self._count(scope, outgoing.status, time.perf_counter() - started)

    def _check(self, scope: Scope) -> None:
        """Raise `Refused` for what no route should see."""
        if len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"]) > URL_BYTES:
            raise Refused("url_too_long", f"the URL is longer than {URL_BYTES:,} bytes")
        self._auth.check_host(scope)
        if not self._auth.open and scope["path"] not in self._probes:
            if not self._auth.knows([value for key, value in scope["headers"] if key == b"authorization"]):
                raise unauthorized()
        self._auth.check_origin(scope)

    async def _refuse(self, error: Exception, outgoing: _Outgoing, request_id: str) -> None:
        refused = problems.refusal(error, request_id)
        if outgoing.status:
            # Too late for another answer; the broken one ends the connection.
            raise error
        await respond(problems.reply(refused, request_id), outgoing)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else OTHER
        route = scope.get("dhara.route") or OTHER
        self._traffic.observe(method, route, status, seconds)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s %s -> %d in %.1f ms", method, scope["path"], status, seconds * 1000)


class _Outgoing:
    """`send`, with the headers that every answer has; remembers the status. 0: none was sent."""

    __slots__ = ("_request_id", "_send", "status")

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id.encode()
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers: list[tuple[bytes, bytes]] = [*message["headers"], (b"x-request-id", self._request_id)]
            present = {key.lower() for key, _ in headers}
            headers += [header for header in SECURITY_HEADERS if header[0] not in present]
            if b"cache-control" not in present:
                headers.append(_NO_STORE)
            message["headers"] = headers
        await self._send(message)


def _request_id(scope: Scope) -> str:
    given: list[Any] = [value for key, value in scope["headers"] if key == b"x-request-id"]
    if len(given) == 1 and _REQUEST_ID.fullmatch(given[0]):
        return str(given[0].decode())
    return secrets.token_hex(8)
