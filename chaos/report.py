"""One page a run, with a picture; and the ledger, which adds the runs up."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chaos.faults import FAULTS
from chaos.nemesis import Injection
from chaos.recovery import rate
from chaos.sizes import SIZES


def picture(path: Path, times: Sequence[float], injections: Sequence[Injection], began: float, ended: float) -> None:
    """Completions a second over the run, with every fault."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 3.2), dpi=110)
    seconds = [began + n * 0.5 for n in range(int((ended - began) * 2))]
    axes.plot([s - began for s in seconds], [rate(times, s) for s in seconds], linewidth=1.2, color="#1f5fa8")
    colours = {row: f"C{n}" for n, row in enumerate(dict.fromkeys(i.row for i in injections))}
    for row, colour in colours.items():
        for n, found in enumerate(i for i in injections if i.row == row):
            label = f"{row} {FAULTS[row].kind}" if n == 0 else None
            width = max(found.end - found.start, 0.15)
            axes.axvspan(found.start - began, found.start - began + width, color=colour, alpha=0.3, label=label)
    axes.set(xlabel="seconds", ylabel="completions/s", xlim=(0, ended - began), ylim=(0, None))
    axes.legend(loc="upper right", fontsize=7)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def page(summary: Mapping[str, Any], verdict: Any) -> str:
    """The Markdown of one run."""
    lines = [
        f"# Chaos run, seed {summary['seed']}: {'nothing violated' if summary['ok'] else 'VIOLATED'}",
        "",
        (
            f"`{summary['command']}` on PostgreSQL {summary['postgres']}, {summary['seconds']:.0f} s, "
            f"{summary['rate']:g} tasks/s, {summary['workers']} workers."
        ),
        "",
        (
            f"{summary['acknowledged']:,} tasks acknowledged, **{summary['lost']} lost**, {summary['starts']:,} starts, "
            f"**{summary['unexplained']} unexplained**. Calm rate {summary['calm']:.0f}/s."
        ),
        "",
        "![Completions over time](timeline.png)",
        "",
        "| row | what was done | injected | recovery median | worst |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for row, figures in summary["rows"].items():
        worst = figures.get("worst")
        shown = "not in time" if worst is None and figures.get("measured") else "" if worst is None else f"{worst} s"
        lines.append(
            f"| {row} | {FAULTS[row].about} | {figures['injected']} | {figures.get('median', '')} s | {shown} |"
        )
    if summary.get("rerun"):
        lines += ["", f"Tasks of killed runners ran again after {summary['rerun']} s (median, 99 %, worst)."]
    for row, figures in summary["rows"].items():
        lines += [
            f"- {row}: {told['measured']}: {'met' if told['met'] else 'MISSED'}" for told in figures.get("told", ())
        ]
    if verdict.missing:
        lines += [
            "",
            "Taken back by a failover to a standby that lagged behind:",
            *(f"- {id}" for id in verdict.missing),
        ]
    if "soak" in summary:
        lines += ["", *soak_table(summary["soak"])]
    for name, rows in verdict.violations.items():
        lines += ["", f"## {name}: {len(rows)} violations", ""]
        for found in rows[:3]:
            lines.append(f"- {found.get('what')}: task {found.get('task_id')}, {found.get('detail', '')}")
            lines += [f"  - {change}" for change in verdict.histories.get(str(found.get("task_id")), [])]
    return "\n".join(lines) + "\n"


def soak_table(found: Mapping[str, Any]) -> list[str]:
    """What grew over a soak."""
    lines = [
        "| process | MiB at the end | MiB/h, ± standard error | descriptors | |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for p in found["processes"]:
        # Numbers of processes mean nothing to a reader.
        name, met = p["process"].split()[0], "met" if p["met"] else "**missed**"
        lines.append(f"| {name} | {p['memory']:.0f} | {p['slope']:+.1f} ± {p['error']:.1f} | {p['files']:+g} | {met} |")
    tables, p99 = found["tables"], found["delays"]["p99"]
    lines += [
        "",
        (
            f"Over {found['seconds'] / 60:.0f} minutes after the warm-up, last quarter against first: start delay p99"
            f" outside faults {1e3 * p99[0]:.0f} → {1e3 * p99[1]:.0f} ms ({'met' if found['delays']['met'] else '**missed**'});"
        ),
        f"{_grown(tables)} ({'met' if tables['met'] else '**missed**'}).",
    ]
    return lines


def _grown(tables: Mapping[str, Any]) -> str:
    if "bytes a row" not in tables:
        return f"tables: {tables['what']}"
    dead, width = tables["dead"], tables["bytes a row"]
    return f"dead rows {dead[0]:,.0f} → {dead[1]:,.0f}, bytes a row {width[0]} → {width[1]}"


def add_to_ledger(path: Path, summary: Mapping[str, Any]) -> None:
    """One more run."""
    runs = json.loads(path.read_text()) if path.exists() else []
    runs.append(dict(summary))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(runs, indent=1) + "\n")


def totals(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The ledger's sums: faults by row and by kind, tasks, lost, unexplained; worst recoveries by row."""
    by_row: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        for row, figures in run["rows"].items():
            by_row[row] += figures["injected"]
            kinds[FAULTS[row].kind] += figures["injected"]
            if figures.get("measured"):
                rows.setdefault(row, []).append(figures)
    return {
        "rows": dict(by_row),
        "kinds": dict(kinds),
        "recovery": rows,
        "runs": len(runs),
        **{
            key: sum(run[key] for run in runs)
            for key in ("acknowledged", "lost", "starts", "unexplained", "violations")
        },
    }


def ledger_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """The matrix with its figures, as Markdown."""
    found = totals(runs)
    lines = [
        "| row | fault | bar | injected | on 15 | pooled | measured | |",
        "| --- | --- | --- | ---: | ---: | ---: | --- | --- |",
    ]
    elsewhere: list[str] = []
    for row in sorted(FAULTS, key=lambda row: (int(re.sub(r"\D", "", row)), row)):
        fault = FAULTS[row]
        mine = _by_server(row, runs)
        if mine:
            server, *others = (server for server in _SERVERS if server in mine)
            measured, met = _verdict(row, mine[server])
            injected = {server: sum(run["rows"][row]["injected"] for run in rows) for server, rows in mine.items()}
            counts = (injected.get(server, 0) for server in (_OLD, _POOLED))
            lines.append(
                f"| {row} | {fault.about} | {fault.bar or 'every invariant'} | {sum(injected.values()):,} | "
                + " | ".join(f"{n:,}" if n else "" for n in counts)
                + f" | {measured} | {met} |"
            )
            told = ((other, _verdict(row, mine[other])) for other in others)
            elsewhere += [f"- {row} {_NAMES[other]}: {shown}" for other, (shown, met) in told if met != "met"]
    lines += [
        "",
        f"Bars that were missed {_NAMES[_OLD]} or {_NAMES[_POOLED]}:{'' if elsewhere else ' none.'}",
        "",
        *elsewhere,
        *([""] if elsewhere else []),
        *_statements(runs),
        "| kind of fault | injected |",
        "| --- | ---: |",
        *(f"| {kind} | {n:,} |" for kind, n in sorted(found["kinds"].items(), key=lambda kv: -kv[1])),
        "",
        (
            f"{found['runs']} runs, {found['acknowledged']:,} tasks acknowledged: **{found['lost']} lost**; {found['starts']:,} "
            f"starts: **{found['unexplained']} unexplained**; {found['violations']} violations of any invariant."
            f" {_servers(runs)}."
        ),
    ]
    return "\n".join(lines) + "\n"


def _by_server(row: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The runs that have injected this row, by what they ran on, in order."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        if run["rows"].get(row, {}).get("injected"):
            found.setdefault(_POOLED if _pooled(run) else run["postgres"].partition(".")[0], []).append(run)
    return found


_LOST = {
    "complete": "complete: the settlement of a success",
    "settle": "settle: any other, and releases",
    "fire": "fire: the commit of a schedule's fire",
    "transaction": "transaction: a commit of `ctx.transaction()`",
}


def _statements(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """How often the reply, or the request, of which statement was lost (F20, F21)."""
    counts = {row: Counter[str]() for row in ("F20", "F21")}
    for run in runs:
        for row, count in counts.items():
            figures = run["rows"].get(row, {"injected": 0})
            count.update(figures.get("statements") or {"not told apart, in earlier runs": figures["injected"]})
    names = sorted(counts["F20"] | counts["F21"], key=lambda name: (name.startswith("not"), name))
    rows = [f"| {_LOST.get(name, name)} | {counts['F20'][name]:,} | {counts['F21'][name]:,} |" for name in names]
    return [*("| statement | reply lost | request lost |", "| --- | ---: | ---: |"), *rows, ""] if rows else []


def _servers(runs: Sequence[Mapping[str, Any]]) -> str:
    """How many faults on which server."""
    counts: Counter[str] = Counter()
    for run in runs:
        name = f"PostgreSQL {run['postgres']}{' behind PgBouncer' if _pooled(run) else ''}"
        counts[name] += sum(figures["injected"] for figures in run["rows"].values())
    return "Faults by server: " + ", ".join(f"{n:,} on {name}" for name, n in counts.most_common())


def _pooled(run: Mapping[str, Any]) -> bool:
    return bool(run.get("pooled")) or any("pooler" in FAULTS[row].needs for row in run["rows"])


_NEW, _OLD, _POOLED = _SERVERS = ("18", "15", "pooled")  # what a row's figures are told of, the first best
_NAMES = {_NEW: "on PostgreSQL 18", _OLD: "on PostgreSQL 15", _POOLED: "behind PgBouncer"}
_RANKS = ("", ", with priority", ", real-time")


def _rank(run: Mapping[str, Any]) -> int:
    """How far a run came before all else on its machine: not, by niceness, as a real-time process."""
    return 2 if run.get("realtime") else 1 if run.get("priority") else 0


def _verdict(row: str, runs: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """As `_measured`, but nothing is met that was done less, or less often, than the bar asks for."""
    measured, met = _measured(row, runs)
    if row in SIZES and not any(run.get("size") == "full" for run in runs):
        return f"at a smaller size: {measured}", "**not at its size**" if met == "met" else met
    if row in ("F20", "F21") and (short := [name for name, n in lost_messages(row, runs).items() if n < LOST_EACH]):
        measured = f"{measured}; fewer than {LOST_EACH:,} of {', '.join(sorted(short))}".removeprefix("; ")
        met = "**fewer**" if met == "met" else met
    return measured, met


# What the bars of F20 and F21 ask for, of each statement.
LOST_EACH = 1_000


def lost_messages(row: str, runs: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """How often each statement's reply (F20), or request (F21), was lost, where it was told apart."""
    counts: Counter[str] = Counter()
    for run in runs:
        counts.update(run["rows"].get(row, {}).get("statements") or {})
    return counts


def _measured(row: str, runs: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """What came of a row in these runs, and whether its bar is met; by those of full size if there are any, and of them by
    those that were least disturbed by what else ran on the machine."""
    held = not any(run["violations"] for run in runs)
    runs = [run for run in runs if run.get("size") == "full" and row in SIZES] or runs
    ranks = [_rank(run) for run in runs]
    figures = [run["rows"][row] for run, rank in zip(runs, ranks, strict=True) if rank == max(ranks)]
    # What a fault measures by itself is told of its latest run that was not left to others' mercy: it has what was mended.
    latest = [run["rows"][row] for run, rank in zip(runs, ranks, strict=True) if rank >= min(1, max(ranks))]
    told = next((found["told"] for found in reversed(latest) if found.get("told")), ())
    if told:
        missed = [one for one in told if not one["met"]]
        shown = (missed or told)[-1]["measured"]
        share = f" ({len(missed)} of {len(told)})" if missed and len(told) > 1 else ""
        return shown, f"**missed**{share}" if missed else "met"
    timed = [found for found in figures if found.get("measured")]
    worsts = [found["worst"] for found in timed]
    if not timed:
        return "", "met" if held else "**missed**"
    middle = sorted(found["median"] for found in timed)[len(timed) // 2]
    worst = "not in time" if None in worsts else f"{max(worsts):.1f} s"
    most = FAULTS[row].most
    met = held if most is None else held and None not in worsts and max(worsts) <= most
    where = _RANKS[max(ranks)] if most is not None else ""
    return f"after {middle:.1f} s, at worst {worst}{where}", "met" if met else "**missed**"
