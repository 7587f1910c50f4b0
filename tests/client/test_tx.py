"""Enqueue in the user's own transaction: there if and only if that commits, through every driver."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import psycopg
import psycopg.rows
import pytest
import sqlalchemy
import sqlalchemy.orm
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from dhara import AsyncClient, Client, IdempotencyConflict, NotFound, SchemaError, State
from dhara.client import tx
from dhara.client.calls import build
from dhara.store.pool import Pool
from tests.drivers import ASYNC, SYNC, alchemy, django_connection


class Rollback(Exception):
    """Raised inside a transaction to end it."""


@pytest.mark.parametrize("kind", ASYNC)
async def test_async_commit(kind: str, dsn: str, client: AsyncClient) -> None:
    async with ASYNC[kind](dsn) as connection:
        one = await client.enqueue_tx(connection, "t", {"text": "50% of :tasks é"}, queue="q", tags=["a"], delay=5)
        many = await client.enqueue_many_tx(connection, [{"type": "u", "payload": n} for n in range(3)])
        with pytest.raises(NotFound):
            await one.status()
    task = await client.get(one.id)
    assert (task.payload, task.queue, task.tags, one.created) == (
        '{"text":"50% of :tasks é"}',
        "q",
        ("a",),
        True,
    )
    assert [(await client.get(handle.id)).payload for handle in many] == ["0", "1", "2"]


@pytest.mark.parametrize("kind", ASYNC)
async def test_async_rollback(kind: str, dsn: str, client: AsyncClient) -> None:
    with pytest.raises(Rollback):
        async with ASYNC[kind](dsn) as connection:
            await client.enqueue_tx(connection, "t")
            raise Rollback
    assert (await client.list()).total == 0


@pytest.mark.parametrize("kind", ASYNC)
async def test_async_conflict(kind: str, dsn: str, client: AsyncClient) -> None:
    standing = await client.enqueue("t", {"n": 1}, idempotency_key="it's")
    async with ASYNC[kind](dsn) as connection:
        again = await client.enqueue_tx(connection, "t", {"n": 1}, idempotency_key="it's")
        assert (again.id, again.created) == (standing.id, False)
    with pytest.raises(IdempotencyConflict) as caught:
        async with ASYNC[kind](dsn) as connection:
            items: list[dict[str, Any]] = [{"type": "u"}, {"type": "t", "payload": {"n": 2}, "idempotency_key": "it's"}]
            await client.enqueue_many_tx(connection, items)
    assert caught.value.existing == standing.id
    assert (await client.list()).total == 1


@pytest.mark.parametrize("kind", SYNC)
def test_sync_commit(kind: str, dsn: str, sync_client: Client) -> None:
    with SYNC[kind](dsn) as connection:
        one = sync_client.enqueue_tx(connection, "t", {"text": "50% of :tasks é"}, queue="q", tags=["a"])
        many = sync_client.enqueue_many_tx(connection, [{"type": "u", "payload": n} for n in range(3)])
        with pytest.raises(NotFound):
            one.status()
    assert sync_client.get(one.id).payload == '{"text":"50% of :tasks é"}'
    assert one.status() is State.PENDING
    assert [sync_client.get(handle.id).payload for handle in many] == ["0", "1", "2"]


@pytest.mark.parametrize("kind", SYNC)
def test_sync_rollback(kind: str, dsn: str, sync_client: Client) -> None:
    with pytest.raises(Rollback), SYNC[kind](dsn) as connection:
        sync_client.enqueue_tx(connection, "t")
        raise Rollback
    assert sync_client.list().total == 0


@pytest.mark.parametrize("kind", SYNC)
def test_sync_conflict(kind: str, dsn: str, sync_client: Client) -> None:
    standing = sync_client.enqueue("t", {"n": 1}, idempotency_key="k")
    with pytest.raises(IdempotencyConflict) as caught, SYNC[kind](dsn) as connection:
        sync_client.enqueue_tx(connection, "t", {"n": 2}, idempotency_key="k")
    assert caught.value.existing == standing.id


async def test_the_users_rows_and_the_task_share_one_fate(dsn: str, client: AsyncClient, pool: Pool) -> None:
    await pool.execute("CREATE TABLE users (email text PRIMARY KEY)")
    await pool.execute("INSERT INTO users VALUES ('a')")
    engine = create_async_engine(alchemy(dsn, "asyncpg"))
    for email in ("b", "a"):
        try:
            async with AsyncSession(engine) as session, session.begin():
                await client.enqueue_tx(session, "welcome", {"email": email})
                await session.execute(sqlalchemy.text("INSERT INTO users VALUES (:email)"), {"email": email})
        except sqlalchemy.exc.IntegrityError:
            assert email == "a"
    await engine.dispose()
    assert [task.payload for task in (await client.list()).tasks] == ['{"email":"b"}']


async def test_async_clients_refuse_sync_connections(dsn: str, client: AsyncClient) -> None:
    with psycopg.connect(dsn) as connection, pytest.raises(TypeError, match=r"Client\.enqueue_tx"):
        await client.enqueue_tx(connection, "t")


async def test_sync_clients_refuse_async_connections(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    with pytest.raises(TypeError, match=r"AsyncClient\.enqueue_tx"):
        Client(dsn).enqueue_tx(connection, "t")
    await connection.close()


async def test_what_has_no_transaction_is_refused(dsn: str, client: AsyncClient) -> None:
    engine = create_async_engine(alchemy(dsn, "asyncpg"))
    async with asyncpg.create_pool(dsn, min_size=0) as pool:
        for wrong in (pool, engine, object(), None, dsn, asyncpg.Connection):
            with pytest.raises(TypeError, match="give a psycopg or asyncpg connection"):
                await client.enqueue_tx(wrong, "t")
    await engine.dispose()


async def test_a_database_without_the_schema(empty_dsn: str) -> None:
    connection = await asyncpg.connect(empty_dsn)
    with pytest.raises(SchemaError, match="migrate up"):
        await AsyncClient(empty_dsn).enqueue_tx(connection, "t")
    await connection.close()


async def test_waiting_for_a_task_of_ones_own_open_transaction(dsn: str, client: AsyncClient) -> None:
    connection = await asyncpg.connect(dsn)
    async with connection.transaction():
        handle = await client.enqueue_tx(connection, "t")
        with pytest.raises(TimeoutError, match="was its transaction committed"):
            await handle.result(timeout=0.05)
    await connection.close()


async def test_two_transactions_with_one_key(dsn: str) -> None:
    """The second waits for the first: it finds its task if that commits, and makes its own if it rolls back."""
    for commits in (True, False):
        first, second = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
        tasks = [build("t", {"n": 1}, {"idempotency_key": f"k{commits}"}) for _ in range(2)]
        transaction = first.transaction()
        await transaction.start()
        [(winner, _)] = await tx.enqueue_async(first, tasks[:1], "dhara")
        waiting = asyncio.create_task(tx.enqueue_async(second, tasks[1:], "dhara"))
        await (transaction.commit() if commits else transaction.rollback())
        [(found, created)] = await waiting
        assert (found == winner, created) == (commits, not commits)
        await first.close()
        await second.close()


def test_djangos_savepoints(dsn: str, sync_client: Client) -> None:
    """What an inner `atomic` takes back is not enqueued; what stands around it is."""
    from django.db import transaction

    with django_connection(dsn) as connection:
        sync_client.enqueue_tx(connection, "outer")
        with pytest.raises(Rollback), transaction.atomic():
            sync_client.enqueue_tx(connection, "inner")
            raise Rollback
    assert [task.type for task in sync_client.list().tasks] == ["outer"]
