"""Enqueues over HTTP into a queue with too many PENDING tasks get a 429 and a time to wait.

What is PENDING is looked at every second; while nothing is enqueued here more rarely, and at once when that begins
again. No request waits for a look.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Self

from dhara.service import Every
from dhara.store.pressure import Pressure
from dhara.store.queues import Queues

INTERVAL, IDLE_INTERVAL = 1.0, 5.0


class Backpressure(Pressure):
    """What is known about full queues, kept up to date in the background."""

    def __init__(self, queues: Queues, limit: int) -> None:
        super().__init__(queues, limit)
        self._looks = _Looks(self.refresh)

    def take(self, queue: str) -> None:
        """Count one enqueue. Raises `QueueFull`."""
        if not self._looks.wanted:
            self._looks.want()
        if self._own or self._limit:
            super().take_all((queue,))

    def take_all(self, queues: Iterable[str]) -> None:
        if not self._looks.wanted:
            self._looks.want()
        super().take_all(queues)

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
