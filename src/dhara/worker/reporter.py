"""The reporter: makes progress and log lines of running attempts readable while they run, in one statement a round."""

from __future__ import annotations

from dhara.store.tasks import Tasks
from dhara.worker.slots import Slots

INTERVAL = 1.0


class Reporter:
    """Sends what changed since the last round; an idle or silent worker sends nothing."""

    def __init__(self, slots: Slots, tasks: Tasks) -> None:
        self._slots = slots
        self._tasks = tasks

    async def report(self) -> None:
        """One round."""
        rows, reported = [], []
        for slot in self._slots.at_work():
            context = slot.context
            if slot.claim is not None and context is not None and context.dirty:
                context.dirty = False
                reported.append(context)
                rows.append((slot.claim.id, slot.claim.lease, context._progress, context.log.to_json()))
        try:
            if rows:
                await self._tasks.report(rows)
        except BaseException:
            for context in reported:
                context.dirty = True
            raise
