"""Failover: the primary dies, its synchronous standby takes over (F30)."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any

from chaos.faults.row import fault

if TYPE_CHECKING:
    from chaos.arena import Arena


@fault("F30", "failover", "kill -9 of the primary, its synchronous standby is promoted", every=25.0, needs="standby")
async def failover(arena: Arena, rng: random.Random) -> dict[str, Any]:
    assert arena.pair is not None
    start = time.monotonic()
    arena.pair.kill_primary()
    await asyncio.to_thread(arena.pair.promote)
    took = time.monotonic() - start
    await asyncio.to_thread(arena.pair.follow)
    return {"promotion": round(took, 2)}
