"""What is kept of an exception: bounded, storable text, and a fingerprint that groups like failures."""

from __future__ import annotations

import hashlib
import re
import traceback
from pathlib import Path
from types import TracebackType
from typing import Literal

import msgspec

from dhara.domain import limits
from dhara.domain.backoff import RetryPolicy
from dhara.domain.outcome import Failed
from dhara.telemetry.redact import redact
from dhara.worker.context import storable

_NUMBERS = re.compile(r"0x[0-9a-f]+|\d+")
_FRAMES = 3
_CLASS_LENGTH = 200
_LINE = 500
_OURS = str(Path(__file__).parent.parent) + "/"


def failed(type: str, error: BaseException, *, policy: RetryPolicy | Literal["never"] | None = None) -> Failed:
    """The outcome of an attempt that ended with `error`."""
    message = f"{_class(error)}: {_text(error)}"
    details = {
        "class": _class(error),
        "message": _text(error),
        "traceback": _traceback(error),
    }
    return Failed(
        storable(message, limits.LAST_ERROR_LENGTH),
        error=msgspec.json.encode(details).decode(),
        permanent=policy == "never",
        policy=None if policy == "never" else policy,
        fingerprint=fingerprint(type, error),
    )


def fingerprint(type: str, error: BaseException) -> str:
    """A hash of task type, exception class and the innermost frames, without line numbers, so that it outlives edits."""
    frames = traceback.extract_tb(_theirs(error.__traceback__))[-_FRAMES:]
    names = [f"{_NUMBERS.sub('', frame.filename.rpartition('/')[2])}:{frame.name}" for frame in frames]
    return hashlib.md5("|".join([type, _class(error), *names]).encode(), usedforsecurity=False).hexdigest()


def _theirs(tb: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame that is not dhara's: how a handler came to be called says nothing about it."""
    inner = tb
    while inner is not None and inner.tb_frame.f_code.co_filename.startswith(_OURS):
        inner = inner.tb_next
    return inner or tb


def _class(error: BaseException) -> str:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return storable(name, _CLASS_LENGTH)


def _text(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException as broken:
        text = f"(its text cannot be had: {type(broken).__name__})"
    return storable(redact(text[: limits.ERROR_BYTES]), limits.LAST_ERROR_LENGTH)


def _traceback(error: BaseException) -> str:
    """Its last part, which says where; long lines are cut, so that a long message does not push the frames out."""
    length = limits.ERROR_BYTES // 2
    try:
        lines = traceback.format_exception(type(error), error, _theirs(error.__traceback__), limit=-20)
        text = redact("".join(line if len(line) <= _LINE else line[:_LINE] + "…\n" for line in lines))
        return storable(text[-length // 2 :] if len(text) > length else text, length)
    except BaseException as broken:
        return f"(no traceback: {type(broken).__name__})"
