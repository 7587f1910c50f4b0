"""A short chaos run: the six rows that hurt most, one after another, and every invariant afterwards. `make chaos` has all."""

from __future__ import annotations

from functools import partial

import pytest

from chaos.arena import Arena
from chaos.plan import Step
from chaos.run import Order, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240, func_only=True)]

# The loop blocked, the GIL held, the replies of commits lost, runners killed, one worker cut off, the database crashed.
STEPS = [(3.0, "F5"), (10.5, "F6"), (19.0, "F20"), (23.5, "F1"), (25.0, "F1"),
         (29.0, "F37"), (39.5, "F16")]  # fmt: skip
LEASE = 5.0
# After a crash of the database one keeper may look at once, and the other's first beat come seconds later. Less than a lease all
# the same: whoever is cut off for two leases (F37) shall be reaped, also where another has to become the leader first.
CONFIRM = 4.0


async def test_a_short_run(machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chaos.run.Arena", partial(Arena, settings={"confirm_after": f"{CONFIRM}s"}))
    steps = tuple(Step(at, row, seed) for seed, (at, row) in enumerate(STEPS))
    rows = tuple(dict.fromkeys(step.row for step in steps))
    order = Order(seed=5, rows=rows, seconds=0, rate=30, calm=3, lease=LEASE, bound=30, steps=steps, proxied=True)
    summary, verdict = await run(order)
    assert verdict.violations == {}, verdict.histories
    assert (summary["lost"], summary["unexplained"], summary["errors"]) == (0, 0, [])
    assert summary["drained"] is not None
    assert all(figures["injected"] for figures in summary["rows"].values()), summary["rows"]
    assert summary["acknowledged"] > 300
