"""dhara.enqueue and dhara.enqueue_all: the rules of domain/validate.py, from SQL. One table of cases asks both."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from dhara.domain.validate import encode_json, new_task
from dhara.errors import InvalidTask
from dhara.store.ids import new_id
from dhara.store.tasks import Tasks
from tests import invariants
from tests.factories import Connection, flows, make_task, row

CASTS = {
    "payload": "json",
    "priority": "integer",
    "max_retries": "integer",
    "run_at": "timestamptz",
    "expires_at": "timestamptz",
    "delay": "float8",
    "timeout": "float8",
    "tags": "text[]",
    "id": "uuid",
}
TRACE = "00-" + "0af7651916cd43dd8448eb211c80319c" + "-b7ad6b7169203331-01"

# field, value, whether it is good; a timedelta means so far from the moment at which the case is tried
CASES: list[tuple[str, Any, bool]] = [
    *(("type", value, True) for value in ("a", "0", "email.send", "a" * 100, "a-b_c:d.e9")),
    *(
        ("type", value, False)
        for value in ("", "A", "a" * 101, ".a", "-a", "a b", "é", "a\n", "a\nb", "a/b", "😀", "'; --")
    ),
    *(("queue", value, True) for value in ("q", "q" * 100, "mail.eu-1")),
    *(("queue", value, False) for value in ("", "Q", "q" * 101, " q", "q\n")),
    *(("priority", value, True) for value in (0, 1, 100)),
    *(("priority", value, False) for value in (-1, 101, 2**31 - 1)),
    *(("max_retries", value, True) for value in (0, 20)),
    *(("max_retries", value, False) for value in (-1, 21)),
    *(("delay", value, True) for value in (0.0, 0.5, 365 * 86_400.0)),
    *(("delay", value, False) for value in (-0.001, 365 * 86_400.0 + 1, float("nan"), float("inf"), float("-inf"))),
    *(("timeout", value, True) for value in (0.001, 7 * 86_400.0)),
    *(("timeout", value, False) for value in (0.0, 0.0009, -1.0, 7 * 86_400.0 + 1, float("nan"), float("inf"))),
    *(("run_at", timedelta(seconds=s), True) for s in (-200, 0, 60, 364 * 86_400)),
    *(("run_at", timedelta(seconds=s), False) for s in (-86_400, -310, 366 * 86_400)),
    ("expires_at", timedelta(hours=1), True),
    ("expires_at", datetime(9999, 12, 30, tzinfo=UTC), True),
    ("expires_at", timedelta(seconds=-1), False),
    *(("idempotency_key", value, True) for value in ("k", "k" * 255, "ключ 𝄞", "'; --", "\x80")),
    *(("idempotency_key", value, False) for value in ("", "k" * 256, "a\nb", "a\x7f", "\x01")),
    *(("concurrency_key", value, True) for value in ("k", "k" * 255)),
    *(("concurrency_key", value, False) for value in ("", "k" * 256, "a\tb")),
    *(("tags", value, True) for value in ([], ["a"], ["t" * 100], [str(n) for n in range(32)])),
    *(("tags", value, False) for value in ([""], ["t" * 101], [str(n) for n in range(33)], ["a\n"])),
    ("traceparent", TRACE, True),
    *(("traceparent", value, False) for value in ("", "x", TRACE.upper(), TRACE + "0", TRACE + "\n")),
]
JSON_CASES: list[tuple[str, Any, bool]] = [
    ("null", None, True),
    ("empty", {}, True),
    ("text", "x", True),
    ("deep", json.loads('{"a":' * 64 + "1" + "}" * 64), True),
    ("too deep", json.loads('{"a":' * 65 + "1" + "}" * 65), False),
    ("deep list", json.loads("[" * 65 + "]" * 65), True),
    ("too deep list", json.loads("[" * 66 + "]" * 66), False),
    ("large", "x" * (256 * 1024 - 2), True),
    ("too large", "x" * (256 * 1024 - 1), False),
    ("nul", "a\x00b", False),
    ("nul in a key", {"a\x00b": 1}, False),
    ("surrogate", "\ud800", False),
]


async def call(db: Connection, **fields: Any) -> asyncpg.Record:
    named = ", ".join(f"{name} => ${n}::{CASTS.get(name, 'text')}" for n, name in enumerate(fields, 1))
    found = await db.fetchrow(f"SELECT * FROM dhara.enqueue({named})", *fields.values())
    assert found is not None
    return found


def domain_accepts(fields: dict[str, Any]) -> bool:
    try:
        new_task(fields, "{}", id=new_id(), now=datetime.now(UTC))
    except InvalidTask:
        return False
    return True


@pytest.mark.parametrize("field", sorted({case[0] for case in CASES}))
async def test_same_bounds_as_the_domain(db: Connection, field: str) -> None:
    for value, good in [case[1:] for case in CASES if case[0] == field]:
        value = datetime.now(UTC) + value if isinstance(value, timedelta) else value  # noqa: PLW2901
        fields = {"type": "t"} | {field: value}
        assert domain_accepts(fields) is good, value
        if good:
            found = await call(db, **fields)
            assert found["created"], value
            stored = (await row(db, found["task_id"])).get(field, value)
            if field not in ("delay", "run_at"):
                assert stored == value, value
        else:
            with pytest.raises(asyncpg.InvalidParameterValueError) as caught:
                await call(db, **fields)
            assert caught.value.column_name == field, value
            assert str(caught.value).startswith(f"dhara: {field}: ")


@pytest.mark.parametrize(("what", "value", "good"), JSON_CASES, ids=[case[0] for case in JSON_CASES])
async def test_same_payloads_as_the_domain(db: Connection, what: str, value: Any, good: bool) -> None:
    text = json.dumps(value)
    if good:
        encode_json(value, what="payload", most_bytes=256 * 1024)
        found = await call(db, type="t", payload=text)
        assert (await row(db, found["task_id"]))["payload"] == text
    else:
        with pytest.raises(InvalidTask):
            encode_json(value, what="payload", most_bytes=256 * 1024)
        with pytest.raises((asyncpg.InvalidParameterValueError, asyncpg.DataError, asyncpg.SyntaxOrAccessError)):
            await call(db, type="t", payload=text)
    assert await db.fetchval("SELECT count(*) FROM dhara.tasks") == int(good)


@pytest.mark.parametrize("field", ["type", "queue", "payload", "priority", "max_retries"])
async def test_nulls(db: Connection, field: str) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError):
        await call(db, **({"type": "t"} | {field: None}))


async def test_run_at_and_delay_exclude_each_other(db: Connection) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError, match="not both"):
        await call(db, type="t", run_at=datetime.now(UTC) + timedelta(hours=1), delay=1.0)


@pytest.mark.parametrize("value", ["infinity", "-infinity", "20000-01-01", "10000-01-01"])
@pytest.mark.parametrize("field", ["run_at", "expires_at"])
async def test_times_that_no_client_could_read_back(db: Connection, field: str, value: str) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError):
        await db.execute(f"SELECT dhara.enqueue(type => 't', {field} => '{value}')")


async def test_payload_bytes_are_kept(db: Connection, tasks: Tasks) -> None:
    payload = '{"b": 1.0,  "a":[1e2, 123456789012345678901234567890],\t"é":"\\u00e9"}'
    found = await call(db, type="t", payload=payload)
    assert (await tasks.get(found["task_id"])).payload == payload
    many = await db.fetch("SELECT * FROM dhara.enqueue_all($1::json)", f'[{{"type":"t","payload":{payload}}}]')
    assert (await tasks.get(many[0]["task_id"])).payload == payload


async def test_the_row_is_that_of_the_store(db: Connection, tasks: Tasks) -> None:
    options: dict[str, Any] = {
        "type": "mail.send",
        "queue": "mail",
        "priority": 3,
        "max_retries": 2,
        "idempotency_key": "k",
        "timeout": 2.5,
        "tags": ["x"],
        "concurrency_key": "c",
        "traceparent": TRACE,
    }
    found = await call(db, **options)
    assert tuple(found) == (found["task_id"], True, "PENDING")
    task = await tasks.get(found["task_id"])
    assert {name: getattr(task, name) for name in options} == options | {"tags": ("x",)}
    assert task.payload == "{}"
    assert task.id.version == 7
    assert task.run_at == task.created_at == task.updated_at
    assert await flows(db) == {("mail", "ENQUEUED", None, "PENDING"): 1}
    delayed = await call(db, type="t", delay=60.0)
    later = await tasks.get(delayed["task_id"])
    assert later.run_at - later.created_at == timedelta(seconds=60)
    assert not await invariants.violations(db)


async def test_idempotency(db: Connection) -> None:
    first = await call(db, type="t", payload='{"a":1,"b":2}', idempotency_key="k")
    again = await call(db, type="t", payload='{"b":2, "a":1.0}', idempotency_key="k")
    assert (again["task_id"], again["created"], again["status"]) == (first["task_id"], False, "PENDING")
    assert (await call(db, type="other", idempotency_key="k"))["created"]
    with pytest.raises(asyncpg.UniqueViolationError, match="another payload") as caught:
        await call(db, type="t", payload="[]", idempotency_key="k")
    assert str(first["task_id"]) in str(caught.value)
    done = await make_task(db, "COMPLETED", idempotency_key="done")
    standing = await call(db, type="t", idempotency_key="done")
    assert tuple(standing) == (done.id, False, "COMPLETED")


async def test_repeating_with_the_clients_id(db: Connection) -> None:
    id = new_id()
    for _ in range(2):
        found = await call(db, type="t", id=id)
        assert (found["task_id"], found["created"]) == (id, True)
    assert await db.fetchval("SELECT count(*) FROM dhara.tasks") == 1


async def test_rollback_leaves_nothing(db: Connection) -> None:
    transaction = db.transaction()
    await transaction.start()
    await call(db, type="t", idempotency_key="k")
    await transaction.rollback()
    assert await db.fetchval("SELECT count(*) FROM dhara.tasks") == 0
    assert await flows(db) == {}
    assert (await call(db, type="t", idempotency_key="k"))["created"]


async def test_all_in_order(db: Connection, tasks: Tasks) -> None:
    standing = await make_task(db, idempotency_key="k")
    given = [
        {"type": "a", "payload": {"n": 1}, "priority": 5},
        {"type": "t", "idempotency_key": "k"},
        {"type": "b", "payload": None, "tags": ["x", "y"], "delay": 60, "queue": "mail"},
    ]
    rows = await db.fetch("SELECT * FROM dhara.enqueue_all($1::json)", json.dumps(given))
    assert [(r["ord"], r["created"], r["status"]) for r in rows] == [
        (1, True, "PENDING"),
        (2, False, "PENDING"),
        (3, True, "PENDING"),
    ]
    assert rows[1]["task_id"] == standing.id
    first, third = await tasks.get(rows[0]["task_id"]), await tasks.get(rows[2]["task_id"])
    assert (first.payload, first.priority, first.queue) == ('{"n": 1}', 5, "default")
    # A payload of null is one, and not the default.
    assert (third.payload, third.tags, third.queue) == ("null", ("x", "y"), "mail")
    assert await db.fetch("SELECT * FROM dhara.enqueue_all('[]')") == []


async def test_all_or_none(db: Connection) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError):
        await db.execute("""SELECT dhara.enqueue_all('[{"type":"a"},{"type":"B"}]')""")
    assert await db.fetchval("SELECT count(*) FROM dhara.tasks") == 0


async def test_ids_made_by_the_database(db: Connection) -> None:
    before = datetime.now(UTC)
    ids = [row[0] for row in await db.fetch("SELECT dhara.new_id() FROM generate_series(1, 500)")]
    assert {(id.version, id.variant) for id in ids} == {(7, "specified in RFC 4122")}
    assert len(set(ids)) == 500
    assert abs((ids[0].int >> 80) / 1000 - before.timestamp()) < 60


async def test_a_role_of_its_own_may_enqueue_and_a_hijacked_search_path_does_no_harm(db: Connection) -> None:
    await db.execute(
        "CREATE SCHEMA evil; CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS"
        " $$ SELECT '2000-01-01'::timestamptz $$; SET search_path = evil, pg_catalog"
    )
    found = await call(db, type="t")
    assert (await row(db, found["task_id"]))["run_at"].year > 2020
