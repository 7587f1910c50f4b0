"""One request as a page sees it: who asks, what stands in the URL and the form, and how to answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlencode
from uuid import UUID

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from dhara.domain import limits
from dhara.errors import DharaError

if TYPE_CHECKING:
    from dhara.dashboard.desk import Desk
    from dhara.dashboard.door import Door
    from dhara.dashboard.view import View
    from dhara.domain.access import Principal

FORM_BYTES = 1024 * 1024
FORM_FIELDS = 2_000
NOTICE = "dhara-notice"
_ID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")


class Refusal(DharaError):
    """A page that says why not."""

    def __init__(self, status: int, title: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.title = title
        self.detail = detail


def missing(what: str = "page") -> Refusal:
    return Refusal(404, f"There is no such {what}", "It may have been pruned, or the address is mistyped.")


class Visit:
    """A request of `principal`, who has passed the door."""

    def __init__(self, request: Request, desk: Desk, view: View, door: Door) -> None:
        self.request = request
        self.desk = desk
        self.view = view
        self.door = door
        self.principal: Principal | None = None
        self.token = ""
        self.form: Mapping[str, list[str]] = {}

    @property
    def base(self) -> str:
        """The path prefix that the dashboard is mounted under, without a slash at its end."""
        root: str = self.request.scope.get("root_path", "")
        return root.rstrip("/")

    @property
    def path(self) -> str:
        """The path within the dashboard, with its query: what a link back needs."""
        path = self.request.scope["path"].removeprefix(self.base) or "/"
        query = self.request.url.query
        return f"{path}?{query}" if query else path

    def may(self, scope: str) -> bool:
        return self.principal is not None and self.principal.may(scope)

    @property
    def queues(self) -> tuple[str, ...]:
        """Patterns of the queues that the visitor may see; none: all."""
        return self.principal.queues if self.principal else ()

    @property
    def limited(self) -> bool:
        """Whether the visitor may see some queues only."""
        return bool(self.queues)

    def sees(self, queue: str) -> bool:
        """Whether tasks of this queue exist for the visitor."""
        return self.principal is not None and self.principal.sees(queue)

    def who(self) -> str:
        """The name that actions are recorded under."""
        return self.principal.name if self.principal else "nobody"

    # what was asked

    def one(self, name: str, default: str = "") -> str:
        """A query parameter, without blanks around it."""
        return self.request.query_params.get(name, default).strip()

    def many(self, name: str) -> list[str]:
        return [value for value in self.request.query_params.getlist(name) if value]

    def field(self, name: str, default: str = "") -> str:
        """A field of the form."""
        values = self.form.get(name)
        return values[0].strip() if values else default

    def fields(self, name: str) -> list[str]:
        return list(self.form.get(name, ()))

    def id(self, what: str = "task") -> UUID:
        """The id in the path. Raises `Refusal`."""
        text = self.request.path_params["id"]
        if not _ID.fullmatch(text):
            raise missing(what)
        return UUID(text)

    def name(self, what: str = "queue") -> str:
        """The name in the path. Raises `Refusal`."""
        text: str = self.request.path_params["name"]
        if not limits.NAME.fullmatch(text):
            raise missing(what)
        return text

    # answers

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        """The page that `template` makes."""
        notice = unquote(self.request.cookies.get(NOTICE, ""))
        html = self.view.render(template, self, notice=notice, **values)
        response = HTMLResponse(html, status)
        if notice:
            response.delete_cookie(NOTICE, path="/")
        return response

    def back(self, path: str, notice: str = "") -> Response:
        """Go on at `path` after a form, with a word about what was done."""
        response = RedirectResponse(self.base + local(path), 303)
        if notice:
            response.set_cookie(NOTICE, quote(notice[:500]), max_age=30, path="/", httponly=True, samesite="strict")
        return response


def local(path: str) -> str:
    """`path` if it can only lead to a page of this dashboard, else the first page."""
    if path.startswith("/") and not path.startswith("//") and "\\" not in path and path.isprintable():
        return path
    return "/"


def link(path: str, query: Mapping[str, Any]) -> str:
    """A path with a query; empty values are left out, lists repeated."""
    pairs = [(key, value) for key, value in query.items() if value not in (None, "", [], ())]
    text = urlencode(pairs, doseq=True)
    return f"{path}?{text}" if text else path


async def read_form(request: Request) -> dict[str, list[str]]:
    """The fields of an urlencoded form. Raises `Refusal`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise Refusal(415, "Not a form", "Forms are sent as application/x-www-form-urlencoded.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM_BYTES:
            raise Refusal(413, "Too large", f"A form holds at most {FORM_BYTES // 1024} KiB.")
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=FORM_FIELDS, errors="strict")
    except ValueError:
        raise Refusal(400, "Not a form", "The form cannot be read: it must be UTF-8, with few fields.") from None
    form: dict[str, list[str]] = {}
    for name, value in pairs:
        form.setdefault(name, []).append(value)
    return form
