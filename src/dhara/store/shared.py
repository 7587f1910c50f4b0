"""One run for all who ask at once, its answer kept for a moment: many probes and scrapers cost no more than one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from dhara.errors import Unavailable

T = TypeVar("T")


class Shared(Generic[T]):
    """Answers with what `work` answers, at most `keep` seconds old."""

    def __init__(self, work: Callable[[], Awaitable[T]], keep: float = 0.0) -> None:
        self._work = work
        self._keep = keep
        self._running: asyncio.Task[T] | None = None
        self._value: T | None = None
        self._until = 0.0

    async def get(self, timeout: float) -> T:
        """Waits at most `timeout` seconds, then raises `Unavailable`; a run that hangs goes on alone, for the next to find."""
        if self._value is not None and time.monotonic() < self._until:
            return self._value
        if self._running is None:
            self._running = asyncio.create_task(self._run(), name="shared")
        running = self._running
        done, _ = await asyncio.wait({running}, timeout=timeout)
        if not done:
            raise Unavailable(f"no answer within {timeout:g} s")
        return running.result()

    async def _run(self) -> T:
        try:
            self._value = value = await self._work()
            self._until = time.monotonic() + self._keep
            return value
        finally:
            self._running = None
