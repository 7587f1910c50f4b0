"""The keeper: a tiny process without user code, one connection. No handler can starve it, whatever it does to its loop
or to the GIL (`trust.md` 1.7: a heartbeat thread is not enough in CPython).

    beats      every H, one statement for all runners of this supervisor; not for one that is stopped (SIGSTOP):
               a stopped worker must lose its leases
    deadlines  a slot still busy K after its deadline: the runner is killed, and that task alone is to blame
    drains     an operator's wish, which the beat's answer carries, is laid on the board
    crashes    a runner that died: its leases are taken back at once, without waiting for L
    maintains  it takes part in the fleet's maintenance (reaper, expiry, retention), one leader at a time

Its parent speaks to it on standard input, a JSON line each; the end of that input means that the parent is gone.
Started as `python -m dhara.worker.keeper`; the configuration is the first line, so that no secret is on a command line.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from uuid import UUID

import msgspec
from msgspec import Struct

from dhara.maintenance import Maintenance
from dhara.maintenance.settings import MaintenanceSettings
from dhara.service import Every, within
from dhara.store.pool import SMALL, DatabaseSettings, Pool
from dhara.store.tasks import Reaped, Tasks
from dhara.store.workers import Workers
from dhara.telemetry import log as logs
from dhara.worker import board as boards
from dhara.worker import process
from dhara.worker.board import NOBODY, STARTED, Board, attach

log = logging.getLogger("dhara.worker.keeper")  # it runs as __main__

_WATCH = 0.25
# A beat that failed is tried again after so much of the heartbeat interval.
_SOON = 0.25
_LAG_WARNING = 1.0
_AFTERMATH = 2.0
# Seconds for the answer of a beat that was under way as a runner died.
_LAST_BEAT = 1.0
_LAST_CONNECT = 10.0
_REAP_TRIES = 100
_FAREWELL = 0.3


class KeeperConfig(Struct, frozen=True, kw_only=True):
    """The first line of a keeper's input. Times are seconds; `fd` holds `processes` boards of `slots` slots."""

    database: DatabaseSettings
    maintenance: MaintenanceSettings
    fd: int
    processes: int
    slots: int
    heartbeat_interval: float
    log_level: str = "info"
    log_format: str = "text"


class Died(Struct, frozen=True, tag="died"):
    """A runner has ended, not in order. `blame`: its tasks may have been the reason; those that had `started` are suspect.

    None started: all that it held are.
    """

    worker: UUID
    how: str
    blame: bool = True
    started: list[UUID] = []


class Leave(Struct, frozen=True, tag="leave"):
    """All runners have ended; the keeper may go."""


class Keeper:
    """The keeper's life, in its own process."""

    def __init__(self, config: KeeperConfig) -> None:
        self._config = config
        self.boards = attach(config.fd, config.processes, config.slots)
        # Nothing must keep the beat waiting: connections of its own, one each for beats, rounds and chores.
        database = msgspec.structs.replace(config.database, pool_min=1, pool_max=3)
        self._pool = Pool(database, "dhara keeper", SMALL)
        self._tasks = Tasks(self._pool, database.schema)
        self._workers = Workers(self._pool, database.schema)
        self._last_moment = boards.last_moment(config.maintenance.stale_after)
        self._culprits: dict[UUID, set[UUID]] = {}
        self._overdue: set[tuple[UUID, UUID]] = set()
        self._lagging: set[UUID] = set()
        self._beating: Collection[UUID] = ()
        self._reaping: set[asyncio.Task[None]] = set()
        self._connected = asyncio.Event()
        self._heard = True
        self._beat = Every(config.heartbeat_interval, self.beat, "the heartbeat")
        self._watch = Every(_WATCH, self.watch, "watching deadlines")
        self._maintenance = Maintenance(self._pool, config.maintenance)

    async def run(self, lines: asyncio.StreamReader) -> None:
        """Until told to leave, or until the parent is gone and what it left is cleaned up."""
        # Deadlines and exclusive attempts are watched without a database too.
        await self._watch.start()
        listening = asyncio.create_task(self._listen(lines))
        connecting = asyncio.create_task(self._connect())
        try:
            await asyncio.wait((listening, connecting), return_when=asyncio.FIRST_COMPLETED)
            if listening.done() and listening.result():
                return  # told to leave before there was anything to keep
            if listening.done():
                # Orphaned before the database has come: what the dead hold is still to be taken back.
                await asyncio.wait((connecting,), timeout=_LAST_CONNECT)
            if not connecting.done():
                return
            await self._beat.start()
            await self._maintenance.start()
            if not await listening:
                await self._orphaned()
        finally:
            connecting.cancel()
            await self._stop()

    async def _connect(self) -> None:
        pause = 0.2
        failing = False
        while True:
            try:
                await self._pool.open()
                self._connected.set()
                return
            except Exception as error:
                log.log(logging.DEBUG if failing else logging.WARNING, "the keeper waits for the database: %s", error)
                failing = True
                await asyncio.sleep(pause)
                pause = min(2.0, pause * 2)

    async def _stop(self) -> None:
        if self._reaping:
            await asyncio.wait(self._reaping, timeout=5)
        # In order, if that is quick: a query that is under way must not keep the parent from its end.
        with suppress(TimeoutError):
            await within(_FAREWELL, self._end())

    async def _end(self) -> None:
        for service in (self._maintenance, self._watch, self._beat):
            await service.stop()
        await self._pool.close()

    async def _listen(self, lines: asyncio.StreamReader) -> bool:
        """True when told to leave, False when the parent is gone."""
        decoder = msgspec.json.Decoder(Died | Leave)
        while line := await lines.readline():
            message = decoder.decode(line)
            if isinstance(message, Leave):
                return True
            self.reap_soon(message)
        return False

    async def _orphaned(self) -> None:
        """The parent is gone and its runners die with it: take back what they held."""
        for board in self.boards:
            header = board.header()
            if header.flags == STARTED:
                with suppress(ProcessLookupError):
                    os.kill(header.pid, signal.SIGKILL)
                started = [entry.lease for entry in board.entries()]
                self.reap_soon(Died(header.worker, "the whole worker was killed", started=started))

    async def beat(self) -> None:
        """One heartbeat for every runner that lives and is not stopped. The first that fails is tried again at once, or nearly:
        the second witness waits for two of them only, and a cut connection should not cost one."""
        heard, self._heard = self._heard, False
        try:
            await self._beat_once()
        except Exception:
            if not heard:
                raise
            await asyncio.sleep(self._config.heartbeat_interval * _SOON)
            await self._beat_once()
        self._heard = True

    async def _beat_once(self) -> None:
        sent = time.monotonic()
        alive = {}
        for board in self.boards:
            header = board.header()
            if header.flags == STARTED and process.runs(header.pid):
                alive[header.worker] = (board, header.running)
        if alive:
            self._beating = alive.keys()
            try:
                known = await self._workers.beat(list(alive), [running for _, running in alive.values()])
            finally:
                self._beating = ()
            for worker in known.keys() & alive.keys():
                board, _ = alive[worker]
                board.acknowledge(sent)
                if known[worker] and board.header().worker == worker:  # and not its successor
                    board.ask_drain()

    async def watch(self) -> None:
        """Kill runners with a task far past its deadline; warn of a loop that does not turn."""
        now = time.monotonic()
        overdue = set()
        for board in self.boards:
            header = board.header()
            if header.flags != STARTED or header.worker == NOBODY:
                continue
            self._warn_of_lag(board, now - header.tick)
            # An exclusive attempt must not outlive its lease: no acknowledged beat, no process.
            unheard = now - header.acked > self._last_moment
            entries = board.entries()
            late = [e for e in entries if now > e.deadline or (e.exclusive and unheard)]
            # Seen twice, so that a line that was read while it was written kills nobody.
            proven = [entry for entry in late if (header.worker, entry.lease) in self._overdue]
            overdue |= {(header.worker, entry.lease) for entry in late}
            if proven and process.runs(header.pid):
                names = ", ".join(str(entry.task) for entry in proven)
                log.error("task %s did not end by its deadline; killing runner %d", names, header.pid)
                self._culprits[header.worker] = {entry.lease for entry in proven}
                with suppress(ProcessLookupError):
                    os.kill(header.pid, signal.SIGKILL)
        self._overdue = overdue

    def _warn_of_lag(self, board: Board, lag: float) -> None:
        header = board.header()
        if lag < _LAG_WARNING:
            self._lagging.discard(header.worker)
        elif header.worker not in self._lagging and process.runs(header.pid):
            self._lagging.add(header.worker)
            tasks = ", ".join(str(entry.task) for entry in board.entries()[:5])
            log.warning("the event loop of worker %s has stood still for %.1f s; it runs %s", header.worker, lag, tasks)

    def reap_soon(self, died: Died) -> None:
        """Take back what a dead runner held, in the background."""
        task = asyncio.create_task(self._reap(died))
        self._reaping.add(task)
        task.add_done_callback(self._reaping.discard)

    async def _reap(self, died: Died) -> None:
        worker = died.worker
        reason = f"worker process ended: {died.how}"
        culprits = set(died.started) or None if died.blame else set()
        if late := self._culprits.pop(worker, None):
            culprits = late
            reason = "deadline passed and the handler did not stop; its process was killed"
        reaped: list[Reaped] = []
        await self._connected.wait()  # a runner may die before its keeper is ready
        for attempt in range(_REAP_TRIES):
            try:
                while more := await self._take_back(worker, reason, culprits):
                    reaped += more
                await self._silent(worker)
                await self._workers.stop(worker, "lost")
                break
            except Exception as error:
                level = logging.WARNING if attempt == 0 else logging.DEBUG
                log.log(level, "taking back the tasks of %s failed, trying again: %s", worker, error)
                await asyncio.sleep(0.5)
        log.warning("worker %s died (%s): %d tasks taken back", worker, died.how, len(reaped))
        if not died.blame:
            return  # it had been told to drain, and claimed nothing any more
        # A claim of the dead may still have been on its way to the database; it is taken back the same way.
        await asyncio.sleep(_AFTERMATH)
        with suppress(Exception):
            await self._take_back(worker, reason, culprits)

    async def _silent(self, worker: UUID) -> None:
        """Wait until no beat under way speaks for the dead, which would call it live again; but not for long."""
        for _ in range(round(_LAST_BEAT / 0.02)):
            if worker not in self._beating:
                return
            await asyncio.sleep(0.02)

    async def _take_back(self, worker: UUID, reason: str, culprits: set[UUID] | None) -> list[Reaped]:
        settings = self._config.maintenance
        return await self._tasks.reap(
            worker,
            beat_seq=None,
            claimed_before=0.0,
            reason=reason,
            base=settings.base_backoff,
            cap=settings.max_backoff,
            culprits=None if culprits is None else sorted(culprits),
        )


async def _main() -> None:
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    config = msgspec.json.decode(await lines.readline(), type=KeeperConfig)
    logs.configure(config.log_level, config.log_format)
    await Keeper(config).run(lines)
    # Its parent waits for it: so not by way of all that a loop and an interpreter take apart as they end.
    sys.stderr.flush()
    os._exit(0)


def main() -> None:
    """The process. It ignores the terminal's signals: it leaves when its parent says so, or is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    asyncio.run(_main())


if __name__ == "__main__":
    main()
