"""One runner: claimer -> slots -> settler, in one event loop. It owns the leases of one worker id.

The runner knows three ways to end: `drain` (finish what runs, up to the grace, then release), `release` (now), and
being killed, after which the keeper or a reaper takes its tasks back. `worn` and `unwanted` ask whoever runs it for a drain:
the one wants a new runner in its place, the other, an operator's, none.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import socket
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any
from uuid import UUID

import asyncpg
from msgspec import Struct

from dhara import __version__
from dhara.domain.backoff import Backoff
from dhara.domain.outcome import Released
from dhara.domain.settle import Settlement
from dhara.domain.task import Claim
from dhara.errors import ConfigError, DharaError
from dhara.service import Every, within
from dhara.settings import Settings
from dhara.store.pool import DatabaseSettings, Pool
from dhara.store.schedules import Schedules
from dhara.store.stats import Stats
from dhara.store.tasks import Tasks
from dhara.store.wakeup import Listener
from dhara.store.workers import NewWorker, Workers
from dhara.worker import isolated, process, reporter
from dhara.worker.board import Board
from dhara.worker.claimer import Claimer
from dhara.worker.comparer import Comparer
from dhara.worker.context import Context
from dhara.worker.lanes import ALL_QUEUES
from dhara.worker.nursery import Nursery
from dhara.worker.registry import Registry
from dhara.worker.settler import Settler
from dhara.worker.slots import Slots
from dhara.worker.transaction import Transaction
from dhara.worker.watchdog import Watchdog

log = logging.getLogger(__name__)

_SWEEP = 0.2
_MEMORY_LOOK = 5.0
# Seconds for handlers to heed that they are interrupted, before what they hold is released without them.
_HEED = 0.5
# Seconds for the answer of a claim that is under way as the worker ends.
_ANSWER = 2.0
# For so many leases a runner beats for itself, should its keeper not have begun to.
_UNKEPT = 4.0


class RunnerSettings(Struct, frozen=True, kw_only=True):
    """What a runner needs to know. Times are seconds; `queues`: name -> slots, `*` for all queues."""

    database: DatabaseSettings
    concurrency: int
    queues: Mapping[str, int]
    poll_interval: float = 1.0
    heartbeat_interval: float = 5.0
    stale_after: float = 30.0
    handler_timeout: float = 900.0
    kill_grace: float = 10.0
    shutdown_timeout: float = 25.0
    wakeups: bool = True
    recycle_tasks: int = 0
    recycle_memory: int = 0
    backoff: Backoff = Backoff()

    @classmethod
    def of(cls, settings: Settings, queues: Mapping[str, int] | None, concurrency: int) -> RunnerSettings:
        """From the process's settings."""
        return cls(
            database=DatabaseSettings.of(settings),
            concurrency=concurrency,
            queues=dict(queues) if queues else {ALL_QUEUES: concurrency},
            poll_interval=settings.poll_interval,
            heartbeat_interval=settings.heartbeat_interval,
            stale_after=settings.stale_after,
            handler_timeout=settings.handler_timeout,
            kill_grace=settings.kill_grace,
            shutdown_timeout=settings.shutdown_timeout,
            wakeups=settings.wakeups and not settings.pooler,
            recycle_tasks=settings.recycle_tasks,
            recycle_memory=settings.recycle_memory,
            backoff=Backoff(base=settings.base_backoff, cap=settings.max_backoff),
        )


class Runner:
    """One worker: its slots and all that feeds and empties them. `board` is shared with its keeper."""

    def __init__(
        self,
        registry: Registry,
        settings: RunnerSettings,
        *,
        worker: UUID,
        board: Board,
        nursery: Nursery | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.id = worker
        self.settings = settings
        self.registry = registry
        self.draining = False
        self.worn = asyncio.Event()
        self.unwanted = asyncio.Event()
        self._rng = rng or random.Random()
        self._board = board
        self._nursery = nursery
        self._state: Any = None
        self._life = AsyncExitStack()
        schema = settings.database.schema
        self._pool = Pool(settings.database, "dhara runner")
        # Handlers that hold a transaction for long must not keep claims and settlements from theirs.
        self._handlers_pool = Pool(isolated.for_handlers(settings.database), "dhara handler")
        self.tasks = Tasks(self._pool, schema)
        self._workers = Workers(self._pool, schema)
        self.settler = Settler(
            tasks=self.tasks,
            worker=worker,
            rng=self._rng,
            rejected=self._rejected,
            relieved=self._freed,
            returned=lambda seconds: self.claimer.expect(seconds),  # noqa: PLW0108 the claimer comes later
            observe=lambda *seen: self.slots.observations.batch(*seen),  # noqa: PLW0108 the slots come later
        )
        self.slots = Slots(
            registry,
            concurrency=settings.concurrency,
            queues=settings.queues,
            board=board,
            settle=self.settler.put,
            freed=self._freed,
            make_context=self._context,
            handler_timeout=settings.handler_timeout,
            kill_grace=settings.kill_grace,
            stale_after=settings.stale_after,
            backoff=settings.backoff,
            nursery=nursery,
            rng=self._rng,
        )
        self.claimer = Claimer(
            tasks=self.tasks,
            worker=worker,
            types=registry.types,
            queues=settings.queues,
            poll_interval=settings.poll_interval,
            room=self._room,
            rooms=self.slots.rooms,
            deliver=self._deliver,
            rng=self._rng,
            observe=self.slots.observations.batch,
            rest=lambda asleep: self._listener.rest(asleep),  # noqa: PLW0108 the listener comes later
        )
        self.comparer = Comparer(self, self.tasks, Stats(self._pool, schema), self.slots.observations)
        self._compare = Every(settings.heartbeat_interval, self.comparer.compare, "comparing leases")
        self._sweep = Every(_SWEEP, self._sweep_once, "sweeping deadlines")
        self._first_beats = Every(settings.stale_after / 2, self._beat_until_kept, "the first heartbeats")
        self._announced = 0.0
        self._report = Every(reporter.INTERVAL, reporter.Reporter(self.slots, self.tasks).report, "reporting progress")
        self._listener = Listener(settings.database, self.claimer.wake, self._hint_heard, self._rng)
        self._watchdog: Watchdog | None = None
        self._said: asyncio.Task[None] | None = None
        self._next_memory_look = 0.0

    # life

    async def start(self) -> None:
        """Connect, announce the worker, begin to claim. Raises `Unavailable` or `ConfigError`."""
        try:
            await self._prepare()
        except BaseException:
            with suppress(Exception):
                await self._life.aclose()
            raise
        self._announced = time.monotonic()
        self._board.announce(self.id, self._announced)
        self.slots.start()
        self._watchdog = Watchdog(self.slots, asyncio.get_running_loop())
        self._watchdog.start()
        for service in (self.settler, self._sweep, self._first_beats, self._compare, self._report, self.claimer):
            await service.start()
        if self.settings.wakeups:
            await self._listener.start()
        log.info("worker %s: %d slots, queues %s", self.id, self.settings.concurrency, ", ".join(self.settings.queues))

    async def _prepare(self) -> None:
        """Everything that may fail; what has been opened is closed by `_life`, in reverse."""
        for pool in (self._pool, self._handlers_pool):
            await pool.open()
            self._life.push_async_callback(pool.close)
        if self._nursery is not None:
            await self._nursery.attach(lambda: self._wear_out("its nursery has ended"))
        try:
            self._state = await self._life.enter_async_context(self.registry.live())
        except Exception as error:
            why = error if isinstance(error, DharaError) else f"{type(error).__name__}: {error}"
            raise ConfigError(f"the registry's lifespan failed as it began: {why}") from error
        await self._declare_schedules()
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

    async def _declare_schedules(self) -> None:
        try:
            await Schedules(self._pool, self._pool.settings.schema).declare(self.registry.schedules)
        except asyncpg.InsufficientPrivilegeError as error:
            # A worker's role need not be one that may change schedules.
            log.warning("this database role may not make schedules (%s); use `dhara schedules declare MODULE`", error)

    async def drain(self, grace: float | None = None) -> None:
        """Claim nothing more, finish what runs within `grace` seconds (None: SHUTDOWN_TIMEOUT), release the rest.

        May be called again, with another grace, when an earlier call was cancelled.
        """
        grace, begun = self.settings.shutdown_timeout if grace is None else grace, time.monotonic()
        most = "as long as they take" if grace == math.inf else f"at most {grace:g} s"
        log.info("worker %s drains: %d running, %s", self.id, self.slots.busy, most)
        if not self.draining:
            self.draining = True
            self._said = asyncio.create_task(self._say_draining())
        await self._stop_claiming()
        try:
            left = None if grace == math.inf else max(0.0, begun + grace - time.monotonic())
            await asyncio.wait_for(self.slots.idle(), left)
        except TimeoutError:
            await self.release()

    async def release(self) -> None:
        """Give back what still runs, now; `async` handlers are interrupted, threads are left behind."""
        self.draining = True
        self.slots.close()
        await self._claim_landed(_HEED)
        self.slots.release_unstarted()
        self.slots.interrupt_all()
        try:
            await asyncio.wait_for(self.slots.idle(), _HEED)
        except TimeoutError:
            self.slots.abandon()

    async def stop(self) -> None:
        """End: settle what is decided, sign off, disconnect."""
        self.draining = True
        await self._stop_claiming()
        try:
            await asyncio.wait_for(self.settler.drained(), 5.0)
            reachable = True
        except TimeoutError:
            log.warning("%d settlements are left to the reaper", len(self.settler))
            reachable = False
        await self.slots.stop()
        services = (self._listener, self._report, self._first_beats, self._compare, self.claimer, self.settler)
        await asyncio.gather(*(service.stop() for service in services))
        if self._watchdog is not None:
            self._watchdog.stop()
        if self._said is not None:
            await self._said
        if reachable:
            await self._sign_off()
        await self._sweep.stop()
        self._board.stopped()
        if self._nursery is not None:
            self._nursery.close()
        try:
            await self._life.aclose()
        except Exception:
            log.exception("the registry's lifespan failed as it ended")

    async def _sign_off(self) -> None:
        words = within(2, self.comparer.flush()), within(2, self._workers.stop(self.id))
        for error in await asyncio.gather(*words, return_exceptions=True):
            if error is not None:
                log.debug("could not sign off: %s", error)

    async def _say_draining(self) -> None:
        try:
            await within(2, self._workers.drain(self.id))
        except Exception as error:
            log.debug("could not say that this worker drains: %s", error)

    async def _stop_claiming(self) -> None:
        """Begin nothing more, claim nothing more, and give back what waits."""
        self.slots.close()
        await self._claim_landed(_ANSWER)
        await self.claimer.stop()
        self.slots.release_unstarted()

    async def _claim_landed(self, seconds: float) -> None:
        """Wait until no claim is under way, or for so long: it may take again what is given back before, and one whose answer
        nobody reads would be a ghost."""
        for _ in range(round(seconds / 0.02)):
            if not self.claimer.in_flight:
                return
            await asyncio.sleep(0.02)

    # claims

    def _freed(self) -> None:
        self.claimer.freed()

    def _room(self) -> int:
        leaving = self.draining or self.worn.is_set() or self.unwanted.is_set()
        return 0 if leaving or self.settler.full else self.slots.room()

    def _deliver(self, claims: list[Claim]) -> None:
        if self.comparer.ghosts:
            claims = [claim for claim in claims if claim.lease not in self.comparer.ghosts]
            self.comparer.ghosts.clear()  # one claim is under way at a time, and this was its answer
        if not self.draining:
            self.slots.deliver(claims)
            return
        for claim in claims:
            self.slots.settle(claim, Released("claimed as the worker began to drain"))

    def leases(self) -> set[UUID]:
        """Every lease that this worker knows it holds: waiting, running, or not settled yet."""
        return self.slots.leases() | self.settler.leases()

    def _rejected(self, settlement: Settlement) -> None:
        self.slots.observations.rejected += 1

    # handlers

    def _context(self, claim: Claim) -> Context:
        context = Context(claim, self._transaction)
        context.state = self._state
        return context

    def _transaction(self, context: Context, session: Any) -> Transaction:
        async def open(stack: AsyncExitStack) -> asyncpg.Connection[asyncpg.Record]:
            acquired = self._handlers_pool.acquire()
            connection: asyncpg.Connection[asyncpg.Record] = await stack.enter_async_context(acquired)
            return connection

        return isolated.transaction(context, session, self.settings.database.schema, open)

    # background

    async def _beat_until_kept(self) -> None:
        """A keeper is a process of its own and starts beside this one: where processors are short, that may take longer than
        a lease lasts, and what is running by then must not be taken for lost. Twice a lease is enough, and asks little of
        a database that is away."""
        age = time.monotonic() - self._announced
        if self._board.acked() <= self._announced and age < _UNKEPT * self.settings.stale_after:
            await self._workers.beat([self.id], [self.slots.busy])

    async def _sweep_once(self) -> None:
        self.slots.sweep()
        if not self.unwanted.is_set() and self._board.drain_asked():
            log.info("worker %s has been told by an operator to drain", self.id)
            self.unwanted.set()
        most = self.settings.recycle_tasks
        if most and self.slots.finished >= most:
            self._wear_out(f"it has run {self.slots.finished} tasks")
        now = time.monotonic()
        if self.settings.recycle_memory and now >= self._next_memory_look:
            self._next_memory_look = now + _MEMORY_LOOK
            used = process.memory()
            if used > self.settings.recycle_memory * 2**20:
                self._wear_out(f"it uses {used >> 20} MiB")

    def _wear_out(self, why: str) -> None:
        if not self.worn.is_set():
            log.info("worker %s will be replaced: %s", self.id, why)
            self.worn.set()

    def _hint_heard(self, worker: str) -> None:
        if worker == str(self.id):
            self._hearing = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        """What a beat or a comparison would find out later: a task is to be canceled, or this worker is to drain."""
        await self.comparer.compare_quietly()
        try:
            if await self._workers.drain_asked(self.id):
                self._board.ask_drain()
        except Exception as error:
            log.debug("could not look for a wish to drain: %s", error)
