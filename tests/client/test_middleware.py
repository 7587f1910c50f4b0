"""Middleware around enqueue: changes, surroundings, refusals; through every way of enqueueing."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import msgspec
import psycopg
import pytest

from dhara import AsyncClient, Client, Handle, IdempotencyConflict, InvalidTask
from dhara.client.middleware import Proceed
from dhara.domain.task import NewTask
from dhara.store.pool import Pool

TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
current: contextvars.ContextVar[str] = contextvars.ContextVar("current")


def traced(task: NewTask) -> NewTask:
    return msgspec.structs.replace(task, traceparent=current.get(TRACE))


class Log:
    """An async middleware that writes down what passes."""

    def __init__(self, name: str, lines: list[str]) -> None:
        self.name = name
        self.lines = lines

    async def __call__(self, task: NewTask, proceed: Proceed) -> Handle:
        self.lines.append(f"{self.name} > {task.type}")
        await asyncio.sleep(0)
        handle = await proceed(msgspec.structs.replace(task, tags=(*task.tags, self.name)))
        self.lines.append(f"{self.name} < {handle.created}")
        return handle


@pytest.fixture
async def lines() -> list[str]:
    return []


@pytest.fixture
async def logged(dsn: str, lines: list[str]) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(dsn, middleware=[Log("a", lines), traced, Log("b", lines)]) as opened:
        yield opened


async def test_outermost_first_and_every_change_arrives(logged: AsyncClient, lines: list[str]) -> None:
    handle = await logged.enqueue("t")
    assert lines == ["a > t", "b > t", "b < True", "a < True"]
    task = await logged.get(handle.id)
    assert (task.traceparent, task.tags) == (TRACE, ("a", "b"))


async def test_many_pass_one_by_one_and_are_written_together(logged: AsyncClient, lines: list[str], pool: Pool) -> None:
    handles = await logged.enqueue_many([{"type": "t", "payload": n} for n in range(50)])
    tasks = [await logged.get(handle.id) for handle in handles]
    assert [task.payload for task in tasks] == [str(n) for n in range(50)]
    assert {task.tags for task in tasks} == {("a", "b")}
    assert len({task.created_at for task in tasks}) == 1, "one statement"
    assert len(lines) == 200


async def test_inside_the_users_transaction(logged: AsyncClient, dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    async with connection.transaction():
        one = await logged.enqueue_tx(connection, "t")
        many = await logged.enqueue_many_tx(connection, [{"type": "t"}] * 3)
    await connection.close()
    for handle in [one, *many]:
        assert (await logged.get(handle.id)).traceparent == TRACE


async def test_whatever_it_raises_ends_the_enqueue_before_anything_is_written(dsn: str, pool: Pool) -> None:
    async def refuse(task: NewTask, proceed: Proceed) -> Handle:
        if task.payload == "3":
            raise PermissionError("not this one")
        return await proceed(task)

    async with AsyncClient(dsn, middleware=[refuse]) as client:
        with pytest.raises(PermissionError):
            await client.enqueue_many([{"type": "t", "payload": n} for n in range(5)])
    assert await pool.fetchval("SELECT count(*) FROM dhara.tasks") == 0


async def test_it_may_answer_without_proceeding(dsn: str) -> None:
    known: dict[str, Handle] = {}

    async def remember(task: NewTask, proceed: Proceed) -> Handle:
        if task.payload not in known:
            known[task.payload] = await proceed(task)
        return known[task.payload]

    async with AsyncClient(dsn, middleware=[remember]) as client:
        first = await client.enqueue("t", 1)
        assert [handle.id for handle in await client.enqueue_many([{"type": "t", "payload": 1}] * 2)] == [first.id] * 2
        assert (await client.list()).total == 1


async def test_it_sees_the_exceptions_of_the_enqueue(dsn: str) -> None:
    seen: list[BaseException] = []

    async def watch(task: NewTask, proceed: Proceed) -> Handle:
        try:
            return await proceed(task)
        except IdempotencyConflict as error:
            seen.append(error)
            raise

    async with AsyncClient(dsn, middleware=[watch]) as client:
        await client.enqueue("t", 1, idempotency_key="k")
        with pytest.raises(IdempotencyConflict):
            await client.enqueue("t", 2, idempotency_key="k")
        with pytest.raises(IdempotencyConflict):
            await client.enqueue_many([{"type": "u"}, {"type": "t", "payload": 3, "idempotency_key": "k"}])
    assert len(seen) == 3


async def test_what_it_makes_of_a_task_is_checked(dsn: str) -> None:
    def spoil(task: NewTask) -> NewTask:
        return msgspec.structs.replace(task, priority=1_000, payload="{")

    for wrong, kind in ((spoil, InvalidTask), (lambda task: None, TypeError)):
        async with AsyncClient(dsn, middleware=[wrong]) as client:  # type: ignore[list-item]
            with pytest.raises(kind):
                await client.enqueue("t")
    with pytest.raises(TypeError, match="middleware is"):
        AsyncClient(dsn, middleware=["no"])  # type: ignore[list-item]


def test_sync_clients_have_it_too(dsn: str) -> None:
    token = current.set(TRACE.replace("b", "c"))
    lines: list[str] = []
    with Client(dsn, middleware=[traced, Log("a", lines)]) as client:
        task = client.get(client.enqueue("t").id)
        assert (task.traceparent, task.tags) == (current.get(), ("a",)), "the caller's own context"
        with psycopg.connect(dsn) as connection, pytest.raises(TypeError, match="plain middleware"):
            client.enqueue_tx(connection, "t")
    with Client(dsn, middleware=[traced]) as client:
        with psycopg.connect(dsn) as connection:
            handles: list[Any] = [
                client.enqueue_tx(connection, "t"),
                *client.enqueue_many_tx(connection, [{"type": "t"}]),
            ]
        assert {client.get(handle.id).traceparent for handle in handles} == {current.get()}
    current.reset(token)
