"""The settler: buffers settlements and flushes them as one statement, whenever the previous flush has returned.

No timer: idle, a settlement leaves at once; under load, batches form by themselves. While the database is away the
buffer waits (bounded: the slots stop taking tasks when it is full); a flush whose reply was lost is looked up by lease
before it is sent again, so that no outcome is written twice and none is taken for stale.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from uuid import UUID

import asyncpg

from dhara.domain.lifecycle import Event
from dhara.domain.settle import Settlement
from dhara.service import Service
from dhara.store.tasks import Tasks

log = logging.getLogger(__name__)

MOST = 500
CAPACITY = 10_000
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
_RETURNS = (Event.RETRIED, Event.SNOOZED)


class Settler(Service):
    """Writes the settlements of one worker.

    `rejected` hears of each stale one, `relieved` when it is no longer full, `returned` in how many seconds the first of a
    batch's tasks is due again, `observe` of each batch: its size and how long it took.
    """

    def __init__(
        self,
        *,
        tasks: Tasks,
        worker: UUID,
        rng: random.Random,
        rejected: Callable[[Settlement], None] = lambda s: None,
        relieved: Callable[[], None] = lambda: None,
        returned: Callable[[float], None] = lambda seconds: None,
        observe: Callable[[str, int, float], None] = lambda name, tasks, seconds: None,
    ) -> None:
        super().__init__()
        self._tasks = tasks
        self._worker = worker
        self._rng = rng
        self._rejected = rejected
        self._relieved = relieved
        self._returned = returned
        self._observe = observe
        self._waiting: list[Settlement] = []
        self._flushing: Sequence[Settlement] = ()
        self._news = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def put(self, settlement: Settlement) -> None:
        """Hand over; returns at once."""
        self._waiting.append(settlement)
        if not self._news.is_set():
            self._empty.clear()
            self._news.set()

    @property
    def full(self) -> bool:
        """True while so much waits that no further task should start."""
        return len(self._waiting) >= CAPACITY

    def __len__(self) -> int:
        return len(self._waiting) + len(self._flushing)

    def leases(self) -> set[UUID]:
        """The leases that are not settled yet."""
        return {s.lease for s in self._waiting} | {s.lease for s in self._flushing}

    async def drained(self) -> None:
        """Wait until everything handed over is written."""
        await self._empty.wait()

    async def run(self) -> None:
        while True:
            await self._news.wait()
            was_full = self.full
            batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
            if was_full and not self.full:
                self._relieved()  # by now all slots may be idle, so nobody else would say that there is room
            if not batch:
                self._news.clear()
                self._empty.set()
                continue
            self._flushing = batch
            await self._write(batch)
            self._flushing = ()

    async def _write(self, batch: Sequence[Settlement]) -> None:
        pause, unsure = _FIRST_PAUSE, False
        while True:
            try:
                if unsure:
                    done = await self._tasks.settled(batch)
                    batch = [s for s in batch if s.lease not in done]
                if batch:
                    await self._settle(batch)
                if unsure:
                    log.info("settling works again")
                return
            except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
                # Something in this batch the database will never take. It must not hold up the others.
                await self._one_by_one(batch, error)
                return
            except Exception as error:
                level = logging.DEBUG if unsure else logging.WARNING
                log.log(level, "%d settlements wait, trying again in about %.1f s: %s", len(self), pause, error)
                unsure = True
                await asyncio.sleep(pause * self._rng.uniform(0.5, 1.5))
                pause = min(_LONGEST_PAUSE, pause * 2)

    async def _one_by_one(self, batch: Sequence[Settlement], error: Exception) -> None:
        if len(batch) > 1:
            for settlement in batch:
                await self._write([settlement])
            return
        (bad,) = batch
        burial = _burial(bad, error)
        if bad == burial:
            log.error("task %s cannot be settled at all, it is given back: %s", bad.id, error)
            return
        log.error("task %s: its settlement cannot be stored: %s", bad.id, error)
        await self._write([burial])

    async def _settle(self, batch: Sequence[Settlement]) -> None:
        start = time.monotonic()
        accepted = await self._tasks.settle(batch)
        self._observe("settle", len(batch), time.monotonic() - start)
        waits = [s.delay for s in batch if s.event in _RETURNS and s.lease in accepted]
        if waits:
            self._returned(min(waits))
        if len(accepted) == len(batch):
            return
        refused = [s for s in batch if s.lease not in accepted]
        # Not stale is one whose first writing was still on its way to its commit as the connection was lost.
        done = await self._tasks.settled(refused)
        stale = [s for s in refused if s.lease not in done]
        if not stale:
            return
        log.warning(
            "the leases of %d attempts were lost, their outcomes are discarded: task %s%s",
            len(stale),
            stale[0].id,
            " and others" if len(stale) > 1 else "",
        )
        for settlement in stale:
            self._rejected(settlement)
        try:
            await self._tasks.reject(self._worker, stale)
        except Exception as error:
            log.warning("%d refused settlements could not be put on record: %s", len(stale), error)


def _burial(bad: Settlement, error: Exception) -> Settlement:
    """DEAD, and nothing in it that the database could refuse."""
    return Settlement(
        bad.id,
        bad.lease,
        bad.attempt,
        Event.DEAD,
        failed=1,
        reason="invalid_result",
        last_error=f"what the attempt answered cannot be stored: {type(error).__name__}",
    )
