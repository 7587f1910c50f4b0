"""One request and its reply, as thin as they can be: endpoints see these two and nothing of ASGI."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct
from starlette.types import Receive, Scope

from dhara.domain.access import Principal

if TYPE_CHECKING:
    from dhara.api.parts import Parts

JSON = b"application/json"
_ENCODER = msgspec.json.Encoder()


class Reply(Struct, frozen=True):
    """An answer: status, body and headers beyond those that every answer has."""

    status: int
    body: bytes = b""
    content_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Stream(Reply, frozen=True, kw_only=True):
    """An answer that comes piece by piece, until `pieces` end or the client is gone."""

    pieces: AsyncGenerator[bytes, None]


class ClientGone(Exception):
    """The client has hung up; nobody reads an answer."""


class Request:
    """What an endpoint may know of a request."""

    __slots__ = ("parts", "query", "receive", "scope")

    def __init__(self, scope: Scope, receive: Receive, parts: Parts, query: Mapping[str, Any]) -> None:
        self.scope = scope
        self.receive = receive
        self.parts = parts
        self.query = query

    @property
    def path(self) -> Mapping[str, str]:
        """The parameters in the path."""
        params: Mapping[str, str] = self.scope["path_params"]
        return params

    @property
    def principal(self) -> Principal:
        """Whom the request acts for; without a key (a probe) somebody who may do nothing."""
        principal: Principal = self.scope["dhara.principal"]
        return principal

    @property
    def id(self) -> str:
        """The request id."""
        request_id: str = self.scope["dhara.request_id"]
        return request_id

    @property
    def actor(self) -> str:
        """Who asks, for the audit log: the name of the key; `api` where none is needed."""
        return self.principal.name

    def headers(self, name: bytes) -> tuple[bytes, ...]:
        """Every value of header `name` (lower case)."""
        return header_values(self.scope, name)


def index_headers(scope: Scope) -> None:
    """Make `header_values` cheap for this request: nearly no request has a header twice."""
    single = dict(scope["headers"])
    scope["dhara.headers"] = single if len(single) == len(scope["headers"]) else None


def header_values(scope: Scope, name: bytes) -> tuple[bytes, ...]:
    """Every value of header `name` (lower case) of a request whose headers are indexed."""
    single: dict[bytes, bytes] | None = scope["dhara.headers"]
    if single is None:
        return tuple(value for key, value in scope["headers"] if key == name)
    value = single.get(name)
    return () if value is None else (value,)


Endpoint = Callable[[Request], Awaitable[Reply]]


def json_reply(value: Any, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Reply:
    """`value` as JSON."""
    return Reply(status, _ENCODER.encode(value), JSON, headers)
