"""Long polls: all that wait for a task to become final share one poller, so a thousand of them cost one query a round.

The poller runs only while somebody waits. It starts at 50 ms after each newcomer and slows down to one second
while nothing ends.
"""

from __future__ import annotations

import asyncio
import logging
from uuid import UUID

from starlette.types import Receive

from dhara.api.exchange import ClientGone
from dhara.api.problems import busy
from dhara.store.pool import is_transient
from dhara.store.tasks import Tasks

log = logging.getLogger(__name__)

FASTEST = 0.05
SLOWEST = 1.0
GROWTH = 1.5
MOST = 5_000


class Waiters:
    """Who waits for which task."""

    def __init__(self, tasks: Tasks, most: int = MOST) -> None:
        self._tasks = tasks
        self._most = most
        self._waiting: dict[UUID, set[asyncio.Future[None]]] = {}
        self._count = 0
        self._closed = False
        self._pause = FASTEST
        self._newcomer = asyncio.Event()
        self._poller: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return self._count

    async def wait(self, id: UUID, seconds: float, receive: Receive | None = None) -> None:
        """Return when the task is final, after `seconds`, or when the server stops; the caller looks which.

        `receive` tells when the client has hung up: then `ClientGone` is raised at once. Raises `Refused` when too many wait.
        """
        if self._closed or seconds <= 0:
            return
        if self._count >= self._most:
            raise busy("overloaded", f"{self._most:,} callers wait already; try again, or ask for the task itself")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(id, set()).add(future)
        self._count += 1
        self._newcomer.set()
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll(), name="waiters")
        gone = asyncio.create_task(_hung_up(receive)) if receive is not None else None
        try:
            await asyncio.wait(
                {future, gone} if gone else {future}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if gone is not None and gone.done() and not future.done():
                raise ClientGone
        finally:
            if gone is not None:
                gone.cancel()
            self._leave(id, future)

    def close(self) -> None:
        """Let everybody go; later callers do not wait at all."""
        self._closed = True
        self._release(set(self._waiting))

    def _leave(self, id: UUID, future: asyncio.Future[None]) -> None:
        self._count -= 1
        others = self._waiting.get(id)
        if others is not None:
            others.discard(future)
            if not others:
                del self._waiting[id]

    def _release(self, ids: set[UUID]) -> None:
        for id in ids:
            for future in self._waiting.get(id, ()):
                if not future.done():
                    future.set_result(None)

    async def _poll(self) -> None:
        try:
            while self._waiting:
                await self._pace()
                await self._look()
        finally:
            self._poller = None

    async def _pace(self) -> None:
        """Sleep; a newcomer may cut a long pause short, down to the shortest one."""
        if not self._newcomer.is_set():
            try:
                await asyncio.wait_for(self._newcomer.wait(), self._pause)
            except TimeoutError:
                self._pause = min(self._pause * GROWTH, SLOWEST)
                return
        self._newcomer.clear()
        self._pause = FASTEST
        await asyncio.sleep(FASTEST)

    async def _look(self) -> None:
        ids = list(self._waiting)
        if not ids:
            return
        try:
            self._release(await self._tasks.final(ids))
        except Exception as error:
            if not is_transient(error):
                raise
            # Those who wait learn it from their own look at the task, when their time is over.
            log.warning("waiting goes on without the database: %s", error)
            self._pause = SLOWEST


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
