"""Every reason that an explanation knows, and which of them comes first."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from dhara.domain.explain import CODES, Facts, Runner, explain, span
from dhara.domain.lifecycle import State

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
AN_HOUR = timedelta(hours=1)
WORKER = Runner(id=UUID(int=1), host="web1", pid=42, state="live", beat_age=2.0, beat_at=NOW - timedelta(seconds=2))
GONE = Runner(id=UUID(int=2), host="web2", pid=43, state="lost", beat_age=90.0, beat_at=NOW - AN_HOUR)


def facts(status: State = State.PENDING, **values: Any) -> Facts:
    """A ready task that a worker with a free slot serves, but for `values`."""
    usual: dict[str, Any] = {
        "now": NOW,
        "status": status,
        "type": "email.send",
        "queue": "mail",
        "run_at": NOW - AN_HOUR,
        "attempts": 0,
        "failures": 0,
        "crashes": 0,
        "max_retries": 5,
        "live": 2,
        "knowing": 1,
        "serving": 1,
        "slots": 10,
        "busy": 3,
    }
    return Facts(**usual | values)


def running(**values: Any) -> Facts:
    return facts(State.RUNNING, **{"attempts": 2, "started_at": NOW - AN_HOUR, "worker": WORKER} | values)


# name -> (facts, codes in order, what the first sentence says)
CASES: dict[str, tuple[Facts, list[str], str]] = {
    "ready and next": (facts(), ["next"], "It is ready and next"),
    "ready, some before it": (facts(ahead=7), ["waiting_in_line"], "7 ready before it."),
    "in line, with a rate": (facts(ahead=59, rate=1.0), ["waiting_in_line"], "its turn is in about 60 s"),
    "all slots busy": (facts(busy=10, ahead=3), ["slots_busy"], "All 10 slots that could run it are busy; 3 ready"),
    "very many before it": (facts(busy=10, ahead=10_000, ahead_capped=True), ["slots_busy"], "more than 10,000 ready"),
    "not due": (facts(run_at=NOW + AN_HOUR), ["delayed"], "not due until 2026-03-01 13:00:00Z, in 60 min"),
    "after a failure": (
        facts(run_at=NOW + AN_HOUR, failures=2, last_error="ValueError: no\nway"),
        ["retrying"],
        "It failed 2 times and is tried again at 2026-03-01 13:00:00Z, in 60 min after: ValueError: no way",
    ),
    "failed before, due now": (facts(failures=2), ["next"], "ready"),
    "paused": (facts(paused_at=NOW - AN_HOUR, paused_by="ada"), ["queue_paused"], "11:00:00Z, by ada; resume it"),
    "paused and not due": (
        facts(paused_at=NOW, paused_by="ada", run_at=NOW + AN_HOUR),
        ["queue_paused", "delayed"],
        "is paused",
    ),
    "paused, all slots busy": (facts(paused_at=NOW, busy=10), ["queue_paused"], "by somebody"),
    "no worker at all": (facts(live=0, knowing=0, serving=0), ["no_worker"], "No worker is alive. Start one"),
    "no worker, there was one": (
        facts(live=0, knowing=0, serving=0, last_knowing=GONE),
        ["no_worker"],
        "The last that did was web2:43, lost, last heard of at 2026-03-01 11:00:00Z.",
    ),
    "type unknown": (facts(knowing=0, serving=0), ["type_unknown"], "None of 2 live workers knows the type email.send"),
    "type unknown now": (
        facts(knowing=0, serving=0, last_knowing=GONE),
        ["type_unknown"],
        "The last that did was web2",
    ),
    "queue unserved": (facts(serving=0), ["queue_unserved"], "Of 1 live worker with the type email.send none serves"),
    "unknown and not due": (
        facts(knowing=0, serving=0, run_at=NOW + AN_HOUR),
        ["type_unknown", "delayed"],
        "None of 2",
    ),
    "a suspect": (facts(crashes=1, failures=1), ["suspect"], "(1 time): a suspect"),
    "a suspect, all busy": (facts(crashes=2, busy=10), ["suspect", "slots_busy"], "(2 times)"),
    "expired": (facts(expires_at=NOW - AN_HOUR), ["expired"], "It expired at 2026-03-01 11:00:00Z"),
    "expires later": (facts(expires_at=NOW + AN_HOUR), ["next"], "ready"),
    "running": (
        running(),
        ["running"],
        "attempt 2, since 2026-03-01 11:00:00Z (60 min), on worker web1:42, which beat",
    ),
    "cancel not heeded": (
        running(cancel_requested_at=NOW - timedelta(seconds=30)),
        ["cancel_requested", "running"],
        "asked for 30 s ago; its handler on worker web1:42 has not heeded it yet",
    ),
    "silent worker": (
        running(worker=Runner(id=WORKER.id, host="web1", pid=42, state="live", beat_age=60.0, beat_at=NOW)),
        ["worker_silent", "running"],
        "on worker web1:42 that has not beaten for 60 s; the reaper takes it back",
    ),
    "lost worker": (running(worker=GONE), ["worker_silent", "running"], "web2:43"),
    "forgotten worker": (running(worker=None), ["worker_silent", "running"], "on an unknown worker; the reaper"),
    "completed": (
        facts(State.COMPLETED, attempts=1, started_at=NOW - timedelta(seconds=3), completed_at=NOW),
        ["completed"],
        "attempt 1 ended at 2026-03-01 12:00:00Z after 3.0 s",
    ),
    "canceled": (
        facts(State.CANCELED, completed_at=NOW, reason="enough"),
        ["canceled"],
        "CANCELED at 2026-03-01 12:00:00Z: enough",
    ),
    "dead": (
        facts(State.DEAD, attempts=6, completed_at=NOW, reason="exhausted", last_error="boom"),
        ["dead"],
        "It has been DEAD since 2026-03-01 12:00:00Z, after 6 attempts: exhausted. Its last error: boom. A retry revives it.",
    ),
    "dead without a run": (
        facts(State.DEAD, completed_at=NOW, reason="expired"),
        ["dead"],
        "after 0 attempts: expired.",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    given, codes, says = CASES[name]
    reasons = explain(given)
    assert [reason.code for reason in reasons] == codes
    assert says in reasons[0].text


def test_every_code_has_a_case() -> None:
    assert {code for _, codes, _ in CASES.values() for code in codes} == set(CODES)


def test_facts_are_what_the_sentence_says() -> None:
    (reason,) = explain(facts(busy=10, ahead=59, rate=0.5))
    assert reason.facts == {
        "ahead": 59,
        "ahead_is_estimate": False,
        "rate": 0.5,
        "expected_at": NOW + timedelta(seconds=120),
        "slots": 10,
        "busy": 10,
    }


@pytest.mark.parametrize(
    "seconds, said", [(-1, "0.0 s"), (0.31, "0.3 s"), (12, "12 s"), (119, "119 s"), (120, "2 min"), (86_400 * 3, "3 d")]
)
def test_spans(seconds: float, said: str) -> None:
    assert span(seconds) == said
