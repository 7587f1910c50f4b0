"""Static scans: semgrep with rules of our own (`fuzz/rules/`), and bandit.

    pip install semgrep bandit
    python -m fuzz.scan [--bin FOLDER]

First semgrep is shown code that breaks each rule; a rule that stays silent there fails. Of bandit's findings those in
`KNOWN` are looked at and stand. Exit code 1 for any other finding.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "fuzz" / "rules" / "dhara.yml"

# bandit's test and where, and why it stands.
KNOWN: dict[tuple[str, str], str] = {
    ("B101", ""): "asserts tell the type checker what holds anyway",
    ("B404", ""): "processes are started",
    ("B603", ""): "with commands of our own, without a shell",
    ("B311", ""): "jitter and sampling",
    ("B104", "cli/serve.py"): "0.0.0.0 is replaced, not bound",
    ("B105", ""): "empty texts",
    ("B608", "store/search.py"): "the one composed query: fixed texts, numbered parameters",
}
# One line a rule at least, which it must find.
BROKEN = {
    "sql-from-a-format": [
        'db.execute(f"SELECT {x}")',
        'db.fetch("SELECT %s" % x)',
        'db.fetch("SELECT " + x)',
        'db.fetchrow("SELECT {}".format(x))',
        'sql = f"SELECT {x}"\ndb.fetchval(sql, 1)',
    ],
    "sql-outside-the-store": ['db.execute("DELETE FROM dhara.tasks")'],
    "executes-data": ["eval(x)", "exec(x)", "yaml.load(x)", "pickle.loads(x)", "subprocess.run(x, shell=True)"],
    "insecure-randomness-for-secrets": ['random.choice("abc")'],
    "compares-secrets-with-equals": ["key.digest == x"],
    "no-tls-verification": ["get(url, verify=False)"],
}


def semgrep(command: Path | str, where: Path) -> list[tuple[str, str, int]]:
    """Findings: rule, file, line."""
    options = ["scan", "--metrics=off", "--disable-version-check", "--no-git-ignore", "--json", "--quiet"]
    done = subprocess.run(
        [str(command), *options, "--config", str(RULES), str(where)], capture_output=True, text=True, check=False
    )
    found: dict[str, Any] = json.loads(done.stdout)
    if found["errors"]:
        raise SystemExit(f"semgrep: {found['errors'][:3]}")
    return [(one["check_id"].rpartition(".")[2], one["path"], one["start"]["line"]) for one in found["results"]]


def silent(command: Path | str) -> list[str]:
    """Broken lines that their rule does not find."""
    with tempfile.TemporaryDirectory(prefix="dhara-scan-") as folder:
        place = Path(folder) / "api"
        place.mkdir()
        wanted = {}
        for rule, lines in BROKEN.items():
            for n, line in enumerate(lines):
                name = place / f"{rule.replace('-', '_')}_{n}.py"
                name.write_text(line + "\n")
                wanted[str(name)] = (rule, line)
        found = {(rule, path) for rule, path, _ in semgrep(command, Path(folder))}
        return [f"{rule}: {line}" for path, (rule, line) in wanted.items() if (rule, path) not in found]


def bandit(command: Path | str) -> tuple[Counter[str], list[str]]:
    """How many findings stand, by their reason, and the others."""
    done = subprocess.run(
        [str(command), "-q", "-r", "src", "-f", "json"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    known: Counter[str] = Counter()
    others = []
    for one in json.loads(done.stdout)["results"]:
        file = one["filename"].removeprefix("src/dhara/")
        reason = KNOWN.get((one["test_id"], "")) or KNOWN.get((one["test_id"], file))
        if reason is None or (one["test_id"] == "B105" and "''" not in one["issue_text"]):
            others.append(f"{file}:{one['line_number']}: {one['test_id']} {one['issue_text']}")
        else:
            known[f"{one['test_id']} {reason}"] += 1
    return known, others


def main(folder: str) -> int:
    where = Path(folder) if folder else None
    tools = {name: where / name if where else name for name in ("semgrep", "bandit")}
    rules = re.findall(r"^  - id: (\S+)", RULES.read_text(), re.MULTILINE)
    unproven = [*silent(tools["semgrep"]), *(f"{rule}: no broken line" for rule in rules if rule not in BROKEN)]
    found = semgrep(tools["semgrep"], ROOT / "src")
    known, others = bandit(tools["bandit"])
    print(
        f"semgrep: {len(rules)} rules, each finds what is broken: {'no' if unproven else 'yes'}; findings: {len(found)}"
    )
    print(f"bandit: findings: {len(others)}; looked at and standing: {known.total()}")
    for line in [*unproven, *map(str, found), *others]:
        print(f"  {line}")
    for reason, n in sorted(known.items()):
        print(f"  {n:3} {reason}")
    return 1 if unproven or found or others else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="", metavar="FOLDER", help="where semgrep and bandit are")
    sys.exit(main(parser.parse_args().bin))
