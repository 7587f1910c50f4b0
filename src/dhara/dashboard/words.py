"""How pages say numbers, times and JSON: template filters, pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime

from markupsafe import Markup

_UNITS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "m"))
# One token of JSON text: string, structural character, or a run of anything else.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')
_OPENING, _CLOSING, _BETWEEN = frozenset("{["), frozenset("}]"), frozenset(",:")
JSON_SHOWN = 32_768
# A letter that JSON has escaped, those beyond the first 65,536 as a pair.
_ESCAPED = re.compile(r"(?<!\\)(?:\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4})")


def number(value: float | None) -> str:
    """`12,345`; nothing for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 100 else f"{value:,.1f}"


def count(value: int, capped: bool = False) -> str:
    """A count; one that stopped at its cap says so."""
    return f"{value:,}+" if capped else f"{value:,}"


def estimate(value: int, is_estimate: bool = False) -> str:
    """A count; one that was not counted out says so."""
    return f"about {value:,}" if is_estimate else f"{value:,}"


def duration(seconds: float | None) -> str:
    """`850 ms`, `4.2 s`, `3 m 5 s`, `2 h 10 m`, `5 d 3 h`."""
    if seconds is None:
        return ""
    seconds = max(0.0, seconds)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    whole = round(seconds)
    for (size, unit), (smaller, small_unit) in zip(_UNITS, (*_UNITS[1:], (1.0, "s")), strict=True):
        if whole >= size:
            rest = int(whole % size // smaller)
            return f"{int(whole // size)} {unit}" + (f" {rest} {small_unit}" if rest else "")
    return f"{whole} s"


def relative(at: datetime, now: datetime) -> str:
    """`12 s ago`, `in 5 m`; one unit is enough."""
    seconds = (now - at).total_seconds()
    if abs(seconds) < 1:
        return "now"
    short = _short(abs(seconds))
    return f"{short} ago" if seconds > 0 else f"in {short}"


def _short(seconds: float) -> str:
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def exact(at: datetime) -> str:
    """`2026-01-31 12:00:00.123 UTC`."""
    return at.strftime("%Y-%m-%d %H:%M:%S.") + f"{at.microsecond // 1000:03d} UTC"


def rate(per_second: float | None) -> str:
    """A rate by the minute, as people read it: `120/min`."""
    if per_second is None:
        return "–"
    value = per_second * 60
    return f"{value:,.0f}/min" if value >= 10 or value == 0 else f"{value:,.1f}/min"


def pretty(text: str | None) -> Markup:
    """JSON text, indented and coloured by classes; its values stay as they are, digit for digit."""
    if text is None:
        return Markup("")
    cut = text[:JSON_SHOWN]
    # Joining escapes whatever is not markup of ours.
    body = Markup("").join(_layout([found[0] for found in _TOKEN.finditer(cut)]))
    return body + Markup('\n<span class="j-cut">… cut; the API has it whole</span>') if len(text) > len(cut) else body


def _layout(parts: list[str]) -> Iterator[str]:
    depth = 0
    for i, part in enumerate(parts):
        following = parts[i + 1] if i + 1 < len(parts) else ""
        if part in _OPENING:
            empty = following in _CLOSING
            depth += not empty
            yield part if empty else part + _line(depth)
        elif part in _CLOSING:
            empty = i > 0 and parts[i - 1] in _OPENING
            depth -= not empty
            yield part if empty else _line(depth) + part
        elif part in _BETWEEN:
            yield part + (_line(depth) if part == "," else " ")
        else:
            yield _value(part, key=following == ":")


def _line(depth: int) -> str:
    return "\n" + "  " * min(max(depth, 0), 64)


def _value(text: str, key: bool) -> Markup:
    kind = "j-key" if key else "j-text" if text.startswith('"') else "j-value"
    return Markup('<span class="{}">{}</span>').format(kind, _decoded(text))


def _decoded(text: str) -> str:
    """A string's escapes of printable characters made readable again."""
    if not text.startswith('"') or "\\u" not in text:
        return text

    def plain(found: re.Match[str]) -> str:
        letter: str = json.loads(f'"{found[0]}"')
        return letter if letter.isprintable() and letter not in '"\\' else found[0]

    return _ESCAPED.sub(plain, text)
