"""Bulk operations go on: batch by batch, each in one transaction with its own progress, so that a death loses no more
than the batch under way and whoever comes next resumes behind the last one.

Servers drive what they were asked for, and so does the fleet's maintenance: the lock on the operation's row keeps them
from doing a batch twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Protocol
from uuid import UUID

import asyncpg
import msgspec

from dhara.domain.canary import Verdict, judge, next_size
from dhara.domain.lifecycle import State
from dhara.store.operations import Changed, Operation, Operations
from dhara.store.pool import Pool, is_transient, wait_briefly
from dhara.store.search import Filter, Search

log = logging.getLogger(__name__)

BATCH = 500
LOOK_AGAIN = 1.0
TRY_AGAIN = 5.0


class Wakes(Protocol):
    """Who tells workers that there is something to claim, or to stop."""

    def wake(self, queue: str) -> None: ...
    def cancel(self, worker: UUID) -> None: ...


class Bulk:
    """Drives operations on `pool`. `notifier` wakes workers; without one they find out by polling."""

    def __init__(self, pool: Pool, schema: str = "dhara", notifier: Wakes | None = None) -> None:
        self._pool = pool
        self._schema = schema
        self._notifier = notifier
        self._operations = Operations(pool, schema)

    async def drive(self, seconds: float = 0.5) -> int:
        """Whatever is due, for about `seconds`; answers how many steps were taken. One that is blocked is put off."""
        until = time.monotonic() + seconds
        steps = 0
        while due := await self._operations.due():
            taken = 0
            for id in due:
                taken += await self._try(id)
                if time.monotonic() >= until:
                    return steps + taken
            if not taken:
                break  # somebody else is at them
            steps += taken
        return steps

    async def _try(self, id: UUID) -> bool:
        """A step that harms no other operation: where a row is locked for long, say, the others have their turn."""
        try:
            return await self.step(id)
        except Exception as error:
            if not is_transient(error):
                raise
            await self._operations.put_off(id, TRY_AGAIN)  # raises too if the database is away
            log.warning("bulk operation %s goes on in %g s: %s", id, TRY_AGAIN, error)
            return False

    async def drive_one(self, id: UUID, seconds: float = 0.5) -> None:
        """One operation, for about `seconds` or to its end."""
        until = time.monotonic() + seconds
        while await self.step(id) and time.monotonic() < until:
            pass

    async def step(self, id: UUID) -> bool:
        """One batch of one operation. False: it is not due, has ended, or somebody else is at it."""
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                await wait_briefly(connection, self._schema)
                operations = Operations(connection, self._schema)
                operation = await operations.hold(id)
                if operation is None:
                    return False
                changed = await _Step(connection, self._schema, operation).take()
        except Exception as error:
            if is_transient(error) and not isinstance(error, asyncpg.QueryCanceledError):
                raise
            log.exception("bulk operation %s failed", id)
            await self._operations.finish(id, "failed", f"{type(error).__name__}: {error}"[:500])
            return True
        self._tell(operation.kind, changed)
        return True

    def _tell(self, kind: str, changed: Sequence[Changed]) -> None:
        if self._notifier is None:
            return
        if kind == "retry":
            for queue in {one.queue for one in changed}:
                self._notifier.wake(queue)
        for worker in {one.worker for one in changed if one.worker is not None}:
            self._notifier.cancel(worker)


class _Step:
    """One step of a held operation, on the connection of its transaction."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record], schema: str, operation: Operation) -> None:
        self._connection = connection
        self._operations = Operations(connection, schema)
        self._search = Search(connection, schema)
        self._it = operation

    async def take(self) -> list[Changed]:
        """Do it, and put it on record."""
        size = BATCH
        if self._it.canary is not None:
            size = await self._wave()
            if not size:
                return []
        ids = await self._next(size)
        if not ids:
            await self._operations.finish(self._it.id, "done")
            return []
        changed = await self._change(ids)
        await self._operations.advance(
            self._it.id,
            done=len(changed),
            skipped=len(ids) - len(changed),
            after=ids[-1],
            pause=LOOK_AGAIN if self._it.canary and changed else 0.0,
            wave=[one.id for one in changed] if self._it.canary else None,
        )
        return changed

    async def _wave(self) -> int:
        """How many tasks a canary retry releases now; 0: none yet, or never more."""
        plan, wave = self._it.canary, self._it.wave
        assert plan is not None
        if not wave or self._it.wave_at is None:
            return next_size(plan, 0)
        seen = await self._operations.outcomes(wave, self._it.wave_at)
        match judge(plan, seen):
            case Verdict.GO:
                return next_size(plan, len(wave))
            case Verdict.WAIT:
                after = self._it.after_id
                await self._operations.advance(self._it.id, done=0, skipped=0, after=after, pause=LOOK_AGAIN)
            case Verdict.STOP:
                text = f"{seen.failed} of the {seen.size} tasks released last failed again; the others stay DEAD"
                await self._operations.finish(self._it.id, "stopped", text)
        return 0

    async def _next(self, most: int) -> Sequence[UUID]:
        """The tasks of the next batch: those that died later than the operation began may be among them, no younger ones."""
        wanted = msgspec.structs.replace(self._it.filter, created_before=self._before())
        if self._it.kind != "cancel":
            return await self._search.walk(wanted, self._it.after_id, most)
        # What was canceled leaves the filter, so there is nothing to walk behind.
        for state in wanted.status:
            one = msgspec.structs.replace(wanted, status=(state,), uncanceled=state is State.RUNNING)
            if ids := await self._search.some(one, most):
                return sorted(ids)
        return []

    def _before(self) -> datetime:
        given = self._it.filter.created_before
        return self._it.created_at if given is None else min(given, self._it.created_at)

    async def _change(self, ids: Sequence[UUID]) -> list[Changed]:
        method = getattr(self._operations, self._it.kind)
        reason = self._it.trace()
        try:
            async with self._connection.transaction():
                found: list[Changed] = await method(ids, reason)
                return found
        except asyncpg.UniqueViolationError:
            pass  # an enqueue has taken a unique key just now: one by one, without that one
        changed: list[Changed] = []
        for id in ids:
            try:
                async with self._connection.transaction():
                    changed += await method([id], reason)
            except asyncpg.UniqueViolationError:
                log.info("task %s stays DEAD: another task holds its unique key", id)
        return changed


def base(kind: str, wanted: Filter) -> Filter:
    """`wanted`, with the states that an operation of this kind can change."""
    if kind != "cancel":
        return msgspec.structs.replace(wanted, status=(State.DEAD,))
    open_states = (State.PENDING, State.RUNNING)
    states = tuple(state for state in open_states if not wanted.status or state in wanted.status)
    return msgspec.structs.replace(wanted, status=states)
