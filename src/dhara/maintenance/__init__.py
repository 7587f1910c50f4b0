"""Maintenance: what must happen once in the fleet, whoever does it.

Every keeper and server takes part; a lease row makes one of them the leader, so that the others stay idle. Leadership
only saves work: each statement is safe when two run it.
"""

from __future__ import annotations

import logging
import time

from dhara.domain.ids import IdSource
from dhara.maintenance.bulk import Bulk, Wakes
from dhara.maintenance.chores import Chores
from dhara.maintenance.pruner import Pruner
from dhara.maintenance.reaper import Reaper
from dhara.maintenance.scheduler import Scheduler
from dhara.maintenance.settings import MaintenanceSettings
from dhara.service import Every
from dhara.store.pool import Pool
from dhara.store.queues import Queues
from dhara.store.schedules import Schedules
from dhara.store.stats import Stats
from dhara.store.tasks import Tasks
from dhara.store.workers import Workers

log = logging.getLogger(__name__)

_ROLE = "maintenance"
# A sample is a minute's: looking more often would find it noted.
_SAMPLE_EVERY = 20.0
_PRUNE_EVERY = 30.0
_KEEP_RATES = 86_400.0
_FORGET_EVERY = 600.0
_FORGET_WORKERS_AFTER = 7 * 86_400.0


class Maintenance:
    """Reaper, expiry, folding of counters, full queues, retention: one round every R seconds, at the leader; and, when
    they are due, the chores that somebody waits for: schedules and bulk operations."""

    def __init__(self, db: Pool, settings: MaintenanceSettings, notifier: Wakes | None = None) -> None:
        self._settings = settings
        self.id = IdSource().new()
        self._tasks = Tasks(db, settings.schema)
        self._workers = Workers(db, settings.schema)
        self._stats = Stats(db, settings.schema)
        self._queues = Queues(db, settings.schema)
        self._reaper = Reaper(self._tasks, self._workers, settings)
        self._pruner = Pruner(self._tasks, settings)
        bulk, scheduler = Bulk(db, settings.schema, notifier), Scheduler(db, settings.schema, notifier)
        self._chores = Chores(bulk, scheduler, self._workers)
        self._schedules = Schedules(db, settings.schema)
        self._next_sample = 0.0
        self._next_prune = 0.0
        self._next_forget = 0.0
        self._every = Every(settings.reaper_interval, self.round, "maintenance")

    async def start(self) -> None:
        await self._every.start()
        await self._chores.start()

    async def stop(self) -> None:
        await self._chores.stop()
        await self._every.stop()

    async def round(self) -> None:
        """One round, if this process leads."""
        lease = 3 * self._settings.reaper_interval
        before = time.monotonic()
        duty = await self._workers.lead(_ROLE, self.id, lease)
        if duty is None:
            self._chores.follow()
            return
        self._chores.lead(before + lease, duty.chore_in)
        await self._reaper.look()
        if duty.expired:
            await self._expire()
        # What is short is folded at times: reading it costs nothing, and neither must an idle fleet.
        if duty.long or before >= self._next_prune:
            await self._stats.fold_counters()
        if duty.limited:
            await self._queues.loads(False)
        if before >= self._next_sample:
            self._next_sample = before + _SAMPLE_EVERY
            await self._stats.sample()
        await self._prune(before)

    def hint(self) -> None:
        """A bulk operation or a schedule has been made in this process: see to it now, whoever leads."""
        self._chores.hint()

    async def _prune(self, now: float) -> None:
        if now >= self._next_prune:
            await self._pruner.prune()
            # With more to do, some of it every round.
            self._next_prune = now if self._pruner.behind else now + _PRUNE_EVERY
        if now >= self._next_forget:
            self._next_forget = now + _FORGET_EVERY
            await self._workers.prune(_FORGET_WORKERS_AFTER)
            await self._stats.prune_rates(_KEEP_RATES)
            await self._schedules.prune(self._settings.history_retention)

    async def _expire(self) -> None:
        while await self._tasks.expire() == 500:
            pass
