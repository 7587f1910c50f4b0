"""A short chaos run: the six rows that hurt most, one after another, and every invariant afterwards. `make chaos` has all."""

from __future__ import annotations

import pytest

from chaos.plan import Step
from chaos.run import Order, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

# The loop blocked, the GIL held, the replies of commits lost, runners killed, one worker cut off, the database crashed.
STEPS = [(3.0, "F5"), (9.0, "F6"), (16.0, "F20"), (20.5, "F1"), (22.0, "F1"),
         (23.5, "F37"), (32.5, "F16")]  # fmt: skip
LEASE = 4.0


async def test_a_short_run(machine: None) -> None:
    steps = tuple(Step(at, row, seed) for seed, (at, row) in enumerate(STEPS))
    rows = tuple(dict.fromkeys(step.row for step in steps))
    order = Order(seed=5, rows=rows, seconds=0, rate=30, calm=3, lease=LEASE, bound=30, steps=steps, proxied=True)
    summary, verdict = await run(order)
    assert verdict.violations == {}, verdict.histories
    assert (summary["lost"], summary["unexplained"], summary["errors"]) == (0, 0, [])
    assert summary["drained"] is not None
    assert all(figures["injected"] for figures in summary["rows"].values()), summary["rows"]
    assert summary["acknowledged"] > 300
