"""When a canary retry goes on, waits, or stops."""

from __future__ import annotations

import pytest

from dhara.domain.canary import Plan, Verdict, Wave, judge, next_size

PLAN = Plan(first=10, factor=4, most=100, max_failed=0.2, watch=60)


@pytest.mark.parametrize(
    "wave, verdict",
    [
        (Wave(10, 0, 0, 0), Verdict.WAIT),
        (Wave(10, 0, 0, 9_999), Verdict.WAIT),  # nobody works: nothing speaks for going on
        (Wave(10, 8, 2, 1), Verdict.GO),  # all have ended, just not too many badly
        (Wave(10, 0, 3, 1), Verdict.STOP),
        (Wave(10, 7, 3, 1), Verdict.STOP),
        (Wave(10, 9, 0, 59), Verdict.WAIT),
        (Wave(10, 9, 0, 60), Verdict.GO),
        (Wave(10, 0, 2, 999), Verdict.WAIT),
        (Wave(1, 0, 1, 1), Verdict.STOP),
    ],
)
def test_verdicts(wave: Wave, verdict: Verdict) -> None:
    assert judge(PLAN, wave) is verdict


def test_nothing_may_fail_where_none_may() -> None:
    strict = Plan(max_failed=0)
    assert judge(strict, Wave(10, 9, 1, 1)) is Verdict.STOP
    assert judge(Plan(max_failed=1), Wave(10, 0, 10, 1)) is Verdict.GO


def test_waves_grow_up_to_a_bound() -> None:
    sizes = [next_size(PLAN, 0)]
    while len(sizes) < 5:
        sizes.append(next_size(PLAN, sizes[-1]))
    assert sizes == [10, 40, 100, 100, 100]
