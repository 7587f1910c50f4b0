"""What `python -m fuzz.parsers` fuzzes: each takes bytes, and raises nothing but `AssertionError`, for a fault."""

from __future__ import annotations

import base64
from collections.abc import Callable, Coroutine
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

from dhara.api import params
from dhara.api.cursors import Cursors
from dhara.api.problems import Refused
from dhara.api.strict import parse
from dhara.api.wire import query
from dhara.domain import access
from dhara.domain.masking import Mask
from dhara.domain.schedule import Cron, zone_of
from dhara.domain.validate import parse_time
from dhara.errors import ConfigError
from dhara.settings import duration
from dhara.store.pool import check_dsn
from dhara.store.search import Filter
from dhara.telemetry.log import escape
from dhara.telemetry.redact import redact

T = TypeVar("T")
CANARY = "c4n4ry"
# Behind it: an hour that comes twice, one that does not come, leap days, and zones of half an hour.
_MOMENT = datetime(2027, 10, 30, 23, 59, 59, tzinfo=UTC)
_ZONES = [zone_of(name) for name in ("UTC", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu")]


class _Origin:
    """What cursors ask of the database."""

    async def origin(self) -> str:
        return "fuzz"


_CURSORS: Any = Cursors(_Origin())  # type: ignore[arg-type]
_LAST = UUID(int=7)


def _duration(data: bytes) -> None:
    with suppress(ValueError):
        assert 0 < duration(data.decode("utf-8", "ignore")) <= 10 * 365 * 86_400


def _time(data: bytes) -> None:
    moment = parse_time(data.decode("utf-8", "surrogateescape"))
    assert moment is None or moment.tzinfo is not None


def _json(data: bytes) -> None:
    with suppress(Refused):
        parse(data, 65)


def _cron(data: bytes) -> None:
    with suppress(ValueError):
        cron = Cron(data.decode("utf-8", "surrogateescape"))
        for zone in _ZONES:
            at = cron.after(_MOMENT, zone)
            assert at is None or at > _MOMENT


def _cursor(data: bytes) -> None:
    wanted = Filter(queue=data[:8].decode("latin-1"))
    made = _now(_CURSORS.make(wanted, _LAST))
    assert _now(_CURSORS.read(wanted, made)) == _LAST
    # The text alone, and the text instead of a part of a good one.
    for text in (data.decode("utf-8", "surrogateescape"), data.decode("latin-1") + made[len(data) :]):
        with suppress(Refused):
            assert _now(_CURSORS.read(wanted, text)) == _LAST
            assert base64.urlsafe_b64decode(text) == base64.urlsafe_b64decode(made)


def _now(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine that waits for nothing answers."""
    try:
        work.send(None)
    except StopIteration as done:
        found: T = done.value
        return found
    raise AssertionError("it waits")


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
    "cron": _cron,
    "cursor": _cursor,
    "query": _query,
    "dsn": _dsn,
    "key": _key,
    "mask": _mask,
    "line": _line,
}
