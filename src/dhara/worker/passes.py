"""Passes: long walks through lanes whose backlog no single claim gets through.

A lane may hold millions of tasks of types that this worker does not know, and a few that it does know among them. A claim
that starts at its front would look at all of them, and be canceled by the statement time-out before it finds any. Such a
lane is walked slice by slice instead: a look counts what there is to claim in the next so many tasks, and only if there is
something does a claim start there, for just as many. So each step is bounded, the walk gets a share of the worker's time,
and whatever it holds is found in the end; meanwhile new tasks are claimed at the lane's mark, behind the backlog.
"""

from __future__ import annotations

from collections.abc import Container
from datetime import datetime
from uuid import UUID

from dhara.store.tasks import BEGINNING, ZERO, Slice

Key = tuple[str, int]
Mark = tuple[datetime, UUID]

MOST_LOOKED = 20_000
_LEAST_LOOKED = 100


class Passes:
    """Where the walk through each long lane stands."""

    def __init__(self) -> None:
        self._long: set[Key] = set()
        self._at: dict[Key, Mark] = {}
        self._slices: dict[Key, int] = {}
        self.most = MOST_LOOKED

    def __contains__(self, key: object) -> bool:
        return key in self._long

    def __len__(self) -> int:
        """Walks under way."""
        return len(self._at)

    def begin(self, key: Key, mark: Mark = (BEGINNING, ZERO)) -> None:
        """Walk through the lane from `mark`, unless a walk is under way."""
        self._long.add(key)
        if key not in self._at:
            self._at[key] = mark
            self._slices[key] = 0

    def turn(self) -> tuple[Key, Mark]:
        """The lane whose turn it is, and where its walk stands; there must be one."""
        key = next(iter(self._at))
        self._at[key] = self._at.pop(key)
        return key, self._at[key]

    def step(self, key: Key, seen: Slice | None) -> None:
        """A slice has been looked at, and claimed from: go on behind it, or end. A lane of one slice is no longer long."""
        self._slices[key] += 1
        if seen is not None and seen.looked == self.most:
            self._at[key] = (seen.run_at, seen.id)
        else:
            self.end(key, still_long=self._slices[key] > 1)

    def end(self, key: Key, still_long: bool = False) -> None:
        """The walk through the lane is over."""
        del self._at[key], self._slices[key]
        self.most = MOST_LOOKED
        if not still_long:
            self._long.discard(key)

    def look_at_fewer(self) -> None:
        """Even a slice took too long."""
        self.most = max(_LEAST_LOOKED, self.most // 4)

    def keep(self, keys: Container[Key]) -> None:
        """Forget the lanes that are not among `keys`: they have run empty."""
        for key in [key for key in self._long if key not in keys]:
            self._long.discard(key)
            self._at.pop(key, None)
            self._slices.pop(key, None)
