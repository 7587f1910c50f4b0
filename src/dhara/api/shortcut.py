"""The short way of the most frequent request: a POST of one task whose head was seen before.

All that the edge decides by the head alone (address, origin, media type, route) is decided once, when the server remembers
the head: `Shortcut.passage`. What is left is decided for each request, by the same functions and in the same order as on the
way through ASGI, but without its objects and without an asyncio task: nothing here waits but the task for its commit.
Whatever is not plain (other routes, rarer headers, queries) takes the long way (`asgi.py`), which answers the same.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from starlette.types import Scope

from dhara.api import problems, tasks, wire
from dhara.api.answer import count, head_lines, new_request_id
from dhara.api.auth import ANYONE, check_address, forbidden
from dhara.api.exchange import ClientGone, Reply, Request, header_values, index_headers
from dhara.api.parts import Parts
from dhara.api.problems import Refused
from dhara.api.routes import BASE
from dhara.domain.access import ENQUEUE, Principal
from dhara.domain.task import Enqueued, NewTask
from dhara.errors import QueueFull, Unavailable
from dhara.telemetry import log as telemetry_log

PATH = BASE + "/tasks"
# Takes status, head lines and body of an answer.
Answer = Callable[[int, bytes, bytes], None]
# These differ from request to request, or say more than the head does.
_OWN = (b"x-request-id", b"idempotency-key")


class Shortcut:
    """The short way into one application."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def passage(self, head: Mapping[str, Any]) -> Passage | None:
        """The way of the requests with this head (an ASGI scope); None: the long one."""
        scope = {**head}
        index_headers(scope)
        if scope["method"] != "POST" or scope["path"] != PATH or scope["query_string"]:
            return None
        if any(header_values(scope, name) for name in _OWN):
            return None
        try:
            check_address(self._parts.auth, scope)
            self._parts.auth.check_origin(scope)
            wire.check_media(Request(scope, _nothing, self._parts, {}))
        except Refused:
            return None
        scope["dhara.route"] = PATH
        return Passage(self, self._parts, scope)


class Passage:
    """The short way of the requests with one head."""

    __slots__ = ("parts", "scope", "shortcut")

    def __init__(self, shortcut: Shortcut, parts: Parts, scope: Scope) -> None:
        self.shortcut = shortcut
        self.parts = parts
        self.scope = scope

    def begin(self, client: tuple[str, int] | None, body: bytes, answer: Answer) -> None:
        """Take a request in. `answer` gets its answer: at once a refusal, else what became of the task."""
        posting = Posting(self, answer)
        token = telemetry_log.request_id.set(posting.id)
        try:
            posting.principal = principal = self._admit(client)
            task = wire.new_task_of(body)
            if principal.queues:
                tasks.check_queues(principal, (task,))
            posting.wait(task)
        except Exception as error:
            posting.refuse(error)
        finally:
            # This context is the listening socket's own: what is left in it, other connections would inherit.
            telemetry_log.request_id.reset(token)

    def _admit(self, client: tuple[str, int] | None) -> Principal:
        """Whom the request acts for, who may enqueue. Raises `Refused`."""
        auth = self.parts.auth
        if auth.open:
            return ANYONE
        principal = auth.identify({**self.scope, "client": client})
        auth.limit(principal)
        if ENQUEUE not in principal.scopes:
            raise forbidden()
        return principal


class Posting:
    """One request on the short way."""

    __slots__ = ("_answer", "_passage", "_started", "_task", "id", "principal")

    def __init__(self, passage: Passage, answer: Answer) -> None:
        self._passage = passage
        self._answer = answer
        self._started = time.perf_counter()
        self._task: NewTask | None = None
        self.id = new_request_id()
        self.principal = ANYONE

    def wait(self, task: NewTask) -> None:
        """Have the task enqueued, and answer then. Raises `QueueFull`, or `Refused` where too much waits."""
        parts = self._passage.parts
        waiting: asyncio.Future[Enqueued]
        try:
            parts.pressure.take(task.queue)
        except QueueFull as full:
            if not task.keyed:
                raise
            waiting = asyncio.ensure_future(tasks.repeated(parts, task, full))
        else:
            waiting = parts.ingest.take(task)
            self._task = task
        waiting.add_done_callback(self._done)

    def _done(self, waiting: asyncio.Future[Enqueued]) -> None:
        parts = self._passage.parts
        if self._task is not None:
            parts.ingest.leave(self._task)
        try:
            self._send(tasks.created(waiting.result(), self.principal, parts.mask))
        except asyncio.CancelledError:
            self.refuse(Unavailable("the server stops"))
        except Exception as error:
            self.refuse(error)

    def refuse(self, error: Exception) -> None:
        """Answer what went wrong."""
        self._send(problems.reply(problems.refusal(error, self.id), self.id))

    def _send(self, reply: Reply) -> None:
        self._answer(reply.status, head_lines(reply, self.id), reply.body)
        count(self._passage.parts.traffic, self._passage.scope, reply.status, time.perf_counter() - self._started)


async def _nothing() -> Any:
    raise ClientGone
