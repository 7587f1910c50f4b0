"""The invariants find what they are for: each is shown a database that breaks it, and a sound one."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from dhara.domain.lifecycle import State
from dhara.domain.task import Task
from dhara.store.invariants import Scope
from tests import invariants
from tests.factories import Connection, make_task, make_worker
from tests.invariants import Violations

DEAD_WORKER = UUID(int=7)
NOW = datetime.now(UTC)

# name -> (the check, what breaks it; $1 is the task's id)
Check = Callable[[Connection, Task], Awaitable[Violations]]


async def _strangers(db: Connection, task: Task) -> Violations:
    return await invariants.i2(db, [r[0] for r in await db.fetch("SELECT id FROM dhara.tasks WHERE type = 't'")])


async def _running(db: Connection, task: Task) -> Violations:
    return [row for row in await invariants.i3(db) if row["what"] == "still RUNNING"]


HISTORY = "INSERT INTO dhara.task_history (task_id, lease, claim_seq, claimed_at, generation, attempt, event)"
BROKEN: dict[str, tuple[Check, str]] = {
    "i1": (lambda db, task: invariants.i1(db, [task.id]), "DELETE FROM dhara.tasks WHERE id = $1"),
    "i2": (
        lambda db, task: invariants.i2(db),
        "DROP INDEX dhara.tasks_idempotency; UPDATE dhara.tasks SET idempotency_key = 'same'",
    ),
    "i2 nobody's": (_strangers, "UPDATE dhara.tasks SET type = 'stranger' WHERE id = $1"),
    "i3": (_running, "UPDATE dhara.tasks SET status = 'RUNNING' WHERE id = $1"),
    "i4 other end": (
        lambda db, task: invariants.i4(db),
        "UPDATE dhara.task_history SET event = 'RETRIED' WHERE task_id = $1",
    ),
    "i4 unknown move": (
        lambda db, task: invariants.i4(db),
        "UPDATE dhara.task_history SET event = 'EXPLODED' WHERE task_id = $1",
    ),
    "i4 broken path": (
        lambda db, task: invariants.i4(db),
        f"{HISTORY} VALUES ($1, NULL, NULL, NULL, 1, 1, 'REVIVED'); UPDATE dhara.tasks SET status = 'PENDING' WHERE id = $1",
    ),
    "i4 in silence": (lambda db, task: invariants.i4(db), "DELETE FROM dhara.task_history WHERE task_id = $1"),
    "i5 gap": (
        lambda db, task: invariants.i5(db),
        "UPDATE dhara.task_history SET attempt = attempt + 1 WHERE task_id = $1 AND event = 'COMPLETED'",
    ),
    "i5 row": (lambda db, task: invariants.i5(db), "UPDATE dhara.tasks SET attempts = 5 WHERE id = $1"),
    "i5 failures": (
        lambda db, task: invariants.i5(db),
        "UPDATE dhara.tasks SET failures = max_retries + 2 WHERE id = $1",
    ),
    "i6": (
        lambda db, task: invariants.i6(db),
        (
            "UPDATE dhara.task_history SET lease = 'c0ffee00-0000-4000-8000-000000000000' WHERE claim_seq IS NOT NULL;"
            f" {HISTORY} VALUES ($1, 'c0ffee00-0000-4000-8000-000000000000', 0, now(), 1, 9, 'COMPLETED')"
        ),
    ),
    "i7": (
        lambda db, task: invariants.i7(db),
        f"{HISTORY} VALUES ($1, gen_random_uuid(), 0, now() - interval '1 day', 1, 9, 'COMPLETED')",
    ),
    "i8": (
        lambda db, task: invariants.i8(db),
        "UPDATE dhara.task_history SET claim_seq = seq + 1000 WHERE task_id = $1 AND event = 'COMPLETED'",
    ),
    "i9": (lambda db, task: invariants.i9(db), f"{HISTORY} VALUES ($1, NULL, 0, now(), 1, 9, 'COMPLETED')"),
    "i20 states": (lambda db, task: invariants.counted_states(db), "UPDATE dhara.counters SET n = n + 1"),
    "i20 events": (lambda db, task: invariants.counted_events(db), "UPDATE dhara.counters SET n = n + 1"),
    "i10": (
        lambda db, task: invariants.i10(db, 6.0),
        (
            "UPDATE dhara.task_history SET event = 'REAPED', reason = 'lease lost: silent', worker_id = w.id"
            " FROM dhara.workers AS w WHERE w.state = 'lost' AND task_id = $1"
        ),
    ),
    "i10 healthy": (
        lambda db, task: invariants.i10(db, 0.0, [DEAD_WORKER]),
        (
            "UPDATE dhara.task_history SET event = 'REAPED', reason = 'lease lost: silent', worker_id = w.id"
            " FROM dhara.workers AS w WHERE w.state = 'lost' AND task_id = $1"
        ),
    ),
    "i11": (
        lambda db, task: invariants.i11(db, {DEAD_WORKER: NOW - timedelta(seconds=30)}, 5.0),
        (
            f"UPDATE dhara.task_history SET worker_id = '{DEAD_WORKER}', claimed_at = at - interval '1 hour', event = 'REAPED'"
            " WHERE task_id = $1"
        ),
    ),
    "i13": (
        lambda db, task: invariants.i13(db),
        (
            "INSERT INTO dhara.task_history (task_id, lease, claim_seq, claimed_at, generation, attempt, event)"
            " VALUES ($1, gen_random_uuid(), nextval('dhara.task_history_seq'), now(), 1, 2, 'COMPLETED')"
        ),
    ),
    "i14 none": (lambda db, task: invariants.i14(db), "DELETE FROM effects WHERE task = $1"),
    "i14 two": (lambda db, task: invariants.i14(db), "INSERT INTO effects VALUES ($1)"),
    "i14 nobody's": (
        lambda db, task: invariants.i14(db),
        "UPDATE effects SET task = gen_random_uuid() WHERE task = $1",
    ),
    "i15": (
        lambda db, task: invariants.i15(db),
        "UPDATE dhara.tasks SET status = 'RUNNING', run_at = now() + interval '1 hour' WHERE id = $1",
    ),
    "stored delays": (
        lambda db, task: invariants.stored_delays(db, 1.0, 3600.0),
        (
            "WITH h AS (UPDATE dhara.task_history SET event = 'RETRIED' WHERE task_id = $1) UPDATE dhara.tasks SET"
            " status = 'PENDING', failures = 2, run_at = updated_at + interval '3.1 seconds' WHERE id = $1"
        ),
    ),
    "i17": (
        lambda db, task: invariants.i17(db),
        "UPDATE dhara.tasks SET unique_key = 'k', unique_scope = 'open' WHERE status = 'PENDING' AND id <> $1",
    ),
    "i17 final": (
        lambda db, task: invariants.i17(db),
        "UPDATE dhara.tasks SET unique_key = 'k', unique_slot = 'k', unique_scope = 'open' WHERE id = $1",
    ),
    "i19": (
        lambda db, task: invariants.i19(db),
        "INSERT INTO dhara.task_history (seq, task_id, generation, attempt, event) VALUES (0, $1, 1, 0, 'CANCEL_REQUESTED')",
    ),
    "i21": (
        lambda db, task: invariants.i21(db),
        "UPDATE dhara.task_history SET at = at - interval '1 hour' WHERE task_id = $1 AND event = 'COMPLETED'",
    ),
    "i21 twice": (
        lambda db, task: invariants.i21(db),
        "UPDATE dhara.task_history SET claim_seq = seq WHERE task_id = $1",
    ),
    "i22": (
        lambda db, task: invariants.i22(db, {task.id: hashlib.md5(task.payload.encode()).hexdigest()}),
        "UPDATE dhara.tasks SET payload = '{\"a\":  1}' WHERE id = $1",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_violation_is_found(db: Connection, name: str) -> None:
    check, breaking = BROKEN[name]
    await db.execute("CREATE TABLE effects (task uuid NOT NULL)")
    await make_worker(db, id=DEAD_WORKER, state="lost")
    task = await make_task(db, State.COMPLETED, failures=1, payload='{"a": 1}')
    await db.execute("INSERT INTO effects VALUES ($1)", task.id)
    await make_task(db, State.PENDING)
    await make_task(db, State.PENDING)
    await make_task(db, State.CANCELED, cancel_requested=True)
    assert await invariants.violations(db) == {}
    assert await check(db, task) == []
    await db.execute("SET session_replication_role = replica")  # no triggers: they would refuse most of this
    for statement in breaking.split(";"):
        await db.execute(statement, *[task.id] * ("$1" in statement))
    assert await check(db, task)


async def test_the_dead_are_claimed_again_in_time(db: Connection) -> None:
    worker = await make_worker(db, id=uuid4())
    task = await make_task(db, State.RUNNING, worker=worker)
    died = await db.fetchval("SELECT clock_timestamp()")
    assert [row["task_id"] for row in await invariants.i11(db, {worker: died}, 60)] == [task.id]


async def test_sessions_left_in_a_transaction(dsn: str, db: Connection) -> None:
    """I24: what a crash has left behind is found by the name of its session."""
    assert await invariants.i24(db, Scope(idle=0.0)) == []
    left = await asyncpg.connect(dsn, server_settings={"application_name": "dhara runner"})
    await left.execute("BEGIN; SELECT pg_advisory_lock(1)")
    assert [row["what"] for row in await invariants.i24(db, Scope(idle=0.0))] == ["idle in a transaction"]
    await left.execute("COMMIT")
    assert [row["what"] for row in await invariants.i24(db, Scope(idle=0.0))] == ["an advisory lock is held"]
    await left.close()
