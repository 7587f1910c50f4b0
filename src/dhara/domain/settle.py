"""From an outcome to a settlement: the one place that decides what happens to a task after an attempt."""

from __future__ import annotations

from random import Random
from uuid import UUID

from msgspec import Struct, structs

from dhara.domain import limits
from dhara.domain.backoff import Backoff
from dhara.domain.lifecycle import Event
from dhara.domain.outcome import Canceled, Crashed, Done, Failed, Outcome, Released, Settled, Snoozed
from dhara.domain.task import Claim


class Settlement(Struct, frozen=True, gc=False):
    """What to write at the end of an attempt. `delay` is seconds until the task is due again, by the database's clock."""

    id: UUID
    lease: UUID
    attempt: int
    event: Event
    delay: float = 0.0
    failed: int = 0
    crashed: int = 0
    progress: str | None = None
    result: str | None = None
    reason: str | None = None
    last_error: str | None = None
    error: str | None = None
    logs: str | None = None
    fingerprint: str | None = None


def decide(
    claim: Claim,
    outcome: Outcome,
    backoff: Backoff,
    rng: Random,
    logs: str | None = None,
) -> Settlement | None:
    """The settlement of `claim` after `outcome`; None if it has settled itself.

    Pure; `backoff` serves where the failure has no policy of its own, `rng` is for the jitter.
    """
    match outcome:
        case Done(result):
            return Settlement(claim.id, claim.lease, claim.attempt, Event.COMPLETED, result=result, logs=logs)
        case Settled():
            return None
        case Failed():
            return _failed(claim, outcome, backoff, rng, logs)
        case Crashed():
            return _crashed(claim, outcome, backoff, rng, logs)
        case Snoozed(seconds, reason):
            if claim.snoozes >= limits.SNOOZES:
                text = f"snoozed more than {limits.SNOOZES} times"
                return _failed(claim, Failed(text, permanent=True, reason="snoozed_out"), backoff, rng, logs)
            return Settlement(
                claim.id, claim.lease, claim.attempt, Event.SNOOZED, delay=_bounded(seconds), reason=reason, logs=logs
            )
        case Canceled(reason):
            return Settlement(claim.id, claim.lease, claim.attempt, Event.CANCELED, reason=reason, logs=logs)
        case Released(reason):
            return Settlement(claim.id, claim.lease, claim.attempt, Event.RELEASED, reason=reason, logs=logs)


def _bounded(seconds: float) -> float:
    """`seconds` as a wait that the database can add to its clock; one that it cannot would fail the whole batch."""
    low, high = limits.DELAY_SECONDS
    return min(seconds, high) if seconds > low else low  # NaN is not above `low`


def _crashed(claim: Claim, outcome: Crashed, backoff: Backoff, rng: Random, logs: str | None) -> Settlement:
    text = f"the process that ran it ended: {outcome.how}"
    poison = claim.crashes + 1 >= limits.CRASHES
    failure = Failed(text, permanent=poison, reason="poison" if poison else None, fingerprint=outcome.fingerprint)
    return structs.replace(_failed(claim, failure, backoff, rng, logs), crashed=1)


def _failed(claim: Claim, outcome: Failed, backoff: Backoff, rng: Random, logs: str | None) -> Settlement:
    failures = claim.failures + 1
    limit = claim.max_retries
    if outcome.policy is not None:
        backoff = outcome.policy.backoff
        limit = limit if outcome.policy.max_retries is None else min(limit, outcome.policy.max_retries)
    exhausted = failures > limit
    dead = outcome.permanent or exhausted
    reason = outcome.reason or ("permanent" if outcome.permanent else "exhausted" if exhausted else None)
    delay = 0.0
    if not dead:
        wish = backoff.delay(failures, rng) if outcome.retry_after is None else outcome.retry_after
        delay = _bounded(wish)
    return Settlement(
        claim.id,
        claim.lease,
        claim.attempt,
        Event.DEAD if dead else Event.RETRIED,
        delay=delay,
        failed=1,
        reason=reason,
        last_error=outcome.message,
        error=outcome.error,
        logs=logs,
        fingerprint=(outcome.fingerprint or f"dead:{claim.type}") if dead else None,
    )
