"""The charts of the overview, and when failures count as rising: pure."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from dhara.dashboard.overview import charts, rising
from dhara.store.stats import Sample


def _samples(*failed: int) -> list[Sample]:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    times = [begin + timedelta(minutes=n) for n in range(len(failed))]
    return [
        Sample(at, at, 60 * n, 30 * n, total, 0, 0) for n, (at, total) in enumerate(zip(times, failed, strict=True))
    ]


def test_charts_show_rates_between_samples() -> None:
    assert charts(_samples(0)) == [] and charts(_samples(0, 0)) == []
    throughput, failures = charts(_samples(0, 6, 6, 18))
    series = {one["label"]: one["values"] for one in json.loads(throughput.data)["series"]}
    assert series == {"Enqueued": [60, 60, 60], "Completed": [30, 30, 30]}
    assert json.loads(failures.data)["series"][0]["values"] == [6, 0, 12]
    assert "now failed attempts 12" in failures.about and "at most 12" in failures.about


def test_failures_rise_when_they_are_clearly_more_than_before() -> None:
    assert rising(_samples(*[0] * 20)) is None
    assert rising(_samples(*range(0, 200, 10))) is None, "many, but no more than before"
    assert rising(_samples(*[0] * 15, 10, 30, 50, 70, 90)) == (18, 0)
    assert rising(_samples(0, 50, 100)) is None, "too little is known"
