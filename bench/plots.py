"""The curves of a run as pictures: rates over time, as they must stay flat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Curve = Sequence[tuple[float, float]]

# file -> (row, title, curves, axis)
_PLOTS = {
    "p9.png": ("P9", "Drain, with and without a transaction that pins the xmin horizon", ("free", "pinned"), "tasks/s"),
    "p10.png": (
        "P10",
        "Drain of an empty table, and beside finished, ready and delayed tasks",
        ("empty", "finished", "ready", "delayed"),
        "tasks/s",
    ),
    "p14.png": ("P14", "Dead rows at 1,000 tasks/s", ("dead rows",), "rows"),
}


def draw(curves: Mapping[str, Curve], folder: Path, prefix: str) -> list[dict[str, Any]]:
    """Draw what there are curves for; answers titles and files."""
    made = []
    for file, (_, title, names, axis) in _PLOTS.items():
        wanted = {name: curves[name] for name in names if curves.get(name)}
        if wanted:
            _draw(wanted, title, axis, folder / f"{prefix}-{file}")
            made.append({"file": file, "title": title})
    return made


def _draw(curves: Mapping[str, Curve], title: str, axis: str, file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, plot = pyplot.subplots(figsize=(8, 4), dpi=110, layout="constrained")
    for name, curve in curves.items():
        plot.plot([x for x, _ in curve], [y for _, y in curve], label=name, linewidth=1.6)
    plot.set(title=title, xlabel="seconds", ylabel=axis)
    plot.set_ylim(bottom=0)
    plot.set_xlim(left=0)
    plot.grid(alpha=0.3)
    if len(curves) > 1:
        plot.legend()
    figure.savefig(file, metadata={"Software": None})
    pyplot.close(figure)
