"""The supervisor: the parent of one keeper and N runners. It runs no event loop and no user code, and never threads, so
that it can fork: a runner starts with everything imported, and a registry of `__main__` needs no import at all.

    a runner dies    the keeper is told (it takes the leases back) and a new runner starts, later each time it crashes soon
    the keeper dies  a new one starts; runners notice nothing
    an operator drains a runner: none starts in its place; when the last has gone, this process goes, too
    SIGTERM, SIGINT  runners drain; again: they release at once; one that does not end in time is killed. The keeper leaves
                     while they sign off. A signal that comes when all is over may still make the exit code say "again"
    it dies itself   the kernel ends the runners; the keeper sees the end of its input, takes back, and leaves
"""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import IO

import msgspec
from msgspec import Struct

from dhara.errors import ConfigError
from dhara.maintenance.settings import MaintenanceSettings
from dhara.settings import Settings
from dhara.store.pool import DatabaseSettings
from dhara.worker import board as boards
from dhara.worker import process
from dhara.worker.entry import EXIT_CONFIG, EXIT_SCHEMA, EXIT_UNAVAILABLE, RELEASE, load_registry, run_child
from dhara.worker.keeper import Died, KeeperConfig, Leave
from dhara.worker.registry import Registry
from dhara.worker.runner import RunnerSettings

log = logging.getLogger(__name__)

_FATAL = frozenset({EXIT_CONFIG, EXIT_SCHEMA, EXIT_UNAVAILABLE})
ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_FIRST_PAUSE, _LONGEST_PAUSE, _HEALTHY = 0.05, 5.0, 1.0
_TURN, _SHORT_TURN = 0.5, 0.05
# Beyond its grace, a runner is killed after so many seconds: one whose loop stands still; any.
_STALLED, _PATIENCE = 1.5, 15.0
# asyncio receives into 256 KiB and cuts them to what came. By itself glibc soon takes these from its heap, from the end, since
# what was allocated meanwhile is in the way elsewhere: a keeper's heap grew page by page, up to 5 MiB an hour. With this limit,
# which it does not move once it is set, each is mapped by itself and given back.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "131072"}


class WorkerSpec(Struct, frozen=True, kw_only=True):
    """A worker to run: handlers (`module` and the name of its registry, or a registry itself), queues and slots."""

    settings: Settings
    module: str | None = None
    registry: str | Registry = "tasks"
    queues: Mapping[str, int] | None = None
    concurrency: int | None = None
    processes: int | None = None


def supervise(spec: WorkerSpec) -> int:
    """Run until told to stop; blocks. Answers the exit code: 0 drained, 128 + signal when told twice.

    Signals that the caller has blocked stay blocked, so that none can end the process between this answer and its exit.
    """
    if not spec.settings.database_url:
        raise ConfigError("no database: set DHARA_DATABASE_URL=postgresql://user:password@host:5432/database")
    return Supervisor(spec).run()


class _Child:
    """A runner process and its history of crashes."""

    def __init__(self, index: int, board: boards.Board) -> None:
        self.index = index
        self.board = board
        self.pid = 0
        self.started = 0.0
        self.crashes = 0
        self.ever = False
        self.killed = False
        self.retired = False
        self.start_at = 0.0


class Supervisor:
    """The parent process's loop: wait for children and signals, nothing else."""

    def __init__(self, spec: WorkerSpec) -> None:
        settings = spec.settings
        self._spec = spec
        self._slots = spec.concurrency or settings.worker_count
        processes = spec.processes or settings.processes
        self._runner_settings = RunnerSettings.of(settings, spec.queues, self._slots)
        self._fd = boards.share(processes, self._slots)
        self._children = [_Child(i, b) for i, b in enumerate(boards.attach(self._fd, processes, self._slots))]
        self._keeper: subprocess.Popen[bytes] | None = None
        self._keeper_leaves = False
        self._told: list[int] = []
        self._passed = 0
        self._end_by = math.inf
        self._exit = 0

    def run(self) -> int:
        """Start everything, stay until all runners have ended."""
        self._check_registry()
        signals = (*ENDS, signal.SIGCHLD)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        try:
            self._start_keeper()
            for child in self._children:
                self._start(child)
            while any(child.pid or not (self._told or child.retired) for child in self._children):
                self._turn(signals)
        finally:
            self._stop_keeper()
            while self._hear(signals, 0):
                pass
            self._pass_on()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(self._fd)
        return self._exit

    def _turn(self, signals: tuple[int, ...]) -> None:
        self._hear(signals, _SHORT_TURN if self._told or not self._all_started() else _TURN)
        self._pass_on()
        self._kill_stragglers()
        self._reap_children()
        self._let_keeper_leave()
        if not self._told:
            now = time.monotonic()
            for child in self._children:
                if not child.pid and not child.retired and now >= child.start_at:
                    self._start(child)

    def _hear(self, signals: tuple[int, ...], seconds: float) -> bool:
        """Wait for a signal. False if there was none."""
        heard = signal.sigtimedwait(signals, seconds)
        # After a SIGSTOP and SIGCONT of this process, CPython's sigtimedwait may answer what it has never heard.
        if heard is not None and heard.si_signo in ENDS:
            self._told.append(heard.si_signo)
        return heard is not None

    def _all_started(self) -> bool:
        return all(child.pid or child.retired for child in self._children)

    # runners

    def _start(self, child: _Child) -> None:
        child.board.reset()
        child.started = time.monotonic()
        child.killed = False
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._leave_keeper_alone()
            run_child(parent, self._build, self._runner_settings, child.board, patient=child.ever)
        child.pid = pid

    def _leave_keeper_alone(self) -> None:
        """In a runner: the keeper must see the end of its input when the supervisor dies, whoever else lives on."""
        if self._keeper is not None and self._keeper.stdin is not None:
            os.close(self._keeper.stdin.fileno())

    def _build(self) -> Registry:
        return resolve(self._spec)

    def _check_registry(self) -> None:
        """A registry given by name is imported in the runners only: user code stays out of this process."""
        if isinstance(self._spec.registry, Registry) and not len(self._spec.registry):
            raise ConfigError("the registry has no handlers; register some with @tasks.task(...)")

    def _pass_on(self) -> None:
        """The first signal lets runners drain, the second makes them release."""
        for number in self._told[self._passed : 2]:
            self._passed += 1
            again = self._passed == 2
            grace = 0.0 if again else self._spec.settings.shutdown_timeout
            self._end_by = min(self._end_by, time.monotonic() + grace)
            for child in self._children:
                _signal(child, RELEASE if again else signal.SIGTERM)
            if again:
                self._exit = 128 + number

    def _kill_stragglers(self) -> None:
        """Beyond the grace: a runner whose loop stands still cannot even hear that it should end."""
        now = time.monotonic()
        late = now - self._end_by
        for child in self._children:
            header = child.board.header()
            stalled = header.flags == boards.STARTED and now - header.tick > _STALLED
            if child.pid and not child.killed and late > (_STALLED if stalled else _PATIENCE):
                log.error("runner %d has not ended within its grace; killing it", child.pid)
                child.killed = True
                _signal(child, signal.SIGKILL)

    def _reap_children(self) -> None:
        # Only our own children: the user's process may have others.
        for child in self._children:
            if child.pid:
                pid, status = os.waitpid(child.pid, os.WNOHANG)
                if pid:
                    self._ended(child, os.waitstatus_to_exitcode(status))
        if self._keeper is not None and self._keeper.poll() is not None:
            self._keeper_ended()

    def _ended(self, child: _Child, code: int) -> None:
        child.pid = 0
        header = child.board.header()
        if header.drain and not child.retired:
            child.retired = True
            log.info("an operator has drained worker %s; none starts in its place", header.worker)
        if header.flags == boards.STARTED:
            child.ever = True
            how = process.ending(code)
            log.error("runner of worker %s ended: %s", header.worker, how)
            started = [entry.lease for entry in child.board.entries()]
            self._tell(Died(header.worker, how, blame=not child.killed, started=started))
        elif code in _FATAL and not child.ever:
            self._exit = code
            self._told.append(signal.SIGTERM)
            self._pass_on()
            return
        if self._told:
            return
        if time.monotonic() - child.started > _HEALTHY:
            child.crashes = 0
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**child.crashes) if code else 0.0
        child.crashes += code != 0
        child.start_at = time.monotonic() + pause

    # the keeper

    def _start_keeper(self) -> None:
        self._keeper = start_keeper(self._spec.settings, self._fd, len(self._children), self._slots)

    def _let_keeper_leave(self) -> None:
        """Once all runners have signed off there is nothing to keep, though their processes may still be about to end."""
        over = all(not child.pid or child.board.header().flags == boards.STOPPED for child in self._children)
        if self._told and over and self._keeper is not None and not self._keeper_leaves:
            self._keeper_leaves = True
            send(self._keeper, Leave())

    def _keeper_ended(self) -> None:
        if self._keeper_leaves:
            return
        if not self._told or any(child.pid for child in self._children):
            log.error("the keeper ended; starting another")
            hang_up(self._keeper)
            time.sleep(0.05)  # so that a keeper that cannot live does not take the machine with it
            self._start_keeper()

    def _tell(self, message: Died | Leave) -> None:
        if self._keeper is not None and not send(self._keeper, message):
            # It has just died; its successor is told instead.
            with suppress(OSError):
                self._keeper.wait(1)
            self._keeper_ended()
            send(self._keeper, message)

    def _stop_keeper(self) -> None:
        if self._keeper is None:
            return
        dismiss(self._keeper)


def _signal(child: _Child, number: int) -> None:
    if child.pid:
        with suppress(ProcessLookupError):
            os.kill(child.pid, number)


def resolve(spec: WorkerSpec) -> Registry:
    """The registry of a spec. Raises `ConfigError`."""
    if isinstance(spec.registry, Registry):
        return spec.registry
    if spec.module is None:
        raise ConfigError("no handlers: name the module that registers them")
    return load_registry(spec.module, spec.registry)


def start_keeper(settings: Settings, fd: int, processes: int, slots: int) -> subprocess.Popen[bytes]:
    """A keeper process for the boards in `fd`. The configuration goes through its standard input, not its command line."""
    config = KeeperConfig(
        database=DatabaseSettings.of(settings),
        maintenance=MaintenanceSettings.of(settings),
        fd=fd,
        processes=processes,
        slots=slots,
        heartbeat_interval=settings.heartbeat_interval,
        log_level=settings.log_level,
        log_format=settings.log_format,
    )
    keeper = subprocess.Popen(
        [sys.executable, "-m", "dhara.worker.keeper"],
        stdin=subprocess.PIPE,
        pass_fds=(fd,),
        process_group=0,
        env=keeper_environment(),
    )
    _write(keeper.stdin, msgspec.json.encode(config))
    return keeper


def keeper_environment() -> dict[str, str]:
    """The environment of a keeper process."""
    path = os.pathsep.join(path for path in sys.path if path)
    return {**_MALLOC, **os.environ, "PYTHONPATH": path}


def send(keeper: subprocess.Popen[bytes], message: Died | Leave) -> bool:
    """False if the keeper is gone."""
    try:
        _write(keeper.stdin, msgspec.json.encode(message))
    except (OSError, ValueError):
        return False
    return True


def dismiss(keeper: subprocess.Popen[bytes]) -> None:
    """Tell the keeper to leave, and see that it does."""
    send(keeper, Leave())
    hang_up(keeper)
    try:
        keeper.wait(10)
    except subprocess.TimeoutExpired:
        keeper.kill()
        keeper.wait()


def hang_up(keeper: subprocess.Popen[bytes] | None) -> None:
    """Close our end of the keeper's input."""
    if keeper is not None and keeper.stdin is not None:
        with suppress(OSError):
            keeper.stdin.close()


def _write(stream: IO[bytes] | None, line: bytes) -> None:
    assert stream is not None
    stream.write(line + b"\n")
    stream.flush()
