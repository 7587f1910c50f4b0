"""Waiting for what happens instead of for time to pass.

How long a test waits in vain costs only a test that fails, so it is long: this machine may be busy. Where a test asserts
that something happens *soon*, its bound lies far from both: from what a busy machine needs, and from what would pass if
the thing asserted were broken (the next poll, the lease, the handler's own end).
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

import asyncpg

T = TypeVar("T")

PATIENCE = 30.0


class Signal:
    """Something a test waits for: `fire` from any thread, `wait` on the loop; a count, so that nothing is missed."""

    def __init__(self, name: str = "signal") -> None:
        self.name = name
        self.fired = 0
        self.values: list[Any] = []

    def fire(self, value: Any = None) -> None:
        self.values.append(value)
        self.fired += 1

    async def wait(self, times: int = 1, timeout: float = PATIENCE) -> list[Any]:
        """Return once it has fired at least `times`; answers the values. Raises `AssertionError` after `timeout` seconds."""
        await eventually(lambda: self.fired >= times, timeout, f"{self.name} to fire {times} times")
        return self.values


@overload
async def eventually(
    predicate: Callable[[], Awaitable[T]], timeout: float = PATIENCE, what: str | None = None
) -> T: ...


@overload
async def eventually(predicate: Callable[[], T], timeout: float = PATIENCE, what: str | None = None) -> T: ...


async def eventually(predicate: Callable[[], Any], timeout: float = PATIENCE, what: str | None = None) -> Any:
    """The first true answer of `predicate` (sync or async), asked again and again for at most `timeout` seconds."""
    deadline = time.monotonic() + timeout
    pause = 0.001
    while True:
        answer = predicate()
        found = await answer if inspect.isawaitable(answer) else answer
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(
                f"waited {timeout:g} s in vain for {what or inspect.getsource(predicate).strip()}; last: {found!r}"
            )
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.05)


async def blocked_on_lock(db: asyncpg.Connection[asyncpg.Record], pid: int, timeout: float = PATIENCE) -> None:
    """Return once the session `pid` really waits for a lock, as `db`, another session, sees it."""

    async def waits() -> bool:
        query = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $1"
        return bool(await db.fetchval(query, pid))

    await eventually(waits, timeout, f"session {pid} to wait for a lock")
