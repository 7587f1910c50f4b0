"""`dhara workers`."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import click

from dhara.cli.completion import WORKER
from dhara.cli.console import Console, Group

if TYPE_CHECKING:
    from dhara.store.pool import Pool
    from dhara.store.workers import RunningTask, WorkerRow


@click.group(cls=Group, invoke_without_command=True)
@click.pass_context
def workers(ctx: click.Context) -> None:
    """List live and lately lost workers; drain some."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_workers)


@workers.command(
    "list",
    short_help="Live workers, and those that ended lately.",
    examples="dhara workers\ndhara workers list --json | jq '.workers[] | select(.state == \"live\")'",
)
@click.pass_obj
def list_workers(console: Console) -> None:
    """Live workers, and those that ended within a quarter of an hour; as `dhara workers` alone."""
    from dhara.api.shapes import worker_out
    from dhara.cli.database import with_pool
    from dhara.store.workers import Workers

    async def work(pool: Pool) -> tuple[list[WorkerRow], list[RunningTask]]:
        store = Workers(pool, pool.settings.schema)
        rows = await store.recent()
        return rows, await store.running([row.id for row in rows])

    found, running = with_pool(console, work)
    if console.json:
        console.answer({"workers": [worker_out(row, running) for row in found]})
    elif found:
        console.print(_table(console, found))
    else:
        console.print("no worker; start one with `dhara worker MODULE`")


@workers.command(
    "drain",
    examples="""
    dhara workers drain 01890a5d-ac96-774b-bcce-b302099a8057
    dhara workers --json | jq -r '.workers[] | select(.host == "web-3").id' | xargs dhara workers drain
    """,
)
@click.argument("ids", metavar="ID...", type=click.UUID, shell_complete=WORKER, nargs=-1, required=True)
@click.pass_obj
def drain(console: Console, ids: tuple[UUID, ...]) -> None:
    """Let workers claim nothing more, finish what they run, and end.

    They hear it at once, or with their next heartbeat; none starts in their place. A `dhara worker` of which all runners
    are drained exits 0.
    """
    from dhara.api.shapes import worker_out
    from dhara.cli.database import actor, with_pool
    from dhara.store.wakeup import Notifier
    from dhara.store.workers import Workers

    async def work(pool: Pool) -> list[WorkerRow]:
        store, notifier = Workers(pool, pool.settings.schema), Notifier(pool, pool.settings.schema)
        found = []
        for id in ids:
            found.append(await store.ask_drain(id, actor()))
            notifier.cancel(id)
        await notifier.close()
        return found

    found = with_pool(console, work)
    if console.json:
        console.answer({"workers": [worker_out(row, []) for row in found]})
    else:
        console.print(_table(console, found))


def _table(console: Console, found: list[WorkerRow]) -> str:
    from dhara.cli.tables import ago, span, table

    rows = [
        (
            str(w.id),
            w.state,
            f"{w.host}:{w.pid}",
            f"{w.running}/{w.slots}",
            span(w.beat_age),
            ago(w.started_at),
            ", ".join(w.types),
        )
        for w in found
    ]
    head = ("WORKER", "STATE", "HOST:PID", "RUNNING", "BEAT AGE", "STARTED", "TYPES")
    return table(head, rows, fancy=console.fancy)
