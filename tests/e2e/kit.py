"""Real worker processes for a test, and the facts to wait for.

Every process of a fleet carries a mark in its environment, so that what a worker leaves behind is found whoever started
it; a fleet that leaves anything behind fails its test.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from dhara.domain.task import NewTask
from dhara.store.ids import new_id
from dhara.store.tasks import Tasks
from tests.conftest import LEAN
from tests.factories import Connection
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
MARK = "DHARA_TEST_FLEET"

# `trust.md` 1.1: the test profile.
H, L, R, C, P, G, K = 1.0, 6.0, 1.0, 2.0, 0.5, 5.0, 2.0
PROFILE = {
    "DHARA_HEARTBEAT_INTERVAL": "1s",
    "DHARA_STALE_AFTER": "6s",
    "DHARA_REAPER_INTERVAL": "1s",
    "DHARA_CONFIRM_AFTER": "2s",
    "DHARA_POLL_INTERVAL": "500ms",
    "DHARA_SHUTDOWN_TIMEOUT": "5s",
    "DHARA_KILL_GRACE": "2s",
    "DHARA_POOL_MAX": "4",
}


# A shorter lease, for tests that must outlast it.
SHORT = {"heartbeat_interval": "700ms", "stale_after": "4s", "confirm_after": "2s"}
SHORT_LEASE = 4.0


class WorkerProcess:
    """One `dhara worker`: supervisor, keeper, runners."""

    def __init__(self, popen: subprocess.Popen[bytes], log: Path) -> None:
        self.popen = popen
        self.pid = popen.pid
        self.log_path = log

    @property
    def keepers(self) -> list[int]:
        """The keeper; for a moment none or two."""
        return [pid for pid in children(self.pid) if is_keeper(pid)]

    @property
    def runners(self) -> list[int]:
        return [pid for pid in children(self.pid) if not is_keeper(pid)]

    @property
    def family(self) -> list[int]:
        """The supervisor and all below it."""
        found = [self.pid]
        for pid in found:
            found += children(pid)
        return found

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def signal(self, number: int, *pids: int) -> None:
        """Send a signal to these processes, or to the supervisor alone."""
        for pid in pids or (self.pid,):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    async def ended(self, timeout: float = 60) -> int:
        """The exit code, once it has ended."""
        await eventually(lambda: self.popen.poll() is not None, timeout, f"worker {self.pid} to end")
        return int(self.popen.returncode)

    async def stop(self, timeout: float = 60) -> int:
        """SIGTERM; the exit code."""
        self.signal(signal.SIGTERM)
        return await self.ended(timeout)


class Fleet:
    """All worker and server processes of a test, on one database."""

    def __init__(self, dsn: str, folder: Path) -> None:
        self.dsn = dsn
        self.mark = uuid4().hex
        self.workers: list[WorkerProcess] = []
        self._folder = folder

    def start(self, *arguments: str, module: str = "tests.e2e.handlers", **settings: str) -> WorkerProcess:
        """Start `dhara worker MODULE ARGUMENTS`; `settings` by their names in lower case, such as `stale_after="3s"`."""
        worker = self._start("worker", module, *arguments, **settings)
        self.workers.append(worker)
        return worker

    async def serve(self, port: int) -> WorkerProcess:
        """Start `dhara server`; return once it answers."""
        server = self._start("server", "--no-worker", "--port", str(port))
        self.workers.append(server)
        await eventually(lambda: answers(port), 60, f"a server on port {port}")
        return server

    def _start(self, *arguments: str, **settings: str) -> WorkerProcess:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("DHARA_") and k != "PYTEST_CURRENT_TEST"}
        environment |= PROFILE | {f"DHARA_{name.upper()}": value for name, value in settings.items()}
        path = os.pathsep.join([str(LEAN), str(ROOT), *(os.path.abspath(p) for p in sys.path if p)])
        environment |= {"DHARA_DATABASE_URL": self.dsn, MARK: self.mark, "PYTHONPATH": path}
        log = self._folder / f"worker-{len(self.workers)}.log"
        with log.open("wb") as output:
            popen = subprocess.Popen(
                [sys.executable, "-m", "dhara", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self._folder,
                start_new_session=True,
            )
        return WorkerProcess(popen, log)

    async def end(self) -> None:
        """Stop what still runs; fail if anything is left behind."""
        for worker in self.workers:
            if worker.popen.poll() is None:
                worker.signal(signal.SIGCONT, *worker.family)
                worker.signal(signal.SIGTERM)
        try:
            for worker in self.workers:
                await worker.ended()
            await eventually(lambda: not self.left(), what="every process of the fleet to be gone")
        finally:
            for pid in self.left():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for worker in self.workers:
                worker.popen.wait()

    def left(self) -> list[int]:
        """Living processes, and zombies, of this fleet."""
        mark = f"{MARK}={self.mark}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with suppress(OSError):
                    if mark in (entry / "environ").read_bytes():
                        found.append(int(entry.name))
        return found

    def logs(self) -> str:
        return "\n".join(f"--- worker {n}, process {w.pid}\n{w.log}" for n, w in enumerate(self.workers))


class Facts:
    """The database's facts. Times are the database's."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._connection: Connection | None = None

    async def connection(self) -> Connection:
        """One that works, a new one after an outage."""
        if self._connection is None or self._connection.is_closed():
            self._connection = await asyncpg.connect(self.dsn, timeout=30)
        return self._connection

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def enqueue(self, type: str, payload: Any = None, *, times: int = 1, **fields: Any) -> list[UUID]:
        """Enqueue the same task `times` times, without waking anybody."""
        text = json.dumps(payload or {})
        ids: list[UUID] = []
        while len(ids) < times:
            new = [NewTask(id=new_id(), type=type, payload=text, **fields) for _ in range(min(1_000, times - len(ids)))]
            await Tasks(await self.connection()).enqueue(new)
            ids += [task.id for task in new]
        return ids

    async def one(self, query: str, *args: Any) -> Any:
        """The first column of the first row."""
        return await (await self.connection()).fetchval(query, *args)

    async def rows(self, query: str, *args: Any) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await (await self.connection()).fetch(query, *args)]

    async def until(self, query: str, *args: Any, timeout: float = 60) -> None:
        """Return once the query's first column is true."""

        async def true() -> bool:
            try:
                return bool(await self.one(query, *args))
            except (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.CannotConnectNowError):
                return False

        await eventually(true, timeout, " ".join(query.split()))

    async def running(self, n: int, timeout: float = 60) -> None:
        """Return once exactly `n` tasks are RUNNING."""
        await self.until("SELECT count(*) = $1 FROM dhara.tasks WHERE status = 'RUNNING'", n, timeout=timeout)

    async def begun(self, n: int, timeout: float = 60) -> None:
        """Return once exactly `n` tasks are at work in slots, by the workers' beats.

        A task is RUNNING from its claim on, and its worker may not have read the answer to that yet: whom a signal meets then,
        gives back what it has not begun.
        """
        await self.until("SELECT sum(running) = $1 FROM dhara.workers", n, timeout=timeout)

    async def all_final(self, ids: Sequence[UUID] | None = None, timeout: float = 60) -> None:
        """Return once all tasks (or these) are final."""
        query = "SELECT bool_and(status NOT IN ('PENDING', 'RUNNING')) FROM dhara.tasks"
        if ids is None:
            await self.until(query, timeout=timeout)
        else:
            await self.until(f"{query} WHERE id = ANY ($1)", list(ids), timeout=timeout)

    async def now(self) -> Any:
        return await self.one("SELECT clock_timestamp()")

    async def states(self) -> dict[str, int]:
        """Tasks by state."""
        return dict(await self.rows("SELECT status, count(*) FROM dhara.tasks GROUP BY status"))

    async def events(self) -> dict[str, int]:
        """Log rows by event, but for the ordinary ones."""
        query = "SELECT event, count(*) FROM dhara.task_logs WHERE event NOT IN ('CLAIMED', 'COMPLETED') GROUP BY event"
        return dict(await self.rows(query))

    async def most_attempts(self) -> int:
        return int(await self.one("SELECT max(attempts) FROM dhara.tasks"))


def answers(port: int) -> bool:
    """Whether anybody listens there."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def children(pid: int) -> list[int]:
    """Live child processes, whichever of its threads made them, in no order."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(child) for child in thread.read_text().split()]
    return [child for child in found if state(child) not in ("", "Z", "X")]


def state(pid: int) -> str:
    """The process's state letter; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def is_keeper(pid: int) -> bool:
    try:
        return b"dhara.worker.keeper" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __call__(self) -> float:
        return time.monotonic() - self._start


async def pause(seconds: float) -> None:
    """Time itself is what the test is about: an outage's length, a lease that passes."""
    await asyncio.sleep(seconds)
