"""The reference: the OpenAPI document, and a page that shows it and lets one try it, without any CDN."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from dhara.api.exchange import Reply, Request, json_reply
from dhara.api.problems import not_found

_STATIC = files("dhara.api") / "static"
_FILES = {"docs.css": b"text/css; charset=utf-8", "docs.js": b"text/javascript; charset=utf-8"}


async def openapi(request: Request) -> Reply:
    parts = request.parts
    return json_reply(parts.document if parts.auth.open else parts.document | {"security": [{"key": []}]})


async def docs(request: Request) -> Reply:
    return Reply(200, _read("docs.html"), b"text/html; charset=utf-8")


async def static(request: Request) -> Reply:
    name = request.path["file"]
    if name not in _FILES:
        raise not_found()
    return Reply(200, _read(name), _FILES[name], ((b"cache-control", b"no-cache"),))


@cache
def _read(name: str) -> bytes:
    return (_STATIC / name).read_bytes()
