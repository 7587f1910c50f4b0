"""`AsyncClient` on a real database."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from dhara import (
    AsyncClient,
    Call,
    ConfigError,
    IdempotencyConflict,
    InvalidBatch,
    InvalidTask,
    NotFound,
    SchemaError,
    State,
    TaskFailed,
    Unavailable,
    WrongState,
)
from dhara.client.backend import PostgresBackend
from dhara.client.calls import build, build_many
from dhara.client.results import Poller
from dhara.domain.task import NewTask
from dhara.store.pool import DatabaseSettings, Pool
from dhara.store.tasks import BEGINNING, ZERO, Tasks, Watermark
from dhara.store.wakeup import Listener
from tests.factories import claim, make_task, make_worker, settle_all
from tests.waiting import Signal, eventually


def poller_of(client: AsyncClient) -> Poller:
    assert isinstance(client._backend, PostgresBackend)
    return client._backend.poller


async def test_an_enqueued_task_is_what_was_asked_for(client: AsyncClient) -> None:
    at = datetime.now(UTC) + timedelta(hours=1)
    handle = await client.enqueue(
        "email.send",
        msgspec.Raw(b'{"to":  "a@b.c", "n": 1.0}'),
        queue="mail",
        priority=50,
        max_retries=2,
        run_at=at,
        idempotency_key="k1",
        timeout=30,
        expires_at=at + timedelta(days=1),
        tags=["a", "b"],
        concurrency_key="c",
        traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    )
    assert handle.created
    task = await client.get(handle.id)
    assert task.payload == '{"to":  "a@b.c", "n": 1.0}'
    assert (task.type, task.queue, task.priority, task.max_retries, task.run_at) == (
        "email.send",
        "mail",
        50,
        2,
        at,
    )
    assert (task.idempotency_key, task.timeout, task.expires_at) == ("k1", 30.0, at + timedelta(days=1))
    assert (task.tags, task.concurrency_key) == (("a", "b"), "c")
    assert task.traceparent is not None
    assert await handle.status() is State.PENDING


async def test_a_delay_counts_from_the_databases_clock(client: AsyncClient) -> None:
    task = await client.get((await client.enqueue("t", delay=90)).id)
    assert (task.run_at - task.created_at).total_seconds() == pytest.approx(90, abs=0.001)


async def test_concurrent_enqueues_share_commits(client: AsyncClient, pool: Pool) -> None:
    handles = await asyncio.gather(*(client.enqueue("t", {"n": n}) for n in range(500)))
    assert len({handle.id for handle in handles}) == 500
    assert await pool.fetchval("SELECT count(*) FROM dhara.tasks") == 500
    commits = await pool.fetchval("SELECT count(DISTINCT xmin::text) FROM dhara.tasks")
    assert commits < 20


async def test_the_same_key_is_the_same_task(client: AsyncClient) -> None:
    first = await client.enqueue("t", {"a": 1, "b": 2}, idempotency_key="k")
    again = await client.enqueue("t", {"b": 2, "a": 1}, idempotency_key="k")
    other_type = await client.enqueue("u", {"a": 1}, idempotency_key="k")
    assert (first.created, again.created, other_type.created) == (True, False, True)
    assert first.id == again.id != other_type.id
    with pytest.raises(IdempotencyConflict) as caught:
        await client.enqueue("t", {"a": 2}, idempotency_key="k")
    assert caught.value.existing == first.id


async def test_a_conflict_harms_no_other_in_its_batch(client: AsyncClient) -> None:
    await client.enqueue("t", {"n": 0}, idempotency_key="k")
    answers = await asyncio.gather(
        *(client.enqueue("t", {"n": n}, idempotency_key="k" if n == 5 else None) for n in range(10)),
        return_exceptions=True,
    )
    assert [n for n, answer in enumerate(answers) if isinstance(answer, IdempotencyConflict)] == [5]
    assert (await client.list()).total == 10


async def test_a_value_that_only_the_database_refuses_harms_no_other(client: AsyncClient) -> None:
    # jsonb cannot hold that number, which comes to light when payloads under one key are compared.
    await client.enqueue("t", {}, idempotency_key="k")
    news = [build("t", {}, {"idempotency_key": "k"} if n == 3 else {}) for n in range(6)]
    # Callers are told before; this is what would come of it.
    news[3] = msgspec.structs.replace(news[3], payload='{"a": ' + "9" * 140_000 + "}")
    answers = await asyncio.gather(*map(client._backend.enqueue, news), return_exceptions=True)
    assert [n for n, answer in enumerate(answers) if isinstance(answer, Exception)] == [3]


async def test_many_in_order_over_several_statements(client: AsyncClient) -> None:
    handles = await client.enqueue_many(({"type": "t", "payload": n} for n in range(2_300)), queue="bulk")
    assert len(handles) == 2_300
    assert all(handle.created for handle in handles)
    task = await client.get(handles[1_234].id)
    assert (task.payload, task.queue) == ("1234", "bulk")
    assert (await client.list(queue="bulk")).total == 2_300
    assert await client.enqueue_many([]) == []


async def test_many_are_all_or_none(client: AsyncClient) -> None:
    standing = await client.enqueue("t", {"n": 0}, idempotency_key="k")
    items = [{"type": "t", "payload": {"n": n}} for n in range(1_500)]
    items[1_200] |= {"idempotency_key": "k"}
    with pytest.raises(IdempotencyConflict) as caught:
        await client.enqueue_many(items)
    assert (caught.value.index, caught.value.existing) == (1_200, standing.id)
    with pytest.raises(InvalidBatch) as wrong:
        await client.enqueue_many([{"type": "t"}, {"type": ""}])
    assert wrong.value.index == 1
    assert (await client.list()).total == 1


async def test_an_invalid_task_never_reaches_the_database(client: AsyncClient) -> None:
    with pytest.raises(InvalidTask, match="priority"):
        await client.enqueue("t", priority=101)
    assert (await client.list()).total == 0


async def test_lists_filter_and_page(client: AsyncClient, pool: Pool) -> None:
    done = await make_task(pool, State.COMPLETED, type="a")
    dead = await make_task(pool, State.DEAD, type="b", queue="q")
    await client.enqueue("a", tags=["x"])
    await client.enqueue("a", delay=100)
    assert [t.id for t in (await client.list(status="DEAD")).tasks] == [dead.id]
    assert [t.id for t in (await client.list(status=[State.COMPLETED, "CANCELED"])).tasks] == [done.id]
    assert (await client.list(type="a")).total == 3
    assert (await client.list(due="delayed")).total == 1
    assert (await client.list(due="ready")).total == 1
    assert (await client.list(tag="x")).total == 1
    first = await client.list(limit=3)
    assert first.next is not None
    rest = await client.list(limit=3, after=first.next)
    assert [t.id for t in rest.tasks] == [done.id]
    assert rest.next is None
    for wrong in ({"limit": 0}, {"limit": 501}, {"offset": -1}, {"due": "soon"}, {"status": "DONE"}):
        with pytest.raises(ValueError, match=r".+"):
            await client.list(**wrong)


async def test_cancel(client: AsyncClient, pool: Pool) -> None:
    handle = await client.enqueue("t")
    assert await handle.cancel() is State.PENDING
    assert await handle.status() is State.CANCELED
    assert await handle.cancel() is State.CANCELED
    running = await make_task(pool, State.RUNNING)
    assert await client.cancel(running.id, "enough") is State.RUNNING
    assert (await client.get(running.id)).cancel_requested_at is not None
    with pytest.raises(NotFound):
        await client.cancel(uuid4())
    with pytest.raises(NotFound, match="UUID"):
        await client.cancel("nonsense")


async def test_canceling_a_running_task_tells_its_worker(client: AsyncClient, pool: Pool, dsn: str) -> None:
    heard = Signal("a cancel hint")
    async with Listener(DatabaseSettings(dsn=dsn), lambda queue: None, heard.fire) as listener:
        await listener.connected.wait()
        running = await make_task(pool, State.RUNNING)
        await client.cancel(running.id)
        assert await heard.wait() == [str(running.locked_by)]


async def test_retry_revives_with_changes(client: AsyncClient, pool: Pool) -> None:
    dead = await make_task(pool, State.DEAD, payload='{"to": "wrong"}')
    task = await client.retry(dead.id, payload={"to": "right"}, queue="other", priority=9)
    assert (task.status, task.payload, task.queue, task.priority) == (
        State.PENDING,
        '{"to":"right"}',
        "other",
        9,
    )
    with pytest.raises(WrongState, match="PENDING"):
        await client.retry(dead.id)
    with pytest.raises(InvalidTask, match="priority"):
        await client.retry(dead.id, priority=1_000)
    with pytest.raises(NotFound):
        await client.retry(uuid4())


async def test_logs_and_attempts(client: AsyncClient, pool: Pool) -> None:
    task = await make_task(pool, State.COMPLETED, failures=1)
    assert [entry.event for entry in await client.logs(task.id)] == [
        "ENQUEUED",
        "CLAIMED",
        "RETRIED",
        "CLAIMED",
        "COMPLETED",
    ]
    assert [(a.attempt, a.outcome) for a in await client.attempts(task.id)] == [
        (1, "RETRIED"),
        (2, "COMPLETED"),
    ]
    with pytest.raises(NotFound):
        await client.logs(uuid4())


async def test_results_of_tasks_that_end_while_they_are_awaited(client: AsyncClient, pool: Pool) -> None:
    handles = [await client.enqueue("t", {"n": n}) for n in range(30)]
    waiting = asyncio.gather(*(handle.result(timeout=20) for handle in handles))
    await settle_all(pool, [await claim(pool, handle.id) for handle in handles])
    assert await waiting == [None] * 30


async def test_results_of_tasks_that_have_ended(client: AsyncClient, pool: Pool) -> None:
    done = await make_task(pool, State.COMPLETED, result='{"answer":[42,1.5,"ä"]}')
    assert await client.handle(done.id).result() == {"answer": [42, 1.5, "ä"]}
    assert (await client.wait(str(done.id))).id == done.id
    dead = await make_task(pool, State.DEAD, reason="permanent")
    with pytest.raises(TaskFailed) as caught:
        await client.handle(dead.id).result()
    assert (caught.value.task_id, caught.value.state, caught.value.reason) == (dead.id, "DEAD", "permanent")
    canceled = await client.enqueue("t")
    await canceled.cancel()
    with pytest.raises(TaskFailed, match="CANCELED"):
        await canceled.result()


async def test_a_result_that_does_not_come_in_time(client: AsyncClient) -> None:
    handle = await client.enqueue("t")
    with pytest.raises(TimeoutError, match="still PENDING"):
        await handle.result(timeout=0.05)
    with pytest.raises(TimeoutError, match="was its transaction committed"):
        await client.handle(uuid4()).result(timeout=0.05)


async def test_waiting_leaves_nothing_behind(client: AsyncClient, pool: Pool) -> None:
    done = await make_task(pool, State.COMPLETED)
    open_task = await client.enqueue("t")
    impatient = asyncio.create_task(open_task.result(timeout=60))
    await client.handle(done.id).result()
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    poller = poller_of(client)
    await eventually(lambda: not poller._waiters and poller._runner is not None and poller._runner.done())


async def test_closing_cancels_those_who_wait(dsn: str) -> None:
    async with AsyncClient(dsn) as client:
        waiting = asyncio.create_task((await client.enqueue("t")).result(timeout=60))
        await eventually(lambda: poller_of(client)._waiters)
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_enqueues_wake_idle_workers_only_for_what_is_ready(client: AsyncClient, dsn: str) -> None:
    heard = Signal("a wake-up")
    async with Listener(DatabaseSettings(dsn=dsn), heard.fire) as listener:
        await listener.connected.wait()
        await client.enqueue("t", queue="later", delay=60)
        await client.enqueue_many([{"type": "t"}] * 3, queue="many")
        await client.enqueue("t", queue="now")
        await eventually(lambda: sorted(filter(None, heard.values)) == ["many", "now"])


async def test_a_database_that_is_not_there() -> None:
    with pytest.raises(Unavailable) as caught:
        async with AsyncClient("postgresql://u:secret@127.0.0.1:1/x"):
            pass
    assert "secret" not in str(caught.value)
    for wrong in ("mysql://x", "ftp://127.0.0.1:8080"):
        with pytest.raises(ConfigError):
            async with AsyncClient(wrong):
                pass


async def test_a_database_without_the_schema(empty_dsn: str) -> None:
    async with AsyncClient(empty_dsn, patience=0.1) as client:
        with pytest.raises(SchemaError, match="migrate up"):
            await client.enqueue("t")
        with pytest.raises(SchemaError, match="migrate up"):
            await client.check()


async def test_a_client_that_is_not_open_says_so(dsn: str) -> None:
    client = AsyncClient(dsn)
    with pytest.raises(Unavailable, match="not open"):
        await client.enqueue("t")
    await client.close()


async def test_behind_a_pooler_nothing_is_prepared(dsn: str) -> None:
    async with AsyncClient(dsn, pooler=True) as client:
        handle = await client.enqueue("t")
        assert await handle.status() is State.PENDING


async def test_a_thousand_waiters_cost_a_few_queries_a_second(
    client: AsyncClient, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    handles = await client.enqueue_many([{"type": "t", "payload": n} for n in range(1_000)])
    asked: list[str] = []
    fetch = Pool.fetch

    async def counted(self: Pool, query: str, *args: object) -> object:
        asked.append(query)
        return await fetch(self, query, *args)

    monkeypatch.setattr(Pool, "fetch", counted)
    waiting = asyncio.gather(*(handle.result(timeout=60) for handle in handles))
    await asyncio.sleep(4)  # The pauses have grown to their longest.
    asked.clear()
    await asyncio.sleep(3)
    assert len(asked) <= 3 * 3
    await eventually(lambda: asked)
    monkeypatch.undo()
    worker = await make_worker(pool)
    claims = await Tasks(pool).claim(worker, ["t"], 1_000, [Watermark("default", 0, BEGINNING, ZERO, 1_000)])
    await settle_all(pool, claims)
    assert await waiting == [None] * 1_000


async def test_enqueue_many_by_copy_is_all_or_none(client: AsyncClient, pool: Pool) -> None:
    items = [{"type": "t", "payload": n, "delay": n % 2} for n in range(1_000)]
    handles = await client.enqueue_many(items, queue="mail")
    assert all(handle.created for handle in handles)
    assert [task.payload for task in (await client.list(limit=500)).tasks] == [str(n) for n in range(999, 499, -1)]
    assert (await client.get(handles[7].id)).payload == "7"
    with pytest.raises(InvalidBatch) as caught:
        await client.enqueue_many([*items, {"type": "t", "priority": 1_000}])
    assert caught.value.index == 1_000
    assert await pool.fetchval("SELECT count(*) FROM dhara.tasks") == 1_000


async def test_what_comes_late_takes_a_copy_under_way_back(client: AsyncClient, pool: Pool) -> None:
    many: list[dict[str, Any]] = [{"type": "t"}] * 5_001
    with pytest.raises(InvalidBatch) as refused:
        await client.enqueue_many([*many, {"type": "t", "priority": 1_000}])
    assert refused.value.index == 5_001
    assert await pool.fetchval("SELECT count(*) FROM dhara.tasks") == 0
    handles = await client.enqueue_many([*many, {"type": "t", "idempotency_key": "k"}])
    assert all(handle.created for handle in handles)
    rows = await pool.fetch("SELECT id FROM dhara.tasks ORDER BY id")
    assert [row["id"] for row in rows] == [handle.id for handle in handles]


async def test_a_copy_that_was_done_already_is_found(client: AsyncClient) -> None:
    """As after a COMMIT whose answer was lost."""
    new = [build("t", n, {}) for n in range(600)]
    for _ in range(2):
        assert await client._backend.enqueue_many(new) == [(task.id, True) for task in new]
    assert (await client.list()).total == 600


def test_what_is_alike_is_checked_once_and_made_apart() -> None:
    made = build_many(
        [
            {"type": "t", "payload": 1},
            {"type": "t", "payload": 2, "priority": 1},
            {"type": "t", "payload": 3},
            {"type": "t", "tags": ["a"]},
            {"type": "t", "priority": 1, "queue": "own"},
            Call(type="t", payload=4, defaults={"queue": "theirs", "priority": 9}),
            {"type": Call(type="t", payload=5, defaults={"queue": "theirs", "priority": 9}), "max_retries": 1},
        ],
        {"queue": "all"},
    )

    def shown(task: NewTask) -> tuple[object, ...]:
        return task.payload, task.queue, task.priority, task.tags, task.max_retries

    assert [shown(task) for task in made] == [
        ("1", "all", 0, (), 5),
        ("2", "all", 1, (), 5),
        ("3", "all", 0, (), 5),
        ("{}", "all", 0, ("a",), 5),
        ("{}", "own", 1, (), 5),
        ("4", "all", 9, (), 5),
        ("5", "all", 9, (), 1),
    ]
    assert sorted(task.id for task in made) == [task.id for task in made]
    with pytest.raises(InvalidBatch) as caught:
        build_many([{"type": "t", "priority": 1}, {"type": "t", "priority": True}], {})
    assert caught.value.index == 1
