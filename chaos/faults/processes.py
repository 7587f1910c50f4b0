"""Processes: killed, stopped, blocked, hung, poisoned, drained."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from typing import TYPE_CHECKING, Any

from chaos import measure
from chaos.faults.row import fault
from tests.e2e.kit import G, L
from tests.waiting import eventually

if TYPE_CHECKING:
    from chaos.arena import Arena, Member


@fault("F1", "kill -9", "a runner is killed", every=2.0, most=3.0)
async def runner_killed(arena: Arena, rng: random.Random) -> dict[str, Any]:
    member = arena.pick(rng)
    pids = sorted(member.process.runners)
    if not pids:
        return {"count": 0}
    victim = rng.choice(pids)
    arena.killed([victim])
    member.process.signal(signal.SIGKILL, victim)
    return {"worker": member.index}


@fault("F2", "kill -9", "a whole worker is killed, and started again after a second", every=12.0)
async def worker_killed(arena: Arena, rng: random.Random) -> dict[str, Any]:
    member = arena.pick(rng)
    arena.excuse(member)
    family = member.process.family
    member.process.signal(signal.SIGKILL, *family)
    await asyncio.sleep(1.0)
    member.start()
    return {"worker": member.index, "processes": len(family)}


@fault("F3", "kill -9", "a keeper alone is killed", every=3.0)
async def keeper_killed(arena: Arena, rng: random.Random) -> dict[str, Any]:
    member = arena.pick(rng)
    keepers = member.process.keepers
    if not keepers:
        return {"count": 0}
    member.process.signal(signal.SIGKILL, *keepers)
    return {"worker": member.index}


async def _stop(arena: Arena, member: Member, seconds: float) -> None:
    stopped = member.process.family
    since = time.monotonic()
    member.process.signal(signal.SIGSTOP, *stopped)
    try:
        await asyncio.sleep(seconds)
    finally:
        member.process.signal(signal.SIGCONT, *stopped)
        arena.stood += [(pid, since, time.monotonic()) for pid in stopped]


@fault("F4", "SIGSTOP/CONT", "a whole worker stands still for longer than its lease", every=22.0, lasting=True)
async def worker_stopped(arena: Arena, rng: random.Random) -> dict[str, Any]:
    member = arena.pick(rng)
    arena.excuse(member)
    await _stop(arena, member, arena.lease * 1.5)
    return {"worker": member.index}


@fault("F4b", "SIGSTOP/CONT", "one process stands still for less than the lease", every=1.5)
async def process_stopped(arena: Arena, rng: random.Random) -> dict[str, Any]:
    member = arena.pick(rng)
    family = sorted(member.process.family)
    victim = family[rng.randrange(len(family))]
    member.process.signal(signal.SIGSTOP, victim)
    try:
        await asyncio.sleep(rng.uniform(0.1, 1.0))
    finally:
        member.process.signal(signal.SIGCONT, victim)
    return {"worker": member.index}


async def _occupy(arena: Arena, type: str, **payload: Any) -> dict[str, Any]:
    start = time.monotonic()
    await arena.workload.submit(type, **payload)
    await asyncio.sleep(payload.get("seconds", 0.0))
    return {"seconds": round(time.monotonic() - start, 1)}


@fault("F5", "blocked loop", "a handler blocks the event loop for longer than the lease", every=14.0, lasting=True)
async def loop_blocked(arena: Arena, rng: random.Random) -> dict[str, Any]:
    return await _occupy(arena, "block", seconds=arena.lease * 1.5)


@fault("F6", "held GIL", "a handler holds the GIL for longer than the lease", every=18.0, lasting=True)
async def gil_held(arena: Arena, rng: random.Random) -> dict[str, Any]:
    return await _occupy(arena, "gil", seconds=arena.lease * 1.2)


@fault("F7", "hang", "a handler never ends", every=8.0)
async def handler_hangs(arena: Arena, rng: random.Random) -> dict[str, Any]:
    return await _occupy(arena, "hang")


@fault(
    "F8",
    "poison",
    "a task kills every process that runs it",
    every=5.0,
    bar="DEAD after three crashes, no innocent with it",
)
async def poisoned(arena: Arena, rng: random.Random) -> dict[str, Any]:
    return await _occupy(arena, "poison", how=rng.choice(["exit", "segfault"]))


@fault("F10", "drain", "SIGTERM under load; a new worker after it", every=12.0, bar="exit 0 within G + 1 = 6 s")
async def drained(arena: Arena, rng: random.Random) -> dict[str, Any]:
    return await _told_to_end(arena, rng, 1, G + 1, 0)


@fault(
    "F12", "drain", "SIGTERM twice, a second apart; a new worker after it", every=12.0,
    bar="exit within 3 s of the second",
)  # fmt: skip
async def drained_at_once(arena: Arena, rng: random.Random) -> dict[str, Any]:
    return await _told_to_end(arena, rng, 2, 3.0, 128 + signal.SIGTERM)


@fault(
    "F13", "drain", "rolling restart: the new worker first, then SIGTERM for the old", every=10.0,
    bar="start delay p99 within 2 s",
)  # fmt: skip
async def rolled(arena: Arena, rng: random.Random) -> dict[str, Any]:
    member = arena.pick(rng)
    async with measure.session(arena) as db:
        began = await measure.now(db)
    old = member.process
    member.start()
    start = time.monotonic()
    code = await old.stop(G + 30)
    took = time.monotonic() - start
    p99 = (await measure.since(arena, began)).p99
    return {
        "worker": member.index, "exit": code, "took": round(took, 2),
        "measured": f"start delay p99 {p99:.2f} s, exit {code}", "met": code == 0 and p99 <= 2.0,
    }  # fmt: skip


async def _told_to_end(arena: Arena, rng: random.Random, signals: int, most: float, wanted: int) -> dict[str, Any]:
    member = arena.pick(rng)
    # One that has hardly begun dies of the signal as any process does.
    await eventually(lambda: member.process.runners and member.process.keepers, 60, "the worker to be there")
    start = time.monotonic()
    for n in range(signals):
        if n and member.process.popen.poll() is None:
            await asyncio.sleep(1.0)
        start = time.monotonic()
        member.process.signal(signal.SIGTERM)
    code = await member.process.ended(G + 30)
    took = time.monotonic() - start
    member.start()
    # Without anything left to wait for, the first signal was enough; one that comes after all has ended kills what is left.
    met = took <= most and code in (wanted, 0)
    return {
        "worker": member.index, "exit": code, "took": round(took, 2),
        "measured": f"exit {code} after {took:.1f} s", "met": met,
    }  # fmt: skip


@fault(
    "F4c", "SIGSTOP/CONT", "most workers at once stand still for longer than their leases", every=13.0, lasting=True,
    bar="leases lost, stale results refused, effects exactly once",
)  # fmt: skip
async def workers_stopped(arena: Arena, rng: random.Random) -> dict[str, Any]:
    chosen = rng.sample(arena.members, max(1, len(arena.members) - 1))
    for member in chosen:
        arena.excuse(member)
    runners = sum(len(member.process.runners) for member in chosen)
    await asyncio.gather(*(_stop(arena, member, arena.lease * 1.25) for member in chosen))
    return {"workers": len(chosen), "count": runners}


assert L < 10  # the intervals above are those of the test profile
