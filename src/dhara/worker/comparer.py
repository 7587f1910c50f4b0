"""Each heartbeat interval the runner compares what the database says it runs with what it really runs.

    the database has it, the runner does not know it    a ghost claim (its reply was lost): released
    the runner has it, the database does not            the lease is lost: the handler is told
    the database says a cancellation was asked for      the attempt is interrupted

Ghosts are found by a look at all that the worker is said to run. While a snapshot is held that is slow, as the index keeps an
entry for each task that the worker has run since; then such a look comes rarely, but for when a claim has not
been answered of late, and between two of them the runner asks about what it knows only.

The same round carries the runner's observations (histograms) to the database.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING
from uuid import UUID

from dhara.domain.lifecycle import Event
from dhara.domain.settle import Settlement
from dhara.store.stats import Stats
from dhara.store.tasks import Held, Tasks

if TYPE_CHECKING:
    from dhara.worker.observed import Observations
    from dhara.worker.runner import Runner

log = logging.getLogger(__name__)

GHOST_AGE = 2.0
# A worker that runs nothing and has asked for nothing for so many seconds compares in every so many rounds only.
QUIET, QUIET_ROUNDS = 10.0, 6
# After two looks at everything that took at least t each, the next comes no sooner than after LOOK_SHARE times t, or LOOK_REST
# seconds: what made them slow may have been the database. Claims that went unanswered in the last SUSPICION seconds may have left
# ghosts.
LOOK_SHARE, LOOK_REST, SUSPICION = 100, 30.0, 30.0


def _quiet(heartbeat: float) -> float:
    """Seconds after a claim within which its ghosts must have been looked for."""
    return max(QUIET, 2 * heartbeat + GHOST_AGE + 1)


class Comparer:
    """The comparison of one runner."""

    def __init__(self, runner: Runner, tasks: Tasks, stats: Stats, observations: Observations) -> None:
        self._runner = runner
        self._tasks = tasks
        self._stats = stats
        self._observations = observations
        self._skipped = 0
        self._looked, self._costs = float("-inf"), (0.0, 0.0)
        # Released as ghosts since the last claim's answer, which may bring one of them: their age is by a clock that may jump.
        self.ghosts: set[UUID] = set()

    async def compare(self) -> None:
        """One round. Raises what the database raises; the next round comes as planned."""
        if self._may_skip():
            self._skipped += 1
            await self.flush()
            return
        self._skipped = 0
        runner = self._runner
        start, before, asking = time.monotonic(), runner.leases(), runner.claimer.asking()
        held = await self._held(start)
        after = runner.leases()
        for row in held:
            if row.cancel_requested:
                runner.slots.cancel(row.lease)
        for lease in (before & after) - {row.lease for row in held} - runner.settler.leases():
            runner.slots.lose(lease)
        # No ghost is what a claim has taken while we looked, or one under way whose answer is still to come; nor a lease
        # that was known at either moment.
        ripe = GHOST_AGE + max(asking, runner.claimer.asking()) + time.monotonic() - start
        ghosts = [row for row in held if row.age > ripe and row.lease not in before | after]
        if ghosts:
            self._looked = float("-inf")  # the next look is at everything, too, until one finds none
        await self._release(ghosts)
        await self.flush()

    async def _held(self, now: float) -> list[Held]:
        """What the database says: of everything, or, while that is dear, of what this runner knows."""
        rest = min(LOOK_REST, LOOK_SHARE * min(self._costs))
        if now - self._looked < rest and self._runner.claimer.unanswered_for() > SUSPICION:
            return await self._tasks.held(self._runner.id, self._runner.slots.tasks())
        before, self._looked = self._looked, now
        try:
            held = await self._tasks.held(self._runner.id)
        except BaseException:
            self._looked = before
            raise
        if self._looked == now:  # of looks that overlap, the last says what one costs
            self._costs = (time.monotonic() - now, self._costs[0])
        return held

    def _may_skip(self) -> bool:
        """There is nothing to compare, except for what a claim would have left: and there was none lately."""
        quiet = _quiet(self._runner.settings.heartbeat_interval)
        idle = not self._runner.leases() and self._runner.claimer.quiet_for() > quiet
        return idle and self._skipped < QUIET_ROUNDS - 1

    async def compare_quietly(self) -> None:
        """A round between rounds, asked for by a hint; its failure costs only latency."""
        try:
            await self.compare()
        except Exception as error:
            log.debug("a comparison failed: %s", error)

    async def flush(self) -> None:
        """Add the observations to the fleet's."""
        seen = self._observations.take()
        try:
            await self._stats.observe(seen)
        except BaseException:  # also the end of this worker, which tells of them once more
            self._observations.put_back(seen)
            raise

    async def _release(self, ghosts: Sequence[Held]) -> None:
        if not ghosts:
            return
        log.warning("releasing %d claims whose answer was lost", len(ghosts))
        self.ghosts.update(row.lease for row in ghosts)
        reason = "ghost claim: its answer was lost"
        await self._tasks.settle([Settlement(row.id, row.lease, 0, Event.RELEASED, reason=reason) for row in ghosts])
