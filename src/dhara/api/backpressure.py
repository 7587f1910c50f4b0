"""Queues that take no more: an enqueue over HTTP into a queue with too many PENDING tasks gets a 429 and a time to wait.

What is PENDING is read from the counters every second; in between this process adds what it lets through. While nothing is
enqueued here it is read more rarely, and at once when that begins again. So a limit is kept to about what all servers
together take in a second, and no request waits for it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Self

from dhara.api.problems import busy
from dhara.service import Every
from dhara.store.queues import Queues

INTERVAL, IDLE_INTERVAL = 1.0, 5.0
RETRY_AFTER = 2


class Backpressure:
    """`limit` holds for every queue without one of its own; 0: none."""

    def __init__(self, queues: Queues, limit: int) -> None:
        self._queues = queues
        self._limit = limit
        self._own: dict[str, int] = {}
        self._depths: Counter[str] = Counter()
        self._looks = _Looks(self.refresh)

    def take(self, queue: str) -> None:
        """Count one enqueue. Raises `Refused` (429) where the queue is full."""
        if not self._looks.wanted:
            self._looks.want()
        if self._own or self._limit:
            self.take_all((queue,))

    def take_all(self, queues: Iterable[str]) -> None:
        """Count many enqueues, all or none. Raises `Refused` (429) where they do not fit."""
        if not self._looks.wanted:
            self._looks.want()
        if not self._own and not self._limit:
            return
        wanted = Counter(queues)
        for queue, n in wanted.items():
            most = self._own.get(queue, self._limit or None)
            if most is not None and self._depths[queue] + n > most:
                raise busy("queue_full", f"queue {queue} takes {most:,} PENDING tasks; try again later", RETRY_AFTER)
        self._depths += wanted

    async def refresh(self) -> None:
        """Look now."""
        found = await self._queues.loads(bool(self._limit))
        self._own = {load.name: load.most for load in found if load.most is not None}
        self._depths = Counter({load.name: load.depth for load in found})

    async def __aenter__(self) -> Self:
        await self._looks.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._looks.stop()


class _Looks(Every):
    """The looks; a pause without an enqueue is a long one, which the first enqueue ends."""

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        super().__init__(INTERVAL, work, "looking for full queues")
        self.wanted = False
        self._news = asyncio.Event()

    def want(self) -> None:
        """Something is being enqueued."""
        self.wanted = True
        self._news.set()

    async def rest(self) -> None:
        wanted, self.wanted = self.wanted, False
        self._news.clear()
        await asyncio.sleep(INTERVAL)
        if not wanted:
            with suppress(TimeoutError):
                async with asyncio.timeout(IDLE_INTERVAL - INTERVAL):
                    await self._news.wait()
