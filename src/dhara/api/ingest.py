"""Group commit: concurrent enqueues share one statement and one fsync, and each is answered after its commit.

No timer: whatever arrives while a flush is in flight forms the next one (`store/coalesce.py`), so an idle server adds no
latency and a busy one makes natural batches. A flush is one statement; its tasks succeed, replay or conflict each for itself,
and one that the database refuses is told so alone. If the connection is lost during a flush, the flush is repeated
with the same ids, which cannot insert anything twice. What waits is bounded, in tasks and in bytes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar
from uuid import UUID

import asyncpg

from dhara.api.problems import busy
from dhara.domain.task import Enqueued, NewTask, Task
from dhara.errors import IdempotencyConflict
from dhara.store.coalesce import Coalescer
from dhara.store.pool import Pool, is_transient
from dhara.store.tasks import Tasks, lock_order, newly_ready

log = logging.getLogger(__name__)

MOST_WAITING = 10_000
MOST_BYTES = 64 * 1024 * 1024
MOST_TASKS = 500
FLIGHTS = 1
# The second is longer than the pool rests after a connection that was refused.
PAUSES = (0.05, 0.6)

# A lost connection, or a deadlock: worth repeating at once. A time-out is not, its callers have waited long enough.
LOST = (
    ConnectionError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
)

Answer = Enqueued | IdempotencyConflict
T = TypeVar("T")


class Wakes(Protocol):
    """What the API needs of `store.wakeup.Notifier`; neither call blocks."""

    def wake(self, queue: str) -> None: ...
    def cancel(self, worker: UUID) -> None: ...


class Ingest:
    """Collects enqueues and flushes them. Nothing runs while nothing waits."""

    def __init__(
        self,
        tasks: Tasks,
        pool: Pool,
        notifier: Wakes | None = None,
        *,
        most_waiting: int = MOST_WAITING,
        flights: int = FLIGHTS,
    ) -> None:
        self._tasks = tasks
        self._pool = pool
        self._notifier = notifier
        self._most_waiting = most_waiting
        self._coalescer: Coalescer[NewTask, Enqueued] = Coalescer(self._flush, most=MOST_TASKS, lanes=flights)
        self.waiting = 0
        self._bytes = 0
        self.batches = 0
        self.batched = 0

    async def enqueue(self, task: NewTask) -> Enqueued:
        """Enqueue one task; returns after its commit. Raises `IdempotencyConflict`, `Refused` when too much waits
        already, or what the database said."""
        waiting = self.take(task)
        try:
            return await waiting
        finally:
            self.leave(task)

    def take(self, task: NewTask) -> asyncio.Future[Enqueued]:
        """Take one task in; whoever brings it calls `leave` when it is done. Raises `Refused` as `enqueue` does."""
        size = len(task.payload)
        if self.waiting >= self._most_waiting or self._bytes + size > MOST_BYTES:
            raise busy("overloaded", f"{self.waiting:,} enqueues wait already; slow down and try again")
        self.waiting += 1
        self._bytes += size
        return self._coalescer.put(task)

    def leave(self, task: NewTask) -> None:
        """What `take` took in waits no longer."""
        self.waiting -= 1
        self._bytes -= len(task.payload)

    async def enqueue_all(
        self, tasks: Sequence[NewTask], check: Callable[[Task], None] = lambda task: None
    ) -> list[Enqueued]:
        """Enqueue many, all or none. `check` sees each task that stood already, before the commit, and may refuse all by raising.
        Raises `IdempotencyConflict` with the index of the one in the way."""
        answers = await _persist(lambda: self._insert_all(tasks, check))
        self._wake(answers)
        return answers

    async def close(self) -> None:
        """Wait until whatever has been accepted is answered."""
        await self._coalescer.close()

    async def _flush(self, batch: Sequence[NewTask]) -> Sequence[Enqueued | Exception]:
        """Insert `batch` in one statement; one answer a task, in order."""
        self.batches += 1
        self.batched += len(batch)
        tasks = _in_lock_order(batch)
        answers = await _persist(lambda: self._tasks.enqueue(tasks))
        self._wake(answers)
        if tasks is batch:
            return answers
        by_id = dict(zip((task.id for task in tasks), answers, strict=True))
        return [by_id[task.id] for task in batch]

    async def _insert_all(self, tasks: Sequence[NewTask], check: Callable[[Task], None]) -> list[Enqueued]:
        if not any(task.keyed for task in tasks):
            # One statement is atomic by itself, and no task of it can conflict.
            answers = await self._tasks.enqueue(tasks)
            return [_settled(answer, task, i) for i, (answer, task) in enumerate(zip(answers, tasks, strict=True))]
        ordered = _in_lock_order(tasks)
        async with self._pool.acquire() as connection, connection.transaction():
            answers = await self._tasks.on(connection).enqueue(ordered)
            by_id = dict(zip((task.id for task in ordered), answers, strict=True))
            # A conflict raises here, inside, so that the transaction takes the others back.
            settled = [_settled(by_id[task.id], task, i) for i, task in enumerate(tasks)]
            for one in settled:
                if not one.created:
                    check(one.task)
            return settled

    def _wake(self, answers: Sequence[Answer]) -> None:
        if self._notifier is None:
            return
        ready = {answer.queue for answer in answers if isinstance(answer, Enqueued) and newly_ready(answer)}
        for queue in ready:
            self._notifier.wake(queue)


async def _persist(flush: Callable[[], Awaitable[T]]) -> T:
    """`flush`, repeated where the connection was lost; safe, because ids are the caller's."""
    for pause in PAUSES:
        try:
            return await flush()
        except LOST as error:
            if not is_transient(error):
                raise
            log.warning("enqueue is repeated: %s: %s", type(error).__name__, error)
            await asyncio.sleep(pause)
    return await flush()


def _in_lock_order(tasks: Sequence[NewTask]) -> Sequence[NewTask]:
    """Sorted by keys, so that two flushes with the same ones wait for each other instead of deadlocking."""
    if any(task.keyed for task in tasks):
        return sorted(tasks, key=lock_order)
    return tasks


def _settled(answer: Answer, task: NewTask, index: int) -> Enqueued:
    if isinstance(answer, IdempotencyConflict):
        raise IdempotencyConflict(answer.existing, task.idempotency_key, index)
    return answer
