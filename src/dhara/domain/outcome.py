"""What a handler may answer. Values, consumed by one `match` in `settle.decide`.

The exceptions by the same wishes (`Retry`, `Snooze`, `Cancel`, `DeadLetter`) are what handlers raise; the executor
turns whatever ends an attempt into one of these values.
"""

from __future__ import annotations

from msgspec import Struct

from dhara.domain.backoff import RetryPolicy


class Done(Struct, frozen=True, tag=True):
    """The handler returned; `result` is JSON text."""

    result: str = "null"


class Failed(Struct, frozen=True, tag=True):
    """The handler failed. `retry_after` (seconds) overrides the backoff; `permanent` spends no retries on it."""

    message: str
    error: str | None = None
    retry_after: float | None = None
    permanent: bool = False
    reason: str | None = None
    fingerprint: str | None = None
    # How its handler retries such failures; None: as the worker does.
    policy: RetryPolicy | None = None


class Snoozed(Struct, frozen=True, tag=True):
    """The handler wishes to run again in `seconds`; no failure."""

    seconds: float
    reason: str | None = None


class Canceled(Struct, frozen=True, tag=True):
    """The handler canceled its task, or heeded a cancel request."""

    reason: str | None = None


class Released(Struct, frozen=True, tag=True):
    """Nobody finished: drain, or a claim that its worker never learnt of; no failure."""

    reason: str


class Crashed(Struct, frozen=True, tag=True):
    """The process that ran the attempt alone died; `how` names the signal or exit code."""

    how: str
    fingerprint: str | None = None


class Settled(Struct, frozen=True, tag=True):
    """The attempt has settled itself, in one transaction with its handler's own writes."""


Outcome = Done | Failed | Snoozed | Canceled | Released | Crashed | Settled


class Signal(Exception):
    """Base of what a handler raises to say how its attempt ends."""


class Retry(Signal):
    """Fail this attempt and try again in `after` seconds (None: by the backoff). Counts as a failure."""

    def __init__(self, after: float | None = None, reason: str = "retry asked by the handler") -> None:
        super().__init__(reason)
        self.after = after


class Snooze(Signal):
    """Run again in `seconds`; costs no attempt of the retry budget."""

    def __init__(self, seconds: float, reason: str | None = None) -> None:
        super().__init__(reason or f"snoozed for {seconds:g} s")
        self.seconds = seconds
        self.reason = reason


class Cancel(Signal):
    """Cancel this task; it is final and no failure."""

    def __init__(self, reason: str = "canceled by the handler") -> None:
        super().__init__(reason)
        self.reason = reason


class DeadLetter(Signal):
    """Mark this task DEAD now, whatever retries are left."""

    def __init__(self, reason: str = "dead-lettered by the handler") -> None:
        super().__init__(reason)
        self.reason = reason
