"""enqueue.sql and existing.sql: new tasks, and those that stand in their way."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dhara.domain.lifecycle import State
from dhara.domain.task import Enqueued
from dhara.errors import IdempotencyConflict
from dhara.store.ids import new_id
from dhara.store.tasks import Tasks
from tests.factories import Connection, flows, history, make_task, new_task, row


def made(answer: Enqueued | IdempotencyConflict) -> Enqueued:
    assert isinstance(answer, Enqueued)
    return answer


async def test_whole_row(tasks: Tasks, db: Connection) -> None:
    expires = datetime(2999, 1, 1, tzinfo=UTC)
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    new = new_task(
        "mail.send",
        payload='{"b": 1.0,  "a":[1e2]}',
        queue="mail",
        priority=7,
        max_retries=3,
        idempotency_key="k",
        timeout=1.5,
        expires_at=expires,
        tags=("x", "y"),
        concurrency_key="c",
        traceparent=trace,
    )
    answer = made((await tasks.enqueue([new]))[0])
    found = await row(db, new.id)
    now = found["created_at"]
    assert {key: value for key, value in found.items() if value is not None} == {
        "id": new.id,
        "type": "mail.send",
        "payload": '{"b": 1.0,  "a":[1e2]}',
        "queue": "mail",
        "priority": 7,
        "max_retries": 3,
        "idempotency_key": "k",
        "timeout": 1.5,
        "expires_at": expires,
        "tags": ["x", "y"],
        "concurrency_key": "c",
        "traceparent": trace,
        "status": "PENDING",
        "attempts": 0,
        "failures": 0,
        "crashes": 0,
        "snoozes": 0,
        "generation": 1,
        "run_at": now,
        "created_at": now,
        "updated_at": now,
    }
    assert answer.created
    assert answer.task == await tasks.get(new.id)
    assert await history(db, new.id) == []
    assert await flows(db) == {("mail", "ENQUEUED", None, "PENDING"): 1}


async def test_defaults(tasks: Tasks, db: Connection) -> None:
    new = new_task()
    assert made((await tasks.enqueue([new]))[0]).task == await tasks.get(new.id)
    found = await row(db, new.id)
    assert (found["queue"], found["priority"], found["max_retries"], found["payload"]) == ("default", 0, 5, "{}")
    assert found["tags"] is None


async def test_times(tasks: Tasks) -> None:
    ahead = datetime.now(UTC) + timedelta(hours=1)
    news = [
        new_task(run_at=ahead),
        new_task(delay=90.0),
        new_task(run_at=datetime.now(UTC) - timedelta(minutes=4)),
        new_task(delay=0.0),
    ]
    at, delayed, past, zero = [made(answer).task for answer in await tasks.enqueue(news)]
    assert at.run_at == ahead
    assert delayed.run_at == delayed.created_at + timedelta(seconds=90)
    # A time in the past counts as now, or it would undercut a watermark.
    assert past.run_at == past.created_at
    assert zero.run_at == zero.created_at


async def test_many_in_order_with_counts(tasks: Tasks, db: Connection) -> None:
    news = [new_task(queue="ab"[n % 2], idempotency_key=f"{-n}") for n in range(7)]
    answers = await tasks.enqueue(news)
    assert [made(answer).task.id for answer in answers] == [new.id for new in news]
    assert await flows(db) == {("a", "ENQUEUED", None, "PENDING"): 4, ("b", "ENQUEUED", None, "PENDING"): 3}


async def test_payload_bytes_come_back(tasks: Tasks) -> None:
    payloads = [
        '{"a":1.0,"a2":1,"big":123456789012345678901234567890,"neg":-0}',
        '"\\u00e9 é 𝄞"',
        "null",
        " [ ] ",
        '{"x":1e400}',
        "[" * 60 + "]" * 60,
    ]
    news = [new_task(payload=payload) for payload in payloads]
    await tasks.enqueue(news)
    assert [(await tasks.get(new.id)).payload for new in news] == payloads


@pytest.mark.parametrize("state", State)
async def test_key_returns_the_first_whatever_its_state(tasks: Tasks, db: Connection, state: State) -> None:
    first = await make_task(db, state, idempotency_key="k", payload='{"a": 1, "b": 2}')
    before = await flows(db)
    answer = made((await tasks.enqueue([new_task(idempotency_key="k", payload='{"b":2,"a":1.0}')]))[0])
    assert answer == Enqueued(first, created=False)
    assert await flows(db) == before


async def test_key_is_per_type(tasks: Tasks) -> None:
    answers = await tasks.enqueue([new_task("a", idempotency_key="k"), new_task("b", idempotency_key="k")])
    assert [made(answer).created for answer in answers] == [True, True]


async def test_other_payload_conflicts_without_harming_others(tasks: Tasks, db: Connection) -> None:
    first = await make_task(db, idempotency_key="k", payload='{"a":1}')
    fresh, bad = new_task(), new_task(idempotency_key="k", payload='{"a":2}')
    created, conflict = await tasks.enqueue([fresh, bad])
    assert made(created).created
    assert isinstance(conflict, IdempotencyConflict)
    assert conflict.existing == first.id
    assert await db.fetchval("SELECT count(*) FROM dhara.tasks") == 2


async def test_duplicates_within_one_batch(tasks: Tasks, db: Connection) -> None:
    news = [new_task(idempotency_key="k"), new_task(idempotency_key="k"), new_task(idempotency_key="k", payload="[]")]
    answers = await tasks.enqueue(news)
    winners = [answer.task.id for answer in answers if isinstance(answer, Enqueued) and answer.created]
    assert len(winners) == 1
    assert await db.fetchval("SELECT count(*) FROM dhara.tasks") == 1
    assert isinstance(answers[2], IdempotencyConflict) or isinstance(answers[0], IdempotencyConflict)


async def test_repeating_after_an_ambiguous_commit(tasks: Tasks, db: Connection) -> None:
    news = [new_task(), new_task(idempotency_key="k")]
    first = await tasks.enqueue(news)
    assert await tasks.enqueue(news) == first
    assert await flows(db) == {("default", "ENQUEUED", None, "PENDING"): 2}


async def test_nothing(tasks: Tasks, db: Connection) -> None:
    assert await tasks.enqueue([]) == []
    assert await flows(db) == {}


@pytest.mark.parametrize(
    "fields", [{"priority": 101}, {"max_retries": 21}, {"type": ""}, {"queue": "q" * 101}, {"payload": "{"}]
)
async def test_unvalidated_tasks_are_refused_whole(tasks: Tasks, db: Connection, fields: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=r"dhara: task|invalid input syntax for type json"):
        await tasks.enqueue([new_task(), new_task(**fields)])
    assert await db.fetchval("SELECT count(*) FROM dhara.tasks") == 0
    assert await flows(db) == {}


async def test_ids_are_the_clients(tasks: Tasks) -> None:
    id = new_id()
    assert made((await tasks.enqueue([new_task(id=id)]))[0]).task.id == id
