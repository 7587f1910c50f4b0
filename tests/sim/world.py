"""One seed: a fleet of workers, tasks for them, faults, and what must be true afterwards.

Everything in it is the real code, `dhara.worker` and `dhara.maintenance`, but for what would reach out of this process: the
database and the way there (`store`, `network`), the operating system (kill, stop, who runs) and the supervisor, whose part
the world plays: a runner that died is reported to its keeper and replaced, a keeper that died is replaced.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import msgspec

from dhara import Context, DeadLetter, Snooze
from dhara.domain.lifecycle import FINAL, State
from dhara.domain.task import NewTask
from dhara.maintenance.settings import MaintenanceSettings
from dhara.store.pool import DatabaseSettings
from dhara.worker import board as boards
from dhara.worker.keeper import Died, Keeper, KeeperConfig, Leave
from dhara.worker.registry import Registry
from dhara.worker.runner import Runner, RunnerSettings
from dhara.worker.slot import Stop
from tests.sim.loop import PROCESS, Loop
from tests.sim.network import Network
from tests.sim.store import Memory

# The test profile of `trust.md` 1.1, with slots, seconds of faults and of patience afterwards.
H, L, R, C, P, G, K = 1.0, 6.0, 1.0, 2.0, 0.5, 5.0, 2.0
SLOTS, WORKERS, TASKS = 3, 2, 14
TROUBLED, PATIENCE = 12.0, 120.0

_DATABASE = DatabaseSettings(dsn="postgresql://nowhere")
_SETTINGS = RunnerSettings(
    database=_DATABASE, concurrency=SLOTS, queues={"*": SLOTS}, poll_interval=P, heartbeat_interval=H, stale_after=L,
    handler_timeout=20.0, kill_grace=K, shutdown_timeout=G,
)  # fmt: skip
_MAINTENANCE = MaintenanceSettings(stale_after=L, reaper_interval=R, confirm_after=C)


@dataclass
class Start:
    """A handler's start, as the handler itself noted it."""

    task: UUID
    lease: UUID
    process: int
    exclusive: bool
    at: float
    end: float | None = None
    well: bool = False


@dataclass
class Worker:
    """A supervisor's processes. `runner` and `keeper` are process numbers."""

    fd: int
    board: boards.Board
    runner: int = 0
    keeper: int = 0
    running: Runner | None = None
    lines: asyncio.StreamReader | None = None
    here: bool = True
    leaving: bool = False


@dataclass
class Fault:
    """What was done to which processes, and until when."""

    kind: str
    at: float
    processes: tuple[int, ...] = ()
    until: float = 0.0


@dataclass
class Story:
    """What came of a seed: for the judge, and for whoever reads a failure."""

    seed: int
    db: Memory
    starts: list[Start]
    faults: list[Fault]
    ids: dict[int, UUID]  # runner's process -> its worker id
    seconds: float
    killed: dict[int, float]
    worker_of: dict[int, int]  # any process -> the place of its supervisor
    troubled: bool  # whether the network lost anything
    open: list[UUID] = field(default_factory=list)


class World:
    """Plays one seed."""

    def __init__(self, seed: int, loop: Loop) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.loop = loop
        self.db = Memory(loop.time, random.Random(seed + 1))
        self.network = Network(loop, random.Random(seed + 2), self.rng.choice([0.0, 0.02, 0.08]))
        self.processes = 100
        self.workers: list[Worker] = []
        self.runners: list[Runner] = []
        self.spawned: list[asyncio.Task[Any]] = []
        self.listeners: dict[int, Callable[[str], None]] = {}
        self.starts: list[Start] = []
        self.faults: list[Fault] = []
        self.ids: dict[int, UUID] = {}
        self.killed: dict[int, float] = {}
        self.worker_of: dict[int, int] = {}
        self.over = False
        self.registry = self._handlers()

    # what handlers do is in their payload

    def _handlers(self) -> Registry:
        registry = Registry()

        @registry.task("any")
        async def any_(ctx: Context, seconds: float, then: str) -> str | None:
            return await self._run(ctx, seconds, then, False)

        @registry.task("exclusive", exclusive=True)
        async def exclusive(ctx: Context, seconds: float, then: str) -> str | None:
            return await self._run(ctx, seconds, then, True)

        return registry

    async def _run(self, ctx: Context, seconds: float, then: str, exclusive: bool) -> str | None:
        start = Start(ctx.task_id, ctx.lease, PROCESS.get(), exclusive, self.loop.time())
        self.starts.append(start)
        try:
            try:
                await asyncio.sleep(seconds)
            except asyncio.CancelledError:
                if then != "deaf" or self.over:
                    raise
                await asyncio.sleep(1.0)
            if then == "poison":
                self.kill(PROCESS.get())
                await self.loop.create_future()
            if then == "fail" and ctx.attempt < 3:
                raise ValueError("not yet")
            if then == "dead":
                raise DeadLetter("never")
            if then == "snooze" and ctx.attempt < 3:
                raise Snooze(0.3)
            start.well = True
            return "well"
        finally:
            if not self.over:
                start.end = self.loop.time()

    # processes

    def spawn(self, process: int, work: Coroutine[Any, Any, Any]) -> None:
        """Begin `work` as that process."""
        context = copy_context()
        context.run(PROCESS.set, process)
        # Kept, since a loop itself keeps nobody: what a dead keeper waits for would be collected, and be heard of.
        self.spawned.append(self.loop.create_task(work, context=context))

    def _number(self, worker: Worker) -> int:
        self.processes += 1
        self.worker_of[self.processes] = self.workers.index(worker)
        return self.processes

    def start_worker(self) -> Worker:
        fd = boards.share(1, SLOTS)
        (board,) = boards.attach(fd, 1, SLOTS)
        worker = Worker(fd, board)
        self.workers.append(worker)
        self.start_keeper(worker)
        self.start_runner(worker)
        return worker

    def start_keeper(self, worker: Worker) -> None:
        worker.keeper = process = self._number(worker)
        worker.lines = lines = asyncio.StreamReader(loop=self.loop)
        config = KeeperConfig(
            database=_DATABASE, maintenance=_MAINTENANCE, fd=worker.fd, processes=1, slots=SLOTS, heartbeat_interval=H
        )

        async def live() -> None:
            await asyncio.sleep(0.1)  # as long as an interpreter takes
            await Keeper(config).run(lines)

        self.spawn(process, live())

    def start_runner(self, worker: Worker) -> None:
        worker.runner = process = self._number(worker)
        worker.board.reset()
        self.ids[process] = id = UUID(int=self.rng.getrandbits(128), version=4)

        async def live() -> None:
            await asyncio.sleep(0.1)
            while True:
                rng = random.Random(self.rng.random())
                worker.running = Runner(self.registry, _SETTINGS, worker=id, board=worker.board, rng=rng)
                self.runners.append(worker.running)
                with suppress(ConnectionError, TimeoutError):
                    return await worker.running.start()
                await asyncio.sleep(0.5)

        self.spawn(process, live())

    def runs(self, process: int) -> bool:
        """What /proc would say."""
        return self.loop.runs(process)

    def kill(self, process: int, number: int = signal.SIGKILL) -> None:
        """kill -9; the supervisor sees it soon."""
        if process in self.loop.gone:
            raise ProcessLookupError
        self.loop.kill_process(process)
        self.killed[process] = self.loop.time()
        self.faults.append(Fault("kill", self.loop.time(), (process,)))
        self.network.later(self.rng.uniform(0.01, 0.3), self._bury, process)

    def _bury(self, process: int) -> None:
        for worker in self.workers:
            if not (worker.here or worker.leaving):
                continue
            if process == worker.runner:
                started = [entry.lease for entry in worker.board.entries()]
                self._tell(worker, Died(self.ids[process], "signal SIGKILL", started=started))
                if worker.leaving:
                    self._tell(worker, Leave())
                else:
                    self.start_runner(worker)
            if process == worker.keeper:
                self.start_keeper(worker)

    def _tell(self, worker: Worker, message: Died | Leave) -> None:
        assert worker.lines is not None
        worker.lines.feed_data(msgspec.json.encode(message) + b"\n")

    # faults

    def hurt(self) -> None:
        """One fault of a random kind."""
        if not (here := [worker for worker in self.workers if worker.here]):
            return  # all are dead, and their successors are on their way
        worker = self.rng.choice(here)
        kinds = {
            self._kill_runner: 3, self._kill_keeper: 2, self._kill_worker: 2, self._stand_still: 3, self._partition: 3,
            self._away: 1, self._jump: 3, self._drain: 2, self._cancel: 3, self._revive: 2,
        }  # fmt: skip
        self.rng.choices(list(kinds), list(kinds.values()))[0](worker)

    def _kill_runner(self, worker: Worker) -> None:
        with suppress(ProcessLookupError):
            self.kill(worker.runner)

    def _kill_keeper(self, worker: Worker) -> None:
        with suppress(ProcessLookupError):
            self.kill(worker.keeper)

    def _kill_worker(self, worker: Worker) -> None:
        worker.here = False
        for process in (worker.runner, worker.keeper):
            with suppress(ProcessLookupError):
                self.kill(process)
        self.network.later(1.0, self.start_worker)

    def _stand_still(self, worker: Worker) -> None:
        both = self.rng.random() < 0.5
        stopped = (worker.runner, worker.keeper) if both else (worker.runner,)
        seconds = self.rng.choice([0.7 * L, 1.5 * L])
        for process in stopped:
            self.loop.stop_process(process)
            self.network.later(seconds, self.loop.continue_process, process)
        self.faults.append(Fault("still", self.loop.time(), stopped, self.loop.time() + seconds))

    def _partition(self, worker: Worker) -> None:
        processes = (worker.runner, worker.keeper)
        seconds = self.rng.choice([0.7 * L, 2 * L])
        self.network.cut.update(processes)
        self.network.later(seconds, self.network.cut.difference_update, processes)
        self.faults.append(Fault("partition", self.loop.time(), processes, self.loop.time() + seconds))

    def _away(self, worker: Worker) -> None:
        seconds = self.rng.choice([1.0, 2 * L])
        self.network.away = True
        self.faults.append(Fault("away", self.loop.time(), (), self.loop.time() + seconds))

        def back() -> None:
            self.network.away = False

        self.network.later(seconds, back)

    def _jump(self, worker: Worker) -> None:
        self.db.offset += self.rng.choice([7200.0, 30.0])
        self.faults.append(Fault("jump", self.loop.time()))

    def _drain(self, worker: Worker) -> None:
        """SIGTERM, and another worker in its place."""
        runner = worker.running
        if runner is None or not self.runs(worker.runner) or len(self.workers) > 6:
            return
        worker.here, worker.leaving = False, True
        self.faults.append(Fault("drain", self.loop.time(), (worker.runner,)))

        async def leave() -> None:
            await runner.drain()
            await runner.stop()
            self._tell(worker, Leave())

        self.spawn(worker.runner, leave())
        self.start_worker()

    def _cancel(self, worker: Worker) -> None:
        if self.db.rows:
            self.db.tasks.request_cancel(self.rng.choice(list(self.db.rows)))

    def _revive(self, worker: Worker) -> None:
        for id, row in self.db.rows.items():
            if row.state is State.DEAD and row.generation < 3:
                self.db.tasks.revive(id)
                self.wake(row.new.queue)
                return

    # tasks

    def enqueue(self) -> None:
        """One task of a random kind; workers mostly hear of it."""
        rng = self.rng
        then = rng.choices(["well", "fail", "dead", "snooze", "deaf", "poison"], [12, 3, 1, 2, 1, 1])[0]
        new = NewTask(
            id=UUID(int=rng.getrandbits(128), version=4),
            type=rng.choice(["any", "any", "exclusive"]),
            payload=msgspec.json.encode({"seconds": rng.choice([0.0, 0.05, 1.0, 3.0, 9.0]), "then": then}).decode(),
            queue=rng.choice(["a", "b"]),
            priority=rng.choice([0, 0, 5]),
            max_retries=rng.choice([1, 5]),
            delay=rng.choice([None, None, 2.0]),
        )
        self.db.tasks.enqueue([new])
        if new.delay is None and rng.random() < 0.8:
            self.wake(new.queue)

    def wake(self, queue: str) -> None:
        for process, heard in list(self.listeners.items()):
            context = copy_context()
            context.run(PROCESS.set, process)
            self.loop.call_later(self.rng.uniform(0.001, 0.01), heard, queue, context=context)

    # a seed's way

    async def play(self) -> Story:
        """From the first worker's start until every task is final, or patience has an end."""
        for _ in range(WORKERS):
            self.start_worker()
        begin, last = self.loop.time(), 0.0
        moments = [(self.rng.uniform(0.0, 0.7 * TROUBLED), self.enqueue) for _ in range(TASKS)]
        moments += [(self.rng.uniform(0.5, TROUBLED), self.hurt) for _ in range(self.rng.randint(0, 6))]
        for moment, do in sorted(moments, key=lambda pair: pair[0]):
            await asyncio.sleep(moment - last)
            last = moment
            do()
        troubled, self.network.trouble = self.network.trouble > 0, 0.0
        while (left := self._open()) and self.loop.time() < begin + TROUBLED + PATIENCE:
            await asyncio.sleep(1.0)
        return Story(
            seed=self.seed, db=self.db, starts=self.starts, faults=self.faults, ids=self.ids, killed=self.killed,
            seconds=self.loop.time() - begin, worker_of=self.worker_of, troubled=troubled, open=left,
        )  # fmt: skip

    def _open(self) -> list[UUID]:
        return [row.new.id for row in self.db.rows.values() if row.state not in FINAL]

    async def curtain(self) -> None:
        """End whatever still runs; nobody looks any more."""
        self.over = True
        self.network.away = True
        self.loop.resurrect()
        me = asyncio.current_task()
        for slot in (slot for runner in self.runners for slot in runner.slots.slots):
            slot.stop = Stop.EXIT  # or it would take its cancellation for its handler's
        for _ in range(60):
            if not (rest := [task for task in asyncio.all_tasks(self.loop) if task is not me]):
                break
            for task in rest:
                task.cancel()
            await asyncio.sleep(1.0)
        for worker in self.workers:
            with suppress(OSError):
                os.close(worker.fd)
