"""The slots: long-lived coroutines that take claims from a local queue, run them, and hand on what to settle.

One sweeper watches all deadlines instead of a timer an attempt. Suspects (tasks that were running when a process
crashed) run alone: in the nursery, or, where there is none, in this process while nothing else runs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from uuid import UUID

from msgspec import structs

from dhara.domain.backoff import Backoff
from dhara.domain.outcome import Crashed, Failed, Outcome, Released
from dhara.domain.settle import Settlement, decide
from dhara.domain.task import Claim
from dhara.telemetry import log as logs
from dhara.worker.board import Board, first_moment, last_moment
from dhara.worker.context import Context
from dhara.worker.executor import Executor, interrupted
from dhara.worker.failure import failed
from dhara.worker.lanes import ALL_QUEUES
from dhara.worker.local import Local
from dhara.worker.nursery import Nursery
from dhara.worker.observed import Observations
from dhara.worker.registry import Handler, Registry
from dhara.worker.slot import Slot, Stop
from dhara.worker.threads import Threads

log = logging.getLogger(__name__)

_AHEAD_SECONDS = 0.05
_AHEAD_MOST = 600
_TURN = 32
# After so much of a lease without a look at the deadlines, silence of the keeper may have gone unseen.
_STALL, _SHORTEST_STALL = 0.1, 0.5
UNHEARD = "no heartbeat is acknowledged; an exclusive attempt does not begin"
_EXIT_PATIENCE, _NO_PATIENCE = 0.5, 0.02


class Slots:
    """All slots of one runner. `settle` takes each settlement, `freed` hears that there is room again."""

    def __init__(
        self,
        registry: Registry,
        *,
        concurrency: int,
        queues: Mapping[str, int],
        board: Board,
        settle: Callable[[Settlement], None],
        freed: Callable[[], None],
        make_context: Callable[[Claim], Context],
        handler_timeout: float,
        kill_grace: float,
        stale_after: float,
        backoff: Backoff,
        nursery: Nursery | None,
        rng: random.Random,
    ) -> None:
        self._registry = registry
        self._queues = queues
        self._board = board
        self._settle_with = settle
        self._freed = freed
        self._make_context = make_context
        self._handler_timeout = handler_timeout
        self._kill_grace = kill_grace
        self._first_moment, self._last_moment = first_moment(stale_after), last_moment(stale_after)
        self._stalled = max(_SHORTEST_STALL, _STALL * stale_after)
        self._unheard = False
        self._any_exclusive = any(handler.options.exclusive for handler in registry.handlers)
        self._backoff = backoff
        self._nursery = nursery
        self._rng = rng
        self._threads = Threads(concurrency, "dhara")
        self._executor = Executor(registry, make_context, self._threads)
        self._waiting = Local()
        self._suspects: deque[Claim] = deque()
        self._alone = False
        self._closed = False
        self._idle: deque[asyncio.Future[None]] = deque()
        self._own_slots = any(queue != ALL_QUEUES for queue in queues)
        self._of_queue: Counter[str] = Counter()
        self._rate = 0.0
        self._counted = 0
        self._last_sweep = time.monotonic()
        self.slots = [Slot(i) for i in range(concurrency)]
        self.busy = 0
        self.finished = 0
        self.observations = Observations()
        self._last_ended = asyncio.Event()
        self._abandoned = False

    def start(self) -> None:
        """The slots begin to wait for claims."""
        for slot in self.slots:
            slot.task = asyncio.create_task(self._serve(slot), name=f"slot {slot.index}")

    async def stop(self) -> None:
        """The slots end, with whatever they run."""
        for slot in self.slots:
            if slot.task is not None:
                slot.stop = Stop.EXIT
                slot.task.cancel()
        if tasks := [slot.task for slot in self.slots if slot.task]:
            # A handler that swallows its cancellation must not keep the worker from its end; less so if it has before.
            await asyncio.wait(tasks, timeout=_NO_PATIENCE if self._abandoned else _EXIT_PATIENCE)
        self._threads.stop()

    # room

    def room(self) -> int:
        """How many more tasks will start within about 50 ms."""
        if self._suspects or self._alone or self.condemned() or (self._unheard and self._any_exclusive):
            return 0
        ahead = min(_AHEAD_MOST, int(self._rate * _AHEAD_SECONDS))
        return len(self.slots) + ahead - self.busy - len(self._waiting)

    def rooms(self) -> dict[str, int]:
        """Room of each queue that has slots of its own."""
        return {q: n - self._of_queue[q] for q, n in self._queues.items() if q != ALL_QUEUES}

    def condemned(self) -> bool:
        """A thread runs past its deadline and cannot be stopped: unless it ends, the keeper will kill this process."""
        now = time.monotonic()
        return any(s.claim is not None and not s.interruptible and now > s.deadline for s in self.slots)

    # claims come

    def deliver(self, claims: list[Claim]) -> None:
        """Take claims; idle slots wake up."""
        if self._own_slots:
            self._of_queue.update(claim.queue for claim in claims)
        if self._nursery is None:
            self._suspects.extend(claim for claim in claims if claim.crashes)
            claims = [claim for claim in claims if not claim.crashes]
        self._waiting.extend(claims)
        if self._unheard:
            self._give_back_exclusive()  # claimed before the silence was noticed
        self._wake(len(claims) + len(self._suspects))

    def _wake(self, n: int) -> None:
        while n and self._idle:
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)
                n -= 1

    def close(self) -> None:
        """Begin nothing more: a slot that becomes free finds nothing to start."""
        self._closed = True

    def release_unstarted(self) -> None:
        """Give back what no slot has begun."""
        for queue in (self._waiting, self._suspects):
            while queue:
                self._give_back(queue.popleft(), "not started before the worker drained")

    def _give_back(self, claim: Claim, why: str) -> None:
        self._gone(claim)
        self.settle(claim, Released(why))
        if not self.busy:
            self._quiet()
        self._freed()

    def _next(self) -> Claim | None:
        if self._closed:
            return None
        if self._waiting and not self._alone:
            return self._waiting.popleft()
        if self._suspects and not self.busy:
            self._alone = True
            return self._suspects.popleft()
        return None

    # attempts

    async def _serve(self, slot: Slot) -> None:
        turns = 0
        while slot.stop is not Stop.EXIT:
            while (claim := self._next()) is None:
                logs.running.set(None)
                waiter = asyncio.get_running_loop().create_future()
                self._idle.append(waiter)
                await waiter
            await self._attempt(slot, claim)
            turns += 1
            if turns % _TURN == 0:
                await asyncio.sleep(0)  # a handler that never waits must not keep the others from their turn

    async def _attempt(self, slot: Slot, claim: Claim) -> None:
        handler = self._registry.get(claim.type)
        if handler is None:  # cannot be: only types of the registry are claimed
            self._give_back(claim, "type unknown here")
            return
        if handler.options.exclusive and (self._unheard or time.monotonic() - self._last_sweep > self._stalled):
            # After a stall of the loop nobody has looked yet whether the lease has run out meanwhile.
            self._give_back(claim, UNHEARD)
            return
        alone = self._nursery is not None and (claim.crashes > 0 or handler.options.executor == "process")
        self._begin(slot, claim, handler, alone)
        logs.running.set(claim)
        try:
            if alone:
                outcome = await self._run_alone(slot, claim, handler)
            else:
                outcome = await self._executor.execute(handler, claim, slot)
            self._conclude(slot, claim, outcome)
        except Exception as error:
            # Ours, not the handler's; a slot that died of it would be missed, and its task would run for ever.
            log.exception("task %s could not be concluded", claim.id)
            self.settle(claim, failed(claim.type, error))
        finally:
            self._end(slot, claim)
        if slot.end():
            await slot.swallow()
        self._freed()

    def _begin(self, slot: Slot, claim: Claim, handler: Handler[..., object], alone: bool) -> None:
        options = handler.options
        now = time.monotonic()
        allowed = claim.timeout or options.timeout or self._handler_timeout
        slot.begin(claim, now, allowed, handler.is_async or alone, options.exclusive)
        deadline = slot.deadline + self._kill_grace
        self._board.begin(slot.index, deadline, claim.id, claim.lease, options.exclusive)
        self.busy += 1

    def _end(self, slot: Slot, claim: Claim) -> None:
        self._board.end(slot.index)
        self.busy -= 1
        self.finished += 1
        self._gone(claim)
        if not self.busy:
            self._quiet()

    def _gone(self, claim: Claim) -> None:
        if self._own_slots:
            self._of_queue[claim.queue] -= 1

    def _quiet(self) -> None:
        """Nothing runs any more: the next suspect may, or all that waited for the last one."""
        if self._alone or self._suspects:
            self._alone = False
            self._wake(max(len(self._waiting), len(self._suspects)))
        if not self._last_ended.is_set():
            self._last_ended.set()

    async def idle(self) -> None:
        """Wait until nothing runs."""
        while self.busy:
            self._last_ended.clear()
            await self._last_ended.wait()

    async def _run_alone(self, slot: Slot, claim: Claim, handler: Handler[..., object]) -> Outcome:
        assert self._nursery is not None
        slot.context = self._make_context(claim)
        try:
            return await self._nursery.run(claim, slot.context)
        except asyncio.CancelledError as error:
            return interrupted(slot, claim, error, handler.options)

    def _conclude(self, slot: Slot, claim: Claim, outcome: Outcome) -> None:
        context = slot.context
        if context is None:
            self.settle(claim, outcome)
        else:
            self.settle(claim, outcome, context.log.to_json(), context._progress)
        self.observations.ran(claim, time.monotonic() - slot.since)

    def settle(
        self,
        claim: Claim,
        outcome: Outcome,
        lines: str | None = None,
        progress: str | None = None,
    ) -> None:
        """Decide what the outcome means and hand it on."""
        settlement = decide(claim, outcome, self._backoff, self._rng, lines)
        if settlement is None:
            return
        if progress is not None:
            settlement = _with_progress(settlement, progress)
        if isinstance(outcome, Failed | Crashed):
            log.warning(
                "task %s (%s), attempt %d: %s: %s",
                claim.id,
                claim.type,
                claim.attempt,
                settlement.event,
                settlement.last_error,
                extra={"task_id": claim.id, "attempt": claim.attempt},
            )
        self._settle_with(settlement)

    # interruptions

    def sweep(self) -> None:
        """Look at all deadlines; to be called every fifth of a second or so."""
        now = time.monotonic()
        self._board.tick(now, self.busy)
        elapsed = max(now - self._last_sweep, 0.001)
        rate = (self.finished - self._counted) / elapsed
        self._rate = max(rate, 0.7 * self._rate + 0.3 * rate)  # a burst is met at once, and forgotten slowly
        self._counted, self._last_sweep = self.finished, now
        if elapsed > self._stalled:
            self._give_back_exclusive()
        unheard = now - self._board.acked()
        self._hear(unheard > self._first_moment)
        for slot in self.slots:
            if slot.claim is None:
                continue
            if slot.exclusive and unheard > self._last_moment:
                self._end_process(slot.claim)
            if slot.stop is not None and now < slot.stop_at + 1:
                continue
            if now > slot.deadline:
                slot.interrupt(slot.stop or Stop.TIMEOUT, now)
                slot.stop_at = now
            elif slot.exclusive and self._unheard:
                slot.interrupt(Stop.EXCLUSIVE, now)
                slot.stop_at = now

    def _hear(self, unheard: bool) -> None:
        """Take in whether heartbeats are acknowledged; as long as not, nothing exclusive begins."""
        if unheard == self._unheard:
            return
        self._unheard = unheard
        if unheard:
            # By the time that heartbeats are acknowledged again, their leases may be lost, and nobody has said so yet.
            self._give_back_exclusive()
        if self._any_exclusive:
            log.warning(
                "no heartbeat is acknowledged; exclusive attempts stop, nothing is claimed"
                if unheard
                else "heartbeats are acknowledged again"
            )
        self._freed()

    def _give_back_exclusive(self) -> None:
        """Nothing exclusive that waits may begin any more under the lease that it has."""
        if not self._any_exclusive:
            return
        for queue in (self._waiting, self._suspects):
            for claim in [claim for claim in queue if self._is_exclusive(claim)]:
                queue.remove(claim)
                self._give_back(claim, UNHEARD)

    def _is_exclusive(self, claim: Claim) -> bool:
        handler = self._registry.get(claim.type)
        return handler is not None and handler.options.exclusive

    def _end_process(self, claim: Claim) -> None:
        """The last resort: the keeper should have done it, but may be stopped itself."""
        log.critical("exclusive task %s did not stop, and its lease is about to be lost; ending this process", claim.id)
        os.kill(os.getpid(), signal.SIGKILL)

    def cancel(self, lease: UUID) -> None:
        """An operator wants the attempt under `lease` to stop."""
        now = time.monotonic()
        for slot in self.slots:
            if slot.claim is not None and slot.claim.lease == lease and slot.stop is None:
                slot.interrupt(Stop.CANCEL, now)
                self._board.limit(slot.index, min(slot.deadline, now) + self._kill_grace)

    def lose(self, lease: UUID) -> None:
        """The attempt under `lease` is someone else's now: what waits does not begin; what runs may go on, its outcome will be
        discarded."""
        for queue in (self._waiting, self._suspects):
            for claim in [claim for claim in queue if claim.lease == lease]:
                queue.remove(claim)
                self._gone(claim)
                self._freed()
        for slot in self.slots:
            held = slot.claim is not None and slot.claim.lease == lease
            if held and slot.context is not None and not slot.context.settled:
                slot.context._lost.set()

    def interrupt_all(self) -> None:
        """The worker gives back what runs: `async` handlers and processes are interrupted, threads asked."""
        now = time.monotonic()
        for slot in self.slots:
            slot.interrupt(Stop.DRAIN, now)

    def abandon(self) -> None:
        """Release what did not heed; its threads are left behind.

        Not what is exclusive: it may still be running as this process ends, so a reaper takes it back later.
        """
        self._abandoned = True
        for slot in self.slots:
            if slot.claim is not None and not slot.exclusive:
                self.settle(slot.claim, Released("the worker stopped; the handler did not heed it"))

    def leases(self) -> set[UUID]:
        """Every lease that waits or runs here."""
        running = {slot.claim.lease for slot in self.slots if slot.claim is not None}
        return running | {claim.lease for claim in (*self._waiting, *self._suspects)}

    def tasks(self) -> set[UUID]:
        """Every task that waits or runs here."""
        running = {slot.claim.id for slot in self.slots if slot.claim is not None}
        return running | {claim.id for claim in (*self._waiting, *self._suspects)}

    def at_work(self) -> list[Slot]:
        """The slots that run something."""
        return [slot for slot in self.slots if slot.claim is not None]


def _with_progress(settlement: Settlement, progress: str) -> Settlement:
    return structs.replace(settlement, progress=progress)
