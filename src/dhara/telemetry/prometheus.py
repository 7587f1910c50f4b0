"""The Prometheus text format 0.0.4, of families.

A renderer of forty lines instead of the client library: the counters live in the database, so there is nothing to
register, and the format is stable and small (ADR: the library's collectors would only wrap these same lists).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from dhara.telemetry.metrics import Family, Metric, Sample, Timing

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_HELP = str.maketrans({"\\": r"\\", "\n": r"\n"})
_LABEL = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def render(families: Iterable[Family]) -> str:
    """The exposition of `families`, each with its HELP and TYPE."""
    lines: list[str] = []
    for one in families:
        metric = one.metric
        lines.append(f"# HELP {metric.name} {metric.help.translate(_HELP)}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        for series in one.series:
            lines.extend(_lines(metric, series))
    return "\n".join(lines) + "\n"


def _lines(metric: Metric, series: Sample | Timing) -> Iterator[str]:
    labels = [f'{name}="{value.translate(_LABEL)}"' for name, value in zip(metric.labels, series.labels, strict=True)]
    if isinstance(series, Sample):
        yield f"{metric.name}{_braces(labels)} {_number(series.value)}"
        return
    cumulative = list(accumulate(series.buckets))
    for bound, n in zip((*map(_number, series.bounds), "+Inf"), cumulative, strict=True):
        le = f'le="{bound}"'
        yield f"{metric.name}_bucket{_braces([*labels, le])} {n}"
    yield f"{metric.name}_sum{_braces(labels)} {_number(series.total)}"
    yield f"{metric.name}_count{_braces(labels)} {cumulative[-1] if cumulative else 0}"


def _braces(labels: list[str]) -> str:
    return "{" + ",".join(labels) + "}" if labels else ""


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
