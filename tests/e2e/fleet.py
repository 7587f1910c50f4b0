"""Real workers as processes, and what may happen to them. Constants are the test profile of `trust.md` 1.1."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dhara.domain.task import NewTask
from dhara.store.ids import new_id
from dhara.store.pool import Pool
from dhara.store.tasks import Tasks
from tests import invariants
from tests.waiting import eventually

H, L, R, C, P, G, K = 1.0, 6.0, 1.0, 2.0, 0.5, 5.0, 2.0
PROFILE = {
    "DHARA_HEARTBEAT_INTERVAL": f"{H}s",
    "DHARA_STALE_AFTER": f"{L}s",
    "DHARA_REAPER_INTERVAL": f"{R}s",
    "DHARA_CONFIRM_AFTER": f"{C}s",
    "DHARA_POLL_INTERVAL": f"{P}s",
    "DHARA_SHUTDOWN_TIMEOUT": f"{G}s",
    "DHARA_KILL_GRACE": f"{K}s",
    "DHARA_BASE_BACKOFF": "100ms",
}


class Crew:
    """One `dhara worker` command with all its processes."""

    def __init__(self, dsn: str, slots: int, processes: int, module: str = "handlers", **environ: str) -> None:
        self.environ = os.environ | PROFILE | {"DHARA_DATABASE_URL": dsn} | environ
        self.command = [sys.executable, "-m", "dhara", "worker", module]
        self.command += ["--concurrency", str(slots), "--processes", str(processes)]
        self.log: list[bytes] = []
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self.log_file = open(os.memfd_create("log"), "w+b")  # noqa: SIM115
        return subprocess.Popen(self.command, env=self.environ, cwd=Path(__file__).parent, stderr=self.log_file)

    @property
    def said(self) -> str:
        """All that the processes have logged."""
        with suppress(OSError):
            return os.pread(self.log_file.fileno(), 10_000_000, 0).decode()
        return ""

    def children(self) -> list[int]:
        with suppress(FileNotFoundError):
            text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
            return [int(pid) for pid in text.split()]
        return []

    def keeper(self) -> int:
        """The keeper's pid; 0 while there is none."""
        return next((pid for pid in self.children() if b"dhara.worker.keeper" in _command(pid)), 0)

    def runners(self) -> list[int]:
        return [pid for pid in self.children() if b"dhara.worker.keeper" not in _command(pid)]

    def everybody(self) -> list[int]:
        """Every process of the worker, the supervisor first."""
        return [self.process.pid, *_descendants(self.process.pid)]

    def kill(self, *pids: int, number: int = signal.SIGKILL) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self, timeout: float = G + 30) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def end(self) -> None:
        """Whatever still lives, dies."""
        left = self.everybody()
        if self.process.poll() is None:
            self.kill(*left, number=signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(G + 10)
            except subprocess.TimeoutExpired:
                self.kill(*left)
                self.process.wait(5)
        self.log_file.close()


@contextmanager
def crew(dsn: str, slots: int = 50, processes: int = 1, module: str = "handlers", **environ: str) -> Iterator[Crew]:
    """A worker at work with the handlers of `module`; at the end none of its processes is left."""
    made = Crew(dsn, slots, processes, module, **environ)
    try:
        yield made
    finally:
        made.end()


class Desk:
    """What stands before the workers: enqueue, count, look."""

    def __init__(self, pool: Pool) -> None:
        self.db = pool
        self.tasks = Tasks(pool)

    async def enqueue(self, type: str, payload: str = "{}", n: int = 1, **options: Any) -> list[Any]:
        new = [NewTask(id=new_id(), type=type, payload=payload, **options) for _ in range(n)]
        await self.tasks.enqueue(new)
        return [task.id for task in new]

    async def count(self, where: str) -> int:
        return int(await self.db.fetchval(f"SELECT count(*) FROM dhara.tasks WHERE {where}"))

    async def until(self, where: str, n: int, timeout: float) -> None:
        """Until exactly `n` tasks match."""

        async def so_many() -> bool:
            return await self.count(where) == n

        await eventually(so_many, timeout, f"{n} tasks with {where}")

    async def until_final(self, timeout: float) -> None:
        await self.until("status IN ('PENDING', 'RUNNING')", 0, timeout)

    async def events(self) -> dict[str, int]:
        rows = await self.db.fetch("SELECT event, count(*) FROM dhara.task_logs GROUP BY event")
        return {row[0]: row[1] for row in rows}

    async def starts_are_explained(self) -> None:
        """I13: each start beyond a task's first follows from a logged event; and I1 to I9 hold."""
        events = await self.events()
        back = sum(events.get(name, 0) for name in ("RETRIED", "SNOOZED", "RELEASED", "REAPED", "REVIVED"))
        started = await self.count("attempts > 0")
        assert events["CLAIMED"] == started + back, events
        assert await violations(self.db) == {}


async def violations(db: Any) -> dict[str, Any]:
    """Of the invariants that need nothing but the database."""
    checks: dict[str, Any] = {"i2": invariants.i2, "i3": invariants.i3, "i4": invariants.i4, "i5": invariants.i5}
    checks |= {"i6": invariants.i6, "i7": invariants.i7, "i8": invariants.i8, "i9": invariants.i9}
    found = {name: await check(db) for name, check in checks.items()}
    return {name: rows for name, rows in found.items() if rows}


def _command(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(text), *_descendants(int(text))]
    return found


def alive(pids: Sequence[int]) -> list[int]:
    """Those that still run; zombies do not."""
    found = []
    for pid in pids:
        with suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
                found.append(pid)
    return found
