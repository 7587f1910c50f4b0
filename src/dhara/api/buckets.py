"""Limits on how often: a token bucket for each key, and a count of refused keys for each source.

In the process and without waiting; N servers let a key do N times as much.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

Clock = Callable[[], float]

# However low its rate, a key may send so many requests at once after a pause.
LEAST_BURST = 10.0
FAILURES, WINDOW = 10, 60.0
MOST_SOURCES = 10_000


class Buckets:
    """Token buckets by name. A bucket holds one second's worth, at least `LEAST_BURST`, and starts full."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, name: str, rate: float) -> float:
        """Take one token of a bucket that fills by `rate` a second; answers 0, or the seconds until there is one."""
        now = self._clock()
        most = max(rate, LEAST_BURST)
        tokens, at = self._buckets.get(name, (most, now))
        tokens = min(most, tokens + (now - at) * rate)
        if tokens < 1:
            self._buckets[name] = tokens, now
            return (1 - tokens) / rate
        self._buckets[name] = tokens - 1, now
        return 0.0


class Failures:
    """Refused keys by source and id: `FAILURES` of them in `WINDOW` seconds are too many. Remembers the latest sources."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._seen: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._seen)

    def wait(self, source: str, id: str) -> float:
        """0, or the seconds until this source may try this id again."""
        since, count = self._seen.get((source, id), (0.0, 0))
        left = since + WINDOW - self._clock()
        return left if count >= FAILURES and left > 0 else 0.0

    def add(self, source: str, id: str) -> None:
        now = self._clock()
        since, count = self._seen.pop((source, id), (now, 0))
        self._seen[source, id] = (since, count + 1) if now - since < WINDOW else (now, 1)
        if len(self._seen) > MOST_SOURCES:
            self._seen.popitem(last=False)
