"""What it costs that the database itself refuses illegal moves (S29).

    DHARA_DATABASE_URL=postgresql://... python bench/trigger_cost.py [--tasks 30000] [--rounds 3]

One connection drains no-op tasks by claim.sql and settle.sql as a worker does, above a watermark, with the guard of `tasks`
as it is (an AFTER UPDATE trigger whose WHEN is the illegal condition), as a BEFORE UPDATE trigger with the same WHEN, and
without it. The variants take turns, so that no one has the quiet minutes; each drain starts from an empty, vacuumed
table. The work is done in a scratch schema, made and dropped here.

On a machine that others use too, the CPU time of the database session (read from /proc, so the server must run here) says
more than the rate. For comparable WAL figures use a server with a long checkpoint_timeout and full_page_writes off.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import re
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import asyncpg

from dhara.domain.lifecycle import Event
from dhara.domain.settle import Settlement
from dhara.domain.task import NewTask
from dhara.store import migrate
from dhara.store.ids import new_id
from dhara.store.pool import PLANNER
from dhara.store.tasks import BEGINNING, ZERO, Tasks, Watermark

SCHEMA = "dhara_trigger_cost"
VARIANTS = ("AFTER UPDATE", "BEFORE UPDATE", "none")
PAYLOAD = '{"x": 1, "y": "a payload of about one hundred bytes, so that rows are as long as those of real tasks are"}'


async def guard(db: Any, variant: str, original: str) -> None:
    """Put the variant of the trigger in place."""
    await db.execute(f"DROP TRIGGER IF EXISTS tasks_refuse_update ON {SCHEMA}.tasks")
    if variant != "none":
        await db.execute(re.sub(r"(AFTER|BEFORE) UPDATE", variant, original))


async def fill(db: Any, tasks: Tasks, count: int) -> None:
    await db.execute(
        f"SET session_replication_role = replica; TRUNCATE {SCHEMA}.tasks, {SCHEMA}.task_history, {SCHEMA}.counters;"
        " RESET session_replication_role"
    )
    for _ in range(0, count, 1_000):
        await tasks.enqueue([NewTask(id=new_id(), type="t", payload=PAYLOAD) for _ in range(1_000)])
    await db.execute(f"VACUUM ANALYZE {SCHEMA}.tasks")
    await db.execute("CHECKPOINT")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process on this machine; NaN if it cannot be seen."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return math.nan
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Run(NamedTuple):
    """Tasks a second, microseconds of the session's CPU time and bytes of WAL a task."""

    rate: float
    cpu: float
    wal: float


async def drain(db: Any, tasks: Tasks, batch: int) -> Run:
    worker, done, mark = uuid4(), 0, (BEGINNING, ZERO)
    pid = db.get_server_pid()
    cpu = cpu_seconds(pid)
    before = await db.fetchval("SELECT pg_current_wal_insert_lsn()")
    start = time.perf_counter()
    while claims := await tasks.claim(worker, ["t"], batch, [Watermark("default", 0, *mark, batch)]):
        mark = (claims[-1].run_at, claims[-1].id)
        settled = await tasks.settle(
            [Settlement(c.id, c.lease, c.attempt, Event.COMPLETED, result="null") for c in claims]
        )
        assert len(settled) == len(claims)
        done += len(claims)
    seconds = time.perf_counter() - start
    cpu = cpu_seconds(pid) - cpu
    wal = await db.fetchval("SELECT pg_current_wal_insert_lsn() - $1::pg_lsn", before)
    return Run(done / seconds, cpu / done * 1e6, float(wal) / done)


async def measure(count: int, rounds: int) -> None:
    db = await asyncpg.connect(os.environ["DHARA_DATABASE_URL"], server_settings=PLANNER)
    await db.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
    await migrate.up(db, SCHEMA)
    tasks = Tasks(db, SCHEMA)
    original = await db.fetchval(
        "SELECT pg_get_triggerdef(oid) FROM pg_trigger"
        f" WHERE tgname = 'tasks_refuse_update' AND tgrelid = '{SCHEMA}.tasks'::regclass"
    )
    figures: dict[tuple[int, str], list[Run]] = {}
    for turn in range(rounds):
        for batch in (100, 500):
            # Each round begins with another variant.
            for variant in VARIANTS[turn % 3 :] + VARIANTS[: turn % 3]:
                await guard(db, variant, original)
                await fill(db, tasks, count)
                figures.setdefault((batch, variant), []).append(await drain(db, tasks, batch))
    print(f"{await db.fetchval('SHOW server_version')}; {count} tasks, {rounds} rounds; medians (lowest to highest)")
    print(
        "| batch | guard | tasks/s | CPU µs a task | against none | WAL bytes a task |\n|---:|---|---:|---:|---:|---:|"
    )
    for (batch, variant), runs in sorted(figures.items()):
        rate, cpu, wal = (statistics.median(run[column] for run in runs) for column in range(3))
        bare = statistics.median(run.cpu for run in figures[batch, "none"])
        spread = f"{min(run.cpu for run in runs):.1f} to {max(run.cpu for run in runs):.1f}"
        print(
            f"| {batch} | {variant} | {rate:,.0f} | {cpu:.1f} ({spread}) | {100 * (cpu / bare - 1):+.1f} % | {wal:,.0f} |"
        )
    await db.execute(f"DROP SCHEMA {SCHEMA} CASCADE")
    await db.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.tasks, arguments.rounds))


if __name__ == "__main__":
    main()
