"""The chores that somebody waits for: schedules and bulk operations, done when they are due and not looked for in between.

Each round of maintenance tells the leader when the next is due, and the chores look again after they were done. So one
that was made meanwhile is heard of within a round; this process may hint at those that it has made itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

from dhara.maintenance.bulk import Bulk
from dhara.maintenance.scheduler import Scheduler
from dhara.service import Every
from dhara.store.workers import Workers

log = logging.getLogger(__name__)

# Before the next try where something stays due: others are at it, or it takes longer than a turn.
_AGAIN = 1.0
_HINTED = 15.0


class Chores(Every):
    """Does them while this process leads, or has hinted at some."""

    def __init__(self, bulk: Bulk, scheduler: Scheduler, workers: Workers) -> None:
        super().__init__(_AGAIN, self.do, "schedules and bulk operations")
        self._bulk = bulk
        self._scheduler = scheduler
        self._workers = workers
        self._leads_until = 0.0
        self._hinted_until = 0.0
        self._due: float | None = None
        self._news = asyncio.Event()

    def lead(self, until: float, chore_in: float | None) -> None:
        """This process leads `until` a moment of its monotonic clock; the next chore is due in `chore_in` seconds."""
        self._leads_until = until
        self._expect(chore_in)

    def follow(self) -> None:
        """Somebody else leads."""
        self._leads_until = 0.0

    def hint(self) -> None:
        """One has been begun in this process: it goes on from here, even if another leads, who may hear of it later."""
        self._hinted_until = time.monotonic() + _HINTED
        self._expect(0.0)

    async def do(self) -> None:
        """What is due, and on the second what will be within one; then find out when the next is."""
        if not self._active or self._due is None or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _AGAIN  # should this fail
        # Schedules first: they are due on the second, and a bulk operation may wait long for a lock.
        try:
            await self._fire()
        except Exception as error:
            log.warning("schedules could not be fired, trying again: %s", error)
        await self._bulk.drive()
        self._news.clear()
        following = await self._workers.next_chore()
        if not self._news.is_set():
            self._expect(_AGAIN if following is not None and following <= 0 else following)

    async def _fire(self) -> None:
        if (soon := await self._scheduler.tick(_AGAIN)) is not None:
            await asyncio.sleep(soon)
            await self._scheduler.tick()

    async def rest(self) -> None:
        """Until the next is due, or another is heard of."""
        self._news.clear()
        due = self._due if self._active else None
        seconds = None if due is None else max(0.0, due - time.monotonic())
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    @property
    def _active(self) -> bool:
        return time.monotonic() < max(self._leads_until, self._hinted_until)

    def _expect(self, seconds: float | None) -> None:
        self._due = None if seconds is None else time.monotonic() + seconds
        self._news.set()
