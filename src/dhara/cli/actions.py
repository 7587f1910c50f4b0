"""`dhara actions`: who did what."""

from __future__ import annotations

from typing import Any

import click

from dhara.cli.console import Command, Console


@click.command(
    "actions",
    cls=Command,
    examples="""
    dhara actions
    dhara actions --action queue --limit 10
    dhara actions --target 01890a5d-ac96-774b-bcce-b302099a8057 --json
    """,
)
@click.option("--actor", help="Only what this one did.")
@click.option("--action", help="Only this action, or this kind of actions: queue, task, schedule.")
@click.option("--target", help="Only what was done to this task, queue, schedule or group.")
@click.option("--before", type=click.IntRange(1), help="Go on before this number, the last of the page before.")
@click.option("--limit", type=click.IntRange(1, 500), default=50, show_default=True, help="Most rows.")
@click.pass_obj
def actions(console: Console, /, **wanted: Any) -> None:
    """The audit log: who did what to what, newest first."""
    from dhara.api.shapes import ActionList, action_out
    from dhara.cli.database import with_pool
    from dhara.cli.tables import table, when
    from dhara.store.audit import Audit

    found = with_pool(console, lambda pool: Audit(pool, pool.settings.schema).list(**wanted))
    if console.json:
        following = found[-1].seq if len(found) == wanted["limit"] else None
        console.answer(ActionList(actions=[action_out(one) for one in found], next_before=following))
        return
    rows = [(str(one.seq), when(one.at), one.actor, one.action, one.target, one.after or "") for one in found]
    console.print(table(("#", "AT", "WHO", "ACTION", "TARGET", "AFTER"), rows, fancy=console.fancy))
