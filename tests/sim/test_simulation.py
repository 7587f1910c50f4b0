"""Real workers and maintenance over a database in memory, in virtual time: a seed is a fleet, its tasks and its faults.

`python -m tests.sim --seeds 10000` plays many, on every core; here are a few hundred. A seed that fails is played again, to the last
callback, by `python -m tests.sim --seed N`. And each variant that leaves out one rule must be found out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest

from dhara.domain.lifecycle import State
from dhara.maintenance.reaper import Reaper, Watch
from dhara.worker.comparer import Comparer
from dhara.worker.keeper import Keeper
from tests.sim import store
from tests.sim.judge import judge
from tests.sim.stage import play, staged

SEEDS = 100


@pytest.fixture(autouse=True)
def stage() -> Any:
    with staged():
        yield


def test_nothing_is_lost_and_nothing_runs_without_a_reason() -> None:
    wrong: list[str] = []
    seen: Counter[str] = Counter()
    for seed in range(SEEDS):
        story = play(seed)
        wrong += judge(story)
        seen.update(fault.kind for fault in story.faults)
        seen.update(entry.event for entry in story.db.history)
    assert wrong == [], "\n\n".join(wrong[:3])
    kinds = {"kill", "still", "partition", "away", "jump", "drain"}
    events = {"COMPLETED", "RETRIED", "SNOOZED", "RELEASED", "REAPED", "DEAD", "CANCELED", "REVIVED", "SETTLE_REJECTED"}
    assert all(seen[name] for name in kinds | events), seen  # or it has proved little


def test_a_seed_replays_exactly() -> None:
    first, second = play(3), play(3)
    assert first.db.history == second.db.history
    assert first.starts == second.starts


async def nothing(self: Any, *args: Any) -> None:
    """A rule left out."""


def unfenced(self: store.TasksInMemory, wish: Any) -> Any:
    row = self._db.rows.get(wish.id)
    return row if row and row.state is State.RUNNING else None


VARIANTS: dict[str, tuple[str, Callable[[], list[Any]]]] = {
    "a settlement without a look at the lease": (
        "I8", lambda: [mock.patch.object(store.TasksInMemory, "guarded", unfenced)],
    ),
    "ghost claims are left": ("I3", lambda: [mock.patch.object(Comparer, "_release", nothing)]),
    "the database's clock is the only witness": (
        "I10", lambda: [mock.patch.object(Watch, "still", lambda self, sightings, now: sightings)],
    ),
    "a lost reply is not looked up": (
        "C5", lambda: [mock.patch.object(store.TasksInMemory, "settled", return_value=set())],
    ),
    "nobody reaps": ("I3", lambda: [mock.patch.object(Reaper, "look", nothing)]),
    "a keeper that takes nothing back": ("I11", lambda: [mock.patch.object(Keeper, "_reap", nothing)]),
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_design_without_a_rule_is_found_out(variant: str) -> None:
    invariant, left_out = VARIANTS[variant]
    with ExitStack() as stack:
        for patch in left_out():
            stack.enter_context(patch)
        for seed in range(3 * SEEDS):
            if any(what.startswith(invariant) for what in judge(play(seed))):
                return
    pytest.fail(f"{3 * SEEDS} seeds, and nothing was wrong")
