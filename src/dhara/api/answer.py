"""What every request and every answer have: an id, the security headers, a place in the counts."""

from __future__ import annotations

import itertools
import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from contextlib import aclosing

from starlette.types import Message, Scope, Send

from dhara.api.exchange import Reply, Stream, header_values
from dhara.domain.headers import SECURITY_HEADERS
from dhara.telemetry.metrics import OTHER, Traffic

log = logging.getLogger(__name__)

# Sends status, head lines and body of an answer in one piece.
WholeReply = Callable[[int, bytes, bytes], Awaitable[None]]

_NO_STORE = (b"cache-control", b"no-store")
_SECURITY_LINES = b"".join([b"%b: %b\r\n" % header for header in SECURITY_HEADERS])
_COMMON_LINES = _SECURITY_LINES + b"%b: %b\r\n" % _NO_STORE
# Made ids: unlike those of any other process, and countable within this one.
_PROCESS = secrets.token_hex(6)
_NUMBERS = itertools.count(1)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE"})


def request_id_of(scope: Scope) -> str:
    """The id that the request came with, or a new one."""
    given = header_values(scope, b"x-request-id")
    if len(given) == 1 and _REQUEST_ID.fullmatch(given[0]):
        return given[0].decode()
    return new_request_id()


def new_request_id() -> str:
    return f"{_PROCESS}-{next(_NUMBERS):x}"


def count(traffic: Traffic, scope: Scope, status: int, seconds: float) -> None:
    """Count a request that has been answered; status 0: it was not."""
    method = scope["method"] if scope["method"] in _METHODS else OTHER
    route = scope.get("dhara.route") or OTHER
    traffic.observe(method, route, status, seconds)
    if log.isEnabledFor(logging.DEBUG):
        log.debug("%s %s -> %d in %.1f ms", method, scope["path"], status, seconds * 1000)


def head_lines(reply: Reply, request_id: str) -> bytes:
    """All header lines of an answer that goes out whole."""
    own, common = b"", _COMMON_LINES
    for key, value in reply.headers:
        own += b"%b: %b\r\n" % (key, value)
        if key == b"cache-control":
            common = _SECURITY_LINES
    return b"content-type: %b\r\ncontent-length: %d\r\n%bx-request-id: %b\r\n%b" % (
        reply.content_type,
        len(reply.body),
        own,
        request_id.encode(),
        common,
    )


class Outgoing:
    """`send`, with the headers that every answer has; remembers the status. 0: none was sent.

    An endpoint's whole answer goes through `finish`, in one piece where the server can take it so (`server.Cycle`).
    """

    __slots__ = ("_request_id", "_send", "_whole", "status")

    def __init__(self, send: Send, request_id: str, whole: WholeReply | None) -> None:
        self._send = send
        self._request_id = request_id
        self._whole = whole
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers: list[tuple[bytes, bytes]] = [*message["headers"], (b"x-request-id", self._request_id.encode())]
            present = {key.lower() for key, _ in headers}
            headers += [header for header in SECURITY_HEADERS if header[0] not in present]
            if b"cache-control" not in present:
                headers.append(_NO_STORE)
            message["headers"] = headers
        await self._send(message)

    async def finish(self, reply: Reply) -> None:
        """Send `reply`, whole, or a stream to its end."""
        if isinstance(reply, Stream):
            await self._pour(reply)
        elif self._whole is not None:
            self.status = reply.status
            await self._whole(reply.status, head_lines(reply, self._request_id), reply.body)
        else:
            headers = [
                (b"content-type", reply.content_type),
                (b"content-length", b"%d" % len(reply.body)),
                *reply.headers,
            ]
            await self({"type": "http.response.start", "status": reply.status, "headers": headers})
            await self._send({"type": "http.response.body", "body": reply.body})

    async def _pour(self, reply: Stream) -> None:
        headers = [(b"content-type", reply.content_type), *reply.headers]
        await self({"type": "http.response.start", "status": reply.status, "headers": headers})
        async with aclosing(reply.pieces) as pieces:
            async for piece in pieces:
                await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        await self._send({"type": "http.response.body", "body": b""})
