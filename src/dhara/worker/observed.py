"""What a runner observes of its tasks: wait and run times, added up here and sent to the fleet's histograms in rounds."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from dhara.domain.task import Claim
from dhara.store.stats import Histogram
from dhara.telemetry.metrics import BUCKETS

_MOST_SERIES = 1_000


class _Times:
    """The wait and run times of one queue's tasks of one type: sums of seconds, and counts by bucket."""

    __slots__ = ("run_buckets", "run_total", "wait_buckets", "wait_total")

    def __init__(self) -> None:
        self.wait_total = self.run_total = 0.0
        self.wait_buckets = [0] * (len(BUCKETS) + 1)
        self.run_buckets = [0] * (len(BUCKETS) + 1)


class Observations:
    """Histograms that have not been sent yet."""

    def __init__(self) -> None:
        self._times: dict[tuple[str, str], _Times] = {}
        self._batches: dict[str, Histogram] = {}
        self.rejected = 0

    def ran(self, claim: Claim, seconds: float) -> None:
        """An attempt has ended. Its wait is from when it was due to its claim, both by the database's clock."""
        times = self._times.get((claim.queue, claim.type))
        if times is None:
            if len(self._times) >= _MOST_SERIES:
                return
            times = self._times[claim.queue, claim.type] = _Times()
        waited = max(0.0, (claim.started_at - claim.run_at).total_seconds())
        times.wait_total += waited
        times.wait_buckets[bisect_left(BUCKETS, waited)] += 1
        times.run_total += seconds
        times.run_buckets[bisect_left(BUCKETS, seconds)] += 1

    def batch(self, name: str, tasks: int, seconds: float) -> None:
        """A statement of many tasks has been answered: `name` is claim or settle."""
        for series, value in ((name, seconds), (f"{name}_batch", float(tasks))):
            buckets = [0] * (len(BUCKETS) + 1)
            buckets[bisect_left(BUCKETS, value)] = 1
            self._add(Histogram(series, "", "", value, buckets))

    def _add(self, one: Histogram) -> None:
        """To what is known of its batches."""
        known = self._batches.get(one.name)
        if known is not None:
            buckets = [a + b for a, b in zip(known.buckets, one.buckets, strict=True)]
            one = Histogram(one.name, "", "", known.total + one.total, buckets)
        self._batches[one.name] = one

    def take(self) -> list[Histogram]:
        """All of them; the next ones start from nothing."""
        seen, self._times = self._times, {}
        batches, self._batches = self._batches, {}
        return [*batches.values()] + [
            histogram
            for key, times in seen.items()
            for histogram in (
                Histogram("wait", *key, times.wait_total, times.wait_buckets),
                Histogram("run", *key, times.run_total, times.run_buckets),
            )
        ]

    def put_back(self, seen: Sequence[Histogram]) -> None:
        """They could not be sent: keep them for the next round."""
        for one in seen:
            if one.name not in ("wait", "run"):
                self._add(one)
                continue
            times = self._times.setdefault((one.queue, one.type), _Times())
            if one.name == "wait":
                times.wait_total += one.total
                times.wait_buckets = [a + b for a, b in zip(times.wait_buckets, one.buckets, strict=True)]
            else:
                times.run_total += one.total
                times.run_buckets = [a + b for a, b in zip(times.run_buckets, one.buckets, strict=True)]
