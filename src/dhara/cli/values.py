"""What arguments hold: lengths of time, times, JSON."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Any

import click


class Span(click.ParamType[float]):
    """A length of time: 30s, 5m, or seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from dhara.settings import duration

        if value in (0, "0"):
            return 0.0
        try:
            return duration(value)
        except ValueError as error:
            self.fail(f"{value!r} is not {error}", param, ctx)


class Scope(click.ParamType[str | float]):
    """How long a unique key holds."""

    name = "pending|open|duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | float:
        return value if value in ("pending", "open") else Span().convert(value, param, ctx)


class Moment(click.ParamType[datetime]):
    """A time by RFC 3339 with its zone."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        from dhara.domain.validate import parse_time

        found = value if isinstance(value, datetime) else parse_time(value)
        if found is None:
            self.fail(f"{value!r} is no time such as 2026-01-31T12:00:00Z", param, ctx)
        return found


def json_text(text: str) -> Any:
    """Strict JSON, kept byte for byte; `-` reads it from standard input. Raises `UsageError`."""
    import msgspec

    from dhara.api.problems import Refused
    from dhara.api.strict import parse

    if text == "-":
        text = sys.stdin.read() if sys.stdin is not None and not sys.stdin.closed else ""
    try:
        parse(text.strip().encode("utf-8", "surrogatepass"))
    except Refused as error:
        raise click.UsageError(f"PAYLOAD: {error.detail.replace('the body', 'it')}") from None
    return msgspec.Raw(text.strip().encode())
