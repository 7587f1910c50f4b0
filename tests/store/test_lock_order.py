"""Pairs of batch statements on the same rows, given in opposite order, never deadlock.

A third session holds the rows in the middle; both statements start and go as far as they can; then the rows are let go.
If the two take rows in different orders, each now holds some that the other wants: a deadlock, every time.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import asyncpg
import pytest

from dhara.domain.lifecycle import Event, State
from dhara.domain.task import Task
from dhara.errors import NotFound
from dhara.store.tasks import ZERO, Tasks
from dhara.store.workers import Workers
from tests import invariants
from tests.factories import Connection, lane, make_task, make_worker, new_task, settlement
from tests.waiting import eventually

ROWS = 12
# The plans of large tables, in which rows are met in the order of the arguments, not of the heap.
LARGE = {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off", "deadlock_timeout": "100ms"}
Statement = Callable[[Tasks, list[Task]], Awaitable[Any]]


async def _settle(tasks: Tasks, rows: list[Task]) -> Any:
    return await tasks.settle([settlement(task, Event.RETRIED) for task in rows if task.lease])


async def _reap(tasks: Tasks, rows: list[Task]) -> Any:
    worker = next(task.locked_by for task in rows if task.locked_by)
    return await tasks.reap(worker, beat_seq=None, claimed_before=0, reason="crashed")


async def _cancel(tasks: Tasks, rows: list[Task]) -> Any:
    for task in rows:
        with suppress(NotFound):  # pruned meanwhile
            await tasks.request_cancel(task.id)


async def _claim(tasks: Tasks, rows: list[Task]) -> Any:
    lanes = [
        lane(priority=priority)
        for priority in sorted({task.priority for task in rows}, reverse=rows[0].id > rows[-1].id)
    ]
    return await tasks.claim(ZERO, ["t"], ROWS, lanes)


async def _expire(tasks: Tasks, rows: list[Task]) -> Any:
    return await tasks.expire()


async def _prune(tasks: Tasks, rows: list[Task]) -> Any:
    return await tasks.prune(ZERO, 0, 0)


async def _beat(tasks: Tasks, rows: list[Task]) -> Any:
    workers = list(dict.fromkeys(task.locked_by for task in rows if task.locked_by))
    return await Workers(tasks.db).beat(workers, [1] * len(workers))


STATEMENTS: dict[str, Statement] = {
    "settle": _settle,
    "reap": _reap,
    "cancel": _cancel,
    "claim": _claim,
    "expire": _expire,
    "prune": _prune,
    "beat": _beat,
}


async def _rows(db: Connection) -> list[Task]:
    """Rows for everybody: RUNNING ones of three workers, PENDING (some expired) and final ones."""
    workers = [await make_worker(db) for _ in range(3)]
    made = []
    for n in range(ROWS):
        state = (State.RUNNING, State.RUNNING, State.PENDING, State.COMPLETED)[n % 4]
        fields: dict[str, Any] = {"worker": workers[n // 4]} if state is State.RUNNING else {}
        expires = -1.0 if n % 8 == 2 else None
        made.append(await make_task(db, state, priority=n % 3, age=60, expires_in=expires, **fields))
    return made


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations_with_replacement(STATEMENTS, 2)))
async def test_opposite_order(dsn: str, db: Connection, one: str, other: str) -> None:
    rows = await _rows(db)
    connections = [await asyncpg.connect(dsn, server_settings=LARGE) for _ in range(2)]
    pids = [connection.get_server_pid() for connection in connections]
    try:
        async with db.transaction():
            middle = rows[ROWS // 3 : -(ROWS // 3)]
            await db.fetch("SELECT FROM dhara.tasks WHERE id = ANY ($1) FOR UPDATE", [task.id for task in middle])
            holder = [task.locked_by for task in middle if task.locked_by]
            await db.fetch("SELECT FROM dhara.workers WHERE id = ANY ($1) FOR UPDATE", holder)
            running = [
                asyncio.ensure_future(_in_transaction(connections[0], STATEMENTS[one], rows)),
                asyncio.ensure_future(_in_transaction(connections[1], STATEMENTS[other], rows[::-1])),
            ]

            async def stands_still() -> bool:
                """Each has ended or waits."""
                query = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY ($1) AND wait_event_type = 'Lock'"
                waiting = await db.fetchval(query, pids)
                return bool(waiting + sum(future.done() for future in running) == 2)

            await eventually(stands_still)
        await asyncio.gather(*running)
    finally:
        for connection in connections:
            await connection.close()
    assert not await invariants.violations(db)


async def _in_transaction(connection: Connection, statement: Statement, rows: list[Task]) -> None:
    # A statement at a time for cancel, whose rows are single: several in one transaction are the caller's own order.
    if statement is _cancel:
        await statement(Tasks(connection), rows)
    else:
        async with connection.transaction():
            await statement(Tasks(connection), rows)


async def test_batches_with_the_same_keys_in_opposite_order(dsn: str, db: Connection) -> None:
    """Both batches meet a key that a third holds; they take keys in one order, so neither holds what the other wants."""
    keys = [f"k{n}" for n in range(ROWS)]
    connections = [await asyncpg.connect(dsn, server_settings=LARGE) for _ in range(2)]
    pids = [connection.get_server_pid() for connection in connections]
    try:
        transaction = db.transaction()
        await transaction.start()
        await Tasks(db).enqueue([new_task(idempotency_key=key) for key in keys[ROWS // 2 : ROWS // 2 + 1]])
        running = [
            asyncio.ensure_future(Tasks(connection).enqueue([new_task(idempotency_key=key) for key in ordered]))
            for connection, ordered in zip(connections, (keys, keys[::-1]), strict=True)
        ]

        async def both_wait() -> bool:
            query = "SELECT count(*) FROM pg_stat_activity WHERE pid = ANY ($1) AND wait_event_type = 'Lock'"
            return bool(await db.fetchval(query, pids) == 2)

        await eventually(both_wait)
        await transaction.rollback()
        await asyncio.gather(*running)
    finally:
        for connection in connections:
            await connection.close()
    assert await db.fetchval("SELECT count(*) FROM dhara.tasks") == ROWS
