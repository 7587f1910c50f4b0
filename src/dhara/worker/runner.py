"""One runner: claimer -> slots -> settler, in one event loop. It owns the leases of one worker id.

Slots are long-lived coroutines that take claims from a local queue; one sweeper watches all their deadlines. The
runner knows three ways to end: `drain` (finish what runs, up to the grace, then release), `release` (now), and being
killed, after which the keeper or a reaper takes its tasks back.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import time
from collections import Counter, deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

from msgspec import Struct

from dhara import __version__
from dhara.domain.backoff import Backoff, RetryPolicy
from dhara.domain.outcome import Failed, Outcome, Released
from dhara.domain.settle import Settlement, decide
from dhara.domain.task import Claim
from dhara.service import Every
from dhara.settings import Settings
from dhara.store.pool import DatabaseSettings, Pool
from dhara.store.stats import Stats
from dhara.store.tasks import Tasks
from dhara.store.wakeup import Listener
from dhara.store.workers import NewWorker, Workers
from dhara.telemetry import log as logs
from dhara.worker.board import Board
from dhara.worker.claimer import Claimer
from dhara.worker.comparer import Comparer
from dhara.worker.executor import execute
from dhara.worker.lanes import ALL_QUEUES
from dhara.worker.observed import Observations
from dhara.worker.registry import Registry
from dhara.worker.settler import Settler
from dhara.worker.slot import Slot, Stop

log = logging.getLogger(__name__)

_AHEAD_SECONDS = 0.05
_AHEAD_MOST = 1_000
_SWEEP = 0.2
_TURN = 32


class RunnerSettings(Struct, frozen=True, kw_only=True):
    """What a runner needs to know. Times are seconds; `queues`: name -> slots, `*` for all queues."""

    database: DatabaseSettings
    concurrency: int
    queues: Mapping[str, int]
    poll_interval: float = 1.0
    heartbeat_interval: float = 5.0
    handler_timeout: float = 900.0
    kill_grace: float = 10.0
    shutdown_timeout: float = 25.0
    wakeups: bool = True
    backoff: Backoff = Backoff()

    @classmethod
    def of(cls, settings: Settings, queues: Mapping[str, int] | None, concurrency: int) -> RunnerSettings:
        """From the process's settings."""
        return cls(
            database=database_settings(settings),
            concurrency=concurrency,
            queues=dict(queues) if queues else {ALL_QUEUES: concurrency},
            poll_interval=settings.poll_interval,
            heartbeat_interval=settings.heartbeat_interval,
            handler_timeout=settings.handler_timeout,
            kill_grace=settings.kill_grace,
            shutdown_timeout=settings.shutdown_timeout,
            wakeups=settings.wakeups and not settings.pooler,
            backoff=Backoff(base=settings.base_backoff, cap=settings.max_backoff),
        )


def database_settings(settings: Settings) -> DatabaseSettings:
    """The part of the settings that concerns the database."""
    return DatabaseSettings(
        dsn=settings.database_url,
        schema=settings.schema,
        pool_min=settings.pool_min,
        pool_max=settings.pool_max,
        connect_timeout=settings.connect_timeout,
        command_timeout=settings.command_timeout,
        prepared=not settings.pooler,
    )


class Runner:
    """One worker: its slots and all that feeds and empties them. `board` is shared with its keeper."""

    def __init__(
        self, registry: Registry, settings: RunnerSettings, *, worker: UUID, board: Board, rng: random.Random | None = None
    ) -> None:
        self.id = worker
        self.settings = settings
        self.registry = registry
        self.draining = False
        self._rng = rng or random.Random()
        self._board = board
        self._pool = Pool(settings.database, "dhara runner")
        self._tasks = Tasks(self._pool, settings.database.schema)
        self._workers = Workers(self._pool, settings.database.schema)
        self._queue: deque[Claim] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        self.slots = [Slot(i) for i in range(settings.concurrency)]
        self._busy = 0
        self._of_queue: Counter[str] = Counter()
        self._rate = 0.0
        self._finished = 0
        self._all_idle = asyncio.Event()
        self._all_idle.set()
        self._threads = ThreadPoolExecutor(settings.concurrency, "dhara")
        self._observations = Observations()
        self.settler = Settler(tasks=self._tasks, worker=worker, rng=self._rng, rejected=self._rejected)
        self.claimer = Claimer(
            tasks=self._tasks,
            worker=worker,
            types=registry.types,
            queues=settings.queues,
            poll_interval=settings.poll_interval,
            room=self._room,
            rooms=self._rooms,
            deliver=self._deliver,
            rng=self._rng,
        )
        self._comparer = Comparer(self, self._tasks, Stats(self._pool, settings.database.schema), self._observations)
        self._compare = Every(settings.heartbeat_interval, self._comparer.compare, "comparing leases")
        self._sweep = Every(_SWEEP, self._sweep_once, "sweeping deadlines")
        self._listener = Listener(settings.database, self.claimer.wake, self._cancel_heard)

    # life

    async def start(self) -> None:
        """Connect, announce the worker, begin to claim. Raises `Unavailable` or `ConfigError`."""
        await self._pool.open()
        await self._workers.register(
            NewWorker(
                id=self.id,
                pid=os.getpid(),
                host=socket.gethostname(),
                version=__version__,
                types=self.registry.types,
                queues=dict(self.settings.queues),
                slots=self.settings.concurrency,
            )
        )
        self._board.announce(self.id, time.monotonic())
        for slot in self.slots:
            slot.task = asyncio.create_task(self._serve(slot), name=f"slot {slot.index}")
        await self.settler.start()
        await self._sweep.start()
        await self._compare.start()
        await self.claimer.start()
        if self.settings.wakeups:
            await self._listener.start()
        log.info("worker %s: %d slots, queues %s", self.id, len(self.slots), ", ".join(self.settings.queues))

    async def drain(self, grace: float | None = None) -> None:
        """Claim nothing more, finish what runs within `grace` seconds (None: SHUTDOWN_TIMEOUT), release the rest."""
        if self.draining:
            return
        self.draining = True
        grace = self.settings.shutdown_timeout if grace is None else grace
        # Not cancelled mid-flight: a claim whose answer nobody reads would be a ghost.
        log.info("worker %s drains: %d running, at most %g s", self.id, self._busy, grace)
        asyncio.get_running_loop().create_task(self._say_draining())
        await self._claims_landed()
        self._release_unstarted()
        try:
            await asyncio.wait_for(self._all_idle.wait(), grace)
        except asyncio.TimeoutError:
            await self.release()

    async def release(self) -> None:
        """Give back what still runs, now; `async` handlers are interrupted, threads are left behind."""
        self.draining = True
        self._release_unstarted()
        now = time.monotonic()
        for slot in self.slots:
            slot.interrupt(Stop.DRAIN, now)
        try:
            await asyncio.wait_for(self._all_idle.wait(), 1.0)
        except asyncio.TimeoutError:
            for slot in self.slots:
                if slot.claim is not None:
                    self._settle(slot.claim, Released("the worker stopped; the handler did not heed it"), None)

    async def stop(self) -> None:
        """End: settle what is decided, sign off, disconnect."""
        self.draining = True
        await self._claims_landed()
        self._release_unstarted()
        try:
            await asyncio.wait_for(self.settler.drained(), 5.0)
        except asyncio.TimeoutError:
            log.warning("%d settlements are left to the reaper", len(self.settler))
        for slot in self.slots:
            if slot.task is not None:
                slot.stop = Stop.EXIT
                slot.task.cancel()
        await asyncio.gather(*(s.task for s in self.slots if s.task), return_exceptions=True)
        await self._listener.stop()
        for service in (self._sweep, self._compare, self.claimer, self.settler):
            await service.stop()
        try:
            await asyncio.wait_for(self._comparer.flush(), 2)
            await asyncio.wait_for(self._workers.stop(self.id), 2)
        except Exception as error:
            log.debug("could not sign off: %s", error)
        self._board.stopped()
        await self._pool.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _say_draining(self) -> None:
        try:
            await self._workers.drain(self.id)
        except Exception as error:
            log.debug("could not say that this worker drains: %s", error)

    async def _claims_landed(self) -> None:
        """Stop the claimer, after the answer of a claim under way has come."""
        for _ in range(100):
            if not self.claimer.in_flight:
                break
            await asyncio.sleep(0.02)
        await self.claimer.stop()

    # the claimer's side

    def _room(self) -> int:
        """How many more tasks will start within about 50 ms."""
        if self.draining or self.settler.full or self.condemned():
            return 0
        ahead = min(_AHEAD_MOST, int(self._rate * _AHEAD_SECONDS))
        return len(self.slots) + ahead - self._busy - len(self._queue)

    def _rooms(self) -> dict[str, int]:
        """Room of each queue that has slots of its own."""
        return {q: n - self._of_queue[q] for q, n in self.settings.queues.items() if q != ALL_QUEUES}

    def condemned(self) -> bool:
        """A thread runs past its deadline and cannot be stopped: the keeper will kill this process unless it ends."""
        now = time.monotonic()
        return any(s.claim is not None and not s.interruptible and now > s.deadline for s in self.slots)

    def _deliver(self, claims: list[Claim]) -> None:
        if self.draining:
            for claim in claims:
                self._settle(claim, Released("claimed as the worker began to drain"), None)
            return
        for claim in claims:
            self._of_queue[claim.queue] += 1
        self._queue.extend(claims)
        for _ in range(min(len(claims), len(self._idle))):
            waiter = self._idle.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def _release_unstarted(self) -> None:
        while self._queue:
            claim = self._queue.popleft()
            self._of_queue[claim.queue] -= 1
            self._settle(claim, Released("not started before the worker drained"), None)

    # the slots' side

    async def _serve(self, slot: Slot) -> None:
        turns = 0
        while True:
            while not self._queue:
                waiter = asyncio.get_running_loop().create_future()
                self._idle.append(waiter)
                await waiter
            claim = self._queue.popleft()
            await self._attempt(slot, claim)
            turns += 1
            if turns % _TURN == 0:
                await asyncio.sleep(0)  # a handler that never waits must not keep the others from their turn

    async def _attempt(self, slot: Slot, claim: Claim) -> None:
        handler = self.registry.get(claim.type)
        if handler is None:  # only types of the registry are claimed
            self._settle(claim, Released("type unknown here"), None)
            return
        allowed = claim.timeout or handler.options.timeout or self.settings.handler_timeout
        now = time.monotonic()
        slot.begin(claim, now, allowed, handler.is_async)
        self._board.begin(slot.index, slot.deadline + self.settings.kill_grace, claim.id, claim.lease)
        self._busy += 1
        self._all_idle.clear()
        logs.task_id.set(claim.id)
        logs.attempt.set(claim.attempt)
        try:
            outcome = await execute(handler, claim, slot, self._threads)
            kept = slot.context.log.to_json() if slot.context is not None else None
            self._settle(claim, outcome, kept, handler.options.retry)
            self._observations.ran(claim, time.monotonic() - now)
        finally:
            self._board.end(slot.index)
            self._busy -= 1
            self._of_queue[claim.queue] -= 1
            self._finished += 1
            if not self._busy:
                self._all_idle.set()
        await slot.end()
        logs.task_id.set(None)
        logs.attempt.set(None)
        self.claimer.freed()

    def _settle(self, claim: Claim, outcome: Outcome, logs: str | None, retry: RetryPolicy | None = None) -> None:
        backoff = retry.backoff if retry is not None and retry != _DEFAULT_RETRY else self.settings.backoff
        settlement = decide(claim, outcome, backoff, self._rng, logs)
        if isinstance(outcome, Failed):
            log.warning(
                "task %s (%s), attempt %d: %s: %s",
                claim.id, claim.type, claim.attempt, settlement.event, outcome.message,
                extra={"task_id": claim.id, "attempt": claim.attempt, "worker_id": self.id},
            )
        self.settler.put(settlement)

    def _rejected(self, settlement: Settlement) -> None:
        self._observations.rejected += 1

    # interruptions

    async def _sweep_once(self) -> None:
        now = time.monotonic()
        self._board.tick(now, self._busy)
        self._rate = 0.7 * self._rate + 0.3 * (self._finished / _SWEEP)
        self._finished = 0
        for slot in self.slots:
            if slot.claim is not None and now > slot.deadline and (slot.stop is None or now > slot.stop_at + 1):
                slot.interrupt(slot.stop or Stop.TIMEOUT, now)
                slot.stop_at = now

    def cancel(self, lease: UUID) -> None:
        """An operator wants the attempt under `lease` to stop."""
        now = time.monotonic()
        for slot in self.slots:
            if slot.claim is not None and slot.claim.lease == lease and slot.stop is None:
                slot.interrupt(Stop.CANCEL, now)
                self._board.limit(slot.index, min(slot.deadline, now) + self.settings.kill_grace)

    def lose(self, lease: UUID) -> None:
        """The attempt under `lease` is someone else's now; it may go on, its outcome will be discarded."""
        for slot in self.slots:
            if slot.claim is not None and slot.claim.lease == lease and slot.context is not None:
                slot.context._lost.set()

    def leases(self) -> set[UUID]:
        """Every lease that this worker knows it holds: waiting, running, or not settled yet."""
        running = {slot.claim.lease for slot in self.slots if slot.claim is not None}
        return running | {claim.lease for claim in self._queue} | self.settler.leases()

    def _cancel_heard(self, worker: str) -> None:
        if worker == str(self.id):
            asyncio.get_running_loop().create_task(self._comparer.compare_quietly())


_DEFAULT_RETRY = RetryPolicy()
