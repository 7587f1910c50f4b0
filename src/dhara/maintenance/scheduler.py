"""The scheduler: what is due is enqueued, each fire in one transaction with its record.

The record's key (schedule, fire time) makes a fire happen once, whoever else fires; the lock on the schedule's row and
the leadership of maintenance only save work. All times are the database's.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from dhara.domain.lifecycle import State
from dhara.domain.schedule import due, fire_id, jitter_of
from dhara.domain.task import NewTask
from dhara.errors import IdempotencyConflict, NotFound
from dhara.maintenance.bulk import Wakes
from dhara.store.audit import Audit
from dhara.store.pool import AWAY, Pool, is_transient, wait_briefly
from dhara.store.schedules import Schedule, Schedules
from dhara.store.search import Filter, Search
from dhara.store.tasks import Tasks

log = logging.getLogger(__name__)


class Scheduler:
    """Fires schedules. `notifier` wakes workers; without one they find out by polling."""

    def __init__(self, pool: Pool, schema: str = "dhara", notifier: Wakes | None = None) -> None:
        self._pool = pool
        self._schema = schema
        self._notifier = notifier

    async def tick(self, within: float = 0.0) -> float | None:
        """Fire whatever is due; answers in how many seconds the next is, if that is `within` so many.

        One that cannot be fired now, since a row or a key is locked, say, keeps no other from its turn.
        """
        for coming in await Schedules(self._pool, self._schema).due(within):
            if coming.due_in > 0:
                return coming.due_in
            try:
                await self._fire(coming.name, coming.next_at)
            except Exception as error:
                if isinstance(error, AWAY):
                    raise
                log.warning("schedule %s could not be fired, trying again: %s", coming.name, error)
        return None

    async def run_now(self, name: str, by: str) -> UUID:
        """One fire beside the plan, by hand; answers its task. Raises `NotFound`."""
        async with self._pool.acquire() as connection, connection.transaction():
            store = Schedules(connection, self._schema)
            schedule, now = await store.get(name), await store.now()
            task = await self._enqueue(connection, schedule, now, by_hand=True)
            await store.note(name, now, "by_hand", task)
            await Audit(connection, self._schema).record(by, "schedule.run", name, after={"task": task})
        self._wake([schedule.queue])
        return task

    async def _fire(self, name: str, expected: datetime) -> None:
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                await wait_briefly(connection, self._schema)
                held = await Schedules(connection, self._schema).hold(name, expected)
                if held is None:
                    return
                await self._fire_held(connection, held[0], expected, held[1])
        except Exception as error:
            if is_transient(error):
                raise
            # Such as a zone that this machine does not know any more: it would fail the same way every second, and keep
            # those behind it from their turn.
            log.error("schedule %s cannot be fired and is paused: %s", name, error)
            await Schedules(self._pool, self._schema).pause(name, f"dhara: {error}"[:200])
            return
        self._wake([held[0].queue])

    async def _fire_held(self, connection: Any, schedule: Schedule, expected: datetime, now: datetime) -> None:
        store = Schedules(connection, self._schema)
        todo = due(schedule.timing(schedule.anchor), expected, now, schedule.missed, schedule.catch_up_most)
        previous, last = schedule.last_task, None
        for at in todo.missed:
            await store.note(schedule.name, at, "missed")
        for at in todo.fire:
            id = fire_id(schedule.name, at)
            skipped = schedule.overlap == "skip" and await self._open(connection, previous)
            if not await store.note(schedule.name, at, "overlap" if skipped else "enqueued", None if skipped else id):
                continue  # somebody has fired it
            if skipped:
                continue
            if schedule.overlap == "cancel_previous" and previous is not None:
                await self._cancel(connection, previous, schedule.name)
            previous, last = await self._enqueue(connection, schedule, at), at
        came = todo.fire or todo.missed
        await store.advance(schedule.name, came[-1] if came else None, previous if last else None, todo.next)

    async def _enqueue(self, connection: Any, schedule: Schedule, at: datetime, by_hand: bool = False) -> UUID:
        delay = 0.0 if by_hand else jitter_of(schedule.name, at, schedule.jitter)
        new = NewTask(
            id=fire_id(f"{schedule.name}\0by hand" if by_hand else schedule.name, at),
            type=schedule.type,
            payload=schedule.payload,
            queue=schedule.queue,
            priority=schedule.priority,
            max_retries=schedule.max_retries,
            timeout=schedule.timeout,
            run_at=at + timedelta(seconds=delay) if delay else None,
            idempotency_key=f"schedule:{schedule.name}:{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
        )
        (answer,) = await Tasks(connection, self._schema).enqueue([new])
        if isinstance(answer, IdempotencyConflict):
            log.warning(
                "schedule %s: the task of %s was enqueued by somebody else, with another payload", schedule.name, at
            )
            return answer.existing
        return answer.task.id

    async def _open(self, connection: Any, task: UUID | None) -> bool:
        """Whether the task that it enqueued last is not final."""
        if task is None:
            return False
        # By its id alone: who only maintains may see no payload.
        wanted = Filter(ids=(task,), status=(State.PENDING, State.RUNNING))
        return bool(await Search(connection, self._schema).some(wanted, 1))

    async def _cancel(self, connection: Any, task: UUID, name: str) -> None:
        reason = "its schedule fired again"
        try:
            answer = await Tasks(connection, self._schema).request_cancel(task, reason, f"schedule:{name}")
        except NotFound:
            return
        if answer.worker is not None and self._notifier is not None:
            self._notifier.cancel(answer.worker)

    def _wake(self, queues: list[str]) -> None:
        if self._notifier is not None:
            for queue in queues:
                self._notifier.wake(queue)
