"""Retention: final tasks and their history leave in bounded steps, in the order of task ids, which grow with time.

    edge    goes on where the last call ended, as far as tasks old enough to leave can be: finds nearly all that is due, and
            looks at each task once
    turn    goes through everything from the front, a little each call, and then anew: finds what the edge has passed because
            it was kept longer (DEAD, retention of its own or its queue's), was late to end, or has an odd id

So the cost of a call does not depend on how much is kept, and no index has to be kept for it on the hot path (ADR 0011).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar
from uuid import UUID

from dhara.domain.ids import least_id
from dhara.maintenance.settings import MaintenanceSettings
from dhara.store.queues import Queues
from dhara.store.tasks import ZERO, Tasks

STEP = 2_000
TURN_STEPS = 10
# Seconds that the edge may take of one call; the others of maintenance wait meanwhile.
SPAN = 1.0
P = TypeVar("P")


class Walk(Generic[P]):
    """A table's two positions. `step` looks at STEP rows behind one: how many went, how many were looked at, the last."""

    def __init__(self, start: P, step: Callable[[P], Awaitable[tuple[int, int, P | None]]]) -> None:
        self._start = start
        self._step = step
        self._edge = self._turn = start
        self.behind = False

    async def go(self, bound: Any, until: float) -> int:
        """The edge up to `bound` or until that moment, then a little of the turn; answers how many rows went."""
        return await self._go_on(bound, until) + await self._go_round()

    async def _go_on(self, bound: Any, until: float) -> int:
        count = 0
        while True:
            gone, looked, last = await self._step(self._edge)
            count += gone
            at_end = last is None or looked < STEP or last >= bound
            if last is not None:
                # What lies beyond the bound is for a later call to look at.
                self._edge = max(self._edge, min(last, bound))
            self.behind = not at_end and time.monotonic() >= until
            if at_end or self.behind:
                return count

    async def _go_round(self) -> int:
        count = 0
        for _ in range(TURN_STEPS):
            gone, looked, last = await self._step(self._turn)
            count += gone
            if last is None or looked < STEP:
                self._turn = self._start
                break
            self._turn = last
        return count


class Pruner:
    """Deletes what is past retention, a bounded part of it per call of `prune`."""

    def __init__(self, tasks: Tasks, settings: MaintenanceSettings) -> None:
        self._tasks = tasks
        self._queues = Queues(tasks.db, tasks.schema)
        self._settings = settings
        self._of_tasks: Walk[UUID] = Walk(ZERO, self._prune_tasks)
        self._of_history: Walk[tuple[UUID, int]] = Walk((ZERO, 0), self._prune_history)

    @property
    def behind(self) -> bool:
        """Whether the last call ended before it had come to the end of what is due."""
        return self._of_tasks.behind or self._of_history.behind

    async def prune(self) -> int:
        """Delete a part of what is past retention; answers how many tasks went."""
        settings = self._settings
        least = min(
            settings.retention, settings.dead_retention, await self._queues.least_retention() or settings.retention
        )
        now, began = time.time(), time.monotonic()
        count = await self._of_tasks.go(least_id(now - least), began + SPAN)
        await self._of_history.go((least_id(now - settings.history_retention), 0), began + 1.5 * SPAN)
        return count

    async def _prune_tasks(self, after: UUID) -> tuple[int, int, UUID | None]:
        found = await self._tasks.prune(after, self._settings.retention, self._settings.dead_retention, STEP)
        return len(found.gone), found.looked, found.last

    async def _prune_history(self, after: tuple[UUID, int]) -> tuple[int, int, tuple[UUID, int] | None]:
        return await self._tasks.prune_history(*after, self._settings.history_retention, STEP)
