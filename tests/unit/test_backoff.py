"""Backoff: within its bounds, and spread over them."""

from __future__ import annotations

import math
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from dhara.domain.backoff import Backoff, RetryPolicy

SECONDS = st.floats(0, 1e6)


@given(SECONDS, st.floats(1, 10), SECONDS, st.floats(0, 1), st.integers(1, 300), st.integers())
def test_bounds(base: float, factor: float, cap: float, jitter: float, failures: int, seed: int) -> None:
    delay = Backoff(base, factor, cap, jitter).delay(failures, Random(seed))
    wait = min(cap, base * factor ** (failures - 1))
    assert wait * (1 - jitter) - 1e-9 <= delay <= wait * (1 + jitter) + 1e-9


def test_without_jitter_it_doubles_to_the_cap() -> None:
    backoff = Backoff(base=1, cap=60, jitter=0)
    assert [backoff.delay(n, Random(0)) for n in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_thousands_of_failures_reach_the_cap_and_no_overflow() -> None:
    assert Backoff(jitter=0).delay(1_000_000, Random(0)) == 3600


def test_the_spread_is_uniform() -> None:
    """Kolmogorov-Smirnov against U(0.5, 1.5): with 2,000 delays the distance stays below the 1 % bound."""
    rng = Random(4)
    delays = sorted(Backoff().delay(1, rng) for _ in range(2_000))
    distance = max(
        max((i + 1) / len(delays) - (delay - 0.5), (delay - 0.5) - i / len(delays)) for i, delay in enumerate(delays)
    )
    assert distance < 1.63 / math.sqrt(len(delays))


def test_a_policy_carries_its_backoff() -> None:
    policy = RetryPolicy(max_retries=3, base=2, factor=3, cap=10, jitter=0.1)
    assert policy.backoff == Backoff(2, 3, 10, 0.1)
    assert RetryPolicy().backoff == Backoff()
