"""When what happens: a pure function of the seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chaos.faults import FAULTS


@dataclass(frozen=True)
class Step:
    """One injection, `at` seconds after the start of the workload; `seed` is for what the fault itself draws."""

    at: float
    row: str
    seed: int


def plan(
    seed: int, rows: Sequence[str], seconds: float, *, calm: float = 15.0, pace: float = 1.0, least: int = 2
) -> list[Step]:
    """After `calm` seconds each row gets its share of the rest, `least` injections or more; `pace` brings them closer."""
    rng = random.Random(f"{seed} {' '.join(rows)}")
    share = max(0.0, seconds - calm) / max(1, len(rows))
    steps: list[Step] = []
    at = calm
    for row in rows:
        every = FAULTS[row].every / pace
        until = at + max(share, least * every)
        steps += [Step(round(at + gap, 3), row, rng.getrandbits(32)) for gap in _gaps(rng, every, until - at)]
        at = until
    return steps


def mixed(seed: int, rows: Sequence[str], seconds: float, *, calm: float = 15.0, every: float = 60.0) -> list[Step]:
    """A soak: one fault of any of these rows each `every` seconds."""
    rng = random.Random(f"{seed} mixed {' '.join(rows)}")
    gaps = _gaps(rng, every, max(every, seconds - calm))
    return [Step(round(calm + gap, 3), rng.choice(rows), rng.getrandbits(32)) for gap in gaps]


def _gaps(rng: random.Random, every: float, length: float) -> Iterator[float]:
    at = 0.0
    while at + every <= length + 1e-6:
        yield at + rng.uniform(0.0, 0.3) * every
        at += every
