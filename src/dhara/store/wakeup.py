"""Wake-ups: LISTEN and NOTIFY as a hint, with polling as the safety net. Losing one costs only latency.

A commit that notifies takes a lock that serialises all notifying commits. So the usual enqueue notifies, in its own commit, only
if somebody sleeps: each worker that would wait to be woken holds a shared advisory lock (for its queues, or for all), by the
connection on which it listens, and the statement looks whether there is one. Under load there is none, and a wake-up costs
nothing; when all is idle it comes with the commit itself. A worker that lies down looks once more when it has the lock, and
again a little later, for commits that were under way then.

Everything else (COPY, enqueues with keys or delays, revivals) sends a hint of its own after the commit, by the `Notifier`:
it writes nothing and therefore waits for no disk; while one is under way, further ones become the next. (`dhara.enqueue` in SQL
and `enqueue_tx` have no "after the commit" and notify in the caller's transaction, which may be long.)
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any
from uuid import UUID

from dhara.service import Service, within
from dhara.store.pool import SMALL, DatabaseSettings, Executor, connect
from dhara.store.sql import load

log = logging.getLogger(__name__)

# A half-open link is found within their sum.
LIVENESS_INTERVAL, LIVENESS_TIMEOUT = 8.0, 3.0
# Seconds at least from one of a process's hints to its next: the first is sent at once, and under load one does for several
# commits.
_BETWEEN = 0.002
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
# Whoever looked for sleepers before this worker lay down has most likely committed by then.
COMMIT_LAGS = (0.02, 0.1, 0.3)


def channel(schema: str, kind: str) -> str:
    """The NOTIFY channel of a schema; `kind` is `wakeup` (payload: queue) or `cancel` (payload: worker id)."""
    return f'"{schema}".{kind}'


class Notifier:
    """Sends wake-ups after commits, coalesced: at most one statement under way, the rest waits and goes together."""

    def __init__(self, db: Executor, schema: str = "dhara") -> None:
        self._db = db
        self._schema = schema
        self._waiting: set[tuple[str, str]] = set()
        self._flusher: asyncio.Task[None] | None = None

    def wake(self, queue: str) -> None:
        """Tell idle workers that `queue` has a ready task. Returns at once."""
        self._send("wakeup", queue)

    def cancel(self, worker: UUID) -> None:
        """Tell `worker` that one of its tasks is to be canceled, or itself to be drained. Returns at once."""
        self._send("cancel", str(worker))

    def _send(self, kind: str, text: str) -> None:
        self._waiting.add((channel(self._schema, kind), text))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.get_running_loop().create_task(self._flush())

    async def _flush(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, set()
            channels, texts = zip(*batch, strict=True)
            try:
                await self._db.execute(
                    "SELECT pg_notify(c, t) FROM unnest($1::text[], $2::text[]) AS n (c, t)", channels, texts
                )
            except Exception as error:
                log.debug("a wake-up was lost, workers will poll: %s", error)
            # Whoever was woken looks again by itself while there is work: the next hint need not follow at once.
            await asyncio.sleep(_BETWEEN)

    async def close(self) -> None:
        """Send what waits; afterwards nothing is under way."""
        if self._flusher is not None:
            await asyncio.wait({self._flusher}, timeout=2)


class Listener(Service):
    """Hears wake-ups on a connection of its own, which it checks, and opens again with backoff when it is lost.

    `on_wake(queue)` and `on_cancel(worker id)` are called for each hint; `on_wake("")` after every (re)connect, and when the
    worker has lain down, since hints may have been missed meanwhile. `queues`: those that the worker serves.
    """

    def __init__(
        self,
        settings: DatabaseSettings,
        on_wake: Callable[[str], None],
        on_cancel: Callable[[str], None] = lambda worker: None,
        rng: random.Random | None = None,
        queues: Iterable[str] = ("*",),
    ) -> None:
        super().__init__()
        self._settings = settings
        wakeup = channel(settings.schema, "wakeup")
        self._locks = [wakeup] if "*" in queues else [f"{wakeup} {queue}" for queue in sorted(queues)]
        self._on_wake = on_wake
        self._on_cancel = on_cancel
        self._rng = rng or random.Random()
        self.connected = asyncio.Event()
        self._asleep = True
        self._changed = asyncio.Event()

    def rest(self, asleep: bool) -> None:
        """Whether the worker waits to be woken, or looks for tasks by itself. Returns at once."""
        if asleep != self._asleep:
            self._asleep = asleep
            self._changed.set()

    async def run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                await self._listen()
            except Exception as error:
                log.debug("not listening for wake-ups, polling: %s", error)
            # One that had been there comes back at once; the longer there has been none, the longer the pauses.
            pause = _FIRST_PAUSE if self.connected.is_set() else min(_LONGEST_PAUSE, pause * 2)
            self.connected.clear()
            await asyncio.sleep(pause * self._rng.uniform(0.5, 1.5))

    async def _listen(self) -> None:
        connection: Any = await connect(self._settings, "dhara listener", SMALL)
        try:
            connection.add_termination_listener(lambda _: self._changed.set())
            schema = self._settings.schema
            await connection.add_listener(channel(schema, "wakeup"), lambda *a: self._on_wake(a[3]))
            await connection.add_listener(channel(schema, "cancel"), lambda *a: self._on_cancel(a[3]))
            holds = False
            while not connection.is_closed():
                self._changed.clear()
                if holds != self._asleep:
                    holds = await within(LIVENESS_TIMEOUT, self._hold(connection, self._asleep))
                    continue
                self.connected.set()
                with suppress(TimeoutError):
                    async with asyncio.timeout(LIVENESS_INTERVAL):
                        await self._changed.wait()
                    continue
                # A half-open link gives no sign by itself.
                await within(LIVENESS_TIMEOUT, connection.fetchval("SELECT 1"))
        finally:
            connection.terminate()

    async def _hold(self, connection: Any, asleep: bool) -> bool:
        """Hold the lock, or let it go. Answers `asleep`."""
        schema = self._settings.schema
        if not asleep:
            await connection.execute(load("workers/get_up", schema), self._locks)
            return False
        # Enqueues hold them for microseconds; if one stands still with it, this fails, and is tried again on a new connection.
        await connection.execute(load("workers/lie_down", schema), self._locks)
        self._on_wake("")
        for lag in COMMIT_LAGS:
            asyncio.get_running_loop().call_later(lag, self._on_wake, "")
        return True
