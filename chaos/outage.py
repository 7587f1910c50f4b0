"""`python -m chaos.outage`: the database is away under load for a minute, ten leases; what became of everything.

Beside the invariants of every chaos run: nobody is reaped, and each outcome of an attempt that ended while the database
was away is stored once it is back, for that very attempt.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from chaos.arena import SLOTS, Arena
from chaos.checker import Evidence, Verdict, judge, read_notes
from dhara.telemetry.log import configure
from tests.e2e.kit import L
from tests.factories import Connection

CALM, AFTER = 10.0, 20.0
LONG = 24  # tasks that end while the database is away


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m chaos.outage", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long it is away")
    parser.add_argument("--rate", type=float, default=100.0, help="tasks a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, help="write the page there, such as docs/reports/outage.md")
    given = parser.parse_args()
    configure("error", "text")
    figures, verdict = asyncio.run(outage(given.seed, given.seconds, given.rate))
    text = page(figures, verdict)
    print(text, end="")
    if given.report is not None:
        given.report.write_text(text)
    return 0 if good(figures, verdict) else 1


async def outage(seed: int, seconds: float, rate: float) -> tuple[dict[str, Any], Verdict]:
    """The run; its figures and the judge's verdict."""
    arena = Arena(seed=seed, rate=rate)
    try:
        async with arena:
            return await _run(arena, seconds)
    finally:
        arena.remove()


async def _run(arena: Arena, seconds: float) -> tuple[dict[str, Any], Verdict]:
    work, rng = asyncio.create_task(arena.workload.run()), random.Random(arena.rng.random())
    await asyncio.sleep(CALM)
    long = [arena.workload.submit("sleep", seconds=round(rng.uniform(3, 0.8 * seconds), 1)) for _ in range(LONG)]
    await asyncio.wait(long)
    await _until_running(arena, LONG // 2)
    family = [pid for member in arena.members for pid in member.process.family]
    gone = time.monotonic()
    await asyncio.to_thread(arena.postgres.stop)
    away = time.monotonic()
    await asyncio.sleep(seconds)
    alive = [pid for member in arena.members for pid in member.process.family]
    await asyncio.to_thread(arena.postgres.start)
    back = time.monotonic()
    await asyncio.sleep(AFTER)
    work.cancel()
    with suppress(asyncio.CancelledError):
        await work
    await arena.workload.finish()
    await arena.pause_schedules()
    drained = await arena.until_final(120)
    notes = read_notes(arena.notes)
    db = await arena.connect()
    try:
        verdict = await judge(db, _evidence(arena))
        late = [run.lease for run in notes.runs if run.end is not None and away < run.end < back]
        figures = {
            "seconds": back - away,
            "stopping": away - gone,
            "acknowledged": len(arena.workload.acknowledged),
            "slowest": arena.workload.slowest,
            "drained": drained,
            "buffered": len(late),
            "arrived": await _arrived(db, late),
            "reaped": await db.fetchval("SELECT count(*) FROM dhara.task_history WHERE event = 'REAPED'"),
            "released": await db.fetchval("SELECT count(*) FROM dhara.task_history WHERE event = 'RELEASED'"),
            "rejected": await db.fetchval("SELECT count(*) FROM dhara.task_history WHERE event = 'SETTLE_REJECTED'"),
            "ended": len(set(family) - set(alive)),
            "first": await _first_after(db, back - time.monotonic()),
            "postgres": arena.binaries.version,
        }
    finally:
        await db.close()
    return figures, verdict


async def _until_running(arena: Arena, n: int) -> None:
    db = await arena.connect()
    try:
        query = "SELECT count(*) FROM dhara.tasks WHERE status = 'RUNNING' AND type = 'sleep'"
        while await db.fetchval(query) < n:
            await asyncio.sleep(0.1)
    finally:
        await db.close()


async def _arrived(db: Connection, leases: list[UUID]) -> int:
    """How many of these attempts have an outcome of their own, one that a worker settled."""
    query = """SELECT count(*) FROM dhara.attempts WHERE lease = ANY ($1)
               AND outcome IN ('COMPLETED', 'RETRIED', 'SNOOZED', 'DEAD', 'CANCELED')"""
    return int(await db.fetchval(query, leases))


async def _first_after(db: Connection, ago: float) -> float | None:
    """Seconds from the database's return (`ago` from now, negative) to the first completion."""
    query = """SELECT EXTRACT(EPOCH FROM min(at) - (clock_timestamp() + $1 * interval '1 second'))::float8
               FROM dhara.task_history WHERE event = 'COMPLETED' AND at > clock_timestamp() + $1 * interval '1 second'"""
    found = await db.fetchval(query, ago)
    return None if found is None else float(found)


def _evidence(arena: Arena) -> Evidence:
    return Evidence(
        acknowledged=arena.workload.acknowledged,
        hashes=arena.workload.hashes,
        asked=arena.workload.asked,
        notes=read_notes(arena.notes),
        slots=SLOTS,
        lease=L,
        bound=L + 6.0,
        secrets=arena.secrets(),
        texts=[member.logs() for member in arena.members],
    )


def good(figures: dict[str, Any], verdict: Verdict) -> bool:
    """Whether everything that was promised was kept."""
    kept = figures["drained"] and figures["buffered"] == figures["arrived"] > 0
    return bool(kept and not verdict.violations and not (verdict.lost or figures["reaped"] or figures["ended"]))


def page(figures: dict[str, Any], verdict: Verdict) -> str:
    """The report, as Markdown."""
    first = "none" if figures["first"] is None else f"{figures['first']:.2f} s"
    rows = [
        ("tasks acknowledged", f"{figures['acknowledged']:,}"),
        ("lost", str(verdict.lost)),
        ("starts without an explanation", str(verdict.unexplained)),
        ("violations of I1 to I24", str(sum(map(len, verdict.violations.values())))),
        ("leases taken back (REAPED)", str(figures["reaped"])),
        ("attempts that ended while it was away", str(figures["buffered"])),
        ("of them, outcomes stored for that attempt", str(figures["arrived"])),
        ("claims whose answer was cut off, given back", str(figures["released"])),
        ("outcomes refused as stale", str(figures["rejected"])),
        ("worker processes that ended", str(figures["ended"])),
        ("first completion after its return", first),
        ("longest enqueue, tried until acknowledged", f"{figures['slowest']:.1f} s"),
    ]
    command = " ".join(arg for arg in sys.argv[1:] if arg)
    head = [
        f"# The database away for {figures['seconds']:.0f} s: {'all kept' if good(figures, verdict) else 'NOT KEPT'}",
        "",
        f"`python -m chaos.outage {command}`: PostgreSQL {figures['postgres']} stopped under load for",
        f"{figures['seconds'] / L:.0f} leases of {L:g} s,",
        "beside two workers of 16 slots and a client that repeats each enqueue, under its key, until it is acknowledged.",
        "",
        "| what | |",
        "| --- | ---: |",
    ]
    found = [f"- {name}: {row}" for name, violations in verdict.violations.items() for row in violations[:3]]
    return "\n".join([*head, *(f"| {what} | {figure} |" for what, figure in rows), *found]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
