"""Retention: final tasks and their history leave in bounded batches, in the order of their ids.

Ids grow with time, so a pass walks the primary key from the front and remembers how far it came; the next pass begins
anew. No index has to be kept for it on the hot path.
"""

from __future__ import annotations

from uuid import UUID

from dhara.maintenance.settings import MaintenanceSettings
from dhara.store.tasks import ZERO, Tasks

BATCH = 1_000
_BATCHES = 20


class Pruner:
    """Some batches per call of `prune`, so that a long backlog never becomes one long transaction."""

    def __init__(self, tasks: Tasks, settings: MaintenanceSettings) -> None:
        self._tasks = tasks
        self._settings = settings
        self._after: UUID = ZERO

    async def prune(self) -> int:
        """Delete what is past retention; answers how many tasks went."""
        count = 0
        for _ in range(_BATCHES):
            gone = await self._tasks.prune(self._after, self._settings.retention, self._settings.dead_retention, BATCH)
            count += len(gone)
            if len(gone) < BATCH:
                self._after = ZERO
                break
            self._after = gone[-1]
        await self._tasks.prune_history(self._settings.history_retention)
        return count
