"""Waiting for results: one poller a client, however many wait.

It asks which of the awaited tasks are final, at first every 20 ms and then ever more slowly up to a second, and quickly
again as soon as anything moves. It runs only while somebody waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import Protocol
from uuid import UUID

from dhara.domain.task import Task
from dhara.errors import Unavailable

FASTEST = 0.02
SLOWEST = 1.0
_MOST = 1_000


class Finals(Protocol):
    """What the poller asks."""

    async def final(self, ids: Sequence[UUID]) -> set[UUID]: ...
    async def get_many(self, ids: Sequence[UUID]) -> dict[UUID, Task]: ...


class Poller:
    """Answers each waiter with its task once that is final."""

    def __init__(self, backend: Finals) -> None:
        self._backend = backend
        self._waiters: dict[UUID, list[asyncio.Future[Task]]] = {}
        self._runner: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._pause = FASTEST

    async def wait(self, id: UUID, timeout: float) -> Task | None:
        """The task once it is final; None after `timeout` seconds."""
        future: asyncio.Future[Task] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(id, []).append(future)
        self._start()
        try:
            return await asyncio.wait_for(future, timeout)
        except TimeoutError:
            return None
        finally:
            self._forget(id, future)

    async def close(self) -> None:
        """Stop; those who still wait are canceled."""
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.cancel()
            with suppress(asyncio.CancelledError):
                await runner
        for futures in self._waiters.values():
            for future in futures:
                future.cancel()

    def _start(self) -> None:
        self._pause = FASTEST
        self._news.set()
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run(), name="Poller")

    def _forget(self, id: UUID, future: asyncio.Future[Task]) -> None:
        futures = self._waiters.get(id, [])
        if future in futures:
            futures.remove(future)
        if not futures:
            self._waiters.pop(id, None)

    async def _run(self) -> None:
        while self._waiters:
            moved = False
            ids = list(self._waiters)
            try:
                for start in range(0, len(ids), _MOST):
                    moved |= await self._look(ids[start : start + _MOST])
            except Unavailable:
                pass  # The waiters' own time-outs decide how long that may go on.
            except Exception as error:
                self._fail(ids, error)
            self._pause = FASTEST if moved else min(self._pause * 1.5, SLOWEST)
            self._news.clear()
            await asyncio.sleep(FASTEST)
            # A new waiter cuts the rest of a long pause short.
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), self._pause - FASTEST)

    async def _look(self, ids: Sequence[UUID]) -> bool:
        final = await self._backend.final(ids)
        for chunk in _chunks(final, 100):
            for id, task in (await self._backend.get_many(chunk)).items():
                for future in self._waiters.get(id, []):
                    if not future.done():
                        future.set_result(task)
        for id in final:
            self._waiters.pop(id, None)
        return bool(final)

    def _fail(self, ids: Sequence[UUID], error: Exception) -> None:
        for id in ids:
            for future in self._waiters.pop(id, []):
                if not future.done():
                    future.set_exception(error)


def _chunks(ids: set[UUID], size: int) -> list[list[UUID]]:
    rest = iter(ids)
    return list(iter(lambda: list(islice(rest, size)), []))
