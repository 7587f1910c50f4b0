"""The dashboard as an ASGI application: its pages as one table, and what every request passes.

    request -> who is it? -> may they? -> (a form: same origin? its token?) -> the page's function -> HTML

Every page denies by default: its scope stands in the table. The application works below any prefix and starts nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import asyncpg
from msgspec import Struct
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route, Router
from starlette.types import Message, Receive, Scope, Send

from dhara.dashboard import audit, bulk, failures, overview, queues, schedules, settings, sign_in, task, tasks, workers
from dhara.dashboard.desk import Desk
from dhara.dashboard.door import SAFE, TOKEN, Door, cookie, new_token
from dhara.dashboard.live import Live
from dhara.dashboard.view import FILES, View, asset, static
from dhara.dashboard.visit import Refusal, Visit, link, missing, read_form
from dhara.domain.access import ADMIN, OPERATE, READ
from dhara.domain.headers import SECURITY_HEADERS
from dhara.errors import DharaError, NotFound, SchemaError, Unavailable, WrongState
from dhara.store.pool import Pool, is_transient

log = logging.getLogger(__name__)

NOBODY = ""


class Page(Struct, frozen=True):
    """One method on one path. `scope`: what its visitor may do; `NOBODY`: shown to whoever comes. `limited`: also for
    visitors who may see some queues only; it shows them no others."""

    method: str
    path: str
    show: Callable[[Visit], Awaitable[Response]]
    scope: str = READ
    limited: bool = False


PAGES: tuple[Page, ...] = (
    Page("GET", "/", overview.show, limited=True),
    Page("GET", "/tasks", tasks.show, limited=True),
    Page("POST", "/bulk", bulk.preview, OPERATE, limited=True),
    Page("POST", "/operations", bulk.begin, OPERATE, limited=True),
    Page("GET", "/operations/{id}", bulk.show, limited=True),
    Page("POST", "/operations/{id}/stop", bulk.stop, OPERATE, limited=True),
    Page("GET", "/failures", failures.show, limited=True),
    Page("POST", "/failures/mute", failures.mute, OPERATE, limited=True),
    Page("POST", "/failures/unmute", failures.unmute, OPERATE, limited=True),
    Page("GET", "/dead-letters", failures.dead, limited=True),
    Page("GET", "/schedules", schedules.show, limited=True),
    Page("POST", "/schedules", schedules.create, OPERATE, limited=True),
    Page("GET", "/schedules/{name}", schedules.one, limited=True),
    Page("POST", "/schedules/{name}/pause", schedules.pause, OPERATE, limited=True),
    Page("POST", "/schedules/{name}/resume", schedules.resume, OPERATE, limited=True),
    Page("POST", "/schedules/{name}/run", schedules.run, OPERATE, limited=True),
    Page("POST", "/schedules/{name}/delete", schedules.delete, OPERATE, limited=True),
    Page("GET", "/audit", audit.show),
    Page("GET", "/settings", settings.show, ADMIN),
    Page("POST", "/settings/keys", settings.create, ADMIN),
    Page("POST", "/settings/keys/revoke", settings.revoke, ADMIN),
    Page("POST", "/settings/keys/rotate", settings.rotate, ADMIN),
    Page("GET", "/tasks/{id}", task.show, limited=True),
    Page("POST", "/tasks/{id}/retry", task.retry, OPERATE, limited=True),
    Page("POST", "/tasks/{id}/cancel", task.cancel, OPERATE, limited=True),
    Page("GET", "/queues", queues.show, limited=True),
    Page("POST", "/queues/{name}/pause", queues.pause, OPERATE, limited=True),
    Page("POST", "/queues/{name}/resume", queues.resume, OPERATE, limited=True),
    Page("POST", "/queues/{name}/limit", queues.limit, OPERATE, limited=True),
    Page("POST", "/queues/{name}/objective", queues.objective, OPERATE, limited=True),
    Page("GET", "/workers", workers.show),
    Page("POST", "/workers/{id}/drain", workers.drain, OPERATE),
    Page("GET", "/sign-in", sign_in.show, NOBODY),
    Page("POST", "/sign-in", sign_in.enter, NOBODY),
    Page("POST", "/sign-out", sign_in.leave, NOBODY),
)


class Site:
    """The application. `api`: the HTTP API and its reference are served beside it, at the root. `own`: a pool that is
    opened with the first request and closed by `aclose`."""

    def __init__(self, desk: Desk, door: Door, *, version: str, api: bool = False, own: Pool | None = None) -> None:
        self.desk = desk
        self._own = own
        self._opening, self._opened = asyncio.Lock(), False
        self.door = door
        self.view = View(version, api=api, signs_in=door.signs_in)
        self.live = Live(desk.pulse)
        by_path: dict[str, dict[str, Page]] = {}
        for page in PAGES:
            by_path.setdefault(page.path, {})[page.method] = page
        self._router = Router(
            routes=[
                Route("/static/{digest}/{name:path}", self._static, methods=["GET"]),
                Route("/live", self._stream, methods=["GET"]),
                *(Route(path, self._endpoint(pages), methods=list(pages)) for path, pages in by_path.items()),
            ],
            redirect_slashes=False,
        )

    def drain(self) -> None:
        """Let the streams go, so that a stop need not wait for them."""
        self.live.close()

    async def aclose(self) -> None:
        """End the streams; close the pool if it is the dashboard's own."""
        self.live.close()
        if self._own is not None:
            await self._own.close()
            self._own = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {key.lower() for key, _ in message["headers"]}
                further = [*SECURITY_HEADERS, (b"cache-control", b"no-store")]
                message["headers"] = [*message["headers"], *(one for one in further if one[0] not in present)]
            await send(message)

        try:
            await self._router(scope, receive, with_headers)
        except HTTPException as error:
            visit = Visit(Request(scope, receive), self.desk, self.view, self.door)
            refusal = missing() if error.status_code == 404 else Refusal(error.status_code, error.detail, "")
            await self._refused(refusal, visit)(scope, receive, with_headers)

    async def _open(self) -> None:
        """Open the pool, unless it is open."""
        if self._own is not None and not self._opened:
            async with self._opening:
                if not self._opened:
                    await self._own.open()
                    self._opened = True

    def _endpoint(self, pages: dict[str, Page]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            page = pages.get(request.method) or pages["GET"]
            visit = Visit(request, self.desk, self.view, self.door)
            try:
                await self._open()
                return await self._answer(page, visit)
            except Exception as error:
                return self._refused(error, visit)

        return answer

    async def _answer(self, page: Page, visit: Visit) -> Response:
        request = visit.request
        visit.principal, visit.token = await self.door.visitor(request)
        fresh = "" if visit.token else new_token()
        visit.token = visit.token or fresh
        if page.scope != NOBODY:
            if visit.principal is None:
                return self._go_and_sign_in(visit)
            if not visit.principal.may(page.scope):
                raise Refusal(403, "Not for this key", f"This needs a key with the scope {page.scope}.")
            if visit.limited and not page.limited:
                raise Refusal(403, "Not for this key", "It is for keys that are not limited to some queues.")
        if request.method not in SAFE:
            visit.form = await read_form(request)
            self.door.check_form(request, visit.token if not fresh else "", visit.field("token"))
        response = await page.show(visit)
        if fresh:
            response.headers.append("set-cookie", cookie(request, TOKEN, fresh))
        return response

    def _go_and_sign_in(self, visit: Visit) -> Response:
        if not self.door.signs_in:
            raise Refusal(403, "No entry", "Sign in to the application that this dashboard is part of.")
        if "hx-request" in visit.request.headers:
            # A part of a page cannot become the sign-in page; the browser loads it whole.
            return Response(status_code=401, headers={"hx-refresh": "true"})
        wanted = visit.path if visit.request.method in SAFE and visit.path != "/" else ""
        return RedirectResponse(visit.base + link("/sign-in", {"next": wanted}), 303)

    def _refused(self, error: Exception, visit: Visit) -> Response:
        refusal = _refusal(error)
        if refusal.status >= 500:
            log.log(
                logging.ERROR if refusal.status == 500 else logging.WARNING,
                "%s %s failed: %s: %s",
                visit.request.method,
                visit.request.url.path,
                type(error).__name__,
                error,
                exc_info=error if refusal.status == 500 else None,
            )
        return visit.page("refusal.html", refusal.status, refusal=refusal)

    async def _static(self, request: Request) -> Response:
        name = request.path_params["name"]
        try:
            data = static(name)
        except KeyError:
            return Response(status_code=404)
        current = asset(name).split("/")[2] == request.path_params["digest"]
        keep = "public, max-age=31536000, immutable" if current else "no-cache"
        return Response(data, media_type=FILES[name], headers={"cache-control": keep})

    async def _stream(self, request: Request) -> Response:
        """Server-sent events: a tick whenever something may have changed."""

        async def may() -> bool:
            principal, _ = await self.door.visitor(request, present=False)
            return principal is not None and principal.may(READ)

        try:
            await self._open()
            if not await may():
                return Response(status_code=401)
        except Exception as error:
            # Browsers come again by themselves.
            log.warning("a stream is refused: %s: %s", type(error).__name__, error)
            return Response(status_code=503)
        return self.live.stream(may)


def _refusal(error: Exception) -> Refusal:
    match error:
        case Refusal():
            return error
        case NotFound():
            return missing("task, queue or worker")
        case WrongState():
            return Refusal(409, "Not in this state", f"{error}")
        case SchemaError() | asyncpg.UndefinedTableError() | asyncpg.UndefinedColumnError():
            return Refusal(503, "The schema does not fit", "Run `dhara migrate up`, then reload this page.")
    if isinstance(error, Unavailable) or is_transient(error):
        return Refusal(503, "The database does not answer", "This page tries again by itself.")
    if isinstance(error, DharaError):
        return Refusal(422, "That cannot be done", str(error)[:500])
    return Refusal(500, "Something went wrong inside", "The server's log has the details.")
