"""The reaper: takes back what lost workers hold, on the word of two witnesses.

    (a) by the database's clock the worker's beat is older than L
    (b) this process has, on its own monotonic clock and through successful reads, seen the beat stand still for C; time in
        which it could not read does not count, since whoever could not beat then is no more dead than the database was

One rule defuses four faults: clock jumps, database outages, table locks, restarts of the reaper. The statement itself
re-checks that no beat came in between, and leaves tasks alone that were claimed less than L ago.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from uuid import UUID

from dhara.maintenance.settings import MaintenanceSettings
from dhara.store.tasks import Tasks
from dhara.store.workers import Sighting, Workers

log = logging.getLogger(__name__)

_BATCH = 500


class Watch:
    """Witness (b): since when has each worker's beat stood still, on this process's monotonic clock?

    Looks come every `interval` seconds; after a longer pause between two of them the watch begins anew.
    """

    def __init__(self, confirm_after: float, interval: float) -> None:
        self._confirm_after = confirm_after
        self._longest = 1.5 * interval + 0.25
        self._looked = float("-inf")
        self._since: dict[UUID, tuple[int, float]] = {}

    def still(self, sightings: list[Sighting], now: float) -> list[Sighting]:
        """Those whose beat has not moved for `confirm_after` seconds of watching. Call after each successful read."""
        if now - self._looked > self._longest:
            self._since = {}
        self._looked = now
        self._since = {
            s.id: known if (known := self._since.get(s.id)) and known[0] == s.beat_seq else (s.beat_seq, now)
            for s in sightings
        }
        return [s for s in sightings if now - self._since[s.id][1] >= self._confirm_after]


class Reaper:
    """One look at all workers per call of `look`."""

    def __init__(
        self,
        tasks: Tasks,
        workers: Workers,
        settings: MaintenanceSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tasks = tasks
        self._workers = workers
        self._settings = settings
        self._clock = clock
        self._watch = Watch(settings.confirm_after, settings.reaper_interval)

    async def look(self) -> int:
        """Watch, and reap whom both witnesses call lost; answers how many tasks were taken back."""
        sightings = await self._workers.witness()
        count = 0
        for sighting in self._watch.still(sightings, self._clock()):
            if sighting.state in ("stopped", "lost") or sighting.age > self._settings.stale_after:
                count += await self._reap(sighting)
        return count

    async def _reap(self, sighting: Sighting) -> int:
        count = 0
        while True:
            reaped = await self._tasks.reap(
                sighting.id,
                beat_seq=sighting.beat_seq,
                claimed_before=self._settings.stale_after,
                reason="lease lost: its worker stopped beating",
                base=self._settings.base_backoff,
                cap=self._settings.max_backoff,
                most=_BATCH,
            )
            count += len(reaped)
            if len(reaped) < _BATCH:
                break
        if sighting.state in ("live", "draining"):
            await self._workers.lose(sighting.id, sighting.beat_seq)
        if count or sighting.state in ("live", "draining"):
            log.warning("worker %s is lost (no beat for %.0f s): %d tasks taken back", sighting.id, sighting.age, count)
        return count
