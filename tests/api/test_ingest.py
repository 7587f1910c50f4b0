"""Group commit: many share a statement, each gets its own answer, and no one's misfortune is another's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import asyncpg
import httpx
import pytest

from dhara.api.asgi import create_app
from dhara.api.ingest import Ingest
from dhara.api.problems import Refused
from dhara.domain.task import Enqueued, NewTask
from dhara.errors import IdempotencyConflict
from dhara.settings import Settings
from dhara.store.pool import Pool
from dhara.store.tasks import Tasks
from tests.factories import new_task
from tests.waiting import Signal, eventually

from .conftest import client_of, post, problem


class Gated(Tasks):
    """The real store, whose enqueues wait at a gate and may be made to fail, before or after they commit."""

    def __init__(self, pool: Pool) -> None:
        super().__init__(pool)
        self.gate = asyncio.Event()
        self.gate.set()
        self.arrived = Signal("a flush")
        self.sizes: list[int] = []
        self.before: list[BaseException] = []
        self.after: list[BaseException] = []

    async def enqueue(self, new: Sequence[NewTask]) -> list[Enqueued | IdempotencyConflict]:
        self.sizes.append(len(new))
        self.arrived.fire()
        await self.gate.wait()
        if self.before:
            raise self.before.pop()
        done = await super().enqueue(new)
        if self.after:
            raise self.after.pop()
        return done


@pytest.fixture
def store(pool: Pool) -> Gated:
    return Gated(pool)


@pytest.fixture
def ingest(store: Gated, pool: Pool) -> Ingest:
    return Ingest(store, pool)


async def count(pool: Pool) -> int:
    n: int = await pool.fetchval("SELECT count(*) FROM dhara.tasks")
    return n


async def test_what_arrives_during_a_flush_forms_the_next(ingest: Ingest, store: Gated, pool: Pool) -> None:
    store.gate.clear()
    first = asyncio.create_task(ingest.enqueue(new_task()))
    await store.arrived.wait()
    rest = [asyncio.create_task(ingest.enqueue(new_task())) for _ in range(50)]
    await eventually(lambda: ingest.waiting == 51)
    store.gate.set()
    done = await asyncio.gather(first, *rest)
    assert store.sizes == [1, 50]
    assert all(one.created for one in done)
    assert await count(pool) == 51
    assert (ingest.batches, ingest.batched, ingest.waiting) == (2, 51, 0)


async def test_each_is_answered_only_after_its_commit(client: httpx.AsyncClient, pool: Pool) -> None:
    async def one(n: int) -> bool:
        answer = await post(client, json.dumps({"type": "echo", "payload": n}))
        assert answer.json()["payload"] == n
        return bool(await pool.fetchval("SELECT 1 FROM dhara.tasks WHERE id = $1::uuid", answer.json()["id"]))

    assert all(await asyncio.gather(*(one(n) for n in range(100))))


async def test_a_conflict_fails_alone(ingest: Ingest, store: Gated, pool: Pool) -> None:
    await ingest.enqueue(new_task(idempotency_key="k", payload="1"))
    tasks = [
        new_task(),
        new_task(idempotency_key="k", payload="2"),
        new_task(idempotency_key="k", payload="1"),
        new_task(),
    ]
    done = await asyncio.gather(*(ingest.enqueue(task) for task in tasks), return_exceptions=True)
    assert store.sizes == [1, 4]
    assert isinstance(done[1], IdempotencyConflict)
    assert [isinstance(one, Enqueued) and one.created for one in done] == [True, False, False, True]
    assert await count(pool) == 3


async def test_the_same_key_twice_inside_one_flush(ingest: Ingest, store: Gated, pool: Pool) -> None:
    done = await asyncio.gather(*(ingest.enqueue(new_task(idempotency_key="k")) for _ in range(20)))
    assert store.sizes == [20]
    assert len({one.task.id for one in done}) == 1
    assert sum(one.created for one in done) == 1
    assert await count(pool) == 1


async def test_a_value_that_the_database_refuses_fails_alone(ingest: Ingest, pool: Pool) -> None:
    # Validation would have caught it; here it stands for whatever validation does not foresee.
    bad = new_task(payload='"\x00"')
    tasks = [new_task() for _ in range(9)]
    done = await asyncio.gather(
        *(ingest.enqueue(task) for task in [*tasks[:5], bad, *tasks[5:]]), return_exceptions=True
    )
    assert [isinstance(one, Enqueued) for one in done] == [True] * 5 + [False] + [True] * 4
    assert isinstance(done[5], asyncpg.PostgresError)
    assert await count(pool) == 9


async def test_a_caller_who_leaves_harms_nobody(ingest: Ingest, store: Gated, pool: Pool) -> None:
    store.gate.clear()
    flying = asyncio.create_task(ingest.enqueue(new_task()))
    await store.arrived.wait()
    leaving, staying = (asyncio.create_task(ingest.enqueue(new_task())) for _ in range(2))
    await eventually(lambda: ingest.waiting == 3)
    leaving.cancel()
    flying.cancel()
    await asyncio.gather(leaving, flying, return_exceptions=True)
    store.gate.set()
    assert (await staying).created
    assert store.sizes == [1, 1]
    assert await count(pool) == 2
    assert ingest.waiting == 0


LOST: list[Callable[[], BaseException]] = [
    lambda: ConnectionResetError("gone"),
    lambda: asyncpg.ConnectionDoesNotExistError("gone"),
    lambda: asyncpg.AdminShutdownError("terminating"),
    lambda: asyncpg.DeadlockDetectedError("deadlock"),
    lambda: asyncpg.InterfaceError("connection is closed"),
]


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_lost_connection_is_repeated_without_doubles(
    ingest: Ingest, store: Gated, pool: Pool, lost: Callable[[], BaseException], when: str
) -> None:
    getattr(store, when).append(lost())
    tasks = [new_task(), new_task(idempotency_key="k"), new_task()]
    done = await asyncio.gather(*(ingest.enqueue(task) for task in tasks))
    assert [one.task.id for one in done] == [task.id for task in tasks]
    assert all(one.created for one in done)
    assert await count(pool) == 3


async def test_a_database_error_is_told_to_everybody(ingest: Ingest, store: Gated, pool: Pool) -> None:
    store.before.append(TimeoutError())
    done = await asyncio.gather(*(ingest.enqueue(new_task()) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(one, TimeoutError) for one in done)
    assert (await ingest.enqueue(new_task())).created
    assert await count(pool) == 1


async def test_a_backend_killed_under_a_flush(pool: Pool, dsn: str) -> None:
    ingest = Ingest(Tasks(pool), pool)
    killer = await asyncpg.connect(dsn)
    blocker = await asyncpg.connect(dsn)
    try:
        held = blocker.transaction()
        await held.start()
        await blocker.execute("LOCK TABLE dhara.counters IN ACCESS EXCLUSIVE MODE")
        waiting = [asyncio.create_task(ingest.enqueue(new_task())) for _ in range(3)]

        async def blocked() -> int | None:
            pid: int | None = await killer.fetchval(
                "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            return pid

        await killer.execute("SELECT pg_terminate_backend($1)", await eventually(blocked))
        await held.rollback()
        assert all(one.created for one in await asyncio.gather(*waiting))
        assert await count(pool) == 3
    finally:
        await killer.close()
        await blocker.close()


async def test_too_much_is_refused_and_what_was_taken_is_kept(store: Gated, pool: Pool) -> None:
    ingest = Ingest(store, pool, most_waiting=3)
    store.gate.clear()
    taken = [asyncio.create_task(ingest.enqueue(new_task())) for _ in range(3)]
    await eventually(lambda: ingest.waiting == 3)
    with pytest.raises(Refused) as refused:
        await ingest.enqueue(new_task())
    assert (refused.value.status, refused.value.code) == (503, "overloaded")
    assert refused.value.headers == ((b"retry-after", b"1"),)
    store.gate.set()
    assert all(one.created for one in await asyncio.gather(*taken))
    assert await count(pool) == 3


async def test_close_waits_for_what_was_taken(ingest: Ingest, store: Gated, pool: Pool) -> None:
    store.gate.clear()
    taken = asyncio.create_task(ingest.enqueue(new_task()))
    await store.arrived.wait()
    closing = asyncio.create_task(ingest.close())
    store.gate.set()
    await closing
    await taken
    assert await count(pool) == 1


async def test_opposite_orders_of_keys_do_not_deadlock(pool: Pool) -> None:
    app = create_app(pool=pool, settings=Settings())

    async def batch(client: httpx.AsyncClient, keys: Sequence[str]) -> int:
        tasks = [{"type": "t", "idempotency_key": key} for key in keys]
        return (await post(client, json.dumps(tasks), "/api/v1/tasks/batch")).status_code

    async with client_of(app) as client:
        for turn in range(5):
            keys = [f"{turn}-{n}" for n in range(200)]
            statuses = await asyncio.gather(*(batch(client, keys[:: 1 - 2 * (n % 2)]) for n in range(4)))
            assert statuses == [201] * 4
    assert await count(pool) == 1_000


async def test_without_a_database_it_is_a_503_that_says_when(pool: Pool) -> None:
    app = create_app(pool=pool, settings=Settings())
    await pool.close()
    async with client_of(app) as client:
        for answer in (
            await post(client, b'{"type":"echo"}'),
            await post(client, b'[{"type":"echo"}]', "/api/v1/tasks/batch"),
            await client.get("/api/v1/tasks"),
            await client.get("/api/v1/stats"),
            await client.delete("/api/v1/tasks/00000000-0000-7000-8000-000000000000"),
        ):
            problem(answer, 503, "unavailable")
            assert answer.headers["retry-after"] == "1"
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["db"]["status"]) == (503, "failed")
        metrics = await client.get("/metrics")
        assert metrics.status_code == 200
        assert "dhara_database_up 0\n" in metrics.text
        assert (await client.get("/livez")).status_code == 200


async def test_the_unforeseen_is_a_500_without_details(
    client: httpx.AsyncClient, app: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(id: Any) -> Any:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr(app.parts.tasks, "get", broken)
    answer = await client.get("/api/v1/tasks/00000000-0000-7000-8000-000000000000", headers={"x-request-id": "find-me"})
    found = problem(answer, 500, "internal")
    assert "secret" not in answer.text
    assert found["request_id"] == "find-me"
    assert "find-me" in caplog.text
    assert "a secret detail" in caplog.text


async def test_a_missing_schema_is_a_503_that_says_so(client: httpx.AsyncClient, pool: Pool) -> None:
    await pool.execute("ALTER TABLE dhara.tasks RENAME TO elsewhere")
    found = problem(await post(client, b'{"type":"echo"}'), 503, "schema_error")
    assert "dhara migrate" in found["detail"]
