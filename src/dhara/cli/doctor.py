"""`dhara doctor`."""

from __future__ import annotations

import click

from dhara.cli.console import Command, Console

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command(
    "doctor", cls=Command, examples="dhara doctor\ndhara doctor --json | jq '.findings[] | select(.status != \"ok\")'"
)
@click.option("--strict", is_flag=True, help="Exit 1 for warnings, too.")
@click.pass_obj
def doctor(console: Console, strict: bool) -> int:
    """Check set-up, database and fleet, and say what to do. Exits 0 if nothing fails, 1 if something does, 69 if the
    database does not answer."""
    from dhara import __version__
    from dhara.cli.database import with_pool
    from dhara.cli.tables import clean
    from dhara.domain.doctor import FAIL, WARN, examine
    from dhara.store.doctor import Doctor

    seen = with_pool(console, lambda pool: Doctor(pool, pool.settings.schema).look(__version__), check=False)
    settings = console.settings()
    findings = examine(seen, settings.stale_after, settings.wait_objective)
    worst = {finding.status for finding in findings}
    if console.json:
        console.answer({"findings": findings})
    else:
        for one in findings:
            mark = click.style(f"{one.status:<4}", fg=_COLOURS[one.status]) if console.fancy else f"{one.status:<4}"
            console.print(f"{mark}  {one.check:<15}  {clean(one.seen)}")
            if one.cure:
                console.print(f"      {'':<15}  → {clean(one.cure)}")
    return 1 if FAIL in worst or (strict and WARN in worst) else 0
