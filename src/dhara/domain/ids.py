"""Task ids: UUIDv7 (RFC 9562), made by the client so that an ambiguous COMMIT can be repeated safely."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable
from uuid import UUID, SafeUUID

_RANDOM_BITS = 74
# The random bits behind the variant: 62 of them.
_LOW = 1 << 62
_UNKNOWN = SafeUUID.unknown


class _Page:
    """Random bytes, fetched from the system by the page: a system call for every id would cost more than the id."""

    def __init__(self) -> None:
        self._bytes = b""
        self._at = 0

    def __call__(self, n: int) -> bytes:
        if n > 1_024:
            return os.urandom(n)
        if self._at + n > len(self._bytes):
            self._bytes, self._at = os.urandom(4_096), 0
        self._at += n
        return self._bytes[self._at - n : self._at]

    def forget(self) -> None:
        """Begin a new page."""
        self._at = len(self._bytes)


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

    def many(self, n: int) -> list[UUID]:
        """The next `n` ids, each at a third of the cost of one."""
        made: list[UUID] = []
        high, low = 0, _LOW
        with self._lock:
            for step in struct.unpack(f"!{n}I", self._random_bytes(4 * n)):
                low += 1 + step
                if low < _LOW:
                    made.append(_uuid(high | low))
                    continue
                # The first, or the random bits have run over.
                made.append(self._next(self._clock_ms()))
                high, low = made[-1].int & ~(_LOW - 1), made[-1].int & (_LOW - 1)
            if made:
                self._tail = (self._tail & ~(_LOW - 1)) | low
        return made

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
        return _uuid(self._ms << 80 | 0x7 << 76 | rand_a << 64 | 0b10 << 62 | rand_b)


def _uuid(value: int) -> UUID:
    """`UUID(int=value)` without the checks of what other callers may give: a third of its cost."""
    made = object.__new__(UUID)
    object.__setattr__(made, "int", value)
    object.__setattr__(made, "is_safe", _UNKNOWN)
    return made


_page = _Page()
# A forked child must not go on with its parent's page.
os.register_at_fork(after_in_child=_page.forget)
_source = IdSource(random_bytes=_page)
new_id, new_ids = _source.new, _source.many
