"""From loose fields to a `Spec`: a schedule's fields are checked as a task's are, every wrong one named."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from dhara.domain import schedule
from dhara.domain.schedule import Spec, cron_of, zone_of
from dhara.domain.validate import Problems, name, new_task
from dhara.errors import InvalidTask

# What a task of the schedule takes over; their bounds are those of a task.
TASK_FIELDS = ("type", "queue", "priority", "max_retries", "timeout")
FIELDS = ("name", "cron", "every", "timezone", "payload", *TASK_FIELDS, "jitter", "missed", "overlap", "catch_up_most")
_NOW = datetime(2000, 1, 1, tzinfo=UTC)


def spec_of(fields: Mapping[str, Any], payload: str = "{}") -> Spec:
    """`fields`, all but the payload, as a schedule. `payload` is JSON text. Raises `InvalidTask` naming every wrong field."""
    problems = Problems()
    for field in fields:
        if field not in FIELDS:
            problems.add(field, "unknown field")
        elif fields[field] is None:
            problems.add(field, "must not be null; leave it out")
    name("name", fields.get("name"), _NOW, problems)
    _timing(fields, problems)
    _choice("missed", schedule.MISSED, fields, problems)
    _choice("overlap", schedule.OVERLAP, fields, problems)
    _number("jitter", schedule.JITTER_SECONDS, fields, problems)
    _number("catch_up_most", schedule.CATCH_UP, fields, problems, whole=True)
    try:
        new_task({key: fields[key] for key in TASK_FIELDS if key in fields}, payload, id=UUID(int=0), now=_NOW)
    except InvalidTask as error:
        problems += error.problems
    if problems:
        raise InvalidTask(problems)
    return Spec(**dict(fields), payload=payload)


def _timing(fields: Mapping[str, Any], problems: Problems) -> None:
    cron, every, zone = (fields.get(key) for key in ("cron", "every", "timezone"))
    if (cron is None) == (every is None):
        problems.add("cron", "give cron or every, one of them")
        return
    if every is not None:
        _number("every", schedule.EVERY_SECONDS, fields, problems)
    for field, value, parse in (("cron", cron, cron_of), ("timezone", zone, zone_of)):
        if value is None:
            continue
        try:
            parse(value if isinstance(value, str) else "")
        except ValueError as error:
            problems.add(field, str(error))
    if not problems and cron is not None and cron_of(cron).after(_NOW, zone_of(zone or "UTC")) is None:
        problems.add("cron", "never fires")


def _choice(field: str, choices: tuple[str, ...], fields: Mapping[str, Any], problems: Problems) -> None:
    if field in fields and fields[field] not in choices:
        problems.add(field, "one of " + ", ".join(choices))


def _number(
    field: str, bounds: tuple[float, float], fields: Mapping[str, Any], problems: Problems, whole: bool = False
) -> None:
    if field not in fields:
        return
    value, (low, high) = fields[field], bounds
    kinds: Any = int if whole else int | float
    if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
        problems.add(field, f"{'an integer' if whole else 'seconds, a number'} from {low:g} to {high:g}")
