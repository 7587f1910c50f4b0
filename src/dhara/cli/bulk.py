"""What is done to many tasks at once: the options that choose them, the preview, the drive; and `dhara operations`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dhara.cli.completion import OPERATION, QUEUE, TYPE
from dhara.cli.console import Console
from dhara.cli.console import Group as CommandGroup
from dhara.cli.values import Moment

if TYPE_CHECKING:
    from uuid import UUID

    from dhara.domain.canary import Plan
    from dhara.store.operations import Operation
    from dhara.store.pool import Pool
    from dhara.store.search import Filter

F = TypeVar("F", bound=Callable[..., Any])


def chosen(command: F) -> F:
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


def sure(command: F) -> F:
    """The options of a bulk command: all, a preview, no question."""
    options = (
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--dry-run", is_flag=True, help="Count and show some, change nothing."),
        click.option("--all", "everything", is_flag=True, help="All of them; needed where no filter is given."),
    )
    for option in options:
        command = option(command)
    return command


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
    options = {param.name: param.opts[-1] for param in click.get_current_context().command.params}
    if empty := [options[name] for name, value in given.items() if value == ""]:
        # Such as of a variable that is not set: it would mean every task.
        raise click.UsageError(f"{empty[0]} is empty; say what to look for, or leave it out")
    wanted = filter_of(kind, given)
    if not everything and wanted == filter_of(kind, {}):
        raise click.UsageError("say which tasks by a filter (--type, --queue, --group, --id, ...), or say --all")
    return wanted


def filter_of(kind: str, given: dict[str, Any]) -> Filter:
    from dhara.maintenance.bulk import base
    from dhara.store.search import Filter

    return base(kind, Filter(**given, in_payload=given.get("q") is not None))


def bulk(console: Console, kind: str, given: dict[str, Any], canary: Plan | None = None) -> int:
    """Preview, ask, begin and drive an operation to its end. Exits 1 if it ended otherwise than done."""
    from dhara.api.shapes import BulkOut, task_row
    from dhara.cli.database import actor, with_pool
    from dhara.cli.tables import many
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
        click.confirm(f"{kind} {more}{many(page.total, 'task')}?", abort=True)
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
    from dhara.cli.tables import ago, many, table

    if console.json:
        sample = [task_row(task) for task in page.tasks]
        console.answer(BulkOut(count=page.total, count_is_estimate=page.total_is_estimate, sample=sample))
        return
    more = "more than " if page.total_is_estimate else ""
    console.print(f"{kind} would change {more}{many(page.total, 'task')}")
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
