"""Failover: the primary dies, its standby takes over: a synchronous one (F30), or one that lags behind (F31)."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any

from chaos import measure
from chaos.checker import within
from chaos.faults.row import fault

if TYPE_CHECKING:
    from chaos.arena import Arena


@fault(
    "F30",
    "failover",
    "kill -9 of the primary, its synchronous standby is promoted",
    every=25.0,
    most=5.0,
    needs="standby",
)
async def failover(arena: Arena, rng: random.Random) -> dict[str, Any]:
    assert arena.pair is not None
    start = time.monotonic()
    arena.pair.kill_primary()
    await asyncio.to_thread(arena.pair.promote)
    took = time.monotonic() - start
    await asyncio.to_thread(arena.pair.follow)
    return {"promotion": round(took, 2)}


@fault(
    "F31", "failover", "kill -9 of the primary, whose asynchronous standby has not heard of the last two seconds",
    every=28.0, needs="standby", bar="each id that is missing is named, none else; no lease from before accepted",
)  # fmt: skip
async def lossy_failover(arena: Arena, rng: random.Random) -> dict[str, Any]:
    """The invariants tell: a lease that is accepted after the promotion must be of a claim that survived it."""
    assert arena.pair is not None
    cut = await asyncio.to_thread(arena.pair.fall_behind)
    await asyncio.sleep(2.0)
    before = set(arena.workload.times)
    arena.pair.kill_primary()
    died = time.time()
    await asyncio.to_thread(arena.pair.promote)
    # An acknowledgement that was on its way as the primary died may be noted a moment later.
    arena.rewound.append((cut, died + 1.0))
    known = await _known(arena)
    missing = before - known
    gone = [id for id in missing if cut <= arena.workload.times[id] <= died + 1.0]
    others = [id for id in missing if not within(arena.workload.times[id], arena.rewound)]
    await asyncio.to_thread(arena.pair.follow)
    return {
        "promotion": round(time.time() - died, 2), "missing": len(gone),
        "measured": f"{len(gone)} acknowledged ids of the lost seconds are missing and named, {len(others)} others",
        "met": not others,
    }  # fmt: skip


async def _known(arena: Arena) -> set[Any]:
    async with measure.session(arena) as db:
        return {row[0] for row in await db.fetch("SELECT id FROM dhara.tasks")}
