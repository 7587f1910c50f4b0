"""What a row of the benchmark is: figures with bars, and a function that measures them once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from bench.world import World


class Figure(Struct, frozen=True):
    """One figure of a row. `bar`: what it must be, at least or (`most`) at most; None: shown only."""

    name: str
    unit: str = "/s"
    bar: float | None = None
    most: bool = False

    def ratio(self, value: float) -> float | None:
        """How far the bar is met: 1 or more is met."""
        if self.bar is None:
            return None
        if self.most:
            return self.bar / value if value > 0 else float("inf")
        return value / self.bar


class Row(Struct, frozen=True, kw_only=True):
    """One row. `measure` answers a value for each figure (figures that it leaves out were not measured this time).

    `runs`: how often, where the usual number would take too long; `warm`: whether a run that does not count comes first;
    `limit`: seconds after which the row is given up.
    """

    id: str
    title: str
    figures: tuple[Figure, ...]
    measure: Callable[[World], Awaitable[Mapping[str, float]]]
    runs: int | None = None
    warm: bool = True
    limit: float = 300.0


class Sizes(Struct, frozen=True, kw_only=True):
    """How much work each row does. Times are seconds."""

    drain: int = 50_000
    slow_drain: int = 20_000
    enqueue: int = 50_000
    singles: float = 3.0
    post: float = 15.0
    batches: float = 4.0
    pickups: int = 150
    open_loop: float = 20.0
    paced: float = 60.0
    saturation: int = 3_200
    pinned: int = 200_000
    finished: int = 10_000_000
    backlog: int = 1_000_000
    backlog_part: int = 100_000
    idle: float = 30.0
    steady: float = 60.0
    memory: int = 1_000_000
    pruned: int = 1_000_000


SMOKE = Sizes(
    drain=20_000,
    slow_drain=5_000,
    enqueue=20_000,
    singles=1.0,
    post=2.0,
    batches=1.0,
    pickups=40,
    open_loop=3.0,
    pinned=40_000,
)
SMOKE_ROWS = ("P1", "P3", "P4", "P9")

_MODULES: Mapping[str, str] = {
    "P1": "p01_drain",
    "P2": "p02_drains",
    "P3": "p03_enqueue",
    "P4": "p04_post",
    "P5": "p05_post_batch",
    "P6": "p06_pickup",
    "P7": "p07_open_loop",
    "P8": "p08_paced",
    "P9": "p09_pinned",
    "P10": "p10_growth",
    "P11": "p11_reads",
    "P12": "p12_wakeups",
    "P13": "p13_idle",
    "P14": "p14_wal",
    "P15": "p15_memory",
    "P16": "p16_start",
    "P17": "p17_retention",
    "S1": "s01_sharing",
    "H1": "h01_shapes",
}
NAMES = tuple(_MODULES)


def row(id: str) -> Row:
    """The row of that name."""
    found: Row = import_module(f"bench.{_MODULES[id]}").ROW
    return found
