"""The database: crashes, outages, lost sessions, locks, no room."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

from chaos.faults.row import fault
from tests.waiting import eventually

if TYPE_CHECKING:
    from chaos.arena import Arena


@fault("F16", "database crash", "PostgreSQL crashes and comes back at once", every=10.0, most=5.0)
async def crashed(arena: Arena, rng: random.Random) -> None:
    await asyncio.to_thread(arena.postgres.restart, "immediate")


@fault("F17", "outage", "PostgreSQL is away for twice the lease", every=30.0, lasting=True)
async def away(arena: Arena, rng: random.Random) -> dict[str, Any]:
    await asyncio.to_thread(arena.postgres.stop)
    await asyncio.sleep(2 * arena.lease)
    await asyncio.to_thread(arena.postgres.start)
    return {"seconds": 2 * arena.lease}


_TERMINATE = """SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE $1"""


async def _terminate(arena: Arena, names: str) -> dict[str, Any]:
    db = await arena.connect()
    try:
        return {"count": await db.fetchval(_TERMINATE, names), "sessions": names}
    finally:
        await db.close()


@fault("F18", "backend kill", "every session is terminated", every=1.0, most=5.0)
async def sessions_killed(arena: Arena, rng: random.Random) -> dict[str, Any]:
    return await _terminate(arena, "%")


@fault("F19", "backend kill", "only the listeners', or only the keepers' sessions are terminated", every=1.0, most=5.0)
async def some_sessions_killed(arena: Arena, rng: random.Random) -> dict[str, Any]:
    return await _terminate(arena, rng.choice(["dhara listener", "dhara keeper", "dhara handler", "dhara runner"]))


@fault("F22", "no connections", "all connections are taken for longer than the lease", every=20.0, lasting=True)
async def exhausted(arena: Arena, rng: random.Random) -> dict[str, Any]:
    held: list[asyncpg.Connection[asyncpg.Record]] = []
    try:
        with suppress(asyncpg.TooManyConnectionsError):
            while True:
                held.append(await arena.connect())
        await asyncio.sleep(1.5 * arena.lease)
        return {"held": len(held)}
    finally:
        for connection in held:
            connection.terminate()


@fault(
    "F26",
    "table locked",
    "ACCESS EXCLUSIVE on tasks, or on workers, for twice the lease",
    every=26.0,
    most=3.0,
    lasting=True,
)
async def locked(arena: Arena, rng: random.Random) -> dict[str, Any]:
    table = rng.choice(["tasks", "workers"])
    db = await arena.connect()
    try:
        async with db.transaction():
            await db.execute(f"LOCK TABLE dhara.{table} IN ACCESS EXCLUSIVE MODE")
            await asyncio.sleep(2 * arena.lease)
    finally:
        await db.close()
    return {"table": table}


@fault("F29", "disk full", "the disk of data and WAL is full for a while", every=20.0, needs="tmpfs", lasting=True)
async def disk_full(arena: Arena, rng: random.Random) -> dict[str, Any]:
    ballast = Path(arena.postgres.data_dir).parent / "ballast"
    size = 0
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            size += file.write(b"\0" * 65_536)
    await asyncio.sleep(6.0)
    ballast.unlink()
    fell = not arena.postgres.running
    if fell:
        await asyncio.to_thread(arena.postgres.start)
    return {"filled": size, "server fell": fell}


@fault("F32", "read-only", "the server refuses writes for a while", every=12.0, lasting=True)
async def read_only(arena: Arena, rng: random.Random) -> dict[str, Any]:
    db = await arena.connect()
    try:
        await db.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        await db.execute("SELECT pg_reload_conf()")
        await asyncio.sleep(5.0)
        await db.execute("SET default_transaction_read_only = off")
        await db.execute("ALTER SYSTEM RESET default_transaction_read_only")
        await db.execute("SELECT pg_reload_conf()")
    finally:
        await db.close()
    return {"seconds": 5.0}


@fault(
    "F33", "backend kill", "all through PgBouncer in transaction mode; sessions are killed", every=5.0, needs="pooler"
)
async def behind_a_pooler(arena: Arena, rng: random.Random) -> dict[str, Any]:
    return await _terminate(arena, "%")


async def _back(arena: Arena) -> bool:
    with suppress(Exception):
        await (await arena.connect()).close()
        return True
    return False


async def until_back(arena: Arena, timeout: float = 30) -> None:
    """Return once the database answers."""
    await eventually(lambda: _back(arena), timeout, "the database to be back")
