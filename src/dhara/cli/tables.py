"""Tables for people: aligned, cut to the terminal's width; and times and states as people read them."""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime

import click

COLOURS = {
    "PENDING": "yellow",
    "RUNNING": "blue",
    "COMPLETED": "green",
    "CANCELED": "magenta",
    "DEAD": "red",
    "live": "green",
    "draining": "yellow",
    "lost": "red",
}
_GAP = "  "
# Numbers, and shares such as 3/12; times and texts stand to the left.
_NUMBER = re.compile(r"\d[\d,.]*\+?(/\d+|/s)?")


def table(head: Sequence[str], rows: Sequence[Sequence[object]], *, fancy: bool) -> str:
    """The rows below their head, columns of numbers to the right; the last column gives way where the terminal is too narrow
    (`fancy`)."""
    cells = [[clean(_text(cell)) for cell in row] for row in rows]
    columns = list(zip(*cells, strict=True))
    rights = [bool(column) and all(not cell or _NUMBER.fullmatch(cell) for cell in column) for column in columns]
    widths = [max(map(_width, column)) for column in zip(head, *cells, strict=True)]
    if fancy:
        room = shutil.get_terminal_size().columns - sum(widths[:-1]) - len(_GAP) * (len(widths) - 1)
        widths[-1] = max(8, min(widths[-1], room))
    lines = [_line(head, widths, rights)]
    if fancy:
        lines[0] = click.style(lines[0], bold=True)
    lines += [_line(row, widths, rights, fancy=fancy) for row in cells]
    return "\n".join(lines)


def many(n: int, what: str) -> str:
    """`1 task`, `1,234 tasks`."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def pairs(values: Sequence[tuple[str, object]], *, fancy: bool) -> str:
    """One `name  value` a line, without those that are None."""
    shown = [(name, clean(str(value))) for name, value in values if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    return "\n".join(
        f"{click.style(name.ljust(width), dim=True) if fancy else name.ljust(width)}  {coloured(value, fancy)}"
        for name, value in shown
    )


def _text(cell: object) -> str:
    if cell is None:
        return ""
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def _line(row: Sequence[str], widths: Sequence[int], rights: Sequence[bool], *, fancy: bool = False) -> str:
    padded = []
    for cell, width, right in zip(row, widths, rights or [False] * len(row), strict=True):
        text = _cut(cell, width)
        room = " " * (width - _width(text))
        padded.append(room + coloured(text, fancy) if right else coloured(text, fancy) + room)
    return _GAP.join(padded).rstrip()


def coloured(text: str, fancy: bool) -> str:
    """`text`, in its colour if it is a state."""
    return click.style(text, fg=COLOURS[text]) if fancy and text in COLOURS else text


def clean(text: str) -> str:
    """`text` on one line, without anything that could steer a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "⏎" if c == "\n" else f"\\x{ord(c):02x}" for c in text)


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    while _width(text) > width - 1:
        text = text[:-1]
    return text + "…"


def span(seconds: float) -> str:
    """A length of time: 340ms, 12s, 3m 5s, 2h 10m, 4d 3h."""
    if seconds < 1:
        return f"{max(0, seconds) * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s" if seconds < 10 else f"{seconds:.0f}s"
    for size, name, small, small_name in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if seconds >= size:
            rest = int(seconds % size // small)
            return f"{int(seconds // size)}{name}" + (f" {rest}{small_name}" if rest else "")
    return ""


def when(moment: datetime | None) -> str | None:
    """A time to the second, in UTC."""
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def ago(moment: datetime, now: datetime | None = None) -> str:
    """How long since, or until, `moment`."""
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    return f"{span(seconds)} ago" if seconds >= 0 else f"in {span(-seconds)}"
