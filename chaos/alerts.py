"""The conditions of deploy/prometheus-alerts.yml, as far as gauges without labels go: sums of products, and one `>`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

_RULES = (Path(__file__).parents[1] / "deploy" / "prometheus-alerts.yml").read_text()


def holds(alert: str, gauges: Mapping[str, float]) -> bool:
    """Whether what `alert` waits for is so, by these gauges."""
    found = re.search(rf"alert: {alert}\n(?: +#.*\n)* +expr: (.+) > (.+)\n", _RULES)
    if found is None:
        raise LookupError(f"no rule {alert} that compares with `>`")
    left, right = (_sum(side, gauges) for side in found.groups())
    return left > right


def _sum(side: str, gauges: Mapping[str, float]) -> float:
    return sum(math.prod(_value(factor.strip(), gauges) for factor in term.split("*")) for term in side.split("+"))


def _value(factor: str, gauges: Mapping[str, float]) -> float:
    named = re.fullmatch(r"max\((\w+)\)", factor)
    # As in Prometheus, nothing holds of what is not there: dhara leaves out what it could not read in time.
    return gauges.get(named[1], math.nan) if named else float(factor)


def gauges(exposition: str) -> dict[str, float]:
    """What has no labels in an answer of /metrics."""
    lines = (line.split() for line in exposition.splitlines() if not line.startswith("#"))
    return {words[0]: float(words[1]) for words in lines if len(words) == 2 and "{" not in words[0]}
