"""Task ids: UUIDv7 (RFC 9562), made by the client so that an ambiguous COMMIT can be repeated safely."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from uuid import UUID

_RANDOM_BITS = 74


class IdSource:
    """Makes UUIDv7 ids that only ever grow within one process, also within one millisecond.

    Within a millisecond the 74 random bits are counted up by a random step (RFC 9562, 6.2, method 2).
    """

    def __init__(
        self,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._clock_ms = clock_ms
        self._random_bytes = random_bytes
        self._ms = -1
        self._tail = 0
        # Clients enqueue from many threads; two equal ids would make the second task vanish as a repetition.
        self._lock = threading.Lock()

    def new(self) -> UUID:
        """The next id; safe to call from any thread."""
        with self._lock:
            return self._next(self._clock_ms())

    def _next(self, ms: int) -> UUID:
        if ms > self._ms:
            self._ms = ms
            self._tail = int.from_bytes(self._random_bytes(10), "big") & ((1 << _RANDOM_BITS) - 1)
        else:
            self._tail += 1 + int.from_bytes(self._random_bytes(4), "big")
            if self._tail >> _RANDOM_BITS:
                self._ms += 1
                self._tail &= (1 << _RANDOM_BITS) - 1
        rand_a, rand_b = self._tail >> 62, self._tail & ((1 << 62) - 1)
        return UUID(int=self._ms << 80 | 0x7 << 76 | rand_a << 64 | 0b10 << 62 | rand_b)


new_id = IdSource().new
