"""What other sessions do to the tables: old snapshots, readers, DDL, no vacuum, wrong statistics, a full notify queue."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg
import httpx

from chaos import alerts, measure
from chaos.faults.row import fault
from dhara.errors import DharaError
from dhara.store import migrate
from dhara.store.migrate import Migration

if TYPE_CHECKING:
    from chaos.arena import Arena

_DEAD = "SELECT n_dead_tup FROM pg_stat_user_tables WHERE schemaname = 'dhara' AND relname = 'tasks'"
_VACUUMS = """SELECT n_dead_tup, autovacuum_count FROM pg_stat_user_tables
              WHERE schemaname = 'dhara' AND relname = 'tasks'"""
_CALM = 8.0
_RELEASED = 120.0  # seconds after its end in which dead tuples must become few


@fault(
    "F23", "held xmin", "a transaction holds its snapshot for ten minutes", every=60.0, lasting=True,
    bar="95 % of the rate, claim p99 at most 3 ×; 2 min after it at the latest dead tuples below 10 % of the most",
)  # fmt: skip
async def snapshot_held(arena: Arena, rng: random.Random) -> dict[str, Any]:
    seconds = arena.size("F23")
    before = await measure.claims(arena)
    calm, start = await measure.calm_and(arena, _calm_before(seconds))
    begun = await measure.claims(arena)
    async with measure.session(arena) as db, db.transaction(isolation="repeatable_read"):
        await db.fetchval("SELECT pg_current_xact_id()")
        held = await _sampled(arena, seconds)
        during = await measure.since(arena, start)
    was, came_to = measure.p99_between(before, begun), measure.p99_between(begun, await measure.claims(arena))
    most = max(sample.dead for sample in held)
    after = await _sampled(arena, _RELEASED, enough=0.1 * most)
    left, in_vain = after[-1], held[-1].vacuums - held[0].vacuums
    came = left.vacuums - held[-1].vacuums
    return {
        "held": [vars(sample) for sample in held], "after": [vars(sample) for sample in after],
        "measured": f"held for {seconds} s at {calm.rate:.0f}/s: claim p99 {1e3 * was:.0f} → {1e3 * came_to:.0f} ms,"
        f" {during.against(calm)}; dead tuples {most:,} at most,"
        f" {left.dead:,} {left.at:.0f} s after its end (autovacuum came {in_vain} times meanwhile, {came} after)",
        "met": during.rate >= 0.95 * calm.rate and came_to <= 3 * was and left.dead < 0.1 * most,
    }  # fmt: skip


def _calm_before(seconds: float) -> float:
    """How long a calm to compare with what lasts so long."""
    return max(_CALM, seconds / 20)


@dataclass(frozen=True)
class _Sample:
    """The tasks table, `at` seconds after the start: its dead tuples, and how often autovacuum has been there so far."""

    at: float
    dead: int
    vacuums: int


async def _sampled(arena: Arena, seconds: float, enough: float = -1.0) -> list[_Sample]:
    """A sample each two seconds, for so many seconds, or until dead tuples are fewer than `enough`."""
    found: list[_Sample] = []
    start = time.monotonic()
    async with measure.session(arena) as db:
        while (gone := time.monotonic() - start) < seconds and (not found or found[-1].dead >= enough):
            row = await db.fetchrow(_VACUUMS)
            assert row is not None
            found.append(_Sample(round(gone, 1), row[0], row[1]))
            await asyncio.sleep(2.0)
    return found


@fault(
    "F24", "readers", "four analytical readers scan tasks and history in repeatable read", every=35.0, lasting=True,
    bar="90 % of the rate",
)  # fmt: skip
async def readers(arena: Arena, rng: random.Random) -> dict[str, Any]:
    calm, start = await measure.calm_and(arena, _CALM)
    scans = await asyncio.gather(*(_scan(arena, 20.0) for _ in range(4)))
    during = await measure.since(arena, start)
    return {
        "scans": sum(scans), "measured": f"{during.against(calm)}; {sum(scans)} scans",
        "met": during.rate >= 0.9 * calm.rate,
    }  # fmt: skip


async def _scan(arena: Arena, seconds: float) -> int:
    done, end = 0, time.monotonic() + seconds
    async with measure.session(arena) as db, db.transaction(isolation="repeatable_read"):
        while time.monotonic() < end:
            await db.fetch(
                "SELECT type, status, count(*), sum(length(payload::text)) FROM dhara.tasks GROUP BY 1, 2 ORDER BY 1, 2"
            )
            await db.fetch("SELECT event, count(*), max(at) FROM dhara.task_history GROUP BY 1")
            done += 1
    return done


@fault(
    "F25", "no vacuum", "autovacuum is off for half an hour", every=260.0, needs="server",
    lasting=True, bar="claim p99 at most 5 ×, the alert DharaDeadRows sees it",
)  # fmt: skip
async def no_vacuum(arena: Arena, rng: random.Random) -> dict[str, Any]:
    seconds = arena.size("F25")
    before = await measure.claims(arena)
    calm, _ = await measure.calm_and(arena, _calm_before(seconds))
    was = measure.p99_between(before, await measure.claims(arena))
    async with measure.session(arena) as db:
        # Per table, since dhara's tables have settings of their own.
        await _vacuum(db, "false")
        try:
            seen = await _until_seen(arena, seconds - 30.0)
            late, before = await measure.now(db), await measure.claims(arena)
            await asyncio.sleep(30.0)
            came_to = measure.p99_between(before, await measure.claims(arena))
            during, dead = await measure.since(arena, late), await db.fetchval(_DEAD)
        finally:
            await _vacuum(db, "true")
    when = "never" if seen is None else f"after {seen:.0f} s"
    return {
        "measured": f"off for {seconds / 60:g} min at {calm.rate:.0f}/s: claim p99 {1e3 * was:.0f} → {1e3 * came_to:.0f} ms,"
        f" {during.against(calm)} in the last half minute; dead"
        f" tuples {dead:,}; the alert's condition held {when}",
        "met": came_to <= 5 * was and bool(seen),
    }  # fmt: skip


async def _until_seen(arena: Arena, seconds: float) -> float | None:
    """After how many of these seconds what DharaDeadRows waits for was so, by /metrics; 0 if from the start."""
    start, seen = time.monotonic(), None
    async with httpx.AsyncClient() as http:
        while (gone := time.monotonic() - start) < seconds:
            with suppress(httpx.HTTPError):
                text = (await http.get(f"{arena.url}/metrics", timeout=60)).text
                if seen is None and alerts.holds("DharaDeadRows", alerts.gauges(text)):
                    seen = gone if gone > 2.0 else 0.0
            await asyncio.sleep(5.0)
    return seen


async def _vacuum(db: Any, wanted: str) -> None:
    for table in ("tasks", "task_history", "workers", "counters"):
        await db.execute(f"ALTER TABLE dhara.{table} SET (autovacuum_enabled = {wanted})")


_DDL = Migration(9_999, "chaos", "ALTER TABLE dhara.tasks ADD COLUMN chaos int;", "")


@fault(
    "F27", "lock queue", "a long SELECT, and behind it a migration that alters tasks", every=30.0, lasting=True,
    bar="the migration gives up and tries again, enqueue p99 within 500 ms",
)  # fmt: skip
async def lock_queue(arena: Arena, rng: random.Random) -> dict[str, Any]:
    times: list[float] = []
    asking = asyncio.create_task(_enqueue_steadily(arena, times))
    try:
        async with measure.session(arena) as reader, measure.session(arena) as db:
            transaction = reader.transaction()
            await transaction.start()
            await reader.fetchval("SELECT count(*) FROM dhara.tasks")
            tries: list[float] = []
            altering = asyncio.create_task(migrate.patiently(lambda: _alter(db, tries), 30.0))
            await asyncio.sleep(12.0)
            waited = not altering.done()
            await transaction.rollback()
            await asyncio.wait_for(altering, 20)
            await db.execute("ALTER TABLE dhara.tasks DROP COLUMN chaos")
    finally:
        asking.cancel()
        with suppress(asyncio.CancelledError):
            await asking
    p99 = measure.at(sorted(times), 0.99)
    return {
        "tries": len(tries), "measured": f"enqueue p99 {1e3 * p99:.0f} ms of {len(times)}, worst {1e3 * max(times):.0f} ms; the"
        " migration went through once the reader had gone",
        "met": waited and p99 <= 0.5,
    }  # fmt: skip


async def _alter(db: asyncpg.Connection[asyncpg.Record], tries: list[float]) -> None:
    """As a step of `dhara migrate up`."""
    tries.append(time.monotonic())
    async with db.transaction():
        await migrate.ask_briefly(db)
        await db.execute(_DDL.up)


async def _enqueue_steadily(arena: Arena, times: list[float]) -> None:
    while True:
        start = time.monotonic()
        await arena.workload.once("noop")
        times.append(time.monotonic() - start)
        await asyncio.sleep(0.02)


@fault(
    "F36", "planner flip", "the statistics are those of empty tables, plans generic, then custom; all sessions plan anew",
    every=35.0, lasting=True, bar="start delay p99 at most 2 ×",
)  # fmt: skip
async def planner_flip(arena: Arena, rng: random.Random) -> dict[str, Any]:
    calm, _ = await measure.calm_and(arena, _CALM)
    worst = calm
    async with measure.session(arena) as db:
        try:
            for mode in ("force_generic_plan", "force_custom_plan"):
                await db.execute(f"ALTER SYSTEM SET plan_cache_mode = {mode}")
                await db.execute("SELECT pg_reload_conf()")
                await _forget_statistics(db)
                await db.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'dhara%'"
                )
                await asyncio.sleep(4.0)  # the sessions' end is row F18's
                start = await measure.now(db)
                await asyncio.sleep(8.0)
                found = await measure.since(arena, start)
                worst = found if found.p99 >= worst.p99 else worst
        finally:
            await db.execute("ALTER SYSTEM RESET plan_cache_mode")
            await db.execute("SELECT pg_reload_conf()")
    return {"measured": worst.against(calm), "met": worst.p99 <= 2 * calm.p99}


async def _forget_statistics(db: asyncpg.Connection[asyncpg.Record]) -> None:
    await db.execute(
        "DELETE FROM pg_statistic WHERE starelid IN ('dhara.tasks'::regclass, 'dhara.task_history'::regclass)"
    )
    await db.execute(
        "UPDATE pg_class SET reltuples = 0, relpages = 0 WHERE oid IN ('dhara.tasks'::regclass, 'dhara.task_history'::regclass)"
    )


@fault(
    "F44", "notify queue full", "the queue of notifications is full: a listener idles in a transaction", every=20.0,
    needs="notify", lasting=True, bar="no enqueue fails",
)  # fmt: skip
async def notify_full(arena: Arena, rng: random.Random) -> dict[str, Any]:
    before, failed, done = arena.workload.errors, 0, 0
    async with measure.session(arena) as listener, measure.session(arena) as db:
        await listener.execute("LISTEN chaos")
        transaction = listener.transaction()
        await transaction.start()
        await listener.fetchval("SELECT 1")
        usage = await _fill(db)
        end = time.monotonic() + 8.0
        plain = 0
        while time.monotonic() < end:
            key = arena.workload.register("noop")
            try:
                await db.fetch(
                    'SELECT * FROM dhara.enqueue(\'noop\', \'{"n": 1, "text": ""}\'::json, idempotency_key => $1)', key
                )
                done += 1
            except asyncpg.PostgresError:
                failed += 1
            try:
                await arena.workload.plain("noop")
            except DharaError:
                plain += 1
            await asyncio.sleep(0.05)
        await transaction.rollback()
    errors = arena.workload.errors - before + plain
    return {
        "usage": usage, "measured": f"queue {100 * usage:.0f} % full: {errors} of the clients' enqueues failed; by the SQL"
        f" function {failed} of {done + failed}",
        "met": usage > 0.9 and not errors and not failed,
    }  # fmt: skip


async def _fill(db: asyncpg.Connection[asyncpg.Record]) -> float:
    """Notify until no more will go in; how full the queue is then, 1 is full."""
    usage, end = 0.0, time.monotonic() + 20.0
    while usage < 0.9 and time.monotonic() < end:
        with suppress(asyncpg.PostgresError):
            while True:
                await db.execute(
                    "SELECT pg_notify('chaos', repeat(md5(random()::text), 200) || n) FROM generate_series(1, 20) AS n"
                )
        # It looks full until somebody looks for those that have read it.
        usage = float(await db.fetchval("SELECT pg_notification_queue_usage()"))
    return usage
