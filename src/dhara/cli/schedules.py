"""`dhara schedules`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dhara.cli.completion import QUEUE, SCHEDULE, TYPE
from dhara.cli.console import Console, Group
from dhara.cli.values import Span, json_text

if TYPE_CHECKING:
    from dhara.store.pool import Pool
    from dhara.store.schedules import Fire, Schedule, Schedules

F = TypeVar("F", bound=Callable[..., Any])


def _definition(command: F) -> F:
    """The options that a schedule is defined by."""
    options = (
        click.option("--catch-up-most", type=int, help="Most missed fires that catch_up makes up for (100)."),
        click.option(
            "--overlap",
            type=click.Choice(["allow", "skip", "cancel_previous"]),
            help="If the task before is not final yet (allow).",
        ),
        click.option(
            "--missed",
            type=click.Choice(["coalesce", "skip", "catch_up"]),
            help="What becomes of missed fires (coalesce).",
        ),
        click.option("--jitter", type=Span(), help="Put tasks off by up to so long: 30s, 5m."),
        click.option("--timeout", type=Span(), help="How long an attempt may take: 30s, 5m."),
        click.option("--max-retries", type=int, help="Retries after the first attempt, 0 to 20 (5)."),
        click.option("--priority", type=int, help="0 to 100, higher first (0)."),
        click.option("--queue", shell_complete=QUEUE, help="The queue (default)."),
        click.option("--tz", "timezone", help="An IANA zone in which --cron is meant: Europe/Berlin (UTC)."),
        click.option("--every", type=Span(), help="So often: 30s, 5m, 1h."),
        click.option("--cron", help="Five fields, minute hour day month weekday: '0 3 * * *'; or @daily."),
    )
    for option in options:
        command = option(command)
    return command


@click.group(cls=Group)
def schedules() -> None:
    """List, make, change, pause and run schedules."""


@schedules.command("list", examples="dhara schedules list\ndhara schedules list --json | jq '.schedules[].next_at'")
@click.pass_obj
def list_schedules(console: Console) -> None:
    """Every schedule, and when it fires next."""
    from dhara.api.shapes import ScheduleList, schedule_out
    from dhara.cli.tables import ago, table

    found = _on_schedules(console, lambda store: store.all())
    if console.json:
        console.answer(ScheduleList([schedule_out(one) for one in found]))
        return
    rows = [
        (
            one.name,
            _when(one),
            one.type,
            "paused" if one.paused_at else ago(one.next_at) if one.next_at else "never",
            ago(one.last_at) if one.last_at else "never",
            one.source,
        )
        for one in found
    ]
    head = ("SCHEDULE", "WHEN", "TYPE", "NEXT", "LAST", "MADE BY")
    console.print(table(head, rows, fancy=console.fancy) if rows else "no schedule yet; see `dhara schedules create`")


@schedules.command("get", examples="dhara schedules get nightly")
@click.argument("name", shell_complete=SCHEDULE)
@click.pass_obj
def get(console: Console, name: str) -> None:
    """One schedule, its next fire times and its last ones."""
    _show(console, name, lambda store: store.get(name))


@schedules.command(
    "create",
    short_help="Make a schedule, which enqueues a task at its times.",
    examples="""
    dhara schedules create nightly report.make --cron '0 3 * * *' --tz Europe/Berlin
    dhara schedules create poll feed.poll '{"feed": 7}' --every 5m --jitter 30s --overlap skip
    """,
)
@click.argument("name", shell_complete=SCHEDULE)
@click.argument("type", shell_complete=TYPE)
@click.argument("payload", default="{}")
@_definition
@click.pass_obj
def create(console: Console, /, name: str, type: str, payload: str, **given: Any) -> None:
    """Make the schedule NAME, which enqueues a task of TYPE with PAYLOAD, a JSON value ({}), whenever it fires."""
    from dhara.cli.database import actor
    from dhara.errors import InvalidTask

    text = _text(payload)

    async def work(store: Schedules) -> Schedule:
        from dhara.domain.plan import spec_of

        made = await store.create(spec_of({"name": name, "type": type} | _given(given), text), actor())
        if made is None:
            raise InvalidTask(
                [("name", f"there is a schedule {name!r} already; change it by `dhara schedules update`")]
            )
        return made

    _show(console, name, work)


@schedules.command("update", examples="dhara schedules update nightly --cron '0 4 * * *'")
@click.argument("name", shell_complete=SCHEDULE)
@click.option("--type", shell_complete=TYPE, help="Enqueue tasks of this type.")
@click.option("--payload", help="A JSON value in place of its payload; `-` reads it from standard input.")
@_definition
@click.pass_obj
def update(console: Console, /, name: str, payload: str | None, **given: Any) -> None:
    """Change a schedule; what is not given stays as it is."""
    from dhara.cli.database import actor

    text = None if payload is None else _text(payload)

    async def work(store: Schedules) -> Schedule:
        from dhara.api.schedules import merged
        from dhara.domain.plan import spec_of

        standing = await store.get(name)
        spec = spec_of(merged(standing, _given(given)), standing.payload if text is None else text)
        return await store.update(spec, actor())

    _show(console, name, work)


@schedules.command("pause", examples="dhara schedules pause nightly")
@click.argument("name", shell_complete=SCHEDULE)
@click.pass_obj
def pause(console: Console, name: str) -> None:
    """Let a schedule fire no more."""
    _act(console, name, "pause")


@schedules.command("resume", examples="dhara schedules resume nightly")
@click.argument("name", shell_complete=SCHEDULE)
@click.pass_obj
def resume(console: Console, name: str) -> None:
    """Let a schedule fire again, from its next fire time on."""
    _act(console, name, "resume")


@schedules.command("delete", examples="dhara schedules delete nightly")
@click.argument("name", shell_complete=SCHEDULE)
@click.pass_obj
def delete(console: Console, name: str) -> None:
    """Delete a schedule; its tasks stay."""
    from dhara.cli.database import actor

    _on_schedules(console, lambda store: store.delete(name, actor()))
    if console.json:
        console.answer({"deleted": name})
    else:
        console.print(f"{name} is deleted")


@schedules.command(
    "declare", short_help="Make the schedules that a module declares.", examples="dhara schedules declare tasks"
)
@click.argument("module", metavar="MODULE[:REGISTRY]")
@click.pass_obj
def declare(console: Console, module: str) -> None:
    """Make or change the schedules that MODULE's registry declares, as its workers do when their database role may."""
    from dhara.api.shapes import ScheduleList, schedule_out
    from dhara.worker.entry import load_registry

    console.settings()
    name, _, registry = module.partition(":")
    specs = load_registry(name, registry or "tasks").schedules

    async def work(store: Schedules) -> list[Schedule]:
        await store.declare(specs)
        return [await store.get(spec.name) for spec in specs]

    found = _on_schedules(console, work)
    if console.json:
        console.answer(ScheduleList([schedule_out(one) for one in found]))
    else:
        console.print("\n".join(f"{one.name}: {_when(one)}" for one in found) or "it declares no schedule")


@schedules.command("run", examples="dhara schedules run nightly")
@click.argument("name", shell_complete=SCHEDULE)
@click.pass_obj
def run(console: Console, name: str) -> None:
    """Fire a schedule now, beside its plan; answers the task's id."""
    from dhara.cli.database import actor, with_pool
    from dhara.maintenance.scheduler import Scheduler

    task = with_pool(console, lambda pool: Scheduler(pool, pool.settings.schema).run_now(name, actor()))
    if console.json:
        console.answer({"task_id": task})
    else:
        console.print(str(task))


def _act(console: Console, name: str, verb: str) -> None:
    from dhara.cli.database import actor

    async def work(store: Schedules) -> Schedule:
        await getattr(store, verb)(name, actor())
        return await store.get(name)

    _show(console, name, work)


def _on_schedules(console: Console, work: Callable[[Schedules], Awaitable[Any]]) -> Any:
    from dhara.cli.database import with_pool
    from dhara.store.schedules import Schedules

    return with_pool(console, lambda pool: work(Schedules(pool, pool.settings.schema)))


def _show(console: Console, name: str, work: Callable[[Schedules], Awaitable[Schedule]]) -> None:
    from dhara.api.shapes import schedule_out
    from dhara.cli.database import with_pool
    from dhara.cli.tables import ago, pairs, span, table, when
    from dhara.store.schedules import Schedules

    async def whole(pool: Pool) -> tuple[Schedule, list[Any], list[Fire]]:
        store = Schedules(pool, pool.settings.schema)
        one = await work(store)
        return one, one.timing(one.anchor).upcoming(await store.now(), 5), await store.fires(one.name)

    one, upcoming, fires = with_pool(console, whole)
    if console.json:
        console.answer(schedule_out(one, upcoming, fires))
        return
    values = [
        ("schedule", one.name),
        ("when", _when(one)),
        ("state", f"paused by {one.paused_by} at {when(one.paused_at)}" if one.paused_at else "open"),
        ("enqueues", f"{one.type} in queue {one.queue}"),
        ("payload", one.payload),
        ("missed fires", one.missed),
        ("overlap", one.overlap),
        ("jitter", span(one.jitter) if one.jitter else None),
        ("made by", one.source),
        ("upcoming", ", ".join(str(when(at)) for at in upcoming) or "never"),
    ]
    console.print(pairs(values, fancy=console.fancy))
    if fires:
        rows = [(when(f.fire_at), ago(f.fire_at), f.outcome, f.status or "", str(f.task_id or "")) for f in fires]
        console.print()
        console.print(table(("FIRE TIME", "", "OUTCOME", "STATUS", "TASK"), rows, fancy=console.fancy))


def _when(one: Schedule) -> str:
    from dhara.cli.tables import span

    return f"{one.cron} {one.timezone}" if one.cron is not None else f"every {span(one.every or 0)}"


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _text(payload: str) -> str:
    return bytes(json_text(payload)).decode()
