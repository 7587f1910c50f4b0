"""One run from the arena to the verdict."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from chaos import recovery, report, soak
from chaos.arena import SLOTS, Arena
from chaos.checker import Evidence, Verdict, judge, read_notes
from chaos.faults import FAULTS
from chaos.nemesis import Injection, disturb
from chaos.plan import Step, mixed, plan
from tests.e2e.kit import L
from tests.factories import Connection

CALM = 15.0


@dataclass(frozen=True)
class Order:
    """What to run."""

    seed: int
    rows: tuple[str, ...]
    seconds: float
    rate: float = 100.0
    workers: int = 2
    processes: int = 1
    pace: float = 1.0
    least: int = 2  # injections of each row
    calm: float = CALM
    lease: float = L
    postgres: int | None = None
    drain: float = 120.0
    out: Path | None = None
    proxied: bool = False
    pooled: bool = False  # all through PgBouncer
    bound: float | None = None  # seconds until what a killed runner held is claimed again (I11)
    steps: tuple[Step, ...] = ()  # a schedule made by hand
    priority: bool = False  # it runs before all else on this machine: times are worth judging
    older: str | None = None  # the commit of the release before (F35); None: found by its migrations
    full: bool = False  # faults of the sizes that their bars ask for
    statements: tuple[str, ...] = ()  # to which F20 and F21 keep; none: all
    without: tuple[str, ...] = ()  # types that the workload leaves out
    every: float = 0.0  # one fault of any row each so many seconds, instead of row after row


async def run(order: Order) -> tuple[dict[str, Any], Verdict]:
    """The run; answers its figures and the verdict, having written the page if it has a folder."""
    needs = frozenset().union(*(FAULTS[row].needs for row in order.rows))
    arena = Arena(
        seed=order.seed,
        workers=order.workers,
        processes=order.processes,
        rate=order.rate,
        needs=needs | {need for need, wanted in (("proxy", order.proxied), ("pooler", order.pooled)) if wanted},
        postgres=order.postgres,
        lease=order.lease,
        older=order.older,
        full=order.full,
        statements=order.statements,
        without=order.without,
    )
    try:
        async with arena:
            summary, verdict, shown = await _run(order, arena)
        if order.out is not None and not summary["ok"]:
            (order.out / "workers.log").write_text("\n".join(member.logs() for member in arena.members))
    finally:
        arena.remove()
    if order.out is not None:
        report.picture(order.out / "timeline.png", *shown)
        (order.out / "report.md").write_text(report.page(summary, verdict))
    return summary, verdict


# Refused settlements, by what they wished for and how the attempt they spoke for really ended.
_REJECTED = """SELECT t.type, r.reason, e.event, left(e.reason, 40), count(*) FROM dhara.task_history AS r
               JOIN dhara.tasks AS t ON t.id = r.task_id
               LEFT JOIN dhara.task_history AS e ON e.task_id = r.task_id AND e.lease = r.lease AND e.claim_seq IS NOT NULL
               WHERE r.event = 'SETTLE_REJECTED' GROUP BY 1, 2, 3, 4 ORDER BY 5 DESC LIMIT 20"""
Shown = tuple[list[float], list[Injection], float, float]


async def _run(order: Order, arena: Arena) -> tuple[dict[str, Any], Verdict, Shown]:
    if order.out is not None:
        order.out.mkdir(parents=True, exist_ok=True)
    if order.steps:
        steps = list(order.steps)
    elif order.every:
        steps = mixed(order.seed, order.rows, order.seconds, calm=order.calm, every=order.every)
    else:
        steps = plan(order.seed, order.rows, order.seconds, calm=order.calm, pace=order.pace, least=order.least)
    sampler = soak.Sampler(arena)
    arena.spared = int(bool(order.every) and order.workers > 1)
    work = asyncio.create_task(arena.workload.run())
    watching = asyncio.create_task(sampler.run() if order.every else asyncio.sleep(0))
    began = time.time()
    log = (order.out or arena.folder) / "faults.jsonl"
    with log.open("w") as file:
        injections = await disturb(arena, steps, file)
    await asyncio.sleep(min(8.0, order.calm))  # time to recover from the last one, under load
    ended = time.time()
    for task in (work, watching):
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    await arena.workload.finish()
    await arena.pause_schedules()
    drained = await arena.until_final(order.drain)
    took = time.time() - ended
    await asyncio.sleep(0.5)
    db = await arena.connect()
    try:
        verdict = await judge(db, _evidence(order, arena))
        times = await recovery.completions(db)
        calm = median([recovery.rate(times, began + n) for n in range(1, max(3, int(order.calm) - 1))])
        summary = {
            "seed": order.seed,
            "command": f"python -m chaos {shlex.join(sys.argv[1:])}",
            "postgres": arena.binaries.version,
            "seconds": ended - began,
            "rate": order.rate,
            "workers": order.workers,
            "size": "full" if order.full else "quick",
            "pooled": "pooler" in arena.needs,
            "priority": order.priority,
            "realtime": os.sched_getscheduler(0) != os.SCHED_OTHER,
            "acknowledged": len(arena.workload.acknowledged),
            "slowest_enqueue": round(arena.workload.slowest, 2),
            "starts": await db.fetchval("SELECT count(*) FROM dhara.attempts"),
            "lost": verdict.lost,
            "missing": len(verdict.missing),
            "fires": verdict.figures["fires"],
            "unexplained": verdict.unexplained,
            "violations": sum(map(len, verdict.violations.values())),
            "calm": round(calm, 1),
            "drained": round(took, 1) if drained else None,
            "rows": await _rows(order, arena, injections, times, calm, ended),
            "rerun": _spread(await recovery.reruns(db, arena.deaths)),
            "events": await _counts(db, "SELECT event, count(*) FROM dhara.task_history GROUP BY event ORDER BY 1"),
            "reasons": await _counts(db, "SELECT reason, count(*) FROM dhara.tasks WHERE status = 'DEAD' GROUP BY 1"),
            "rejected": [list(row) for row in await db.fetch(_REJECTED)],
            "errors": sorted({i.error for i in injections if i.error}),
            "exits": [code for member in arena.members for code in member.exits],
            "told": [i.told for i in injections if i.told.keys() & {"exit", "promotion", "server fell"}][:50],
        }
        if order.every:
            summary["soak"] = await soak.verdict(sampler, db, injections, began, ended)
            if order.out is not None:
                sampler.save(order.out / "samples.jsonl")
    finally:
        await db.close()
    summary["ok"] = (
        not verdict.violations and not summary["lost"] and drained and summary.get("soak", {"met": True})["met"]
    )
    return summary, verdict, (times, injections, began, ended)


async def _counts(db: Connection, query: str) -> dict[str, int]:
    return {row[0]: row[1] for row in await db.fetch(query)}


def _evidence(order: Order, arena: Arena) -> Evidence:
    work = arena.workload
    return Evidence(
        acknowledged=work.acknowledged,
        hashes=work.hashes,
        asked=work.asked,
        notes=read_notes(arena.notes),
        deaths=arena.deaths,
        excused=frozenset(arena.excused),
        slots=SLOTS,
        lease=order.lease,
        bound=order.bound or order.lease + 6.0,
        secrets=arena.secrets(),
        texts=[member.logs() for member in arena.members],
        skips=frozenset().union(*(FAULTS[row].skips for row in order.rows)),
        poison_expected=bool({"F8", "F9"} & set(order.rows)),
        rewound=arena.rewound,
        times=work.times,
        stood=arena.stood,
        delays=arena.delays,
    )


async def _rows(
    order: Order, arena: Arena, injections: list[Injection], times: list[float], calm: float, ended: float
) -> dict[str, dict[str, Any]]:
    counts: Counter[str] = Counter()
    for injection in injections:
        counts[injection.row] += injection.count
    clock = any("overlaps" in FAULTS[row].skips for row in order.rows)
    measured = {} if clock else recovery.recoveries(times, injections, calm, ended)
    found = {row: {"injected": counts[row], **measured.get(row, {})} for row in order.rows}
    for injection in injections:
        if "measured" in injection.told:
            told = {"measured": injection.told["measured"], "met": bool(injection.told["met"])}
            found[injection.row].setdefault("told", []).append(told)
        if "statements" in injection.told:
            statements = found[injection.row].setdefault("statements", Counter())
            statements.update(injection.told["statements"])
    for row in order.rows:
        if (afterwards := FAULTS[row].afterwards) is not None:
            spans = [(injection.start, injection.end) for injection in injections if injection.row == row]
            if told := await afterwards(arena, spans):
                found[row].setdefault("told", []).append(told)
    return found


def _spread(values: list[float]) -> list[float]:
    """Median, 99th percentile, worst."""
    if not values:
        return []
    return [round(values[int(len(values) * q)], 2) for q in (0.5, 0.99)] + [round(values[-1], 2)]
