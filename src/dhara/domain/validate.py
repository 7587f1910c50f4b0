"""From loose fields to a `NewTask`: the one place where the bounds of `limits` are applied.

Every problem of a task is collected, so that an answer names all wrong fields at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from dhara.domain import limits
from dhara.domain.task import NewTask
from dhara.errors import InvalidTask

CREATE_FIELDS = (
    "type",
    "payload",
    "queue",
    "priority",
    "max_retries",
    "run_at",
    "delay",
    "idempotency_key",
    "timeout",
    "expires_at",
    "tags",
    "unique_key",
    "unique_for",
    "on_conflict",
    "retention",
    "concurrency_key",
    "traceparent",
)

_KNOWN = frozenset(CREATE_FIELDS)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_RFC3339 = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})[Tt ](\d{2}):(\d{2}):(\d{2})(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})", re.ASCII
)


class Problems(list[tuple[str, str]]):
    """(field, message) pairs, in the order of the fields."""

    def add(self, field: str, message: str) -> None:
        self.append((field, message))


def new_task(fields: Mapping[str, Any], payload: str, *, id: UUID, now: datetime) -> NewTask:
    """Validate `fields` (all create fields but `payload`) and make a `NewTask` of them.

    `payload` is JSON text that `payload_problem` has accepted. `now` serves only the bounds of `run_at`.
    Raises `InvalidTask` naming every wrong field.
    """
    problems = Problems()
    given = fields
    if any(value is None or key not in _KNOWN for key, value in fields.items()):
        given = {key: value for key, value in fields.items() if value is not None}
        for key in fields:
            if key not in _KNOWN:
                problems.add(key, "unknown field")
            elif fields[key] is None:
                problems.add(key, "must not be null; leave it out")
    if "type" not in given and "type" not in fields:
        problems.add("type", "required")
    for key in ("unique_for", "on_conflict"):
        if key in given and "unique_key" not in given:
            problems.add(key, "needs unique_key")
    if "run_at" in given and "delay" in given:
        problems.add("delay", "give run_at or delay, not both")
    values: dict[str, Any] = {}
    for key, value in given.items():
        check = _CHECKS.get(key)
        if check is not None:
            accepted = check(key, value, now, problems)
            if accepted is not None:
                values[key] = accepted
    if problems:
        raise InvalidTask(problems)
    return NewTask(id=id, payload=payload, **values)


def name(field: str, value: Any, now: datetime, problems: Problems) -> str | None:
    if isinstance(value, str) and limits.NAME.fullmatch(value):
        return value
    problems.add(field, limits.NAME_HINT)
    return None


def _integer(low: int, high: int) -> Any:
    def check(field: str, value: Any, now: datetime, problems: Problems) -> int | None:
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        problems.add(field, f"an integer from {low} to {high}")
        return None

    return check


def _seconds(low: float, high: float) -> Any:
    def check(field: str, value: Any, now: datetime, problems: Problems) -> float | None:
        if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
            return float(value)  # NaN fails the comparison
        problems.add(field, f"seconds, a number from {low:g} to {high:g}")
        return None

    return check


def text_problem(value: str) -> str | None:
    """Why PostgreSQL cannot store this text, or None."""
    if "\x00" in value:
        return "must not contain the character U+0000"
    if _LONE_SURROGATE.search(value):
        return "must not contain a lone surrogate"
    return None


def _key(field: str, value: Any, now: datetime, problems: Problems) -> str | None:
    if not isinstance(value, str) or not 1 <= len(value) <= limits.IDEMPOTENCY_KEY_LENGTH:
        problems.add(field, f"text of 1 to {limits.IDEMPOTENCY_KEY_LENGTH} characters")
    elif _CONTROL.search(value) or _LONE_SURROGATE.search(value):
        problems.add(field, "must not contain control characters")
    else:
        return value
    return None


def parse_time(value: str) -> datetime | None:
    """An RFC 3339 time with zone, or None. Fractions beyond microseconds are cut."""
    found = _RFC3339.fullmatch(value)
    if found is None:
        return None
    fraction, zone = found.group(7, 8)
    offset = "+00:00" if zone in "Zz" else zone
    try:
        return datetime.fromisoformat(f"{value[:10]}T{value[11:19]}{(fraction or '.0')[:7].ljust(7, '0')}{offset}")
    except ValueError:
        return None


def _run_at(field: str, value: Any, now: datetime, problems: Problems) -> datetime | None:
    at = _moment(field, value, problems)
    if at is None:
        return None
    try:
        ahead = (at - now).total_seconds()
    except OverflowError:
        ahead = math.inf
    if ahead < -limits.RUN_AT_PAST_SECONDS:
        problems.add(field, f"is more than {limits.RUN_AT_PAST_SECONDS / 60:g} minutes in the past")
    elif ahead > limits.RUN_AT_AHEAD_SECONDS:
        problems.add(field, f"is more than {limits.RUN_AT_AHEAD_SECONDS / 86_400:g} days ahead")
    else:
        return max(at, now - timedelta(seconds=limits.RUN_AT_PAST_SECONDS))
    return None


def _expires_at(field: str, value: Any, now: datetime, problems: Problems) -> datetime | None:
    at = _moment(field, value, problems)
    if at is None:
        return None
    if at <= now:
        problems.add(field, "is in the past")
        return None
    return at


def _moment(field: str, value: Any, problems: Problems) -> datetime | None:
    at = parse_time(value) if isinstance(value, str) else value
    if isinstance(at, datetime) and at.tzinfo is not None:
        try:
            return at.astimezone(UTC)
        except (OverflowError, ValueError):
            pass
    problems.add(field, "a time by RFC 3339 with zone, such as 2026-01-31T12:00:00Z")
    return None


def _tags(field: str, value: Any, now: datetime, problems: Problems) -> tuple[str, ...] | None:
    if isinstance(value, list | tuple) and len(value) <= limits.TAGS:
        bad = [i for i, tag in enumerate(value) if not _is_tag(tag)]
        if not bad:
            return tuple(dict.fromkeys(value))
        problems.add(f"{field}[{bad[0]}]", f"text of 1 to {limits.TAG_LENGTH} characters, no control characters")
        return None
    problems.add(field, f"a list of at most {limits.TAGS} texts")
    return None


def _is_tag(tag: Any) -> bool:
    return (
        isinstance(tag, str)
        and 1 <= len(tag) <= limits.TAG_LENGTH
        and not _CONTROL.search(tag)
        and not _LONE_SURROGATE.search(tag)
    )


def _unique_for(field: str, value: Any, now: datetime, problems: Problems) -> str | float | None:
    low, high = limits.UNIQUE_FOR_SECONDS
    if value in ("pending", "open"):
        return str(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
        return float(value)
    problems.add(field, f"'pending', 'open', or seconds from {low:g} to {high:g}")
    return None


def _on_conflict(field: str, value: Any, now: datetime, problems: Problems) -> str | None:
    if value in ("keep", "replace", "reschedule"):
        return str(value)
    problems.add(field, "'keep', 'replace' or 'reschedule'")
    return None


def _traceparent(field: str, value: Any, now: datetime, problems: Problems) -> str | None:
    if isinstance(value, str) and limits.TRACEPARENT.fullmatch(value):
        return value
    problems.add(field, "a W3C traceparent, such as 00-<32 hex>-<16 hex>-01")
    return None


_CHECKS: dict[str, Any] = {
    "type": name,
    "queue": name,
    "priority": _integer(*limits.PRIORITY),
    "max_retries": _integer(*limits.MAX_RETRIES),
    "run_at": _run_at,
    "delay": _seconds(*limits.DELAY_SECONDS),
    "idempotency_key": _key,
    "timeout": _seconds(*limits.TIMEOUT_SECONDS),
    "expires_at": _expires_at,
    "tags": _tags,
    "unique_key": _key,
    "unique_for": _unique_for,
    "on_conflict": _on_conflict,
    "retention": _seconds(*limits.RETENTION_SECONDS),
    "concurrency_key": _key,
    "traceparent": _traceparent,
}


def number(text: str) -> float:
    """A JSON number with a fraction or exponent. Raises `ValueError` for one that a double does not hold: PostgreSQL keeps its
    text, but could not compare it, and a reader would get another one."""
    value = float(text)
    exponent = text.lower().partition("e")[2]
    if math.isinf(value) or (exponent and (len(exponent) > 5 or abs(int(exponent)) > limits.EXPONENT)):
        raise ValueError(f"the number {text[:40]} is out of range")
    return value


def has_long_number(text: str) -> bool:
    """Whether a number of this valid JSON has more digits than are taken."""
    if len(text) <= limits.NUMBER_DIGITS or not _LONG_NUMBER.search(text):
        return False
    return _LONG_NUMBER.search(_STRING.sub("", text)) is not None


LONG_NUMBER = f"a number has more than {limits.NUMBER_DIGITS:,} digits"
_LONG_NUMBER = re.compile(f"[0-9]{{{limits.NUMBER_DIGITS + 1}}}")
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')


def encode_json(value: Any, *, what: str, most_bytes: int) -> str:
    """JSON text of a Python value, strict: no NaN, no lone surrogates, bounded size. Raises `InvalidTask` on `what`."""
    encoded = _beyond_doubt(value)
    if encoded is not None and len(encoded) <= most_bytes:
        return encoded.decode()
    try:
        _refuse_oddities(value, 0)
        text = msgspec.json.encode(value).decode()
    except InvalidTask as error:
        raise InvalidTask([(what, error.problems[0][1])], error.code) from None
    except RecursionError:
        raise InvalidTask([(what, f"nested deeper than {limits.JSON_DEPTH} levels")]) from None
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
        raise InvalidTask([(what, f"is not JSON: {error}")]) from None
    if len(text.encode()) > most_bytes:
        raise InvalidTask([(what, f"is larger than {most_bytes // 1024} KiB")], "payload_too_large")
    return text


def _beyond_doubt(value: Any) -> bytes | None:
    """JSON of a value that is plainly JSON, since it reads back as it was; None: it must be looked at closer.

    Most payloads are, and this costs a fraction of looking at each of their parts.
    """
    try:
        encoded = _encode(value)
        if b"\\u" in encoded or _decode(encoded) != value:
            return None
    except Exception:
        return None
    if encoded.count(b"{") + encoded.count(b"[") > limits.JSON_DEPTH:
        return None
    return encoded


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def _refuse_oddities(value: Any, depth: int) -> None:
    """What msgspec would write without a word, or PostgreSQL would refuse."""
    if depth > limits.JSON_DEPTH:
        raise InvalidTask([("", f"nested deeper than {limits.JSON_DEPTH} levels")])
    match value:
        case str():
            if problem := text_problem(value):
                raise InvalidTask([("", problem)], "invalid_string")
        case float():
            if not math.isfinite(value):
                raise InvalidTask([("", "NaN and Infinity are not JSON")])
        case dict():
            for key, item in value.items():
                _refuse_oddities(key, depth)
                _refuse_oddities(item, depth + 1)
        case list() | tuple() | set() | frozenset():
            for item in value:
                _refuse_oddities(item, depth + 1)
        case bytes() | bytearray() | memoryview():
            raise InvalidTask([("", "bytes are not JSON; encode them as text")])
        case None | int():
            pass
        case _:
            # Dataclasses, structs, dates: what msgspec makes of them may hold the same oddities.
            _refuse_oddities(msgspec.to_builtins(value), depth + 1)
