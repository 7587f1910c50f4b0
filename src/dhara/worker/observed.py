"""What a runner observes of its tasks: wait and run times, added up here and sent to the fleet's histograms in rounds."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from dhara.domain.task import Claim
from dhara.store.stats import Histogram
from dhara.telemetry.metrics import BUCKETS

_MOST_SERIES = 2_000


class Observations:
    """Histograms that have not been sent yet."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str, str], tuple[list[float], list[int]]] = {}
        self.rejected = 0

    def ran(self, claim: Claim, seconds: float) -> None:
        """An attempt has ended. Its wait is from when it was due to its claim, both by the database's clock."""
        waited = (claim.started_at - claim.run_at).total_seconds()
        self._add("wait", claim.queue, claim.type, max(0.0, waited))
        self._add("run", claim.queue, claim.type, seconds)

    def _add(self, name: str, queue: str, type: str, seconds: float) -> None:
        series = self._series.get((name, queue, type))
        if series is None:
            if len(self._series) >= _MOST_SERIES:
                return
            series = self._series[name, queue, type] = ([0.0], [0] * (len(BUCKETS) + 1))
        series[0][0] += seconds
        series[1][bisect_left(BUCKETS, seconds)] += 1

    def take(self) -> list[Histogram]:
        """All of them; the next ones start from nothing."""
        series, self._series = self._series, {}
        return [Histogram(*key, total[0], buckets) for key, (total, buckets) in series.items()]

    def put_back(self, seen: Sequence[Histogram]) -> None:
        """They could not be sent: keep them for the next round."""
        for one in seen:
            key = (one.name, one.queue, one.type)
            total, buckets = self._series.setdefault(key, ([0.0], [0] * len(one.buckets)))
            total[0] += one.total
            buckets[:] = [a + b for a, b in zip(buckets, one.buckets, strict=True)]
