"""Passes: long walks through lanes whose backlog no single claim gets through.

A lane may hold millions of tasks of types that this worker does not know, and a few that it does know among them. A claim
that starts at its front would look at all of them, and be canceled by the statement time-out before it finds any. Such a
lane is walked slice by slice instead: a look counts what there is to claim in the next so many tasks, and only if there is
something does a claim start there, and end with the slice. So each step is bounded, the walk gets a share of the worker's
time, and whatever it holds is found in the end; meanwhile new tasks are claimed at the lane's mark, behind the backlog.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from datetime import datetime
from uuid import UUID

from dhara.store.tasks import BEGINNING, ZERO, Slice

Key = tuple[str, int]
Mark = tuple[datetime, UUID]

MOST_LOOKED = 20_000
_LEAST_LOOKED = 100
# Seconds from one walk through a lane to the next, and until one that got nowhere is begun again.
WALK_EVERY, GIVE_UP_FOR = 15.0, 60.0


class Walk:
    """How far the walk through one lane is: `mark`; by slices of `most` tasks."""

    def __init__(self, mark: Mark) -> None:
        self.mark = mark
        self.most = MOST_LOOKED
        self.slices = 0


class Passes:
    """The long lanes, each with the time of its next walk, and the walks under way. `now`: on the worker's clock, seconds."""

    def __init__(self) -> None:
        self._long: dict[Key, float] = {}
        self._walks: dict[Key, Walk] = {}

    def __contains__(self, key: object) -> bool:
        return key in self._long

    def __len__(self) -> int:
        """Walks under way."""
        return len(self._walks)

    def begin(self, key: Key, mark: Mark, now: float) -> None:
        """The lane is long: walk through what lies above `mark`."""
        self._long[key] = now
        walk = self._walks.setdefault(key, Walk(mark))
        walk.mark = min(walk.mark, mark)

    def again(self, key: Key, now: float) -> None:
        """The lane has ready tasks: walk from its front, if it is long and the last walk long enough ago."""
        if key not in self._walks and self._long.get(key, now + 1) <= now:
            self._walks[key] = Walk((BEGINNING, ZERO))

    def turn(self, has_room: Callable[[Key], bool]) -> tuple[Key, Walk] | None:
        """The lane whose turn it is among those that have room."""
        for key in list(self._walks):
            self._walks[key] = walk = self._walks.pop(key)
            if has_room(key):
                return key, walk
        return None

    def step(self, key: Key, seen: Slice | None, now: float) -> None:
        """A slice has been looked at, and claimed from: go on behind it, or end. A lane of one slice is no longer long."""
        walk = self._walks[key]
        walk.slices += 1
        if seen is not None and seen.looked == walk.most:
            walk.mark = (seen.run_at, seen.id)
        elif walk.slices == 1:
            del self._walks[key], self._long[key]
        else:
            self._rest(key, now + WALK_EVERY)

    def arrived(self, key: Key, now: float) -> None:
        """What lies ahead is to be claimed as usual: the walk is over. What lies behind it stays foreign."""
        if self._walks[key].slices:
            self._rest(key, now + WALK_EVERY)
        else:
            del self._walks[key], self._long[key]

    def too_slow(self, key: Key, now: float) -> None:
        """Even a slice took too long: look at fewer, and at last leave it for a while."""
        walk = self._walks[key]
        if walk.most <= _LEAST_LOOKED:
            self._rest(key, now + GIVE_UP_FOR)
        walk.most = max(_LEAST_LOOKED, walk.most // 4)

    def _rest(self, key: Key, until: float) -> None:
        del self._walks[key]
        self._long[key] = until

    def keep(self, keys: Container[Key]) -> None:
        """Forget the lanes that are not among `keys`: they have run empty."""
        for key in [key for key in self._long if key not in keys]:
            del self._long[key]
            self._walks.pop(key, None)
