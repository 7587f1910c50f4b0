"""`Client`: the sync twin. One event loop in a background thread carries an `AsyncClient` for all calling threads.

It starts with the first call. After a fork the child begins anew with a loop and connections of its own: those it
inherited belong to the parent.
"""

from __future__ import annotations

import asyncio
import builtins
import os
import threading
from collections.abc import Coroutine, Iterable, Sequence
from concurrent.futures import Future
from datetime import datetime
from typing import Any, Self, TypedDict, TypeVar, Unpack
from uuid import UUID

from dhara.client import tx
from dhara.client.asynchronous import NO_TX, AsyncClient, Handle, known_id
from dhara.client.calls import Item, Options, build, build_many
from dhara.client.middleware import Middleware
from dhara.domain.lifecycle import State
from dhara.domain.task import Attempt, Call, LogEntry, NewTask, Task
from dhara.store.search import Page

T = TypeVar("T")


class ClientOptions(TypedDict, total=False):
    """What `Client` takes beside the DSN: all that `AsyncClient` takes."""

    schema: str
    pool_min: int
    pool_max: int
    connect_timeout: float
    command_timeout: float
    patience: float
    pooler: bool
    wakeups: bool
    token: str | None
    middleware: Sequence[Middleware]
    actor: str


class Wanted(TypedDict, total=False):
    """What `Client.list` takes: all that `AsyncClient.list` takes."""

    status: State | str | Sequence[State | str]
    type: str | None
    queue: str | None
    retrying: bool
    due: str | None
    worker: UUID | None
    tag: str | None
    created_after: datetime | None
    created_before: datetime | None
    q: str | None
    limit: int
    offset: int
    after: UUID | None


class SyncHandle:
    """A task that was enqueued. `created` is False if it stood already, under its idempotency key or unique key."""

    def __init__(self, client: Client, id: UUID, created: bool) -> None:
        self._client = client
        self.id = id
        self.created = created

    def __repr__(self) -> str:
        return f"<SyncHandle {self.id}{'' if self.created else ' (stood already)'}>"

    def status(self) -> State:
        """The task's state now. Raises `NotFound`."""
        return self._client.get(self.id).status

    def result(self, timeout: float = 30) -> Any:
        """What the handler returned; see `Handle.result`."""
        return self._client._call(lambda c: c.handle(self.id).result(timeout))

    def cancel(self) -> State:
        """Cancel the task; answers the state it was found in. A RUNNING one is asked to stop."""
        return self._client.cancel(self.id)


class _Loop:
    """An event loop in a thread, with an open client on it."""

    def __init__(self, dsn: str, options: ClientOptions) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="dhara client", daemon=True)
        self.thread.start()
        try:
            self.client = self.wait(_opened(dsn, options))
        except BaseException:
            self._end()
            raise

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        try:
            self.wait(self.client.close())
        finally:
            self._end()

    def _end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


async def _opened(dsn: str, options: ClientOptions) -> AsyncClient:
    return await AsyncClient(dsn, **options).open()


class Client:
    """A client for code without an event loop; safe from many threads.

    Takes the same arguments as `AsyncClient`. Middleware runs in the client's own thread, with the caller's context
    variables; but in that of the caller for `enqueue_tx`, which takes plain functions only.
    Connects with the first call; `close` it, or use it with `with`.
    """

    def __init__(self, dsn: str, **options: Unpack[ClientOptions]) -> None:
        checked = AsyncClient(dsn, **options)  # Refuses wrong arguments here and now.
        self._chain, self._over_http = checked._chain, checked._over_http
        self.schema: str = options.get("schema", "dhara")
        self._dsn = dsn
        self._options = options
        self._running: _Loop | None = None
        self._lock = threading.Lock()

    def open(self) -> Self:
        """Connect now. Raises `Unavailable` or `ConfigError`."""
        self._loop()
        return self

    def close(self) -> None:
        """Disconnect; a later call connects again."""
        with self._lock:
            running, self._running = self._running, None
        if running is not None and running.pid == os.getpid():
            running.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _loop(self) -> _Loop:
        with self._lock:
            if self._running is None or self._running.pid != os.getpid():
                self._running = _Loop(self._dsn, self._options)
            return self._running

    def _call(self, work: Any) -> Any:
        loop = self._loop()
        return loop.wait(work(loop.client))

    def _handle(self, handle: Handle) -> SyncHandle:
        return SyncHandle(self, handle.id, handle.created)

    def enqueue(self, call: Call | str, payload: Any = None, **options: Unpack[Options]) -> SyncHandle:
        """Enqueue a handler's call, or a task type with a payload; see `AsyncClient.enqueue`."""
        return self._handle(self._call(lambda c: c.enqueue(call, payload, **options)))

    def enqueue_many(self, items: Iterable[Item], **options: Unpack[Options]) -> list[SyncHandle]:
        """Enqueue many, all or none; see `AsyncClient.enqueue_many`."""
        return [self._handle(handle) for handle in self._call(lambda c: c.enqueue_many(items, **options))]

    def enqueue_tx(
        self, connection: Any, call: Call | str, payload: Any = None, **options: Unpack[Options]
    ) -> SyncHandle:
        """Enqueue in the transaction of a sync connection or session: the task exists if and only if that commits.

        Takes psycopg and Django connections, SQLAlchemy's connections and sessions; runs in the calling thread.
        """
        return self._enqueue_tx(connection, [build(call, payload, options)])[0]

    def enqueue_many_tx(self, connection: Any, items: Iterable[Item], **options: Unpack[Options]) -> list[SyncHandle]:
        """As `enqueue_tx`, for many, in one statement."""
        return self._enqueue_tx(connection, build_many(items, options))

    def _enqueue_tx(self, connection: Any, new: Sequence[NewTask]) -> builtins.list[SyncHandle]:
        if self._over_http:
            raise TypeError(NO_TX)
        return [SyncHandle(self, *row) for row in tx.enqueue(connection, self._chain.before(new), self.schema)]

    def handle(self, id: UUID | str) -> SyncHandle:
        """A handle of a task by its id."""
        return SyncHandle(self, known_id(id), False)

    def get(self, id: UUID | str) -> Task:
        """One task. Raises `NotFound`."""
        task: Task = self._call(lambda c: c.get(id))
        return task

    def wait(self, id: UUID | str, timeout: float = 30) -> Task:
        """The task once it is final. Raises `TimeoutError` after `timeout` seconds."""
        task: Task = self._call(lambda c: c.wait(id, timeout))
        return task

    def cancel(self, id: UUID | str, reason: str = "canceled by a client") -> State:
        """Cancel a PENDING task, ask a RUNNING one to stop; answers the state it was found in."""
        state: State = self._call(lambda c: c.cancel(id, reason))
        return state

    def retry(
        self,
        id: UUID | str,
        *,
        queue: str | None = None,
        priority: int | None = None,
        payload: Any = None,
        run_at: datetime | None = None,
    ) -> Task:
        """Revive a DEAD task, optionally changed. Raises `NotFound`, `WrongState`, `InvalidTask`."""
        wishes = {"queue": queue, "priority": priority, "payload": payload, "run_at": run_at}
        task: Task = self._call(lambda c: c.retry(id, **wishes))
        return task

    def logs(self, id: UUID | str) -> list[LogEntry]:
        """A task's history, oldest first. Raises `NotFound`."""
        found: list[LogEntry] = self._call(lambda c: c.logs(id))
        return found

    def attempts(self, id: UUID | str) -> list[Attempt]:
        """A task's executions, oldest first."""
        found: list[Attempt] = self._call(lambda c: c.attempts(id))
        return found

    def list(self, **wanted: Unpack[Wanted]) -> Page:
        """A page of tasks, newest first; takes the arguments of `AsyncClient.list`."""
        page: Page = self._call(lambda c: c.list(**wanted))
        return page
