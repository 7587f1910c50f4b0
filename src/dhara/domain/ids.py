"""Task ids: UUIDv7 (RFC 9562), made by the client so that an ambiguous COMMIT can be repeated safely."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable
from uuid import UUID

_RANDOM_BITS = 74
# The random bits behind the variant: 62 of them.
_LOW = 1 << 62


def _uuid(value: bytes) -> UUID:
    return UUID(bytes=value)


class IdSource:
    """Makes UUIDv7 ids that only ever grow within one process, also within one millisecond.

    Within a millisecond the 74 random bits are counted up by a random step (RFC 9562, 6.2, method 2). `make` makes an
    id of its 16 bytes.
    """

    def __init__(
        self,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        random_bytes: Callable[[int], bytes] = os.urandom,
        make: Callable[[bytes], UUID] = _uuid,
    ) -> None:
        self._clock_ms = clock_ms
        self._random_bytes = random_bytes
        self._make = make
        self._ms = -1
        self._tail = 0
        # Clients enqueue from many threads; two equal ids would make the second task vanish as a repetition.
        self._lock = threading.Lock()

    def new(self) -> UUID:
        """The next id; safe to call from any thread."""
        with self._lock:
            return self._make(self._next(self._clock_ms()).to_bytes(16, "big"))

    def many(self, n: int) -> list[UUID]:
        """The next `n` ids, each at a third of the cost of one."""
        made: list[int] = []
        high, low = 0, _LOW
        with self._lock:
            for step in struct.unpack(f"!{n}I", self._random_bytes(4 * n)):
                low += 1 + step
                if low < _LOW:
                    made.append(high | low)
                    continue
                # The first, or the random bits have run over: then on from the last one made.
                if made:
                    self._tail = (self._tail & ~(_LOW - 1)) | (made[-1] & (_LOW - 1))
                made.append(self._next(self._clock_ms()))
                high, low = made[-1] & ~(_LOW - 1), made[-1] & (_LOW - 1)
            if made:
                self._tail = (self._tail & ~(_LOW - 1)) | low
        return [self._make(value.to_bytes(16, "big")) for value in made]

    def _next(self, ms: int) -> int:
        if ms > self._ms:
            self._ms = ms
            self._tail = int.from_bytes(self._random_bytes(10), "big") & ((1 << _RANDOM_BITS) - 1)
        else:
            self._tail += 1 + int.from_bytes(self._random_bytes(4), "big")
            if self._tail >> _RANDOM_BITS:
                self._ms += 1
                self._tail &= (1 << _RANDOM_BITS) - 1
        rand_a, rand_b = self._tail >> 62, self._tail & ((1 << 62) - 1)
        return self._ms << 80 | 0x7 << 76 | rand_a << 64 | 0b10 << 62 | rand_b


# The bits of a random UUID that are not random: its version, 4, and its variant.
_VERSION = bytes(byte & 0x0F | 0x40 for byte in range(256))
_VARIANT = bytes(byte & 0x3F | 0x80 for byte in range(256))


def random_uuids(n: int) -> bytes:
    """`n` random UUIDs (RFC 9562, version 4), 16 bytes each."""
    drawn = bytearray(os.urandom(16 * n))
    drawn[6::16] = drawn[6::16].translate(_VERSION)
    drawn[8::16] = drawn[8::16].translate(_VARIANT)
    return bytes(drawn)


def least_id(moment: float) -> UUID:
    """The least id of a moment, seconds since 1970: between those made before it and those made after."""
    return UUID(int=max(0, int(moment * 1000)) << 80)
