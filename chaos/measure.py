"""What a fault measures while it lasts: rates and delays, by the database's clock."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dhara.telemetry.metrics import BUCKETS
from tests.factories import Connection

if TYPE_CHECKING:
    from chaos.arena import Arena

_RATE = """SELECT count(*) / extract(epoch FROM $2::timestamptz - $1::timestamptz)::float8 FROM dhara.task_history
           WHERE event = 'COMPLETED' AND at BETWEEN $1 AND $2"""
# From the moment a task could run to its first start.
_DELAYS = """SELECT extract(epoch FROM a.started_at - t.created_at)::float8 AS delay
             FROM dhara.attempts AS a JOIN dhara.tasks AS t ON t.id = a.task_id
             WHERE a.attempt = 1 AND a.generation = 1 AND t.created_at BETWEEN $1 AND $2 AND t.queue = $3 AND t.type <> 'tick'
             ORDER BY delay"""


@dataclass(frozen=True)
class Span:
    """Completions a second, and the start delays of what was enqueued, over a span of time."""

    rate: float
    p50: float
    p99: float
    worst: float = 0.0

    def against(self, calm: Span) -> str:
        """In words."""
        share = 100 * self.rate / max(calm.rate, 1e-9)
        return f"{share:.0f} % of the rate, start delay p99 {1e3 * calm.p99:.0f} → {1e3 * self.p99:.0f} ms"


async def now(db: Connection) -> datetime:
    found: datetime = await db.fetchval("SELECT clock_timestamp()")
    return found


async def span(db: Connection, since: datetime, until: datetime, queue: str = "default") -> Span:
    """What happened between the two moments."""
    # Where nothing has started, no bar is met.
    delays = [row[0] for row in await db.fetch(_DELAYS, since, until, queue)] or [math.inf]
    return Span(await db.fetchval(_RATE, since, until), at(delays, 0.5), at(delays, 0.99), at(delays, 1.0))


def at(ordered: Sequence[float], share: float) -> float:
    """A percentile of what is in order; 0 of nothing."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


@asynccontextmanager
async def session(arena: Arena, **options: Any) -> AsyncIterator[Connection]:
    """A connection of the fault's own, past all proxies."""
    db = await arena.connect(**options)
    try:
        yield db
    finally:
        db.terminate()


async def calm_and(arena: Arena, seconds: float) -> tuple[Span, datetime]:
    """The last calm `seconds` up to now, after having waited for them; and now."""
    await asyncio.sleep(seconds)
    async with session(arena) as db:
        until = await now(db)
        since = await db.fetchval("SELECT $1::timestamptz - $2 * interval '1 second'", until, seconds)
        found = await span(db, since, until)
    if found.worst == math.inf:
        raise RuntimeError("nothing has started in the calm before: there is nothing to compare with")
    return found, until


async def since(arena: Arena, start: datetime) -> Span:
    """From `start` to now."""
    async with session(arena) as db:
        return await span(db, start, await now(db))


_CLAIMS = "SELECT buckets FROM dhara.histograms WHERE name = 'claim'"


async def claims(arena: Arena) -> list[int]:
    """How long the claims that found something have taken so far, by the workers' own histogram: counts by bucket."""
    async with session(arena) as db:
        return [sum(counts) for counts in zip(*(row[0] for row in await db.fetch(_CLAIMS)), strict=True)]


def p99_between(before: Sequence[int], after: Sequence[int]) -> float:
    """The 99th percentile of what has come to a histogram, in seconds, by line within its bucket; infinite if nothing has."""
    counts = [b - a for a, b in zip(before or [0] * len(after), after, strict=True)]
    left = 0.99 * sum(counts)
    for low, high, count in zip((0.0, *BUCKETS), (*BUCKETS, math.inf), counts, strict=False):
        if count and left <= count:
            return low + (high - low) * left / count
        left -= count
    return math.inf


async def ghosts(db: Connection, spans: Sequence[tuple[float, float]]) -> list[float]:
    """How long each claim of these times (wall) whose answer was lost stayed with the worker that did not know of it, seconds."""
    query = """SELECT extract(epoch FROM at - claimed_at)::float8 FROM dhara.task_history
               JOIN unnest($1::float8[], $2::float8[]) AS s (since, until)
                 ON claimed_at BETWEEN to_timestamp(s.since) AND to_timestamp(s.until)
               WHERE event = 'RELEASED' AND reason LIKE 'ghost claim:%'"""
    rows = await db.fetch(query, [since for since, _ in spans], [until for _, until in spans])
    return sorted(row[0] for row in rows)
