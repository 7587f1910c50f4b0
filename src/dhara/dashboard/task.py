"""One task, whole: where it stands, what happened to it, and what can be done with it."""

from __future__ import annotations

import json
import shlex
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote
from uuid import UUID

import msgspec
from msgspec import Struct
from starlette.responses import Response

from dhara.dashboard.visit import Refusal, Visit, missing
from dhara.dashboard.words import duration
from dhara.domain import limits
from dhara.domain.access import PAYLOAD
from dhara.domain.explain import explain
from dhara.domain.lifecycle import FINAL, State
from dhara.domain.task import Attempt, LogEntry, Task
from dhara.domain.validate import parse_time
from dhara.errors import WrongState

MOST_ENTRIES = 500
# Shorter than this share of the whole (in per mille) a piece of the strip would not be seen.
LEAST_PIECE = 4.0


class Piece(Struct, frozen=True):
    """A stretch of a task's life in the strip: `x` and `width` in percent."""

    x: float
    width: float
    kind: str
    title: str


class Line(Struct, frozen=True):
    """A log line of the handler."""

    at: str
    level: str
    text: str


class Shown(Struct, frozen=True):
    """An attempt with its JSON texts read; texts that are not there are empty."""

    attempt: Attempt
    seconds: float
    kind: str
    message: str
    traceback: str
    lines: list[Line]


async def show(visit: Visit) -> Response:
    id = visit.id()
    desk = visit.desk
    snapshot = await desk.pulse.snapshot()
    now = snapshot.now()
    task = await desk.tasks.get(id)
    if not visit.sees(task.queue):
        raise missing("task")
    task = hidden(task, visit)
    attempts = await desk.tasks.attempts(id, MOST_ENTRIES)
    logs = await desk.tasks.logs(id, MOST_ENTRIES)
    return visit.page(
        "task.html",
        now=now,
        task=task,
        final=task.status in FINAL,
        attempts=[shown(attempt, now) for attempt in reversed(attempts)],
        entries=list(reversed(logs)),
        strip=strip(task, logs, now),
        reasons=explain(await desk.tasks.facts(id), desk.stale_after),
        progress=progress(task.progress),
        curl=as_curl(task, visit),
        python=as_python(task),
        path=f"/tasks/{task.id}",
        trace=trace_of(task, desk.trace_url),
    )


def trace_of(task: Task, template: str) -> tuple[str, str]:
    """The id of the task's trace, and where it is shown; empty for what there is not."""
    parts = (task.traceparent or "").split("-")
    id = parts[1] if len(parts) > 1 else ""
    return id, template.replace("{trace_id}", quote(id, safe="")) if id else ""


def hidden(task: Task, visit: Visit) -> Task:
    """`task` as this visitor may see it."""
    if not visit.may(PAYLOAD):
        return msgspec.structs.replace(
            task, payload="null", result=None if task.result is None else "null", progress=None
        )
    mask = visit.desk.mask.apply
    return msgspec.structs.replace(
        task, payload=mask(task.payload), result=mask(task.result), progress=mask(task.progress)
    )


async def retry(visit: Visit) -> Response:
    id = visit.id()
    change = changes(visit)
    task = await _own(visit, id)
    if not visit.sees(change.get("queue", task.queue)):
        raise missing("queue")
    try:
        await visit.desk.tasks.revive(id, **change, reason=f"revived by {visit.who()}", by=visit.who())
    except WrongState as error:
        return visit.back(f"/tasks/{id}", f"Not retried: {error}")
    if visit.desk.notifier is not None and change.get("run_at") is None:
        visit.desk.notifier.wake(change.get("queue") or task.queue)
    return visit.back(f"/tasks/{id}", "Sent back to PENDING.")


async def cancel(visit: Visit) -> Response:
    id = visit.id()
    await _own(visit, id)
    canceling = await visit.desk.tasks.request_cancel(id, f"canceled by {visit.who()}", by=visit.who())
    if canceling.worker is not None and visit.desk.notifier is not None:
        visit.desk.notifier.cancel(canceling.worker)
    said = {
        State.PENDING: "Canceled.",
        State.RUNNING: "Its handler has been asked to stop.",
    }.get(canceling.found, f"Nothing to cancel: it is {canceling.found} already.")
    return visit.back(f"/tasks/{id}", said)


async def _own(visit: Visit, id: UUID) -> Task:
    task = await visit.desk.tasks.get(id)
    if not visit.sees(task.queue):
        raise missing("task")
    return task


def changes(visit: Visit) -> dict[str, Any]:
    """What a form asks to change of a task that is revived. Raises `Refusal` naming the field."""
    change: dict[str, Any] = {}
    if queue := visit.field("queue"):
        if not limits.NAME.fullmatch(queue):
            raise Refusal(422, "The queue's name is wrong", limits.NAME_HINT)
        change["queue"] = queue
    if priority := visit.field("priority"):
        low, high = limits.PRIORITY
        if not priority.isdecimal() or not low <= int(priority[:9]) <= high:
            raise Refusal(422, "The priority is wrong", f"It is a number from {low} to {high}.")
        change["priority"] = int(priority)
    if payload := visit.field("payload"):
        change["payload"] = _payload(visit, payload)
    if delay := visit.field("delay"):
        change["run_at"] = _later(delay)
    return change


def _payload(visit: Visit, text: str) -> str:
    if not visit.may(PAYLOAD):
        raise Refusal(403, "Not for this key", "Changing a payload needs the scope read:payload.")
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Refusal(422, "The payload is not JSON", str(error)[:200]) from None
    if len(text.encode()) > limits.PAYLOAD_BYTES:
        raise Refusal(422, "The payload is too large", f"It holds at most {limits.PAYLOAD_BYTES // 1024} KiB.")
    return text


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _later(text: str) -> datetime:
    if (at := parse_time(text)) is not None:
        return at
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not limits.DELAY_SECONDS[0] <= seconds <= limits.DELAY_SECONDS[1]:
        raise Refusal(422, "The delay is wrong", "Give seconds, or a time such as 2026-01-31T12:00:00Z.")
    return datetime.now(UTC) + timedelta(seconds=seconds)


# --- what the page shows ------------------------------------------------------------------------------------


def shown(attempt: Attempt, now: datetime) -> Shown:
    error, lines = _read(attempt.error), _read(attempt.logs)
    if not isinstance(error, dict):
        error = {"message": attempt.error}
    return Shown(
        attempt,
        ((attempt.ended_at or now) - attempt.started_at).total_seconds(),
        str(error.get("class") or ""),
        str(error.get("message") or ""),
        str(error.get("traceback") or ""),
        [_line(line) for line in lines] if isinstance(lines, list) else [],
    )


def _line(line: Any) -> Line:
    if not isinstance(line, dict):
        return Line("", "", str(line))
    level = str(line.get("level") or "")
    return Line(str(line.get("at") or "")[11:23], level if level in _LEVELS else "info", str(line.get("message") or ""))


_LEVELS = frozenset({"debug", "info", "warning", "error"})


def progress(text: str | None) -> tuple[float | None, str]:
    """Percent, if there is one, and what the handler said."""
    value = _read(text)
    if not isinstance(value, dict):
        return None, ""
    percent = value.get("percent")
    said = str(value.get("message") or "")
    if isinstance(percent, int | float) and not isinstance(percent, bool):
        return min(100.0, max(0.0, float(percent))), said
    return None, said


def _read(text: str | None) -> Any:
    if not text:
        return None
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return None


def strip(task: Task, logs: list[LogEntry], now: datetime) -> list[Piece]:
    """The task's life as pieces of one line: waiting, running (by how it ended), at rest."""
    if len(logs) < 2:
        return []
    ends = [entry for entry in logs if entry.to_state]
    last = ends[-1].at if task.status in FINAL else now
    begin, whole = ends[0].at, max((last - ends[0].at).total_seconds(), 0.001)
    pieces = []
    for entry, following in zip(ends, [*ends[1:], None], strict=True):
        if entry.to_state in FINAL and following is None:
            break
        until = following.at if following else now
        seconds = max(0.0, (until - entry.at).total_seconds())
        kind = _kind(entry, following)
        width = max(seconds / whole * 100, LEAST_PIECE / 10)
        x = min((entry.at - begin).total_seconds() / whole * 100, 100 - width)
        pieces.append(Piece(round(max(0.0, x), 3), round(width, 3), kind, f"{_SAID[kind]} {duration(seconds)}"))
    return pieces


_SAID = {
    "wait": "waited",
    "run": "running for",
    "good": "ran, completed after",
    "bad": "ran, failed after",
    "other": "ran, left after",
    "dead": "dead for",
}


def _kind(entry: LogEntry, following: LogEntry | None) -> str:
    if entry.to_state == State.PENDING:
        return "wait"
    if entry.to_state == State.DEAD:
        return "dead"
    if following is None:
        return "run"
    return {"COMPLETED": "good", "RETRIED": "bad", "DEAD": "bad", "REAPED": "bad"}.get(following.event, "other")


def as_curl(task: Task, visit: Visit) -> str:
    """A command that enqueues the same again; the payload only for whoever may read it."""
    address = f"{visit.request.url.scheme}://{visit.request.url.netloc}/api/v1/tasks"
    body = _call(task, payload=visit.may(PAYLOAD))
    return f"curl -s {shlex.quote(address)} \\\n  -H 'content-type: application/json' \\\n  -d {shlex.quote(body)}"


def _call(task: Task, payload: bool) -> str:
    fields: list[tuple[str, str]] = [("type", json.dumps(task.type))]
    if payload:
        fields.append(("payload", task.payload))
    if task.queue != "default":
        fields.append(("queue", json.dumps(task.queue)))
    if task.priority:
        fields.append(("priority", str(task.priority)))
    return "{" + ", ".join(f'"{name}": {value}' for name, value in fields) + "}"


def as_python(task: Task) -> str:
    """The same with the library."""
    further = "".join(
        [
            f", queue={task.queue!r}" if task.queue != "default" else "",
            f", priority={task.priority}" if task.priority else "",
        ]
    )
    return (
        "async with AsyncClient(dsn) as dhara:\n"
        f"    task = await dhara.get({str(task.id)!r})\n"
        f"    await dhara.enqueue(task.type, json.loads(task.payload){further})"
    )
