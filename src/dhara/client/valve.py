"""A client on PostgreSQL heeds the limits of queues: it waits for room, for as long as its patience lasts.

It looks only while it enqueues, at most once a second and beside the enqueues; only the first after a pause waits for a look.
A database that cannot be asked, or not by this user, is no limit: the enqueue itself will say what is wrong.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterable

from dhara.errors import QueueFull
from dhara.store.pressure import Pressure
from dhara.store.queues import Queues

log = logging.getLogger(__name__)

FRESH, STALE = 1.0, 5.0
PAUSE = 0.5
# A database that is slow to answer is no reason to wait twice.
MOST_WAIT = 1.0


class Valve:
    """`patience`: seconds for which an enqueue waits for room."""

    def __init__(self, queues: Queues, patience: float) -> None:
        self._pressure = Pressure(queues)
        self._patience = patience
        self._looked = float("-inf")
        self._looking: asyncio.Task[None] | None = None

    @property
    def open(self) -> bool:
        """No queue has a limit, as was found out a moment ago: there is nothing to pass."""
        return not self._pressure.limited and time.monotonic() - self._looked < FRESH

    async def admit(self, queues: Iterable[str]) -> None:
        """Count enqueues into these queues, all or none, once they fit. Raises `QueueFull` if they do not in time,
        at once if they never will.

        Without any limit `queues` is not gone through: many tasks need not be built for it.
        """
        await self._look()
        if not self._pressure.limited:
            return
        wanted = tuple(queues)
        give_up = time.monotonic() + self._patience
        while True:
            try:
                self._pressure.take_all(wanted)
            except QueueFull as full:
                if full.never or time.monotonic() + PAUSE > give_up:
                    raise
            else:
                return
            await asyncio.sleep(PAUSE * random.uniform(0.5, 1.5))
            await self._look()

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})

    async def _look(self) -> None:
        age = time.monotonic() - self._looked
        if age < FRESH:
            return
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._refresh(), name="looking for full queues")
        if age >= STALE:
            await asyncio.wait({self._looking}, timeout=MOST_WAIT)

    async def _refresh(self) -> None:
        try:
            await self._pressure.refresh()
        except Exception as error:
            log.debug("how full the queues are is not known: %s: %s", type(error).__name__, error)
        self._looked = time.monotonic()
