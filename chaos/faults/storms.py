"""Load and races: herds, retry storms, floods, unique keys, rival operations, workers of another release."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg

from chaos import measure
from chaos.faults.row import fault
from dhara.domain.lifecycle import Event
from dhara.domain.settle import Settlement
from dhara.domain.task import Claim, NewTask
from dhara.errors import DharaError
from dhara.store.ids import new_id
from dhara.store.tasks import Tasks
from tests.e2e.kit import G
from tests.factories import Connection, lane, make_worker, settlement
from tests.waiting import eventually

if TYPE_CHECKING:
    from chaos.arena import Arena

_HERD, _FLOOD = 50_000, 10_000
_BASE = 20.0  # seconds of backoff of type `storm`: the first wait is U(10 s, 30 s)


async def _drained(arena: Arena, ids: list[Any], start: float, timeout: float = 400.0) -> float:
    """Tasks a second until all of these are final, from `start` (monotonic) on."""
    query = "SELECT count(*) FROM dhara.tasks WHERE id = ANY ($1) AND status IN ('PENDING', 'RUNNING')"
    async with measure.session(arena) as db:
        while await db.fetchval(query, ids) and time.monotonic() < start + timeout:
            await asyncio.sleep(0.1)
    return len(ids) / (time.monotonic() - start)


@fault(
    "F52", "herd", f"{_HERD:,} tasks are due at one moment, and at that moment every worker is replaced", every=60.0,
    lasting=True, bar="drained at 90 % of the rate without the restart, connections as configured",
)  # fmt: skip
async def herd(arena: Arena, rng: random.Random) -> dict[str, Any]:
    start = time.monotonic()
    ids = await arena.workload.many("noop", _HERD)
    taken = time.monotonic() - start  # to enqueue so many
    calm = await _drained(arena, ids, time.monotonic())
    due = datetime.now(UTC) + timedelta(seconds=6 + 2 * taken)
    ids = await arena.workload.many("noop", _HERD, run_at=due)
    await asyncio.sleep(max(0.0, (due - datetime.now(UTC)).total_seconds()))
    start, most = time.monotonic(), 0
    old = [member.process for member in arena.members]
    for member in arena.members:
        member.start()
    stopping = asyncio.gather(*(process.stop(G + 30) for process in old))
    draining = asyncio.create_task(_drained(arena, ids, start))
    async with measure.session(arena) as db:
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'dhara%'"
        while not draining.done():
            most = max(most, await db.fetchval(query))
            await asyncio.sleep(0.2)
    rate = await draining
    await stopping
    return {
        "connections": most, "measured": f"{rate:.0f}/s against {calm:.0f}/s; {most} connections at most",
        "met": rate >= 0.9 * calm,
    }  # fmt: skip


@fault(
    "F53", "retry storm", "10,000 tasks fail at once", every=60.0, lasting=True,
    bar="busiest second at most 2 × the mean of the window, waits spread evenly (p > 0.01)",
)  # fmt: skip
async def retry_storm(arena: Arena, rng: random.Random) -> dict[str, Any]:
    ids = await arena.workload.many("storm", arena.size("F53"))
    query = """SELECT id, extract(epoch FROM run_at - updated_at)::float8, extract(epoch FROM updated_at)::float8
               FROM dhara.tasks WHERE id = ANY ($1) AND status = 'PENDING' AND failures = 1"""
    found: dict[Any, tuple[float, float]] = {}
    async with measure.session(arena) as db:
        end = time.monotonic() + 2 * _BASE
        # Nobody is back before ten seconds: each wait can be read many times.
        while len(found) < len(ids) and time.monotonic() < end:
            found |= {row[0]: (row[1], row[2]) for row in await db.fetch(query, ids)}
            await asyncio.sleep(0.5)
    waits, failed = [wait for wait, _ in found.values()], sorted(at for _, at in found.values())
    parts = [wait / _BASE for wait in waits]
    arena.delays += parts
    busiest = max(Counter(int(wait) for wait in waits).values(), default=0)
    mean, took = len(waits) / _BASE, failed[-1] - failed[0] if failed else 0.0
    await asyncio.sleep(1.1 * _BASE)
    from chaos.checker import evenly

    p = evenly(parts) if parts else 0.0
    return {
        "waits": len(parts), "measured": f"{len(parts):,} failures in {took:.1f} s: busiest second of their waits"
        f" {busiest / max(mean, 1e-9):.2f} × the mean, p = {p:.2f}",
        "met": len(parts) == len(ids) and busiest <= 2 * mean and p > 0.01,
    }  # fmt: skip


@fault(
    "F55", "unique mill", "64 clients enqueue under 500 unique keys, a fifth of them roll back", every=20.0, lasting=True,
    bar="exactly one task per key",
)  # fmt: skip
async def unique_mill(arena: Arena, rng: random.Random) -> dict[str, Any]:
    prefix = f"mill-{rng.getrandbits(32)}"
    keys = [f"{prefix}-{n}" for n in range(500)]
    committed: dict[str, set[Any]] = {}

    async def one(pool: asyncpg.Pool[Any]) -> None:
        for _ in range(40):
            key, commits = rng.choice(keys), rng.random() >= 0.2
            async with pool.acquire() as connection:
                transaction = connection.transaction()
                await transaction.start()
                own = arena.workload.register("noop")
                payload = {"n": 1, "text": ""}
                handle = await arena.client.enqueue_tx(
                    connection, "noop", payload, unique_key=key, unique_for=3_600, idempotency_key=own
                )
                await (transaction.commit() if commits else transaction.rollback())
                if commits and handle.created:
                    arena.workload.acknowledge(handle.id, own, "noop", payload)
                if commits or not handle.created:
                    committed.setdefault(key, set()).add(handle.id)

    async with asyncpg.create_pool(arena.judged, min_size=0, max_size=32) as pool:
        await asyncio.gather(*(one(pool) for _ in range(64)))
        rows = await pool.fetch(
            "SELECT unique_key, count(*) FROM dhara.tasks WHERE unique_key LIKE $1 GROUP BY 1", f"{prefix}-%"
        )
    several = sum(row[1] != 1 for row in rows)
    lost = len(committed) - len(rows)
    return {
        "measured": f"{64 * 40:,} enqueues, {len(rows)} keys: {several} with more than one task, {lost} without",
        "met": not several and not lost,
    }  # fmt: skip


_ROWS = 40


@fault(
    "F54", "race mill", f"eight sessions do 100,000 operations on the same {_ROWS} tasks", every=90.0, lasting=True,
    bar="no error, every invariant",
)  # fmt: skip
async def race_mill(arena: Arena, rng: random.Random) -> dict[str, Any]:
    """Claim, settle, cancel, reap, revive, release, expire: what comes of it is the judge's to say."""
    type, operations = f"mill{rng.getrandbits(24)}", arena.size("F54")
    arena.excused.add(4711)  # the mill's workers, which never beat
    done: Counter[str] = Counter()
    async with measure.session(arena) as db:
        ids = [await _fresh(arena, db, type) for _ in range(_ROWS)]
        began = await measure.now(db)
        await asyncio.gather(
            *(_mill(arena, type, ids, random.Random(rng.random()), done, operations // 8) for _ in range(8))
        )
        moves = await db.fetchval(
            "SELECT count(*) FROM dhara.task_history WHERE at > $1 AND task_id IN (SELECT id FROM dhara.tasks WHERE type = $2)",
            began,
            type,
        )
        for row in await db.fetch("SELECT id FROM dhara.tasks WHERE type = $1", type):
            with suppress(DharaError):
                await Tasks(db).request_cancel(row["id"])
        # What still runs belongs to nobody who could end it.
        running = "SELECT id, lease, attempts FROM dhara.tasks WHERE type = $1 AND status = 'RUNNING'"
        while held := await db.fetch(running, type):
            await Tasks(db).settle([Settlement(row[0], row[1], row[2], Event.RELEASED) for row in held])
    errors = done.pop("error", 0)
    return {
        "done": dict(done), "measured": f"{done.total():,} operations, {moves:,} changes, {errors} errors",
        "met": not errors and done.total() >= 0.99 * operations,
    }  # fmt: skip


async def _mill(arena: Arena, type: str, ids: list[Any], rng: random.Random, done: Counter[str], count: int) -> None:
    async with measure.session(arena) as db:
        tasks, worker = Tasks(db), await make_worker(db, types=[type], state="stopped")
        mine: list[Claim] = []
        for _ in range(count):
            what = rng.choice(
                ["claim", "claim", "settle", "settle", "retry", "release", "cancel", "revive", "reap", "expire"]
            )
            try:
                mine = await _operate(arena, tasks, db, what, worker, type, mine, rng, ids)
                done[what] += 1
            except DharaError:
                done[what] += 1  # refused, as it should be: not in that state
            except asyncpg.PostgresError:
                done["error"] += 1


async def _fresh(arena: Arena, db: Connection, type: str) -> Any:
    key = arena.workload.register(type)
    new = NewTask(id=new_id(), type=type, payload="{}", queue=type, idempotency_key=key, max_retries=20)
    await Tasks(db).enqueue([new])
    arena.workload.acknowledge(new.id, key, type, {})
    return new.id


_ENDS = {"settle": Event.COMPLETED, "retry": Event.RETRIED, "release": Event.RELEASED}


async def _operate(
    arena: Arena,
    tasks: Tasks,
    db: Connection,
    what: str,
    worker: Any,
    type: str,
    mine: list[Claim],
    rng: random.Random,
    ids: list[Any],
) -> list[Claim]:
    if what == "claim":
        return mine + await tasks.claim(worker, [type], 3, [lane(queue=type)])
    if what in _ENDS:
        ended, rest = mine[:2], mine[2:]
        event = Event.DEAD if what == "settle" and rng.random() < 0.8 else _ENDS[what]
        fields: dict[str, Any] = {"failed": int(event in (Event.DEAD, Event.RETRIED))}
        if event is Event.DEAD:
            fields |= {"reason": "permanent", "fingerprint": "mill"}
        await tasks.settle([settlement(claim, event, **fields) for claim in ended])
        return rest
    if what == "reap":
        await tasks.reap(worker, beat_seq=None, claimed_before=0, reason="crashed")
    elif what == "expire":
        await tasks.expire()
    elif what == "cancel" and rng.random() < 0.1:
        place = rng.randrange(len(ids))
        await tasks.request_cancel(ids[place])
        ids[place] = await _fresh(arena, db, type)  # what is canceled stays so
    elif what == "revive":
        await tasks.revive(rng.choice(ids))
    return mine


@fault(
    "F58", "deploy skew", "for twelve seconds one more worker, of a release that knows two types only",
    every=25.0, lasting=True, bar="no failure counted, start delay p99 within 2 s",
)  # fmt: skip
async def deploy_skew(arena: Arena, rng: random.Random) -> dict[str, Any]:
    member = arena.pick(rng)
    newer = member.process
    older = member.start("chaos.older")
    async with measure.session(arena) as db:
        query = "SELECT count(*) FROM dhara.workers WHERE pid = ANY ($1) AND beat_seq > 0"

        async def beats() -> bool:
            return bool(await db.fetchval(query, older.runners))

        await eventually(beats, 60, "the older worker to beat")
        start = await measure.now(db)
        await asyncio.sleep(12.0)
        found = await measure.since(arena, start)
        wrong = await db.fetchval(
            """SELECT count(*) FROM dhara.attempts WHERE ended_at > $1 AND outcome IN ('RETRIED', 'DEAD', 'REAPED')
               AND task_id NOT IN (SELECT id FROM dhara.tasks WHERE type IN ('flaky', 'fail'))""",
            start,
        )
        query = "SELECT count(*) FROM dhara.attempts AS a JOIN dhara.workers AS w ON w.id = a.worker_id WHERE w.pid = ANY ($1)"
        took = await db.fetchval(query, older.runners)
    member.process = newer
    await older.stop(G + 30)
    return {
        "measured": f"{wrong} failures, start delay p99 {found.p99:.2f} s; {took} tasks ran on the older worker",
        "met": not wrong and took > 0 and found.p99 <= 2.0,
    }  # fmt: skip


@fault(
    "F59", "flood", f"one queue gets {_FLOOD:,} tasks at once", every=40.0, lasting=True,
    bar="the other queues' start delay p99 at most 2 ×",
)  # fmt: skip
async def flooded(arena: Arena, rng: random.Random) -> dict[str, Any]:
    calm, start = await measure.calm_and(arena, 8.0)
    ids = await arena.workload.many("noop", _FLOOD, queue="flood")
    rate = await _drained(arena, ids, time.monotonic())
    during = await measure.since(arena, start)
    return {
        "measured": f"others' start delay p99 {1e3 * calm.p99:.0f} → {1e3 * during.p99:.0f} ms;"
        f" the flood drained at {rate:.0f}/s",
        "met": during.p99 <= 2 * calm.p99,
    }  # fmt: skip
