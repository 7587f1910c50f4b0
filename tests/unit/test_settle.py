"""decide: what an outcome does to a task, for every claim."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from random import Random
from uuid import UUID, uuid4

from hypothesis import given
from hypothesis import strategies as st

from dhara.domain import limits
from dhara.domain.backoff import Backoff, RetryPolicy
from dhara.domain.lifecycle import TRANSITIONS, Event, State
from dhara.domain.outcome import Canceled, Crashed, Done, Failed, Outcome, Released, Settled, Snoozed
from dhara.domain.settle import Settlement, decide
from dhara.domain.task import Claim

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ANY_SECONDS = st.floats(allow_nan=True, allow_infinity=True)
TEXT = st.text(max_size=5)

claims = st.builds(
    Claim,
    id=st.uuids(),
    lease=st.uuids(version=4),
    type=st.just("t"),
    queue=st.just("q"),
    priority=st.integers(0, 100),
    run_at=st.just(NOW),
    payload=st.just("{}"),
    attempt=st.integers(1, 1_000),
    failures=st.integers(0, 20),
    crashes=st.integers(0, 2),
    snoozes=st.integers(0, limits.SNOOZES),
    generation=st.integers(1, 5),
    max_retries=st.integers(0, 20),
    timeout=st.none(),
    traceparent=st.none(),
    started_at=st.just(NOW),
)
failures = st.builds(
    Failed,
    message=TEXT,
    error=st.none() | st.just("{}"),
    retry_after=st.none() | ANY_SECONDS,
    permanent=st.booleans(),
    reason=st.none() | TEXT,
    fingerprint=st.none() | TEXT,
)
outcomes: st.SearchStrategy[Outcome] = st.one_of(
    st.builds(Done, st.just('{"a":1}')),
    failures,
    st.builds(Snoozed, ANY_SECONDS, st.none() | TEXT),
    st.builds(Canceled, st.none() | TEXT),
    st.builds(Released, TEXT),
    st.builds(Crashed, TEXT),
)


def decided(claim: Claim, outcome: Outcome, seed: int = 0, logs: str | None = None) -> Settlement:
    found = decide(claim, outcome, Backoff(), Random(seed), logs)
    assert found is not None
    return found


@given(claims, outcomes, st.integers(), st.none() | st.just("[]"))
def test_every_settlement_is_legal_and_fenced(claim: Claim, outcome: Outcome, seed: int, logs: str | None) -> None:
    found = decided(claim, outcome, seed, logs)
    assert (found.id, found.lease, found.attempt, found.logs) == (claim.id, claim.lease, claim.attempt, logs)
    assert found.event in TRANSITIONS[State.RUNNING]
    assert found.event is not Event.REAPED
    # The database adds it to its clock: a wait that it cannot would fail the whole batch.
    assert math.isfinite(found.delay)
    assert 0 <= found.delay <= limits.DELAY_SECONDS[1]
    assert found.failed in (0, 1)
    if TRANSITIONS[State.RUNNING][found.event] is not State.PENDING:
        assert found.delay == 0
    # Same claim, outcome and dice: same settlement.
    assert found == decided(claim, outcome, seed, logs)


@given(claims, failures, st.integers())
def test_failures_spend_the_budget(claim: Claim, failure: Failed, seed: int) -> None:
    found = decided(claim, failure, seed)
    dead = failure.permanent or claim.failures + 1 > claim.max_retries
    assert found.event is (Event.DEAD if dead else Event.RETRIED)
    assert found.failed == 1
    assert found.last_error == failure.message
    assert (found.fingerprint is None) or dead
    # DEAD always carries a reason.
    assert not dead or found.reason is not None
    if not dead and failure.retry_after is None:
        wait = min(3600.0, 2.0**claim.failures)
        assert wait * 0.5 <= found.delay <= wait * 1.5


@given(claims, failures)
def test_at_most_max_retries_and_one_failures(claim: Claim, failure: Failed) -> None:
    if claim.failures <= claim.max_retries:
        assert claim.failures + decided(claim, failure).failed <= claim.max_retries + 1


def a_claim(**fields: int) -> Claim:
    values: dict[str, object] = {
        "id": uuid4(), "lease": uuid4(), "type": "t", "queue": "q", "priority": 0, "run_at": NOW, "payload": "{}",
        "attempt": 1, "failures": 0, "crashes": 0, "snoozes": 0, "generation": 1, "max_retries": 5, "timeout": None,
        "traceparent": None, "started_at": NOW,
    }  # fmt: skip
    return Claim(**(values | fields))  # type: ignore[arg-type]


def test_done() -> None:
    found = decided(a_claim(), Done('{"a":1}'))
    assert (found.event, found.result, found.failed, found.reason) == (Event.COMPLETED, '{"a":1}', 0, None)


def test_settled_has_nothing_to_write() -> None:
    assert decide(a_claim(), Settled(), Backoff(), Random(0)) is None


def test_reasons_of_the_dead() -> None:
    assert decided(a_claim(max_retries=0), Failed("x")).reason == "exhausted"
    assert decided(a_claim(), Failed("x", permanent=True)).reason == "permanent"
    assert decided(a_claim(), Failed("x", permanent=True, reason="invalid_result")).reason == "invalid_result"
    assert decided(a_claim(), Failed("x")).reason is None


def test_the_last_allowed_retry_and_the_one_after() -> None:
    assert decided(a_claim(max_retries=2, failures=1), Failed("x")).event is Event.RETRIED
    assert decided(a_claim(max_retries=2, failures=2), Failed("x")).event is Event.DEAD


def test_a_failures_own_policy_goes_first() -> None:
    patient = RetryPolicy(base=100, jitter=0)
    assert decided(a_claim(), Failed("x", policy=patient)).delay == 100
    strict = RetryPolicy(max_retries=1)
    assert decided(a_claim(failures=1), Failed("x", policy=strict)).event is Event.DEAD
    # A policy never gives more than the task was enqueued with.
    lavish = RetryPolicy(max_retries=20)
    assert decided(a_claim(max_retries=1, failures=1), Failed("x", policy=lavish)).event is Event.DEAD


def test_retry_after_replaces_the_backoff_but_not_the_budget() -> None:
    assert decided(a_claim(), Failed("x", retry_after=7)).delay == 7
    assert decided(a_claim(max_retries=0), Failed("x", retry_after=7)).event is Event.DEAD


def test_snoozes_cost_nothing_until_they_are_too_many() -> None:
    found = decided(a_claim(snoozes=limits.SNOOZES - 1), Snoozed(9, "later"))
    assert (found.event, found.delay, found.failed, found.reason) == (Event.SNOOZED, 9, 0, "later")
    over = decided(a_claim(snoozes=limits.SNOOZES), Snoozed(9))
    assert (over.event, over.reason) == (Event.DEAD, "snoozed_out")


def test_waits_that_the_database_could_not_add() -> None:
    for wish in (-5.0, math.nan, -math.inf):
        assert decided(a_claim(), Snoozed(wish)).delay == 0
    for wish in (math.inf, 1e300):
        assert decided(a_claim(), Snoozed(wish)).delay == limits.DELAY_SECONDS[1]
        assert decided(a_claim(), Failed("x", retry_after=wish)).delay == limits.DELAY_SECONDS[1]


def test_crashes_are_failures_and_the_third_is_poison() -> None:
    first = decided(a_claim(), Crashed("signal 11"))
    assert (first.event, first.failed, first.crashed) == (Event.RETRIED, 1, 1)
    third = decided(a_claim(crashes=2, failures=2, max_retries=20), Crashed("signal 11"))
    assert (third.event, third.reason, third.crashed) == (Event.DEAD, "poison", 1)
    assert "signal 11" in (third.last_error or "")


def test_canceled_and_released() -> None:
    canceled = decided(a_claim(), Canceled("enough"))
    assert (canceled.event, canceled.reason, canceled.failed) == (Event.CANCELED, "enough", 0)
    released = decided(a_claim(), Released("drain"))
    assert (released.event, released.reason, released.failed, released.delay) == (Event.RELEASED, "drain", 0, 0)


def test_ids_are_kept_apart() -> None:
    claim = a_claim()
    assert decided(claim, Done()).lease == claim.lease != UUID(int=0)
