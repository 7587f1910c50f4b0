"""What a worker has claimed and not yet begun. Up to 50 ms of work are claimed ahead, under a flood all of it from one queue: so
queues take turns at the slots, and a task of another queue is next, not last."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from dhara.domain.task import Claim


class Local:
    """A line a queue, each in the order of its claims."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[Claim]] = {}  # whose turn it is, first
        self._count = 0

    def extend(self, claims: Iterable[Claim]) -> None:
        for claim in claims:
            line = self._lines.get(claim.queue)
            if line is None:
                line = self._lines[claim.queue] = deque()
            line.append(claim)
            self._count += 1

    def popleft(self) -> Claim:
        """The first of the queue whose turn it is. Raises `StopIteration` if nothing waits."""
        queue, line = next(iter(self._lines.items()))
        claim = line.popleft()
        self._count -= 1
        if not line:
            del self._lines[queue]
        elif len(self._lines) > 1:
            self._lines[queue] = self._lines.pop(queue)
        return claim

    def remove(self, claim: Claim) -> None:
        """Take out one that waits."""
        line = self._lines[claim.queue]
        line.remove(claim)
        self._count -= 1
        if not line:
            del self._lines[claim.queue]

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Claim]:
        for line in self._lines.values():
            yield from line
