"""Every ordered pair of ten operations, by two connections, on the same rows: one in an open transaction, the other comes
while it is open, then the first commits. None deadlocks, whoever is first; and the invariants hold afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import pytest

from dhara.domain.lifecycle import Event, State
from dhara.domain.task import Task
from dhara.errors import NotFound, WrongState
from dhara.store.queues import Queues
from dhara.store.tasks import ZERO, Tasks
from dhara.store.workers import Workers
from tests import invariants
from tests.factories import Connection, lane, make_task, make_worker, settlement
from tests.waiting import eventually

# The plans of large tables, in which rows are met in the order of the arguments, not of the heap.
LARGE = {"enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off", "deadlock_timeout": "100ms"}


class Rows(NamedTuple):
    """What both operations are about: a queue of its own, with rows in every state."""

    queue: str
    worker: UUID
    running: list[Task]
    pending: list[Task]
    dead: Task


Operation = Callable[[Connection, Rows], Awaitable[Any]]


async def _cancel(db: Connection, rows: Rows) -> None:
    for task in sorted([*rows.running, *rows.pending], key=lambda task: task.id):
        with suppress(NotFound, WrongState):
            await Tasks(db).request_cancel(task.id)


async def _revive(db: Connection, rows: Rows) -> None:
    with suppress(NotFound, WrongState):
        await Tasks(db).revive(rows.dead.id)


def _settle(event: Event) -> Operation:
    return lambda db, rows: Tasks(db).settle([settlement(task, event) for task in rows.running])


OPERATIONS: dict[str, Operation] = {
    "claim": lambda db, rows: Tasks(db).claim(rows.worker, ["t"], 10, [lane(rows.queue)]),
    "beat": lambda db, rows: Workers(db).beat([rows.worker], [1]),
    "settle": _settle(Event.COMPLETED),
    "reap": lambda db, rows: Tasks(db).reap(rows.worker, beat_seq=None, claimed_before=0, reason="crashed"),
    "cancel": _cancel,
    "revive": _revive,
    "release": _settle(Event.RELEASED),
    "expire": lambda db, rows: Tasks(db).expire(),
    "prune": lambda db, rows: Tasks(db).prune(ZERO, 0, 0),
    "pause": lambda db, rows: Queues(db).pause(rows.queue, "a test"),
}


async def _rows(db: Connection, queue: str) -> Rows:
    worker = await make_worker(db)
    running, pending = [], []
    for n in range(3):  # their ids alternate, so that an order by kind would not do
        running.append(await make_task(db, State.RUNNING, queue=queue, worker=worker, age=60))
        expires = -1.0 if n == 1 else None
        pending.append(await make_task(db, State.PENDING, queue=queue, age=60, expires_in=expires))
    dead = await make_task(db, State.DEAD, queue=queue, age=60)
    await make_task(db, State.COMPLETED, queue=queue, age=60)
    return Rows(queue, worker, running, pending, dead)


@pytest.mark.parametrize("first", OPERATIONS)
async def test_whoever_is_first_nothing_deadlocks(dsn: str, db: Connection, first: str) -> None:
    one, other = [await asyncpg.connect(dsn, server_settings=LARGE) for _ in range(2)]
    query = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $1"
    pid = other.get_server_pid()
    try:
        for second, operation in OPERATIONS.items():
            rows = await _rows(db, f"{first}.{second}")
            async with one.transaction():
                await OPERATIONS[first](one, rows)
                running = asyncio.ensure_future(_in_transaction(other, operation, rows))

                async def stands_still(running: asyncio.Future[Any] = running) -> bool:
                    return running.done() or bool(await db.fetchval(query, pid))

                await eventually(stands_still)
            await asyncio.wait_for(running, 10)
    finally:
        for connection in (one, other):
            await connection.close()
    assert not await invariants.violations(db)


async def _in_transaction(connection: Connection, operation: Operation, rows: Rows) -> None:
    async with connection.transaction():
        await operation(connection, rows)
