"""Backoff: how long a failed task waits before its next attempt."""

from __future__ import annotations

from random import Random

from msgspec import Struct


class Backoff(Struct, frozen=True):
    """`min(cap, base * factor ** (failures - 1)) * U(1 - jitter, 1 + jitter)`, in seconds."""

    base: float = 1.0
    factor: float = 2.0
    cap: float = 3600.0
    jitter: float = 0.5

    def delay(self, failures: int, rng: Random) -> float:
        """Seconds to wait after the `failures`-th failure (1 and up)."""
        try:
            wait = min(self.cap, self.base * self.factor ** (failures - 1))
        except OverflowError:
            wait = self.cap
        return wait * rng.uniform(1 - self.jitter, 1 + self.jitter)


class RetryPolicy(Struct, frozen=True):
    """How often and how fast a task type is retried. `max_retries` None: as the task was enqueued.

    `base` and `cap` are seconds; see `Backoff`.
    """

    max_retries: int | None = None
    base: float = 1.0
    factor: float = 2.0
    cap: float = 3600.0
    jitter: float = 0.5

    @property
    def backoff(self) -> Backoff:
        return Backoff(self.base, self.factor, self.cap, self.jitter)
