"""Templates: everything that is said is escaped; what a template may call stands here."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from dhara.dashboard import words
from dhara.dashboard.visit import link
from dhara.domain.access import ADMIN, OPERATE, PAYLOAD

if TYPE_CHECKING:
    from dhara.dashboard.visit import Visit

_TEMPLATES = files("dhara.dashboard") / "templates"
STATIC = files("dhara.dashboard") / "static"
# path -> title: the navigation, in its order.
SECTIONS: dict[str, str] = {
    "/": "Overview",
    "/tasks": "Tasks",
    "/failures": "Failures",
    "/dead-letters": "Dead letters",
    "/queues": "Queues",
    "/workers": "Workers",
    "/schedules": "Schedules",
    "/audit": "Audit",
    "/settings": "Settings",
}
# Pages for whoever may see some queues only.
LIMITED = ("/", "/tasks", "/failures", "/dead-letters", "/queues", "/schedules")


class View:
    """Renders pages."""

    def __init__(self, version: str, *, api: bool, signs_in: bool) -> None:
        self._common = {"version": version, "api": api, "signs_in": signs_in}
        self._templates = _environment()

    def render(self, template: str, visit: Visit, **values: Any) -> str:
        """The text of a page. `now` is the database's time as far as the page has asked for it."""
        found = {
            "now": datetime.now(UTC),
            "visit": visit,
            "base": visit.base,
            "may_operate": visit.may(OPERATE),
            "may_payload": visit.may(PAYLOAD),
            "may_admin": visit.may(ADMIN),
            "sections": _sections(visit),
            "section": _section(visit.path),
            **self._common,
            **values,
        }
        return self._templates.get_template(template).render(found)


def _sections(visit: Visit) -> dict[str, str]:
    """Those that the visitor may open."""
    found = {path: title for path, title in SECTIONS.items() if path != "/settings" or visit.may(ADMIN)}
    return {path: found[path] for path in LIMITED} if visit.limited else found


def _section(path: str) -> str:
    first = "/" + path.lstrip("/").partition("/")[0].partition("?")[0]
    return first if first in SECTIONS else ""


def _load(name: str) -> str | None:
    found = _TEMPLATES / name
    return found.read_text() if found.is_file() else None


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_load),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters.update(
        number=words.number,
        duration=words.duration,
        exact=words.exact,
        relative=words.relative,
        rate=words.rate,
        pretty=words.pretty,
    )
    environment.globals.update(link=link, count=words.count, estimate=words.estimate, asset=asset)
    return environment


@cache
def asset(name: str) -> str:
    """The address of a static file, which changes with its content, so that browsers may keep it."""
    return f"/static/{hashlib.sha256(static(name)).hexdigest()[:12]}/{name}"


@cache
def static(name: str) -> bytes:
    """The content of a static file. Raises `KeyError` for one that is not served."""
    if name not in FILES:
        raise KeyError(name)
    return (STATIC / name).read_bytes()


_SCRIPT, _STYLE = "text/javascript; charset=utf-8", "text/css; charset=utf-8"
FILES: dict[str, str] = {
    "dashboard.css": _STYLE,
    "dashboard.js": _SCRIPT,
    "charts.js": _SCRIPT,
    "theme.js": _SCRIPT,
    "icon.svg": "image/svg+xml",
    "vendor/htmx.min.js": _SCRIPT,
    "vendor/uplot.min.js": _SCRIPT,
    "vendor/uplot.min.css": _STYLE,
}
