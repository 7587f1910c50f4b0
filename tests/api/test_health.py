"""Readiness under a database that hangs, takes no writes or is of another version."""

from __future__ import annotations

import asyncio
import time

import asyncpg
import httpx

from dhara.api import health
from dhara.api.asgi import create_app
from dhara.settings import Settings
from dhara.store.pool import DatabaseSettings, Pool

from .conftest import client_of


async def test_a_database_that_hangs_is_a_503_within_two_seconds(client: httpx.AsyncClient, dsn: str) -> None:
    assert (await client.get("/readyz")).status_code == 200
    blocker = await asyncpg.connect(dsn)
    try:
        held = blocker.transaction()
        await held.start()
        await blocker.execute("LOCK TABLE dhara.migrations IN ACCESS EXCLUSIVE MODE")
        before = time.monotonic()
        answers = await asyncio.gather(*(client.get("/readyz") for _ in range(5)))
        assert time.monotonic() - before < health.PATIENCE + 10
        assert [answer.status_code for answer in answers] == [503] * 5
        assert answers[0].json()["checks"]["db"]["status"] == "failed"
        await held.rollback()
    finally:
        await blocker.close()
    for _ in range(100):
        if (await client.get("/readyz")).status_code == 200:
            break
    else:
        raise AssertionError("it is ready again once the database is")


async def test_a_read_only_database_is_not_ready(pool: Pool, dsn: str) -> None:
    name = await pool.fetchval("SELECT quote_ident(current_database())")
    await pool.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    async with (
        Pool(DatabaseSettings(dsn=dsn)) as later,
        client_of(create_app(pool=later, settings=Settings())) as client,
    ):
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        check = answer.json()["checks"]["db"]
        assert (check["status"], check["detail"]) == ("failed", "takes no writes")
        made = await client.post("/api/v1/queues/q/pause")
        assert (made.status_code, made.json()["code"]) == (503, "unavailable")


async def test_a_newer_schema_is_not_ready(client: httpx.AsyncClient, pool: Pool) -> None:
    await pool.execute("INSERT INTO dhara.migrations (version, name, checksum) VALUES (9999, 'future', 'x')")
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["checks"]["migrations"]["status"]) == (503, "failed")
