"""F60: what grows over hours, memory, descriptors, delays, dead rows, and whether it may.

Processes are sampled every few seconds. Those are judged that lived through most of the time that counts, which begins
after a warm-up: in a soak one worker is spared by the faults that kill, and meets all others.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from chaos import measure
from chaos.processes import descriptors, resident
from tests.e2e.kit import is_keeper
from tests.factories import Connection

if TYPE_CHECKING:
    from chaos.arena import Arena
    from chaos.nemesis import Injection

EVERY = 5.0
# Counting rows reads every one of them, millions in the end: were it done at each look, the soak would measure itself.
COUNT_EVERY = 300.0
WARM = 20 * 60.0
SLOPE = 1.0  # MiB an hour
FILES = 2
DELAYS = 1.2
DEAD = 2.0
WIDTH = 1.1
_AFTER = 10.0  # seconds after a fault in which delays are not its normal ones

_TABLES = """SELECT sum(n_dead_tup)::bigint, sum(pg_total_relation_size(relid))::bigint FROM pg_stat_user_tables
             WHERE schemaname = 'dhara' AND relname IN ('tasks', 'task_history', 'workers', 'counters')"""
_ROWS = "SELECT count(*) + (SELECT count(*) FROM dhara.task_history) FROM dhara.tasks"
_DELAYS = """SELECT extract(epoch FROM t.created_at)::float8, extract(epoch FROM a.started_at - t.created_at)::float8
             FROM dhara.attempts AS a JOIN dhara.tasks AS t ON t.id = a.task_id
             WHERE a.attempt = 1 AND a.generation = 1 AND t.type <> 'tick'"""


@dataclass(frozen=True)
class Sample:
    """One process at a time (seconds): MiB, open files."""

    at: float
    memory: float
    files: int


@dataclass(frozen=True)
class Tables:
    """The tables at a time: dead rows, bytes, and, where they were counted, rows."""

    at: float
    dead: int
    size: int
    rows: int | None


class Sampler:
    """Looks every few seconds, until cancelled."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self.processes: dict[str, list[Sample]] = defaultdict(list)
        self.tables: list[Tables] = []
        self._next_count = 0.0

    async def run(self) -> None:
        while True:
            with suppress(Exception):  # the database may be away
                await self._look()
            await asyncio.sleep(EVERY)

    def save(self, path: Path) -> None:
        """Every sample, a line each."""
        with path.open("w") as file:
            for name, samples in self.processes.items():
                for one in samples:
                    file.write(json.dumps({"process": name, **asdict(one)}) + "\n")
            for table in self.tables:
                file.write(json.dumps({"tables": asdict(table)}) + "\n")

    async def _look(self) -> None:
        now = time.time()
        for member in self._arena.members:
            for pid in member.process.family:
                role = "supervisor" if pid == member.process.pid else "keeper" if is_keeper(pid) else "runner"
                if (memory := resident(pid)) > 0:
                    self.processes[f"{role} {pid}"].append(Sample(now, memory, descriptors(pid)))
        async with measure.session(self._arena) as db:
            dead, size = await db.fetchrow(_TABLES) or (0, 0)
            rows = None
            if now >= self._next_count:
                rows, self._next_count = await db.fetchval(_ROWS), now + COUNT_EVERY
            self.tables.append(Tables(now, dead, size, rows))


def slope(samples: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Growth an hour and its standard error, by least squares over (seconds, value)."""
    n = len(samples)
    if n < 3:
        return 0.0, math.inf
    at, values = [s[0] / 3600 for s in samples], [s[1] for s in samples]
    mean, middle = fmean(at), fmean(values)
    spread = sum((x - mean) ** 2 for x in at) or 1e-12
    grows = sum((x - mean) * (y - middle) for x, y in zip(at, values, strict=True)) / spread
    rest = sum((y - middle - grows * (x - mean)) ** 2 for x, y in zip(at, values, strict=True))
    return grows, math.sqrt(rest / (n - 2) / spread)


def judge_processes(processes: Mapping[str, Sequence[Sample]], begin: float, end: float) -> list[dict[str, Any]]:
    """A row for each process that lived through most of the time from `begin` to `end`."""
    found = []
    for name, samples in processes.items():
        counted = [s for s in samples if begin <= s.at <= end]
        if len(counted) < 10 or counted[-1].at - counted[0].at < 0.8 * (end - begin):
            continue
        grows, error = slope([(s.at, s.memory) for s in counted])
        tenth = max(3, len(counted) // 10)
        files = median(s.files for s in counted[-tenth:]) - median(s.files for s in counted[:tenth])
        found.append({
            "process": name, "memory": round(counted[-1].memory, 1), "slope": round(grows, 2), "error": round(error, 2),
            "files": files, "met": grows - 2 * error <= SLOPE and abs(files) <= FILES,
        })  # fmt: skip
    return found


def judge_tables(tables: Sequence[Tables], begin: float, end: float) -> dict[str, Any]:
    """Dead rows, and bytes a row, of the last quarter against the first."""
    first, last = _quarters([t for t in tables if begin <= t.at <= end])
    if not first:
        return {"met": False, "what": "no samples"}
    dead = [median(t.dead for t in part) for part in (first, last)]
    counted = [[t.size / max(1, t.rows) for t in part if t.rows is not None] for part in (first, last)]
    if not all(counted):
        return {"dead": dead, "met": False, "what": "too short: rows are counted every five minutes"}
    width = [median(part) for part in counted]
    # A floor, since autovacuum does not come for a few thousand.
    met = dead[1] <= DEAD * max(dead[0], 5_000) and width[1] <= WIDTH * width[0]
    return {"dead": dead, "bytes a row": [round(w) for w in width], "met": met}


def judge_delays(delays: Sequence[tuple[float, float]], hurt: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """p99 of the start delays, by (enqueued at, delay), of the last quarter against the first, but for times of faults."""
    calm = sorted((at, delay) for at, delay in delays if not any(since <= at <= until for since, until in hurt))
    first, last = _quarters(calm)
    p99 = [_p99(part) for part in (first, last)]
    tenth = max(1, len(calm) // 10)
    course = [round(_p99(calm[at : at + tenth]), 4) for at in range(0, 10 * tenth, tenth)]
    return {
        "p99": [round(p, 4) for p in p99],
        "p99 by tenths": course,
        "met": bool(first) and p99[1] <= DELAYS * max(p99[0], 0.02),
    }


def _p99(delays: Sequence[tuple[float, float]]) -> float:
    return measure.at(sorted(delay for _, delay in delays), 0.99)


def _quarters(values: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    part = len(values) // 4
    return (values[:part], values[-part:]) if part else ((), ())


async def verdict(
    sampler: Sampler, db: Connection, injections: Sequence[Injection], began: float, ended: float
) -> dict[str, Any]:
    """All of it; the warm-up is twenty minutes, or a third of a shorter run."""
    begin = began + min(WARM, (ended - began) / 3)
    hurt = [(i.start - 1.0, i.end + _AFTER) for i in injections]
    delays = [(row[0], row[1]) for row in await db.fetch(_DELAYS) if row[0] >= begin]
    processes = judge_processes(sampler.processes, begin, ended)
    tables = judge_tables(sampler.tables, begin, ended)
    late = judge_delays(delays, hurt)
    return {
        "seconds": round(ended - begin), "processes": processes, "tables": tables, "delays": late,
        "met": bool(processes) and all(p["met"] for p in processes) and tables["met"] and late["met"],
    }  # fmt: skip
