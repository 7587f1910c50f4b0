"""A new release while the old one works: the schema first, then the new workers, then the old ones leave."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from chaos import measure, release
from chaos.faults.row import fault
from tests.e2e.kit import G
from tests.factories import Connection
from tests.waiting import eventually

if TYPE_CHECKING:
    from chaos.arena import Arena

_WAITS = """SELECT coalesce(max(extract(epoch FROM clock_timestamp() - query_start)), 0)::float8 FROM pg_stat_activity
            WHERE wait_event_type = 'Lock' AND query ~* '^\\s*(--[^\\n]*\\n\\s*)*(ALTER|CREATE|DROP|LOCK|COMMENT)'"""
_WRONG = """SELECT count(*) FROM dhara.attempts WHERE outcome IN ('RETRIED', 'DEAD', 'REAPED')
            AND task_id NOT IN (SELECT id FROM dhara.tasks WHERE type IN ('flaky', 'fail'))"""


@fault(
    "F35", "upgrade", "workers of the release before are at work: migrate, today's workers join, the others leave",
    every=45.0, needs="older", lasting=True, bar="no failure counted, no DDL waits for a lock for more than 2 s",
)  # fmt: skip
async def upgraded(arena: Arena, rng: random.Random) -> dict[str, Any]:
    older = arena.older
    assert older is not None
    steps = "SELECT count(*) FROM dhara.migrations"
    async with measure.session(arena) as db:
        before, start = await db.fetchval(steps), await measure.now(db)
        if before != older.steps:
            return {"count": 0}  # it has been done already
        waited = await _migrate(arena, db)
        await asyncio.sleep(5.0)  # the old workers on the new schema
        old = [member.process for member in arena.members]
        for member in arena.members:
            member.start()
        beating = "SELECT count(*) FROM dhara.workers WHERE state = 'live' AND beat_seq > 0"
        wanted = 2 * len(old)

        async def all_beat() -> bool:
            return bool(await db.fetchval(beating) >= wanted)

        await eventually(all_beat, 60, "the new workers to beat beside the old")
        await asyncio.sleep(5.0)
        codes = [await process.stop(G + 30) for process in old]
        wrong = await db.fetchval(_WRONG)
        p99 = (await measure.since(arena, start)).p99
        after = await db.fetchval(steps)
    return {
        "from": older.commit, "exits": codes,
        "measured": f"schema {before} → {after} under workers of {older.commit}: {wrong} failures, longest wait of a DDL"
        f" {waited:.2f} s, start delay p99 {p99:.2f} s, the old workers' exit {sorted(set(codes))}",
        "met": not wrong and waited <= 2.0 and after > before and set(codes) == {0},
    }  # fmt: skip


async def _migrate(arena: Arena, db: Connection) -> float:
    """`dhara migrate up`; the longest time that one of its statements waited for a lock, as seen from outside."""
    migrating = asyncio.create_task(asyncio.to_thread(release.migrate, arena.judged))
    waited = 0.0
    while not migrating.done():
        waited = max(waited, await db.fetchval(_WAITS))
        await asyncio.sleep(0.02)
    await migrating
    return waited
