"""`dhara audit`: do the invariants hold in this database? For users on a live system, and at the end of every chaos run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from dhara.cli.console import Command, Console

if TYPE_CHECKING:
    from uuid import UUID

    from dhara.settings import Settings
    from dhara.store.invariants import Change, Check, Violation


@click.command(
    "audit",
    cls=Command,
    examples="dhara audit\ndhara audit --quiet --json | jq '.checks[] | select(.violations > 0)'",
)
@click.option("--quiet", is_flag=True, help="The work is over: nothing may be RUNNING, or due and PENDING, either.")
@click.option("--most", type=click.IntRange(min=1), default=5, show_default=True, help="Violations to show a check.")
@click.pass_obj
def audit(console: Console, quiet: bool, most: int) -> int:
    """Check the invariants over all tasks and their whole history; reads only.

    Shows what breaks one beside the history of its task. Exits 1 if anything does. Assumes that all workers share this
    call's STALE_AFTER. Takes about a second for a hundred thousand changes.
    """
    import asyncio

    settings = console.settings()
    found, seconds, histories = asyncio.run(_audit(settings, quiet, most))
    broken = {check: rows for check, rows in found if rows}
    if console.json:
        console.answer(_document(found, seconds, histories, most))
    else:
        _print(console, found, histories, most)
        verdict = f"{sum(map(len, broken.values()))} violations" if broken else "no violation"
        console.print(f"{verdict}; {len(found)} checks in {seconds:.1f} s")
    return 1 if broken else 0


Found = Sequence[tuple["Check", "Sequence[Violation] | None"]]
Histories = Mapping["UUID", "Sequence[Change]"]


async def _audit(settings: Settings, quiet: bool, most: int) -> tuple[Found, float, Histories]:
    from dhara.client.backend import translated
    from dhara.store import migrate
    from dhara.store.invariants import CHECKS, Audit, Scope, violations_at_leisure
    from dhara.store.pool import DatabaseSettings, Pool

    scope = Scope(stale_after=settings.stale_after, quiet=quiet)
    start = time.perf_counter()
    # A user's connection has no time limits, and no hints to the planner that would slow the reading of whole tables.
    database = DatabaseSettings.of(settings, pool_max=1, users=True)
    async with Pool(database, "dhara audit") as pool:
        with translated():
            await migrate.check(pool, settings.schema)
            found = [(check, await violations_at_leisure(pool, settings.schema, check, scope)) for check in CHECKS]
            shown = {v.task_id for _, rows in found for v in (rows or ())[:most] if v.task_id is not None}
            histories = await Audit(pool, settings.schema).history(shown)
    return found, time.perf_counter() - start, histories


def _document(found: Found, seconds: float, histories: Histories, most: int) -> dict[str, Any]:
    checks = [
        {
            "invariant": check.number,
            "check": check.statement,
            "promise": check.promise,
            "asked": rows is not None,
            "violations": len(rows or ()),
            "shown": [
                {"what": v.what, "task_id": v.task_id, "detail": v.detail, "history": histories.get(v.task_id, [])}
                if v.task_id is not None
                else {"what": v.what, "detail": v.detail}
                for v in (rows or ())[:most]
            ],
        }
        for check, rows in found
    ]
    return {"ok": not any(rows for _, rows in found), "seconds": round(seconds, 3), "checks": checks}


def _print(console: Console, found: Found, histories: Histories, most: int) -> None:
    from dhara.cli.tables import table

    def verdict(rows: Sequence[Violation] | None) -> str:
        return "not asked" if rows is None else "holds" if not rows else f"{len(rows)} VIOLATIONS"

    lines = [(check.number, verdict(rows), check.promise) for check, rows in found]
    console.print(table(("", "VERDICT", "INVARIANT"), lines, fancy=console.fancy))
    for check, rows in found:
        for violation in (rows or ())[:most]:
            console.print(f"\n{check.number}  {violation.what}: {violation.detail}")
            if violation.task_id is not None:
                console.print(f"task {violation.task_id}")
                console.print(_history(console, histories[violation.task_id]))
        if rows and len(rows) > most:
            console.print(f"\n{check.number}  and {len(rows) - most} more (--most)")
    if any(rows for _, rows in found):
        console.print()


def _history(console: Console, changes: Sequence[Change]) -> str:
    from dhara.cli.tables import table

    head = ("SEQ", "AT", "GEN", "ATTEMPT", "EVENT", "FROM", "TO", "WORKER", "LEASE", "REASON")
    rows = [
        (c.seq, c.at, c.generation, c.attempt, c.event, c.from_state, c.to_state, c.worker_id, c.lease, c.reason)
        for c in changes
    ]
    return table(head, rows, fancy=console.fancy)
