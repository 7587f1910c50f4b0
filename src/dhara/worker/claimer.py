"""The claimer: asks for as many tasks as can start soon, woken or polling.

    woken          -> claim from the known lanes; if that gives nothing, scan for new ones
    claim is full  -> claim again as soon as there is room
    claim is short -> scan (if the last scan is long enough ago), else wait to be woken
    nothing heard  -> after the poll interval, or when the next delayed task is due: scan, and claim if it found any

The scan's share of the time is bounded: after one that took t, the next comes no sooner than 20 t, so that it costs
little even where dead index entries make it slow.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from uuid import UUID

from dhara.domain.task import Claim
from dhara.service import Service
from dhara.store.tasks import Tasks
from dhara.worker.lanes import Lanes

log = logging.getLogger(__name__)

MOST = 1_000
SCAN_EVERY = 5.0
SCAN_SHARE = 20
_LONGEST_PAUSE = 2.0


class Claimer(Service):
    """Claims for one worker. `room()` says how many tasks may come, `rooms()` how many of each queue."""

    def __init__(
        self,
        *,
        tasks: Tasks,
        worker: UUID,
        types: list[str],
        queues: Mapping[str, int],
        poll_interval: float,
        room: Callable[[], int],
        rooms: Callable[[], Mapping[str, int]],
        deliver: Callable[[list[Claim]], None],
        rng: random.Random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._tasks = tasks
        self._worker = worker
        self._types = types
        self._lanes = Lanes(queues)
        self._poll_interval = poll_interval
        self._room = room
        self._rooms = rooms
        self._deliver = deliver
        self._rng = rng
        self._clock = clock
        self._news = asyncio.Event()
        self._roomy = asyncio.Event()
        self._woken = True
        self._last_scan = float("-inf")
        self._scan_cost = 0.0
        self._next_due = float("inf")
        self.in_flight = False

    def wake(self, queue: str) -> None:
        """A hint that `queue` (empty: any) has a ready task."""
        if not queue or self._lanes.serves(queue):
            self._woken = True
            self._news.set()

    def freed(self) -> None:
        """A hint that there is room again."""
        self._roomy.set()

    async def run(self) -> None:
        pause = 0.1
        while True:
            try:
                await self._round()
                pause = 0.1
            except Exception as error:
                log.warning("claiming failed, trying again in about %.1f s: %s", pause, error)
                await asyncio.sleep(pause * self._rng.uniform(0.5, 1.5))
                pause = min(_LONGEST_PAUSE, pause * 2)
                self._woken = True

    async def _round(self) -> None:
        room = self._room()
        if room <= 0:
            self._roomy.clear()
            if self._room() <= 0:
                await self._roomy.wait()
            return
        woken, self._woken = self._woken, False
        self._news.clear()
        room = min(room, MOST)
        got = await self._claim(room) if woken and len(self._lanes) else 0
        if got == room and self._clock() - self._last_scan < max(SCAN_EVERY, SCAN_SHARE * self._scan_cost):
            self._woken = True  # a full claim: there is likely more
            return
        if (not got or self._scan_due()) and await self._scan():
            self._woken = True
            if await self._claim(min(self._room(), MOST)):
                return
            self._woken = False
        if got:
            # Something was there, so a little more may be on its way; look again when woken, or soon.
            self._next_due = min(self._next_due, self._clock() + self._poll_interval)
        await self._wait()

    async def _claim(self, most: int) -> int:
        lanes = self._lanes.known(self._rooms(), most) if most > 0 else []
        if not lanes:
            return 0
        self.in_flight = True
        try:
            claims = await self._tasks.claim(self._worker, self._types, most, lanes)
        finally:
            self.in_flight = False
        if claims:
            self._lanes.took(claims)
            self._deliver(claims)
        return len(claims)

    def _scan_due(self) -> bool:
        return self._clock() - self._last_scan >= SCAN_SHARE * self._scan_cost

    async def _scan(self) -> bool:
        start = self._clock()
        lanes = await self._tasks.lanes()
        self._last_scan = self._clock()
        self._scan_cost = self._last_scan - start
        waits = [lane.due_in for lane in lanes if not lane.ready and self._lanes.serves(lane.queue)]
        self._next_due = self._last_scan + min(waits) if waits else float("inf")
        return self._lanes.seen(lanes)

    async def _wait(self) -> None:
        """Until woken, or the poll interval is over, or the next delayed task is due."""
        seconds = min(self._poll_interval * self._rng.uniform(0.8, 1.0), max(0.001, self._next_due - self._clock()))
        if self._woken:
            return
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._news.wait(), seconds)
