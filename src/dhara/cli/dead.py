"""`dhara dead` and `dhara operations`: failures by the group, and what was asked for in bulk."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dhara.cli.completion import GROUP, OPERATION, QUEUE, TYPE
from dhara.cli.console import Console
from dhara.cli.console import Group as CommandGroup
from dhara.cli.tasks import Moment, Span

if TYPE_CHECKING:
    from uuid import UUID

    from dhara.domain.canary import Plan
    from dhara.store.operations import Operation
    from dhara.store.pool import Pool
    from dhara.store.search import Filter

F = TypeVar("F", bound=Callable[..., Any])
_GAUGE = "▁▂▃▄▅▆▇█"


def _filters(command: F) -> F:
    """The options that say which tasks."""
    options = (
        click.option("--id", "ids", type=click.UUID, multiple=True, help="Only this task; repeatable."),
        click.option("-q", "--q", help="Text to look for in id, type, key, error and payloads of up to 8 KiB."),
        click.option("--created-before", type=Moment(), help="Enqueued before this time."),
        click.option("--created-after", type=Moment(), help="Enqueued after this time."),
        click.option("--tag", help="With this tag."),
        click.option("--queue", shell_complete=QUEUE, help="Of this queue."),
        click.option("--type", shell_complete=TYPE, help="Of this type."),
        click.option("--group", "fingerprint", help="Of this group: a FINGERPRINT of `dhara dead groups`."),
    )
    for option in options:
        command = option(command)
    return command


@click.group(cls=CommandGroup)
def dead() -> None:
    """DEAD tasks: list, group, retry and purge them."""


@dead.command("list", examples="dhara dead list\ndhara dead list --group 1b2c... --limit 100")
@_filters
@click.option("--limit", type=click.IntRange(1, 500), default=20, show_default=True, help="Most tasks.")
@click.pass_obj
def list_dead(console: Console, /, limit: int, **wanted: Any) -> None:
    """DEAD tasks, newest first."""
    from dhara.api.shapes import TaskList, task_row
    from dhara.cli.database import with_pool
    from dhara.cli.tables import ago, table
    from dhara.store.search import Search

    chosen = _filter("retry", wanted)
    page = with_pool(console, lambda pool: Search(pool, pool.settings.schema).page(chosen, limit=limit))
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


@dead.command("groups", examples="dhara dead groups\ndhara dead groups --json | jq '.groups[].fingerprint'")
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
    examples="""
    dhara dead retry --type email.send --dry-run
    dhara dead retry --group 1b2c... --yes
    dhara dead retry --queue mail --canary 10 --max-failed 0.1 --yes
    """,
)
@_filters
@click.option("--all", "everything", is_flag=True, help="All of them; needed where no filter is given.")
@click.option("--dry-run", is_flag=True, help="Count and show some, change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--canary", type=click.IntRange(1, 1_000), help="Begin with so many and watch them; then in waves.")
@click.option("--max-failed", type=click.FloatRange(0, 1), default=0.2, show_default=True, help="Share of a wave.")
@click.option("--watch", type=Span(), default="60s", show_default=True, help="Wait so long for a wave's slow tasks.")
@click.pass_obj
def retry(console: Console, /, canary: int | None, max_failed: float, watch: float, **given: Any) -> int:
    """Send DEAD tasks back to PENDING, in bulk; with --canary unless too many fail again."""
    from dhara.domain.canary import Plan

    plan = None if canary is None else Plan(first=canary, max_failed=max_failed, watch=watch)
    return _bulk(console, "retry", given, plan)


@dead.command("purge", examples="dhara dead purge --type old.type --dry-run\ndhara dead purge --group 1b2c... --yes")
@_filters
@click.option("--all", "everything", is_flag=True, help="All of them; needed where no filter is given.")
@click.option("--dry-run", is_flag=True, help="Count and show some, change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def purge(console: Console, /, **given: Any) -> int:
    """Delete DEAD tasks, in bulk."""
    return _bulk(console, "purge", given)


@click.group(cls=CommandGroup)
def operations() -> None:
    """Bulk operations: list, look at and stop them."""


@operations.command("list", examples="dhara operations list")
@click.option("--limit", type=click.IntRange(1, 500), default=20, show_default=True, help="Most operations.")
@click.pass_obj
def list_operations(console: Console, limit: int) -> None:
    """Bulk operations, newest first."""
    from dhara.api.shapes import OperationList, operation_out
    from dhara.cli.tables import ago, table

    found = _on_operations(console, lambda store: store.recent(limit))
    if console.json:
        console.answer(OperationList([operation_out(one) for one in found]))
        return
    rows = [(str(o.id), o.kind, o.state, _progress(o), o.asked_by, ago(o.created_at), o.reason or "") for o in found]
    head = ("ID", "KIND", "STATE", "DONE", "BY", "BEGUN", "REASON")
    console.print(table(head, rows, fancy=console.fancy) if rows else "no bulk operation yet")


@operations.command("get", examples="dhara operations get 01890a5d-ac96-774b-bcce-b302099a8057")
@click.argument("id", shell_complete=OPERATION)
@click.pass_obj
def get(console: Console, id: str) -> None:
    """One operation and how far it has come."""
    _show(console, _on_operations(console, lambda store: store.get(_id(id))))


@operations.command("stop", examples="dhara operations stop 01890a5d-ac96-774b-bcce-b302099a8057")
@click.argument("id", shell_complete=OPERATION)
@click.pass_obj
def stop(console: Console, id: str) -> None:
    """Stop an operation; what it has done stays done."""
    from dhara.cli.database import actor

    _show(console, _on_operations(console, lambda store: store.stop(_id(id), actor())))


def bulk_filter(kind: str, given: dict[str, Any]) -> Filter:
    """The filter of a bulk command. Raises `UsageError` where nothing says which tasks."""
    everything = given.pop("everything")
    wanted = _filter(kind, given)
    if not everything and wanted == _filter(kind, {}):
        raise click.UsageError("say which tasks by a filter (--type, --queue, --group, --id, ...), or say --all")
    return wanted


def _filter(kind: str, given: dict[str, Any]) -> Filter:
    from dhara.maintenance.bulk import base
    from dhara.store.search import Filter

    return base(kind, Filter(**given, in_payload=given.get("q") is not None))


def _bulk(console: Console, kind: str, given: dict[str, Any], canary: Plan | None = None) -> int:
    """Preview, ask, begin and drive an operation to its end. Exits 1 if it ended otherwise than done."""
    from dhara.api.shapes import BulkOut, task_row
    from dhara.cli.database import actor, with_pool
    from dhara.maintenance.bulk import Bulk
    from dhara.store.operations import Operations
    from dhara.store.search import Page, Search
    from dhara.store.wakeup import Notifier

    dry, yes = given.pop("dry_run"), given.pop("yes")
    wanted = bulk_filter(kind, given)

    async def preview(pool: Pool) -> Page:
        return await Search(pool, pool.settings.schema).page(wanted, limit=10)

    async def work(pool: Pool) -> Operation:
        schema = pool.settings.schema
        store, notifier = Operations(pool, schema), Notifier(pool, schema)
        begun = await store.create(
            kind, wanted, actor(), total=page.total, is_estimate=page.total_is_estimate, canary=canary
        )
        bulk = Bulk(pool, schema, notifier)
        try:
            while (now := await store.get(begun.id)).state == "running":
                if console.fancy:
                    click.echo(f"\r{_progress(now)} ", nl=False, err=True)
                await bulk.drive_one(begun.id, 0.5)
                if (now := await store.get(begun.id)).due_at > now.updated_at:
                    await _a_moment()
        finally:
            await notifier.close()
        return now

    page = with_pool(console, preview)
    if dry or not page.total:
        _preview(console, kind, page)
        return 0
    if not yes and not console.json:
        more = "more than " if page.total_is_estimate else ""
        click.confirm(f"{kind} {more}{page.total:,} tasks?", abort=True)
    operation = with_pool(console, work)
    if console.json:
        from dhara.api.shapes import operation_out

        sample = [task_row(task) for task in page.tasks]
        answer = BulkOut(
            count=page.total,
            count_is_estimate=page.total_is_estimate,
            sample=sample,
            operation=operation_out(operation),
        )
        console.answer(answer)
    else:
        _show(console, operation)
    return 0 if operation.state == "done" else 1


def _id(text: str) -> UUID:
    from uuid import UUID

    from dhara.errors import NotFound

    try:
        return UUID(text)
    except ValueError:
        raise NotFound(f"there is no operation {text}") from None


async def _a_moment() -> None:
    import asyncio

    await asyncio.sleep(0.5)


def _preview(console: Console, kind: str, page: Any) -> None:
    from dhara.api.shapes import BulkOut, task_row
    from dhara.cli.tables import ago, table

    if console.json:
        sample = [task_row(task) for task in page.tasks]
        console.answer(BulkOut(count=page.total, count_is_estimate=page.total_is_estimate, sample=sample))
        return
    more = "more than " if page.total_is_estimate else ""
    console.print(f"{kind} would change {more}{page.total:,} tasks")
    rows = [(str(t.id), t.type, t.queue, ago(t.updated_at), t.last_error or t.reason or "") for t in page.tasks]
    if rows:
        console.print(table(("ID", "TYPE", "QUEUE", "CHANGED", "LAST ERROR"), rows, fancy=console.fancy))


def _on_operations(console: Console, work: Callable[[Any], Any]) -> Any:
    from dhara.cli.database import with_pool
    from dhara.store.operations import Operations

    return with_pool(console, lambda pool: work(Operations(pool, pool.settings.schema)))


def _show(console: Console, operation: Operation) -> None:
    from dhara.api.shapes import operation_out
    from dhara.cli.tables import pairs, when

    if console.json:
        console.answer(operation_out(operation))
        return
    values = [
        ("operation", operation.id),
        ("kind", operation.kind),
        ("state", operation.state),
        ("reason", operation.reason),
        ("done", _progress(operation)),
        ("skipped", operation.skipped or None),
        ("asked by", operation.asked_by),
        ("begun", when(operation.created_at)),
        ("ended", when(operation.finished_at)),
    ]
    console.print(pairs(values, fancy=console.fancy))


def _progress(operation: Operation) -> str:
    return f"{operation.done:,} of {operation.total:,}{'+' if operation.total_is_estimate else ''}"


def _gauge(counts: list[int]) -> str:
    most = max(counts, default=0)
    return "".join("·" if not n else _GAUGE[(n * (len(_GAUGE) - 1)) // most] for n in counts)


def _mute(console: Console, fingerprint: str, muted: bool) -> None:
    from dhara.api.shapes import group_out
    from dhara.cli.database import actor, with_pool
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
        console.print(f"{group.fingerprint}: {group.count:,} tasks, {'muted' if group.muted_at else 'not muted'}")
