"""Log records: one line each, as text or JSON, with the ids of the request, task, attempt and worker they belong to.

Everything inside logs through the standard library; the formatter here shapes the records at the process edge. Control
characters are escaped, so that no input can forge a line or steer a terminal.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO
from uuid import UUID

from dhara.telemetry.redact import redact

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
task_id: ContextVar[UUID | str | None] = ContextVar("task_id", default=None)
attempt: ContextVar[int | None] = ContextVar("attempt", default=None)
worker_id: ContextVar[UUID | str | None] = ContextVar("worker_id", default=None)

# What this context runs, by its `id` and `attempt`: one variable to set for each attempt instead of two.
running: ContextVar[Any] = ContextVar("running", default=None)

_CONTEXT: tuple[ContextVar[Any], ...] = (request_id, task_id, attempt, worker_id)
# C0, DEL, C1, line and paragraph separators, marks that change the direction of text, and halves of pairs.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
# asyncpg's pool logs each failure to reconnect with its traceback; whoever needs the connection says it in one line.
_NOISY = {
    "asyncio": logging.WARNING,
    "asyncpg.pool": logging.ERROR,
    "uvicorn.error": logging.WARNING,
    "uvicorn.access": logging.WARNING,
}


def escape(text: str) -> str:
    """`text` on one line, every control character written out."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


@contextmanager
def bound(**values: Any) -> Iterator[None]:
    """Log records inside carry these ids (of `request_id`, `task_id`, `attempt`, `worker_id`)."""
    known = {variable.name: variable for variable in _CONTEXT}
    tokens = [(known[name], known[name].set(value)) for name, value in values.items()]
    try:
        yield
    finally:
        for variable, token in reversed(tokens):
            variable.reset(token)


def configure(level: str = "info", format: str = "text", stream: TextIO | None = None) -> None:
    """Send the records of this process to `stream` (standard error); `format` is text or json. Calling it again replaces it."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatter(format))
    root = logging.getLogger()
    for old in list(root.handlers):
        if getattr(old, "dhara", False):
            root.removeHandler(old)
    handler.dhara = True  # type: ignore[attr-defined]
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name, least in _NOISY.items():
        logging.getLogger(name).setLevel(max(least, root.level))


def formatter(format: str) -> logging.Formatter:
    """What turns a record into its line."""
    return _Json() if format == "json" else _Text()


class _Text(logging.Formatter):
    """Time, level, logger, what happened; then the ids and fields, each `name=value`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        time, level, name, event = (fields.pop(key) for key in _HEAD)
        parts = [f"{time} {level.upper():<7} {name}: {escape(event)}"]
        parts += [f"{escape(key)}={_quoted(escape(str(value)))}" for key, value in fields.items()]
        return " ".join(parts)


class _Json(logging.Formatter):
    """One object."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_fields(record))  # in ASCII, so that every control character is written out


# What every record has; anything else in it is a field of whoever logged, but for what formatters leave there.
_HEAD = ("time", "level", "logger", "event")
_RECORD = {*vars(logging.makeLogRecord({})), "message", "asctime", "color_message", "taskName"}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Everything that the line says: numbers, None and text without secrets."""
    time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"
    said: dict[str, Any] = {
        "time": time,
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": record.getMessage(),
    }
    said |= {key: value for key, value in (_context() | vars(record)).items() if key not in _RECORD and key not in said}
    if record.exc_info:
        said["exception"] = logging.Formatter().formatException(record.exc_info)
    if record.stack_info:
        said["stack"] = record.stack_info
    # Whoever logs a secret has made a mistake already; this one stays inside.
    return {k: v if isinstance(v, int | float | None) else redact(_shown(v)) for k, v in said.items()}


def _context() -> dict[str, Any]:
    found = {variable.name: value for variable in _CONTEXT if (value := variable.get()) is not None}
    claim = running.get()
    return found if claim is None else {"task_id": claim.id, "attempt": claim.attempt} | found


def _shown(value: Any) -> str:
    try:
        return str(value)
    except Exception as error:
        return f"<{type(value).__name__} whose str() raises {type(error).__name__}>"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '\\"') + '"' if not text or " " in text or '"' in text or "=" in text else text
