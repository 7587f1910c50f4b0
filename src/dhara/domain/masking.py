"""Fields that nobody sees over HTTP, by path: `card.number`, `users.*.password`; `*` is any key or index.

Only the objects and lists on the way are rewritten; what is beside them passes through as it came.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Raw

MASKED = Raw(b'"***"')
_OBJECT = msgspec.json.Decoder(dict[str, Raw])
_LIST = msgspec.json.Decoder(list[Raw])
_ENCODER = msgspec.json.Encoder()

Path = tuple[str, ...]
# How JSON may write a character of a key otherwise than as it is.
_ESCAPES = ("\\u", "\\/")


class Mask:
    """Hides the fields at `paths` of a JSON text."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = [tuple(path.split(".")) for path in paths]

    def __bool__(self) -> bool:
        return bool(self._paths)

    @property
    def veiled(self) -> tuple[str, ...] | None:
        """Texts of which every JSON text with a masked field contains one: whoever searches only texts without them learns
        nothing of masked values. None: any text may have one."""
        keys = [next((part for part in reversed(path) if not _is_any(part)), None) for path in self._paths]
        if any(key is None for key in keys):
            return None
        return (*sorted({f'"{key}"' for key in keys}), *_ESCAPES) if keys else ()

    def apply(self, text: str | None) -> str | None:
        """`text` with `"***"` at every masked path; the same text if there is none."""
        if not self._paths or text is None:
            return text
        raw = Raw(text.encode())
        masked = _masked(raw, self._paths)
        return text if masked is raw else bytes(masked).decode()


def _is_any(part: str) -> bool:
    """Whether a part of a path fits what no text shows: any key, or an index. A key that JSON must escape counts as such."""
    return part == "*" or part.isdecimal() or not part.isprintable() or not {'"', "\\"}.isdisjoint(part)


def _masked(value: Raw, paths: Sequence[Path]) -> Raw:
    if any(not path for path in paths):
        return MASKED
    first = bytes(value).lstrip()[:1]
    items: list[tuple[str, Raw]]
    if first == b"{":
        items = list(_OBJECT.decode(value).items())
    elif first == b"[":
        items = [(str(index), item) for index, item in enumerate(_LIST.decode(value))]
    else:
        return value
    changed = False
    for at, (key, item) in enumerate(items):
        below = [path[1:] for path in paths if path[0] in (key, "*")]
        if below and (inner := _masked(item, below)) is not item:
            items[at] = key, inner
            changed = True
    if not changed:
        return value
    return Raw(_ENCODER.encode(dict(items) if first == b"{" else [item for _, item in items]))
