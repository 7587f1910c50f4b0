"""The query parameters: how each is read, and what OpenAPI says of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

from dhara.api.wire import Param
from dhara.domain import limits
from dhara.domain.lifecycle import State
from dhara.domain.validate import parse_time, text_problem

SEARCH_LENGTH = 200
REASON_LENGTH = 200
MOST_OFFSET = 1_000_000
MOST_WAIT = 120.0
DEFAULT_OVERLAP = 3_600.0
MOST_OVERLAP = 7 * 86_400.0

_DIGITS = re.compile(r"[0-9]{1,18}", re.ASCII)
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,30})?(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if _DIGITS.fullmatch(text) and low <= int(text) <= high:
            return int(text)
        raise ValueError(f"an integer from {low:,} to {high:,}")

    return parse


def _seconds(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        if _SECONDS.fullmatch(text) and low <= float(text) <= high:
            return float(text)
        raise ValueError(f"seconds, from {low:g} to {high:g}")

    return parse


def _state(text: str) -> State:
    if text in State.__members__:
        return State(text)
    raise ValueError("one of " + ", ".join(State))


def _open_state(text: str) -> State:
    if text in ("PENDING", "RUNNING"):
        return State(text)
    raise ValueError("PENDING or RUNNING")


def _name(text: str) -> str:
    if limits.NAME.fullmatch(text):
        return text
    raise ValueError(limits.NAME_HINT)


def _text(most: int) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if 1 <= len(text) <= most and not _CONTROL.search(text) and text_problem(text) is None:
            return text
        raise ValueError(f"text of 1 to {most} characters, no control characters")

    return parse


def _moment(text: str) -> datetime:
    # A plus sign that was not percent-encoded arrives as a blank.
    at = parse_time(text.replace(" ", "+") if " " in text[11:] else text)
    if at is not None:
        return at
    raise ValueError("a time by RFC 3339 with zone, such as 2026-01-31T12:00:00Z")


def _uuid(text: str) -> UUID:
    if re.fullmatch(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}", text):
        return UUID(text)
    raise ValueError("an id, such as 01890a5d-ac96-774b-bcce-b302099a8057")


def _choice(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text in choices:
            return text
        raise ValueError(" or ".join(choices))

    return parse


def _boolean(text: str) -> bool:
    if text in ("true", "false"):
        return text == "true"
    raise ValueError("true or false")


def _range(low: float, high: float, default: float, type: str = "integer") -> dict[str, Any]:
    return {"type": type, "minimum": low, "maximum": high, "default": default}


_NAMED = {"type": "string", "pattern": f"^{limits.NAME_PATTERN}$"}
_TIME = {"type": "string", "format": "date-time"}
_STATES = {"type": "array", "items": {"type": "string", "enum": [state.value for state in State]}}
_ID = {"type": "string", "format": "uuid", "pattern": "^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$"}


def _sized(most: int) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": most, "pattern": r"^[^\x00-\x1f\x7f]+$"}


TYPE = Param("type", _name, "only tasks of this type", _NAMED)
QUEUE = Param("queue", _name, "only tasks of this queue", _NAMED)
TAG = Param("tag", _text(limits.TAG_LENGTH), "only tasks with this tag", _sized(limits.TAG_LENGTH))
AFTER = Param("created_after", _moment, "only tasks created later than this", _TIME)
BEFORE = Param("created_before", _moment, "only tasks created earlier than this", _TIME)
SEARCH = Param(
    "q",
    _text(SEARCH_LENGTH),
    "looked for in id, type, idempotency key, last error and, for read:payload, in payloads of up to 8 KiB",
    _sized(SEARCH_LENGTH),
)
PAGE = (
    Param("limit", _integer(*limits.LIST_LIMIT), "tasks a page", _range(*limits.LIST_LIMIT, 20)),
    Param(
        "offset",
        _integer(0, MOST_OFFSET),
        "tasks to skip; slow when large, cursor is not",
        _range(0, MOST_OFFSET, 0),
    ),
    Param("cursor", str, "next_cursor of the page before, with the same filters"),
)
TASKS = (
    Param("status", _state, "only tasks in this state; repeat it for several", _STATES, many=True),
    TYPE,
    QUEUE,
    Param("retrying", _boolean, "true: only PENDING tasks that have failed before", {"type": "boolean"}),
    Param(
        "due",
        _choice("ready", "delayed"),
        "only PENDING tasks that are due, or not yet",
        {"type": "string", "enum": ["ready", "delayed"]},
    ),
    Param("worker", _uuid, "only tasks that this worker runs", _ID),
    TAG,
    AFTER,
    BEFORE,
    SEARCH,
    *PAGE,
)
FINGERPRINT = Param("fingerprint", _text(255), "only tasks of this group of failures", _sized(255))
DEAD = (TYPE, QUEUE, TAG, FINGERPRINT, AFTER, BEFORE, SEARCH, *PAGE)
GROUPS = (TYPE, Param("muted", _boolean, "only muted groups, or only others", {"type": "boolean"}))
_BULK = (
    TYPE,
    QUEUE,
    TAG,
    AFTER,
    BEFORE,
    SEARCH,
    Param("id", _uuid, "only this task; repeat it for several", {"type": "array", "items": _ID}, many=True),
    Param("all", _boolean, "true: all of them; needed where no filter is given", {"type": "boolean"}),
    Param("dry_run", _boolean, "true: count and show some, change nothing", {"type": "boolean"}),
)
PURGE = (FINGERPRINT, *_BULK)
STOP = (
    Param(
        "status",
        _open_state,
        "only PENDING or only RUNNING tasks",
        {"type": "array", "items": {"type": "string", "enum": ["PENDING", "RUNNING"]}},
        many=True,
    ),
    *_BULK,
)
REVIVE = (
    *PURGE,
    Param("canary", _integer(1, 1_000), "begin with so many and watch them", _range(1, 1_000, 10)),
    Param("factor", _seconds(1, 100), "each wave is so many times the one before", _range(1, 100, 4, "number")),
    Param("most", _integer(1, 500), "tasks a wave at most", _range(1, 500, 500)),
    Param("max_failed", _seconds(0, 1), "stop when a larger share of a wave fails again", _range(0, 1, 0.2, "number")),
    Param(
        "watch",
        _seconds(0, 86_400),
        "seconds after which a wave's slow tasks are no longer waited for",
        _range(0, 86_400, 60, "number"),
    ),
)
OPERATIONS = (Param("limit", _integer(*limits.LIST_LIMIT), "operations a page", _range(*limits.LIST_LIMIT, 50)),)
AUDIT = (
    Param("actor", _text(100), "only what this one did", _sized(100)),
    Param("action", _name, "only this action, or this kind of actions: task, queue, ...", _NAMED),
    Param("target", _text(255), "only what was done to this task, queue, schedule or group", _sized(255)),
    Param("before", _integer(1, 2**62), "next_before of the page before", {"type": "integer", "minimum": 1}),
    Param("limit", _integer(*limits.LIST_LIMIT), "actions a page", _range(*limits.LIST_LIMIT, 50)),
)
HISTORY = (
    Param("queue", _name, "of this queue; without it, of all", _NAMED),
    Param("minutes", _integer(1, 1_440), "how far back", _range(1, 1_440, 60)),
)
EVENTS = (
    Param("task", _uuid, "also tell of this task; repeat it for several", {"type": "array", "items": _ID}, many=True),
)
WAIT = (Param("timeout", _seconds(0, MOST_WAIT), "seconds to wait at most", _range(0, MOST_WAIT, 30, "number")),)
CANCEL = (
    Param("reason", _text(REASON_LENGTH), "kept in the task's history; default: an operator", _sized(REASON_LENGTH)),
)
ROTATE = (
    Param(
        "overlap",
        _seconds(0, MOST_OVERLAP),
        "seconds that the old key stays valid",
        _range(0, MOST_OVERLAP, DEFAULT_OVERLAP, "number"),
    ),
)
ID_SCHEMA = _ID
KEY_SCHEMA = {"type": "string", "pattern": "^[a-z0-9]{12}$"}
NAME_SCHEMA = _NAMED
