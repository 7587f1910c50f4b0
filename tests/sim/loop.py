"""An event loop in virtual time: nothing waits, its clock leaps to the next timer. Equal seeds run equally, to the last callback.

Several *processes* share the loop. Each callback belongs to the process in whose context it was made: one that stands still
(SIGSTOP) keeps its callbacks until it goes on, one that is gone (kill -9) never gets them, not even to clean up.
"""

from __future__ import annotations

import asyncio
import heapq
from asyncio import events
from collections.abc import Callable
from contextvars import Context, ContextVar
from typing import Any

# Which process the running code belongs to; 0 is none of them: the database, the network, the world.
PROCESS: ContextVar[int] = ContextVar("process", default=0)


class Stuck(RuntimeError):
    """Nothing will ever happen again, and somebody still waits."""


class _Soon(events.Handle):
    __slots__ = ()

    def _run(self) -> None:
        if not self._loop.held(self):  # type: ignore[attr-defined]
            super()._run()


class _Timer(events.TimerHandle):
    __slots__ = ()

    def _run(self) -> None:
        if not self._loop.held(self):  # type: ignore[attr-defined]
            super()._run()


class Loop(asyncio.BaseEventLoop):
    """See above. `now` is seconds, and all the time there is."""

    def __init__(self, now: float = 1_000.0) -> None:
        super().__init__()
        self.now = now
        self.gone: set[int] = set()
        self._kept: dict[int, list[events.Handle]] = {}
        self._selector = self

    def time(self) -> float:
        return self.now

    # what the base class wants of its selector

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Stuck("no timer is left")
        self.now += max(0.0, timeout)
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    # processes

    def held(self, handle: Any) -> bool:
        """Whether this callback must not run now; it is kept for when its process goes on."""
        process = handle._context.get(PROCESS, 0)
        if process not in self._kept:
            return False
        self._kept[process].append(handle)
        return True

    def stop_process(self, process: int) -> None:
        """It stands still from now on."""
        self._kept.setdefault(process, [])

    def continue_process(self, process: int) -> None:
        """It goes on, with whatever has come meanwhile; unless it is gone."""
        if process not in self.gone:
            self._ready.extend(self._kept.pop(process, ()))  # type: ignore[attr-defined]

    def kill_process(self, process: int) -> None:
        """It is gone."""
        self.gone.add(process)
        self.stop_process(process)

    def resurrect(self) -> None:
        """All go on, also those that are gone: so that they can be cancelled when all is over."""
        self.gone.clear()
        for process in list(self._kept):
            self.continue_process(process)

    def runs(self, process: int) -> bool:
        """Whether it is there and does not stand still."""
        return process not in self._kept

    # as in the base class, but for the kind of handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> events.TimerHandle:
        timer = _Timer(when, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def _call_soon(self, callback: Callable[..., object], args: Any, context: Context | None) -> events.Handle:
        handle = _Soon(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle
