"""Tasks made by the database itself, where enqueueing them is not what is measured."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias

import asyncpg

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

PAYLOAD = {"to": "someone@example.org", "subject": "Hello", "n": 12_345, "items": ["a", "b", "c"], "note": "x" * 12}

# UUIDv7: milliseconds in front, ordered within the statement.
_ID = (
    """(lpad(to_hex({ms}), 12, '0') || '7' || substr(md5(g::text), 1, 3) || '8' || substr(md5(g::text), 4, 15))::uuid"""
)

_PENDING = """
INSERT INTO {schema}.tasks (id, type, queue, payload, priority, run_at, created_at, updated_at)
SELECT {id}, CASE WHEN $7::int > 1 THEN 'bench.type' || g % $7::int ELSE $2 END,
       CASE WHEN $8::int > 1 THEN 'bench' || g % $8::int ELSE $3 END, $4::text::json, $5,
       clock_timestamp() + $6 * interval '1 second' + g * interval '1 microsecond',
       clock_timestamp(), clock_timestamp()
FROM generate_series(1, $1::int) AS g
"""

_COUNTED = "INSERT INTO {schema}.counters (n, queue, event, from_state, to_state) VALUES ($1, $2, $3, $4, $5)"

# Twenty types, ten queues, two hundred workers; one in a hundred canceled, one in a thousand DEAD, one in ten tagged.
_FINISHED = """
INSERT INTO {schema}.tasks (id, type, queue, payload, run_at, created_at, updated_at, started_at, completed_at, lease,
                            locked_by, claim_seq, attempts, failures, status, reason, fingerprint, last_error, tags, result)
SELECT {id}, 'bench.type' || g % 20, 'bench' || g % 10, $3::text::json, at, at, at + interval '6 ms', at + interval '1 ms',
       at + interval '6 ms', md5(g::text)::uuid, lpad(to_hex(g % 200 + 1), 32, '0')::uuid, g, 1,
       CASE WHEN g % 1000 = 0 THEN 6 ELSE 0 END,
       CASE WHEN g % 1000 = 0 THEN 'DEAD' WHEN g % 100 = 1 THEN 'CANCELED' ELSE 'COMPLETED' END,
       CASE WHEN g % 1000 = 0 THEN 'exhausted' WHEN g % 100 = 1 THEN 'canceled by an operator' END,
       CASE WHEN g % 1000 = 0 THEN md5((g % 7)::text) END, CASE WHEN g % 1000 = 0 THEN 'ValueError: no' END,
       CASE WHEN g % 10 = 0 THEN ARRAY['tag' || g % 50] END, CASE WHEN g % 1000 <> 0 AND g % 100 <> 1 THEN 'null'::json END
FROM (SELECT g, clock_timestamp() - ($5::int - g + 1) * $4::float8 * interval '1 second' AS at
      FROM generate_series($1::int, $2::int) AS g) AS made
"""
_FINISHED_MS = "(extract(epoch FROM at) * 1000)::bigint"

_HISTORY = """
INSERT INTO {schema}.task_history (seq, task_id, lease, worker_id, claim_seq, claimed_at, at, generation, attempt, event, reason)
SELECT claim_seq + $1, id, lease, locked_by, claim_seq, started_at, completed_at, 1, 1, status, reason
FROM {schema}.tasks WHERE claim_seq BETWEEN $2 AND $3 AND status <> 'RUNNING'
"""
_PIECE = 250_000


async def pending(
    db: Connection,
    schema: str,
    count: int,
    *,
    type: str = "bench.nothing",
    queue: str = "default",
    priority: int = 0,
    due_in: float = 0.0,
    types: int = 1,
    queues: int = 1,
) -> None:
    """`count` PENDING tasks, as if enqueued by COPY in one transaction; `due_in` seconds from now.

    With `types` or `queues` they are spread over as many: bench.type0, ... and bench0, ...
    """
    import msgspec

    ms = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint + g / 100"
    payload = msgspec.json.encode(PAYLOAD).decode()
    async with db.transaction():
        made = _PENDING.format(schema=schema, id=_ID.format(ms=ms))
        await db.execute(made, count, type, queue, payload, priority, due_in, types, queues, timeout=600)
        for name in [queue] if queues == 1 else [f"bench{n}" for n in range(queues)]:
            await db.execute(_COUNTED.format(schema=schema), count // queues, name, "ENQUEUED", None, "PENDING")


async def finished(
    dsn: str,
    schema: str,
    count: int,
    *,
    days: float = 6.0,
    history: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """`count` final tasks, evenly over the last `days`, with their history and their place in the counters.

    By two connections; the triggers that refuse rows which never were PENDING are passed over.
    """
    import msgspec

    payload = msgspec.json.encode(PAYLOAD).decode()
    pieces = iter([(low, min(low + _PIECE - 1, count)) for low in range(1, count + 1, _PIECE)])
    made = _FINISHED.format(schema=schema, id=_ID.format(ms=_FINISHED_MS))
    done = 0

    async def fill() -> None:
        nonlocal done
        db = await asyncpg.connect(dsn)
        await db.execute("SET session_replication_role = replica")
        for low, high in pieces:
            await db.execute(made, low, high, payload, days * 86_400 / count, count, timeout=600)
            done += high - low + 1
            if done % 2_000_000 < _PIECE:
                say(f"{done:,} of {count:,} final tasks made")
        await db.close()

    await asyncio.gather(fill(), fill())
    db = await asyncpg.connect(dsn)
    if history:
        await _add_history(db, schema, count)
    for queue in range(10):
        share = count // 10
        ends = {"DEAD": share // 100 if queue == 0 else 0, "CANCELED": share // 10 if queue == 1 else 0}
        ends["COMPLETED"] = share - sum(ends.values())
        moves = [("ENQUEUED", None, "PENDING", share), ("CLAIMED", "PENDING", "RUNNING", share)]
        moves += [(event, "RUNNING", event, n) for event, n in ends.items() if n]
        for event, source, target, n in moves:
            await db.execute(_COUNTED.format(schema=schema), n, f"bench{queue}", event, source, target)
    await db.close()


async def _add_history(db: Connection, schema: str, count: int) -> None:
    """One row an attempt, in one pass over the table: nothing indexes claim_seq."""
    await db.execute("SET session_replication_role = replica")
    await db.execute("SET enable_seqscan = on; SET work_mem = '64MB'")
    await db.execute(_HISTORY.format(schema=schema), count, 1, count, timeout=900)
    await db.execute(f"SELECT setval('{schema}.task_history_seq', $1)", 3 * count + 10)
