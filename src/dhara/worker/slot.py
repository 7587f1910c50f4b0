"""A slot: room for one running attempt, and what may interrupt it."""

from __future__ import annotations

import asyncio
from enum import Enum

from dhara.domain.task import Claim
from dhara.worker.context import Context


class Stop(Enum):
    """Why an attempt was told to stop."""

    CANCEL = "cancel"
    TIMEOUT = "timeout"
    DRAIN = "drain"
    EXCLUSIVE = "exclusive"
    EXIT = "exit"


class Slot:
    """One long-lived coroutine's place. `deadline` is on the monotonic clock."""

    __slots__ = (
        "allowed",
        "claim",
        "context",
        "deadline",
        "exclusive",
        "index",
        "interruptible",
        "since",
        "stop",
        "stop_at",
        "task",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.claim: Claim | None = None
        self.context: Context | None = None
        self.task: asyncio.Task[None] | None = None
        self.since = 0.0
        self.deadline = 0.0
        self.allowed = 0.0
        self.interruptible = True
        self.exclusive = False
        self.stop: Stop | None = None
        self.stop_at = 0.0

    def begin(
        self,
        claim: Claim,
        now: float,
        allowed: float,
        interruptible: bool,
        exclusive: bool = False,
    ) -> None:
        """An attempt starts, for at most `allowed` seconds."""
        self.claim = claim
        self.context = None
        self.since = now
        self.allowed = allowed
        self.deadline = now + allowed
        self.interruptible = interruptible
        self.exclusive = exclusive
        self.stop = None

    def interrupt(self, why: Stop, now: float) -> None:
        """Tell the attempt to stop: its context says so, and an `async` handler gets a CancelledError."""
        if self.claim is None:
            return
        if self.stop is None:
            self.stop, self.stop_at = why, now
        if self.context is not None:
            self.context._cancel.set()
        if self.interruptible and self.task is not None:
            self.task.cancel()

    def heeded(self) -> None:
        """The attempt ended by a CancelledError: take the requests back, so that the slot itself lives on.

        All of them, also the handler's own: one that is left over would break the next attempt's time-outs and groups.
        """
        if self.stop is Stop.EXIT or self.task is None:
            return
        while self.task.cancelling():
            self.task.uncancel()

    def end(self) -> bool:
        """The attempt is over. True if a request came as it ended, to be swallowed before the next attempt begins."""
        self.claim = None
        self.context = None
        return self.task is not None and self.task.cancelling() > 0

    async def swallow(self) -> None:
        """Take the late request, which would otherwise hit the next attempt."""
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            if self.stop is Stop.EXIT:
                raise
        self.heeded()
