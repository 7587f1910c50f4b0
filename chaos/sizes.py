"""How much of a fault there is: a row's size in a quick run, and the one that its bar asks for (`--size full`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Two sizes of a row, in the same unit."""

    quick: int
    full: int

    def at(self, full: bool) -> int:
        return self.full if full else self.quick


# row -> seconds that it lasts, or how many of what it is about there are
SIZES = {
    "F23": Size(30, 600),  # seconds that the snapshot is held
    "F25": Size(240, 1_800),  # seconds without autovacuum
    "F53": Size(2_000, 10_000),  # failures
    "F54": Size(25_000, 100_000),  # operations
    "F56": Size(30, 300),  # seconds of posts
}
