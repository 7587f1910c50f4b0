"""Server-sent events: one poller a process, however many streams; none while nobody listens.

    stats    the figures of /stats
    queues   every queue with its figures
    task     a task that the stream asked for, as lists show it, whenever it has changed
    : beat   a comment after a while of silence, so that both ends know that the other is there

A stream ends with the API key that it was opened with: revoked or expired, it is told no more within `LOOK` seconds of the
server's hearing of it.

What has not been sent when the next round comes is replaced by it: a slow reader gets fewer events, not older ones, and
what is kept for a stream is bounded by the number of kinds and of tasks that it watches.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any
from uuid import UUID

import msgspec

from dhara.api import shapes
from dhara.api.exchange import Reply, Request, Stream
from dhara.api.figures import Figures, outlook
from dhara.api.problems import Refused, busy
from dhara.domain.task import Task
from dhara.store.tasks import Tasks

log = logging.getLogger(__name__)

INTERVAL = 1.0
LOOK = 1.0
BEAT = 15.0
MOST_STREAMS = 500
MOST_TASKS = 20
MOST_QUEUES = 200
_RETRY = b"retry: 3000\n\n"


class Subscription:
    """One stream's share: what is to be sent, the latest of each kind."""

    def __init__(self, tasks: frozenset[UUID]) -> None:
        self.tasks = tasks
        self.closed = False
        self._waiting: dict[str, bytes] = {}
        self._news = asyncio.Event()

    def put(self, key: str, event: bytes) -> None:
        """`event` in place of an unsent one of the same key."""
        self._waiting[key] = event
        self._news.set()

    def close(self) -> None:
        """Let the stream end."""
        self.closed = True
        self._news.set()

    async def take(self, timeout: float) -> bytes | None:
        """What is to be sent; nothing after `timeout` seconds; None: the stream is to end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._news.wait()
        if self.closed:
            return None
        waiting, self._waiting = self._waiting, {}
        self._news.clear()
        return b"".join(waiting.values())


class Feed:
    """All streams of this process, and the one poller that feeds them."""

    def __init__(self, figures: Figures, tasks: Tasks, interval: float = INTERVAL) -> None:
        self._figures = figures
        self._tasks = tasks
        self._interval = interval
        self._subscriptions: set[Subscription] = set()
        self._poller: asyncio.Task[None] | None = None
        self._last: dict[str, bytes] = {}
        self._seen: dict[UUID, bytes] = {}
        self.rounds = 0

    def __len__(self) -> int:
        return len(self._subscriptions)

    def check(self) -> None:
        """Raise `Refused` when there are too many streams."""
        if len(self._subscriptions) >= MOST_STREAMS:
            raise busy("overloaded", f"there are {MOST_STREAMS} event streams already; poll /stats instead", 5)

    def subscribe(self, tasks: frozenset[UUID] = frozenset()) -> Subscription:
        """A new stream, which must be unsubscribed at its end."""
        made = Subscription(tasks)
        self._subscriptions.add(made)
        for key, event in self._last.items():
            made.put(key, event)
        for id in tasks:
            self._seen.pop(id, None)  # so that the newcomer hears of it at once
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll(), name="event feed")
        return made

    def unsubscribe(self, one: Subscription) -> None:
        """The stream has ended; after the last one the polling ends, too."""
        self._subscriptions.discard(one)
        if not self._subscriptions and self._poller is not None:
            self._poller.cancel()
            self._poller = None
            self._last.clear()
            self._seen.clear()

    def close(self) -> None:
        """Let all streams end."""
        for one in list(self._subscriptions):
            one.close()

    async def _poll(self) -> None:
        failing = False
        while True:
            try:
                await self._round()
                failing = False
            except Exception as error:
                log.log(logging.DEBUG if failing else logging.WARNING, "no events without the database: %s", error)
                failing = True
            await asyncio.sleep(self._interval)

    async def _round(self) -> None:
        from dhara.api.fleet import stats_out

        self.rounds += 1
        pulse = await self._figures.pulse()
        queues = [shapes.queue_out(q, None, outlook(q, pulse.recent.get(q.name))) for q in pulse.queues[:MOST_QUEUES]]
        self._publish("stats", stats_out(pulse))
        self._publish("queues", shapes.QueueList(queues))
        watched = {id for one in self._subscriptions for id in one.tasks}
        if watched:
            self._tell(await self._tasks.get_many(sorted(watched)))

    def _publish(self, kind: str, value: Any) -> None:
        """To all, if it has changed."""
        event = _event(kind, value)
        if self._last.get(kind) != event:
            self._last[kind] = event
            for one in self._subscriptions:
                one.put(kind, event)

    def _tell(self, found: dict[UUID, Task]) -> None:
        for id, task in found.items():
            event = _event("task", shapes.task_row(task))
            if self._seen.get(id) != event:
                self._seen[id] = event
                for one in self._subscriptions:
                    if id in one.tasks:
                        one.put(str(id), event)


def _event(kind: str, value: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode(value))


async def stream(request: Request) -> Reply:
    tasks = frozenset(request.query.get("task", ()))
    if len(tasks) > MOST_TASKS:
        message = f"at most {MOST_TASKS} tasks a stream"
        raise Refused("invalid_query", message, errors=(("task", message),))
    feed, auth, principal = request.parts.feed, request.parts.auth, request.principal
    feed.check()
    return Stream(
        200,
        content_type=b"text/event-stream",
        headers=((b"x-accel-buffering", b"no"),),
        pieces=_pieces(feed, tasks, request.receive, lambda: auth.stands(principal)),
    )


async def _pieces(
    feed: Feed, tasks: frozenset[UUID], receive: Callable[[], Any], stands: Callable[[], bool]
) -> AsyncGenerator[bytes, None]:
    subscription, said = feed.subscribe(tasks), time.monotonic()
    gone = asyncio.ensure_future(_hung_up(receive, subscription))
    try:
        yield _RETRY
        while (piece := await subscription.take(min(LOOK, BEAT))) is not None and stands():
            if piece or time.monotonic() - said >= BEAT:
                said = time.monotonic()
                yield piece or b": beat\n\n"
    finally:
        gone.cancel()
        feed.unsubscribe(subscription)


async def _hung_up(receive: Callable[[], Any], subscription: Subscription) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    subscription.close()
