"""The watchdog: a thread that notices when the event loop stands still, and names the task that holds it.

It only explains; nothing depends on it. A handler that holds the GIL starves it too, then the keeper's warning stands
alone.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time

from dhara.worker.slots import Slots

log = logging.getLogger(__name__)

_LOOK = 0.5
PATIENCE = 1.0


class Watchdog:
    """Watches one loop, from a daemon thread."""

    def __init__(self, slots: Slots, loop: asyncio.AbstractEventLoop) -> None:
        self._slots = slots
        self._loop = loop
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="dhara watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()

    def _watch(self) -> None:
        named = None
        while not self._ended.wait(_LOOK):
            answered = threading.Event()
            try:
                self._loop.call_soon_threadsafe(answered.set)
            except RuntimeError:  # the loop is closed
                return
            start = time.monotonic()
            if answered.wait(PATIENCE):
                named = None
                continue
            culprit = self._culprit()
            if culprit != named:
                named = culprit
                log.warning("the event loop has stood still for %.1f s; %s", time.monotonic() - start, culprit)

    def _culprit(self) -> str:
        current = asyncio.current_task(self._loop)
        for slot in self._slots.slots:
            claim = slot.claim
            if slot.task is current and claim is not None:
                return f"task {claim.id} ({claim.type}) holds it; use `def` or executor='process' for such work"
        return "what holds it is not a task"
