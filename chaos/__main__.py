"""`python -m chaos`: run, list, report."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import shutil
import sys
from pathlib import Path

from chaos import report
from chaos.arena import binaries
from chaos.faults import FAULTS
from chaos.faults.clocks import LIBRARIES
from chaos.faults.limits import GROUPS
from chaos.faults.network import packets
from chaos.publish import publish
from chaos.run import CALM, Order, run

ROOT = Path(__file__).parents[1]
LEDGER = ROOT / "docs" / "reports" / "trust" / "ledger.json"


def main() -> int:
    logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)  # each failure to reconnect, with its traceback
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    for name, about in (("run", "row after row"), ("soak", "one fault of any row each --every seconds")):
        _options(commands.add_parser(name, help=f"one run: arena, workload, nemesis, checker, verdict; {about}"), name)
    commands.add_parser("list", help="the rows that can be injected")
    telling = commands.add_parser("report", help="the ledger as a table")
    telling.add_argument("--ledger", type=Path, default=LEDGER)
    telling.add_argument("--write", action="store_true", help="put it into the trust report")
    given = parser.parse_args()
    if given.command == "list":
        for row, found in FAULTS.items():
            print(f"{row:5} {found.kind:20} {found.about}")
        return 0
    if given.command == "report":
        table = report.ledger_table(json.loads(given.ledger.read_text()))
        print(table, end="")
        if given.write:
            publish(LEDGER.with_name("index.md"), table)
        return 0
    return _run(given)


# Not those that kill whichever runner has taken a task: one worker must live through it all.
_SOAK = "F1,F2,F3,F4,F4b,F5,F10,F13,F16,F18,F19,F22,F39"


def _options(running: argparse.ArgumentParser, name: str) -> None:
    running.add_argument("--seed", type=int, default=1)
    running.add_argument("--minutes", type=float, default=150 if name == "soak" else 1.5)
    running.add_argument("--faults", default=_SOAK if name == "soak" else "F1,F16", help="rows; see `list`")
    running.add_argument("--every", type=float, default=60.0 if name == "soak" else 0.0, help="seconds between faults")
    running.add_argument("--rate", type=float, default=100.0, help="tasks a second")
    running.add_argument("--workers", type=int, default=3 if name == "soak" else 2)
    running.add_argument("--processes", type=int, default=1, help="runners a worker")
    running.add_argument("--pace", type=float, default=1.0, help="how much closer together faults come")
    running.add_argument("--least", type=int, default=2, help="injections of each row, at least")
    running.add_argument("--calm", type=float, default=CALM, help="seconds before the first fault")
    running.add_argument(
        "--size", choices=("quick", "full"), default="quick", help="full: as the bars ask; F25 takes half an hour"
    )
    running.add_argument("--statements", default="", help="to which F20 and F21 keep, such as beat,fire; default: all")
    running.add_argument(
        "--without", default="", help="types that the workload leaves out: cpu ones take 0.6 of a core at 150/s"
    )
    running.add_argument("--lease", type=float, default=6.0, help="seconds; the beat is a second")
    running.add_argument("--postgres", type=int, help="15 or 18; default: dhara's own choice")
    running.add_argument("--older", help="F35: the commit of the release before; default: by its migrations")
    running.add_argument("--proxied", action="store_true", help="every connection through our proxy")
    running.add_argument("--pooled", action="store_true", help="every connection through PgBouncer")
    running.add_argument(
        "--priority",
        action="store_true",
        help="it runs before all else on this machine (nice): its times count in the report",
    )
    running.add_argument("--out", type=Path, help="folder of the report")
    running.add_argument("--ledger", type=Path, help=f"add to this ledger, such as {LEDGER.relative_to(ROOT)}")


def _run(given: argparse.Namespace) -> int:
    rows = tuple(name.strip() for name in given.faults.split(",") if name.strip())
    if unknown := [row for row in rows if row not in FAULTS]:
        raise SystemExit(f"no such row: {', '.join(unknown)}; `python -m chaos list` names them")
    proxied = given.proxied or any("proxy" in FAULTS[row].needs for row in rows)
    pooled = given.pooled or any("pooler" in FAULTS[row].needs for row in rows)
    # The rules of iptables are made for each worker's own way to PostgreSQL.
    if not proxied and {"F37", "F39"} & set(rows) and (pooled or not packets()):
        print("no iptables, or no way of each worker's own: F37 and F39 go through the proxy", file=sys.stderr)
        proxied = True
    if "F46" in rows and shutil.which("cc") is None:
        raise SystemExit("F46 needs a C compiler, for a library that shifts the workers' clock: apt-get install gcc")
    if "F47" in rows and not LIBRARIES:
        raise SystemExit("F47 needs libfaketime: apt-get install libfaketime")
    if "F9" in rows and not GROUPS.is_dir():
        raise SystemExit("F9 needs the memory controller of cgroup v1, and root")
    if any("notify" in FAULTS[row].needs for row in rows) and binaries(given.postgres).major < 17:
        raise SystemExit("F44 needs PostgreSQL 17 or later, whose queue of notifications can be made small")
    order = Order(
        seed=given.seed, rows=rows, seconds=given.minutes * 60, rate=given.rate, workers=given.workers,
        processes=given.processes, pace=given.pace, least=given.least, calm=given.calm, lease=given.lease,
        postgres=given.postgres, out=given.out, proxied=proxied, pooled=pooled, every=given.every, priority=given.priority,
        older=given.older, full=given.size == "full",
        statements=tuple(given.statements.split(",")) if given.statements else (),
        without=tuple(given.without.split(",")) if given.without else (),
    )  # fmt: skip
    summary, verdict = asyncio.run(run(order))
    print(report.page(summary, verdict))
    print(json.dumps({k: v for k, v in summary.items() if k not in ("rows", "command")}, default=str))
    if given.ledger:
        report.add_to_ledger(given.ledger, summary)
    return 0 if summary["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
