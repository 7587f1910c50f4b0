"""`dhara bench`: what dhara does on the user's own database, in a schema of its own that is gone afterwards."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from dhara.cli.console import Command, Console

if TYPE_CHECKING:
    from dhara.client import AsyncClient
    from dhara.settings import Settings
    from dhara.store.stats import Stats

_PAYLOAD = {"to": "someone@example.org", "subject": "Hello", "n": 12_345, "items": ["a", "b", "c"], "note": "x" * 12}
_CALLERS, _SINGLES_SECONDS, _PICKUPS = 16, 2.0, 40
_PATIENCE = 300.0


@click.command("bench", cls=Command, examples="dhara bench\ndhara bench --yes --tasks 50000 --processes 2 --json")
@click.option(
    "--tasks", "count", type=click.IntRange(100, 1_000_000), default=10_000, show_default=True, help="To drain."
)
@click.option("--concurrency", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Slots a process.")
@click.option("--processes", type=click.IntRange(1, 64), default=1, show_default=True, help="Worker processes.")
@click.option("--yes", is_flag=True, help="Do not ask before writing.")
@click.pass_obj
def bench(console: Console, count: int, concurrency: int, processes: int, yes: bool) -> int:
    """Measure enqueueing, draining and pickup on this database.

    Writes: it makes a schema of its own, puts the load of as many tasks as the machine can do on the server for some
    seconds, and drops the schema again. Other schemas are left alone, but their users will notice the load.
    """
    import asyncio

    settings = console.settings()
    if not yes and not _agreed(count):
        console.say("nothing was done")
        return 1
    schema = f"dhara_bench_{secrets.token_hex(4)}"
    found = asyncio.run(_measured(console, settings, schema, count, concurrency, processes))
    if console.json:
        console.answer(found)
    else:
        for name, value in found["figures"].items():
            console.print(f"{name:<44} {value:>12,.{0 if value >= 100 else 1}f}")
        console.print(", ".join(f"{name} {value}" for name, value in found["server"].items()))
    return 0


def _agreed(count: int) -> bool:
    return click.confirm(
        f"This makes a schema in the database, runs {count:,} tasks in it at full load, and drops it. Go on?", err=True
    )


async def _measured(
    console: Console, settings: Settings, schema: str, count: int, concurrency: int, processes: int
) -> dict[str, Any]:
    from dhara.client import AsyncClient
    from dhara.client.backend import translated
    from dhara.store import migrate
    from dhara.store.pool import DatabaseSettings, Pool
    from dhara.store.stats import Stats

    async with Pool(DatabaseSettings.of(settings, pool_max=2, users=True), "dhara bench") as pool:
        with translated():
            try:
                async with pool.acquire() as connection:
                    await migrate.up(connection, schema)
                stats = Stats(pool, schema)
                async with AsyncClient(settings.database_url, schema=schema, pooler=settings.pooler) as client:
                    figures = {"enqueue_many, tasks/s": await _bulk(client, count)}
                    console.say(f"{count:,} tasks enqueued; now a worker drains them")
                    with _worker(settings, schema, concurrency, processes):
                        await _until_done(stats)
                        # By the database's own times: from the first claim to the last end.
                        figures["drain, tasks/s"] = count / await stats.span()
                        figures[f"{_CALLERS} concurrent enqueue, tasks/s"] = await _singles(client)
                        await _until_done(stats)
                        figures |= await _pickups(client)
                names = ("server_version", "fsync", "synchronous_commit", "shared_buffers")
                server = {name: await pool.fetchval("SELECT current_setting($1)", name) for name in names}
                return {"figures": {name: round(value, 2) for name, value in figures.items()}, "server": server}
            finally:
                await migrate.remove(pool, schema)


async def _bulk(client: AsyncClient, count: int) -> float:
    start = time.perf_counter()
    await client.enqueue_many([{"type": "dhara.bench", "payload": _PAYLOAD}] * count)
    return count / (time.perf_counter() - start)


@contextmanager
def _worker(settings: Settings, schema: str, concurrency: int, processes: int) -> Iterator[None]:
    """A real worker on the schema, by the settings of this call."""
    command = [sys.executable, "-m", "dhara", "worker", "dhara.cli.bench_handlers", "--concurrency", str(concurrency)]
    environ = os.environ | {
        "DHARA_DATABASE_URL": settings.database_url,
        "DHARA_SCHEMA": schema,
        "DHARA_LOG_LEVEL": "error",
    }
    process = subprocess.Popen([*command, "--processes", str(processes)], env=environ, stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


async def _until_done(stats: Stats) -> None:
    import asyncio

    from dhara.domain.lifecycle import State
    from dhara.store.stats import by_status

    async with asyncio.timeout(_PATIENCE):
        while True:
            counts = by_status(await stats.flows())
            if counts[State.PENDING] + counts[State.RUNNING] == 0:
                return
            await asyncio.sleep(0.1)


async def _singles(client: AsyncClient) -> float:
    """Concurrent callers, each waiting for its commit before its next."""
    import asyncio

    until = time.perf_counter() + _SINGLES_SECONDS

    async def call() -> int:
        done = 0
        while time.perf_counter() < until:
            await client.enqueue("dhara.bench", _PAYLOAD)
            done += 1
        return done

    return sum(await asyncio.gather(*(call() for _ in range(_CALLERS)))) / _SINGLES_SECONDS


async def _pickups(client: AsyncClient) -> dict[str, float]:
    """Milliseconds from the return of an enqueue to the handler's start, one at a time; both by this machine's clock."""
    waits = []
    for _ in range(_PICKUPS):
        handle = await client.enqueue("dhara.bench", _PAYLOAD)
        returned = time.time()
        waits.append(1000 * (await handle.result(30) - returned))
    waits.sort()
    name = "idle worker, commit to start, {} ms"
    return {name.format("p50"): waits[len(waits) // 2], name.format("p99"): waits[len(waits) * 99 // 100]}
