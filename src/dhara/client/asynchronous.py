"""`AsyncClient`: enqueue, ask, wait; and `Handle`, the task as its enqueuer holds it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Self, Unpack
from uuid import UUID

import msgspec

from dhara.client import tx
from dhara.client.backend import Backend, PostgresBackend
from dhara.client.calls import Built, Item, Options, build, build_many
from dhara.client.http import HttpBackend
from dhara.client.middleware import Chain, Middleware, Write
from dhara.domain import limits
from dhara.domain.lifecycle import FINAL, State
from dhara.domain.task import Attempt, Call, LogEntry, NewTask, Task
from dhara.errors import ConfigError, NotFound, TaskFailed
from dhara.store.pool import DatabaseSettings
from dhara.store.search import Filter, Page

NO_TX = "enqueue_tx needs a client on PostgreSQL (postgresql://...): a server cannot take part in your transaction"


class Handle:
    """A task that was enqueued. `created` is False if it stood already, under its idempotency key or unique key."""

    __slots__ = ("_client", "created", "id")

    def __init__(self, client: AsyncClient, id: UUID, created: bool) -> None:
        self._client = client
        self.id = id
        self.created = created

    def __repr__(self) -> str:
        return f"<Handle {self.id}{'' if self.created else ' (stood already)'}>"

    async def status(self) -> State:
        """The task's state now. Raises `NotFound`."""
        return (await self._client.get(self.id)).status

    async def result(self, timeout: float = 30) -> Any:
        """What the handler returned. Waits at most `timeout` seconds.

        Raises `TaskFailed` if the task ended DEAD or CANCELED, `TimeoutError` if it is not final in time.
        """
        return result_of(await self._client.wait(self.id, timeout))

    async def cancel(self) -> State:
        """Cancel the task; answers the state it was found in. A RUNNING one is asked to stop."""
        return await self._client.cancel(self.id)


class AsyncClient:
    """A client for asyncio. Use it with `async with`, or `open` and `close` it.

    `dsn` is postgresql://..., or the http(s)://... of a dhara server with one of its API keys as `token`. Times are seconds.
    `patience` is how long a call goes on trying when connections are lost. Enqueues are safe to repeat by nature: each
    task bears its id before it travels, and over HTTP an idempotency key. `middleware` stands around every enqueue
    (`client/middleware.py`). On PostgreSQL only: `schema`, the pool's sizes, `wakeups`, `pooler=True` behind a
    transaction pooler such as PgBouncer, and `actor`, who the audit log says canceled or retried. Raises `ConfigError`
    for what cannot be right.
    """

    def __init__(
        self,
        dsn: str,
        *,
        schema: str = "dhara",
        pool_min: int = 1,
        pool_max: int = 8,
        connect_timeout: float = 5.0,
        command_timeout: float = 15.0,
        patience: float = 10.0,
        pooler: bool = False,
        wakeups: bool = True,
        token: str | None = None,
        middleware: Sequence[Middleware] = (),
        actor: str = "library",
    ) -> None:
        self.schema = schema
        self._chain = Chain(middleware)
        self._backend: Backend
        self._over_http = dsn.startswith(("http://", "https://"))
        if self._over_http:
            self._backend = HttpBackend(
                dsn,
                token=token,
                connect_timeout=connect_timeout,
                command_timeout=command_timeout,
                patience=patience,
            )
            return
        if token is not None:
            raise ConfigError("a token belongs to the http:// URL of a dhara server; PostgreSQL takes a password")
        settings = DatabaseSettings(
            dsn=dsn,
            schema=schema,
            pool_min=pool_min,
            pool_max=pool_max,
            connect_timeout=connect_timeout,
            command_timeout=command_timeout,
            prepared=not pooler,
        )
        self._backend = PostgresBackend(settings, wakeups=wakeups, patience=patience, actor=actor)

    async def open(self) -> Self:
        """Connect. Raises `Unavailable` or `ConfigError`, one line each."""
        await self._backend.open()
        return self

    async def close(self) -> None:
        """Finish the enqueues under way and disconnect. Whoever waits for a result is canceled."""
        await self._backend.close()

    async def check(self) -> None:
        """Raise `SchemaError` unless the database's schema is exactly what this version needs."""
        await self._backend.check()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def enqueue(self, call: Call | str, payload: Any = None, **options: Unpack[Options]) -> Handle:
        """Enqueue a handler's call, or a task type with a payload; durable when it returns.

        Concurrent enqueues share a statement and a commit. Raises `InvalidTask`, `IdempotencyConflict`,
        `Unavailable` (then the task may or may not be there: repeat it with an idempotency key).
        """
        return (await self._chain.run([build(call, payload, options)], self._write))[0]

    async def enqueue_many(self, items: Iterable[Item], **options: Unpack[Options]) -> list[Handle]:
        """Enqueue many, all or none, in one transaction; answers in order. Many plain ones go by COPY.

        Over HTTP: in batches of at most 1,000 tasks and 3 MiB, each all or none; if one fails, those before it stand.

        An item is a handler's call or a mapping of task fields (`{"type": ..., "payload": ..., "priority": ...}`);
        `options` hold for all of them. Raises `InvalidBatch` or `IdempotencyConflict` with the index of the bad one.
        """
        built = Built(items, options)
        if self._chain.empty:
            return [Handle(self, *row) for row in await self._backend.enqueue_many(built)]
        return list(await self._chain.run(list(built), self._write_many))

    async def enqueue_tx(
        self, connection: Any, call: Call | str, payload: Any = None, **options: Unpack[Options]
    ) -> Handle:
        """Enqueue in the transaction of an async connection or session: the task exists if and only if that commits.

        Takes asyncpg and psycopg connections, SQLAlchemy's async connections and sessions. Raises as `enqueue` does;
        an `IdempotencyConflict` spoils the transaction as any database error.
        """
        return (await self._chain.run([build(call, payload, options)], self._in(connection)))[0]

    async def enqueue_many_tx(self, connection: Any, items: Iterable[Item], **options: Unpack[Options]) -> list[Handle]:
        """As `enqueue_tx`, for many, in one statement."""
        return list(await self._chain.run(build_many(items, options), self._in(connection)))

    async def _write(self, new: Sequence[NewTask]) -> list[Handle]:
        done = await self._backend.enqueue(new[0])
        return [Handle(self, done.id, done.created)]

    async def _write_many(self, new: Sequence[NewTask]) -> list[Handle]:
        return [Handle(self, *row) for row in await self._backend.enqueue_many(new)]

    def _in(self, connection: Any) -> Write:
        """What writes on the user's own connection."""
        if self._over_http:
            raise TypeError(NO_TX)

        async def write(new: Sequence[NewTask]) -> list[Handle]:
            return [Handle(self, *row) for row in await tx.enqueue_async(connection, new, self.schema)]

        return write

    def handle(self, id: UUID | str) -> Handle:
        """A handle of a task by its id, such as one that another process enqueued. Asks nothing of the database."""
        return Handle(self, known_id(id), False)

    async def get(self, id: UUID | str) -> Task:
        """One task. Raises `NotFound`."""
        return await self._backend.get(known_id(id))

    async def wait(self, id: UUID | str, timeout: float = 30) -> Task:
        """The task once it is final. Raises `TimeoutError` after `timeout` seconds."""
        known = known_id(id)
        if (task := await self._backend.wait(known, timeout)) is not None:
            return task
        try:
            task = await self._backend.get(known)
        except NotFound:
            raise TimeoutError(
                f"there is no task {known} after {timeout:g} s; was its transaction committed?"
            ) from None
        if task.status in FINAL:
            return task
        raise TimeoutError(f"task {known} is still {task.status} after {timeout:g} s")

    async def cancel(self, id: UUID | str, reason: str = "canceled by a client") -> State:
        """Cancel a PENDING task, ask a RUNNING one to stop; answers the state it was found in. Raises `NotFound`."""
        return await self._backend.cancel(known_id(id), reason)

    async def retry(
        self,
        id: UUID | str,
        *,
        queue: str | None = None,
        priority: int | None = None,
        payload: Any = None,
        run_at: datetime | None = None,
    ) -> Task:
        """Revive a DEAD task, optionally changed. Raises `NotFound`, `WrongState`, `InvalidTask`."""
        known = known_id(id)
        options: Options = {"queue": queue, "priority": priority, "run_at": run_at}
        checked = build("revive", payload, options)
        text = None if payload is None else checked.payload
        await self._backend.revive(known, queue, priority, text, checked.run_at)
        return await self._backend.get(known)

    async def logs(self, id: UUID | str) -> list[LogEntry]:
        """A task's history, oldest first. Raises `NotFound`."""
        return await self._backend.logs(known_id(id))

    async def attempts(self, id: UUID | str) -> list[Attempt]:
        """A task's executions, oldest first."""
        return await self._backend.attempts(known_id(id))

    async def list(
        self,
        *,
        status: State | str | Sequence[State | str] = (),
        type: str | None = None,
        queue: str | None = None,
        retrying: bool = False,
        due: str | None = None,
        worker: UUID | None = None,
        tag: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        q: str | None = None,
        limit: int = 20,
        offset: int = 0,
        after: UUID | None = None,
    ) -> Page:
        """A page of tasks, newest first; `after` continues by the last page's `next`. `due`: ready or delayed;
        `q` is looked for in id, type, key, error and payloads of up to 8 KiB."""
        states = [status] if isinstance(status, str) else status
        wanted = Filter(
            status=tuple(State(state) for state in states),
            type=type,
            queue=queue,
            retrying=retrying,
            due=due,
            worker=worker,
            tag=tag,
            created_after=created_after,
            created_before=created_before,
            q=q,
            in_payload=q is not None,
        )
        low, high = limits.LIST_LIMIT
        if due not in (None, "ready", "delayed"):
            raise ValueError("due must be ready or delayed")
        if not low <= limit <= high or offset < 0:
            raise ValueError(f"limit must be {low} to {high}, offset 0 or more")
        return await self._backend.page(wanted, limit, offset, after)


def result_of(task: Task) -> Any:
    """The result of a final task. Raises `TaskFailed` for DEAD and CANCELED ones."""
    if task.status is not State.COMPLETED:
        raise TaskFailed(task.id, task.status, task.reason, task.last_error)
    if task.payload == "":
        raise ConfigError("this API key may not see results; it needs the scope read:payload")
    return None if task.result is None else msgspec.json.decode(task.result)


def known_id(id: UUID | str) -> UUID:
    """`id` as a UUID. Raises `NotFound`: whatever is no UUID is no task's id."""
    if isinstance(id, UUID):
        return id
    try:
        return UUID(id)
    except ValueError:
        raise NotFound(f"there is no task {id!r}; ids are UUIDs") from None
