"""Maintenance: what must happen once in the fleet, whoever does it.

Every keeper and server takes part; a lease row makes one of them the leader, so that the others stay idle. Leadership
only saves work: each statement is safe when two run it.
"""

from __future__ import annotations

import logging
import time

from dhara.domain.ids import IdSource
from dhara.maintenance.pruner import Pruner
from dhara.maintenance.reaper import Reaper
from dhara.maintenance.settings import MaintenanceSettings
from dhara.service import Every
from dhara.store.pool import Executor
from dhara.store.stats import Stats
from dhara.store.tasks import Tasks
from dhara.store.workers import Workers

log = logging.getLogger(__name__)

_ROLE = "maintenance"
_PRUNE_EVERY = 30.0
_FORGET_WORKERS_AFTER = 7 * 86_400.0


class Maintenance:
    """Reaper, expiry, folding of counters, retention: one round every R seconds, at the leader."""

    def __init__(self, db: Executor, settings: MaintenanceSettings) -> None:
        self._settings = settings
        self._id = IdSource().new()
        self._tasks = Tasks(db, settings.schema)
        self._workers = Workers(db, settings.schema)
        self._stats = Stats(db, settings.schema)
        self._reaper = Reaper(self._tasks, self._workers, settings)
        self._pruner = Pruner(self._tasks, settings)
        self._next_prune = 0.0
        self._every = Every(settings.reaper_interval, self.round, "maintenance")

    async def start(self) -> None:
        await self._every.start()

    async def stop(self) -> None:
        await self._every.stop()

    async def round(self) -> None:
        """One round, if this process leads."""
        if not await self._workers.lead(_ROLE, self._id, 3 * self._settings.reaper_interval):
            return
        await self._reaper.look()
        await self._expire()
        await self._stats.fold_counters()
        if (now := time.monotonic()) >= self._next_prune:
            self._next_prune = now + _PRUNE_EVERY
            await self._pruner.prune()
            await self._workers.prune(_FORGET_WORKERS_AFTER)

    async def _expire(self) -> None:
        while await self._tasks.expire() == 500:
            pass
