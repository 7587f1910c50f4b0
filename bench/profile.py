"""Where the microseconds of a task go: `python -m bench.profile [--out FILE]`, on a server of its own, with a real worker.

In the database by pg_stat_statements and EXPLAIN (ANALYZE, BUFFERS, WAL), in the runner by py-spy if that is installed
(`pip install py-spy`). One drain of no-op tasks, as row P1. py-spy stops the runner for each of its samples: the rate of a run
with it is not one to quote.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg

from bench import machine, procs
from bench.rows import Sizes
from bench.world import SCHEMA, World
from dhara.domain.ids import random_uuids
from dhara.store.pool import PLANNER
from dhara.store.sql import load, names
from dhara.store.tasks import BEGINNING, ZERO

TASKS = 120_000
_BATCH = 500
_SAMPLES = 500
_LINES = 14
# A thread that waits for the loop, which py-spy takes for work; and what stands around everything.
_WAITING = "dhara/worker/watchdog.py"
_AROUND = ("dhara/cli", "dhara/__main__", "dhara/worker/entry.py", "dhara/worker/supervisor.py")


async def profile(dsn: str) -> str:
    """The page."""
    db = await asyncpg.connect(dsn)
    await db.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    world = World(dsn, db, Sizes(), print)
    described = await machine.described(db)
    await world.fresh()
    await world.fill(TASKS)
    await db.execute(f"ANALYZE {SCHEMA}.tasks")
    await world.checkpoint()
    await db.execute("SELECT pg_stat_statements_reset()")
    stacks, cpu = await _drained(world)
    parts = [
        "<!-- Made by `python -m bench.profile`; do not edit. -->",
        "# Where the time of a task goes",
        "",
        f"One worker process drains {TASKS:,} no-op tasks with 100 slots; everything durable, as in the rows of `make bench`.",
        f"PostgreSQL {described['postgresql']}, Python {described['python']}, {described['cores']} cores shared by all.",
        f"Processor time of the worker (all its processes, its start included): {cpu * 1e6 / TASKS:.1f} us a task.",
        "",
        "## In the database",
        "",
        await _statements(db),
        "",
        "## In the runner",
        "",
        _python(stacks),
        "",
        "## The two statements of a task's life",
        "",
        *[part for name in ("claim", "complete") for part in await _explained(world, name)],
    ]
    await world.drop_all()
    await db.close()
    return "\n".join(parts) + "\n"


async def _drained(world: World) -> tuple[str, float]:
    """Drain; py-spy's stacks (empty without it) and the worker's processor time in seconds."""
    spy = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    with tempfile.TemporaryDirectory() as folder, world.worker() as worker:
        found, process = Path(folder) / "stacks", None
        while await world.completed() < TASKS / 20:
            await asyncio.sleep(0.02)
        if spy:
            runner = next(
                pid for pid in procs.family(worker)[1:] if b"keeper" not in Path(f"/proc/{pid}/cmdline").read_bytes()
            )
            arguments = ["record", "-p", str(runner), "-d", "3", "-r", str(_SAMPLES), "-f", "raw", "-o", str(found)]
            process = await asyncio.create_subprocess_exec(
                spy, *arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        await world.until_completed(TASKS)
        cpu = procs.cpu_seconds(worker)
        if process is not None:
            await process.wait()
        return (found.read_text() if found.exists() else ""), cpu


async def _statements(db: asyncpg.Connection[Any]) -> str:
    known = {_head(load(name, SCHEMA)): name for name in names()}
    rows = await db.fetch(
        "SELECT query, calls, total_exec_time AS ms, wal_bytes::float8 AS wal, shared_blks_hit AS hit FROM pg_stat_statements"
        " JOIN pg_database AS d ON d.oid = dbid WHERE datname = current_database() ORDER BY total_exec_time DESC"
    )
    total = sum(row["ms"] for row in rows)
    lines = [
        "| statement | calls | us a task | share | WAL bytes a task | pages a task |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows[:8]:
        name = known.get(_head(row["query"]), "other: " + " ".join(row["query"].split())[:40])
        share = f"{100 * row['ms'] / total:.1f} %"
        each = f"{row['ms'] * 1e3 / TASKS:.2f} | {share} | {row['wal'] / TASKS:.0f} | {row['hit'] / TASKS:.1f}"
        lines.append(f"| `{name}` | {row['calls']:,} | {each} |")
    return "\n".join(lines)


def _head(query: str) -> str:
    return " ".join(query.split())[:75]


def _python(stacks: str) -> str:
    """Own time by file, and time within each of dhara's functions, of what py-spy saw."""
    if not stacks:
        return "py-spy was not installed."
    own: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [_frame(frame) for frame in stack.split(";")]
        if any(frame.startswith(_WAITING) for frame in frames):
            continue
        own[frames[-1].partition(" ")[0]] += int(count)
        for frame in {frame for frame in frames if frame.startswith("dhara/") and not frame.startswith(_AROUND)}:
            within[frame] += int(count)
    total = sum(own.values()) or 1
    return "\n".join(
        [
            f"{total:,} samples of the runner at work. What has no Python frame of its own (uvloop, asyncpg's protocol, system",
            "calls) counts as its caller's, mostly `asyncio`.",
            "",
            "| file, its own time | share |",
            "|---|---:|",
            *[f"| {name} | {100 * n / total:.1f} % |" for name, n in own.most_common(_LINES)],
            "",
            "| function of dhara, with all it calls | share |",
            "|---|---:|",
            *[f"| `{name}` | {100 * n / total:.1f} % |" for name, n in within.most_common(_LINES)],
        ]
    )


def _frame(frame: str) -> str:
    """`dhara/worker/slots.py deliver`, `asyncpg`, `uvloop`, ... of py-spy's `deliver (dhara/worker/slots.py:12)`."""
    found = re.fullmatch(r"(.*) \((.*?)(?::\d+)?\)", frame)
    if not found:
        return frame
    function, path = found.groups()
    if "dhara/" in path:
        return f"dhara/{path.rpartition('dhara/')[2]} {function}"
    for package in ("asyncpg", "uvloop", "msgspec", "asyncio", "bench"):
        if f"{package}/" in path or path.startswith(package):
            return package
    return Path(path).name


async def _explained(world: World, name: str) -> list[str]:
    """EXPLAIN of the statement with a batch, in a transaction that is taken back."""
    await world.fresh()
    await world.fill(20_000)
    db = await asyncpg.connect(world.dsn, server_settings=PLANNER)
    await db.execute(f"ANALYZE {SCHEMA}.tasks")
    worker = uuid4()
    lane: tuple[Sequence[Any], ...] = (["default"], [0], [BEGINNING], [ZERO], [_BATCH])
    arguments: tuple[Any, ...] = (worker, ["bench.nothing"], _BATCH, *lane, random_uuids(_BATCH))
    if name == "complete":
        claims = await db.fetch(load("tasks/claim", SCHEMA), *arguments)
        arguments = ([c["id"] for c in claims], [c["lease"] for c in claims], ["null"] * len(claims))
    statement = load(f"tasks/{name}", SCHEMA)
    transaction = db.transaction()
    await transaction.start()
    plan = await db.fetch(f"EXPLAIN (ANALYZE, BUFFERS, WAL, COSTS OFF, TIMING OFF) {statement}", *arguments)
    await transaction.rollback()
    await db.close()
    return [f"### `tasks/{name}`, {_BATCH} tasks", "", "```text", *[row[0] for row in plan], "```", ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a file for the page; printed otherwise")
    options = parser.parse_args()
    with machine.server(shared_preload_libraries="pg_stat_statements") as dsn:
        page = asyncio.run(profile(dsn))
    if options.out:
        options.out.write_text(page)
    else:
        print(page)


if __name__ == "__main__":
    main()
