"""One life for all background parts: `start` and `stop`, both idempotent; stop works without start, and twice."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Self, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")
_CANCELS, _PATIENCE = 2, 1.0


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """What `work` answers, if it does within `seconds`. Raises `TimeoutError`.

    Unlike `asyncio.wait_for` it does not wait until `work` has heeded its cancellation.
    """
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    finally:
        if not task.done():
            task.cancel()
    if not done:
        raise TimeoutError(f"not done within {seconds:g} s")
    return task.result()


class Service:
    """A part that runs in the background. Subclasses write `run`, which ends by being cancelled."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        raise NotImplementedError

    async def start(self) -> Self:
        """Begin; a second call changes nothing."""
        if self._task is None:
            self._task = asyncio.create_task(self.run(), name=type(self).__name__)
            self._task.add_done_callback(_report)
        return self

    async def stop(self) -> None:
        """End, and wait until it has; but not for ever, since a query on a dead link heeds its cancellation late."""
        task, self._task = self._task, None
        for _ in range(_CANCELS):
            if task is None or task.done():
                return
            # Again, should something inside have swallowed it: `asyncio.wait_for` of Python 3.11, for one, does that when
            # what it waits for comes at the same moment.
            task.cancel()
            await asyncio.wait({task}, timeout=_PATIENCE)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()


class Every(Service):
    """Runs `work` every `interval` seconds, first at once. An error is logged and the next round comes as planned."""

    def __init__(self, interval: float, work: Callable[[], Awaitable[None]], name: str) -> None:
        super().__init__()
        self.interval = interval
        self._work = work
        self._name = name

    async def run(self) -> None:
        failing = False
        while True:
            try:
                await self._work()
                if failing:
                    log.info("%s works again", self._name)
                failing = False
            except Exception as error:
                # Once at warning, then quietly: an outage of a minute must not fill the log.
                level = logging.DEBUG if failing else logging.WARNING
                log.log(level, "%s failed, trying again every %g s: %s", self._name, self.interval, error)
                failing = True
            await self.rest()

    async def rest(self) -> None:
        """The pause between two rounds."""
        await asyncio.sleep(self.interval)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s ended by an error", task.get_name(), exc_info=error)
