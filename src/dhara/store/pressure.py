"""Queues that take no more: how many tasks are PENDING in those with a limit, as one process knows it.

`refresh` reads it from the counters; in between, what this process enqueues is added. So a limit is kept to about what all
processes together enqueue between two looks, and no enqueue counts anything. Who looks, and when, is for the server
(`api/backpressure.py`) and the client (`client/valve.py`) to say. Each look also notes which queues are full, and that is
what `dhara.enqueue` goes by, in SQL.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from dhara.errors import QueueFull
from dhara.store.queues import Queues


class Pressure:
    """`limit` holds for every queue without one of its own; 0: none."""

    def __init__(self, queues: Queues, limit: int = 0) -> None:
        self._queues = queues
        self._limit = limit
        self._own: dict[str, int] = {}
        self._depths: Counter[str] = Counter()

    @property
    def limited(self) -> bool:
        """Whether there is any limit to heed."""
        return bool(self._own or self._limit)

    def take_all(self, queues: Iterable[str]) -> None:
        """Count enqueues, all or none. Raises `QueueFull` where they do not fit."""
        if not self.limited:
            return
        wanted = Counter(queues)
        for queue, n in wanted.items():
            most = self._own.get(queue, self._limit or None)
            if most is not None and self._depths[queue] + n > most:
                raise QueueFull(queue, most, n)
        self._depths += wanted

    async def refresh(self) -> None:
        """Look now."""
        found = await self._queues.loads(bool(self._limit))
        self._own = {load.name: load.most for load in found if load.most is not None}
        self._depths = Counter({load.name: load.depth for load in found})
