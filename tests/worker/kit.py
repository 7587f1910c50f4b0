"""A runner of its own for a test: real store, real loop; only the handlers are made up.

There is no keeper here, so nobody beats and nobody kills; the tests of those have real processes.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from dhara.domain.lifecycle import FINAL, State
from dhara.domain.task import Attempt, NewTask, Task
from dhara.store.ids import new_id
from dhara.store.pool import DatabaseSettings, Pool
from dhara.store.tasks import Tasks
from dhara.store.wakeup import Notifier
from dhara.worker.board import attach, share
from dhara.worker.registry import Registry
from dhara.worker.runner import Runner, RunnerSettings
from tests.waiting import PATIENCE, eventually


def runner_of(dsn: str, registry: Registry, *, concurrency: int = 4, **settings: Any) -> Runner:
    """A runner that is not started; short intervals unless told otherwise."""
    values: dict[str, Any] = {
        "queues": {"*": concurrency},
        "poll_interval": 0.5,
        "heartbeat_interval": 1.0,
        "kill_grace": 2.0,
        "shutdown_timeout": 5.0,
    }
    fd = share(1, concurrency)
    (board,) = attach(fd, 1, concurrency)
    os.close(fd)
    made = RunnerSettings(
        database=DatabaseSettings(dsn=dsn, pool_max=4, connect_timeout=30), concurrency=concurrency, **values | settings
    )
    return Runner(registry, made, worker=new_id(), board=board)


@asynccontextmanager
async def running(dsn: str, registry: Registry, **settings: Any) -> AsyncIterator[Runner]:
    """A runner at work; it releases what still runs at the end."""
    runner = runner_of(dsn, registry, **settings)
    await runner.start()
    try:
        yield runner
    finally:
        await runner.drain(0)
        await runner.stop()


class Desk:
    """What stands before the workers: enqueue, wait, look."""

    def __init__(self, pool: Pool) -> None:
        self.tasks = Tasks(pool)
        self.notifier = Notifier(pool)

    async def enqueue(
        self, type: str, payload: Any = None, *, times: int = 1, wake: bool = True, **fields: Any
    ) -> list[UUID]:
        """Enqueue the same task `times` times; answers the ids, in order."""
        text = payload if isinstance(payload, str) else json.dumps(payload or {})
        new = [NewTask(id=new_id(), type=type, payload=text, **fields) for _ in range(times)]
        await self.tasks.enqueue(new)
        if wake:
            self.notifier.wake(new[0].queue)
        return [task.id for task in new]

    async def one(self, type: str, payload: Any = None, **fields: Any) -> UUID:
        """Enqueue one task; answers its id."""
        return (await self.enqueue(type, payload, **fields))[0]

    async def state(self, id: UUID, *states: State | str, timeout: float = PATIENCE) -> Task:
        """The task once it is in one of these states."""

        async def there() -> Task | None:
            task = await self.tasks.get(id)
            return task if task.status in states else None

        found = await eventually(there, timeout, f"task {id} to be {' or '.join(states)}")
        assert found is not None
        return found

    async def final(self, id: UUID, timeout: float = PATIENCE) -> Task:
        """The task once it is final."""
        return await self.state(id, *FINAL, timeout=timeout)

    async def all_final(self, ids: list[UUID], timeout: float = PATIENCE) -> list[Task]:
        """All these tasks once they are final, in order."""

        async def there() -> bool:
            return len(await self.tasks.final(ids)) == len(ids)

        await eventually(there, timeout, f"{len(ids)} tasks to be final")
        found = await self.tasks.get_many(ids)
        return [found[id] for id in ids]

    async def attempts(self, id: UUID) -> list[Attempt]:
        return await self.tasks.attempts(id)

    async def error(self, id: UUID) -> Any:
        """What is kept of the first attempt's error."""
        kept = (await self.attempts(id))[0].error
        return None if kept is None else json.loads(kept)

    async def events(self, id: UUID) -> list[str]:
        """The events of the task's history."""
        return [entry.event for entry in await self.tasks.logs(id)]

    async def cancel(self, id: UUID, *, wake: bool = True) -> None:
        """An operator's cancellation, with or without the hint to the worker."""
        canceling = await self.tasks.request_cancel(id)
        if wake and canceling.worker is not None:
            self.notifier.cancel(canceling.worker)
