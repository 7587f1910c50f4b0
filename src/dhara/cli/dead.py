"""`dhara dead`: DEAD tasks, one by one and by the group; retry and purge them in bulk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from dhara.cli.bulk import bulk, chosen, filter_of, sure
from dhara.cli.completion import GROUP, TYPE
from dhara.cli.console import Console
from dhara.cli.console import Group as CommandGroup
from dhara.cli.values import Span

if TYPE_CHECKING:
    from dhara.store.pool import Pool

_GAUGE = "▁▂▃▄▅▆▇█"


@click.group(cls=CommandGroup)
def dead() -> None:
    """DEAD tasks: list, group, retry and purge them."""


@dead.command("list", examples="dhara dead list\ndhara dead list --group 1b2c... --limit 100")
@chosen
@click.option("--limit", type=click.IntRange(1, 500), default=20, show_default=True, help="Most tasks.")
@click.pass_obj
def list_dead(console: Console, /, limit: int, **wanted: Any) -> None:
    """DEAD tasks, newest first."""
    from dhara.api.shapes import TaskList, task_row
    from dhara.cli.database import with_pool
    from dhara.cli.tables import ago, table
    from dhara.store.search import Search

    within = filter_of("retry", wanted)
    page = with_pool(console, lambda pool: Search(pool, pool.settings.schema).page(within, limit=limit))
    if console.json:
        rows = [task_row(task) for task in page.tasks]
        shown = TaskList(tasks=rows, limit=limit, offset=0, total=page.total, total_is_estimate=page.total_is_estimate)
        console.answer(shown)
        return
    cells = [
        (str(t.id), t.type, t.queue, t.attempts, ago(t.completed_at or t.updated_at), t.reason, t.last_error or "")
        for t in page.tasks
    ]
    head = ("ID", "TYPE", "QUEUE", "ATTEMPTS", "DIED", "REASON", "LAST ERROR")
    console.print(table(head, cells, fancy=console.fancy) if cells else "no such task")


@dead.command(
    "groups",
    short_help="DEAD tasks by what killed them.",
    examples="dhara dead groups\ndhara dead groups --json | jq '.groups[].fingerprint'",
)
@click.option("--type", shell_complete=TYPE, help="Only groups of this type.")
@click.pass_obj
def groups(console: Console, type: str | None) -> None:
    """DEAD tasks by what killed them, those seen last first; TREND is the last 24 hours."""
    from dhara.api.shapes import GroupList, group_out
    from dhara.cli.database import with_pool
    from dhara.cli.tables import ago, table
    from dhara.store.failures import Failures

    found = with_pool(console, lambda pool: Failures(pool, pool.settings.schema).groups())
    found = [group for group in found if type in (None, group.type)]
    if console.json:
        console.answer(GroupList([group_out(group) for group in found]))
        return
    rows = [
        (
            group.fingerprint,
            f"{group.count:,}{'+' if group.count_is_estimate else ''}{' muted' if group.muted_at else ''}",
            ago(group.first_at),
            ago(group.last_at),
            _gauge(group.trend[::-1]),
            group.type,
            group.last_error or group.reason or "",
        )
        for group in found
    ]
    head = ("FINGERPRINT", "COUNT", "FIRST", "LAST", "TREND", "TYPE", "LAST ERROR")
    console.print(table(head, rows, fancy=console.fancy) if rows else "no task is DEAD")


@dead.command("mute", examples="dhara dead mute 1b2c...")
@click.argument("fingerprint", shell_complete=GROUP)
@click.pass_obj
def mute(console: Console, fingerprint: str) -> None:
    """Leave a group out of alarms."""
    _mute(console, fingerprint, True)


@dead.command("unmute", examples="dhara dead unmute 1b2c...")
@click.argument("fingerprint", shell_complete=GROUP)
@click.pass_obj
def unmute(console: Console, fingerprint: str) -> None:
    """Let a group count again."""
    _mute(console, fingerprint, False)


@dead.command(
    "retry",
    short_help="Send DEAD tasks back to PENDING, in bulk.",
    examples="""
    dhara dead retry --type email.send --dry-run
    dhara dead retry --group 1b2c... --yes
    dhara dead retry --queue mail --canary 10 --max-failed 0.1 --yes
    """,
)
@chosen
@sure
@click.option("--canary", type=click.IntRange(1, 1_000), help="Begin with so many and watch them; then in waves.")
@click.option("--max-failed", type=click.FloatRange(0, 1), default=0.2, show_default=True, help="Share of a wave.")
@click.option("--watch", type=Span(), default="60s", show_default=True, help="Wait so long for a wave's slow tasks.")
@click.pass_obj
def retry(console: Console, /, canary: int | None, max_failed: float, watch: float, **given: Any) -> int:
    """Send DEAD tasks back to PENDING, in bulk; with --canary unless too many fail again."""
    from dhara.domain.canary import Plan

    plan = None if canary is None else Plan(first=canary, max_failed=max_failed, watch=watch)
    return bulk(console, "retry", given, plan)


@dead.command("purge", examples="dhara dead purge --type old.type --dry-run\ndhara dead purge --group 1b2c... --yes")
@chosen
@sure
@click.pass_obj
def purge(console: Console, /, **given: Any) -> int:
    """Delete DEAD tasks, in bulk."""
    return bulk(console, "purge", given)


def _gauge(counts: list[int]) -> str:
    most = max(counts, default=0)
    return "".join("·" if not n else _GAUGE[(n * (len(_GAUGE) - 1)) // most] for n in counts)


def _mute(console: Console, fingerprint: str, muted: bool) -> None:
    from dhara.api.shapes import group_out
    from dhara.cli.database import actor, with_pool
    from dhara.cli.tables import many
    from dhara.errors import NotFound
    from dhara.store.failures import Failures

    async def work(pool: Pool) -> Any:
        store = Failures(pool, pool.settings.schema)
        if await store.group(fingerprint, cap=1) is None:
            raise NotFound(f"no DEAD task has the fingerprint {fingerprint}")
        await (store.mute if muted else store.unmute)(fingerprint, actor())
        group = await store.group(fingerprint)
        assert group is not None
        return group

    group = with_pool(console, work)
    if console.json:
        console.answer(group_out(group))
    else:
        console.print(f"{group.fingerprint}: {many(group.count, 'task')}, {'muted' if group.muted_at else 'not muted'}")
