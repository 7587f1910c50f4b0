"""Why is this task not running? From a few facts to reasons, the one that matters first. Pure.

    final     how it ended
    RUNNING   since when and where; or what is wrong with that: its worker is silent, a cancel request is not heeded
    PENDING   what stands in its way, in the order in which an operator would have to remove it; nothing: it is next

`CODES` is the table of codes; they are stable, the sentences are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from msgspec import Struct

from dhara.domain.lifecycle import State

# code -> when it is said
CODES: dict[str, str] = {
    "completed": "it is COMPLETED",
    "canceled": "it is CANCELED",
    "dead": "it is DEAD, and may be revived",
    "running": "it runs",
    "cancel_requested": "it runs although its cancellation was asked for: its handler has not heeded that yet",
    "worker_silent": "it runs on a worker that has not beaten for long; the reaper will take it back",
    "expired": "its expires_at has passed; maintenance will make it DEAD",
    "queue_paused": "its queue is paused",
    "no_worker": "no worker is alive",
    "type_unknown": "no live worker knows its type",
    "queue_unserved": "live workers know its type, but none serves its queue",
    "retrying": "it has failed and waits for its next attempt",
    "delayed": "it is not due yet",
    "suspect": "it was running when a process crashed, so it waits until it can run alone",
    "slots_busy": "every slot that could run it is busy",
    "waiting_in_line": "it is ready, and others come first",
    "next": "it is ready and next",
}


class Runner(Struct, frozen=True, kw_only=True):
    """A worker as an explanation names it. `beat_age` is seconds."""

    id: UUID
    host: str
    pid: int
    state: str
    beat_age: float
    beat_at: datetime


class Facts(Struct, frozen=True, kw_only=True):
    """What an explanation is made of, all seen at `now` by the database.

    `knowing` workers know the type, `serving` of them serve the queue too, with `slots` slots for it, `busy` of them taken.
    `ahead`: ready tasks that are claimed first, counted up to a cap. `rate`: tasks a second that its queue completed lately.
    `worker`: who runs it; `last_knowing`: who last knew its type, if nobody does. Durations are seconds.
    """

    now: datetime
    status: State
    type: str
    queue: str
    run_at: datetime
    attempts: int
    failures: int
    crashes: int
    max_retries: int
    started_at: datetime | None = None
    completed_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    expires_at: datetime | None = None
    reason: str | None = None
    last_error: str | None = None
    timeout: float | None = None
    paused_at: datetime | None = None
    paused_by: str | None = None
    live: int = 0
    knowing: int = 0
    serving: int = 0
    slots: int = 0
    busy: int = 0
    ahead: int = 0
    ahead_capped: bool = False
    rate: float | None = None
    worker: Runner | None = None
    last_knowing: Runner | None = None


class Reason(Struct, frozen=True):
    """A stable `code`, a sentence, and the facts behind it."""

    code: str
    text: str
    facts: dict[str, Any] = {}


def explain(facts: Facts, stale_after: float = 30.0) -> list[Reason]:
    """The reasons, the one that matters first; never empty. `stale_after`: seconds without a beat that make a worker lost."""
    match facts.status:
        case State.PENDING:
            found = list(_obstacles(facts))
            return found or [Reason("next", "It is ready and next; a worker with a free slot takes it within moments.")]
        case State.RUNNING:
            return list(_running(facts, stale_after))
        case _:
            return [_ended(facts)]


def _ended(f: Facts) -> Reason:
    at = f.completed_at or f.now
    known: dict[str, Any] = {"at": at, "attempts": f.attempts}
    if f.status is State.COMPLETED:
        took = f" after {span((at - f.started_at).total_seconds())}" if f.started_at else ""
        return Reason("completed", f"It is COMPLETED: attempt {f.attempts} ended at {moment(at)}{took}.", known)
    known |= _given(reason=f.reason, last_error=f.last_error)
    why = f": {f.reason}" if f.reason else ""
    if f.status is State.CANCELED:
        return Reason("canceled", f"It was CANCELED at {moment(at)}{why}.", known)
    error = f" Its last error: {_short(f.last_error).rstrip('.')}." if f.last_error else ""
    text = (
        f"It has been DEAD since {moment(at)}, after {_count(f.attempts, 'attempt')}{why}.{error} A retry revives it."
    )
    return Reason("dead", text, known)


def _running(f: Facts, stale_after: float) -> Iterator[Reason]:
    since = f.started_at or f.now
    seconds = (f.now - since).total_seconds()
    known: dict[str, Any] = {"since": since, "attempt": f.attempts, "seconds": round(seconds, 3)}
    where = "an unknown worker"
    if f.worker is not None:
        known["worker"] = f.worker
        where = f"worker {f.worker.host}:{f.worker.pid}"
    if f.worker is None or f.worker.state in ("stopped", "lost") or f.worker.beat_age > stale_after:
        silence = f" that has not beaten for {span(f.worker.beat_age)}" if f.worker else ""
        yield Reason(
            "worker_silent", f"It runs since {moment(since)} on {where}{silence}; the reaper takes it back.", known
        )
    if f.cancel_requested_at is not None:
        asked = (f.now - f.cancel_requested_at).total_seconds()
        text = f"Its cancellation was asked for {span(asked)} ago; its handler on {where} has not heeded it yet."
        yield Reason("cancel_requested", text, known | {"cancel_requested_at": f.cancel_requested_at})
    beat = f", which beat {span(f.worker.beat_age)} ago" if f.worker else ""
    text = f"It runs: attempt {f.attempts}, since {moment(since)} ({span(seconds)}), on {where}{beat}."
    yield Reason("running", text, known | _given(timeout=f.timeout))


def _obstacles(f: Facts) -> Iterator[Reason]:
    """What stands between a PENDING task and its start."""
    if f.expires_at is not None and f.expires_at <= f.now:
        text = f"It expired at {moment(f.expires_at)}; maintenance will make it DEAD."
        yield Reason("expired", text, {"expires_at": f.expires_at})
    if f.paused_at is not None:
        by = f.paused_by or "somebody"
        text = f"Its queue {f.queue} is paused since {moment(f.paused_at)}, by {by}; resume it."
        yield Reason("queue_paused", text, {"queue": f.queue, "paused_at": f.paused_at, "paused_by": by})
    yield from _workers(f)
    if f.run_at > f.now:
        yield _not_due(f)
    elif f.serving and f.paused_at is None:
        yield from _line(f)


def _workers(f: Facts) -> Iterator[Reason]:
    if f.knowing and f.serving:
        return
    known: dict[str, Any] = {"type": f.type, "queue": f.queue, "live_workers": f.live} | _given(last=f.last_knowing)
    if f.knowing:
        text = f"Of {_count(f.knowing, 'live worker')} with the type {f.type} none serves the queue {f.queue}."
        yield Reason("queue_unserved", text, known | {"knowing": f.knowing})
        return
    last = ""
    if f.last_knowing is not None:
        w = f.last_knowing
        last = f" The last that did was {w.host}:{w.pid}, {w.state}, last heard of at {moment(w.beat_at)}."
    if not f.live:
        yield Reason("no_worker", f"No worker is alive.{last} Start one that knows the type {f.type}.", known)
    else:
        workers = f"None of {_count(f.live, 'live worker')} knows the type {f.type}; it waits for one."
        yield Reason("type_unknown", workers + last, known)


def _not_due(f: Facts) -> Reason:
    wait = span((f.run_at - f.now).total_seconds())
    known: dict[str, Any] = {"run_at": f.run_at}
    if not f.failures:
        return Reason("delayed", f"It is not due until {moment(f.run_at)}, in {wait}.", known)
    left = max(0, f.max_retries + 1 - f.failures)
    known |= {"failures": f.failures, "attempts_left": left} | _given(last_error=f.last_error)
    error = f" after: {_short(f.last_error)}" if f.last_error else ""
    text = f"It failed {_count(f.failures, 'time')} and is tried again at {moment(f.run_at)}, in {wait}{error}"
    return Reason("retrying", text, known)


def _line(f: Facts) -> Iterator[Reason]:
    """Ready, and there are workers for it: what are they doing?"""
    if f.crashes:
        text = (
            f"It was running when a process crashed ({_count(f.crashes, 'time')}): a suspect, which runs alone and may"
            " have to wait until its worker runs nothing else."
        )
        yield Reason("suspect", text, {"crashes": f.crashes})
    about = f"more than {f.ahead:,}" if f.ahead_capped else f"{f.ahead:,}"
    known: dict[str, Any] = {"ahead": f.ahead, "ahead_is_estimate": f.ahead_capped}
    expected = ""
    if f.rate:
        seconds = (f.ahead + 1) / f.rate
        known |= {"rate": round(f.rate, 3), "expected_at": f.now + timedelta(seconds=seconds)}
        expected = f"; at {f.rate:,.3g} a second its turn is in about {span(seconds)}"
    if f.busy >= f.slots:
        known |= {"slots": f.slots, "busy": f.busy}
        text = f"All {_count(f.slots, 'slot')} that could run it are busy; {about} ready before it{expected}."
        yield Reason("slots_busy", text, known)
    elif f.ahead:
        yield Reason("waiting_in_line", f"It is ready; {about} ready before it{expected}.", known)


def span(seconds: float) -> str:
    """A length of time as people say it: 0.3 s, 12 s, 3 min, 5 h, 2 d."""
    seconds = max(0.0, seconds)
    for size, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def moment(at: datetime) -> str:
    """A time to the second, as it came (UTC from the database)."""
    return f"{at:%Y-%m-%d %H:%M:%S}Z"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _short(text: str, most: int = 200) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
