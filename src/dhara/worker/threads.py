"""Threads for `def` handlers.

What they answer comes back to the loop many at a time: to wake it for each would cost as much as a small handler itself.
Threads are daemons, since one that hangs in a handler must not keep its process from ending.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias

_Work: TypeAlias = "tuple[asyncio.Future[Any], Callable[[], Any]]"


class Threads:
    """At most `most` threads, each started when it is first needed. To be used from one event loop."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._work: SimpleQueue[_Work | None] = SimpleQueue()
        self._done: deque[tuple[asyncio.Future[Any], Any]] = deque()
        self._told = False
        self._under_way = 0
        self._started = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, call: Callable[[], Any]) -> asyncio.Future[Any]:
        """Call it in a thread; what it answers, later. `call` must not raise."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        if self._started < min(self._most, self._under_way + 1):
            self._start_another()
        future: asyncio.Future[Any] = self._loop.create_future()
        self._under_way += 1
        self._work.put((future, call))
        return future

    def _start_another(self) -> None:
        """Raises `RuntimeError` where the system allows no thread, and there is none to do the work."""
        name = f"{self._name}_{self._started + 1}"
        try:
            threading.Thread(target=self._serve, name=name, daemon=True).start()
        except RuntimeError:
            if not self._started:
                raise
        else:
            self._started += 1

    def stop(self) -> None:
        """Begin nothing more; what runs is left behind."""
        with suppress(Empty):  # the threads take, too
            while True:
                self._work.get_nowait()
        for _ in range(self._started):
            self._work.put(None)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            future, call = work
            self._done.append((future, None if future.cancelled() else call()))
            del work, future, call  # else an idle thread would keep its last task's arguments
            if not self._told:
                self._told = True
                try:
                    self._loop.call_soon_threadsafe(self._deliver)  # type: ignore[union-attr]
                except RuntimeError:  # the loop is closed
                    return

    def _deliver(self) -> None:
        # In this order: who appends after the last look finds that the loop is to be told.
        self._told = False
        while self._done:
            future, answer = self._done.popleft()
            self._under_way -= 1
            if not future.done():
                future.set_result(answer)
