"""What a queue's backlog is coming to: by how its depth has changed lately. Pure."""

from __future__ import annotations

from msgspec import Struct

# Changes of less than so many tasks a second are noise.
NOISE = 0.01


class Forecast(Struct, frozen=True, omit_defaults=True):
    """`kind`: `empty`, `drains` in `seconds`, `grows` by `rate` tasks a second, `steady`, `stalled` (nothing comes or goes),
    or `unknown` (no figures yet)."""

    kind: str
    rate: float | None = None
    seconds: float | None = None


def forecast(ready: int, change: float | None, out: float | None) -> Forecast:
    """Of a queue with `ready` tasks due, whose depth changes by `change` and that completes `out` tasks a second."""
    if not ready:
        return Forecast("empty")
    if change is None or out is None:
        return Forecast("unknown")
    if change > NOISE:
        return Forecast("grows", rate=round(change, 3))
    if change < -NOISE:
        return Forecast("drains", rate=round(-change, 3), seconds=round(ready / -change, 1))
    return Forecast("steady", rate=round(out, 3)) if out > NOISE else Forecast("stalled")
