"""What a run found: kept as JSON after each row, shown as a Markdown table."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.rows import Figure, Row

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "reports" / "speed"


def figures_of(row: Row, runs: Sequence[Mapping[str, float]]) -> list[dict[str, Any]]:
    """Each figure's median over the runs, its bar, and whether it is met."""
    return [found for figure in row.figures if (found := _figure(figure, runs)) is not None]


def _figure(figure: Figure, runs: Sequence[Mapping[str, float]]) -> dict[str, Any] | None:
    values = [run[figure.name] for run in runs if figure.name in run and math.isfinite(run[figure.name])]
    if not values:
        return None
    value = statistics.median(values)
    found: dict[str, Any] = {"name": figure.name, "unit": figure.unit, "value": _rounded(value)}
    found["runs"] = [_rounded(v) for v in values]
    if (ratio := figure.ratio(value)) is not None:
        found |= {"bar": figure.bar, "at_most": figure.most, "ratio": round(min(ratio, 99.0), 3), "met": ratio >= 1}
    return found


def _rounded(value: float) -> float:
    """Four digits that count are more than such a machine gives."""
    if value == 0 or not math.isfinite(value):
        return value
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    return round(value, digits)


def save(found: Mapping[str, Any], folder: Path) -> Path:
    """Write pgNN.json and pgNN.md; answers the latter's path."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"pg{found['machine']['major']}"
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    page = folder / f"{name}.md"
    page.write_text(markdown(found))
    return page


def markdown(found: Mapping[str, Any]) -> str:
    """The report: where it was measured, and a line for each figure."""
    machine, name = found["machine"], f"pg{found['machine']['major']}"
    settings = ", ".join(f"{key} {value}" for key, value in machine["settings"].items())
    lines = [
        "<!-- Made by `make bench`; do not edit. -->",
        f"# Speed on PostgreSQL {machine['postgresql']}",
        "",
        (
            f"dhara {machine['dhara']}, Python {machine['python']}, {machine['system']}, {machine['cores']} cores shared by all."
            f" {settings}."
        ),
        "",
        f"Begun {found['begun']}, {found['seconds']:.0f} s. Each figure is the median of {found['runs']} runs, unless its row"
        " says otherwise; sizes: " + ", ".join(f"{key} {value:g}" for key, value in found["sizes"].items()) + ".",
        "",
        "| # | figure | measured | bar | ratio | |",
        "|---|---|---:|---:|---:|---|",
    ]
    for row in found["rows"]:
        lines += _lines(row)
    lines += [""]
    for plot in found.get("plots", ()):
        lines += [f"![{plot['title']}]({name}-{plot['file']})", ""]
    return "\n".join(lines)


def _lines(row: Mapping[str, Any]) -> list[str]:
    head = f"| **{row['id']}** | **{row['title']}**"
    note = f" ({row['count']} run{'s' if row['count'] != 1 else ''})" if row.get("count") else ""
    lines = [f"{head}{note} | | | | |"]
    for figure in row["figures"]:
        bar = ratio = verdict = ""
        if "bar" in figure:
            bar = f"{'≤' if figure['at_most'] else '≥'} {shown(figure['bar'], figure['unit'])}"
            ratio, verdict = f"{figure['ratio']:.2f}", "met" if figure["met"] else "**missed**"
        lines.append(f"| | {figure['name']} | {shown(figure['value'], figure['unit'])} | {bar} | {ratio} | {verdict} |")
    if row.get("error"):
        lines.append(f"| | not measured: {row['error']} | | | | **missed** |")
    return lines


def shown(value: float, unit: str) -> str:
    """A figure for people: 31,204/s, 1.18 ms."""
    number = f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:,.3g}"
    return number + (unit if unit in ("/s", "%", "×") or unit.startswith("%") else f" {unit}")
