"""Log records: one line each, as text or JSON, with the ids of the request, task, attempt and worker they belong to.

Everything inside logs through the standard library; structlog shapes the records at the process edge. Control
characters are escaped, so that no input can forge a line or steer a terminal.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO
from uuid import UUID

import structlog
from structlog.types import EventDict, Processor

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
    shared: list[Processor] = [
        _add_context,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        _without_twins,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.format_exc_info,
        _without_secrets,
    ]
    last: Processor = structlog.processors.JSONRenderer(default=_shown) if format == "json" else _as_text
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
    )


def _add_context(logger: Any, method: str, event: EventDict) -> EventDict:
    for variable in _CONTEXT:
        value = variable.get()
        if value is not None:
            event.setdefault(variable.name, str(value) if isinstance(value, UUID) else value)
    if (claim := running.get()) is not None:
        event.setdefault("task_id", str(claim.id))
        event.setdefault("attempt", claim.attempt)
    return event


def _without_twins(logger: Any, method: str, event: EventDict) -> EventDict:
    # Other handlers of a record leave their own renderings of its text in it.
    for name in ("message", "asctime", "color_message"):
        event.pop(name, None)
    return event


def _without_secrets(logger: Any, method: str, event: EventDict) -> EventDict:
    # Whoever logs a secret has made a mistake already; this one stays inside.
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = redact(value)
        elif isinstance(value, BaseException | list | dict | tuple):
            event[name] = redact(_shown(value))
    return event


def _shown(value: Any) -> str:
    try:
        return str(value)
    except Exception as error:
        return f"<{type(value).__name__} whose str() raises {type(error).__name__}>"


def _as_text(logger: Any, method: str, event: EventDict) -> str:
    time = event.pop("time", "")
    level = str(event.pop("level", "")).upper()
    name = event.pop("logger", "")
    parts = [f"{time} {level:<7} {name}: {escape(_shown(event.pop('event', '')))}"]
    parts += [f"{escape(str(key))}={_quoted(escape(_shown(value)))}" for key, value in event.items()]
    return " ".join(parts)


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '\\"') + '"' if not text or " " in text or '"' in text or "=" in text else text
