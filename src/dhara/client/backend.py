"""What a client stands on: one protocol, and PostgreSQL behind it.

Enqueues that arrive while an insert is in flight share the next statement (`store/coalesce.py`). Ids are made by the
client, so whatever was lost between here and the database (a reply, a COMMIT's answer) is simply done again: the
second time finds the first one's rows and says so.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from typing import Any, Protocol, TypeVar
from uuid import UUID

import asyncpg

from dhara.client.calls import Built
from dhara.client.results import Poller
from dhara.client.valve import Valve
from dhara.domain.lifecycle import State
from dhara.domain.task import Attempt, Enqueued, LogEntry, NewTask, Task
from dhara.errors import ConfigError, IdempotencyConflict, SchemaError, Unavailable
from dhara.store import migrate
from dhara.store.coalesce import Coalescer
from dhara.store.pool import TRANSIENT, DatabaseSettings, Pool, is_transient, unavailable
from dhara.store.queues import Queues
from dhara.store.search import Filter, Page, Search
from dhara.store.tasks import Tasks, lock_order, newly_ready
from dhara.store.wakeup import Notifier

T = TypeVar("T")
# A task that was enqueued, and whether it was made now or stood already.
Row = tuple[UUID, bool]
CHUNK = 1_000
# So many plain tasks at once go by COPY.
LEAST_COPIED = 500
# One COPY's tasks: while the database takes them in, the next ones are built, so many at a time.
COPIED = 5_000
BUILT = 250

_NO_SCHEMA = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedFunctionError,
    asyncpg.InvalidSchemaNameError,
)


class Backend(Protocol):
    """The operations that clients need, whatever they reach the tasks by."""

    async def open(self) -> None: ...
    async def close(self) -> None: ...
    async def check(self) -> None: ...
    async def enqueue(self, new: NewTask) -> Enqueued: ...
    async def enqueue_many(self, given: Sequence[NewTask] | Built) -> list[Row]: ...
    async def get(self, id: UUID) -> Task: ...
    async def wait(self, id: UUID, timeout: float) -> Task | None: ...
    async def cancel(self, id: UUID, reason: str) -> State: ...
    async def revive(
        self, id: UUID, queue: str | None, priority: int | None, payload: str | None, run_at: datetime | None
    ) -> None: ...
    async def logs(self, id: UUID) -> list[LogEntry]: ...
    async def attempts(self, id: UUID) -> list[Attempt]: ...
    async def page(self, wanted: Filter, limit: int, offset: int, after: UUID | None) -> Page: ...


class PostgresBackend:
    """Tasks in PostgreSQL, through a pool of its own. `patience`: seconds for which a lost connection is tried again."""

    def __init__(
        self, settings: DatabaseSettings, *, wakeups: bool = True, patience: float = 10.0, actor: str = "library"
    ) -> None:
        self.pool = Pool(settings, "dhara client")
        self._tasks = Tasks(self.pool, settings.schema, tells=wakeups)
        self._search = Search(self.pool, settings.schema)
        self._notifier = Notifier(self.pool, settings.schema) if wakeups else None
        self.poller = Poller(self)
        self._patience = patience
        self._valve = Valve(Queues(self.pool, settings.schema), patience)
        self._actor = actor
        self._coalescer: Coalescer[NewTask, Enqueued] = Coalescer(self._write, most=CHUNK)

    async def open(self) -> None:
        await self.pool.open()

    async def check(self) -> None:
        """Raise `SchemaError` unless the schema is exactly what this version needs."""
        await self._read(lambda: migrate.check(self.pool, self.pool.settings.schema))

    async def close(self) -> None:
        await self.poller.close()
        await self._valve.close()
        await self._coalescer.close()
        if self._notifier is not None:
            await self._notifier.close()
        await self.pool.close()

    async def enqueue(self, new: NewTask) -> Enqueued:
        """One task, together with whichever others arrive meanwhile. Raises `IdempotencyConflict`, `QueueFull`."""
        self.pool.inner  # noqa: B018 - raises unless the pool is open
        if not self._valve.open:
            # A repetition needs no room: its task is there.
            if new.keyed and (found := await self._read(lambda: self._tasks.standing(new))) is not None:
                if isinstance(found, IdempotencyConflict):
                    raise found
                return found
            await self._valve.admit((new.queue,))
        with translated():
            return await self._coalescer.put(new)

    async def enqueue_many(self, given: Sequence[NewTask] | Built) -> list[Row]:
        """All or none, in one transaction. Raises `IdempotencyConflict` with the index of the first, `QueueFull`."""
        if given and not self._valve.open:
            await self._valve.admit(task.queue for task in given)
        with translated():
            if len(given) >= LEAST_COPIED:
                try:
                    return await self._again(lambda: self._copy_all(given))
                except (asyncpg.UniqueViolationError, _Keyed):
                    pass  # A COPY whose commit was not heard of: the statements below find its rows.
            new = list(given)
            answers = await self._again(lambda: self._write_all(new))
        self._wake(answers)
        return [(answer.id, answer.created) for answer in answers]

    async def _copy_all(self, given: Sequence[NewTask] | Built) -> list[Row]:
        """Raises `_Keyed` where COPY will not do, for one of the tasks has a key."""
        async with self.pool.acquire() as connection, connection.transaction():
            tasks = self._tasks.on(connection)
            under_way: asyncio.Task[None] | None = None
            try:
                # The first is short, so that the database need not wait long for it.
                for start, end in pairwise((0, *range(LEAST_COPIED, len(given), COPIED), len(given))):
                    chunk = await _built(given, start, end)
                    if under_way is not None:
                        await under_way
                    under_way = asyncio.create_task(tasks.copy(chunk), name="COPY")
                if under_way is not None:
                    await under_way
            except BaseException:
                # The connection must be free before the transaction can be taken back.
                if under_way is not None:
                    under_way.cancel()
                    await asyncio.wait({under_way})
                raise
        new = given.upto(len(given)) if isinstance(given, Built) else given
        if self._notifier is not None:
            for queue in {task.queue for task in new if not task.delay}:
                self._notifier.wake(queue)
        return [(task.id, True) for task in new]

    async def _write(self, new: Sequence[NewTask]) -> Sequence[Enqueued | Exception]:
        answers = await self._again(lambda: self._tasks.enqueue(new))
        self._wake([answer for answer in answers if isinstance(answer, Enqueued)])
        return answers

    async def _write_all(self, new: Sequence[NewTask]) -> list[Enqueued]:
        answers: dict[UUID, Enqueued | IdempotencyConflict] = {}
        ordered = sorted(new, key=lock_order)
        async with self.pool.acquire() as connection, connection.transaction():
            tasks = self._tasks.on(connection)
            for start in range(0, len(new), CHUNK):
                chunk = ordered[start : start + CHUNK]
                answers |= zip((task.id for task in chunk), await tasks.enqueue(chunk), strict=True)
            # A conflict raises here, inside, so that the transaction takes the others back.
            return [_settled(answers[task.id], task, index) for index, task in enumerate(new)]

    def _wake(self, answers: Sequence[Enqueued]) -> None:
        if self._notifier is not None:
            for queue in {answer.queue for answer in answers if newly_ready(answer)}:
                self._notifier.wake(queue)

    async def get(self, id: UUID) -> Task:
        return await self._read(lambda: self._tasks.get(id))

    async def wait(self, id: UUID, timeout: float) -> Task | None:
        """The task once it is final; None after `timeout` seconds."""
        return await self.poller.wait(id, timeout)

    async def get_many(self, ids: Sequence[UUID]) -> dict[UUID, Task]:
        return await self._read(lambda: self._tasks.get_many(ids))

    async def final(self, ids: Sequence[UUID]) -> set[UUID]:
        return await self._read(lambda: self._tasks.final(ids))

    async def cancel(self, id: UUID, reason: str) -> State:
        """Answers the state as it was found; canceling twice changes nothing more."""
        answer = await self._read(lambda: self._tasks.request_cancel(id, reason, self._actor))
        if self._notifier is not None and answer.worker is not None:
            self._notifier.cancel(answer.worker)
        return answer.found

    async def revive(
        self, id: UUID, queue: str | None, priority: int | None, payload: str | None, run_at: datetime | None
    ) -> None:
        with translated():
            await self._tasks.revive(id, queue=queue, priority=priority, payload=payload, run_at=run_at, by=self._actor)
        if self._notifier is not None:
            self._notifier.wake(queue or (await self.get(id)).queue)

    async def logs(self, id: UUID) -> list[LogEntry]:
        return await self._read(lambda: self._tasks.logs(id))

    async def attempts(self, id: UUID) -> list[Attempt]:
        return await self._read(lambda: self._tasks.attempts(id))

    async def page(self, wanted: Filter, limit: int, offset: int, after: UUID | None) -> Page:
        return await self._read(lambda: self._search.page(wanted, limit=limit, offset=offset, after=after))

    async def _read(self, work: Callable[[], Awaitable[T]]) -> T:
        with translated():
            return await self._again(work)

    async def _again(self, work: Callable[[], Awaitable[T]]) -> T:
        """`work`, repeated after lost connections and the like until `patience` is at its end."""
        give_up = time.monotonic() + self._patience
        pause = 0.02
        while True:
            try:
                return await work()
            except TRANSIENT as error:
                if not is_transient(error) or time.monotonic() + pause > give_up:
                    raise
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(pause * 2, 1.0)


class _Keyed(Exception):
    """One of many tasks has an idempotency or a unique key."""


async def _built(given: Sequence[NewTask] | Built, start: int, end: int) -> Sequence[NewTask]:
    """The tasks from `start` to `end`. Builds some at a time, so that a COPY under way goes on meanwhile."""
    if isinstance(given, Built):
        for step in range(start, end, BUILT):
            given.upto(min(step + BUILT, end))
            await asyncio.sleep(0)
        given = given.upto(end)
    chunk = given[start:end]
    if any(task.idempotency_key or task.unique_key for task in chunk):
        raise _Keyed
    return chunk


def _settled(answer: Enqueued | IdempotencyConflict, task: NewTask, index: int) -> Enqueued:
    if isinstance(answer, IdempotencyConflict):
        raise IdempotencyConflict(answer.existing, task.idempotency_key, index)
    return answer


@contextmanager
def translated() -> Iterator[None]:
    """What a database says, in this library's own exceptions."""
    try:
        yield
    except Exception as error:
        if (ours := translation(error)) is not None:
            raise ours from error
        raise


def translation(error: BaseException) -> SchemaError | Unavailable | ConfigError | None:
    """Our exception for one of the database's, or None where there is no better one."""
    text: Any = " ".join(str(error).split())
    if isinstance(error, _NO_SCHEMA):
        return SchemaError(
            f"the database lacks dhara's schema or has another version of it: {text}; run `dhara migrate up`"
        )
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return ConfigError(f"this database user may not do that: {text}; grant it the right, or use another login")
    if is_transient(error):
        return unavailable(error)
    return None
