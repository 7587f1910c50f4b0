"""`dhara queues`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from dhara.cli.completion import QUEUE
from dhara.cli.console import Console, Group

if TYPE_CHECKING:
    from dhara.store.pool import Pool
    from dhara.store.queues import Queue


@click.group(cls=Group)
def queues() -> None:
    """List, look at, pause and resume queues."""


@queues.command("list", examples="dhara queues list\ndhara queues list --json | jq '.queues[].name'")
@click.pass_obj
def list_queues(console: Console) -> None:
    """Every queue, with its figures."""
    from dhara.api.shapes import queue_out
    from dhara.cli.tables import span, table
    from dhara.store.queues import Queues
    from dhara.store.stats import Stats, Unroutable

    async def work(queues: Queues) -> tuple[list[Queue], list[Unroutable]]:
        return await queues.list(), await Stats(queues.db, queues.schema).unroutable()

    found, unroutable = _on_queues(console, work)
    if console.json:
        waiting = {"unroutable": unroutable} if unroutable else {}
        console.answer({"queues": [queue_out(queue, None) for queue in found], **waiting})
        return
    usual = console.settings().wait_objective
    rows = [
        (
            q.name,
            "paused" if q.paused_at else "open",
            f"{q.ready:,}{'+' if q.ready_capped else ''}",
            q.delayed,
            "" if q.limit is None else f"{q.limit:,}{' (full)' if q.full else ''}",
            q.running,
            q.dead,
            q.completed,
            ("" if q.oldest_ready_age is None else span(q.oldest_ready_age)) + (" (late)" if q.late(usual) else ""),
        )
        for q in found
    ]
    head = ("QUEUE", "STATE", "READY", "DELAYED", "LIMIT", "RUNNING", "DEAD", "COMPLETED", "OLDEST READY")
    console.print(table(head, rows, fancy=console.fancy) if rows else "no queue has held a task yet")
    for one in unroutable:
        text = f"unroutable: {one.count:,} ready in queue {one.queue}: no live worker knows the type {one.type}"
        console.print(click.style(text, fg="yellow") if console.fancy else text)


@queues.command("get", examples="dhara queues get mail")
@click.argument("name", shell_complete=QUEUE)
@click.pass_obj
def get(console: Console, name: str) -> None:
    """One queue's figures."""
    _show(console, name, _on_queues(console, lambda queues: queues.get(name)))


@queues.command("pause", examples="dhara queues pause mail")
@click.argument("name", shell_complete=QUEUE)
@click.pass_obj
def pause(console: Console, name: str) -> None:
    """Stop claiming from a queue; what runs goes on."""
    from dhara.cli.database import actor

    async def work(queues: Any) -> Any:
        await queues.pause(_name(name), actor())
        return await queues.get(name)

    _show(console, name, _on_queues(console, work))


@queues.command("resume", examples="dhara queues resume mail")
@click.argument("name", shell_complete=QUEUE)
@click.pass_obj
def resume(console: Console, name: str) -> None:
    """Start claiming from a queue again."""
    from dhara.cli.database import actor

    async def work(queues: Any) -> Any:
        await queues.resume(_name(name), actor())
        return await queues.get(name)

    _show(console, name, _on_queues(console, work, wake=name))


@queues.command(
    "retention",
    short_help="Keep a queue's final tasks for so long.",
    examples="dhara queues retention mail 7d\ndhara queues retention mail default",
)
@click.argument("name", shell_complete=QUEUE)
@click.argument("duration")
@click.pass_obj
def retention(console: Console, name: str, duration: str) -> None:
    """Keep a queue's final tasks, DEAD ones too, for DURATION (30m, 7d), or as the settings say (default)."""
    from dhara.cli.database import actor
    from dhara.cli.values import Span

    seconds = None if duration == "default" else Span().convert(duration, None, click.get_current_context())

    async def work(queues: Any) -> Any:
        await queues.retain(_name(name), seconds, actor())
        return await queues.get(name)

    _show(console, name, _on_queues(console, work))


@queues.command(
    "limit",
    short_help="Refuse enqueues while too many tasks are PENDING.",
    examples="dhara queues limit mail 100000\ndhara queues limit mail default",
)
@click.argument("name", shell_complete=QUEUE)
@click.argument("most", metavar="TASKS")
@click.pass_obj
def limit(console: Console, name: str, most: str) -> None:
    """Refuse enqueues while TASKS are PENDING in a queue, whoever enqueues, or as the settings say (default)."""
    if most != "default" and not (most.isascii() and most.isdigit() and len(most) <= 12):
        raise click.UsageError(f"{most!r} is neither a number of tasks nor `default`")
    from dhara.cli.database import actor

    number = None if most == "default" else int(most)

    async def work(queues: Any) -> Any:
        await queues.limit(_name(name), number, actor())
        # At once, also for enqueues by SQL.
        await queues.loads(False)
        return await queues.get(name)

    _show(console, name, _on_queues(console, work))


@queues.command(
    "objective",
    short_help="Ask for attention when a ready task has waited long.",
    examples="dhara queues objective mail 30s\ndhara queues objective mail default",
)
@click.argument("name", shell_complete=QUEUE)
@click.argument("duration")
@click.pass_obj
def objective(console: Console, name: str, duration: str) -> None:
    """Ask for attention when a ready task of a queue has waited for DURATION (30s, 5m), or as the settings say (default).

    The dashboard, `dhara queues list`, `dhara doctor` and the metrics go by it; nothing is refused or hurried."""
    from dhara.cli.database import actor
    from dhara.cli.values import Span
    from dhara.domain import limits

    seconds = None if duration == "default" else Span().convert(duration, None, click.get_current_context())
    low, high = limits.WAIT_OBJECTIVE_SECONDS
    if seconds is not None and not low <= seconds <= high:
        raise click.UsageError(f"{duration!r} is not a length of time from 1s to 365d")

    async def work(queues: Any) -> Any:
        await queues.aim(_name(name), seconds, actor())
        return await queues.get(name)

    _show(console, name, _on_queues(console, work))


def _on_queues(console: Console, work: Any, wake: str | None = None) -> Any:
    from dhara.cli.database import with_pool
    from dhara.store.queues import Queues
    from dhara.store.wakeup import Notifier

    async def inner(pool: Pool) -> Any:
        answer = await work(Queues(pool, pool.settings.schema))
        if wake is not None:
            notifier = Notifier(pool, pool.settings.schema)
            notifier.wake(wake)
            await notifier.close()
        return answer

    return with_pool(console, inner)


def _show(console: Console, name: str, queue: Queue) -> None:
    from dhara.api.shapes import queue_out
    from dhara.cli.tables import pairs, span, when

    if console.json:
        console.answer(queue_out(queue, None))
        return
    usual = console.settings().wait_objective
    age = None if queue.oldest_ready_age is None else span(queue.oldest_ready_age)
    goal = f"{span(queue.objective(usual))}{' (the general setting)' if queue.wait_objective is None else ''}"
    values = [
        ("queue", queue.name),
        ("state", f"paused by {queue.paused_by} at {when(queue.paused_at)}" if queue.paused_at else "open"),
        ("ready", f"{queue.ready}{'+' if queue.ready_capped else ''}"),
        ("oldest ready", age),
        ("objective", f"{goal}, late" if queue.late(usual) else goal),
        ("delayed", queue.delayed),
        ("running", queue.running),
        ("dead", queue.dead),
        ("enqueued", queue.enqueued),
        ("completed", queue.completed),
        ("retention", None if queue.retention is None else span(queue.retention)),
        ("limit", None if queue.limit is None else f"{queue.limit:,} PENDING{', full' if queue.full else ''}"),
    ]
    console.print(pairs(values, fancy=console.fancy))


def _name(name: str) -> str:
    from dhara.domain import limits
    from dhara.errors import InvalidTask

    if not limits.NAME.fullmatch(name):
        raise InvalidTask([("queue", limits.NAME_HINT)])
    return name
