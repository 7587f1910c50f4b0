"""The demo's live table: redrawn in place on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from msgspec import Struct

from dhara.cli.console import Console
from dhara.cli.tables import clean, coloured, span, table
from dhara.client import AsyncClient
from dhara.demo import always_fail, charge_card, echo, send_email, slow_task
from dhara.domain.lifecycle import FINAL, State
from dhara.domain.task import Call, Task

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_FRAME = 0.1
# Seconds: long enough that all attempts fail, over when somebody has found out.
OUTAGE = 8.0
_HEAD = ("", "TYPE", "STATUS", "ATTEMPTS", "TOOK", "WHAT HAPPENS")


def calls() -> list[Call]:
    """What the demo enqueues."""
    return [
        echo.s(hello="world"),
        send_email.s(to="ada@example.org", subject="Welcome"),
        always_fail.s(),
        slow_task.s(seconds=3.0),
    ]


def leftovers(now: datetime) -> list[Call]:
    """What whoever opens the page finds: something that runs, and something that has failed and can be mended."""
    until = (now + timedelta(seconds=OUTAGE)).isoformat(timespec="seconds")
    return [
        *(charge_card.s(order=order, cents=1_990, down_until=until) for order in (1001, 1002, 1003)),
        slow_task.s(seconds=300.0, steps=100),
    ]


class Verdict(Struct, frozen=True):
    """How the demo ended; `problem` is None if all tasks are where they should be."""

    tasks: list[Task]
    seconds: float
    problem: str | None


async def show(client: AsyncClient, console: Console, limit: float) -> Verdict:
    """Enqueue the demo's tasks and show them until they settle, at most `limit` seconds."""
    started = time.monotonic()
    ids = [handle.id for handle in await client.enqueue_many(calls())]
    screen = _Screen(console)
    try:
        while True:
            tasks = await _fetch(client, ids)
            screen.draw(tasks)
            seconds = time.monotonic() - started
            if all(task.status in FINAL for task in tasks) or seconds > limit:
                return Verdict(tasks, seconds, problem(tasks, limit))
            await asyncio.sleep(_FRAME)
    finally:
        screen.close()


async def _fetch(client: AsyncClient, ids: Sequence[UUID]) -> list[Task]:
    return list(await asyncio.gather(*(client.get(id) for id in ids)))


def problem(tasks: Sequence[Task], limit: float) -> str | None:
    """What is not as it should be, in one line."""
    for task in tasks:
        if task.status not in FINAL:
            return f"the demo did not settle within {limit:g} s: {task.type} is {task.status}"
        wanted = State.DEAD if task.type == always_fail.type else State.COMPLETED
        if task.status is not wanted:
            return f"the demo went wrong: {task.type} is {task.status}, not {wanted}: {task.last_error or task.reason}"
        if task.type == always_fail.type and task.attempts != task.max_retries + 1:
            return f"the demo went wrong: {task.type} was tried {task.attempts} times, not {task.max_retries + 1}"
    return None


class _Screen:
    """Where the table is drawn."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lines = 0
        self._frame = 0
        self._seen: dict[UUID, tuple[State, int]] = {}

    def draw(self, tasks: Sequence[Task]) -> None:
        if self._console.json:
            return
        if self._console.fancy:
            self._redraw(tasks)
        else:
            self._report(tasks)

    def close(self) -> None:
        if self._lines:
            sys.stdout.write("\x1b[?25h")
            sys.stdout.flush()

    def _redraw(self, tasks: Sequence[Task]) -> None:
        self._frame += 1
        rows = [(self._mark(t), t.type, str(t.status), _attempts(t), _took(t), what(t)) for t in tasks]
        lines = table(_HEAD, rows, fancy=True).splitlines()
        back = f"\x1b[{self._lines}F" if self._lines else "\x1b[?25l"
        sys.stdout.write(back + "".join(f"{line}\x1b[K\n" for line in lines))
        sys.stdout.flush()
        self._lines = len(lines)

    def _report(self, tasks: Sequence[Task]) -> None:
        for task in tasks:
            now = (task.status, task.attempts)
            if self._seen.get(task.id) != now:
                self._seen[task.id] = now
                at = datetime.now(UTC).strftime("%H:%M:%S")
                attempts = f"attempt {_attempts(task)}" if task.attempts else ""
                self._console.print(
                    f"{at}  {task.type:<11}  {task.status:<9}  {attempts:<12}  {clean(what(task))}".rstrip()
                )

    def _mark(self, task: Task) -> str:
        match task.status:
            case State.RUNNING:
                return _SPINNER[self._frame % len(_SPINNER)]
            case State.COMPLETED:
                return "✓"
            case State.DEAD | State.CANCELED:
                return "✗"
            case _:
                return "·"


def _attempts(task: Task) -> str:
    return f"{task.attempts} of {task.max_retries + 1}"


def _took(task: Task) -> str:
    end = task.completed_at or datetime.now(UTC)
    return span((end - task.created_at).total_seconds())


def what(task: Task) -> str:
    """What a task is about, for people."""
    match task.status:
        case State.PENDING if task.failures:
            wait = (task.run_at - datetime.now(UTC)).total_seconds()
            return f"tries again in {span(max(0.0, wait))}: {task.last_error}"
        case State.PENDING:
            return "waits for a worker"
        case State.RUNNING:
            return "runs"
        case State.COMPLETED:
            return task.result or ""
        case _:
            return f"{task.reason}: {task.last_error}"


def summary(verdict: Verdict, fancy: bool) -> str:
    """One line on how it ended well."""
    counts = {state: sum(task.status is state for task in verdict.tasks) for state in State}
    shown = ", ".join(f"{n} {coloured(state, fancy)}" for state, n in counts.items() if n)
    text = f"{len(verdict.tasks)} tasks after {span(verdict.seconds)}: {shown}"
    return f"{text}. always_fail is DEAD after its retries, as it should be."
