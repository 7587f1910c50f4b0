"""`dhara enqueue` and `dhara tasks`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from dhara.cli.bulk import bulk, chosen, sure
from dhara.cli.completion import DEAD_TASK, OPEN_TASK, QUEUE, TASK, TYPE, WORKER
from dhara.cli.console import Command, Console, Group
from dhara.cli.values import Moment, Scope, Span, json_text

if TYPE_CHECKING:
    from dhara.client import AsyncClient
    from dhara.domain.task import Task
    from dhara.store.pool import Pool

STATES = ("PENDING", "RUNNING", "COMPLETED", "CANCELED", "DEAD")


@click.command(
    "enqueue",
    cls=Command,
    examples="""
    dhara enqueue echo '{"text": "hello"}'
    dhara enqueue email.send '{"to": "a@b.c"}' --queue mail --priority 50 --delay 5m
    dhara enqueue report.make --idempotency-key report-2026-01-31 --wait
    cat payload.json | dhara enqueue import.rows -
    """,
)
@click.argument("type", shell_complete=TYPE)
@click.argument("payload", default="{}")
@click.option("--queue", shell_complete=QUEUE, help="The queue (default).")
@click.option("--priority", type=int, help="0 to 100, higher first (0).")
@click.option("--max-retries", type=int, help="Retries after the first attempt, 0 to 20 (5).")
@click.option("--delay", type=Span(), help="Not before so long from now: 30s, 5m.")
@click.option("--run-at", type=Moment(), help="Not before this time: 2026-01-31T12:00:00Z.")
@click.option("--expires-at", type=Moment(), help="DEAD if it has not started by this time.")
@click.option("--timeout", type=Span(), help="How long an attempt may take: 30s, 5m.")
@click.option("--idempotency-key", help="Same type and key, same task: a second enqueue finds the first one's.")
@click.option("--unique-key", help="Of its type, no other task with this key beside it.")
@click.option("--unique-for", type=Scope(), help="pending, open (until it is final), or a duration (open).")
@click.option(
    "--on-conflict",
    type=click.Choice(["keep", "replace", "reschedule"]),
    help="What becomes of the PENDING task with that key (keep).",
)
@click.option("--retention", type=Span(), help="How long it is kept once it is final: 7d, 12h.")
@click.option("--concurrency-key", help="Tasks with the same key share a limit.")
@click.option("--tag", "tags", multiple=True, help="A tag; repeatable.")
@click.option("--traceparent", help="A W3C trace context.")
@click.option("--wait", is_flag=True, help="Wait until it is final, and show the result.")
@click.option("--wait-timeout", type=Span(), default="30s", show_default=True, help="How long to wait.")
@click.pass_obj
def enqueue(
    console: Console,
    /,
    type: str,
    payload: str,
    wait: bool,
    wait_timeout: float,
    tags: tuple[str, ...],
    **options: Any,
) -> int:
    """Enqueue one task of TYPE with PAYLOAD, a JSON value ({}); `-` reads it from standard input."""
    from dhara.api.shapes import batched_out
    from dhara.cli.database import with_client

    value = json_text(payload)

    async def work(client: AsyncClient) -> tuple[Task, bool]:
        handle = await client.enqueue(type, value, tags=tags or None, **options)
        return (await client.wait(handle.id, wait_timeout) if wait else await client.get(handle.id)), handle.created

    task, created = with_client(console, work)
    if console.json:
        console.answer(batched_out(task, created))
    elif wait:
        _show(console, task)
    elif console.fancy:
        console.print(f"{task.id}  {'enqueued' if created else 'stood already'}: {task.type} in queue {task.queue}")
    else:
        console.print(str(task.id))
    return _code(task) if wait else 0


@click.group(cls=Group)
def tasks() -> None:
    """List, look at, cancel, retry and wait for tasks."""


@tasks.command(
    "list",
    examples="""
    dhara tasks list
    dhara tasks list --status DEAD --type email.send --limit 100
    dhara tasks list --queue mail --due ready --json | jq '.tasks[].id'
    """,
)
@click.option("--status", multiple=True, type=click.Choice(STATES, case_sensitive=False), help="Repeatable.")
@click.option("--type", shell_complete=TYPE, help="The task type.")
@click.option("--queue", shell_complete=QUEUE, help="The queue.")
@click.option("--retrying", is_flag=True, help="PENDING after a failure.")
@click.option("--due", type=click.Choice(["ready", "delayed"]), help="PENDING and due, or not yet.")
@click.option("--worker", type=click.UUID, shell_complete=WORKER, help="RUNNING on this worker.")
@click.option("--tag", help="With this tag.")
@click.option("--created-after", type=Moment(), help="Enqueued after this time.")
@click.option("--created-before", type=Moment(), help="Enqueued before this time.")
@click.option("-q", "--q", help="Text to look for in id, type, key, error and payloads of up to 8 KiB.")
@click.option("--limit", type=click.IntRange(1, 500), default=20, show_default=True, help="Most tasks.")
@click.option("--offset", type=click.IntRange(0), default=0, help="Skip so many.")
@click.option("--after", type=click.UUID, help="Go on after this id, the last of the page before.")
@click.pass_obj
def list_tasks(console: Console, /, limit: int, offset: int, **wanted: Any) -> None:
    """Tasks, newest first."""
    from dhara.api.shapes import TaskList, task_row
    from dhara.cli.database import with_client
    from dhara.cli.tables import ago, table

    wanted["status"] = [state.upper() for state in wanted["status"]]
    page = with_client(console, lambda client: client.list(limit=limit, offset=offset, **wanted))
    if console.json:
        rows = [task_row(task) for task in page.tasks]
        following = str(page.next) if page.next else None
        console.answer(
            TaskList(
                tasks=rows,
                limit=limit,
                offset=offset,
                total=page.total,
                total_is_estimate=page.total_is_estimate,
                next_cursor=following,
            )
        )
        return
    if not page.tasks:
        console.print("no such task")
        return
    shown = [
        (
            str(t.id),
            t.type,
            t.queue,
            str(t.status),
            f"{t.attempts}",
            ago(t.created_at),
            t.last_error or t.reason or "",
        )
        for t in page.tasks
    ]
    console.print(
        table(
            ("ID", "TYPE", "QUEUE", "STATUS", "ATTEMPTS", "ENQUEUED", "LAST ERROR"),
            shown,
            fancy=console.fancy,
        )
    )
    if console.fancy:
        total = f"{'about ' if page.total_is_estimate else ''}{page.total:,}"
        more = f"; go on with --after {page.next}" if page.next else ""
        console.print(click.style(f"{len(shown)} of {total}{more}", dim=True))


@tasks.command("get", examples="dhara tasks get 01890a5d-ac96-774b-bcce-b302099a8057")
@click.argument("id", shell_complete=TASK)
@click.pass_obj
def get(console: Console, id: str) -> None:
    """One task, with payload and result."""
    from dhara.cli.database import with_pool
    from dhara.client.asynchronous import known_id
    from dhara.store.tasks import Tasks
    from dhara.store.workers import Workers

    async def work(pool: Pool) -> tuple[Task, bool]:
        task = await Tasks(pool, pool.settings.schema).get(known_id(id))
        live = [w for w in await Workers(pool, pool.settings.schema).recent() if w.state in ("live", "draining")]
        return task, any(task.type in worker.types for worker in live)

    task, routable = with_pool(console, work)
    _say(console, task)
    if task.status == "PENDING" and not routable and not console.json:
        text = f"unroutable: no live worker knows the type {task.type}; the task waits for one"
        console.print(click.style(text, fg="yellow") if console.fancy else text)


@tasks.command(
    "cancel",
    short_help="Cancel a task, or by a filter many.",
    examples="""
    dhara tasks cancel 01890a5d-ac96-774b-bcce-b302099a8057 --reason 'sent by hand'
    dhara tasks cancel --type newsletter.send --dry-run
    """,
)
@click.argument("id", required=False, shell_complete=OPEN_TASK)
@click.option("--reason", help="Kept in the history of the task ID (canceled by an operator).")
@chosen
@sure
@click.pass_obj
def cancel(console: Console, /, id: str | None, reason: str | None, **given: Any) -> int:
    """Cancel a PENDING task, ask a RUNNING one to stop; or, by a filter, in bulk."""
    if id is None:
        if reason is not None:
            raise click.UsageError("--reason belongs to the task ID")
        return bulk(console, "cancel", given)
    if any(given.values()):
        raise click.UsageError("ID alone says which task: leave out filters, --all, --yes and --dry-run")
    _cancel(console, id, reason or "canceled by an operator")
    return 0


def _cancel(console: Console, id: str, reason: str) -> None:
    from dhara.errors import WrongState

    async def work(client: AsyncClient) -> Task:
        found = await client.cancel(id, reason)
        if found in ("COMPLETED", "DEAD"):
            raise WrongState(found, "only PENDING and RUNNING tasks can be canceled")
        return await client.get(id)

    _answer(console, work)


@tasks.command(
    "retry",
    examples="""
    dhara tasks retry 01890a5d-ac96-774b-bcce-b302099a8057
    dhara tasks retry 01890a5d-ac96-774b-bcce-b302099a8057 --payload '{"to": "right@b.c"}' --queue mail
    """,
)
@click.argument("id", shell_complete=DEAD_TASK)
@click.option("--queue", shell_complete=QUEUE, help="Move it to this queue.")
@click.option("--priority", type=int, help="0 to 100.")
@click.option("--payload", help="A JSON value in place of its payload; `-` reads it from standard input.")
@click.option("--run-at", type=Moment(), help="Not before this time.")
@click.pass_obj
def retry(console: Console, /, id: str, payload: str | None, **changes: Any) -> None:
    """Send a DEAD task back to PENDING, optionally changed."""
    value = None if payload is None else json_text(payload)
    _answer(console, lambda client: client.retry(id, payload=value, **changes))


@tasks.command("logs", examples="dhara tasks logs 01890a5d-ac96-774b-bcce-b302099a8057")
@click.argument("id", shell_complete=TASK)
@click.pass_obj
def logs(console: Console, id: str) -> None:
    """A task's history, oldest first."""
    from dhara.api.shapes import log_out
    from dhara.cli.database import with_client
    from dhara.cli.tables import table, when

    found = with_client(console, lambda client: client.logs(id))
    if console.json:
        console.answer({"logs": [log_out(entry) for entry in found]})
        return
    rows = [
        (
            when(e.at),
            e.event,
            e.attempt or "",
            f"{e.from_state or '·'} → {e.to_state}" if e.to_state else "",
            e.reason,
        )
        for e in found
    ]
    console.print(table(("AT", "EVENT", "ATTEMPT", "STATES", "REASON"), rows, fancy=console.fancy))


@tasks.command(
    "attempts",
    short_help="A task's executions, with errors and logs.",
    examples="dhara tasks attempts 01890a5d-ac96-774b-bcce-b302099a8057",
)
@click.argument("id", shell_complete=TASK)
@click.pass_obj
def attempts(console: Console, id: str) -> None:
    """A task's executions, oldest first, with errors and what the handler logged."""
    import msgspec

    from dhara.api.shapes import attempt_out
    from dhara.cli.database import with_client
    from dhara.cli.tables import clean, span, when

    async def work(client: AsyncClient) -> Any:
        await client.get(id)
        return await client.attempts(id)

    found = with_client(console, work)
    if console.json:
        console.answer({"attempts": [attempt_out(attempt) for attempt in found]})
        return
    for a in found:
        took = f" after {span((a.ended_at - a.started_at).total_seconds())}" if a.ended_at else ""
        reason = f" ({clean(a.reason)})" if a.reason else ""
        console.print(
            f"attempt {a.attempt}  {when(a.started_at)}  {a.outcome or 'RUNNING'}{took}{reason}  worker {a.worker_id}"
        )
        for line in msgspec.json.decode(a.logs) if a.logs else ():
            console.print(clean(f"  {line['at']}  {line['level']:<7}  {line['message']}"))
        if a.error:
            for line in _error_lines(msgspec.json.decode(a.error)):
                console.print("  " + clean(line))
    if not found:
        console.print("it has not been tried yet")


@tasks.command("explain", examples="dhara tasks explain 01890a5d-ac96-774b-bcce-b302099a8057")
@click.argument("id", shell_complete=TASK)
@click.pass_obj
def explain(console: Console, id: str) -> None:
    """Why a task is not running, or what became of it."""
    from dhara.api.shapes import explain_out
    from dhara.cli.database import with_pool
    from dhara.cli.tables import clean
    from dhara.client.asynchronous import known_id
    from dhara.domain.explain import explain
    from dhara.store.tasks import Tasks

    facts = with_pool(console, lambda pool: Tasks(pool, pool.settings.schema).facts(known_id(id)))
    reasons = explain(facts, console.settings().stale_after)
    if console.json:
        console.answer(explain_out(known_id(id), facts.status, reasons))
        return
    for reason in reasons:
        console.print(f"{clean(reason.text)}  ({reason.code})")


@tasks.command("wait", examples="dhara tasks wait 01890a5d-ac96-774b-bcce-b302099a8057 --timeout 5m")
@click.argument("id", shell_complete=OPEN_TASK)
@click.option("--timeout", type=Span(), default="30s", show_default=True, help="How long to wait.")
@click.pass_obj
def wait(console: Console, id: str, timeout: float) -> int:
    """Wait until a task is final. Exits 0 if it is COMPLETED, 1 if DEAD or CANCELED, 75 if not in time."""

    async def work(client: AsyncClient) -> Task:
        await client.get(id)
        return await client.wait(id, timeout)

    return _code(_answer(console, work))


def _answer(console: Console, work: Callable[[AsyncClient], Any]) -> Task:
    from dhara.cli.database import with_client

    task: Task = with_client(console, work)
    _say(console, task)
    return task


def _say(console: Console, task: Task) -> None:
    from dhara.api.shapes import task_out

    if console.json:
        console.answer(task_out(task))
    else:
        _show(console, task)


def _show(console: Console, task: Task) -> None:
    from dhara.cli.tables import ago, pairs, span, when

    took = None
    if task.started_at and task.completed_at:
        took = span((task.completed_at - task.started_at).total_seconds())
    values: list[tuple[str, object]] = [
        ("id", task.id),
        ("type", task.type),
        ("status", str(task.status)),
        ("reason", task.reason),
        ("queue", task.queue),
        ("priority", task.priority),
        ("attempts", f"{task.attempts} ({task.failures} of {task.max_retries + 1} failures)"),
        ("run at", f"{when(task.run_at)} ({ago(task.run_at)})" if task.status == "PENDING" else None),
        ("enqueued", f"{when(task.created_at)} ({ago(task.created_at)})"),
        ("started", when(task.started_at)),
        (
            "ended",
            f"{when(task.completed_at)}{f' (took {took})' if took else ''}" if task.completed_at else None,
        ),
        ("cancel asked", when(task.cancel_requested_at)),
        ("expires", when(task.expires_at)),
        ("timeout", span(task.timeout) if task.timeout else None),
        ("key", task.idempotency_key),
        ("tags", ", ".join(task.tags) or None),
        ("worker", task.locked_by if task.status == "RUNNING" else None),
        ("progress", task.progress),
        ("last error", task.last_error),
        ("payload", task.payload),
        ("result", task.result),
    ]
    console.print(pairs(values, fancy=console.fancy))


def _error_lines(error: Any) -> list[str]:
    if isinstance(error, dict):
        trace = error.get("traceback")
        lines = trace if isinstance(trace, list) else str(trace).splitlines() if trace else []
        return [str(line) for line in lines] or [f"{error.get('type', 'error')}: {error.get('message', '')}"]
    return str(error).splitlines()


def _code(task: Task) -> int:
    return 0 if task.status == "COMPLETED" else 1
