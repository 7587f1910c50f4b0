"""Server-sent events that say when a page is worth fetching again.

One look a second at the fleet's counters serves all streams, and only while there are streams. Events carry no data of
tasks, only a number that grows when something has changed: each page then asks for itself, with its visitor's rights.
Before each event it is asked again whether the visitor may still come in; a stream ends with its session or its key.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress

from starlette.responses import Response, StreamingResponse

from dhara.dashboard.pulse import Pulse

log = logging.getLogger(__name__)

PERIOD = 1.0
# Without events it is looked that often, too, whether the visitor still may.
SILENCE = 2.0
MOST_STREAMS = 500


class Live:
    """All streams of this process."""

    def __init__(self, pulse: Pulse, period: float = PERIOD) -> None:
        self._pulse = pulse
        self._period = period
        self._streams: set[asyncio.Queue[str | None]] = set()
        self._looker: asyncio.Task[None] | None = None
        self._version = 0
        self._last: object = None
        self._closed = False

    def stream(self, may: Callable[[], Awaitable[bool]]) -> Response:
        """A stream for one page, as long as its visitor `may` see it; refused when there are too many, whose pages then poll."""
        if self._closed or len(self._streams) >= MOST_STREAMS:
            return Response(status_code=503, headers={"retry-after": "5"})
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self._events(may), media_type="text/event-stream", headers=headers)

    def close(self) -> None:
        """End every stream."""
        self._closed = True
        for queue in self._streams:
            _put(queue, None)
        if self._looker is not None:
            self._looker.cancel()

    async def _events(self, may: Callable[[], Awaitable[bool]]) -> AsyncGenerator[str, None]:
        queue: asyncio.Queue[str | None] = asyncio.Queue(maxsize=2)
        self._streams.add(queue)
        if self._looker is None or self._looker.done():
            self._looker = asyncio.create_task(self._look(), name="dashboard live")
        try:
            yield "retry: 2000\n\n"
            while (event := await _next(queue)) is not None:
                try:
                    if not await may():
                        return
                except Exception as error:
                    # Nobody can tell; and so nothing is told.
                    log.debug("whether a stream may go on is not known: %s: %s", type(error).__name__, error)
                    continue
                if event:
                    yield event
        finally:
            self._streams.discard(queue)

    async def _look(self) -> None:
        while self._streams:
            with suppress(Exception):
                snapshot = await self._pulse.snapshot()
                paused = [queue.name for queue in snapshot.queues if queue.paused_at is not None]
                seen = (snapshot.totals, snapshot.states, snapshot.fleet.workers, snapshot.ready, paused)
                if seen != self._last:
                    self._last = seen
                    self._version += 1
                for queue in self._streams:
                    _put(queue, f"event: tick\ndata: {self._version}\n\n")
            await asyncio.sleep(self._period)


async def _next(queue: asyncio.Queue[str | None]) -> str | None:
    """The next event, empty after a while without any; None: the stream is to end."""
    try:
        async with asyncio.timeout(SILENCE):
            return await queue.get()
    except TimeoutError:
        return ""


def _put(queue: asyncio.Queue[str | None], event: str | None) -> None:
    """The newest events win: whoever reads slowly misses ticks, which say nothing that the next does not."""
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(event)
