"""A queue's limit holds for whoever enqueues: clients, transactions and plain SQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import asyncpg
import httpx
import pytest

from dhara import AsyncClient, IdempotencyConflict, QueueFull
from dhara.api.asgi import create_app
from dhara.client import valve
from dhara.client.http import HttpBackend
from dhara.client.valve import Valve
from dhara.settings import Settings
from dhara.store.pool import Pool
from dhara.store.queues import Queues

Way = Callable[[AsyncClient, Any], Awaitable[Any]]


async def _sql(client: AsyncClient, connection: Any) -> Any:
    return await connection.fetchrow("SELECT * FROM dhara.enqueue(type => 't', queue => 'mail')")


WAYS: dict[str, tuple[Way, type[Exception]]] = {
    "enqueue": (lambda client, connection: client.enqueue("t", queue="mail"), QueueFull),
    "enqueue_many": (
        lambda client, connection: client.enqueue_many([{"type": "t", "queue": "mail"}] * 2),
        QueueFull,
    ),
    "COPY": (lambda client, connection: client.enqueue_many([{"type": "t"}] * 600, queue="mail"), QueueFull),
    "enqueue_tx": (lambda client, connection: client.enqueue_tx(connection, "t", queue="mail"), QueueFull),
    "SQL": (_sql, asyncpg.ConfigurationLimitExceededError),
}


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, the first look is waited for."""
    monkeypatch.setattr(valve, "MOST_WAIT", 60.0)


@pytest.mark.parametrize("name", WAYS)
async def test_a_full_queue_takes_no_more_by(pool: Pool, dsn: str, name: str) -> None:
    way, refused = WAYS[name]
    queues = Queues(pool)
    await queues.limit("mail", 0, "test")
    await queues.loads(False)
    async with AsyncClient(dsn, patience=0.1) as client, pool.acquire() as connection:
        with pytest.raises(refused, match="queue mail (takes 0 PENDING tasks|is full)"):
            await way(client, connection)
        assert await pool.fetchval("SELECT count(*) FROM dhara.tasks") == 0
        # Other queues are not concerned.
        assert (await client.enqueue("t", queue="other")).created
        await queues.limit("mail", None, "test")
    # A process that begins now, or asks the database itself, knows at once.
    async with AsyncClient(dsn, patience=0.1) as client, pool.acquire() as connection:
        assert await way(client, connection)


async def test_what_is_enqueued_between_two_looks_counts(
    pool: Pool, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(valve, "FRESH", 600.0)
    await Queues(pool).limit("mail", 5, "test")
    done = await asyncio.gather(*(client.enqueue("t", queue="mail") for _ in range(5)))
    assert len({handle.id for handle in done}) == 5
    client._backend._valve._patience = 0.0  # type: ignore[attr-defined]
    with pytest.raises(QueueFull):
        await client.enqueue("t", queue="mail")
    assert (await Queues(pool).get("mail")).full


async def test_a_repetition_needs_no_room(pool: Pool, dsn: str, client: AsyncClient) -> None:
    """What is there under the same key is answered, however full its queue is by now: by the library and over HTTP."""
    await Queues(pool).limit("mail", 1, "test")
    first = await client.enqueue("t", {"n": 1}, queue="mail", idempotency_key="k")
    client._backend._valve._patience = 0.0  # type: ignore[attr-defined]
    again = await client.enqueue("t", {"n": 1}, queue="mail", idempotency_key="k")
    assert (again.id, again.created) == (first.id, False)
    with pytest.raises(IdempotencyConflict):
        await client.enqueue("t", {"n": 2}, queue="mail", idempotency_key="k")
    app = create_app(pool=pool, settings=Settings())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8080") as http:
        await http.patch("/api/v1/queues/mail", json={"limit": 1})  # and so this server knows at once
        for key, payload, status in (("k", 1, 200), ("k", 2, 409), ("other", 1, 429)):
            body = {"type": "t", "payload": {"n": payload}, "queue": "mail"}
            answer = await http.post("/api/v1/tasks", json=body, headers={"idempotency-key": key})
            assert answer.status_code == status, answer.text


async def test_a_client_waits_for_room(pool: Pool, client: AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valve, "FRESH", 0.01)
    monkeypatch.setattr(valve, "STALE", 0.01)
    monkeypatch.setattr(valve, "PAUSE", 0.05)
    await Queues(pool).limit("mail", 1, "test")
    first = await client.enqueue("t", queue="mail")
    waiting = asyncio.create_task(client.enqueue("t", queue="mail"))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await first.cancel()
    assert (await waiting).created


async def test_more_than_a_queue_takes_at_all_is_refused_at_once(pool: Pool, dsn: str) -> None:
    """Waiting would not help: by the library and over HTTP."""
    await Queues(pool).limit("mail", 5, "test")
    app = create_app(pool=pool, settings=Settings())
    await app.parts.pressure.refresh()
    transport = httpx.ASGITransport(app)
    six = [{"type": "t", "queue": "mail"}] * 6
    remote = AsyncClient("http://127.0.0.1:8080")
    remote._backend = HttpBackend("http://127.0.0.1:8080", transport=transport, patience=600.0)
    async with AsyncClient(dsn, patience=600.0) as client, remote:
        for one in (client, remote):
            with pytest.raises(QueueFull, match="takes 5 PENDING tasks; 6 at once never fit") as refused:
                await asyncio.wait_for(one.enqueue_many(six), 60)
            assert (refused.value.queue, refused.value.most, refused.value.never) == ("mail", 5, True)
            assert len(await one.enqueue_many(six[:2])) == 2
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as http:
        answer = await http.post("/api/v1/tasks/batch", json=six)
    assert (answer.status_code, answer.json()["code"]) == (413, "batch_too_large")
    assert "retry-after" not in answer.headers
    assert await pool.fetchval("SELECT count(*) FROM dhara.tasks") == 4


async def test_a_client_that_may_not_ask_enqueues_all_the_same(
    pool: Pool, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pool.execute("DROP TABLE dhara.queue_limits CASCADE")
    assert (await client.enqueue("t")).created


async def test_a_repetition_finds_its_task_in_a_full_queue(pool: Pool) -> None:
    call = "SELECT created FROM dhara.enqueue(type => 't', queue => 'mail', idempotency_key => 'k')"
    assert await pool.fetchval(call)
    await Queues(pool).limit("mail", 1, "test")
    await Queues(pool).loads(False)
    assert await pool.fetchval(call) is False


async def test_which_queues_are_full_is_noted_once(pool: Pool) -> None:
    """Looks side by side neither wait for each other nor fail; what has room is no longer noted."""
    queues = Queues(pool)
    for name in ("a", "b", "c"):
        await queues.limit(name, 0, "test")
    await asyncio.gather(*(queues.loads(False) for _ in range(8)))
    assert await pool.fetchval("SELECT array_agg(name ORDER BY name) FROM dhara.full_queues") == ["a", "b", "c"]
    await queues.limit("a", 10, "test")
    async with pool.acquire() as connection, connection.transaction():
        await Queues(connection).loads(False)
        started = time.monotonic()
        await queues.loads(True)
        assert time.monotonic() - started < 10
    assert await pool.fetchval("SELECT array_agg(name ORDER BY name) FROM dhara.full_queues") == ["b", "c"]


async def test_without_limits_no_task_is_built_to_be_counted(pool: Pool) -> None:
    def untouched() -> Iterator[str]:
        raise AssertionError
        yield ""

    await Valve(Queues(pool), 0.0).admit(untouched())
