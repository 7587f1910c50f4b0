"""Unique keys through every surface (C18, I17): never two live tasks with one key; and what becomes of who comes later."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from datetime import timedelta
from typing import Any

import asyncpg
import httpx
import pytest

from dhara import AsyncClient, State, WrongState
from dhara.api.asgi import create_app
from dhara.settings import Settings
from dhara.store.pool import Pool
from dhara.store.tasks import BEGINNING, ZERO, Tasks, Watermark
from tests.factories import claim, make_task, make_worker, settle_all


async def live(pool: Pool) -> Counter[str]:
    """Live tasks by unique key."""
    query = "SELECT unique_key, count(*) FROM dhara.tasks WHERE status IN ('PENDING', 'RUNNING') GROUP BY 1"
    return Counter({row[0]: row[1] for row in await pool.fetch(query)})


async def test_64_clients_on_8_keys_with_rollbacks(dsn: str, pool: Pool, client: AsyncClient) -> None:
    """Half of them in transactions of their own, a fifth of which roll back."""
    rng = random.Random(18)
    keys = [f"k{n}" for n in range(8)]
    found: dict[str, set[Any]] = {key: set() for key in keys}

    async def in_transaction(connections: asyncpg.Pool[Any], key: str, commit: bool) -> None:
        async with connections.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            handle = await client.enqueue_tx(connection, "t", {"key": key}, unique_key=key)
            await asyncio.sleep(0.001)
            await (transaction.commit() if commit else transaction.rollback())
        # What stood was committed by another; what was rolled back is nobody's.
        if commit or not handle.created:
            found[key].add(handle.id)

    async def one(connections: asyncpg.Pool[Any], number: int) -> None:
        for _ in range(5):
            key, commits = rng.choice(keys), rng.random() >= 0.2
            if number % 2:
                await in_transaction(connections, key, commits)
            else:
                found[key].add((await client.enqueue("t", {"key": key}, unique_key=key)).id)

    async with asyncpg.create_pool(dsn, min_size=0, max_size=16) as connections:
        await asyncio.gather(*(one(connections, number) for number in range(64)))
    assert await live(pool) == Counter(keys)
    rows = await pool.fetch("SELECT unique_key, id FROM dhara.tasks")
    assert {row[0]: {row[1]} for row in rows} == {key: ids for key, ids in found.items() if ids}


async def test_batches_with_the_same_keys_in_any_order_end_well(dsn: str, pool: Pool) -> None:
    items = [{"type": "t", "payload": n, "unique_key": f"k{n}"} for n in range(1_500)]
    async with AsyncClient(dsn, pool_max=4) as client:
        batches = await asyncio.gather(*(client.enqueue_many(items[::step]) for step in (1, -1, 1, -1)))
    assert sum(handle.created for batch in batches for handle in batch) == 1_500
    assert len(await live(pool)) == 1_500
    assert [handle.id for handle in batches[0]] == [handle.id for handle in batches[1]][::-1]


async def test_scopes(client: AsyncClient, pool: Pool) -> None:
    for scope in ("pending", "open", 60.0):
        first = await client.enqueue(f"t{scope}", unique_key="k", unique_for=scope)
        assert (await client.enqueue(f"t{scope}", unique_key="k", unique_for=scope)).id == first.id
        held = await claim(pool, first.id)
        second = await client.enqueue(f"t{scope}", unique_key="k", unique_for=scope)
        assert second.created is (scope == "pending")
        await settle_all(pool, [held])
        third = await client.enqueue(f"t{scope}", unique_key="k", unique_for=scope)
        assert third.created is (scope == "open"), scope
    assert (await client.enqueue("u", unique_key="k")).created


async def test_a_period_lapses(client: AsyncClient, pool: Pool) -> None:
    first = await client.enqueue("t", unique_key="k", unique_for=timedelta(hours=1))
    await client.cancel(first.id)
    assert not (await client.enqueue("t", unique_key="k")).created
    await pool.execute("UPDATE dhara.tasks SET unique_until = unique_until - interval '2 hours'")
    late = await asyncio.gather(*(client.enqueue("t", unique_key="k") for _ in range(5)))
    assert len({handle.id for handle in late}) == 1
    assert first.id not in {handle.id for handle in late}


async def test_debounce(client: AsyncClient, pool: Pool) -> None:
    """`reschedule` pushes the one PENDING task ahead, and changes nothing else."""
    first = await client.enqueue("t", {"n": 0}, unique_key="k", delay=60)
    begun = (await client.get(first.id)).run_at
    for n in range(1, 20):
        again = await client.enqueue("t", {"n": n}, priority=5, unique_key="k", on_conflict="reschedule", delay=60)
        assert (again.id, again.created) == (first.id, False)
    task = await client.get(first.id)
    assert (task.payload, task.priority, task.run_at > begun) == ('{"n":0}', 0, True)
    assert await live(pool) == {"k": 1}
    assert [e.event for e in await client.logs(first.id)].count("RESCHEDULED") == 19


async def test_replace_takes_over_the_content(client: AsyncClient) -> None:
    first = await client.enqueue("t", {"n": 0}, unique_key="k", delay=60)
    again = await client.enqueue("t", {"n": 1}, queue="mail", priority=5, unique_key="k", on_conflict="replace")
    task = await client.get(first.id)
    assert again.id == first.id
    assert (task.payload, task.queue, task.priority, task.run_at <= task.updated_at) == ('{"n":1}', "mail", 5, True)


@pytest.mark.parametrize("scope", ["pending", "open"])
async def test_replace_while_it_is_being_claimed(scope: str, client: AsyncClient, pool: Pool) -> None:
    """Who runs the old content was claimed before the replacement, which then finds the key free or its holder RUNNING."""
    worker = await make_worker(pool)
    tasks = Tasks(pool)
    seen: Counter[str] = Counter()
    for n in range(60):
        key = f"{scope}{n}"
        first = await client.enqueue("t", "old", queue=key, unique_key=key, unique_for=scope)

        async def take(queue: str = key) -> Any:
            return await tasks.claim(worker, ["t"], 10, [Watermark(queue, 0, BEGINNING, ZERO, 10)])

        async def replace(key: str = key) -> Any:
            return await client.enqueue("t", "new", queue=key, unique_key=key, unique_for=scope, on_conflict="replace")

        calls = (take(), replace()) if n % 2 else (replace(), take())
        one, other = await asyncio.gather(*calls)
        claims, again = (one, other) if n % 2 else (other, one)
        # A claim passes over the row that is being replaced.
        claimed = claims[0] if claims else await claim(pool, first.id)
        if claimed.payload == '"new"':
            seen["replaced"] += 1
            assert (claimed.id, again.id, again.created) == (first.id, first.id, False)
        elif scope == "open":
            seen["claimed first"] += 1
            assert (again.id, again.created) == (first.id, False)
            assert (await client.get(first.id)).payload == '"old"'
        else:
            seen["claimed first"] += 1
            assert again.created
            assert (await client.get(again.id)).payload == '"new"'
    assert sum(seen.values()) == 60


async def test_a_revival_waits_for_whoever_holds_the_key(client: AsyncClient, pool: Pool) -> None:
    dead = await make_task(pool, State.DEAD, unique_key="k")
    holder = await client.enqueue("t", unique_key="k")
    assert holder.created
    with pytest.raises(WrongState, match="unique key"):
        await client.retry(dead.id)
    app = create_app(pool=pool, settings=Settings())
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080/api/v1/") as http:
        answer = await http.post(f"tasks/{dead.id}/retry")
    assert (answer.status_code, answer.json()["code"]) == (409, "wrong_state")
    await holder.cancel()
    assert (await client.retry(dead.id)).status is State.PENDING


async def test_http_answers_200_with_the_task_that_stands(client: AsyncClient, pool: Pool) -> None:
    transport = httpx.ASGITransport(app=create_app(pool=pool, settings=Settings()))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080/api/v1/") as http:
        body = {"type": "t", "payload": 1, "unique_key": "k", "unique_for": 60, "retention": 5}
        first = await http.post("tasks", json=body)
        assert first.status_code == 201
        assert first.json().items() >= {"unique_key": "k", "retention": 5}.items()
        kept = await http.post("tasks", json=body | {"payload": 2})
        assert (kept.status_code, kept.json()["id"], kept.json()["payload"]) == (200, first.json()["id"], 1)
        replaced = await http.post("tasks", json=body | {"payload": 3, "on_conflict": "replace"})
        assert (replaced.status_code, replaced.json()["id"], replaced.json()["payload"]) == (200, first.json()["id"], 3)
        batch = await http.post("tasks/batch", json=[body, {"type": "t"}, body | {"unique_key": "l"}])
        assert [one["created"] for one in batch.json()] == [False, True, True]
        await pool.execute("UPDATE dhara.tasks SET unique_until = unique_until - interval '2 minutes'")
        assert (await http.post("tasks", json=body)).status_code == 201
        for field, value in (("unique_for", "forever"), ("on_conflict", "drop"), ("retention", -1)):
            refused = await http.post("tasks", json=body | {field: value})
            assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, field)


async def test_the_sql_function_keeps_replaces_and_reschedules(client: AsyncClient, pool: Pool) -> None:
    query = (
        "SELECT task_id, created FROM dhara.enqueue(type => 't', payload => $1, unique_key => 'k', unique_for => $2,"
        " on_conflict => $3, retention => 7)"
    )
    first, created = (await pool.fetch(query, "1", "3600", "keep"))[0]
    assert created
    shown = await client.get(first)
    assert (shown.unique_key, shown.retention) == ("k", 7.0)
    for payload, way, wanted in (("2", "keep", "1"), ("3", "reschedule", "1"), ("4", "replace", "4")):
        assert tuple((await pool.fetch(query, payload, "open", way))[0]) == (first, False)
        assert (await client.get(first)).payload == wanted
