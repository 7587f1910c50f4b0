"""Serving over HTTP: uvicorn with httptools, bounded against slow and oversized clients, started and stopped by the caller.

uvicorn leaves three things open that are closed here: how long a request may take to arrive, how large its head may be,
and what a malformed one is answered (a problem, like everything else).
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import uvicorn
from msgspec import Struct
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from dhara.api import problems
from dhara.api.answer import Outgoing
from dhara.api.auth import URL_BYTES
from dhara.api.problems import Refused
from dhara.api.shortcut import Passage, Shortcut
from dhara.domain.headers import SECURITY_HEADERS
from dhara.errors import ConfigError

log = logging.getLogger(__name__)

HEADER_BYTES = 32 * 1024
ARRIVAL_SECONDS = 20.0
KEEP_ALIVE_SECONDS = 75
MOST_CONNECTIONS = 4_000
_REASONS = {
    400: b"Bad Request",
    408: b"Request Timeout",
    414: b"URI Too Long",
    431: b"Request Header Fields Too Large",
}


# A head with others is parsed each time: they mean something to the parser, or differ from request to request.
_PLAIN_HEADERS = frozenset(
    (
        b"host",
        b"user-agent",
        b"accept",
        b"accept-encoding",
        b"accept-language",
        b"authorization",
        b"content-type",
        b"content-length",
        b"origin",
        b"sec-fetch-site",
    )
)
_OF_THE_HEAD = frozenset(
    (
        "type",
        "asgi",
        "http_version",
        "root_path",
        "headers",
        "method",
        "path",
        "raw_path",
        "query_string",
    )
)
_MOST_HEADS = 256
_KNOWN_BODY = 256 * 1024


class Head(Struct, frozen=True):
    """What a request's head says, the length of the body that it announces, and its short way, if it has one."""

    length: int
    scope: dict[str, Any]
    passage: Passage | None = None


class Cycle(RequestResponseCycle):
    """One request and its answer, which it can take in one piece: one write, and nothing to check again."""

    async def reply(self, status: int, head: bytes, body: bytes) -> None:
        """Send the whole answer; `head` are its header lines."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if self.response_started:
            raise RuntimeError("the answer has begun already")
        if self.scope["method"] == "HEAD":
            body = b""
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.transport.write(_whole(status, self.default_headers, head, body, self.keep_alive))
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


class Brief:
    """A request on the short way: of a cycle what uvicorn's protocol looks at, and no more."""

    __slots__ = ("_protocol", "disconnected", "keep_alive", "response_complete")
    more_body = False
    message_event = SimpleNamespace(set=lambda: None)

    def __init__(self, protocol: Protocol) -> None:
        self._protocol: Protocol | None = protocol
        self.disconnected = False
        self.keep_alive = True
        self.response_complete = False

    def answer(self, status: int, head: bytes, body: bytes) -> None:
        """Send the whole answer; `head` are its header lines."""
        # Let go at once: each holds the other, and so would stay until the next collection.
        protocol, self._protocol = self._protocol, None
        self.response_complete = True
        if protocol is None or self.disconnected:
            return
        headers = protocol.server_state.default_headers
        protocol.transport.write(_whole(status, headers, head, body, self.keep_alive))
        if not self.keep_alive:
            protocol.transport.close()
        protocol.on_response_complete()


def _whole(status: int, headers: list[tuple[bytes, bytes]], head: bytes, body: bytes, keep_alive: bool) -> bytes:
    """An answer, whole; `headers` are the server's own."""
    end = b"\r\n" if keep_alive else b"connection: close\r\n\r\n"
    return b"".join((STATUS_LINE[status], *(b"%b: %b\r\n" % header for header in headers), head, end, body))


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with limits on what has not become a request yet, and a memory for heads.

    The heads of a client's POSTs are often the same to the byte. One that has been parsed and accepted before, with its
    whole body behind it and nothing else, is not parsed again. It is remembered with its length, so that what is taken for
    a body is what the parser would take for it.
    """

    _heads: ClassVar[dict[bytes, Head]] = {}
    _between: bool = True
    _begun: int = 0
    _arrival: asyncio.TimerHandle | None = None
    _head: int = 0
    _complete: bool = False
    _refusal: str = "bad_request"
    _running: RequestResponseCycle | Brief | None = None
    _used: float = 0.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._shortcut: Shortcut | None = getattr(self.app, "shortcut", None)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # Only with the parser between two requests, and no answer outstanding.
        idle = self._between and (self.cycle is None or self.cycle.response_complete)  # type: ignore[redundant-expr]
        end = data.find(b"\r\n\r\n") + 4 if idle and data.startswith(b"POST ") else 0
        known = self._heads.get(data[:end]) if end else None
        if known is not None and known.length == len(data) - end and self._is_free():
            passage = known.passage
            if passage is not None and passage.shortcut is self._shortcut and not self.flow.write_paused:
                self._pass(passage, data[end:])
            else:
                self._take(known, data[end:])
            return
        self._begun = 0
        self._parse(data)
        if end and self._begun == 1 and self._between and not self.transport.is_closing():
            self._remember(data[:end], len(data) - end)

    def _is_free(self) -> bool:
        most = self.limit_concurrency or MOST_CONNECTIONS
        busy = max(len(self.connections), len(self.tasks)) >= most
        return not (busy or self.pipeline or self.transport.is_closing())

    def _pass(self, passage: Passage, body: bytes) -> None:
        """Begin a request on the short way."""
        if self._arrival is not None:
            self._arrived()
        self._running = brief = Brief(self)
        self.cycle = cast(Any, brief)
        passage.begin(self.client, body, brief.answer)

    def _take(self, head: Head, body: bytes) -> None:
        """Begin a request whose head is known."""
        self._arrived()
        self._unset_keepalive_if_required()
        scope = cast(Any, {**head.scope, "server": self.server, "client": self.client})
        scope |= {"scheme": self.scheme, "state": self.app_state.copy(), "dhara.body": body}
        self.scope, self.headers = scope, scope["headers"]
        self.cycle = Cycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=True,
            on_response=self.on_response_complete,
        )
        self.cycle.body += body
        self.cycle.more_body = False
        self.cycle.message_event.set()
        self._start_asgi_task(self.cycle, self.app)

    def _remember(self, head: bytes, length: int) -> None:
        """Remember the head of the request that was parsed just now, if all of it was in one piece and is plain."""
        scope = cast(dict[str, Any], self.scope)
        names = [name for name, _ in self.headers]
        plain = _PLAIN_HEADERS.issuperset(names) and len(set(names)) == len(names)
        whole = self.cycle.body == b"" or len(self.cycle.body) == length
        if not plain or not whole or scope["http_version"] != "1.1" or not self.cycle.keep_alive:
            return
        if dict(self.headers).get(b"content-length") != str(length).encode() or length > _KNOWN_BODY:
            return
        if len(self._heads) >= _MOST_HEADS:
            self._heads.clear()
        kept = {key: value for key, value in scope.items() if key in _OF_THE_HEAD}
        passage = self._shortcut.passage(kept) if self._shortcut is not None else None
        self._heads[head] = Head(length, kept, passage)

    def _parse(self, data: bytes) -> None:
        if self._arrival is None and (self.cycle is None or self.cycle.response_complete):  # type: ignore[redundant-expr]
            self._expect()
        self._head += len(data)
        super().data_received(data)
        if not self._complete and self._head > HEADER_BYTES + URL_BYTES and not self.transport.is_closing():
            self._refusal = "url_too_long" if not self.headers and len(self.url) > URL_BYTES else "headers_too_large"
            self.send_400_response("")

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        # uvicorn makes its cycles itself; this is the place where each passes once.
        cycle.__class__ = Cycle
        if app is not self.app:
            app = _overloaded
        cast(dict[str, Any], cycle.scope)["dhara.reply"] = cast(Cycle, cycle).reply
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        # A request that holds its own answerer is a reference cycle, and its body would stay until the next collection.
        if isinstance(self._running, Cycle):
            cast(dict[str, Any], self._running.scope).pop("dhara.reply", None)
        if self.pipeline or self.flow.read_paused or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self._used = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._let_idle(self.timeout_keep_alive)

    def _let_idle(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Hang up on who has asked nothing for long. The short way leaves the timer alone, so it may come too early."""
        self.timeout_keep_alive_task = None
        if self.cycle is not None and not self.cycle.response_complete:  # type: ignore[redundant-expr]
            return  # its answer sets the timer anew
        left = self._used + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._let_idle(left)
        else:
            super().timeout_keep_alive_handler()

    def on_message_begin(self) -> None:
        self._complete = self._between = False
        self._begun += 1
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._complete = True
        # Only a long read can hold a long head; counting every short one would cost each request.
        if self._head > URL_BYTES:
            self._check_head()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._between = True
        self._arrived()
        self._head = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request, and hang up; first comes the answer of a request before it."""
        self._arrived()
        running = self._running
        if (
            running is not None
            and not running.response_complete
            and (running is not self.cycle or not running.more_body)
        ):
            # Its client would take this refusal for its own answer, though it is being done.
            running.keep_alive = False
            self.pipeline.clear()
            return
        code, self._refusal = self._refusal, "bad_request"
        request_id = secrets.token_hex(8)
        refused = Refused(
            code,
            "this is not a request that the server understands"
            if code == "bad_request"
            else problems.PROBLEMS[code][1],
        )
        reply = problems.reply(refused, request_id)
        head = [
            b"HTTP/1.1 %d %s" % (reply.status, _REASONS[reply.status]),
            b"content-type: " + reply.content_type,
        ]
        head += [
            b"content-length: %d" % len(reply.body),
            b"connection: close",
            b"x-request-id: " + request_id.encode(),
        ]
        head += [key + b": " + value for key, value in SECURITY_HEADERS]
        self.transport.write(b"\r\n".join(head) + b"\r\n\r\n" + reply.body)
        self.transport.close()

    def _check_head(self) -> None:
        size = sum(len(name) + len(value) + 4 for name, value in self.headers)
        if len(self.url) > URL_BYTES or size > HEADER_BYTES:
            self._refusal = "url_too_long" if len(self.url) > URL_BYTES else "headers_too_large"
            raise ValueError(self._refusal)

    def _expect(self) -> None:
        self._arrival = self.loop.call_later(ARRIVAL_SECONDS, self._too_slow)

    def _arrived(self) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None

    def _too_slow(self) -> None:
        self._arrival = None
        if self.transport.is_closing():
            return
        if self._complete or self._head == 0:
            # Its head is with the application already, or nothing came at all: there is nobody to answer.
            self.transport.close()
        else:
            self._refusal = "request_timeout"
            self.send_400_response("")


async def _overloaded(scope: Scope, receive: Receive, send: Send) -> None:
    """What is answered, in uvicorn's stead, where there are more connections than `MOST_CONNECTIONS`."""
    scope["dhara.request_id"] = request_id = secrets.token_hex(8)
    refused = problems.busy("overloaded", "there are too many connections; try again")
    await Outgoing(send, request_id, scope["dhara.reply"]).finish(problems.reply(refused, request_id))


class Server(uvicorn.Server):
    """uvicorn, without its signal handlers: starting and stopping are the caller's."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None], on_stopping: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started
        self._on_stopping = on_stopping

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # After uvicorn has told every connection that its next answer is its last, and before it waits for them.
        asyncio.get_running_loop().call_soon(self._on_stopping)
        await super().shutdown(sockets)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket's beginning. Raises `ConfigError` when the address cannot be had."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, proto)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.setblocking(False)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        hint = "; another program has it, choose another DHARA_PORT" if error.errno == errno.EADDRINUSE else ""
        raise ConfigError(f"cannot bind {host}:{port}: {error.strerror or error}{hint}") from None
    return bound


async def serve(
    app: Any,
    *,
    host: str,
    port: int,
    stop: asyncio.Event,
    on_started: Callable[[str, int], None] = lambda host, port: None,
    grace: float = 10.0,
) -> None:
    """Serve `app` until `stop` is set; then no new connection, and `grace` seconds for what is under way.

    `on_started` learns the real address, also with port 0. Raises `ConfigError` when it cannot bind.
    """
    bound = bind(host, port)
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="on",
        loop="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=2_048,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(grace)),
    )
    address = bound.getsockname()
    server = Server(
        config,
        on_started=lambda: on_started(address[0], address[1]),
        on_stopping=getattr(app, "drain", lambda: None),
    )
    stopper = asyncio.create_task(_stop(server, stop))
    try:
        with _rare_collections():
            await server.serve([bound])
    finally:
        stopper.cancel()
        bound.close()


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Have Python look for reference cycles more rarely: requests make next to none, and by default the looking takes
    a tenth of the processor under load. With 50,000, which is no faster, refusals (429) left 9 MiB between two looks."""
    before = gc.get_threshold()
    gc.set_threshold(10_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)


async def _stop(server: Server, stop: asyncio.Event) -> None:
    await stop.wait()
    server.should_exit = True
