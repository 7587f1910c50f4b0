"""What `python -m fuzz.parsers` fuzzes: each takes bytes, and raises nothing but `AssertionError`, for a fault."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from dhara.api import params
from dhara.api.problems import Refused
from dhara.api.strict import parse
from dhara.api.wire import query
from dhara.domain import access
from dhara.domain.masking import Mask
from dhara.domain.validate import parse_time
from dhara.errors import ConfigError
from dhara.settings import duration
from dhara.store.pool import check_dsn
from dhara.telemetry.log import escape
from dhara.telemetry.redact import redact

CANARY = "c4n4ry"


def _duration(data: bytes) -> None:
    with suppress(ValueError):
        assert 0 < duration(data.decode("utf-8", "ignore")) <= 10 * 365 * 86_400


def _time(data: bytes) -> None:
    moment = parse_time(data.decode("utf-8", "surrogateescape"))
    assert moment is None or moment.tzinfo is not None


def _json(data: bytes) -> None:
    with suppress(Refused):
        parse(data, 65)


def _query(data: bytes) -> None:
    with suppress(Refused):
        query(data, params.TASKS)


def _dsn(data: bytes) -> None:
    text = data.decode("utf-8", "ignore")
    with suppress(ConfigError):
        check_dsn(text)
    # Whatever stands around it, the password of a URL goes.
    assert CANARY not in redact(f"{text} postgresql://user:{CANARY}@host/db")
    assert CANARY not in redact(f"{text} password={CANARY}")


def _key(data: bytes) -> None:
    text = data.decode("utf-8", "ignore")
    id = access.key_id(text)
    assert id is None or (text.startswith(f"dh_{id}_") and len(text) == 59)


def _mask(data: bytes) -> None:
    text = data.decode("utf-8", "ignore")
    with suppress(Refused):
        parse(text.encode(), 65)
        assert Mask(("a.b", "*.c", "0")).apply(text) is not None


def _line(data: bytes) -> None:
    line = escape(data.decode("utf-8", "surrogateescape"))
    assert len(line.splitlines()) <= 1
    line.encode()


PARSERS: dict[str, Callable[[bytes], None]] = {
    "duration": _duration,
    "time": _time,
    "json": _json,
    "query": _query,
    "dsn": _dsn,
    "key": _key,
    "mask": _mask,
    "line": _line,
}
