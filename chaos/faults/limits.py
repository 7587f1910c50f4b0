"""Not enough of something: memory, descriptors, patience."""

from __future__ import annotations

import asyncio
import random
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chaos import measure
from chaos.faults.row import fault
from tests.e2e.kit import G
from tests.waiting import eventually

if TYPE_CHECKING:
    from chaos.arena import Arena, Member

GROUPS = Path("/sys/fs/cgroup/memory")
_MEMORY = 300  # MiB


@contextmanager
def confined(member: Member, megabytes: int) -> Iterator[None]:
    """The worker's processes, and those to come, share so much memory (cgroup v1); above it the kernel kills one."""
    group = GROUPS / f"dhara-chaos-{member.process.pid}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(f"{megabytes}M")
        for pid in member.process.family:
            with suppress(OSError):
                (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for left in (group / "cgroup.procs").read_text().split():
            with suppress(OSError):
                (GROUPS / "cgroup.procs").write_text(left)
        with suppress(OSError):
            group.rmdir()


@fault(
    "F9", "out of memory", f"a handler wants more than the {_MEMORY} MiB of its workers' cgroup", every=16.0, lasting=True,
    bar="a new runner within 2 s, DEAD after three crashes, no innocent with it",
)  # fmt: skip
async def out_of_memory(arena: Arena, rng: random.Random) -> dict[str, Any]:
    groups = [confined(member, _MEMORY) for member in arena.members]
    for group in groups:
        group.__enter__()
    try:
        before = {pid for member in arena.members for pid in member.process.runners}
        await arena.workload.submit("hog", megabytes=2 * _MEMORY)
        waits: list[float] = []
        end = time.monotonic() + 14.0
        while time.monotonic() < end and not await _final(arena, "hog"):
            waits += await _replaced(arena, before)
            await asyncio.sleep(0.05)
        ended = await _final(arena, "hog")
        async with measure.session(arena) as db:
            crashes = await db.fetchval("SELECT max(crashes) FROM dhara.tasks WHERE type = 'hog'")
    finally:
        for group in groups:
            group.__exit__(None, None, None)
    worst = max(waits, default=99.0)
    return {
        "by": "cgroup v1 memory.limit_in_bytes",
        "measured": f"DEAD after {crashes} kills by the kernel, a new runner after {worst:.1f} s at worst",
        "met": ended and crashes == 3 and worst <= 2.0,
    }  # fmt: skip


async def _replaced(arena: Arena, known: set[int]) -> list[float]:
    """How long it took until a runner that is gone had a successor."""
    now = {pid for member in arena.members for pid in member.process.runners}
    gone = known - now
    if not gone:
        known |= now
        return []
    start = time.monotonic()
    wanted = len(known)

    def back() -> bool:
        found = {pid for member in arena.members for pid in member.process.runners}
        return len(found) >= wanted

    with suppress(Exception):
        await eventually(back, 10, "a new runner")
    known.clear()
    known |= {pid for member in arena.members for pid in member.process.runners}
    return [time.monotonic() - start]


async def _final(arena: Arena, type: str) -> bool:
    async with measure.session(arena) as db:
        query = "SELECT bool_and(status IN ('DEAD', 'COMPLETED', 'CANCELED')) FROM dhara.tasks WHERE type = $1"
        return bool(await db.fetchval(query, type))


@fault(
    "F11", "drain", "SIGTERM while a handler does not let itself be canceled; a new worker after it", every=16.0,
    bar="exit within G + 2 = 7 s, runs again elsewhere within 2 s",
)  # fmt: skip
async def stubborn(arena: Arena, rng: random.Random) -> dict[str, Any]:
    task = await arena.workload.submit("stubborn", seconds=2 * G)
    member = await _holder(arena, task)
    start = time.monotonic()
    code = await member.process.stop(G + 30)
    took = time.monotonic() - start
    member.start()
    async with measure.session(arena) as db:
        query = """SELECT extract(epoch FROM n.started_at - a.ended_at)::float8 FROM dhara.attempts AS a
                   JOIN dhara.attempts AS n ON n.task_id = a.task_id AND n.attempt = a.attempt + 1
                   WHERE a.task_id = $1 AND a.outcome = 'RELEASED'"""

        async def again() -> bool:
            return await db.fetchval(query, task) is not None

        with suppress(Exception):
            await eventually(again, 10, "it to run again")
        waited = await db.fetchval(query, task)
    shown = "never" if waited is None else f"after {waited:.1f} s"
    return {
        "exit": code, "measured": f"exit {code} after {took:.1f} s, ran again {shown}",
        "met": took <= G + 2 and waited is not None and waited <= 2.0,
    }  # fmt: skip


async def _holder(arena: Arena, task: Any) -> Member:
    """The worker that runs this task."""
    async with measure.session(arena) as db:
        query = "SELECT w.pid FROM dhara.tasks AS t JOIN dhara.workers AS w ON w.id = t.locked_by WHERE t.id = $1"
        end = time.monotonic() + 10
        while time.monotonic() < end:
            pid = await db.fetchval(query, task)
            for member in arena.members:
                if pid in member.process.runners:
                    return member
            await asyncio.sleep(0.05)
    raise TimeoutError("nobody runs it")


@fault(
    "F15", "few descriptors", "a worker starts with 64 descriptors; another has none left for ten seconds while its"
    " sessions are terminated", every=22.0, lasting=True, bar="no process exits",
)  # fmt: skip
async def few_descriptors(arena: Arena, rng: random.Random) -> dict[str, Any]:
    first, second = rng.sample(arena.members, 2)
    old = first.process
    first.start()
    _limit(first.process.pid, 64)
    await old.stop(G + 30)
    family = second.process.family
    for pid in family:
        _limit(pid, len(list(Path(f"/proc/{pid}/fd").iterdir())))
    async with measure.session(arena) as db:
        await db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'dhara%'"
            " AND pid <> pg_backend_pid()"
        )
    await asyncio.sleep(10.0)
    for pid in second.process.family:
        _limit(pid, 1024)
    gone = set(family) - set(second.process.family)
    alive = first.process.popen.poll() is None and second.process.popen.poll() is None
    return {"measured": f"{len(gone)} processes exited", "met": alive and not gone}


def _limit(pid: int, most: int) -> None:
    with suppress(OSError):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, 4096))
