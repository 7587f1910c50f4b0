"""How fast it was itself again: T90, and how long the tasks of the dead waited."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import Any

import asyncpg

from chaos.nemesis import Injection

WINDOW = 1.0
_STEP = 0.1
_LONGEST = 60.0


async def completions(db: asyncpg.Connection[asyncpg.Record]) -> list[float]:
    """The wall times of all completions, in order."""
    query = "SELECT extract(epoch FROM at)::float8 FROM dhara.task_history WHERE event = 'COMPLETED' ORDER BY at"
    return [row[0] for row in await db.fetch(query)]


def rate(times: Sequence[float], start: float, length: float = WINDOW) -> float:
    """Completions a second from `start` on."""
    return (bisect_left(times, start + length) - bisect_left(times, start)) / length


def t90(times: Sequence[float], injection: Injection, calm: float, until: float) -> float | None:
    """Seconds from the fault (or its end) until completions reach 90 % of the calm rate; None if not by `until`."""
    start = injection.hurt
    at = start
    while at < min(until, start + _LONGEST):
        if rate(times, at) >= 0.9 * calm:
            return at - start
        at += _STEP
    return None


def recoveries(
    times: Sequence[float], injections: Sequence[Injection], calm: float, until: float
) -> dict[str, dict[str, Any]]:
    """By row: how often, median and worst T90."""
    found: dict[str, list[float | None]] = defaultdict(list)
    for injection in injections:
        # Where the workload ends before the system has had its time, nothing can be said.
        if injection.count and injection.hurt + 5 < until:
            found[injection.row].append(t90(times, injection, calm, until))
    return {
        row: {
            "measured": len(values),
            "median": round(median([v for v in values if v is not None] or [0.0]), 2),
            "worst": None if None in values else round(max(v for v in values if v is not None), 2),
        }
        for row, values in found.items()
    }


async def reruns(db: asyncpg.Connection[asyncpg.Record], deaths: Sequence[tuple[int, float]]) -> list[float]:
    """How long each task that a killed runner held waited for its next claim, seconds."""
    query = """WITH deaths AS (SELECT * FROM unnest($1::int[], $2::float8[]) AS d (pid, died)),
               held AS (SELECT a.task_id, a.attempt, to_timestamp(d.died) AS died FROM deaths AS d
                        JOIN dhara.workers AS w ON w.pid = d.pid JOIN dhara.attempts AS a ON a.worker_id = w.id
                        WHERE a.started_at <= to_timestamp(d.died) AND a.ended_at > to_timestamp(d.died))
               SELECT extract(epoch FROM n.started_at - h.died)::float8 FROM held AS h
               JOIN dhara.attempts AS n ON n.task_id = h.task_id AND n.attempt = h.attempt + 1"""
    rows = await db.fetch(query, [pid for pid, _ in deaths], [at for _, at in deaths])
    return sorted(row[0] for row in rows)
